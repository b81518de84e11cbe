package main

import (
	"bufio"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// server is a submission socket that answers as it is told.
type server struct {
	l  net.Listener
	mu sync.Mutex
	// answers by the beginning of a command; "." is the end of a message.
	answers map[string]string
	got     []string // commands and message lines
	done    sync.WaitGroup
}

func serve(t *testing.T, path string, answers map[string]string) *server {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{l: l, answers: answers}
	s.done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.talk(c)
		}
	})
	t.Cleanup(s.stop)
	return s
}

// stop ends the server; its socket stays, as after a crash.
func (s *server) stop() {
	s.l.(*net.UnixListener).SetUnlinkOnClose(false)
	s.l.Close()
	s.done.Wait()
}

func (s *server) talk(c net.Conn) {
	defer c.Close()
	say := func(key, usual string) bool {
		s.mu.Lock()
		for k, v := range s.answers {
			if strings.HasPrefix(key, k) {
				usual = v
			}
		}
		s.mu.Unlock()
		c.Write([]byte(usual + "\r\n"))
		return usual[0] < '4'
	}
	say("greeting", "220 mx ESMTP")
	data := false
	for in := bufio.NewScanner(c); in.Scan(); {
		l := in.Text()
		s.mu.Lock()
		s.got = append(s.got, l)
		s.mu.Unlock()
		switch {
		case data:
			if l == "." {
				data = false
				say(".", "250 2.0.0 queued as 1k80hj2m1p8qhgj5ri")
			}
		case strings.HasPrefix(l, "EHLO"):
			say(l, "250-mx\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE 1000\r\n250-DSN\r\n250 SMTPUTF8")
		case l == "DATA":
			data = say(l, "354 go on")
		case l == "QUIT":
			return
		default:
			say(l, "250 2.1.0 ok")
		}
	}
}

func (s *server) take() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := strings.Join(s.got, "\n")
	s.got = nil
	return l
}

// noSpool takes the spool away, so that the socket is the only door.
func noSpool(t *testing.T) *world {
	w := newWorld(t)
	if err := os.RemoveAll(w.spool); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestSocket(t *testing.T) {
	w := noSpool(t)
	s := serve(t, filepath.Join(w.dir, "socket"), nil)
	w.ok("To: a@b.test\nBcc: c@d.test\n\n.dot\nGrüße\n", "msend", "-t", "-v", "--notify", "success,delay", "--envid", "a+b")
	got := s.take()
	for _, want := range []string{
		"EHLO mx.example.test\nMAIL FROM:<ann@example.test> SIZE=", " BODY=8BITMIME ENVID=a+2Bb\n",
		"RCPT TO:<a@b.test> NOTIFY=SUCCESS,DELAY\nRCPT TO:<c@d.test> NOTIFY=SUCCESS,DELAY\nDATA\nFrom: ann@example.test\n",
		"\nContent-Transfer-Encoding: 8bit\n\n..dot\nGrüße\n.\nQUIT",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the server saw\n%s\nwithout %q", got, want)
		}
	}
	if strings.Contains(got, "Received") || strings.Contains(got, "Bcc") || w.stdout != "1k80hj2m1p8qhgj5ri\n" {
		t.Errorf("stdout %q, server\n%s", w.stdout, got)
	}
}

func TestSocketRefusals(t *testing.T) {
	for _, c := range []struct {
		at, answer string
		status     int
	}{
		{"MAIL", "550 5.7.1 not your address", 77},
		{"RCPT TO:<two", "550 5.1.1 no such mailbox", 67},
		{"RCPT TO:<two", "550 5.1.2 no such domain", 68},
		{".", "552-5.3.4 message\r\n552 5.3.4 too big", 69},
		{"DATA", "554 no", 69},
		{"greeting", "554 5.3.2 go away", 69},
	} {
		w := noSpool(t)
		s := serve(t, filepath.Join(w.dir, "socket"), map[string]string{c.at: c.answer})
		if got := w.run(strings.NewReader("x\n"), "msend", "one@x.test", "two@x.test"); got != c.status {
			t.Errorf("%s at %s: exit %d, want %d; %s", c.answer, c.at, got, c.status, w.stderr)
		}
		if !strings.Contains(w.stderr, "msend: submission socket: ") || strings.Count(w.stderr, "\n") != 1 {
			t.Errorf("stderr %q", w.stderr)
		}
		if c.at == "RCPT TO:<two" && strings.Contains(s.take(), "DATA") {
			t.Error("sent to the other recipients alone")
		}
		if l := w.take(w.own); len(l) != 0 {
			t.Errorf("%s: the own spool holds %d messages", c.answer, len(l))
		}
	}
}

