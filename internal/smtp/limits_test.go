package smtp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"pennypost/internal/envelope"
)

// nullBackend takes everything and keeps nothing.
type nullBackend struct{ commits int }

func (b *nullBackend) NewSession(context.Context, *State) (Session, error)        { return b, nil }
func (b *nullBackend) Mail(context.Context, envelope.Address, *MailOptions) error { return nil }
func (b *nullBackend) Rcpt(_ context.Context, to envelope.Address, _ *RcptOptions) error {
	if to.Local == "unknown" {
		return &Answer{Code: 550, Enhanced: "5.1.1", Text: "no such user"}
	}
	return nil
}
func (b *nullBackend) Data(context.Context) (Message, error) { return nullMessage{b}, nil }
func (b *nullBackend) Reset()                                {}
func (b *nullBackend) Close()                                {}

type nullMessage struct{ b *nullBackend }

func (nullMessage) Write(p []byte) (int, error) { return len(p), nil }
func (m nullMessage) Commit() (string, error)   { m.b.commits++; return "queued", nil }
func (nullMessage) Abort()                      {}

// timedConn is a client that plays its script against a clock which the test owns: each read
// takes delay of it, and fails when the read deadline comes first.
type timedConn struct {
	script   func() (string, time.Duration)
	now      time.Time
	deadline time.Time
	rest     string
	wait     time.Duration
	out      strings.Builder
	closed   bool
}

func (c *timedConn) Read(p []byte) (int, error) {
	if c.rest == "" {
		c.rest, c.wait = c.script()
		if c.rest == "" {
			return 0, io.EOF
		}
	}
	if at := c.now.Add(c.wait); at.After(c.deadline) {
		c.now = c.deadline
		return 0, os.ErrDeadlineExceeded
	}
	c.now = c.now.Add(c.wait)
	c.wait = 0
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *timedConn) Write(p []byte) (int, error)        { return c.out.Write(p) }
func (c *timedConn) Close() error                       { c.closed = true; return nil }
func (c *timedConn) LocalAddr() net.Addr                { return nil }
func (c *timedConn) RemoteAddr() net.Addr               { return nil }
func (c *timedConn) SetDeadline(t time.Time) error      { c.deadline = t; return nil }
func (c *timedConn) SetReadDeadline(t time.Time) error  { c.deadline = t; return nil }
func (c *timedConn) SetWriteDeadline(t time.Time) error { return nil }

func play(t *testing.T, s *Server, script func() (string, time.Duration)) (*timedConn, time.Duration, error) {
	t.Helper()
	start := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	c := &timedConn{script: script, now: start}
	s.Backend, s.Hostname = &nullBackend{}, "mx.x.test"
	s.Now = func() time.Time { return c.now }
	err := s.ServeConn(context.Background(), c, Peer{})
	if !c.closed {
		t.Error("connection left open")
	}
	return c, c.now.Sub(start), err
}

func steps(s ...string) func() (string, time.Duration) {
	return func() (string, time.Duration) {
		if len(s) == 0 {
			return "", 0
		}
		x := s[0]
		s = s[1:]
		return x, 0
	}
}

func TestSilentClient(t *testing.T) {
	c, took, err := play(t, &Server{Timeout: 5 * time.Minute}, func() (string, time.Duration) { return "NOOP\r\n", time.Hour })
	if took != 5*time.Minute || !errors.Is(err, errTimeout) || !strings.Contains(c.out.String(), "421 4.4.2 ") {
		t.Errorf("ended after %v with %v: %s", took, err, c.out.String())
	}
}

func TestSlowCommandLine(t *testing.T) {
	// One octet a second is no silence, but the line does not come to its end.
	_, took, err := play(t, &Server{Timeout: time.Minute}, func() (string, time.Duration) { return "N", time.Second })
	if took != time.Minute || !errors.Is(err, errTimeout) {
		t.Errorf("ended after %v with %v", took, err)
	}
}

