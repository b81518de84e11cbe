// Package milter is the mail server's side of the milter protocol, version 6 as libmilter speaks
// it: content filters such as opendkim and rspamd are told of a connection, its transactions and
// their messages, and answer with a verdict and with changes. It hides the wire and the library
// that reads it, what was negotiated, time limits, and the forms in which filters see addresses
// and line ends. It changes nothing itself: changes are handed to the caller.
//
// Replacing the body is not offered in the negotiation; a filter that needs it says so in its
// own log and refuses.
package milter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	wire "github.com/emersion/go-milter"

	"pennypost/internal/envelope"
)

// Action is a filter's verdict.
type Action int

// The verdicts.
const (
	Continue Action = iota // no objection, go on
	Accept                 // take it and ask no more
	Reject
	Defer
	Discard // say yes and throw the message away
)

// Reply is a verdict; of a refusal it has what the client is told.
type Reply struct {
	Action Action
	Code   int    // basic code
	DSN    string // enhanced code
	Text   string
}

// Kind says what a Change changes.
type Kind int

// The changes.
const (
	AddHeader    Kind = iota // behind the other fields
	InsertHeader             // at place Index, 0 and 1 being the top
	ChangeHeader             // the Index-th field called Name, from 1; Value "" deletes it
	AddRcpt
	DeleteRcpt
	ChangeFrom
	Quarantine
)

// Change is one thing a filter wants done to a message. They are done in their order.
type Change struct {
	Kind  Kind
	Index int
	Name  string // of a field
	Value string // of a field as it stands behind the colon; an address; a reason
}

// Options say which filter, and how long it may take.
type Options struct {
	Address  string        // "inet:host:port" or "unix:/path"
	Hostname string        // ours
	Timeout  time.Duration // of one answer
}

// maxTotal bounds what one message may take, and maxAnswers what may come back about it: a
// filter can ask for patience again and again, and for changes without end.
const (
	maxTotal   = 5 * time.Minute
	maxAnswers = 8 << 20
)

const offered = wire.OptAddHeader | wire.OptChangeHeader | wire.OptAddRcpt | wire.OptRemoveRcpt |
	wire.OptQuarantine | wire.OptChangeFrom

// Which steps a filter may leave out, or not answer, by its choice. SKIP is not among them: the
// library does not know it as an answer.
const steps = wire.OptNoConnect | wire.OptNoHelo | wire.OptNoMailFrom | wire.OptNoRcptTo | wire.OptNoBody |
	wire.OptNoHeaders | wire.OptNoEOH | wire.OptNoUnknown | wire.OptNoData |
	wire.OptNoHeaderReply | wire.OptNoConnReply | wire.OptNoHeloReply | wire.OptNoMailReply | wire.OptNoRcptReply |
	wire.OptNoDataReply | wire.OptNoUnknownReply | wire.OptNoEOHReply | wire.OptNoBodyReply | wire.OptHeaderLeadingSpace

// Client knows one filter. It may be used concurrently.
type Client struct {
	o             Options
	network, addr string
}

// New checks o. It connects nowhere yet.
func New(o Options) (*Client, error) {
	network, addr, err := ParseAddress(o.Address)
	if err != nil {
		return nil, err
	}
	if o.Timeout <= 0 {
		return nil, fmt.Errorf("milter %s: needs a time-out", o.Address)
	}
	return &Client{o: o, network: network, addr: addr}, nil
}

// ParseAddress reads a filter's address.
func ParseAddress(s string) (network, addr string, err error) {
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case "unix":
		if filepath.IsAbs(rest) {
			return "unix", rest, nil
		}
	case "inet":
		if host, port, err := net.SplitHostPort(rest); err == nil && host != "" && port != "" {
			return "tcp", rest, nil
		}
	}
	return "", "", fmt.Errorf("milter %q: want inet:host:port or unix:/path", s)
}

// Address is the filter's address as configured.
func (c *Client) Address() string { return c.o.Address }

// Peer is what a filter is told about a connection.
type Peer struct {
	Addr  netip.AddrPort // zero: not known
	Name  string         // in DNS, and it leads back to Addr; "" where that was not looked up
	Local bool           // a process on this host, who is shown as a connection from loopback
	Helo  string
	TLS   string // version, "" without
	Suite string
	User  string // who authenticated
}

// Session is one connection to the filter, for one SMTP connection. After an error it is of no
// further use but to be closed. It is used by one goroutine.
type Session struct {
	c      *Client
	s      *wire.ClientSession
	conn   *guarded
	peer   Peer
	begun  bool   // MAIL was told, and no end of it
	client *Reply // verdict about the connection; nil before it was told
}

