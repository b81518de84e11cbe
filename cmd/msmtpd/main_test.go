package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/mailtest"
	"pennypost/internal/spool"
)

// The test binary is msmtpd itself, under that name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "msmtpd" {
		main()
	}
	os.Exit(m.Run())
}

// site is a spool, accounts and a certificate for one msmtpd.
type site struct {
	dir, bin, config, spool string
}

func newSite(t *testing.T) *site {
	t.Helper()
	in, err := mailtest.NewInstance(mailtest.InstanceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{dir: in.Dir, bin: filepath.Join(in.Dir, "msmtpd"), config: in.Config, spool: in.Spool}
	if err := os.Symlink(self, s.bin); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) command(args ...string) *exec.Cmd {
	return exec.Command(s.bin, append([]string{"--config", s.config}, args...)...)
}

// queued returns the messages in the spool.
func (s *site) queued(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.spool, "incoming", "*"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(b))
	}
	return out
}

// start runs cmd until the end of the test.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if testing.Verbose() {
		cmd.Stderr = os.Stderr
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		cmd.Wait()
	})
}

// freePort is a port nobody listens on: starters take no port 0.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func need(t *testing.T, program string) string {
	t.Helper()
	for _, p := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
	}
	t.Skipf("%s is not installed", program)
	return ""
}

// serve starts one msmtpd with a listener for each role and waits until it is ready.
func (s *site) serve(t *testing.T) map[string]string {
	t.Helper()
	addrs := map[string]string{"local": filepath.Join(s.dir, "test.sock")}
	args := []string{"--notify-fd", "3", "--listen", addrs["local"] + "=local"}
	for _, role := range []string{"mx", "submission", "submissions"} {
		addrs[role] = freePort(t)
		args = append(args, "--listen", addrs[role]+"="+role)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := s.command(args...)
	cmd.ExtraFiles = []*os.File{w}
	start(t, cmd)
	w.Close()
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatalf("msmtpd does not become ready: %v", err)
	}
	return addrs
}

const oneMessage = "EHLO c.test\r\nMAIL FROM:<x@far.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nSubject: %s\r\n\r\ntext\r\n.\r\nQUIT\r\n"

// deliver hands in one message and returns what the server said.
func deliver(t *testing.T, network, addr, subject string) string {
	t.Helper()
	var c net.Conn
	var err error
	for end := time.Now().Add(10 * time.Second); ; {
		if c, err = net.Dial(network, addr); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, oneMessage, subject)
	b, err := io.ReadAll(bufio.NewReader(c))
	if err != nil {
		t.Fatalf("%s: %q %v", subject, b, err)
	}
	return string(b)
}

func TestStartModes(t *testing.T) {
	for _, c := range []struct {
		name string
		cmd  func(t *testing.T, s *site, addr string) *exec.Cmd
	}{
		{"systemd_listening", func(t *testing.T, s *site, addr string) *exec.Cmd {
			return exec.Command(need(t, "systemd-socket-activate"), "-l", addr, "--fdname=mx", s.bin, "--config", s.config, "--idle", "2s")
		}},
		{"systemd_accept", func(t *testing.T, s *site, addr string) *exec.Cmd {
			return exec.Command(need(t, "systemd-socket-activate"), "-a", "-l", addr, "--fdname=mx", s.bin, "--config", s.config)
		}},
		{"systemd_accept_inetd", func(t *testing.T, s *site, addr string) *exec.Cmd {
			return exec.Command(need(t, "systemd-socket-activate"), "-a", "--inetd", "-l", addr, s.bin, "--config", s.config)
		}},
		{"inetd_nowait", func(t *testing.T, s *site, addr string) *exec.Cmd { return inetd(t, s, "nowait.10000", addr) }},
		{"inetd_wait", func(t *testing.T, s *site, addr string) *exec.Cmd { return inetd(t, s, "wait.10000", addr) }},
		{"listen", func(_ *testing.T, s *site, addr string) *exec.Cmd { return s.command("--listen", addr+"=mx") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			addr := freePort(t)
			start(t, c.cmd(t, s, addr))
			for i := range 3 {
				if got := deliver(t, "tcp", addr, strconv.Itoa(i)); strings.Count(got, "queued as") != 1 || !strings.Contains(got, "\r\n221 ") {
					t.Fatalf("message %d: %s", i, got)
				}
			}
			q := s.queued(t)
			if len(q) != 3 || !strings.Contains(q[0], `"peer":"127.0.0.1:`) {
				t.Errorf("spool: %q", q)
			}
		})
	}
	t.Run("stdio", func(t *testing.T) {
		s := newSite(t)
		cmd := s.command()
		cmd.Stdin = strings.NewReader(fmt.Sprintf(oneMessage, "stdio"))
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), "queued as") || len(s.queued(t)) != 1 {
			t.Errorf("%v: %s", err, out)
		}
	})
}

