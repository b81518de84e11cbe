package smtpd

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/emersion/go-milter"

	"pennypost/internal/hook"
	"pennypost/internal/milter"
	"pennypost/internal/submit"
)

// withHook adds a policy hook that is a shell script; the question is in $q.
func (f *fixture) withHook(t *testing.T, script string, stages ...string) *Filter {
	t.Helper()
	p := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(p, []byte("#!/bin/sh\nread -r q\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	h, err := hook.New(hook.Options{Name: "test", Command: []string{"/bin/sh", p}, Stages: stages, Timeout: 20 * time.Second, Max: 4})
	if err != nil {
		t.Fatal(err)
	}
	f.o.Filters = append(f.o.Filters, Filter{Name: "test", Hook: h})
	return &f.o.Filters[len(f.o.Filters)-1]
}

// dialogue is one message to two recipients; the replies are of EHLO, MAIL, RCPT, RCPT, DATA,
// the text and QUIT.
func dialogue() []string {
	return []string{
		"EHLO c.test", "MAIL FROM:<x@far.test> SIZE=100", "RCPT TO:<ann@home.test>", "RCPT TO:<bob@home.test>",
		"DATA", "Subject: x\r\nX-Spam: no\r\n\r\ntext\r\n.",
	}
}

func TestHookStages(t *testing.T) {
	for _, c := range []struct {
		name, script string
		stages       []string
		want         map[int]string // replies that differ from those without a hook
	}{
		{"no objection", "exit 0", hook.Stages(), nil},
		{"not asked", "exit 77", nil, nil},
		{"helo", `case $q in *'"stage":"helo"'*'"helo":"c.test"'*) echo bad name; exit 77;; esac`, hook.Stages(),
			map[int]string{1: "550 5.7.1 bad name", 2: "503", 3: "503", 4: "503", 5: "500"}},
		{"mail", `case $q in *'"from":"x@far.test"'*'"size":100'*) exit 75;; esac`, []string{"mail"},
			map[int]string{1: "451 4.7.1 refused by policy", 2: "503", 3: "503", 4: "503", 5: "500"}},
		{"rcpt", `case $q in *'"to":"bob@home.test"'*) echo '{"verdict":"reject","code":553,"dsn":"5.7.9","reply":"not bob"}';; esac`, []string{"rcpt"},
			map[int]string{3: "553 5.7.9 not bob"}},
		{"data", `case $q in *'"rcpts":["ann@home.test","bob@home.test"]'*) exit 77;; esac`, []string{"data"},
			map[int]string{4: "550 5.7.1 refused", 5: "500"}},
		{"message", `case $q in *'"header":"Subject: x\nX-Spam: no\n\n"'*) exit 77;; esac`, []string{"message"},
			map[int]string{5: "550 5.7.1 refused"}},
		{"421 closes", `echo '{"verdict":"defer","code":421}'`, []string{"message"}, map[int]string{5: "421 4.7.1 refused"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(MX)
			f.withHook(t, c.script, c.stages...)
			got := f.say(t, dialogue()...)
			want := []string{"250", "250", "250", "250", "354", "250 2.0.0 queued"}
			for i, w := range c.want {
				want[i] = w
			}
			for i, w := range want {
				if i < len(got) && !strings.HasPrefix(got[i], w) {
					t.Errorf("reply %d is %q, want %s (all: %q)", i, got[i], w, got)
				}
			}
			if taken, refused := len(f.mem.msgs) == 1, c.want[5] != ""; taken == refused {
				t.Errorf("taken: %v", taken)
			}
			if log := f.log.String(); (c.want != nil) != strings.Contains(log, `check="filter test"`) {
				t.Errorf("log: %s", log)
			}
		})
	}
}

func TestHookConnect(t *testing.T) {
	f := newFixture(MX)
	f.withHook(t, `case $q in *'"stage":"connect"'*'"ip":"192.0.2.7"'*) echo go away; exit 77;; esac`, "connect")
	s, err := New(f.o)
	if err != nil {
		t.Fatal(err)
	}
	c, sc := net.Pipe()
	go s.ServeConn(t.Context(), sc, f.peer)
	b := make([]byte, 100)
	n, _ := c.Read(b)
	if !strings.HasPrefix(string(b[:n]), "554 5.7.1 go away") {
		t.Errorf("greeting %q", b[:n])
	}
}

// TestRefusalsOfFiltersHaveACause: a filter need not give one; the log names one all the same.
func TestRefusalsOfFiltersHaveACause(t *testing.T) {
	for script, want := range map[string]string{
		`echo '{"verdict":"reject","why":"seven bad links"}'`: `check="filter test" why="seven bad links"`,
		`echo '{"verdict":"reject"}'`:                         `check="filter test" why="reject at rcpt"`,
		`echo '{"verdict":"defer","reply":"not now"}'`:        `check="filter test" why="defer at rcpt"`,
		"exit 77": `check="filter test" why="reject at rcpt"`,
	} {
		f := newFixture(MX)
		f.withHook(t, script, "rcpt")
		f.say(t, dialogue()...)
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("%s: no %s in %s", script, want, f.log.String())
		}
	}
}

func TestHookVerdicts(t *testing.T) {
	f := newFixture(MX)
	f.withHook(t, `printf '%s' '{"verdict":"accept","add_header":["X-A: 1","X-B: 2\r\n\r\nevil: 1"]}'`, "rcpt")
	f.withHook(t, `case $q in *'X-A: 1\nX-B: 2\n'*) echo '{"verdict":"hold","why":"odd"}';; esac`, "message")
	got := f.say(t, dialogue()...)
	if len(f.mem.msgs) != 1 || f.mem.msgs[0].env.Quarantine != "test: odd" {
		t.Fatalf("%q %+v", got, f.mem.msgs)
	}
	// Both recipients were asked about.
	if m := f.mem.msgs[0].text; !strings.Contains(m, "+0000\nX-A: 1\nX-B: 2\n\tevil: 1\nX-A: 1\nX-B: 2\n\tevil: 1\nSubject: x\n") {
		t.Errorf("message %q", m)
	}
	if !strings.Contains(f.log.String(), `msg=quarantined id=`) {
		t.Error(f.log.String())
	}

	f = newFixture(MX)
	f.withHook(t, `case $q in *bob*) echo '{"verdict":"discard"}';; esac`, "rcpt")
	got = f.say(t, dialogue()...)
	if len(f.mem.msgs) != 0 || !strings.HasPrefix(got[5], "250 2.0.0 queued as ") || !strings.Contains(f.log.String(), "msg=discarded id=") {
		t.Errorf("discard: %q %s", got, f.log.String())
	}
}

func TestHookFails(t *testing.T) {
	for _, script := range []string{"exit 1", "echo nonsense", `echo '{"verdict":"accept","add_header":["no field"]}'`} {
		for _, accept := range []bool{false, true} {
			f := newFixture(MX)
			f.withHook(t, script, "rcpt", "message").Accept = accept
			got := f.say(t, dialogue()...)
			want, line := "451 4.7.1 service unavailable", `check="filter test" why="no answer at rcpt" err=`
			if accept {
				want, line = "250", `msg="filter gave no answer" filter=test stage=rcpt`
			}
			if !strings.HasPrefix(got[2], want) || (len(f.mem.msgs) == 1) != accept || !strings.Contains(f.log.String(), line) {
				t.Errorf("%q, accept %v: %q\n%s", script, accept, got, f.log.String())
			}
		}
	}
	f := newFixture(MX)
	f.withHook(t, "exit 77", "rcpt").Roles = []string{Submission}
	if got := f.say(t, dialogue()...); !strings.HasPrefix(got[5], "250") {
		t.Errorf("asked in a role that is not its own: %q", got)
	}
}

// content is a milter that is a function of the message.
type content struct {
	wire.NoOpMilter
	mu   *sync.Mutex
	seen *bytes.Buffer
	end  func(m *wire.Modifier) (wire.Response, error)
	rcpt func(to string) wire.Response
	host string // what it was told of the client
}

func (c *content) Connect(host, _ string, _ uint16, _ net.IP, _ *wire.Modifier) (wire.Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.host = host
	return wire.RespContinue, nil
}

func (c *content) RcptTo(to string, _ *wire.Modifier) (wire.Response, error) {
	if c.rcpt != nil {
		return c.rcpt(to), nil
	}
	return wire.RespContinue, nil
}

func (c *content) Headers(h textproto.MIMEHeader, _ *wire.Modifier) (wire.Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range slices.Sorted(func(yield func(string) bool) {
		for k := range h {
			if !yield(k) {
				return
			}
		}
	}) {
		c.seen.WriteString(n + "=" + strings.Join(h[n], ",") + ";")
	}
	return wire.RespContinue, nil
}

func (c *content) BodyChunk(b []byte, _ *wire.Modifier) (wire.Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen.Write(b)
	return wire.RespContinue, nil
}

func (c *content) Body(m *wire.Modifier) (wire.Response, error) { return c.end(m) }

func newSubmitter(m *memory, max int64) *submit.Submitter {
	return submit.New(submit.Options{
		Store: m, Hostname: "mx.home.test", MaxSize: max,
		Now: func() time.Time { return time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC) },
	})
}