func TestSlowMessage(t *testing.T) {
	head := steps("EHLO c\r\n", "MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n")
	begun := false
	_, took, err := play(t, &Server{Timeout: time.Minute, MinRate: 100}, func() (string, time.Duration) {
		if s, d := head(); s != "" {
			return s, d
		}
		begun = true
		return "0123456789", time.Second // a tenth of the rate
	})
	// T octets/10 s <= 60 s + T octets/100: after about 67 s it is too slow.
	if !begun || took < time.Minute || took > 70*time.Second || !errors.Is(err, errTimeout) {
		t.Errorf("ended after %v with %v", took, err)
	}
	head = steps("EHLO c\r\n", "MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n")
	n := 0
	c, took, _ := play(t, &Server{Timeout: time.Minute, MinRate: 100}, func() (string, time.Duration) {
		if s, d := head(); s != "" {
			return s, d
		}
		if n++; n == 600 {
			return "\r\n.\r\nQUIT\r\n", 0
		}
		return strings.Repeat("x", 118) + "\r\n", time.Second
	})
	if took < 9*time.Minute || !strings.Contains(c.out.String(), "250 2.0.0 queued") {
		t.Errorf("a slow but steady client ended after %v: %s", took, c.out.String())
	}
}

func TestSessionTime(t *testing.T) {
	c, took, _ := play(t, &Server{SessionTime: time.Hour}, func() (string, time.Duration) { return "NOOP\r\n", time.Minute })
	if took > time.Hour+2*time.Minute || !strings.Contains(c.out.String(), "421 4.4.2 mx.x.test session lasts too long") {
		t.Errorf("ended after %v", took)
	}
}

// A client that lets a message trickle in, or never sends it, does not hold its session for ever.
func TestTransactionTime(t *testing.T) {
	for _, line := range []string{"RCPT TO:<b@x.test>\r\n", "BDAT 1\r\nx"} {
		n := 0
		c, took, _ := play(t, &Server{SessionTime: time.Hour, MaxRecipients: 100_000}, func() (string, time.Duration) {
			switch n++; {
			case n == 1:
				return "EHLO c\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\n", 0
			case n > 1000:
				return "", 0
			}
			return line, time.Minute
		})
		if took > 2*time.Hour+2*time.Minute || !strings.Contains(c.out.String(), "421 4.4.2 mx.x.test message takes too long") {
			t.Errorf("%q: ended after %v", line, took)
		}
	}
}

func TestIdleChatter(t *testing.T) {
	for _, line := range []string{
		"NOOP\r\n", "RSET\r\n", "VRFY a\r\n", "RCPT TO:<unknown@x.test>\r\n", "EHLO c\r\n", "HELO c\r\n",
		"BDAT 0\r\n", "RCPT TO:<b@x.test>\r\nBDAT 0\r\n", "DATA\r\n", "RSET\r\nMAIL FROM:<a@x.test> SIZE=9999\r\n",
	} {
		n := 0
		c, _, _ := play(t, &Server{MaxSize: 1000}, func() (string, time.Duration) {
			if n++; n == 1 {
				return "EHLO c\r\nMAIL FROM:<a@x.test>\r\n", 0
			}
			if n > 10*maxIdleCommands {
				return "", 0
			}
			return line, 0
		})
		if n > maxIdleCommands+5 || !strings.Contains(c.out.String(), "421 4.7.0") {
			t.Errorf("%q was answered %d times", line, n)
		}
	}
}

func TestEndlessLine(t *testing.T) {
	n := 0
	_, _, err := play(t, &Server{}, func() (string, time.Duration) {
		n += 1000
		return strings.Repeat("x", 1000), 0
	})
	if !errors.Is(err, errFlood) || n > 2*skipLimit {
		t.Errorf("%d octets of one line read, error %v", n, err)
	}
}

func TestEndlessRefusedMessage(t *testing.T) {
	head := steps("EHLO c\r\n", "MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n")
	line := strings.Repeat("x", 998) + "\r\n"
	block := strings.Repeat(line, 30)
	n := 0
	s := &Server{MaxSize: 1 << 20, MinRate: -1}
	c, _, err := play(t, s, func() (string, time.Duration) {
		if s, d := head(); s != "" {
			return s, d
		}
		n += len(block)
		return block, 0
	})
	if !errors.Is(err, errFlood) || int64(n) > s.drainLimit()+1<<20 || !strings.Contains(c.out.String(), "421 4.7.0") {
		t.Errorf("%d octets read, error %v", n, err)
	}
}

