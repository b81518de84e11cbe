package pop3

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
	"unicode/utf8"
)

// state is where a session stands, RFC 1939 §3.
type state uint8

const (
	authorization state = 1 << iota
	transaction
)

// maxIdle bounds commands that need no login. A client asks twice what the server can do, and
// goes on.
const maxIdle = 100

// session is one connection.
type session struct {
	srv  *Server
	ctx  context.Context
	raw  net.Conn // below TLS
	conn net.Conn
	in   input
	out  []byte // replies not yet sent; nil while idle
	peer Peer
	tls  *tls.ConnectionState // nil: clear text

	state     state
	proof     // of who the client is
	drop      // what it gets
	utf8      bool
	errs      int
	idle      int // commands before the login that led to none
	closing   bool
	linger    bool // input may be pending that nobody will read
	role      string
	handed    bool     // the connection is another process's now
	secured   bool     // TLS is in the hands of another process
	told      *carried // by the process that has taken the login; nil: this one takes logins
	started   time.Time
	sent      int64 // octets of messages, as POP3 counts them
	retr, top int
}

// command is one row of the table.
type command struct {
	run   func(*session, string) error
	in    state // where it may be given
	check func(arg string) bool
	want  string // the form, for who gets it wrong
}

func none(arg string) bool      { return arg == "" }
func anything(string) bool      { return true }
func something(arg string) bool { return arg != "" }

// commandFor is the table of all commands; as a function it costs nothing at start.
func commandFor(verb string) (command, bool) {
	const both = authorization | transaction
	switch verb {
	case "CAPA":
		return command{(*session).capa, both, none, "CAPA"}, true
	case "NOOP":
		return command{(*session).noop, transaction, none, "NOOP"}, true
	case "QUIT":
		return command{(*session).quit, both, none, "QUIT"}, true
	case "LANG":
		return command{(*session).lang, both, anything, "LANG [language]"}, true
	case "UTF8":
		return command{(*session).utf8Mode, authorization, none, "UTF8"}, true
	case "STLS":
		return command{(*session).stls, authorization, none, "STLS"}, true
	case "USER":
		return command{(*session).user, authorization, something, "USER name"}, true
	case "PASS":
		return command{(*session).pass, authorization, anything, "PASS password"}, true
	case "AUTH":
		return command{(*session).auth, authorization, anything, "AUTH mechanism [initial-response]"}, true
	case "APOP":
		return command{(*session).apop, authorization, anything, "APOP name digest"}, true
	case "STAT":
		return command{(*session).stat, transaction, none, "STAT"}, true
	case "LIST":
		return command{(*session).list, transaction, anything, "LIST [message]"}, true
	case "UIDL":
		return command{(*session).uidl, transaction, anything, "UIDL [message]"}, true
	case "RETR":
		return command{(*session).retrieve, transaction, something, "RETR message"}, true
	case "TOP":
		return command{(*session).topOf, transaction, something, "TOP message lines"}, true
	case "DELE":
		return command{(*session).dele, transaction, something, "DELE message"}, true
	case "RSET":
		return command{(*session).rset, transaction, none, "RSET"}, true
	}
	return command{}, false
}

func (s *Server) newSession(ctx context.Context, conn net.Conn, peer Peer) *session {
	c := &session{srv: s, ctx: ctx, raw: conn, conn: conn, peer: peer, role: s.Role, state: authorization, started: time.Now()}
	c.in = input{ctx: ctx, conn: conn, timeout: s.timeout(), flush: c.flush}
	return c
}

// RFC 1939 §3: at least ten minutes.
func (s *Server) timeout() time.Duration { return or(s.Timeout, 10*time.Minute) }

// wake ends the wait for a command.
func (c *session) wake() {
	_ = c.raw.SetReadDeadline(time.Unix(1, 0)) // fails only where there is nothing to wait for any more
}

// run is the session once it has begun. It closes the connection.
func (c *session) run() {
	defer c.release() // a session that dies of a bug leaves no lock to a process that goes on
	c.close(c.commands())
	c.hangUp()
}

