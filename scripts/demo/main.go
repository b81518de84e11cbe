// Command demo shows two mail hosts and a DNS server on loopback at work. Each step prints the
// command, its real output, and "ok N what was checked" or "FAILED N expected/got"; nothing
// is printed that was not checked. It needs Go, make and a POSIX shell.
//
//	go run ./scripts/demo [--keep]
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"pennypost/internal/mailtest"
)

func main() {
	keep := flag.Bool("keep", false, "leave both instances running, and say where")
	flag.Parse()
	d, err := newDemo()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
	err = d.play()
	if *keep {
		fmt.Fprintf(os.Stderr, "demo: kept below %s\n", d.dir)
	} else {
		err = errors.Join(err, d.clean())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
	fmt.Printf("demo: %d steps ok\n", d.n)
}

// demo holds the stage: a directory with hosts a and b below it, and the DNS server of both.
type demo struct {
	dir  string
	port int // of SMTP on all hosts: an MX record has no place for one
	dns  *mailtest.DNS
	n    int // steps shown
	out  io.Writer
}

const (
	hostA = "127.0.0.2" // a.test
	hostB = "127.0.0.3" // b.test
	dead  = "127.0.0.4" // the first MX of b.test, where nobody listens
)

const zone = `
a.test.      MX 10 mx.a.test.
mx.a.test.   A 127.0.0.2
b.test.      MX 10 dead.b.test.
b.test.      MX 20 mx.b.test.
dead.b.test. A 127.0.0.4
mx.b.test.   A 127.0.0.3
`

func newDemo() (*demo, error) {
	dir, err := os.MkdirTemp("", "pennypost-demo-")
	if err != nil {
		return nil, err
	}
	d := &demo{dir: dir, out: os.Stdout}
	if d.port, err = commonPort(hostA, hostB, dead); err != nil {
		return nil, err
	}
	if d.dns, err = mailtest.NewDNS("127.0.0.1:0", ""); err != nil {
		return nil, err
	}
	return d, d.dns.SetZone(zone)
}

// commonPort finds one that is free on all hosts.
func commonPort(hosts ...string) (int, error) {
	var last error
	for range 50 {
		first, err := net.Listen("tcp", net.JoinHostPort(hosts[0], "0"))
		if err != nil {
			return 0, err
		}
		port := first.Addr().(*net.TCPAddr).Port
		open := []net.Listener{first}
		for _, h := range hosts[1:] {
			l, err := net.Listen("tcp", net.JoinHostPort(h, fmt.Sprint(port)))
			if err != nil {
				last = err
				break
			}
			open = append(open, l)
		}
		for _, l := range open {
			l.Close()
		}
		if len(open) == len(hosts) {
			return port, nil
		}
	}
	return 0, fmt.Errorf("no port is free on %v: %w", hosts, last)
}

// clean stops everything and removes the directory.
func (d *demo) clean() error {
	var errs []error
	for _, h := range []string{"a", "b"} {
		if _, err := os.Stat(filepath.Join(d.dir, h)); err == nil {
			out, err := exec.Command("scripts/sandbox", "down", filepath.Join(d.dir, h)).CombinedOutput()
			if err != nil {
				errs = append(errs, fmt.Errorf("%w: %s", err, out))
			}
		}
	}
	d.dns.Close()
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

// errStep ends the play; the step itself has said why.
var errStep = errors.New("a step failed")

// step prints a shell command and its real output, then what check found. The command runs
// as host a or b would: their tools on PATH, their configuration in the environment. check
// returns what it made sure of.
func (d *demo) step(host, command string, check func(out string) (string, error)) error {
	d.n++
	fmt.Fprintf(d.out, "%s$ %s\n", host, command)
	out, err := d.shell(host, command)
	fmt.Fprint(d.out, out)
	if out != "" && !strings.HasSuffix(out, "\n") {
		fmt.Fprintln(d.out)
	}
	what := ""
	if err == nil {
		what, err = check(out)
	}
	if err != nil {
		fmt.Fprintf(d.out, "FAILED %d %v\n\n", d.n, err)
		d.logs()
		return fmt.Errorf("%w: %d", errStep, d.n)
	}
	fmt.Fprintf(d.out, "ok %d %s\n\n", d.n, what)
	return nil
}

// shell runs a command in the demo's directory. $top is the source tree, $env what a host's
// env file assigns.
func (d *demo) shell(host, command string) (string, error) {
	top, err := os.Getwd()
	if err != nil {
		return "", err
	}
	script := command
	if host != "" {
		script = "set -a; . ./" + host + "/env; set +a; PATH=$PP_BIN:$PATH\n" + command
	}
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = d.dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(top, "scripts")+":"+os.Getenv("PATH"),
		fmt.Sprintf("port=%d", d.port), "dns="+d.dns.Addr())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("expected exit status 0, got %w", err)
	}
	return out.String(), nil
}

// logs shows the ends of both hosts' logs after a failure.
func (d *demo) logs() {
	names, err := filepath.Glob(filepath.Join(d.dir, "*/log/*.log"))
	if err != nil {
		return
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err == nil && len(b) > 0 {
			fmt.Fprintf(d.out, "--- end of %s\n%s", strings.TrimPrefix(n, d.dir+"/"), b[max(0, len(b)-2000):])
		}
	}
}

// patience bounds every wait: far longer than any of them takes, short enough to be watched.
const patience = 15 * time.Second

// within polls until f has no error, and returns the last one if it never comes to that.
func within(f func() error) error {
	var err error
	for begin := time.Now(); time.Since(begin) < patience; time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%w (waited %s)", err, patience)
}

// settle waits for what the next step will look at; if it does not come, that step says so.
func settle(f func() error) { _ = within(f) }

// want tells which of the words out lacks.
func want(out string, words ...string) error {
	for _, w := range words {
		if !strings.Contains(out, w) {
			return fmt.Errorf("expected %q, got %q", w, out)
		}
	}
	return nil
}
