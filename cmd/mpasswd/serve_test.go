package main

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/auth"
	"pennypost/internal/mailtest"
	"pennypost/internal/sasl"
	"pennypost/internal/serve"
)

// The test binary is mpasswd itself, under that name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "mpasswd" {
		main()
	}
	os.Exit(m.Run())
}

// site is a directory with accounts and a name for the program.
func site(t *testing.T) (dir, bin string) {
	t.Helper()
	dir = t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin = filepath.Join(dir, "mpasswd")
	err = errors.Join(os.Symlink(self, bin),
		os.WriteFile(filepath.Join(dir, "pp.toml"), []byte("domains = [\"a.test\"]\n[accounts]\nauth_socket = \"auth\"\nguesses = \"guesses\"\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "secrets"), []byte("ann@a.test:{PLAIN}secret\n"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return dir, bin
}

func asks(t *testing.T, path string) {
	t.Helper()
	c := auth.NewClient(path)
	defer c.Close()
	for pw, want := range map[string]error{"secret": nil, "wrong": sasl.ErrRefused} {
		if _, err := c.Password(t.Context(), "ann", pw, netip.Addr{}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", pw, err, want)
		}
	}
}

// Its own socket, until it is told to end.
func TestServeListens(t *testing.T) {
	dir, bin := site(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(bin, "serve", "--config", filepath.Join(dir, "pp.toml"), "--listen", "config", "--notify-fd", "3")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Errorf("not ready: %v", err)
	}
	asks(t, filepath.Join(dir, "auth"))
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Errorf("told to end: %v", err)
	}
}

// Started by systemd's activator when somebody asks, it ends when nobody does.
func TestServeIsActivated(t *testing.T) {
	activator, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		t.Skip("systemd-socket-activate is not installed")
	}
	dir, bin := site(t)
	path := filepath.Join(dir, "auth")
	cmd := exec.Command(activator, "-l", path, bin, "serve", "--config", filepath.Join(dir, "pp.toml"), "--idle", "200ms")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if !mailtest.Wait(10*time.Second, func() bool { _, err := os.Stat(path); return err == nil }) {
		t.Error("no socket")
	}
	asks(t, path)
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("idle: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it does not end")
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
	}
}

func TestRights(t *testing.T) {
	me := os.Geteuid()
	unix := func(uid int) serve.Peer { return serve.Peer{Unix: true, Cred: &serve.Cred{UID: uid}} }
	for _, c := range []struct {
		name        string
		peer        serve.Peer
		ask, redeem bool
	}{
		{"root", unix(0), true, true},
		{"ourselves", unix(me), true, true},
		{"listed", unix(4321), true, false},
		{"stranger", unix(4322), false, false},
		{"who started us", serve.Peer{Stdio: true}, true, true},
		{"unknown", serve.Peer{Unix: true, CredErr: serve.ErrNoPeerCred}, false, false},
		{"network", serve.Peer{}, false, false},
	} {
		redeem, err := rights(c.peer, []int{4321})
		if (err == nil) != c.ask || redeem != c.redeem {
			t.Errorf("%s: %v %v", c.name, redeem, err)
		}
	}
}