// greet is what a client hears first.
func (c *session) greet() error {
	if c.srv.Role == TLS {
		if err := c.handshake(); err != nil {
			return err
		}
	}
	// No "<": a client would take it for APOP's challenge (RFC 1939 §7).
	c.ok(c.srv.Hostname + " Pennypost POP3 ready")
	return nil
}

func (c *session) commands() error {
	for !c.closing {
		if err := c.next(); err != nil {
			return c.lost(err)
		}
	}
	return c.flush()
}

// next reads and runs one command.
func (c *session) next() error {
	if c.ctx.Err() != nil && len(c.in.buffered()) == 0 {
		return errStopping
	}
	line, err := c.in.line(maxCommand)
	switch {
	case errors.Is(err, errLongLine):
		return c.fault("line is too long")
	case err != nil:
		return err
	}
	verb, arg, _ := bytes.Cut(line, []byte{' '})
	v := upper(verb)
	cmd, ok := commandFor(v)
	switch {
	// A password may hold every octet but the line's end and NUL.
	case v != "PASS" && bytes.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return c.fault("control character in a command")
	case !ok && foreign(v):
		c.closing, c.linger = true, true
		return c.err("this is POP3, not HTTP")
	case !ok:
		return c.fault("unknown command")
	case cmd.in&c.state == 0 && c.state == authorization:
		return c.fault("log in first")
	case cmd.in&c.state == 0:
		return c.fault("not after the login")
	}
	a := string(arg)
	if v != "PASS" {
		a = strings.TrimRight(a, " ")
	}
	if !cmd.check(a) {
		return c.fault("want " + cmd.want)
	}
	if c.state == authorization {
		if c.idle++; c.idle > maxIdle {
			c.closing, c.linger = true, true
			return c.err("too many commands without a login")
		}
	}
	return cmd.run(c, a)
}

// foreign tells what browsers say that were talked into posting here; what follows must not be
// run line by line.
func foreign(verb string) bool {
	switch verb {
	case "GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT":
		return true
	}
	return false
}

func upper(b []byte) string {
	if len(b) > 16 {
		b = b[:16] // longer than any command
	}
	return strings.ToUpper(string(b))
}

// line queues one reply line. Nothing is sent before the input is used up or the buffer is full.
func (c *session) line(parts ...string) {
	c.borrow()
	for _, p := range parts {
		c.out = append(c.out, p...)
	}
	c.out = append(c.out, '\r', '\n')
}

// borrow takes a buffer for replies where there is none.
func (c *session) borrow() {
	if c.out == nil {
		c.out = c.srv.pools.getOut()
	}
}

func (c *session) ok(text string) { c.line("+OK ", text) }

func (c *session) err(text string) error {
	c.line("-ERR ", text)
	return nil
}

// fault answers a client's mistake; too many end the session.
func (c *session) fault(text string) error {
	if c.errs++; c.errs >= or(c.srv.MaxErrors, 10) {
		c.closing, c.linger = true, true
		text += "; too many errors, closing the connection"
	}
	return c.err(text)
}

// room sends what is there when there would be no place for more. The buffer stays.
func (c *session) room() error {
	if len(c.out) < full {
		return nil
	}
	err := c.write()
	c.out = c.out[:0]
	return err
}

// flush sends the replies of a whole group of commands with one write, and gives the buffer back:
// the session is about to wait.
func (c *session) flush() error {
	if c.out == nil {
		return nil
	}
	err := c.write()
	c.srv.pools.putOut(c.out)
	c.out = nil
	return err
}

func (c *session) write() error {
	if len(c.out) == 0 {
		return nil
	}
	err := c.conn.SetWriteDeadline(time.Now().Add(c.srv.timeout()))
	if err == nil {
		_, err = c.conn.Write(c.out)
	}
	return err
}

// errTimeout is how sessions end whose client says nothing.
var errTimeout = errors.New("client was silent for too long")

// lost ends a session whose input failed.
func (c *session) lost(err error) error {
	switch {
	case errors.Is(err, errStopping):
		_ = c.err("[SYS/TEMP] closing down") // queued; the flush below may fail
		return errors.Join(errStopping, c.flush())
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errTimeout // RFC 1939 §3: without a word
	case errors.Is(err, errFlood):
		c.linger = true
		_ = c.err("too much input") // queued; the flush below may fail
		return errors.Join(err, c.flush())
	case errors.Is(err, io.EOF):
		return fmt.Errorf("client is gone without QUIT: %w", err)
	}
	return fmt.Errorf("connection lost: %w", err)
}