// withMilter adds a milter, which speaks version 2 of the protocol.
func (f *fixture) withMilter(t *testing.T, c *content) *Filter {
	t.Helper()
	c.mu, c.seen = new(sync.Mutex), new(bytes.Buffer)
	addr := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &wire.Server{NewMilter: func() wire.Milter { return c }, Actions: wire.OptAddHeader | wire.OptChangeHeader | wire.OptAddRcpt | wire.OptRemoveRcpt | wire.OptQuarantine}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return f.withMilterAt(t, "unix:"+addr)
}

func (f *fixture) withMilterAt(t *testing.T, addr string) *Filter {
	t.Helper()
	m, err := milter.New(milter.Options{Address: addr, Hostname: "mx.home.test", Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	f.o.Filters = append(f.o.Filters, Filter{Name: "content", Milter: m})
	return &f.o.Filters[len(f.o.Filters)-1]
}

func TestMilterChanges(t *testing.T) {
	big := strings.Repeat("a line of a message that fits no hold\r\n", 5000)
	for name, body := range map[string]string{"small": "text\r\n", "big": big} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(MX)
			f.o.MaxSize = 1 << 20
			f.o.Submit = newSubmitter(f.mem, 1<<20)
			c := &content{}
			c.end = func(m *wire.Modifier) (wire.Response, error) {
				for _, err := range []error{
					m.AddHeader("X-Last", "1"), m.InsertHeader(0, "X-First", "a\r\n b"), m.ChangeHeader(1, "X-SPAM", "yes"),
					m.ChangeHeader(1, "Subject", ""), m.ChangeHeader(3, "X-None", ""),
					m.AddRecipient("eve@home.test"), m.DeleteRecipient("ANN@Home.test"), m.DeleteRecipient("ann@HOME.test"), m.Quarantine("look"),
				} {
					if err != nil {
						return nil, err
					}
				}
				return wire.RespAccept, nil
			}
			f.withMilter(t, c)
			lines := dialogue()
			lines[5] = "Subject: x\r\nX-Spam: no\r\nTo: ann\r\n\r\n" + body + "."
			got := f.say(t, lines...)
			if len(f.mem.msgs) != 1 {
				t.Fatalf("%q %s", got, f.log.String())
			}
			m := f.mem.msgs[0]
			if !strings.HasPrefix(m.text, "Received: from c.test") || !strings.HasSuffix(m.text, "+0000\nX-First: a\n b\nX-SPAM: yes\nTo: ann\nX-Last: 1\n\n"+strings.ReplaceAll(body, "\r\n", "\n")) {
				t.Errorf("message %.400q", m.text)
			}
			if len(m.env.To) != 2 || m.env.To[0].Addr != "bob@home.test" || m.env.To[1].Addr != "eve@home.test" || m.env.Quarantine != "content: look" {
				t.Errorf("envelope %+v", m.env)
			}
			if seen := c.seen.String(); seen != "Subject=x;To=ann;X-Spam=no;"+body {
				t.Errorf("seen %.200q", seen)
			}
		})
	}
}

