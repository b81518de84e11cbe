package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/handover"
	"pennypost/internal/mailtest"
	"pennypost/internal/serve"
)

// The test binary is msession itself, under that name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "msession" {
		main()
	}
	os.Exit(m.Run())
}

func site(t *testing.T) (dir, bin string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ms")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin = filepath.Join(dir, "msession")
	err = errors.Join(os.Symlink(self, bin), os.WriteFile(filepath.Join(dir, "pp.toml"),
		[]byte("domains = [\"a.test\"]\nlog = \"file:log\"\n[accounts]\nauth_socket = \"auth\"\n[session]\nsocket = \"session\"\nusers = []\n"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	return dir, bin
}

// asks tells whether a request gets an answer, which is no here: nobody answers for tickets.
func asks(t *testing.T, path string) {
	t.Helper()
	a, b, err := pair(t)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	for _, c := range []struct{ protocol, want string }{{"none", "syntax"}, {handover.POP3, "temporary"}} {
		u := dial(t, path)
		if err := u.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("{\"protocol\":%q,\"ticket\":\"x\"}\n", c.protocol)
		if _, _, err := u.WriteMsgUnix([]byte(line), syscall.UnixRights(int(a.Fd())), nil); err != nil {
			t.Fatal(err)
		}
		s, err := bufio.NewReader(u).ReadString('\n')
		if err != nil || !strings.Contains(s, `"error":"`+c.want+`"`) {
			t.Errorf("%s: %q %v", c.protocol, s, err)
		}
		u.Close()
	}
}

// dial connects once somebody listens: a starter makes the file of a socket before it listens.
func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	var u *net.UnixConn
	var err error
	if !mailtest.Wait(10*time.Second, func() bool {
		u, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		return err == nil
	}) {
		t.Fatal(err)
	}
	return u
}

func pair(t *testing.T) (a, b *os.File, err error) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	return os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b"), err
}

func TestListens(t *testing.T) {
	t.Parallel()
	dir, bin := site(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(bin, "--config", filepath.Join(dir, "pp.toml"), "--listen", "config", "--notify-fd", "3")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{w}, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Errorf("not ready: %v", err)
	}
	asks(t, filepath.Join(dir, "session"))
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Errorf("told to end: %v", err)
	}
}

// TestIsStarted: started by others for a socket, and gone when idle.
func TestIsStarted(t *testing.T) {
	t.Parallel()
	for name, more := range map[string][]string{"Accept=no": nil, "Accept=yes": {"-a"}, "inetd": {"-a", "--inetd"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			activator, err := exec.LookPath("systemd-socket-activate")
			if err != nil {
				t.Skip("systemd-socket-activate is not installed")
			}
			dir, bin := site(t)
			path := filepath.Join(dir, "session")
			args := append(more, "-l", path, bin, "--config", filepath.Join(dir, "pp.toml"), "--idle", "200ms")
			cmd := exec.Command(activator, args...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			asks(t, path)
			if more != nil {
				_ = cmd.Process.Kill() // it goes on to listen
				<-ended
				return
			}
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("idle: %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("it does not end")
				_ = cmd.Process.Kill() // it may have ended
			}
		})
	}
}

// TestUnderInetd: one process for a listening UNIX socket.
func TestUnderInetd(t *testing.T) {
	t.Parallel()
	inetd, err := exec.LookPath("inetd")
	if err != nil {
		t.Skip("inetd is not installed")
	}
	if os.Geteuid() != 0 {
		t.Skip("inetd starts programs for root alone as another user")
	}
	dir, bin := site(t)
	path := filepath.Join(dir, "session")
	conf := filepath.Join(dir, "inetd.conf")
	line := fmt.Sprintf("%s stream unix wait root %s msession --config %s --idle 200ms\n", path, bin, filepath.Join(dir, "pp.toml"))
	if err := os.WriteFile(conf, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(inetd, "-d", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}()
	asks(t, path)
	asks(t, path)
}

func TestUsage(t *testing.T) {
	t.Parallel()
	dir, bin := site(t)
	bad := filepath.Join(dir, "bad.toml")
	strange := filepath.Join(dir, "strange.toml")
	if err := errors.Join(os.WriteFile(bad, []byte("domains = [\"a.test\"]\n"), 0o644),
		os.WriteFile(strange, []byte("domains = [\"a.test\"]\naccounts.auth_socket = \"auth\"\nsession.users = [\"no-such-user\"]\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(dir, "pp.toml")
	for _, c := range []struct {
		args   []string
		status int
		say    string
	}{
		{[]string{"--config", good, "operand"}, envelope.ExUsage, "operands"},
		{[]string{"--config", bad}, envelope.ExConfig, "accounts.auth_socket"},
		{[]string{"--config", bad, "--listen", "config"}, envelope.ExConfig, "accounts.auth_socket"},
		{[]string{"--config", strange}, envelope.ExConfig, "session.users"},
		{[]string{"--config", good, "--listen", "/nowhere/at/all"}, envelope.ExOSErr, "/nowhere"},
	} {
		cmd := exec.Command(bin, c.args...)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != c.status || !strings.Contains(string(out), c.say) {
			t.Errorf("%q: %v\n%s", c.args, err, out)
		}
	}
	// At a prompt there is nobody to hand anything over.
	cmd := exec.Command(bin, "--config", good)
	cmd.Stdin = strings.NewReader("{\"protocol\":\"pop3\",\"ticket\":\"x\"}\n")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("on pipes: %v %s", err, out)
	}
	if log, err := os.ReadFile(filepath.Join(dir, "log")); err != nil || !strings.Contains(string(log), "UNIX sockets only") {
		t.Errorf("%s %v", log, err)
	}
}

func TestMay(t *testing.T) {
	t.Parallel()
	unix := func(uid int) serve.Peer { return serve.Peer{Unix: true, Cred: &serve.Cred{UID: uid}} }
	for _, c := range []struct {
		name string
		peer serve.Peer
		ok   bool
	}{
		{"root", unix(0), true},
		{"ourselves", unix(os.Geteuid()), true},
		{"listed", unix(4321), true},
		{"stranger", unix(4322), false},
		{"unknown", serve.Peer{Unix: true, CredErr: serve.ErrNoPeerCred}, false},
		{"network", serve.Peer{}, false},
		{"who started us", serve.Peer{Stdio: true}, false},
	} {
		if err := may(c.peer, []int{4321}); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestPrograms(t *testing.T) {
	t.Parallel()
	got := programs("/usr/bin", "/etc/pp.toml")
	want := map[string][]string{
		"pop3": {"/usr/bin/mpop3d", "--config", "/etc/pp.toml", "--session"},
		"imap": {"/usr/bin/mimapd", "--config", "/etc/pp.toml", "--session"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	if got := programs("/b", "")["pop3"]; !reflect.DeepEqual(got, []string{"/b/mpop3d", "--session"}) {
		t.Errorf("without a configuration: %q", got)
	}
}