// Open connects and negotiates.
func (c *Client) Open(ctx context.Context, p Peer) (*Session, error) {
	s, conn, err := c.negotiate(ctx, offered, steps)
	if errors.Is(err, wire.ErrUnsupportedMilterVersion) {
		// One that knows version 2 only takes what that version had.
		s, conn, err = c.negotiate(ctx, offered&0x3f, steps&0x7f)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.o.Address, err)
	}
	return &Session{c: c, s: s, conn: conn, peer: p}, nil
}

func (c *Client) negotiate(ctx context.Context, actions wire.OptAction, steps wire.OptProtocol) (*wire.ClientSession, *guarded, error) {
	d := &dialer{ctx: ctx, timeout: c.o.Timeout}
	s, err := wire.NewClientWithOptions(c.network, c.addr, wire.ClientOptions{
		Dialer: d, ReadTimeout: c.o.Timeout, WriteTimeout: c.o.Timeout, ActionMask: actions, ProtocolMask: steps,
	}).Session()
	if err != nil && d.conn != nil {
		d.conn.Close() // the library forgets it
	}
	return s, d.conn, err
}

// dialer makes the one connection of a session.
type dialer struct {
	ctx     context.Context
	timeout time.Duration
	conn    *guarded
}

// Dial implements the library's Dialer.
func (d *dialer) Dial(network, addr string) (net.Conn, error) {
	nd := net.Dialer{Timeout: d.timeout}
	c, err := nd.DialContext(d.ctx, network, addr)
	if err != nil {
		return nil, err
	}
	d.conn = &guarded{Conn: c}
	d.conn.refill(time.Now().Add(maxTotal))
	return d.conn, nil
}

// guarded is a connection with bounds that the library does not have: on the time and the
// octets one message may take in all.
type guarded struct {
	net.Conn
	left int64

	mu   sync.Mutex
	end  time.Time
	over bool // the caller's context ended
}

var errTooMuch = errors.New("the filter answers without end")

func (g *guarded) refill(end time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left, g.end = maxAnswers, end
}

func (g *guarded) Read(p []byte) (int, error) {
	if g.left <= 0 {
		return 0, errTooMuch
	}
	n, err := g.Conn.Read(p[:min(int64(len(p)), g.left)])
	g.left -= int64(n)
	return n, err
}

// SetReadDeadline moves the deadline the library wants to the end there is.
func (g *guarded) SetReadDeadline(t time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over || t.IsZero() || g.end.Before(t) {
		t = g.end
	}
	return g.Conn.SetReadDeadline(t)
}

// stop makes every wait end now.
func (g *guarded) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over, g.end = true, time.Unix(1, 0)
	_ = g.Conn.SetDeadline(g.end) // fails only once closed
}

// within runs one exchange under ctx.
func (s *Session) within(ctx context.Context, what string, f func() (*wire.Action, error)) (Reply, error) {
	stop := context.AfterFunc(ctx, s.conn.stop)
	defer stop()
	act, err := f()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return Reply{}, fmt.Errorf("%s: %s: %w", s.c.o.Address, what, err)
	}
	r, err := reply(act)
	if err != nil {
		return Reply{}, fmt.Errorf("%s: %s: %w", s.c.o.Address, what, err)
	}
	return r, nil
}

// reply reads a verdict.
func reply(a *wire.Action) (Reply, error) {
	switch a.Code {
	case wire.ActContinue:
		return Reply{Action: Continue}, nil
	case wire.ActAccept:
		return Reply{Action: Accept}, nil
	case wire.ActDiscard:
		return Reply{Action: Discard}, nil
	case wire.ActReject:
		return Reply{Action: Reject, Code: 550, DSN: "5.7.1", Text: "refused by a content filter"}, nil
	case wire.ActTempFail:
		return Reply{Action: Defer, Code: 451, DSN: "4.7.1", Text: "refused by a content filter for now, try again later"}, nil
	case wire.ActReplyCode:
		return custom(a.SMTPCode, a.SMTPText)
	}
	return Reply{}, fmt.Errorf("answer %q is not known here", rune(a.Code))
}

// custom reads a refusal in the filter's own words: "5.7.1 text", several lines with their codes
// in front again, and each percent sign twice.
func custom(code int, text string) (Reply, error) {
	r := Reply{Action: Reject, Code: code, DSN: "5.7.1"}
	switch code / 100 {
	case 5:
	case 4:
		r.Action, r.DSN = Defer, "4.7.1"
	default:
		return r, fmt.Errorf("answer has the code %d", code)
	}
	var lines []string
	for _, l := range strings.Split(strings.ReplaceAll(text, "%%", "%"), "\n") {
		l = strings.TrimRight(l, "\r ")
		if n := strconv.Itoa(code); len(l) > 3 && strings.HasPrefix(l, n) && (l[3] == '-' || l[3] == ' ') {
			l = l[4:]
		}
		if first, rest, _ := strings.Cut(l, " "); envelope.ValidCode(first) {
			if first[0] == byte('0'+code/100) {
				r.DSN = first
			}
			l = rest
		}
		if l != "" {
			lines = append(lines, l)
		}
	}
	if r.Text = strings.Join(lines, "\n"); r.Text == "" {
		r.Text = "refused by a content filter"
	}
	return r, nil
}

