package smtp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"pennypost/internal/envelope"
)

// Limits that need no configuration.
const (
	// RFC 5321 §4.5.3.1.4 asks for 512, RFC 6531 §3.4 adds to it, and DSN, SIZE and AUTH
	// parameters add more; a client that needs this much exists nowhere.
	maxCommand = 4096
	// RFC 4954 §4: an AUTH line may have 12288 octets.
	maxAuthLine = 12288
	// EHLO, NOOP, RSET, VRFY, HELP, refused recipients and empty chunks beyond this are no mail traffic.
	maxIdleCommands = 200
	// What an oversized message may go on with before the connection is cut instead.
	minDrain = 64 << 20
)

// session is one connection.
type session struct {
	srv  *Server
	ctx  context.Context
	conn net.Conn
	in   input
	out  []byte // replies not yet sent; nil while idle
	st   State
	be   Session
	tx   transaction

	started time.Time
	errs    int
	idle    int // commands that moved nothing since the last message
	verb    string
	arg     string
	secret  bool // a refused AUTH may go on with what the client meant as its responses
	closing bool
	linger  bool // input may be pending that nobody will read
	xclient bool // the connection is a trusted proxy's, whoever it speaks for
}

// transaction is what MAIL began.
type transaction struct {
	open  bool
	began time.Time
	opts  MailOptions
	from  envelope.Address
	rcpts int
	over  int      // recipients beyond the limit, each refused
	msg   Message  // of a BDAT sequence
	dec   *decoder // of a BDAT sequence that is text
	size  int64
	bad   bool // BDAT failed; only RSET helps (RFC 3030 §2)
}

// command is one row of the table. run answers by itself.
type command struct {
	verb string
	run  func(*session, string) error
	idle bool // moves no mail: counted
}

// commandFor is the table of all commands; as a function it costs nothing at start.
func commandFor(verb string) (command, bool) {
	switch verb {
	case "EHLO":
		return command{verb, (*session).ehlo, true}, true
	case "HELO":
		return command{verb, (*session).helo, true}, true
	case "MAIL":
		return command{verb, (*session).mail, false}, true
	case "RCPT":
		return command{verb, (*session).rcpt, false}, true
	case "DATA":
		return command{verb, (*session).data, false}, true
	case "BDAT":
		return command{verb, (*session).bdat, false}, true
	case "RSET":
		return command{verb, (*session).rset, true}, true
	case "NOOP":
		return command{verb, (*session).noop, true}, true
	case "QUIT":
		return command{verb, (*session).quit, false}, true
	case "VRFY":
		return command{verb, (*session).vrfy, true}, true
	case "EXPN":
		return command{verb, (*session).expn, true}, true
	case "HELP":
		return command{verb, (*session).help, true}, true
	case "STARTTLS":
		return command{verb, (*session).starttls, false}, true
	case "AUTH":
		return command{verb, (*session).auth, false}, true
	case "ETRN":
		return command{verb, (*session).etrn, true}, true
	case "XCLIENT":
		return command{verb, (*session).xclientCmd, true}, true
	}
	return command{}, false
}

// ServeConn speaks SMTP on conn until the client quits or goes, a limit is reached, or ctx ends.
// It closes conn. The error is nil when the client ended the session in good order; it wraps
// ErrRefused where a refusal said so already.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn, peer Peer) error {
	c := &session{srv: s, ctx: ctx, conn: conn, started: s.now()}
	c.st.Peer, c.st.User = peer, peer.User
	c.in = input{ctx: ctx, pools: &s.pools, now: s.now, flush: c.flush, timeout: s.timeout()}
	c.in.attach(conn)
	// A reader that waits is woken by moving its deadline.
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err := c.run()
	if c.be != nil {
		c.dropMessage()
		c.be.Close()
	}
	c.hangUp()
	return err
}

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Server) timeout() time.Duration { return or(s.Timeout, 5*time.Minute) }