func inetd(t *testing.T, s *site, mode, addr string) *exec.Cmd {
	t.Helper()
	prog := need(t, "inetd")
	if os.Getuid() != 0 {
		t.Skip("inetd changes to the user of its configuration: needs root")
	}
	conf := filepath.Join(s.dir, "inetd.conf")
	line := fmt.Sprintf("%s stream tcp %s root %s msmtpd --config %s --role mx --idle 1s\n", addr, mode, s.bin, s.config)
	if err := os.WriteFile(conf, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	return exec.Command(prog, "-i", conf)
}

// TestClients runs other people's programs against submission over TLS.
func TestClients(t *testing.T) {
	s := newSite(t)
	at := s.serve(t)
	msg := filepath.Join(s.dir, "mail.txt")
	if err := os.WriteFile(msg, []byte("From: alice@example.test\r\nTo: x@far.test\r\nSubject: hi\r\n\r\n.dots\r\n..two\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	port := func(role string) string {
		_, p, _ := net.SplitHostPort(at[role])
		return p
	}
	python := `
import smtplib, ssl, sys
c = ssl.create_default_context(); c.check_hostname = False; c.verify_mode = ssl.CERT_NONE
s = smtplib.SMTP("127.0.0.1", int(sys.argv[1])); s.starttls(context=c); s.login("alice@example.test", "secret")
s.sendmail("alice@example.test", ["x@far.test"], b"Subject: hi\r\n\r\n.dots\r\n..two\r\n", mail_options=["BODY=8BITMIME"], rcpt_options=["NOTIFY=FAILURE"])
try:
    s.sendmail("bob@example.test", ["x@far.test"], b"Subject: hi\r\n\r\n")
    sys.exit("another's address was accepted")
except smtplib.SMTPSenderRefused as e:
    assert e.smtp_code == 550, e
s.quit()
`
	for _, c := range []struct {
		program string
		args    []string
		stdin   string
		dots    bool // the message has lines that start with a dot
	}{
		{"swaks", []string{"--server", at["submission"], "--tls", "--auth", "PLAIN", "--auth-user", "alice@example.test", "--auth-password", "secret", "-f", "alice@example.test", "-t", "x@far.test", "--body", ".dots\n..two"}, "", true},
		{"swaks", []string{"--server", at["submissions"], "--tlsc", "--auth", "PLAIN", "--auth-user", "alice", "--auth-password", "secret", "-f", "alice+x@example.test", "-t", "x@far.test", "--pipeline"}, "", false},
		{"swaks", []string{"--server", at["mx"], "-f", "x@far.test", "-t", "bob@example.test", "--pipeline"}, "", false},
		{"swaks", []string{"--socket", at["local"], "-f", "x@far.test", "-t", "y@far.test"}, "", false},
		{"curl", []string{"-sS", "-k", "smtps://" + at["submissions"], "-u", "alice@example.test:secret", "--mail-from", "alice@example.test", "--mail-rcpt", "x@far.test", "-T", msg}, "", true},
		{"curl", []string{"-sS", "-k", "--ssl-reqd", "smtp://" + at["submission"], "-u", "alice@example.test:secret", "--mail-from", "alice@example.test", "--mail-rcpt", "x@far.test", "-T", msg}, "", true},
		{"msmtp", []string{"--host=127.0.0.1", "--port=" + port("submission"), "--tls=on", "--tls-certcheck=off", "--auth=plain", "--user=alice@example.test", "--passwordeval=echo secret", "--from=alice@example.test", "x@far.test"}, "Subject: hi\n\n.dots\n..two\n", true},
		{"python3", []string{"-c", python, port("submission")}, "", true},
	} {
		t.Run(c.program, func(t *testing.T) {
			before := len(s.queued(t))
			cmd := exec.Command(need(t, c.program), c.args...)
			cmd.Stdin = strings.NewReader(c.stdin)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			q := s.queued(t)
			if len(q) != before+1 {
				t.Fatalf("%d messages in the spool, %d before\n%s", len(q), before, out)
			}
			if c.dots && !strings.Contains(q[len(q)-1], "\n.dots\n..two\n") {
				t.Errorf("message %s", q[len(q)-1])
			}
		})
	}
}

// TestPostfixClient takes mail from Postfix's load generator, several sessions at once.
func TestPostfixClient(t *testing.T) {
	source := need(t, "smtp-source")
	s := newSite(t)
	at := s.serve(t)
	out, err := exec.Command(source, "-s", "5", "-m", "50", "-l", "5000", "-d", "-f", "a@far.test", "-t", "bob@example.test", at["mx"]).CombinedOutput()
	if err != nil || len(s.queued(t)) != 50 {
		t.Errorf("%v: %s; %d messages", err, out, len(s.queued(t)))
	}
}

func TestConfigurationErrors(t *testing.T) {
	s := newSite(t)
	noTLS := filepath.Join(s.dir, "notls.toml")
	if err := os.WriteFile(noTLS, []byte("hostname = \"x.test\"\ndomains = [\"x.test\"]\nspool = \""+s.spool+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	noSpool := filepath.Join(s.dir, "nospool.toml")
	if err := os.WriteFile(noSpool, []byte("hostname = \"x.test\"\ndomains = [\"x.test\"]\nspool = \""+s.dir+"/none\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"--config", noTLS, "--role", "submission"}, 78, "role submission needs TLS"},
		{[]string{"--config", noTLS, "--role", "smtp"}, 78, `unknown role "smtp"`},
		{[]string{"--config", noTLS, "--listen", "25"}, 64, "want HOST:PORT"},
		{[]string{"--config", noTLS, "--listen", "config"}, 78, "no smtpd.listen"},
		{[]string{"--config", noTLS, "--listen", "192.0.2.1:1"}, 71, "listen 192.0.2.1:1"},
		{[]string{"--config", noTLS, "operand"}, 64, "unexpected operand"},
		{[]string{"--config", noSpool}, 75, "mqueue init"},
		{[]string{"--config", s.dir + "/none.toml"}, 78, "none.toml"},
	} {
		cmd := exec.Command(s.bin, c.args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		err := cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != c.status || !strings.Contains(stderr.String(), c.want) || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("%v: status %d (%v), want %d and %q: %s", c.args, got, err, c.status, c.want, stderr.String())
		}
	}
}

// TestFullDisk: the limit of free space is a full disk that everybody can make.
func TestFullDisk(t *testing.T) {
	s := newSite(t)
	b, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	full := filepath.Join(s.dir, "full.toml")
	if err := os.WriteFile(full, []byte(strings.Replace(string(b), "free_space = 0", "free_space = 9000000000000000000", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(s.bin, "--config", full)
	cmd.Stdin = strings.NewReader(fmt.Sprintf(oneMessage, "full"))
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "\n452 4.3.1 ") || len(s.queued(t)) != 0 {
		t.Errorf("%v: %s", err, out)
	}
}

// TestReplyNamesTheQueueID: what the client is told is the name of the file.
func TestReplyNamesTheQueueID(t *testing.T) {
	s := newSite(t)
	cmd := s.command()
	cmd.Stdin = strings.NewReader(fmt.Sprintf(oneMessage, "id"))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(out), "queued as ")
	id, _, _ := strings.Cut(rest, "\r")
	if _, err := os.Stat(filepath.Join(s.spool, "incoming", id)); err != nil || !spool.ValidID(id) {
		t.Errorf("id %q: %v", id, err)
	}
}

// TestOneLineAClient: whatever ends a session, its log has one line for it.
func TestOneLineAClient(t *testing.T) {
	s := newSite(t)
	log := filepath.Join(s.dir, "log")
	s.configure(t, "[smtpd]\ntimeout = \"1s\"\n")
	at := s.serve(t)
	for _, c := range []struct{ name, role, say, want string }{
		{"silent", "mx", "", `msg=refused.* verb="" .*code=421 dsn=4.4.2`},
		{"silent after a command", "mx", "EHLO c.test\r\n", `msg=refused.* code=421 dsn=4.4.2`},
		{"no TLS", "submissions", "EHLO c.test\r\n", `msg="session ended early".* err="TLS handshake`},
		{"HTTP", "mx", "GET / HTTP/1.1\r\n\r\n", `msg=refused.* code=554`},
	} {
		conn, err := net.Dial("tcp", at[c.role])
		if err != nil {
			t.Fatal(err)
		}
		if _, err = io.WriteString(conn, c.say); err == nil {
			_, err = io.Copy(io.Discard, conn)
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		peer := "peer=" + conn.LocalAddr().String()
		conn.Close()
		lines := func() (of []string) {
			b, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			for l := range strings.Lines(string(b)) {
				if strings.Contains(l, peer) {
					of = append(of, l)
				}
			}
			return of
		}
		if !mailtest.Wait(5*time.Second, func() bool { return len(lines()) > 0 }) {
			t.Fatalf("%s: no line", c.name)
		}
		if got := lines(); len(got) != 1 || !regexp.MustCompile(c.want).MatchString(got[0]) {
			t.Errorf("%s: %q, want one that matches %s", c.name, got, c.want)
		}
	}
}
