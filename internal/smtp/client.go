package smtp

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// ClientTimeouts bound the steps of a session.
type ClientTimeouts struct {
	Connect  time.Duration
	Greeting time.Duration
	Command  time.Duration // EHLO, MAIL, RCPT and whatever has no time of its own
	Data     time.Duration // the reply to DATA
	Block    time.Duration // one write of message text
	Done     time.Duration // the reply to the final dot
	Quit     time.Duration
}

// DefaultTimeouts are the minima of RFC 5321 §4.5.3.2. TCP's own time-out is left to Connect:
// a host that does not even answer SYN in 30 seconds is down.
func DefaultTimeouts() ClientTimeouts {
	return ClientTimeouts{
		Connect:  30 * time.Second,
		Greeting: 5 * time.Minute,
		Command:  5 * time.Minute,
		Data:     2 * time.Minute,
		Block:    3 * time.Minute,
		Done:     10 * time.Minute,
		Quit:     2 * time.Second, // nothing depends on the 221
	}
}

// Scaled returns the time-outs in proportion, so that a command may take d instead of five
// minutes. Zero changes nothing.
func (t ClientTimeouts) Scaled(d time.Duration) ClientTimeouts {
	if d <= 0 {
		return t
	}
	f := float64(d) / float64(5*time.Minute)
	for _, p := range []*time.Duration{&t.Connect, &t.Greeting, &t.Command, &t.Data, &t.Block, &t.Done, &t.Quit} {
		*p = max(time.Duration(float64(*p)*f), time.Millisecond)
	}
	return t
}

// ClientError says at which stage a session broke. The peer's own refusals are not errors of
// this kind: see Refusal.
type ClientError struct {
	Stage Stage
	Err   error
}

func (e *ClientError) Error() string { return e.Stage.String() + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *ClientError) Unwrap() error { return e.Err }

// Refusal is a reply of class 4 or 5 to a command that concerns the session, not one recipient.
type Refusal struct {
	Stage Stage
	Reply *Reply
}

func (e *Refusal) Error() string { return e.Stage.String() + " refused: " + e.Reply.String() }

// Client is the client's side of one SMTP or LMTP session. It is used by one goroutine at a
// time. After an error other than *Refusal only Close is useful.
type Client struct {
	conn   net.Conn
	br     *bufio.Reader
	out    []byte // commands not written yet; its array is kept
	lmtp   bool
	limits ClientTimeouts
	ext    Abilities
	script clientScript
	ctx    context.Context
	stop   func() bool // detaches from ctx
	dot    *DotWriter  // made for the first message
	block  []byte      // for text on its way; made when needed
	reset  bool        // the peer still holds a transaction: RSET comes before the next MAIL
	dead   bool
	sent   int // transactions begun
}

// clientBlock is the size of writes of message text.
const clientBlock = 32 << 10

// NewClient takes over conn and reads the greeting. The session breaks when ctx ends; Use
// gives it another context. With lmtp the session is LMTP (RFC 2033).
func NewClient(ctx context.Context, conn net.Conn, lmtp bool, limits ClientTimeouts) (*Client, error) {
	c := &Client{conn: conn, br: bufio.NewReaderSize(conn, 4096), lmtp: lmtp, limits: limits}
	c.Use(ctx)
	r, err := c.read(StageConnect, limits.Greeting)
	if err != nil {
		return c, err
	}
	if r.Class() != 2 {
		return c, &Refusal{StageConnect, r}
	}
	return c, nil
}