func TestIdleConnectionHoldsNoBuffer(t *testing.T) {
	a, b := net.Pipe()
	b.Close()
	c := &session{srv: &Server{Hostname: "x"}, conn: a, ctx: context.Background()}
	c.in = input{ctx: c.ctx, pools: &c.srv.pools, now: time.Now, flush: c.flush}
	c.say(250, "2.0.0", "ok")
	if c.flush() == nil {
		t.Error("writing to a closed pipe worked")
	}
	if c.out != nil || c.in.buf != nil {
		t.Error("a buffer is held after the flush")
	}
}

// benchConn is a client that sends its next line as soon as it is read.
type benchConn struct {
	in   []string
	at   int
	left string
	net.Conn
}

func (c *benchConn) Read(p []byte) (int, error) {
	if c.left == "" {
		if c.at == len(c.in) {
			return 0, io.EOF
		}
		c.left = c.in[c.at]
		c.at++
	}
	n := copy(p, c.left)
	c.left = c.left[n:]
	return n, nil
}

func (c *benchConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *benchConn) Close() error                     { return nil }
func (c *benchConn) SetReadDeadline(time.Time) error  { return nil }
func (c *benchConn) SetWriteDeadline(time.Time) error { return nil }

func BenchmarkSession(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			body := strings.Repeat(strings.Repeat("x", 78)+"\r\n", size/80)
			s := &Server{Hostname: "mx.x.test", Backend: &nullBackend{}, MaxSize: 10 << 20}
			script := []string{
				"EHLO c.test\r\n", "MAIL FROM:<a@x.test> SIZE=4096\r\n", "RCPT TO:<b@x.test>\r\n", "DATA\r\n",
				body + ".\r\n", "QUIT\r\n",
			}
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if err := s.ServeConn(context.Background(), &benchConn{in: script}, Peer{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// FuzzSession throws any bytes at a session. Whatever comes, each reply is well formed, and a
// message is taken only when the client has ended one.
func FuzzSession(f *testing.F) {
	f.Add([]byte("EHLO c\r\nMAIL FROM:<a@x.test> SIZE=4\r\nRCPT TO:<b@x.test> NOTIFY=NEVER\r\nDATA\r\nx\r\n.\r\nQUIT\r\n"))
	f.Add([]byte("EHLO c\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nBDAT 3 LAST\r\nx\r\nRSET\r\nVRFY a\r\n"))
	f.Add([]byte("HELO c\r\nAUTH PLAIN =\r\nSTARTTLS\r\nHELP\r\nEXPN x\r\n"))
	f.Add([]byte("POST / HTTP/1.1\r\n\r\n\n\r\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		b := &nullBackend{}
		s := &Server{Hostname: "mx.x.test", Backend: b, MaxSize: 1000}
		c := &timedConn{script: steps(string(in)), now: time.Now()}
		// The error says how the client went away; nothing follows from it here.
		_ = s.ServeConn(context.Background(), c, Peer{})
		out := c.out.String()
		if !strings.HasSuffix(out, "\r\n") {
			t.Fatalf("the last reply is cut off: %q", out)
		}
		ends := strings.Count(string(in), ".\r\n") + strings.Count(strings.ToUpper(string(in)), "LAST")
		if b.commits > ends {
			t.Fatalf("%d messages taken, %d ended", b.commits, ends)
		}
		for _, l := range strings.Split(strings.TrimSuffix(out, "\r\n"), "\r\n") {
			if len(l) < 4 || l[0] < '2' || l[0] > '5' || l[3] != ' ' && l[3] != '-' || strings.ContainsAny(l, "\r\n\x00") {
				t.Fatalf("not a reply line: %q", l)
			}
		}
	})
}
