// Package imapclient talks to an IMAP server as far as moving mail needs: it logs in, lists
// mailboxes, reads messages and their flags as streams, and appends messages.
//
// It trusts no server: what is held in memory is bounded, every answer has a deadline, and
// one that makes no sense ends the connection.
package imapclient

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"pennypost/internal/imapwire"
)

// Security says how the connection is protected.
type Security int

// Protections.
const (
	Implicit Security = iota // TLS from the first octet (RFC 8314 §3.2)
	StartTLS                 // STARTTLS, or no connection
	Plain                    // none; Options.Insecure must be set to log in
)

// Options says how to reach a server.
type Options struct {
	Addr     string // host:port
	Security Security
	TLS      *tls.Config // ServerName is that of Addr when it is empty
	Insecure bool        // a password may be sent in the clear

	Timeout    time.Duration // for an answer; default one minute. A message may take as long as its size needs at 1 KiB a second
	MaxMessage int64         // largest message taken; default 1 GiB
}

const (
	maxMailboxes = 100_000
	maxNames     = 16 << 20 // octets of their names
	maxMessages  = 5_000_000
	maxFlags     = 20_000_000 // of all messages of a mailbox
	maxWords     = 10_000     // different flags
	maxWord      = 255
	lowestRate   = 1 << 10 // octets a second that a message must come with
)

// Client is a connection. It is not for concurrent use.
type Client struct {
	o    Options
	conn net.Conn
	raw  net.Conn // below TLS
	r    *imapwire.Reader
	w    *imapwire.Writer
	caps map[string]bool
	told bool // caps have come since it was cleared
	in   bool // logged in
	tag  int
	dead error         // why the connection cannot be used any more
	left time.Duration // how long the server may still keep us waiting

	// What responses of the mailbox at hand said.
	box  Status
	code string // of the last tagged response, without brackets
	list []Mailbox
	size int // octets of list
	each func(Message) error
	// takes, where several commands are under way, tells whether a tag is of one of them; that
	// one is under way no more.
	takes func(tag string) bool
	stop  func() bool
}

// Error is a command refused by the server.
type Error struct {
	Command string
	Status  string // NO or BAD
	Code    string // RFC 9051 §7.1, "" when there is none
	Text    string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: the server says %s %q", e.Command, e.Status, e.Text)
}

// Dial connects, protects the connection, and reads the greeting. ctx ends the connection
// whenever it is done, not only while Dial runs.
func Dial(ctx context.Context, o Options) (*Client, error) {
	if o.Timeout <= 0 {
		o.Timeout = time.Minute
	}
	if o.TLS == nil {
		o.TLS = &tls.Config{}
	}
	if o.TLS.ServerName == "" {
		o.TLS = o.TLS.Clone()
		host, _, err := net.SplitHostPort(o.Addr)
		if err != nil {
			return nil, err
		}
		o.TLS.ServerName = host
	}
	d := net.Dialer{Timeout: o.Timeout}
	conn, err := d.DialContext(ctx, "tcp", o.Addr)
	if err != nil {
		return nil, err
	}
	c, err := Over(ctx, conn, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Addr, err)
	}
	return c, nil
}

// Over is Dial on a connection that is there, such as one to a program that speaks IMAP.
func Over(ctx context.Context, conn net.Conn, o Options) (*Client, error) {
	c := newClient(ctx, conn, o)
	if err := c.open(); err != nil {
		return nil, errors.Join(err, c.drop())
	}
	return c, nil
}

func newClient(ctx context.Context, conn net.Conn, o Options) *Client {
	if o.Timeout <= 0 {
		o.Timeout = time.Minute
	}
	if o.MaxMessage <= 0 {
		o.MaxMessage = 1 << 30
	}
	c := &Client{o: o, conn: conn, raw: conn, caps: make(map[string]bool)}
	c.r = imapwire.NewReader(deadlines{c}, imapwire.Limits{Line: 1 << 20, Literal: 1 << 20})
	c.w = imapwire.NewWriter(deadlines{c})
	c.stop = context.AfterFunc(ctx, func() {
		// Ignored: closing is what ends the reads and writes; they tell.
		_ = conn.Close()
	})
	return c
}

// deadlines is the connection with a time for every write, and for all reads of one response
// together: only the time counts that we wait, not what we do with a message meanwhile.
type deadlines struct{ c *Client }

func (d deadlines) Read(p []byte) (int, error) {
	start := time.Now()
	if err := d.c.conn.SetReadDeadline(start.Add(d.c.left)); err != nil {
		return 0, err
	}
	n, err := d.c.conn.Read(p)
	d.c.left -= time.Since(start)
	return n, err
}

func (d deadlines) Write(p []byte) (int, error) {
	if err := d.c.conn.SetWriteDeadline(time.Now().Add(d.c.o.Timeout)); err != nil {
		return 0, err
	}
	return d.c.conn.Write(p)
}

// patience sets how long the server may keep us waiting for the response that comes, octets
// being its size where that is known.
func (c *Client) patience(octets int64) {
	c.left = c.o.Timeout + time.Duration(octets/lowestRate)*time.Second
}

