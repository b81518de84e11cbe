package smtp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/mailtest"
	"pennypost/internal/sasl"
	"pennypost/internal/smtp"
)

// fakeBackend takes everything but what its local-part says otherwise. The text of the reply to
// a message is the message itself, quoted, so that a dialogue can compare it.
type fakeBackend struct {
	mu      sync.Mutex
	got     []string // messages
	opts    []smtp.MailOptions
	rcpts   []string
	refused []string
	events  []string // calls of Abort, Reset, Close
	greet   error
}

func (b *fakeBackend) note(f string, a ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, fmt.Sprintf(f, a...))
}

func (b *fakeBackend) messages() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.got...)
}

func (b *fakeBackend) NewSession(_ context.Context, st *smtp.State) (smtp.Session, error) {
	if b.greet != nil {
		return nil, b.greet
	}
	return &fakeSession{b: b, st: st}, nil
}

type fakeSession struct {
	b    *fakeBackend
	st   *smtp.State
	rcpt string
}

func (s *fakeSession) Mail(_ context.Context, from envelope.Address, o *smtp.MailOptions) error {
	switch from.Local {
	case "blocked":
		return &smtp.Answer{Code: 550, Enhanced: "5.7.1", Text: "not you"}
	case "broken":
		return errors.New("the disk at /secret/path is on fire")
	}
	s.b.mu.Lock()
	s.b.opts = append(s.b.opts, *o)
	s.b.mu.Unlock()
	return nil
}

func (s *fakeSession) Rcpt(_ context.Context, to envelope.Address, o *smtp.RcptOptions) error {
	if to.Local == "unknown" {
		return &smtp.Answer{Code: 550, Enhanced: "5.1.1", Text: "no such user: " + to.String()}
	}
	s.rcpt = to.Local
	s.b.mu.Lock()
	s.b.rcpts = append(s.b.rcpts, fmt.Sprintf("%s %v %s", to, o.Notify, o.ORcpt))
	s.b.mu.Unlock()
	return nil
}

func (s *fakeSession) Data(context.Context) (smtp.Message, error) {
	if s.rcpt == "nodata" {
		return nil, &smtp.Answer{Code: 452, Enhanced: "4.3.1", Text: "no room"}
	}
	return &fakeMessage{s: s}, nil
}

func (s *fakeSession) Reset() { s.b.note("reset") }
func (s *fakeSession) Close() { s.b.note("close") }

func (s *fakeSession) Refused(verb, arg string, a *smtp.Answer) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.refused = append(s.b.refused, fmt.Sprintf("%s %s %d %s", verb, arg, a.Code, a.Enhanced))
}

func (s *fakeSession) Mechanisms() []string { return []string{sasl.Plain} }

func (s *fakeSession) Auth(_ context.Context, mech string) (sasl.Server, error) {
	switch mech {
	case "SECURE":
		return nil, sasl.ErrNeedTLS
	case sasl.Plain:
		return sasl.NewPlainServer(func(_ context.Context, login, password string) (string, error) {
			switch {
			case login == "broken":
				return "", errors.New("no answer")
			case login == "ann" && password == "secret":
				return "ann@x.test", nil
			}
			return "", sasl.ErrRefused
		}), nil
	}
	return nil, nil
}

type fakeMessage struct {
	s   *fakeSession
	buf bytes.Buffer
}

func (m *fakeMessage) Write(p []byte) (int, error) {
	if m.s.rcpt == "full" {
		return 0, &smtp.Answer{Code: 452, Enhanced: "4.3.1", Text: "disk full"}
	}
	return m.buf.Write(p)
}

func (m *fakeMessage) Commit() (string, error) {
	switch m.s.rcpt {
	case "loop":
		return "", &smtp.Answer{Code: 554, Enhanced: "5.4.6", Text: "too many hops"}
	case "ioerror":
		return "", errors.New("write /spool/x: input/output error")
	}
	m.s.b.mu.Lock()
	m.s.b.got = append(m.s.b.got, m.buf.String())
	m.s.b.mu.Unlock()
	if m.buf.Len() > 200 {
		return strconv.Itoa(m.buf.Len()) + " octets", nil
	}
	return strconv.Quote(m.buf.String()), nil
}

func (m *fakeMessage) Abort() { m.s.b.note("abort") }

func newServer(b smtp.Backend) *smtp.Server {
	return &smtp.Server{
		Hostname: "mx.x.test", Backend: b,
		MaxSize: 100_000, MaxRecipients: 5, MaxLine: 20_000, MaxErrors: 6, Timeout: time.Minute,
	}
}

