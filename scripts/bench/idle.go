package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// idle measures what a connection costs that says nothing: growth of the memory of all
// processes, from outside.
func (b *bench) idle() error {
	if err := b.up(); err != nil {
		return err
	}
	l := b.out.line("idle SMTP connections, PSS each", "KiB", &budget{less: true, abs: 15})
	for _, p := range b.peers {
		n := 500
		if p.name == "postfix" {
			n = 90 // it is shipped with a limit of 100 processes
		}
		each, err := p.idleCost(n)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		l.add(p.name, each)
		l.extra += fmt.Sprintf("[%s: %d connections] ", p.name, n)
	}
	b.out.flush()
	return b.tenThousand()
}

// tenThousand fills one process up.
func (b *bench) tenThousand() error {
	const want = 10_000
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil || lim.Cur < want+100 {
		b.skip("10,000 connections: ulimit -n is %d", lim.Cur)
		return nil
	}
	p := b.peers[0]
	before, err := pss(p.pids())
	if err != nil {
		return err
	}
	begin := time.Now()
	conns, err := dialAll(p.addr, want)
	defer closeAll(conns)
	if err != nil {
		return err
	}
	took := time.Since(begin)
	after, err := pss(p.pids())
	if err != nil {
		return err
	}
	l := b.out.line("idle SMTP connections served by one process", "", &budget{abs: want})
	l.add("ours", float64(len(conns)))
	l.extra = fmt.Sprintf("greeted in %.1f s, PSS %d MiB more, %.1f KiB each ", took.Seconds(), (after-before)>>10, float64(after-before)/want)
	return nil
}

// idleCost is the growth of the PSS in KiB for each of n connections that said EHLO.
func (p *peer) idleCost(n int) (float64, error) {
	before, err := pss(p.pids())
	if err != nil {
		return 0, err
	}
	conns, err := dialAll(p.addr, n)
	defer closeAll(conns)
	if err != nil {
		return 0, err
	}
	for _, c := range conns {
		if err := hello(c); err != nil {
			return 0, err
		}
	}
	after, err := pss(p.pids())
	return float64(after-before) / float64(n), err
}

func hello(c net.Conn) error {
	if _, err := io.WriteString(c, "EHLO bench.test\r\n"); err != nil {
		return err
	}
	for r := bufio.NewReader(c); ; {
		l, err := r.ReadString('\n')
		if err != nil || strings.HasPrefix(l, "250 ") {
			return err
		}
	}
}

// pss is the memory of processes in KiB, shared pages by their share.
func pss(pids []int) (int, error) {
	sum := 0
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return 0, err
		}
		for l := range bytes.Lines(b) {
			if f := strings.Fields(string(l)); len(f) > 1 && f[0] == "Pss:" {
				n, err := strconv.Atoi(f[1])
				if err != nil {
					return 0, err
				}
				sum += n
			}
		}
	}
	return sum, nil
}

// dialAll opens n connections and reads a greeting from each.
func dialAll(addr string, n int) ([]net.Conn, error) {
	const at = 16
	conns, errs := make([]net.Conn, n), make([]error, at)
	var wg sync.WaitGroup
	for w := range at {
		wg.Go(func() {
			b := make([]byte, 512)
			for i := w; i < n; i += at {
				c, err := net.DialTimeout("tcp", addr, 20*time.Second)
				if err != nil {
					errs[w] = err
					return
				}
				conns[i] = c
				err = c.SetDeadline(time.Now().Add(time.Minute))
				k := 0
				if err == nil {
					k, err = c.Read(b)
				}
				if err == nil && !bytes.HasPrefix(b[:k], []byte("220 ")) {
					err = fmt.Errorf("connection %d: greeting %q", i, b[:k])
				}
				if err != nil {
					errs[w] = err
					return
				}
			}
		})
	}
	wg.Wait()
	return conns, errors.Join(errs...)
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		if c != nil {
			c.Close()
		}
	}
}

// firstAnswer measures from connect to greeting where nothing runs before: a process for each
// connection, and one for all, which the connection starts.
func (b *bench) firstAnswer() error {
	activate, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		b.skip("systemd-socket-activate is not installed")
		return nil
	}
	if err := b.up(); err != nil {
		return err
	}
	conf := ""
	for _, kv := range b.peers[0].env {
		if v, ok := strings.CutPrefix(kv, "PENNYPOST_CONFIG="); ok {
			conf = v
		}
	}
	daemon := []string{filepath.Join(b.bin, "msmtpd"), "--config", conf, "--role", "mx"}
	for _, c := range []struct {
		name   string
		accept []string
		n      int // answers of one activator
	}{{"first answer after socket activation, Accept=yes", []string{"--accept"}, 21}, {"first answer after socket activation, Accept=no", nil, 1}} {
		l := b.out.line(c.name, "ms", &budget{less: true, abs: 20})
		for range max(1, 21/c.n) {
			port, err := freePort()
			if err != nil {
				return err
			}
			addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
			cmd := exec.Command(activate, append(append([]string{"--listen=" + addr}, c.accept...), daemon...)...)
			if err := cmd.Start(); err != nil {
				return err
			}
			err = answers(addr, c.n, l)
			_ = cmd.Process.Signal(syscall.SIGTERM) // it is the daemon by now, where that is one for all
			_ = cmd.Wait()                          // its status is that of the signal
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// answers adds the time of n greetings to l.
func answers(addr string, n int, l *line) error {
	// The activator says nothing when it listens; a connection would start the daemon.
	for begin := time.Now(); !listening(addr); time.Sleep(time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			return fmt.Errorf("nobody listens on %s", addr)
		}
	}
	for range n {
		begin := time.Now()
		c, err := dialAll(addr, 1)
		l.add("ours", float64(time.Since(begin).Microseconds())/1000)
		if err == nil {
			_, err = io.WriteString(c[0], "QUIT\r\n")
		}
		if err == nil {
			_, err = io.Copy(io.Discard, c[0])
		}
		closeAll(c)
		if err != nil {
			return err
		}
	}
	return nil
}

// listening looks for a listening socket in the kernel's table.
func listening(addr string) bool {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return false
	}
	b, err := os.ReadFile("/proc/net/tcp")
	return err != nil || bytes.Contains(b, fmt.Appendf(nil, "0100007F:%04X 00000000:0000 0A", n))
}