// Use makes the session break when ctx ends, instead of when an earlier context does.
func (c *Client) Use(ctx context.Context) {
	if c.stop != nil {
		c.stop()
	}
	conn := c.conn
	c.ctx = ctx
	c.stop = context.AfterFunc(ctx, func() {
		// Ends reads and writes under way. An error means that the connection is closed.
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
}

// Sent counts the transactions begun on this connection.
func (c *Client) Sent() int { return c.sent }

// Abilities are those of the last EHLO.
func (c *Client) Abilities() *Abilities { return &c.ext }

// Usable tells whether another transaction may be tried.
func (c *Client) Usable() bool { return !c.dead }

// Transcript returns the dialogue so far as "C: ..." and "S: ..." lines, bounded to about
// 8 KiB; the middle is left out first. Credentials and message text are never in it.
func (c *Client) Transcript() []string { return c.script.lines() }

// Hello says who we are: EHLO (LHLO for LMTP), or HELO when the peer does not know EHLO.
func (c *Client) Hello(name string) error {
	verb := "EHLO "
	if c.lmtp {
		verb = "LHLO "
	}
	r, err := c.cmd(StageHello, c.limits.Command, verb+name)
	if err != nil {
		return err
	}
	// RFC 5321 §3.2: a server that rejects EHLO with 500 or 502 is asked by HELO. Others are
	// found to answer 501, 504 or 550 for the same reason.
	if r.Class() == 5 && !c.lmtp {
		c.ext = Abilities{}
		if r, err = c.cmd(StageHello, c.limits.Command, "HELO "+name); err != nil {
			return err
		}
		if r.Class() == 2 {
			return nil
		}
	}
	if r.Class() != 2 {
		return &Refusal{StageHello, r}
	}
	c.ext = ParseAbilities(r)
	return nil
}

// StartTLS asks for TLS and lets wrap make the handshake. The session starts anew: Hello
// comes next (RFC 3207 §4.2). A *Refusal leaves the session usable in clear.
func (c *Client) StartTLS(wrap func(net.Conn) (net.Conn, error)) error {
	r, err := c.cmd(StageHello, c.limits.Command, "STARTTLS")
	if err != nil {
		return err
	}
	if r.Class() != 2 {
		return &Refusal{StageHello, r}
	}
	// Octets sent in clear behind the 220 would count as said under TLS (CVE-2011-0411).
	if c.br.Buffered() > 0 {
		return c.broken(StageHello, errors.New("clear text behind the reply to STARTTLS"))
	}
	if err := c.deadline(c.limits.Command); err != nil {
		return c.broken(StageHello, err)
	}
	t, err := wrap(c.conn)
	if err != nil {
		return c.broken(StageHello, fmt.Errorf("TLS: %w", err))
	}
	c.conn = t
	c.br.Reset(t)
	c.ext = Abilities{}
	c.script.add("", "(TLS established)")
	return nil
}

// ErrNoMechanism tells that the peer announces no way of authentication known here.
var ErrNoMechanism = errors.New("peer offers neither AUTH PLAIN nor AUTH LOGIN")

// Auth authenticates by PLAIN (RFC 4616), or by LOGIN where only that is announced. The
// caller sees to it that the password does not travel in clear.
func (c *Client) Auth(user, password string) error {
	if strings.ContainsRune(user, 0) || strings.ContainsRune(password, 0) {
		return errors.New("a NUL octet in user name or password")
	}
	var r *Reply
	var err error
	switch {
	case c.ext.Auth("PLAIN"):
		c.script.add("C: ", "AUTH PLAIN (cut out)")
		r, err = c.secret("AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00"+user+"\x00"+password)))
	case c.ext.Auth("LOGIN"):
		c.script.add("C: ", "AUTH LOGIN (cut out)")
		r, err = c.secret("AUTH LOGIN")
		for _, s := range []string{user, password} {
			if err != nil || r.Code != 334 {
				break
			}
			r, err = c.secret(base64.StdEncoding.EncodeToString([]byte(s)))
		}
	default:
		return ErrNoMechanism
	}
	if err != nil {
		return err
	}
	if r.Class() == 3 { // a challenge where none belongs; RFC 4954 §4: "*" ends the exchange
		if r, err = c.secret("*"); err != nil {
			return err
		}
		if r.Class() < 4 {
			return c.broken(StageAuth, fmt.Errorf("%w: endless exchange", ErrReply))
		}
	}
	if r.Class() != 2 {
		return &Refusal{StageAuth, r}
	}
	return nil
}

// secret sends a line that does not go into the transcript.
func (c *Client) secret(line string) (*Reply, error) {
	c.out = append(append(c.out, line...), '\r', '\n')
	if err := c.flush(StageAuth); err != nil {
		return nil, err
	}
	return c.read(StageAuth, c.limits.Command)
}

// Reset drops a transaction that is under way.
func (c *Client) Reset() error {
	r, err := c.cmd(StageMail, c.limits.Command, "RSET")
	if err == nil && r.Class() != 2 {
		err = &Refusal{StageMail, r}
		c.dead = true
	}
	return err
}

// Quit ends the session politely and closes the connection.
func (c *Client) Quit() {
	if !c.dead {
		// Ignored: the session's work is done, whatever the peer says to QUIT.
		_, _ = c.cmd(StageHello, c.limits.Quit, "QUIT")
	}
	c.Close()
}

// Close closes the connection without a word.
func (c *Client) Close() {
	c.dead = true
	if c.stop != nil {
		c.stop()
	}
	// Ignored: nothing written here is relied on without a reply.
	_ = c.conn.Close()
}

// cmd sends one command and reads its reply.
func (c *Client) cmd(stage Stage, limit time.Duration, line string) (*Reply, error) {
	c.script.add("C: ", line)
	c.out = append(append(c.out, line...), '\r', '\n')
	if err := c.flush(stage); err != nil {
		return nil, err
	}
	return c.read(stage, limit)
}

