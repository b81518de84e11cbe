package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/quotedprintable"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/mailtest"
	"pennypost/internal/spool"
)

// TestMain lets the test binary be the tools: a link to it with one of their names is one.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "msend", "sendmail", "mailq", "newaliases":
		main()
		os.Exit(envelope.ExSoftware)
	}
	os.Exit(m.Run())
}

// world is a directory with the tools, a configuration and a spool.
type world struct {
	t              *testing.T
	dir, bin       string
	spool, own     string
	env            []string
	stdout, stderr string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, dir: dir, bin: filepath.Join(dir, "bin"), spool: filepath.Join(dir, "spool"), own: filepath.Join(dir, "state/pennypost/spool")}
	if err := os.Mkdir(w.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"msend", "sendmail", "mailq", "newaliases"} {
		if err := os.Symlink(self, filepath.Join(w.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	w.config("")
	if err := spool.Init(w.spool); err != nil {
		t.Fatal(err)
	}
	w.env = append(os.Environ(),
		"PENNYPOST_CONFIG="+filepath.Join(dir, "pp.toml"), "PATH="+w.bin+":"+os.Getenv("PATH"), "LOGNAME=ann", "USER=ann",
		"HOME="+dir, "XDG_STATE_HOME="+filepath.Join(dir, "state"), "XDG_CONFIG_HOME="+filepath.Join(dir, "config"), "NAME=", "TZ=UTC")
	return w
}

// config writes the configuration with more behind the usual keys.
func (w *world) config(more string) {
	w.t.Helper()
	text := "hostname = \"mx.example.test\"\ndomains = [\"example.test\"]\nspool = \"spool\"\n" +
		"[submit]\nsocket = \"socket\"\n" + more
	if err := os.WriteFile(filepath.Join(w.dir, "pp.toml"), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// run runs a tool and returns its exit status.
func (w *world) run(in io.Reader, name string, args ...string) int {
	w.t.Helper()
	cmd := exec.Command(filepath.Join(w.bin, name), args...)
	cmd.Env, cmd.Dir, cmd.Stdin = w.env, w.dir, in
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	w.stdout, w.stderr = out.String(), errs.String()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		w.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

// ok runs a tool that must succeed silently.
func (w *world) ok(in, name string, args ...string) {
	w.t.Helper()
	if status := w.run(strings.NewReader(in), name, args...); status != 0 || w.stderr != "" {
		w.t.Fatalf("%s %q: exit %d, stderr %q", name, args, status, w.stderr)
	}
}

type message struct {
	env        envelope.Envelope
	head, body string
}

// take reads the messages in a spool's incoming directory and removes them.
func (w *world) take(dir string) []message {
	w.t.Helper()
	var out []message
	for _, p := range files(w.t, filepath.Join(dir, "incoming")) {
		b, err := os.ReadFile(p)
		if err != nil {
			w.t.Fatal(err)
		}
		parts := strings.SplitN(string(b), "\n", 3)
		var m message
		if err := json.Unmarshal([]byte(parts[1]), &m.env); err != nil {
			w.t.Fatalf("%s: %v", p, err)
		}
		m.head, m.body, _ = strings.Cut(parts[2], "\n\n")
		m.head += "\n"
		out = append(out, m)
		if err := os.Remove(p); err != nil {
			w.t.Fatal(err)
		}
	}
	return out
}

// one takes the only message of the spool.
func (w *world) one() message {
	w.t.Helper()
	l := w.take(w.spool)
	if len(l) != 1 {
		w.t.Fatalf("%d messages in the spool; stderr %q", len(l), w.stderr)
	}
	return l[0]
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, filepath.Join(dir, e.Name()))
	}
	return out
}

func (m message) to() string {
	var s []string
	for _, r := range m.env.To {
		s = append(s, r.Addr)
	}
	return strings.Join(s, " ")
}

func TestExitStatus(t *testing.T) {
	w := newWorld(t)
	dir, err := os.Open(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	text := func() io.Reader { return strings.NewReader("Subject: x\n\nbody\n") }
	var many strings.Builder
	for i := range 101 {
		fmt.Fprintf(&many, " u%d@x.test", i)
	}
	for _, c := range []struct {
		name   string
		args   string
		in     io.Reader
		config string
		status int
		stderr string
	}{
		{"usage", "msend --nonsense", text(), "", 64, "msend: --nonsense: unknown option (msend --help lists them)"},
		{"option as operand", "msend bob@x.test -t", text(), "", 64, `msend: "-t" after the operands`},
		{"no recipients", "msend", text(), "", 64, "msend: no recipients"},
		{"no recipients in the header", "msend -t", text(), "", 64, "msend: no recipients"},
		{"bad address", "msend a..b@c@d", text(), "", 65, "msend: bad address"},
		{"bad address in the header", "msend -t", strings.NewReader("To: ann smith\n\n"), "", 65, `msend: To: bad address: "ann smith"`},
		{"no attachment", "msend -s x -a none bob@x.test", text(), "", 66, "msend: attachment: open none: no such file"},
		{"attachment is a directory", "msend -s x -a . bob@x.test", text(), "", 66, "msend: attachment: .: is a directory"},
		{"size limit", "msend bob@x.test", strings.NewReader(strings.Repeat("x\n", 200)), "[limits]\nmessage_size = 300\n", 69, "msend: message is over the size limit of 300 octets"},
		{"recipients", "msend" + many.String(), text(), "[limits]\nrecipients = 100\n", 69, "msend: too many recipients for one message (101, 100 are allowed)"},
		{"loop", "msend bob@x.test", strings.NewReader(strings.Repeat("Received: a\n", 51) + "\n"), "", 69, "msend: too many Received lines"},
		{"read error", "msend bob@x.test", dir, "", 74, "msend: standard input: the message could not be read to its end"},
		{"read error while composing", "msend -s x bob@x.test", dir, "", 74, "msend: standard input: read /dev/stdin: is a directory: nothing was queued"},
		{"free-space limit", "msend bob@x.test", text(), "[limits]\nfree_space = 4611686018427387904\n", 75, "not enough free space"},
		{"configuration", "msend bob@x.test", text(), "nonsense = 1\n", 78, "nonsense"},
		{"sendmail: option", "sendmail -Z bob@x.test", text(), "", 64, "sendmail: -Z: unknown option"},
		{"sendmail: daemon", "sendmail -bd", text(), "", 64, "sendmail: -bd: there is no daemon in here"},
		{"sendmail: value missing", "sendmail -f", text(), "", 64, "sendmail: -f: needs a value"},
		{"sendmail: no recipients", "sendmail -oi", text(), "", 64, "sendmail: no recipients"},
	} {
		w.config(c.config)
		args := strings.Fields(c.args)
		if got := w.run(c.in, args[0], args[1:]...); got != c.status || !strings.Contains(w.stderr, c.stderr) {
			t.Errorf("%s: exit %d, want %d; stderr %q, want %q", c.name, got, c.status, w.stderr, c.stderr)
		}
		if w.stdout != "" || strings.Count(w.stderr, "\n") != 1 {
			t.Errorf("%s: stdout %q, stderr %q", c.name, w.stdout, w.stderr)
		}
		if n := len(w.take(w.spool)); n != 0 {
			t.Errorf("%s: %d messages in the spool", c.name, n)
		}
	}
	w.config("")
	if err := os.Rename(w.spool, w.spool+".away"); err != nil {
		t.Fatal(err)
	}
	if got := w.run(text(), "msend", "bob@x.test"); got != 72 || !strings.Contains(w.stderr, "no spool here (mqueue init makes one)") {
		t.Errorf("no spool: exit %d, stderr %q", got, w.stderr)
	}
}

// A result that nobody can read is an error of its own: the message is there, and said to be.
func TestFullDiskBehindStdout(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no /dev/full")
	}
	defer full.Close()
	for _, flag := range []string{"-v", "--json"} {
		w := newWorld(t)
		var errs strings.Builder
		cmd := exec.Command(filepath.Join(w.bin, "msend"), flag, "bob@x.test")
		cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = w.env, strings.NewReader("Subject: x\n\n"), full, &errs
		if _ = cmd.Run(); cmd.ProcessState.ExitCode() != 74 {
			t.Errorf("%s: exit %d, want 74", flag, cmd.ProcessState.ExitCode())
		}
		if !strings.HasPrefix(errs.String(), "msend: the message is queued as ") {
			t.Errorf("%s: stderr %q", flag, errs.String())
		}
		if n := len(w.take(w.spool)); n != 1 {
			t.Errorf("%s: %d messages in the spool", flag, n)
		}
	}
}

// A source that breaks off in the middle leaves nothing, at whatever point it does.
func TestReadErrorMidway(t *testing.T) {
	w := newWorld(t)
	for _, n := range []int{10, 3000, 60000, 150000} {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1]) // or the tool would hold its own peer open
		in, peer := os.NewFile(uintptr(fds[0]), "in"), os.NewFile(uintptr(fds[1]), "peer")
		// A byte that the peer never reads turns its end into a reset instead of an EOF.
		if _, err := in.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		go func() {
			if _, err := peer.Write([]byte("Subject: x\n\n" + strings.Repeat("y\n", n/2))); err != nil {
				t.Error(err)
			}
			peer.Close()
		}()
		if got := w.run(in, "msend", "bob@x.test"); got != 74 || !strings.Contains(w.stderr, "connection reset") {
			t.Errorf("after %d octets: exit %d, stderr %q", n, got, w.stderr)
		}
		in.Close()
		if l := files(t, filepath.Join(w.spool, "incoming")); len(l) != 0 {
			t.Errorf("after %d octets: left over: %v", n, l)
		}
	}
}

// Killed in the middle, msend leaves at most an unfinished file, which is no message.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	r, p, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(w.bin, "msend"), "bob@x.test")
	cmd.Env, cmd.Stdin = w.env, r
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if _, err := p.Write([]byte("Subject: x\n\n" + strings.Repeat("y\n", 200000))); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	p.Close()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGTERM {
		t.Errorf("ended with %v, want death by SIGTERM", err)
	}
	s, err := spool.Open(w.spool, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, path := range files(t, filepath.Join(w.spool, "incoming")) {
		if m, err := s.View().OpenIncoming(filepath.Base(path)); err == nil {
			t.Errorf("%s is a message of %d octets", path, m.Size)
			m.Close()
		}
	}
}

func TestMessage(t *testing.T) {
	w := newWorld(t)
	w.ok("Subject: x\nBcc: carol@c.test\n\nhello\n", "msend", "-f", "dave", "bob@b.test", "Bob <BOB@B.test>", "bob@B.TEST")
	m := w.one()
	if m.env.From != "dave@example.test" || m.to() != "bob@b.test BOB@b.test" && m.to() != "bob@b.test BOB@B.test" {
		t.Errorf("from %q to %q", m.env.From, m.to())
	}
	for _, want := range []string{"Received: by mx.example.test (pennypost, from userid ", "\nFrom: dave@example.test\n", "\nDate: ", "\nMessage-ID: <" + m.env.ID + "@mx.example.test>\n", "\nSubject: x\n"} {
		if !strings.Contains(m.head, want) {
			t.Errorf("header lacks %q:\n%s", want, m.head)
		}
	}
	if strings.Contains(m.head, "carol") || m.body != "hello\n" || m.env.Origin.User != "ann" || m.env.Origin.Kind != "pipe" || m.env.Origin.MsgID != "<"+m.env.ID+"@mx.example.test>" {
		t.Errorf("%+v", m)
	}

	w.ok("To: a@b.test, \"C, D\" <c@d.test> (x)\nCc: root, Team: e@f.test,, g@h.test;\nbcc: A@B.test,\n a@b.TEST\n\nx\n", "msend", "-t", "z@z.test", "a@b.test")
	m = w.one()
	if m.to() != "z@z.test a@b.test c@d.test root@example.test e@f.test g@h.test A@B.test" || strings.Contains(strings.ToLower(m.head), "bcc") {
		t.Errorf("-t: to %q\n%s", m.to(), m.head)
	}

	w.ok("x\n", "msend", "-f", "<>", "--notify", "never", "--ret", "hdrs", "--envid", "e1", "b@c.test")
	m = w.one()
	if m.env.From != "" || m.env.Ret != "HDRS" || m.env.EnvID != "e1" || len(m.env.To[0].Notify) != 1 || m.env.To[0].Notify[0] != "NEVER" {
		t.Errorf("%+v", m.env)
	}

	w.ok("", "msend", "--json", "-s", "Grüße", "--to", "Jörg <j@x.test>", "--bcc", "k@x.test", "--cc", "l@x.test", "-F", "Ann Ä", "m@x.test")
	var r result
	if err := json.Unmarshal([]byte(w.stdout), &r); err != nil || r.Via != "spool" || len(r.To) != 4 {
		t.Errorf("--json: %v %q", err, w.stdout)
	}
	m = w.one()
	if r.ID != m.env.ID || strings.Contains(m.head, "k@x.test") || !strings.Contains(m.head, "To: =?utf-8?B?SsO2cmc=?= <j@x.test>,\n m@x.test\nCc: l@x.test\nSubject: =?utf-8?B?R3LDvMOfZQ==?=\n") ||
		!strings.Contains(m.head, "From: =?utf-8?B?QW5uIMOE?= <ann@example.test>\n") {
		t.Errorf("%s\n%s", w.stdout, m.head)
	}

	w.ok("x\n", "msend", "-n", "b@c.test")
	if !strings.HasPrefix(w.stdout, "from <ann@example.test>\nto <b@c.test>\n\nReceived: by ") || len(w.take(w.spool)) != 0 {
		t.Errorf("dry run: %q", w.stdout)
	}
	w.ok("x\n", "msend", "-v", "b@c.test")
	if id := w.one().env.ID; w.stdout != id+"\n" {
		t.Errorf("-v: %q, id %q", w.stdout, id)
	}
}

// What goes in comes out: the decoded body is the input.
func TestRoundTrip(t *testing.T) {
	w := newWorld(t)
	for name, in := range map[string]string{
		"progress":     "start\n 1%\r 50%\r100%\rdone\nend\n",
		"NUL":          "a\x00b and more text around it, so that it is text\n",
		"utf-8":        "Grüße aus Köln\n",
		"latin-1":      "Gr\xfc\xdfe\n",
		"long line":    strings.Repeat("0123456789", 10000) + "\n",
		"no line end":  "a",
		"empty":        "",
		"only a dot":   "a\n.\nb\n",
		"From":         "x\nFrom y\n.z\n",
		"looks like a": "body\nTo: nobody\n",
	} {
		w.ok("\n"+in, "msend", "b@c.test")
		m := w.one()
		body := m.body
		if strings.Contains(m.head, "quoted-printable") {
			b, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(body)))
			if err != nil {
				t.Fatal(err)
			}
			body = string(b)
		}
		if want := strings.TrimSuffix(in, "\n"); strings.TrimSuffix(body, "\n") != want {
			t.Errorf("%s: %q, want %q", name, body, in)
		}
	}
}

