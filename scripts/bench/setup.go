package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// setup writes an instance for somebody else's measurement; the package comment has the
// variables.
func setup(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	need := func(name string) string {
		v := os.Getenv(name)
		if v == "" {
			err = errors.Join(err, fmt.Errorf("%s is not set", name))
		}
		return v
	}
	port, alice, sink, dead := need("SMTP_PORT"), need("ALICE"), need("SINK_PORT"), need("DEAD_PORT")
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "hostname = \"mx.example.test\"\ndomains = [\"example.test\"]\nspool = %q\nmaildirs = %q\nlog = %q\n",
		filepath.Join(dir, "spool"), filepath.Join(alice, "Maildir"), "file:"+filepath.Join(dir, "pennypost.log"))
	fmt.Fprintf(&b, "\n[accounts]\nusers = %q\nsecrets = %q\naliases = []\n", filepath.Join(dir, "users"), filepath.Join(dir, "secrets"))
	fmt.Fprintf(&b, "\n[smtpd]\nrelay_from = [\"127.0.0.0/8\"]\n\n[[smtpd.listen]]\naddr = \"127.0.0.1:%s\"\nrole = \"mx\"\n", port)
	for _, r := range [][2]string{{"sink.test", sink}, {"*.sink.test", sink}, {"dead.test", dead}} {
		fmt.Fprintf(&b, "\n[[route]]\nmatch = %q\nto = \"127.0.0.1:%s\"\n", r[0], r[1])
	}
	conf := filepath.Join(dir, "pennypost.toml")
	for _, f := range []struct {
		name, text string
	}{{conf, b.String()}, {filepath.Join(dir, "users"), ""}, {filepath.Join(dir, "secrets"), ""}} {
		if err := os.WriteFile(f.name, []byte(f.text), 0o644); err != nil {
			return err
		}
	}
	cmd := exec.Command(filepath.Join(binDir(), "mpasswd"), "--config", conf, "add", "alice@example.test")
	cmd.Stdin = strings.NewReader("secret\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mpasswd: %w: %s", err, out)
	}
	// msmtpd may be up before mqueue, and does not make a spool.
	if out, err := exec.Command(filepath.Join(binDir(), "mqueue"), "--config", conf, "init").CombinedOutput(); err != nil {
		return fmt.Errorf("mqueue init: %w: %s", err, out)
	}
	return nil
}

// binDir is where the tools are: $BENCH_BIN, else bin/ of the source tree.
func binDir() string {
	if d := os.Getenv("BENCH_BIN"); d != "" {
		return d
	}
	return "bin"
}

// start runs what setup prepared until it is asked to stop.
func start(dir string) error {
	conf := filepath.Join(dir, "pennypost.toml")
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	var cmds []*exec.Cmd
	ended := make(chan error, 2)
	addr := "127.0.0.1:" + os.Getenv("SMTP_PORT")
	for _, args := range [][]string{
		{"mqueue", "--config", conf, "run"},
		{"msmtpd", "--config", conf, "--role", "mx", "--listen", addr},
	} {
		cmd := exec.Command(filepath.Join(binDir(), args[0]), args[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		cmds = append(cmds, cmd)
		go func() { ended <- cmd.Wait() }()
	}
	var errs []error
	left := len(cmds)
	select {
	case <-stop:
	case err := <-ended:
		left--
		errs = append(errs, fmt.Errorf("a daemon ended by itself: %w", err))
	}
	for _, c := range cmds {
		_ = c.Process.Signal(syscall.SIGTERM) // one may have ended
	}
	for range left {
		errs = append(errs, <-ended)
	}
	return errors.Join(errs...)
}
