package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// peer is one running mail system with alice@example.test as a local user and a route for
// sink.test.
type peer struct {
	name     string
	addr     string
	maildir  string   // new/ of alice
	sendmail []string // called with -f SENDER RECIPIENT
	env      []string
	pids     func() []int
	stop     func() error
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// up starts the peers once; later rows find them running.
func (b *bench) up() error {
	if b.peers != nil {
		return nil
	}
	sink, err := freePort()
	if err != nil {
		return err
	}
	b.sink = sink
	p, err := b.startOurs("ours", "listen")
	if err != nil {
		return err
	}
	b.peers = []*peer{p}
	if why := postfixMissing(); why != "" {
		b.skip("no peer to compare with: %s", why)
		return nil
	}
	if p, err = b.startPostfix(); err != nil {
		return err
	}
	b.peers = append(b.peers, p)
	return nil
}

func (b *bench) stopPeers() {
	for _, p := range append(b.peers, b.extra...) {
		if err := p.stop(); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", p.name, err)
		}
	}
}

// startOurs makes a sandbox that may relay for loopback, which a sandbox by itself never does.
func (b *bench) startOurs(name, mode string) (*peer, error) {
	dir := filepath.Join(b.dir, name)
	if b.sink == 0 { // a row by itself that needs no peers
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		b.sink = port
	}
	to := fmt.Sprintf("127.0.0.1:%d", b.sink)
	err := sandbox("up", dir, "--mode", mode, "--route", "sink.test="+to, "--route", "*.sink.test="+to)
	if err != nil {
		return nil, err
	}
	env, err := readEnv(filepath.Join(dir, "env"))
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(env["PP_CONFIG"], os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString("\n[smtpd]\nrelay_from = [\"127.0.0.0/8\"]\n")
	if err = errors.Join(err, f.Close(), sandbox("up", dir)); err != nil {
		return nil, err
	}
	return &peer{
		name: name, addr: net.JoinHostPort(env["PP_HOST"], env["PP_SMTP_PORT"]),
		maildir:  filepath.Join(env["PP_MAILDIRS"], "example.test/alice/new"),
		sendmail: []string{filepath.Join(b.bin, "msend")},
		env:      append(os.Environ(), "PENNYPOST_CONFIG="+env["PP_CONFIG"]),
		pids:     func() []int { return withChildren(readPids(env["PP_PIDS"])) },
		stop:     func() error { return sandbox("down", dir) },
	}, nil
}

func sandbox(args ...string) error {
	out, err := exec.Command("scripts/sandbox", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("sandbox %s: %w: %s", args[0], err, out)
	}
	return nil
}

func readEnv(name string) (map[string]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	env := make(map[string]string)
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), "="); ok {
			env[k] = strings.Trim(v, "'")
		}
	}
	return env, nil
}

func readPids(name string) []int {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	var pids []int
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if len(f) == 0 {
			continue
		}
		if pid, err := strconv.Atoi(f[0]); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// withChildren adds all descendants.
func withChildren(pids []int) []int {
	for i := 0; i < len(pids); i++ {
		names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[i]))
		if err != nil {
			continue
		}
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err != nil {
				continue
			}
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil {
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids
}

// have counts what is in alice's Maildir.
func (p *peer) have() int {
	d, err := os.Open(p.maildir)
	if err != nil {
		return 0
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return 0
	}
	return len(names)
}

// empty removes alice's mail, so that no run pays for the directory of another.
func (p *peer) empty() error {
	names, err := filepath.Glob(filepath.Join(p.maildir, "*"))
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := os.Remove(n); err != nil {
			return err
		}
	}
	return nil
}

// await waits until n messages are in alice's Maildir and says how long that took.
func (p *peer) await(n int, poll time.Duration) (time.Duration, error) {
	begin := time.Now()
	for p.have() < n {
		if time.Since(begin) > time.Minute {
			return 0, fmt.Errorf("%s: %d of %d messages arrived in a minute", p.name, p.have(), n)
		}
		time.Sleep(poll)
	}
	return time.Since(begin), nil
}

// send lets smtp-source hand in n messages of size octets over so many sessions.
func (p *peer) send(n, sessions, size int, keep bool, rcpt string) (time.Duration, error) {
	args := []string{"-s", strconv.Itoa(sessions), "-m", strconv.Itoa(n), "-l", strconv.Itoa(size), "-f", "bench@example.test", "-t", rcpt}
	if keep {
		args = append(args, "-d")
	}
	begin := time.Now()
	out, err := exec.Command("smtp-source", append(args, p.addr)...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s: smtp-source: %w: %s", p.name, err, out)
	}
	return time.Since(begin), nil
}