func TestMilterVerdicts(t *testing.T) {
	answer := func(r wire.Response) func(*wire.Modifier) (wire.Response, error) {
		return func(*wire.Modifier) (wire.Response, error) { return r, nil }
	}
	for _, c := range []struct {
		name  string
		c     *content
		want  map[int]string
		taken bool
		log   string
	}{
		{"accept", &content{end: answer(wire.RespAccept)}, nil, true, "msg=accepted"},
		{"reject", &content{end: answer(wire.RespReject)}, map[int]string{5: "550 5.7.1 refused by a content filter"}, false, "check=\"filter content\""},
		{"own words", &content{end: answer(wire.NewResponseStr('y', "554 5.7.1 Gtube pattern"))}, map[int]string{5: "554 5.7.1 Gtube pattern"}, false, "Gtube"},
		{"tempfail", &content{end: answer(wire.RespTempFail)}, map[int]string{5: "451 4.7.1"}, false, "code=451"},
		{"discard", &content{end: answer(wire.RespDiscard)}, map[int]string{5: "250 2.0.0 queued as"}, false, "msg=discarded"},
		{"one recipient", &content{end: answer(wire.RespAccept), rcpt: func(to string) wire.Response {
			if to == "bob@home.test" {
				return wire.RespReject
			}
			return wire.RespContinue
		}}, map[int]string{3: "550 5.7.1"}, true, "verb=RCPT"},
		{"everybody", &content{end: func(m *wire.Modifier) (wire.Response, error) {
			m.DeleteRecipient("ann@home.test")
			m.DeleteRecipient("bob@home.test")
			return wire.RespAccept, nil
		}}, map[int]string{5: "250 2.0.0 queued as"}, false, "all recipients were taken away"},
		{"bad recipient", &content{end: func(m *wire.Modifier) (wire.Response, error) {
			m.AddRecipient("nobody at all")
			return wire.RespAccept, nil
		}}, map[int]string{5: "451 4.7.1 service unavailable"}, false, "nobody at all"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(MX)
			f.withMilter(t, c.c)
			got := f.say(t, dialogue()...)
			for i, w := range c.want {
				if !strings.HasPrefix(got[i], w) {
					t.Errorf("replies %q, want %s at %d", got, w, i)
				}
			}
			if taken := len(f.mem.msgs) == 1; taken != c.taken {
				t.Errorf("taken: %v", taken)
			}
			if c.log != "msg=accepted" && !strings.Contains(f.log.String(), c.log) {
				t.Errorf("log %s, want %s", f.log.String(), c.log)
			}
		})
	}
}