// Begin tells of a transaction; the first one of a session also tells of the connection. What
// the filter says of the connection stands for all its transactions.
func (s *Session) Begin(ctx context.Context, from string, args []string) (Reply, error) {
	if err := s.Abort(); err != nil {
		return Reply{}, fmt.Errorf("%s: %w", s.c.o.Address, err)
	}
	s.conn.refill(time.Now().Add(maxTotal))
	if s.client == nil {
		r, err := s.connect(ctx)
		if err == nil && r.Action == Continue {
			r, err = s.helo(ctx)
		}
		if err != nil {
			return r, err
		}
		s.client = &r
	}
	if s.client.Action != Continue {
		return *s.client, nil
	}
	s.begun = true
	return s.within(ctx, "mail", func() (*wire.Action, error) {
		m := []string{"{mail_addr}", from}
		if s.peer.User != "" {
			// Filters look whether there is a type, not which.
			m = append(m, "{auth_type}", "SASL", "{auth_authen}", s.peer.User)
		}
		if err := s.s.Macros(wire.CodeMail, m...); err != nil {
			return nil, err
		}
		return s.s.Mail(clean(from), args)
	})
}

func (s *Session) connect(ctx context.Context) (Reply, error) {
	return s.within(ctx, "connect", func() (*wire.Action, error) {
		host, family, addr := "unknown", wire.FamilyUnknown, ""
		ip, port := s.peer.Addr.Addr(), s.peer.Addr.Port()
		switch {
		case s.peer.Local:
			// As other servers show mail that never came over the network.
			host, family, addr = "localhost", wire.FamilyInet, "127.0.0.1"
		case ip.Is4():
			host, family, addr = "["+ip.String()+"]", wire.FamilyInet, ip.String()
		case ip.Is6():
			host, family, addr = "[IPv6:"+ip.WithZone("").String()+"]", wire.FamilyInet6, ip.WithZone("").String()
		}
		// Filters take what is in brackets for a client without a name that can be trusted.
		validated := host
		if name := s.peer.Name; name != "" && !s.peer.Local {
			host, validated = clean(name), clean(name)+" "+host
		}
		if err := s.s.Macros(wire.CodeConn, "j", s.c.o.Hostname, "{daemon_name}", "msmtpd", "v", "Pennypost", "_", validated); err != nil {
			return nil, err
		}
		return s.s.Conn(host, family, port, addr)
	})
}

func (s *Session) helo(ctx context.Context) (Reply, error) {
	return s.within(ctx, "helo", func() (*wire.Action, error) {
		if s.peer.TLS != "" {
			if err := s.s.Macros(wire.CodeHelo, "{tls_version}", s.peer.TLS, "{cipher}", s.peer.Suite); err != nil {
				return nil, err
			}
		}
		return s.s.Helo(clean(s.peer.Helo))
	})
}

// Rcpt tells of a recipient.
func (s *Session) Rcpt(ctx context.Context, to string, args []string) (Reply, error) {
	return s.within(ctx, "rcpt", func() (*wire.Action, error) {
		if err := s.s.Macros(wire.CodeRcpt, "{rcpt_addr}", to); err != nil {
			return nil, err
		}
		return s.s.Rcpt(clean(to), args)
	})
}

// clean keeps what would end a string of the protocol out of it.
func clean(s string) string { return strings.ReplaceAll(s, "\x00", "") }

// Message is what a filter reads: the header in LF form with the empty line at its end, and the
// body, whose LF line ends become CR LF unless it is as it came.
type Message struct {
	ID     string
	Header []byte
	Body   io.Reader
	AsIs   bool
}

// Message sends the message and returns the verdict with the changes that come with it.
func (s *Session) Message(ctx context.Context, m Message) (Reply, []Change, error) {
	s.conn.refill(time.Now().Add(maxTotal))
	r, err := s.within(ctx, "header", func() (*wire.Action, error) { return s.sendHeader(m) })
	if err != nil || r.Action != Continue {
		return r, nil, err
	}
	r, err = s.within(ctx, "body", func() (*wire.Action, error) { return s.sendBody(m) })
	if err != nil || r.Action != Continue {
		return r, nil, err
	}
	var mods []wire.ModifyAction
	r, err = s.within(ctx, "end of message", func() (*wire.Action, error) {
		if err := s.s.Macros(wire.CodeEOB, "i", m.ID); err != nil {
			return nil, err
		}
		var act *wire.Action
		var err error
		mods, act, err = s.s.End()
		return act, err
	})
	s.begun = false
	if err != nil {
		return r, nil, err
	}
	changes, err := s.changes(mods)
	if err != nil {
		return Reply{}, nil, fmt.Errorf("%s: %w", s.c.o.Address, err)
	}
	return r, changes, nil
}