// open takes the connection from the first octet to one that is protected.
func (c *Client) open() error {
	if c.o.Security == Implicit {
		c.startTLS()
	}
	if err := c.greeting(); err != nil {
		return err
	}
	if c.o.Security != StartTLS {
		return c.capabilities()
	}
	if c.in {
		// RFC 9051 §7.1.4: whoever is between us wants no TLS.
		return errors.New("the server says that we are logged in before TLS: no connection can be protected so")
	}
	if _, err := c.run("STARTTLS", nil); err != nil {
		return err
	}
	// What came in the clear behind the answer is not the server's (RFC 9051 §6.2.1).
	if early := c.r.SetSource(deadlines{c}); len(early) > 0 {
		return errors.New("octets in the clear behind the answer to STARTTLS")
	}
	c.startTLS()
	// Nor are its capabilities, whoever tells of no others.
	clear(c.caps)
	c.told = false
	return c.capabilities()
}

func (c *Client) startTLS() { c.conn = tls.Client(c.raw, c.o.TLS) }

func (c *Client) greeting() error {
	if err := c.begin(); err != nil {
		return err
	}
	c.r.Want('*')
	c.r.SP()
	status := string(c.r.Atom())
	c.condition()
	if err := c.r.End(); err != nil {
		return c.fail(err)
	}
	if c.in = strings.EqualFold(status, "PREAUTH"); !c.in && !strings.EqualFold(status, "OK") {
		return fmt.Errorf("the server does not want us: %s", status)
	}
	return nil
}

func (c *Client) capabilities() error {
	if c.told {
		return nil
	}
	_, err := c.run("CAPABILITY", nil)
	return err
}

// Can tells whether the server has announced a capability.
func (c *Client) Can(capability string) bool { return c.caps[strings.ToUpper(capability)] }

// LoggedIn tells whether Login is not needed any more, or never was (PREAUTH).
func (c *Client) LoggedIn() bool { return c.in }

// ErrClear says that a password would have been readable on the way.
var ErrClear = errors.New("the connection is not encrypted: no password is sent over it")

// Login logs in: with SASL PLAIN where the server has it, else with LOGIN. authz, when not
// empty, names the user whose mail is meant (RFC 4616 §2).
func (c *Client) Login(user, password, authz string) error {
	if c.o.Security == Plain && !c.o.Insecure {
		return ErrClear
	}
	if strings.ContainsAny(user+password+authz, "\x00") {
		return errors.New("a name or password holds NUL")
	}
	c.told = false // they differ from here on (RFC 9051 §6.2.2)
	var err error
	switch {
	case c.Can("AUTH=PLAIN"):
		err = c.plain(base64.StdEncoding.EncodeToString([]byte(authz + "\x00" + user + "\x00" + password)))
	case authz != "":
		return errors.New("the server has no AUTH=PLAIN, which logging in for another needs")
	case c.Can("LOGINDISABLED"):
		return errors.New("the server allows no login on this connection")
	case strings.ContainsAny(user+password, "\r\n"):
		return errors.New("a name or password holds a line end")
	default:
		_, err = c.run("LOGIN", func(b []byte) []byte {
			b = imapwire.AppendQuoted(append(b, ' '), user)
			return imapwire.AppendQuoted(append(b, ' '), password)
		})
	}
	if err != nil {
		return err
	}
	c.in = true
	return c.capabilities()
}

func (c *Client) plain(response string) error {
	if c.Can("SASL-IR") {
		_, err := c.run("AUTHENTICATE", func(b []byte) []byte { return append(append(b, " PLAIN "...), response...) })
		return err
	}
	tag, err := c.send("AUTHENTICATE", func(b []byte) []byte { return append(b, " PLAIN"...) })
	if err != nil {
		return err
	}
	asked, err := c.wait(tag, "AUTHENTICATE", true)
	if err != nil || !asked {
		return err
	}
	if err := c.w.Raw(response).CRLF().Flush(); err != nil {
		return c.fail(err)
	}
	_, err = c.wait(tag, "AUTHENTICATE", false)
	return err
}

// Close says goodbye and closes the connection.
func (c *Client) Close() error {
	if c.dead == nil {
		// What the server says to LOGOUT changes nothing.
		_, _ = c.run("LOGOUT", nil)
	}
	return c.drop()
}

func (c *Client) drop() error {
	c.stop()
	if err := c.raw.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// fail makes the connection unusable.
func (c *Client) fail(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if c.dead == nil {
		c.dead = err
	}
	return err
}

// run sends a command and waits until it is done. args appends what follows its name.
func (c *Client) run(name string, args func([]byte) []byte) (text string, err error) {
	tag, err := c.send(name, args)
	if err != nil {
		return "", err
	}
	_, err = c.wait(tag, name, false)
	return c.code, err
}

func (c *Client) send(name string, args func([]byte) []byte) (tag string, err error) {
	tag = c.queue(name, args)
	if err := c.w.Flush(); err != nil {
		return tag, c.fail(err)
	}
	return tag, c.dead
}

// queue is send without sending: several commands go out together.
func (c *Client) queue(name string, args func([]byte) []byte) (tag string) {
	c.tag++
	tag = fmt.Sprintf("a%d", c.tag)
	c.w.Raw(tag).Raw(" ").Raw(name)
	if args != nil {
		c.w.Append(args)
	}
	c.w.CRLF()
	return tag
}