func TestMilterIsDead(t *testing.T) {
	for _, accept := range []bool{false, true} {
		f := newFixture(MX)
		f.withMilterAt(t, "unix:"+filepath.Join(t.TempDir(), "none")).Accept = accept
		got := f.say(t, dialogue()...)
		want := "451 4.7.1 service unavailable"
		if accept {
			want = "250"
		}
		if !strings.HasPrefix(got[1], want) || (len(f.mem.msgs) == 1) != accept {
			t.Errorf("accept %v: %q", accept, got)
		}
	}
}

// One connection to a milter serves the messages of a session, also after RSET.
func TestMilterSession(t *testing.T) {
	f := newFixture(MX)
	c := &content{end: func(*wire.Modifier) (wire.Response, error) { return wire.RespAccept, nil }}
	f.withMilter(t, c)
	lines := append(dialogue(), "MAIL FROM:<y@far.test>", "RCPT TO:<ann@home.test>", "RSET")
	lines = append(lines, dialogue()[1:]...)
	lines = append(lines, dialogue()...)
	if got := f.say(t, lines...); len(f.mem.msgs) != 3 {
		t.Errorf("%q %s", got, f.log.String())
	}
}

func TestChangeHeader(t *testing.T) {
	const h = "A: 1\nB: 2\n\tb\na: 3\n\n"
	for _, c := range []struct {
		change milter.Change
		want   string
	}{
		{milter.Change{Kind: milter.InsertHeader, Index: 0, Name: "X", Value: " y"}, "X: y\n" + h},
		{milter.Change{Kind: milter.InsertHeader, Index: 1, Name: "X", Value: " y"}, "X: y\n" + h},
		{milter.Change{Kind: milter.InsertHeader, Index: 2, Name: "X", Value: " y"}, "A: 1\nX: y\nB: 2\n\tb\na: 3\n\n"},
		{milter.Change{Kind: milter.InsertHeader, Index: 99, Name: "X", Value: " y"}, "A: 1\nB: 2\n\tb\na: 3\nX: y\n\n"},
		{milter.Change{Kind: milter.AddHeader, Name: "X", Value: " y\n z"}, "A: 1\nB: 2\n\tb\na: 3\nX: y\n z\n\n"},
		{milter.Change{Kind: milter.ChangeHeader, Index: 2, Name: "A", Value: " y"}, "A: 1\nB: 2\n\tb\nA: y\n\n"},
		{milter.Change{Kind: milter.ChangeHeader, Index: 0, Name: "b"}, "A: 1\na: 3\n\n"},
		{milter.Change{Kind: milter.ChangeHeader, Index: 3, Name: "A"}, h},
		{milter.Change{Kind: milter.ChangeHeader, Index: 3, Name: "A", Value: " y"}, "A: 1\nB: 2\n\tb\na: 3\nA: y\n\n"},
		{milter.Change{Kind: milter.AddHeader, Name: "X", Value: " y\r\n\r\nBcc: me\x00\rq\n"}, "A: 1\nB: 2\n\tb\na: 3\nX: y\n\tBcc: me  q\n\n"},
		{milter.Change{Kind: milter.AddRcpt, Value: "x"}, h},
	} {
		if got := string(changeHeader([]byte(h), []milter.Change{c.change})); got != c.want {
			t.Errorf("%+v: %q, want %q", c.change, got, c.want)
		}
	}
	if got := string(changeHeader([]byte("\n"), nil)); got != "\n" {
		t.Errorf("empty header became %q", got)
	}
}