// TestInterrupt: whoever stops a long message half-way leaves nothing in the spool, and the tool
// dies of the signal as if nothing had been done about it. One who has the signal ignored, does.
func TestInterrupt(t *testing.T) {
	long := []byte("Subject: long\n\n" + strings.Repeat("a line of text\n", 20_000))
	for _, c := range []struct {
		name string
		sig  syscall.Signal
		args []string
		dies bool
	}{
		{"^C", syscall.SIGINT, []string{"msend", "bob@example.test"}, true},
		{"told to end", syscall.SIGTERM, []string{"msend", "-t", "bob@example.test"}, true},
		{"terminal gone", syscall.SIGHUP, []string{"msend", "-s", "x", "-a", "-", "bob@example.test"}, true},
		{"as sendmail", syscall.SIGINT, []string{"sendmail", "bob@example.test"}, true},
		{"nohup", syscall.SIGHUP, []string{"sh", "-c", `trap "" HUP; exec msend bob@example.test`}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			name := c.args[0]
			if name != "sh" {
				name = filepath.Join(w.bin, name)
			}
			cmd := exec.Command(name, c.args[1:]...)
			cmd.Env, cmd.Dir = w.env, w.dir
			in, err := cmd.StdinPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err == nil {
				_, err = in.Write(long) // more than the pipe holds: when it is written, most of it is read
			}
			if err != nil {
				t.Fatal(err)
			}
			incoming := filepath.Join(w.spool, "incoming")
			if !mailtest.Wait(10*time.Second, func() bool { return len(files(t, incoming)) == 1 }) {
				t.Error("no file in the spool")
			}
			if err := cmd.Process.Signal(c.sig); err != nil {
				t.Error(err)
			}
			if !c.dies {
				in.Close()
			}
			err = cmd.Wait()
			in.Close()
			left := len(files(t, incoming))
			st, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if c.dies && (!st.Signaled() || st.Signal() != c.sig || left != 0) {
				t.Errorf("%v, %d files left", err, left)
			}
			if !c.dies && (err != nil || left != 1) {
				t.Errorf("%v, %d messages", err, left)
			}
		})
	}
}