// Without anybody behind the socket a message waits, and the next run hands it on.
func TestWaiting(t *testing.T) {
	w := noSpool(t)
	socket := filepath.Join(w.dir, "socket")
	serve(t, socket, nil).stop()
	for _, in := range []string{"first\n", "second\n"} {
		if got := w.run(strings.NewReader("\n"+in), "sendmail", "-i", "b@c.test"); got != 0 || !strings.Contains(w.stderr, "waits in the own spool") {
			t.Fatalf("exit %d, stderr %q", got, w.stderr)
		}
	}
	if n := len(files(t, filepath.Join(w.own, "incoming"))); n != 2 {
		t.Fatalf("%d messages wait", n)
	}
	if got := w.run(nil, "msend", "--flush"); got != 75 || !strings.Contains(w.stderr, "2 messages still wait: ") {
		t.Errorf("--flush: exit %d, stderr %q", got, w.stderr)
	}
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	// For now and for good are told apart for waiting messages too.
	s := serve(t, socket, map[string]string{".": "451 4.3.0 not now"})
	if got := w.run(nil, "msend", "--flush"); got != 75 {
		t.Errorf("--flush: exit %d", got)
	}
	s.mu.Lock()
	s.answers = nil
	s.mu.Unlock()
	s.take()
	w.ok("\nthird\n", "msend", "b@c.test")
	got := s.take()
	if a, b, c := strings.Index(got, "\nthird\n"), strings.Index(got, "\nfirst\n"), strings.Index(got, "\nsecond\n"); a < 0 || b < a || c < a {
		t.Errorf("the server saw\n%s", got)
	}
	if l := files(t, filepath.Join(w.own, "queue")); len(l) != 0 {
		t.Errorf("still waiting: %v", l)
	}
}

func TestWaitingRefused(t *testing.T) {
	w := noSpool(t)
	socket := filepath.Join(w.dir, "socket")
	serve(t, socket, nil).stop()
	if got := w.run(strings.NewReader("x\n"), "msend", "b@c.test"); got != 0 {
		t.Fatal(w.stderr)
	}
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	serve(t, socket, map[string]string{"RCPT": "550 5.1.1 nobody"})
	if got := w.run(nil, "msend", "--flush"); got != 0 || !strings.Contains(w.stderr, "was refused and lies in the own spool's corrupt directory") {
		t.Errorf("exit %d, stderr %q", got, w.stderr)
	}
	if l := files(t, filepath.Join(w.own, "corrupt")); len(l) != 2 {
		t.Errorf("corrupt holds %v", l)
	}
}

// What waits goes into the spool as soon as that can be written.
func TestWaitingThenSpool(t *testing.T) {
	w := noSpool(t)
	socket := filepath.Join(w.dir, "socket")
	serve(t, socket, nil).stop()
	if got := w.run(strings.NewReader("\nearlier\n"), "msend", "b@c.test"); got != 0 {
		t.Fatal(w.stderr)
	}
	for _, d := range []string{"incoming", "queue", "log", "history", "corrupt"} {
		if err := os.MkdirAll(filepath.Join(w.spool, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w.ok("\nnow\n", "msend", "b@c.test")
	if l := w.take(w.spool); len(l) != 2 || l[0].body != "earlier\n" || l[1].body != "now\n" {
		t.Errorf("%+v", l)
	}
}

// Larger than what is held in memory, through the socket.
func TestSocketLarge(t *testing.T) {
	w := noSpool(t)
	s := serve(t, filepath.Join(w.dir, "socket"), nil)
	line := strings.Repeat("0123456789", 7)
	w.ok("Subject: x\n\n"+strings.Repeat(line+"\n", 20000)+"1\r2\n", "msend", "b@c.test")
	if got := s.take(); strings.Count(got, line) != 20000 || !strings.Contains(got, "\n1=0D2\n.\n") || !strings.Contains(got, "quoted-printable") {
		t.Errorf("the server saw %d lines of 20000", strings.Count(got, line))
	}
}