// Property: a header with a field more ends where it ended, and has exactly one field more.
func FuzzFieldText(f *testing.F) {
	f.Add(" y\r\n\r\nBcc: me")
	f.Add("\n\n \n\tx\r")
	f.Fuzz(func(t *testing.T, value string) {
		const h = "A: 1\nB: 2\n\n"
		got := changeHeader([]byte(h), []milter.Change{{Kind: milter.InsertHeader, Name: "X", Value: value}})
		if n := len(splitHeader(got)); n != 3 || !strings.HasSuffix(string(got), h) || bytes.Count(got, []byte("\n\n")) != 1 {
			t.Fatalf("%q became %q with %d fields", value, got, n)
		}
	})
}

// A server that stops lets the message in progress come to its end, and not past its filters.
func TestFilterWhileStopping(t *testing.T) {
	f := newFixture(MX)
	f.withHook(t, "exit 77", "message").Accept = true
	s, err := New(f.o)
	if err != nil {
		t.Fatal(err)
	}
	c, sc := net.Pipe()
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go s.ServeConn(ctx, sc, f.peer)
	br := bufio.NewReader(c)
	for _, line := range append([]string{""}, dialogue()...) {
		if strings.HasPrefix(line, "Subject") {
			stop()
		}
		if line != "" {
			if _, err := io.WriteString(c, line+"\r\n"); err != nil {
				t.Fatal(err)
			}
		}
		reply := ""
		for {
			if reply, err = br.ReadString('\n'); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if reply[3] == ' ' {
				break
			}
		}
		if strings.HasPrefix(line, "Subject") && !strings.HasPrefix(reply, "550 5.7.1") {
			t.Errorf("%q", reply)
		}
	}
}
