package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// inetd counts SMTP sessions a second, one after the other, under a real inetd: the MX has a
// nowait line in the sandbox, submission a wait line.
func (b *bench) inetd() error {
	if !have("inetd") && !have("/usr/sbin/inetd") {
		b.skip("inetd is not installed (Debian: openbsd-inetd)")
		return nil
	}
	p, err := b.startOurs("inetd", "inetd")
	if err != nil {
		return err
	}
	b.extra = append(b.extra, p)
	env, err := readEnv(filepath.Join(b.dir, "inetd", "env"))
	if err != nil {
		return err
	}
	for _, c := range []struct {
		name, port string
		n          int
		bound      float64
	}{
		{"inetd nowait, sessions", env["PP_SMTP_PORT"], 300, 300},
		{"inetd wait, sessions", env["PP_SUBMISSION_PORT"], 3000, 5000},
	} {
		l := b.out.line(c.name, "/s", &budget{abs: c.bound})
		for range b.rounds {
			rate, err := sessions(net.JoinHostPort(env["PP_HOST"], c.port), b.n(c.n))
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			l.add("ours", rate)
		}
		starts, err := startRate(b.n(200))
		if err != nil {
			return err
		}
		l.extra = fmt.Sprintf("(right now the machine starts and ends %.0f C programs a second) ", starts)
	}
	if !have("smtp-source") {
		return nil
	}
	n := b.n(300)
	l := b.out.line("accept 4 KiB, a process a connection, 10 sessions", "msg/s", nil)
	for range b.rounds {
		ops, err := b.probe(10)
		if err != nil {
			return err
		}
		l.probe = append(l.probe, ops)
		rate, err := p.accepted(n, 10, 4096, false)
		if err != nil {
			return err
		}
		l.add("ours", rate)
	}
	return nil
}

// startRate is how often a second this machine starts /bin/true and sees it end, one after the
// other: what a process for each connection is to be read against.
func startRate(n int) (float64, error) {
	begin := time.Now()
	for range n {
		if err := exec.Command("/bin/true").Run(); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(begin).Seconds(), nil
}

// sessions makes n connections, one after the other: greeting, QUIT, end.
func sessions(addr string, n int) (float64, error) {
	begin := time.Now()
	for range n {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return 0, err
		}
		r := bufio.NewReader(c)
		line, err := r.ReadString('\n')
		if err == nil && !strings.HasPrefix(line, "220 ") {
			err = fmt.Errorf("greeting %q", line)
		}
		if err == nil {
			_, err = io.WriteString(c, "QUIT\r\n")
		}
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		c.Close()
		if err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(begin).Seconds(), nil
}