// lingerLimits bound what is read after our last words.
const (
	lingerOctets = 256 << 10
	lingerTime   = 2 * time.Second
)

// hangUp closes the connection. Closing with unread input would make the kernel send a reset,
// which takes our last reply from the client's hands; so what comes is read for a moment.
func (c *session) hangUp() {
	if t, ok := c.conn.(interface{ CloseWrite() error }); ok && c.linger && t.CloseWrite() == nil {
		if c.conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
			_, _ = io.CopyN(io.Discard, c.conn, lingerOctets) // whatever comes, the connection ends here
		}
	}
	_ = c.conn.Close() // nothing of ours is left to lose
}

// handshake makes the connection a TLS one.
func (c *session) handshake() error {
	t := tls.Server(c.conn, c.srv.TLS)
	if err := c.conn.SetDeadline(time.Now().Add(min(c.srv.timeout(), time.Minute))); err != nil {
		return err
	}
	if err := t.HandshakeContext(c.ctx); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	c.conn, c.in.conn = t, t
	cs := t.ConnectionState()
	c.tls = &cs
	return nil
}

func (c *session) canTLS() bool { return c.srv.TLS != nil && c.tls == nil }

// stls is RFC 2595 §4.
func (c *session) stls(string) error {
	switch {
	case c.tls != nil:
		return c.fault("TLS is on already")
	case c.srv.TLS == nil:
		return c.fault("no TLS here")
	case c.utf8:
		return c.fault("say STLS before UTF8") // RFC 6856 §2.1
	}
	c.ok("go ahead")
	if err := c.flush(); err != nil {
		return err
	}
	// What came behind STLS was sent in clear, by whomever. Nothing of it is ever answered, nor a
	// name that was said before.
	if n := c.in.discard(); n > 0 {
		c.srv.Log.Warn("input after STLS thrown away", "peer", c.peer.String(), "size", n)
	}
	c.proof, c.errs, c.idle = proof{}, 0, 0
	return c.handshake()
}

// capa is RFC 2449 §5. What depends on nothing stands first; the list is the same before and
// after the login but for STLS, which is not permitted then.
func (c *session) capa(string) error {
	c.ok("this is what there is")
	for _, l := range []string{"TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING", "EXPIRE " + c.srv.expire()} {
		c.line(l)
	}
	c.line("LOGIN-DELAY ", itoa(int64(c.srv.LoginDelay/time.Second)))
	password, mechanisms := c.offers()
	if password {
		c.line("USER")
	}
	if mechanisms != "" {
		c.line("SASL ", mechanisms)
	}
	if c.canTLS() && c.state == authorization {
		c.line("STLS")
	}
	for _, l := range []string{"UTF8 USER", "LANG", "IMPLEMENTATION Pennypost", "."} {
		c.line(l)
	}
	return nil
}

// expire is the argument of EXPIRE, RFC 2449 §6.7.
func (s *Server) expire() string {
	if s.Expire < 0 {
		return "NEVER"
	}
	return itoa(int64(s.Expire))
}

// utf8Mode is RFC 6856 §2.1.
func (c *session) utf8Mode(string) error {
	c.utf8 = true
	c.ok("UTF-8 it is")
	return nil
}

// lang is RFC 6856 §3. There is one language; whoever asks for a dialect of it gets it.
func (c *session) lang(arg string) error {
	tag, _, _ := strings.Cut(strings.ToLower(arg), "-")
	switch {
	case arg == "":
		c.ok("there is one")
		c.line("en English")
		c.line(".")
	case tag == "en", arg == "*":
		c.ok("en English it is")
	case strings.Contains(arg, " "):
		return c.fault("want LANG [language]")
	default:
		return c.err("there is no such language here, only en")
	}
	return nil
}

func (c *session) noop(string) error {
	c.ok("still here")
	return nil
}

// valid tells whether a name or password is what RFC 6856 §2.2 lets in.
func valid(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }
