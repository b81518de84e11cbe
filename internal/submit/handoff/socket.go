package handoff

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pennypost/internal/envelope"
	"pennypost/internal/spool"
	"pennypost/internal/submit"
)

// The dialogue here is the small part of SMTP that a socket on the same machine needs. Package
// smtp would bring crypto/tls and package net into every run of msend: half a millisecond.

// conn is one connection to the submission socket.
type conn struct {
	f       *os.File
	r       *bufio.Reader
	timeout time.Duration
	ext     map[string]bool
}

// dial connects to the socket.
func dial(path string, timeout time.Duration) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), unix.Close(fd))
	}
	// Non-blocking, so that os gives it deadlines.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), path), nil
}

// reply is an answer of the server.
type reply struct {
	code int
	text []string
}

func (r reply) String() string { return strconv.Itoa(r.code) + " " + strings.Join(r.text, " ") }

// failure makes a refusal an error with the status it has.
func (r reply) failure(what string) error {
	enhanced, text, _ := strings.Cut(r.text[0], " ")
	if !envelope.ValidCode(enhanced) {
		enhanced, text = map[bool]string{true: "5.0.0", false: "4.0.0"}[r.code >= 500], r.text[0]
	}
	for _, l := range r.text[1:] {
		text += " " + strings.TrimPrefix(l, enhanced+" ")
	}
	st := envelope.Defer(enhanced, text)
	if r.code >= 500 {
		st = envelope.Fail(enhanced, text)
	}
	st.Remote = true
	return &submit.Error{Status: st, Err: fmt.Errorf("submission socket: %s: %q", what, r.String())}
}

// errDialogue says that the other end does not speak SMTP as it should.
var errDialogue = errors.New("submission socket: not an SMTP reply")

func (c *conn) deadline() error { return c.f.SetDeadline(time.Now().Add(c.timeout)) }

// read reads one reply.
func (c *conn) read() (reply, error) {
	var r reply
	for len(r.text) < 100 {
		if err := c.deadline(); err != nil {
			return r, err
		}
		b, err := c.r.ReadSlice('\n')
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return r, fmt.Errorf("submission socket: %w", err)
		}
		line := strings.TrimRight(string(b), "\r\n")
		if len(line) < 3 || len(line) > 3 && line[3] != ' ' && line[3] != '-' {
			return r, fmt.Errorf("%w: %q", errDialogue, line)
		}
		if r.code, err = strconv.Atoi(line[:3]); err != nil || r.code < 200 || r.code > 599 {
			return r, fmt.Errorf("%w: %q", errDialogue, line)
		}
		if len(line) == 3 {
			r.text = append(r.text, "")
			return r, nil
		}
		r.text = append(r.text, line[4:])
		if line[3] == ' ' {
			return r, nil
		}
	}
	return r, fmt.Errorf("%w: over 100 lines", errDialogue)
}

// want reads one reply and makes it an error unless its class is as given.
func (c *conn) want(class int, what string) (reply, error) {
	r, err := c.read()
	if err == nil && r.code/100 != class {
		err = r.failure(what)
	}
	return r, err
}

func (c *conn) write(s string) error {
	if err := c.deadline(); err != nil {
		return err
	}
	_, err := io.WriteString(c.f, s)
	return err
}

// hello takes the greeting and learns the extensions.
func (c *conn) hello(name string) error {
	if _, err := c.want(2, "greeting"); err != nil {
		return err
	}
	if err := c.write("EHLO " + name + "\r\n"); err != nil {
		return err
	}
	r, err := c.want(2, "EHLO")
	if err != nil {
		return err
	}
	c.ext = make(map[string]bool)
	for _, l := range r.text[1:] {
		word, _, _ := strings.Cut(l, " ")
		c.ext[strings.ToUpper(word)] = true
	}
	return nil
}

// send hands one finished message over. All recipients are taken or none.
func send(o Options, env *envelope.Envelope, body io.Reader, size int64) (id string, err error) {
	if o.Socket == "" {
		return "", errors.New("no submission socket is configured")
	}
	f, err := dial(o.Socket, o.Timeout)
	if err != nil {
		return "", fmt.Errorf("submission socket: %w", err)
	}
	// Ignored: what counts is the answer to the message.
	defer f.Close()
	c := &conn{f: f, r: bufio.NewReaderSize(f, 4096), timeout: o.Timeout}
	defer c.quit()
	if err := c.hello(o.Hostname); err != nil {
		return "", err
	}
	if err := c.envelope(env, size); err != nil {
		return "", err
	}
	if err := c.write("DATA\r\n"); err != nil {
		return "", err
	}
	if _, err := c.want(3, "DATA"); err != nil {
		return "", err
	}
	if err := c.data(body, env.EOL == envelope.EOLWire); err != nil {
		// A server that has seen enough answers and closes before it has read everything.
		if r, rerr := c.read(); rerr == nil && r.code >= 400 {
			err = r.failure("message")
		}
		return "", err
	}
	r, err := c.want(2, "message")
	if err != nil {
		return "", err
	}
	for _, w := range strings.Fields(r.text[0]) {
		if spool.ValidID(w) {
			id = w
		}
	}
	return id, nil
}

// quit ends the dialogue. The outcome is known by then, so errors are ignored; the answer is
// waited for, or the server would log a lost connection.
func (c *conn) quit() {
	c.timeout = 2 * time.Second
	if c.write("QUIT\r\n") == nil {
		_, _ = c.read()
	}
}

// envelope sends MAIL and RCPT. Commands go out in groups small enough for the socket's buffer
// to hold all answers, so that neither side can wait for the other (RFC 2920 §3.1).
func (c *conn) envelope(env *envelope.Envelope, size int64) error {
	cmds := []string{c.mail(env, size)}
	for _, r := range env.To {
		cmds = append(cmds, c.rcpt(r))
	}
	group := 1
	if c.ext["PIPELINING"] {
		group = 50
	}
	for len(cmds) > 0 {
		n := min(group, len(cmds))
		if err := c.write(strings.Join(cmds[:n], "")); err != nil {
			return err
		}
		var first error
		for _, cmd := range cmds[:n] {
			name, _, _ := strings.Cut(strings.TrimSpace(cmd), "> ")
			if _, err := c.want(2, strings.TrimSuffix(name, ">")+">"); err != nil && first == nil {
				first = err
			}
		}
		if first != nil {
			return first
		}
		cmds = cmds[n:]
	}
	return nil
}

func (c *conn) mail(env *envelope.Envelope, size int64) string {
	s := "MAIL FROM:<" + env.From + ">"
	if c.ext["SIZE"] {
		s += " SIZE=" + strconv.FormatInt(size, 10)
	}
	if env.Body != "" && c.ext["8BITMIME"] {
		s += " BODY=" + env.Body
	}
	if env.SMTPUTF8 && c.ext["SMTPUTF8"] {
		s += " SMTPUTF8"
	}
	if c.ext["DSN"] {
		if env.Ret != "" {
			s += " RET=" + env.Ret
		}
		if env.EnvID != "" {
			s += " ENVID=" + xtext(env.EnvID)
		}
	}
	return s + "\r\n"
}

func (c *conn) rcpt(r envelope.Recipient) string {
	s := "RCPT TO:<" + r.Addr + ">"
	if c.ext["DSN"] {
		if len(r.Notify) > 0 {
			s += " NOTIFY=" + strings.Join(r.Notify, ",")
		}
		if typ, addr, ok := strings.Cut(r.ORcpt, ";"); ok {
			s += " ORCPT=" + typ + ";" + xtext(addr)
		}
	}
	return s + "\r\n"
}

// xtext encodes a parameter value, RFC 3461 §4.
func xtext(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c > ' ' && c < 0x7f && c != '+' && c != '=' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "+%02X", c)
		}
	}
	return b.String()
}

// data sends the message with dots doubled and, unless wire says that they are there already,
// CRLF for each LF.
func (c *conn) data(r io.Reader, wire bool) error {
	in := bufio.NewReaderSize(r, 64<<10)
	out := make([]byte, 0, 80<<10)
	bol := true
	for {
		line, err := in.ReadSlice('\n')
		if bol && len(line) > 0 && line[0] == '.' {
			out = append(out, '.')
		}
		if n := len(line); n > 0 {
			bol = line[n-1] == '\n'
		}
		if bol && !wire && len(line) > 0 {
			out = append(append(out, bytes.TrimSuffix(line, []byte("\n"))...), "\r\n"...)
		} else {
			out = append(out, line...)
		}
		if err == io.EOF {
			if !bol {
				out = append(out, "\r\n"...)
			}
			return c.write(string(append(out, ".\r\n"...)))
		}
		if err != nil && err != bufio.ErrBufferFull {
			return err
		}
		if len(out) >= 64<<10 {
			if err := c.deadline(); err != nil {
				return err
			}
			if _, err := c.f.Write(out); err != nil {
				return err
			}
			out = out[:0]
		}
	}
}

// Pipe joins a dialogue on in and out with the submission socket until the server ends it.
func Pipe(socket string, in io.Reader, out io.Writer) error {
	f, err := dial(socket, 0)
	if err != nil {
		return fmt.Errorf("submission socket: %w", err)
	}
	defer f.Close()
	go func() {
		// Ignored: the server sees the end of the dialogue and ends it too.
		_, _ = io.Copy(f, in)
		rc, err := f.SyscallConn()
		if err == nil {
			_ = rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
		}
	}()
	_, err = io.Copy(out, f)
	return err
}