// dialTCP connects to s through the loopback interface.
func dialTCP(t testing.TB, ctx context.Context, s *smtp.Server) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	sc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ServeConn(ctx, sc, smtp.Peer{})
	}()
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	return c
}

func TestDialogues(t *testing.T) {
	mailtest.Dialogues(t, "testdata/dialogue/*.txt", func(t *testing.T) net.Conn {
		return dialTCP(t, t.Context(), newServer(&fakeBackend{}))
	})
}

// TestDialoguesOverPipe plays the same scripts over a connection without a descriptor, which
// reads another way, and byte by byte, so that no reply depends on how the input is cut.
func TestDialoguesOverPipe(t *testing.T) {
	files, err := filepath.Glob("testdata/dialogue/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			mailtest.Dialogue(t, f, b, func() net.Conn {
				c, s := net.Pipe()
				go newServer(&fakeBackend{}).ServeConn(context.Background(), &oneByte{s}, smtp.Peer{})
				return &asyncWriter{Conn: c}
			})
		})
	}
}

// oneByte reads one octet at a time.
type oneByte struct{ net.Conn }

func (o *oneByte) Read(p []byte) (int, error) { return o.Conn.Read(p[:1]) }

// asyncWriter does not wait for the other end of a net.Pipe to read.
type asyncWriter struct {
	net.Conn
	mu sync.Mutex
}

func (w *asyncWriter) Write(p []byte) (int, error) {
	b := bytes.Clone(p)
	ready := make(chan struct{})
	go func() {
		w.mu.Lock()
		close(ready)
		w.Conn.Write(b)
		w.mu.Unlock()
	}()
	<-ready
	return len(p), nil
}

func (w *asyncWriter) CloseWrite() error { return w.Conn.Close() }

// send plays raw bytes and returns everything the server said.
func send(t *testing.T, s *smtp.Server, raw string) string {
	t.Helper()
	c := dialTCP(t, t.Context(), s)
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("after %q: %v", b, err)
	}
	return string(b)
}

// codes are the reply codes of an answer, one per reply.
func codes(s string) string {
	var l []string
	for _, line := range strings.Split(strings.TrimSuffix(s, "\r\n"), "\r\n") {
		if len(line) < 4 || line[3] != '-' {
			l = append(l, line[:min(3, len(line))])
		}
	}
	return strings.Join(l, " ")
}

const hello = "EHLO c.test\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n"

func TestSmuggling(t *testing.T) {
	// What a message must survive without ending or being accepted. <END> is the true end.
	for _, c := range []struct{ name, body string }{
		{"LF . LF", "text\n.\nMAIL FROM:<evil@x.test>\r\n"},
		{"LF . CRLF", "text\n.\r\nMAIL FROM:<evil@x.test>\r\n"},
		{"CRLF . LF", "text\r\n.\nMAIL FROM:<evil@x.test>\r\n"},
		{"CR . CR", "text\r.\rMAIL FROM:<evil@x.test>\r\n"},
		{"CR . CRLF", "text\r.\r\nMAIL FROM:<evil@x.test>\r\n"},
		{"CRLF . CR", "text\r\n.\rMAIL FROM:<evil@x.test>\r\n"},
		{"CR LF . CR CR LF", "text\r\n.\r\r\nMAIL FROM:<evil@x.test>\r\n"},
		{"CR CR LF . CRLF is an end", "text\r"},
		{"CRLF NUL . CRLF", "text\r\n\x00.\r\nMAIL FROM:<evil@x.test>\r\n"},
		{"CRLF . NUL CRLF", "text\r\n.\x00\r\nMAIL FROM:<evil@x.test>\r\n"},
		{"CR NUL LF . CRLF", "text\r\x00\n.\r\nMAIL FROM:<evil@x.test>\r\n"},
		{"lone CR at the end", "text\r\r\n"},
		{"lone LF at the start", "\ntext\r\n"},
		{"lone LF", "a\nb\r\n"},
		{"lone CR", "a\rb\r\n"},
		{"NUL", "a\x00b\r\n"},
		{"LF CR", "a\n\rb\r\n"},
		{"dot CR at block end", "..\r.\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &fakeBackend{}
			body := c.body
			if !strings.HasSuffix(body, "\r\n") {
				body += "\r\n"
			}
			got := send(t, newServer(b), hello+body+".\r\nNOOP\r\nQUIT\r\n")
			if want := "220 250 250 250 354 550 250 221"; codes(got) != want {
				t.Errorf("codes %s, want %s:\n%s", codes(got), want, got)
			}
			if len(b.messages()) > 0 {
				t.Errorf("accepted %q", b.messages())
			}
		})
	}
}