// flush writes all of c.out at once.
func (c *Client) flush(stage Stage) error {
	err := c.writeCommand(stage, c.out)
	c.out = c.out[:0]
	return err
}

func (c *Client) writeCommand(stage Stage, line []byte) error {
	if err := c.deadline(c.limits.Command); err != nil {
		return c.broken(stage, err)
	}
	if ok, err := c.mayAsk(stage); !ok {
		return err
	}
	if _, err := c.conn.Write(line); err != nil {
		return c.broken(stage, err)
	}
	return nil
}

func (c *Client) read(stage Stage, limit time.Duration) (*Reply, error) {
	if c.br.Buffered() == 0 {
		if err := c.deadline(limit); err != nil {
			return nil, c.broken(stage, err)
		}
	}
	r, err := ParseReply(c.br)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, c.broken(stage, err)
	}
	c.script.reply(r)
	if r.Code == 421 { // RFC 5321 §3.8: the server closes the connection after it
		c.dead = true
	}
	return r, nil
}

// deadline gives the next read or write its time. The context is asked afterwards: one that
// ends later than that finds the new deadline in place and overrides it.
func (c *Client) deadline(d time.Duration) error {
	if err := c.conn.SetDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	return context.Cause(c.ctx)
}

func (c *Client) broken(stage Stage, err error) error {
	c.dead = true
	var ne net.Error
	switch {
	case errors.As(err, &ne) && ne.Timeout():
		c.script.add("", "(no answer in time)")
	case errors.Is(err, ErrReply), errors.Is(err, errEarly):
		c.script.add("", "("+err.Error()+")")
	default:
		c.script.add("", "(connection lost: "+err.Error()+")")
	}
	return &ClientError{stage, err}
}

// Abilities are what a peer announced by EHLO.
type Abilities struct {
	Pipelining bool
	EightBit   bool // 8BITMIME
	UTF8       bool // SMTPUTF8
	DSN        bool
	Chunking   bool
	Binary     bool // BINARYMIME
	StartTLS   bool
	RequireTLS bool
	Priority   bool // MT-PRIORITY
	MaxMails   int  // of LIMITS: transactions in a session; 0: not told
	MaxRcpts   int  // of LIMITS: recipients in a transaction; 0: not told
	DeliverBy  bool
	MinBy      time.Duration // of DELIVERBY; 0: not told
	Size       bool
	MaxSize    int64 // of SIZE; 0: not told or no limit
	auth       []string
}

// Auth tells whether a mechanism was announced.
func (a *Abilities) Auth(mechanism string) bool {
	for _, m := range a.auth {
		if m == mechanism {
			return true
		}
	}
	return false
}

// ParseAbilities reads the reply to EHLO (RFC 5321 §4.1.1.1). Unknown keywords and odd lines
// are passed over.
func ParseAbilities(r *Reply) Abilities {
	var a Abilities
	for _, l := range r.Lines[min(1, len(r.Lines)):] {
		// "AUTH=PLAIN" is how servers before RFC 2554 wrote it, and some still do beside.
		if len(l) > 5 && strings.EqualFold(l[:5], "AUTH=") {
			l = "AUTH " + l[5:]
		}
		word, params, _ := strings.Cut(strings.TrimSpace(l), " ")
		switch strings.ToUpper(word) {
		case "PIPELINING":
			a.Pipelining = true
		case "8BITMIME":
			a.EightBit = true
		case "SMTPUTF8":
			a.UTF8 = true
		case "DSN":
			a.DSN = true
		case "CHUNKING":
			a.Chunking = true
		case "BINARYMIME":
			a.Binary = true
		case "STARTTLS":
			a.StartTLS = true
		case "REQUIRETLS":
			a.RequireTLS = true
		case "LIMITS":
			a.MaxMails, a.MaxRcpts = parseLimits(params)
		case "MT-PRIORITY":
			a.Priority = true
		case "DELIVERBY":
			a.DeliverBy = true
			least, _, _ := strings.Cut(params, ",")
			if d, ok := parseSeconds(strings.TrimSpace(least)); ok {
				a.MinBy = d
			}
		case "SIZE":
			a.Size = true
			if n, err := strconv.ParseInt(strings.TrimSpace(params), 10, 64); err == nil && n > 0 {
				a.MaxSize = n
			}
		case "AUTH":
			for m := range strings.FieldsSeq(params) {
				if m = strings.ToUpper(m); !a.Auth(m) {
					a.auth = append(a.auth, m)
				}
			}
		}
	}
	return a
}