func or[T int | int64 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

func (c *session) run() error {
	if c.srv.Implicit {
		if err := c.handshake(); err != nil {
			return err
		}
	}
	if !c.begin() {
		_ = c.flush() // the refusal has its line
		return nil
	}
	c.xclient = c.extensions().XClient
	for !c.closing {
		if err := c.next(); err != nil {
			return c.lost(err)
		}
	}
	// A client that said QUIT need not wait for the answer, and one that was refused has its line.
	_ = c.flush()
	return nil
}

// begin makes the session and greets the client.
func (c *session) begin() bool {
	be, err := c.srv.Backend.NewSession(c.ctx, &c.st)
	if err != nil {
		a := *answerFor(err)
		// RFC 5321 §3.1 and §4.3.2: a server that will not serve says 554 or 421 in its greeting.
		a.Code = 421
		if strings.HasPrefix(a.Enhanced, "5.") {
			a.Code = 554
		}
		a.Close = true
		c.answer(&a)
		return false
	}
	c.be = be
	if !c.hold() {
		return false
	}
	c.say(220, "", c.srv.Hostname+" ESMTP Pennypost")
	return true
}

// next reads and runs one command.
func (c *session) next() error {
	if c.ctx.Err() != nil && len(c.in.buffered()) == 0 {
		return errStopping
	}
	if c.in.r == c.in.w {
		c.in.release()
	}
	line, err := c.in.line(maxCommand)
	c.verb, c.arg = "", ""
	switch {
	case errors.Is(err, errLongLine):
		return c.fault(500, "5.5.6", "line too long")
	case errors.Is(err, errBareLF), errors.Is(err, errBareCR):
		c.closing, c.linger = true, true
		c.say(500, "5.5.2", "lines end in CR LF, never in one of them alone; closing the connection")
		return nil
	case err != nil:
		return err
	}
	if c.tooLong() {
		return nil
	}
	secret := c.secret
	c.secret = len(line) >= 4 && strings.EqualFold(string(line[:4]), "AUTH")
	for _, b := range line {
		if b < 0x20 && b != '\t' || b == 0x7f {
			return c.fault(500, "5.5.2", "control character in a command")
		}
	}
	verb, arg, _ := bytes.Cut(line, []byte{' '})
	c.verb, c.arg = upper(verb), strings.TrimRight(string(arg), " \t")
	cmd, ok := commandFor(c.verb)
	if !ok {
		if c.notSMTP(line) {
			return nil
		}
		if secret || c.secret {
			c.secret, c.verb, c.arg = true, "AUTH", ""
		}
		return c.fault(500, "5.5.1", "unknown command")
	}
	if cmd.idle {
		if c.idle++; c.idle > maxIdleCommands {
			c.bye("4.7.0", "too many commands without a message")
			return nil
		}
	}
	return cmd.run(c, c.arg)
}

// tooLong ends a session that is old, once it is between two messages: or with a message that is
// as old by itself, which a client may send by an octet a chunk.
func (c *session) tooLong() bool {
	since, what := c.started, "session lasts too long"
	if c.tx.open {
		since, what = c.tx.began, "message takes too long"
	}
	if c.srv.now().Sub(since) <= or(c.srv.SessionTime, 2*time.Hour) {
		return false
	}
	c.bye("4.4.2", what)
	return true
}

// notSMTP hangs up on what is no mail client: web browsers talked into posting here, and TLS
// records where clear text belongs. Answering line by line would execute what follows.
func (c *session) notSMTP(line []byte) bool {
	first, rest, _ := bytes.Cut(line, []byte{' '})
	switch upper(first) {
	case "GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT":
		if !bytes.Contains(rest, []byte("HTTP/")) {
			return false
		}
	default:
		return false
	}
	c.closing, c.linger = true, true
	c.say(554, "5.5.1", "this is SMTP, not HTTP")
	return true
}

func upper(b []byte) string {
	if len(b) > 16 {
		b = b[:16] // longer than any verb
	}
	var a [16]byte
	n := copy(a[:], b)
	for i, c := range a[:n] {
		if c >= 'a' && c <= 'z' {
			a[i] = c - 'a' + 'A'
		}
	}
	// The usual verbs cost no allocation.
	for _, v := range [...]string{"MAIL", "RCPT", "DATA", "QUIT", "EHLO", "RSET", "BDAT"} {
		if string(a[:n]) == v {
			return v
		}
	}
	return string(a[:n])
}

// say queues a reply. Nothing is written before the input is used up.
func (c *session) say(code int, enhanced, text string) {
	c.answer(&Answer{Code: code, Enhanced: enhanced, Text: text})
}

func (c *session) answer(a *Answer) {
	if c.out == nil {
		c.out = c.srv.pools.get(smallBuffer)[:0]
	}
	c.out = a.append(c.out)
	if a.Close || a.Code == 421 {
		c.closing = true
		c.linger = true
	}
	if a.Code >= 400 {
		if o, ok := c.be.(Observer); ok {
			o.Refused(c.verb, c.arg, a)
		}
	}
}

// fault answers a client's mistake; too many end the session.
func (c *session) fault(code int, enhanced, text string) error {
	c.say(code, enhanced, text)
	if c.errs++; c.errs >= or(c.srv.MaxErrors, 10) && !c.closing {
		c.bye("4.7.0", "too many errors")
	}
	return nil
}

// bye is the reply after which the server hangs up by itself, RFC 5321 §3.8.
func (c *session) bye(enhanced, text string) {
	c.answer(&Answer{Code: 421, Enhanced: enhanced, Text: c.srv.Hostname + " " + text, Close: true})
}

// flush sends the replies of a whole group of commands with one write (RFC 2920 §3.2).
func (c *session) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	out := c.out
	c.out = nil
	err := c.conn.SetWriteDeadline(c.srv.now().Add(c.srv.timeout()))
	if err == nil {
		_, err = c.conn.Write(out)
	}
	c.srv.pools.put(out)
	return err
}