func (s *Session) sendHeader(m Message) (*wire.Action, error) {
	if err := s.s.Macros(wire.CodeHeader, "i", m.ID); err != nil {
		return nil, err
	}
	space := s.s.ProtocolOption(wire.OptHeaderLeadingSpace)
	for rest := m.Header; len(rest) > 0 && rest[0] != '\n'; {
		var f []byte
		f, rest = cutField(rest)
		name, value, ok := bytes.Cut(f, []byte{':'})
		if !ok {
			continue // no field; what it is, a filter cannot be told
		}
		v := clean(strings.TrimSuffix(string(value), "\n"))
		if !space {
			// Filters put one space back.
			v = strings.TrimPrefix(v, " ")
		}
		act, err := s.s.HeaderField(string(bytes.TrimRight(name, " \t")), v)
		if err != nil || act.Code != wire.ActContinue {
			return act, err
		}
	}
	if err := s.s.Macros(wire.CodeEOH, "i", m.ID); err != nil {
		return nil, err
	}
	return s.s.HeaderEnd()
}

// cutField cuts the first field, with its continuation lines, off a header.
func cutField(b []byte) (field, rest []byte) {
	for i, c := range b {
		if c == '\n' && (i+1 == len(b) || b[i+1] != ' ' && b[i+1] != '\t') {
			return b[:i+1], b[i+1:]
		}
	}
	return b, nil
}

func (s *Session) sendBody(m Message) (*wire.Action, error) {
	cont := &wire.Action{Code: wire.ActContinue}
	if s.s.ProtocolOption(wire.OptNoBody) {
		return cont, nil
	}
	// Twice as big in the worst case, all of it LF.
	in, out := make([]byte, 32<<10), make([]byte, 0, 64<<10)
	for {
		n, err := m.Body.Read(in)
		out = out[:0]
		for _, c := range in[:n] {
			if c == '\n' && !m.AsIs {
				out = append(out, '\r')
			}
			out = append(out, c)
		}
		for chunk := out; len(chunk) > 0; {
			k := min(len(chunk), wire.MaxBodyChunk)
			act, err := s.s.BodyChunk(chunk[:k])
			if err != nil || act.Code != wire.ActContinue {
				return act, err
			}
			chunk = chunk[k:]
		}
		if err == io.EOF {
			return cont, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// changes reads what a filter wants changed. What was not offered, or cannot be written into a
// header or an envelope, makes all of it void: half of a filter's changes may be worse than none.
func (s *Session) changes(mods []wire.ModifyAction) ([]Change, error) {
	var out []Change
	for _, m := range mods {
		c := Change{Index: int(m.HeaderIndex), Name: m.HeaderName}
		switch m.Code {
		case wire.ActAddHeader, wire.ActInsertHeader, wire.ActChangeHeader:
			c.Kind = map[wire.ModifyActCode]Kind{
				wire.ActAddHeader: AddHeader, wire.ActInsertHeader: InsertHeader, wire.ActChangeHeader: ChangeHeader,
			}[m.Code]
			if m.HeaderIndex > 1<<20 || !isName(m.HeaderName) {
				return nil, fmt.Errorf("a change of the header field %q at %d cannot be made", m.HeaderName, m.HeaderIndex)
			}
			c.Value = m.HeaderValue
			if c.Value != "" && !s.s.ProtocolOption(wire.OptHeaderLeadingSpace) {
				c.Value = " " + c.Value
			}
		case wire.ActAddRcpt, wire.ActDelRcpt:
			c.Kind, c.Value = AddRcpt, m.Rcpt
			if m.Code == wire.ActDelRcpt {
				c.Kind = DeleteRcpt
			}
		case wire.ActChangeFrom:
			c.Kind, c.Value = ChangeFrom, m.From
		case wire.ActQuarantine:
			c.Kind, c.Value = Quarantine, m.Reason
		default:
			return nil, fmt.Errorf("the change %q was not offered to the filter", rune(m.Code))
		}
		out = append(out, c)
	}
	return out, nil
}

// isName is RFC 5322 §3.6.8's field-name.
func isName(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] > '~' || s[i] == ':' {
			return false
		}
	}
	return s != "" && len(s) < 128
}

// Abort tells that the transaction ended without a message.
func (s *Session) Abort() error {
	if !s.begun {
		return nil
	}
	s.begun = false
	return s.s.Abort()
}

// Close ends the session.
func (s *Session) Close() {
	// The other side learns it from the connection, if not from these words.
	_ = s.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_ = s.s.Close()
	s.conn.Conn.Close()
}