// Whatever goes wrong with AUTH, what may be a password is not shown to the log.
func TestNoPasswordInLog(t *testing.T) {
	const secret = "c2VjcmV0"
	for _, c := range []struct{ name, lines, want string }{
		{"mechanism refused", "AUTH CRAM-MD5\r\nYW5u\r\n" + secret + "\r\n", "AUTH CRAM-MD5 504 5.5.4; AUTH  500 5.5.1; AUTH  500 5.5.1"},
		{"exchange cancelled", "AUTH PLAIN\r\n*\r\n" + secret + "\r\n", "AUTH PLAIN 501 5.7.0; AUTH  500 5.5.1"},
		{"wrong password, then it again", "AUTH PLAIN AGFubgB4\r\n" + secret + "\r\n", "AUTH PLAIN 535 5.7.8; AUTH  500 5.5.1"},
		{"no mechanism", "AUTH " + secret + "\r\n", "AUTH  504 5.5.4"},
		{"two spaces", "AUTH  PLAIN " + secret + "\r\n", "AUTH  501 5.5.4"},
		{"old form", "AUTH=PLAIN " + secret + "\r\n", "AUTH  500 5.5.1"},
		{"tabs", "auth\tPLAIN\t" + secret + "\r\n", "AUTH  500 5.5.1"},
		{"control character", "AUTH PLAIN " + secret + "\x01\r\n" + secret + "\r\n", "  500 5.5.2; AUTH  500 5.5.1"},
		{"another command", "AUTH NONE\r\nNOOP\r\nFOO bar\r\n", "AUTH NONE 504 5.5.4; FOO bar 500 5.5.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &fakeBackend{}
			send(t, newServer(b), "EHLO c.test\r\n"+c.lines+"QUIT\r\n")
			if got := strings.Join(b.refused, "; "); got != c.want {
				t.Errorf("log has %q, want %q", got, c.want)
			}
		})
	}
}

func TestDataText(t *testing.T) {
	for _, c := range []struct{ name, wire, want string }{
		{"empty", "", ""},
		{"one line", "a\r\n", "a\n"},
		{"stuffed dot", "..\r\n...\r\n.a\r\n", ".\n..\na\n"},
		{"dot inside", "a.\r\n.b.\r\n", "a.\nb.\n"},
		{"empty lines", "\r\n\r\n", "\n\n"},
		{"8-bit", "caf\xc3\xa9 \xff\r\n", "caf\xc3\xa9 \xff\n"},
		{"long line", strings.Repeat("x", 5000) + "\r\n", strings.Repeat("x", 5000) + "\n"},
		{"buffer edge", strings.Repeat("y", 4093) + "\r\n.\r", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &fakeBackend{}
			if c.name == "buffer edge" {
				for pad := 4060; pad < 4110; pad++ {
					b := &fakeBackend{}
					body := strings.Repeat("y", pad) + "\r\n..z\r\n"
					send(t, newServer(b), hello+body+".\r\nQUIT\r\n")
					if m := b.messages(); len(m) != 1 || m[0] != strings.Repeat("y", pad)+"\n.z\n" {
						t.Fatalf("pad %d: wrong message", pad)
					}
				}
				return
			}
			got := send(t, newServer(b), hello+c.wire+".\r\nQUIT\r\n")
			if m := b.messages(); len(m) != 1 || m[0] != c.want {
				t.Fatalf("got %q, want %q\n%s", m, c.want, got)
			}
		})
	}
}

