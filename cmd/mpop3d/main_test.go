package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/mailtest"
)

// The test binary is mpop3d itself, under that name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "mpop3d" {
		main()
	}
	os.Exit(m.Run())
}

// site is accounts, Maildirs and a certificate for one mpop3d.
type site struct{ dir, bin, config string }

func newSite(t testing.TB, extra string) *site {
	t.Helper()
	in, err := mailtest.NewInstance(mailtest.InstanceOptions{Extra: extra})
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
	s := &site{dir: in.Dir, bin: filepath.Join(in.Dir, "mpop3d"), config: in.Config}
	if err := os.Symlink(self, s.bin); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) command(args ...string) *exec.Cmd {
	return exec.Command(s.bin, append([]string{"--config", s.config}, args...)...)
}

// maildir is alice's; it is there from the first message on.
func (s *site) maildir() string { return filepath.Join(s.dir, "mail", "example.test", "alice") }

// deliver puts messages into alice's Maildir as a delivery does.
func (s *site) deliver(t testing.TB, msgs ...string) {
	t.Helper()
	for _, d := range []string{"new", "cur", "tmp"} {
		if err := os.MkdirAll(filepath.Join(s.maildir(), d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for i, m := range msgs {
		wire := len(m) + strings.Count(m, "\n")
		name := fmt.Sprintf("%d.M%dP%d.host,S=%d,W=%d", time.Now().Unix(), time.Now().Nanosecond()/1000, i, len(m), wire)
		if err := os.WriteFile(filepath.Join(s.maildir(), "new", name), []byte(m), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// files are the messages that are there, by name.
func (s *site) files(t testing.TB) []string {
	t.Helper()
	var all []string
	for _, d := range []string{"new", "cur"} {
		f, err := filepath.Glob(filepath.Join(s.maildir(), d, "*"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f...)
	}
	return all
}

func (s *site) log(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// start runs cmd until the end of the test.
func start(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if testing.Verbose() {
		cmd.Stderr = os.Stderr
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()                                      // by the signal, or as it likes
	})
}

// freePort is a port nobody listens on: starters take no port 0.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func need(t testing.TB, program string) string {
	t.Helper()
	for _, p := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
	}
	t.Skipf("%s is not installed", program)
	return ""
}

// serve starts one mpop3d with a listener for each role and waits until it is ready.
func (s *site) serve(t testing.TB) (addrs map[string]string, cmd *exec.Cmd) {
	t.Helper()
	addrs = map[string]string{"pop3": freePort(t), "pop3s": freePort(t)}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd = s.command("--notify-fd", "3", "--listen", addrs["pop3"]+"=pop3", "--listen", addrs["pop3s"]+"=pop3s")
	cmd.ExtraFiles = []*os.File{w}
	start(t, cmd)
	w.Close()
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatalf("mpop3d does not become ready: %v", err)
	}
	return addrs, cmd
}

// dial connects; a starter may need a moment to listen.
func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			return c
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// talk sends text over TLS, from the first octet, and returns what the server says.
func talk(t testing.TB, addr, text string) string {
	t.Helper()
	c := dial(t, addr)
	defer c.Close()
	tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	go func() { _, _ = io.WriteString(tc, text) }() // what it says tells whether it heard
	b, err := io.ReadAll(tc)
	if err != nil {
		t.Fatalf("%v after %q", err, b)
	}
	return string(b)
}

const loginLines = "USER alice\r\nPASS secret\r\n"

// TestStartModes serves by every way to get a connection.
func TestStartModes(t *testing.T) {
	for _, c := range []struct {
		name string
		cmd  func(t *testing.T, s *site, addr string) *exec.Cmd
	}{
		{"systemd_listening", func(t *testing.T, s *site, addr string) *exec.Cmd {
			return exec.Command(need(t, "systemd-socket-activate"), "-l", addr, "--fdname=pop3s", s.bin, "--config", s.config, "--idle", "2s")
		}},
		{"systemd_accept", func(t *testing.T, s *site, addr string) *exec.Cmd {
			return exec.Command(need(t, "systemd-socket-activate"), "-a", "-l", addr, "--fdname=pop3s", s.bin, "--config", s.config)
		}},
		{"systemd_accept_inetd", func(t *testing.T, s *site, addr string) *exec.Cmd {
			return exec.Command(need(t, "systemd-socket-activate"), "-a", "--inetd", "-l", addr, s.bin, "--config", s.config, "--role", "pop3s")
		}},
		{"inetd_nowait", func(t *testing.T, s *site, addr string) *exec.Cmd { return inetd(t, s, "nowait.10000", addr) }},
		{"inetd_wait", func(t *testing.T, s *site, addr string) *exec.Cmd { return inetd(t, s, "wait.10000", addr) }},
		{"listen", func(_ *testing.T, s *site, addr string) *exec.Cmd { return s.command("--listen", addr+"=pop3s") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, "")
			s.deliver(t, "Subject: one\n\nx\n", "Subject: two\n\ny\n", "Subject: three\n\nz\n")
			addr := freePort(t)
			start(t, c.cmd(t, s, addr))
			for i := range 3 {
				got := talk(t, addr, loginLines+"STAT\r\nDELE 1\r\nQUIT\r\n")
				if !strings.Contains(got, fmt.Sprintf("+OK %d ", 3-i)) || !strings.HasSuffix(got, fmt.Sprintf("+OK bye, %d messages left\r\n", 2-i)) {
					t.Fatalf("session %d: %s", i, got)
				}
			}
			if log := s.log(t); strings.Count(log, "msg=session ") != 3 || !strings.Contains(log, " peer=127.0.0.1:") {
				t.Errorf("log: %s", log)
			}
		})
	}
	t.Run("stdio", func(t *testing.T) {
		s := newSite(t, "")
		s.deliver(t, "Subject: one\n\nx\n")
		cmd := s.command()
		cmd.Stdin = strings.NewReader(loginLines + "STAT\r\nQUIT\r\n")
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), "+OK 1 19\r\n+OK bye, 1 messages left\r\n") {
			t.Errorf("%v: %s", err, out)
		}
		// Somebody who speaks for a network is no pipe.
		cmd = s.command()
		cmd.Env = append(os.Environ(), "TCPREMOTEIP=192.0.2.7")
		cmd.Stdin = strings.NewReader(loginLines + "QUIT\r\n")
		out, err = cmd.Output()
		if err != nil || strings.Count(string(out), "-ERR [AUTH] no passwords without TLS") != 2 {
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
	line := fmt.Sprintf("%s stream tcp %s root %s mpop3d --config %s --role pop3s --idle 1s\n", addr, mode, s.bin, s.config)
	if err := os.WriteFile(conf, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	return exec.Command(prog, "-i", conf)
}

func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	s := newSite(t, "pop3.proxy_from = [\"127.0.0.0/8\"]\n")
	s.deliver(t, "Subject: one\n\nx\n")
	at, _ := s.serve(t)
	c := dial(t, at["pop3s"])
	defer c.Close()
	if _, err := io.WriteString(c, "PROXY TCP4 192.0.2.9 198.51.100.1 4711 995\r\n"); err != nil {
		t.Fatal(err)
	}
	tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	if _, err := io.WriteString(tc, loginLines+"QUIT\r\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(tc); err != nil || !strings.Contains(string(got), "+OK bye") {
		t.Fatalf("%q %v", got, err)
	}
	if log := s.log(t); !strings.Contains(log, "msg=session tool=mpop3d peer=192.0.2.9:4711 user=alice@example.test role=pop3s") {
		t.Errorf("log: %s", log)
	}
	c = dial(t, at["pop3"])
	defer c.Close()
	if _, err := io.WriteString(c, "CAPA\r\nCAPA\r\nCAPA\r\n"); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(c); len(got) > 0 {
		t.Errorf("without a header: %q", got)
	}
}

// TestStop: a session that waits hears that the server ends; nothing is removed.
func TestStop(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	s.deliver(t, "Subject: one\n\nx\n")
	at, cmd := s.serve(t)
	c := dial(t, at["pop3s"])
	defer c.Close()
	tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	if _, err := io.WriteString(tc, loginLines+"DELE 1\r\n"); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for b := make([]byte, 1000); !bytes.Contains(got, []byte("goes at QUIT\r\n")); {
		n, err := tc.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, b[:n]...)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(tc); err != nil || string(rest) != "-ERR [SYS/TEMP] closing down\r\n" {
		t.Errorf("%q, %v", rest, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("status: %v", err)
	}
	if f := s.files(t); len(f) != 1 {
		t.Errorf("files: %v", f)
	}
}

// TestTooMany: one client more than may be is turned away in the protocol's words.
func TestTooMany(t *testing.T) {
	t.Parallel()
	s := newSite(t, "pop3.max_sessions = 1\n")
	at, _ := s.serve(t)
	first := dial(t, at["pop3"])
	defer first.Close()
	if _, err := io.ReadFull(first, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	second := dial(t, at["pop3"])
	defer second.Close()
	if got, _ := io.ReadAll(second); string(got) != "-ERR [SYS/TEMP] too many sessions, try again later\r\n" {
		t.Errorf("%q", got)
	}
}

// TestOneClientTooMany: one client has its share and no more; this host has no limit.
func TestOneClientTooMany(t *testing.T) {
	t.Parallel()
	s := newSite(t, "pop3.per_client = 1\npop3.proxy_from = [\"127.0.0.7\"]\n")
	at, _ := s.serve(t)
	for i, c := range []struct{ local, header, want string }{
		{"127.0.0.7", "PROXY TCP4 192.0.2.9 203.0.113.1 4711 110\r\n", "+OK "},
		{"127.0.0.7", "PROXY TCP4 192.0.2.9 203.0.113.1 4712 110\r\n", "-ERR [SYS/TEMP] too many sessions from your address, end some first\r\n"},
		{"127.0.0.7", "PROXY TCP4 192.0.2.10 203.0.113.1 4713 110\r\n", "+OK "},
		{"127.0.0.1", "", "+OK "}, {"127.0.0.1", "", "+OK "},
	} {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(c.local)}}
		conn, err := d.Dial("tcp", at["pop3"])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(conn, c.header); err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.HasPrefix(got, c.want) {
			t.Errorf("%d: %q %v, want %q", i, got, err, c.want)
		}
	}
}

func TestConfigurationErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("hostname = \"x.test\"\ndomains = [\"x.test\"]\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain, badID := write("plain.toml", ""), write("uidl.toml", "pop3.uidl = \"%m\"\n")
	s := newSite(t, "")
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"--config", plain, "--role", "pop3s"}, 78, "role pop3s needs TLS"},
		{[]string{"--config", plain, "--role", "imap"}, 78, `unknown role "imap"`},
		{[]string{"--config", plain, "--listen", "110"}, 64, "want HOST:PORT"},
		{[]string{"--config", plain, "--listen", "config"}, 78, "no pop3.listen"},
		{[]string{"--config", plain, "operand"}, 64, "unexpected operand"},
		{[]string{"--config", plain, "--session"}, 64, "msession starts it"},
		{[]string{"--config", badID}, 78, "pop3.uidl: %m: want %u, %v, %f or %g"},
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

// TestCertificateReload: a new certificate is served to the next connection, by STLS and without.
func TestCertificateReload(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	other := newSite(t, "")
	at, _ := s.serve(t)
	serial := func(addr string, stls bool) string {
		c := dial(t, addr)
		defer c.Close()
		if stls {
			if _, err := io.WriteString(c, "STLS\r\n"); err != nil {
				t.Fatal(err)
			}
			var got []byte
			for b := make([]byte, 1); bytes.Count(got, []byte("\n")) < 2; got = append(got, b[0]) {
				if _, err := io.ReadFull(c, b); err != nil {
					t.Fatal(err)
				}
			}
		}
		tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		return string(tc.ConnectionState().PeerCertificates[0].Raw)
	}
	was := serial(at["pop3s"], false)
	if serial(at["pop3"], true) != was {
		t.Error("STLS shows another certificate")
	}
	for _, f := range []string{"cert.pem", "key.pem"} {
		if err := os.Rename(filepath.Join(other.dir, f), filepath.Join(s.dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	for _, stls := range []bool{false, true} {
		addr := at["pop3s"]
		if stls {
			addr = at["pop3"]
		}
		if !mailtest.Wait(10*time.Second, func() bool { return serial(addr, stls) != was }) {
			t.Errorf("STLS %v: the new certificate is not served", stls)
		}
	}
}