// lost ends a session whose input failed.
func (c *session) lost(err error) error {
	c.verb, c.arg = "", ""
	switch {
	case errors.Is(err, errHandshake):
		return err // the client hears TLS by now: nothing more can be said in clear
	case errors.Is(err, io.EOF) && len(c.in.buffered()) == 0 && !c.tx.open:
		return c.flush() // gone without QUIT; it loses nothing by it
	case errors.Is(err, errStopping):
		c.bye("4.3.2", "closing down")
		return c.flush()
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.bye("4.4.2", "no input for too long")
		return c.refusedFor(errTimeout)
	case errors.Is(err, errFlood):
		c.bye("4.7.0", "too much input")
		return c.refusedFor(err)
	}
	return fmt.Errorf("connection lost: %w", err)
}

// ErrRefused is wrapped by an error of ServeConn where the session ended by an answer of which the
// Observer was told.
var ErrRefused = errors.New("session ended by a refusal")

// refusedFor sends the answer that ends the session because of err. Whether it arrives is the
// client's affair: its end of the connection is where the fault lies.
func (c *session) refusedFor(err error) error {
	_ = c.flush()
	if _, ok := c.be.(Observer); ok {
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}

var (
	errTimeout   = errors.New("client was silent for too long")
	errHandshake = errors.New("TLS handshake")
)

// lingerLimits bound what is read after our last words.
const (
	lingerOctets = 256 << 10
	lingerTime   = 2 * time.Second
)

// hangUp closes the connection. Closing with unread input would make the kernel send a reset,
// which takes our last reply from the client's hands; so what comes is read for a moment.
func (c *session) hangUp() {
	c.in.release()
	if t, ok := c.conn.(interface{ CloseWrite() error }); ok && c.linger && t.CloseWrite() == nil {
		if c.conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
			b := c.srv.pools.get(smallBuffer)
			for n := 0; n < lingerOctets; {
				k, err := c.conn.Read(b)
				if err != nil {
					break
				}
				n += k
			}
			c.srv.pools.put(b)
		}
	}
	_ = c.conn.Close() // our replies are out; TLS reports here that the client did not wait for its goodbye
}

// handshake makes the connection a TLS one. What the client sent before is thrown away by the
// caller: a man in the middle may have put commands there (RFC 3207 §5).
func (c *session) handshake() error {
	if c.srv.Handshake != nil {
		conn, cs, err := c.srv.Handshake(c.conn)
		if err != nil {
			return fmt.Errorf("%w: %w", errHandshake, err)
		}
		c.conn, c.st.TLS = conn, &cs
		c.in.attach(conn)
		return nil
	}
	t := tls.Server(c.conn, c.srv.TLS)
	if err := c.conn.SetDeadline(c.srv.now().Add(min(c.srv.timeout(), time.Minute))); err != nil {
		return err
	}
	if err := t.HandshakeContext(c.ctx); err != nil {
		return fmt.Errorf("%w: %w", errHandshake, err)
	}
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	c.conn = t
	c.in.attach(t)
	cs := t.ConnectionState()
	c.st.TLS = &cs
	return nil
}

func (c *session) dropMessage() {
	if c.tx.msg != nil {
		c.tx.msg.Abort()
	}
	c.tx = transaction{}
}

// reset ends the transaction without ending the session.
func (c *session) reset() {
	c.dropMessage()
	c.be.Reset()
}