func TestPipeliningOneWrite(t *testing.T) {
	c, s := net.Pipe()
	w := &countWrites{Conn: s}
	done := make(chan struct{})
	go func() {
		defer close(done)
		newServer(&fakeBackend{}).ServeConn(context.Background(), w, smtp.Peer{})
	}()
	read := func() string {
		b := make([]byte, 4096)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	for _, step := range []struct{ send, want string }{
		{"", "220"},
		{"EHLO c.test\r\n", "250"},
		{"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nRCPT TO:<unknown@x.test>\r\nDATA\r\n", "250 250 550 354"},
		{"text\r\n.\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n", "250 250 250 354"},
		{"text\r\n.\r\nQUIT\r\n", "250 221"},
	} {
		if step.send != "" {
			if _, err := io.WriteString(c, step.send); err != nil {
				t.Fatal(err)
			}
		}
		if got := codes(read()); got != step.want {
			t.Fatalf("after %q one write held %q, want %q", step.send, got, step.want)
		}
	}
	c.Close()
	<-done
	if n := w.n; n != 5 {
		t.Errorf("%d writes for 5 groups of replies", n)
	}
}

type countWrites struct {
	net.Conn
	n int
}

func (c *countWrites) Write(p []byte) (int, error) {
	c.n++
	return c.Conn.Write(p)
}

func TestOversizedDataIsReadToItsEnd(t *testing.T) {
	b := &fakeBackend{}
	got := send(t, newServer(b), hello+strings.Repeat(strings.Repeat("x", 98)+"\r\n", 1100)+".\r\nNOOP\r\nQUIT\r\n")
	if want := "220 250 250 250 354 552 250 221"; codes(got) != want {
		t.Fatalf("codes %s, want %s", codes(got), want)
	}
	// One octet less and more than the limit, counted as RFC 1870 does.
	for _, c := range []struct {
		n    int
		want string
	}{{100_000, "250"}, {100_001, "552"}} {
		body := strings.Repeat(strings.Repeat("x", 98)+"\r\n", c.n/100-1)
		body += strings.Repeat("y", c.n-len(body)-2) + "\r\n"
		if codes := strings.Fields(codes(send(t, newServer(b), hello+body+".\r\nQUIT\r\n"))); codes[5] != c.want {
			t.Errorf("%d octets: %s, want %s", c.n, codes[5], c.want)
		}
	}
}

func TestRefusedDataIsNotTakenForCommands(t *testing.T) {
	for _, rcpt := range []string{"full", "loop", "ioerror"} {
		b := &fakeBackend{}
		got := send(t, newServer(b), strings.Replace(hello, "b@", rcpt+"@", 1)+"RSET\r\nQUIT\r\n.\r\nNOOP\r\nQUIT\r\n")
		want := map[string]string{"full": "452", "loop": "554", "ioerror": "451"}[rcpt]
		if codes(got) != "220 250 250 250 354 "+want+" 250 221" {
			t.Errorf("%s: codes %s", rcpt, codes(got))
		}
		if strings.Contains(got, "/spool") {
			t.Errorf("%s: the client sees a local path: %s", rcpt, got)
		}
	}
}

func TestConnectionLostInData(t *testing.T) {
	b := &fakeBackend{}
	got := send(t, newServer(b), hello+"text\r\nQUIT\r\n")
	if codes(got) != "220 250 250 250 354" {
		t.Errorf("codes %s", codes(got))
	}
	if len(b.messages()) > 0 || strings.Join(b.events, " ") != "abort close" {
		t.Errorf("messages %q, events %q", b.messages(), b.events)
	}
}

func TestGreetingRefused(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&smtp.Answer{Code: 554, Enhanced: "5.7.1", Text: "go away"}, "554 5.7.1 go away\r\n"},
		{errors.New("no idea"), "421 4.3.0 local error, try again later\r\n"},
	} {
		if got := send(t, newServer(&fakeBackend{greet: c.err}), "QUIT\r\n"); got != c.want {
			t.Errorf("%v: got %q, want %q", c.err, got, c.want)
		}
	}
}

func TestOptionsReachTheBackend(t *testing.T) {
	b := &fakeBackend{}
	send(t, newServer(b), "EHLO c.test\r\nMAIL FROM:<a@x.test> SIZE=17 BODY=8BITMIME RET=HDRS ENVID=QQ+2B1 SMTPUTF8 AUTH=<>\r\n"+
		"RCPT TO:<b@x.test> NOTIFY=success,DELAY ORCPT=rfc822;Bob+2Bx@y.test\r\nRCPT TO:<\xc3\xa9@x.test>\r\nQUIT\r\n")
	want := smtp.MailOptions{Size: 17, Body: "8BITMIME", Ret: "HDRS", EnvID: "QQ+1", SMTPUTF8: true, Auth: "<>"}
	if len(b.opts) != 1 || b.opts[0] != want {
		t.Errorf("options %+v, want %+v", b.opts, want)
	}
	if len(b.rcpts) != 2 || b.rcpts[0] != "b@x.test [SUCCESS DELAY] rfc822;Bob+x@y.test" {
		t.Errorf("recipients %q", b.rcpts)
	}
}

func TestRefusalsAreReported(t *testing.T) {
	b := &fakeBackend{}
	send(t, newServer(b), "EHLO c.test\r\nAUTH PLAIN AGFubgB3cm9uZw==\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<unknown@x.test>\r\nQUIT\r\n")
	want := "AUTH PLAIN 535 5.7.8|RCPT TO:<unknown@x.test> 550 5.1.1"
	if got := strings.Join(b.refused, "|"); got != want {
		t.Errorf("reported %q, want %q (a password must not be there)", got, want)
	}
}
