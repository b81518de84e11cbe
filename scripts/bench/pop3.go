package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"pennypost/internal/mailtest"
)

// popPeer is a POP3 server with alice's maildrop of its own.
type popPeer struct{ name, addr string }

// pop3 compares whole sessions over one maildrop with Dovecot's: login and STAT, UIDL, and RETR of
// everything at once, without TLS on both sides. The first session of each makes what it caches.
func (b *bench) pop3() error {
	n := b.n(10_000)
	peers, stop, err := b.popPeers(n)
	if err != nil {
		return errors.Join(err, stop())
	}
	name := func(what string) string { return fmt.Sprintf("POP3, %d messages, %s", n, what) }
	lines := []*line{
		b.out.line(name("login+STAT"), "ms", &budget{less: true, ratio: 0.5}),
		b.out.line(name("UIDL"), "ms", &budget{less: true, ratio: 0.23}),
		b.out.line(name("RETR all"), "ms", &budget{less: true, ratio: 0.5}),
	}
	for _, l := range lines {
		l.against = "dovecot"
	}
	for round := range b.rounds + 1 {
		for _, p := range peers {
			times, err := popSession(p.addr, n)
			if err != nil {
				return errors.Join(fmt.Errorf("%s: %w", p.name, err), stop())
			}
			for i, d := range times {
				if round > 0 {
					lines[i].add(p.name, float64(d.Microseconds())/1000)
				}
			}
		}
	}
	return stop()
}

// popPeers starts ours and, where it can be, Dovecot.
func (b *bench) popPeers(n int) (peers []popPeer, stop func() error, err error) {
	var stops []func() error
	stop = func() error {
		var errs []error
		for _, f := range stops {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	dir := filepath.Join(b.dir, "pop3")
	port, err := freePort()
	if err == nil {
		err = popMaildir(filepath.Join(dir, "mail/example.test/alice"), n, -1)
	}
	if err != nil {
		return nil, stop, err
	}
	for name, text := range map[string]string{
		"pennypost.toml": "hostname = \"mx.example.test\"\ndomains = [\"example.test\"]\nspool = \".\"\nmaildirs = \"mail/%d/%u\"\nlog = \"file:log\"\n" +
			"[accounts]\nusers = \"users\"\nsecrets = \"secrets\"\naliases = []\n[pop3]\nclear_from = [\"127.0.0.1\"]\n",
		"users": "alice@example.test::::::\n", "secrets": "alice@example.test:{PLAIN}secret\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, stop, err
		}
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	cmd := exec.Command(filepath.Join(b.bin, "mpop3d"), "--config", filepath.Join(dir, "pennypost.toml"), "--listen", addr)
	if err := cmd.Start(); err != nil {
		return nil, stop, err
	}
	stops = append(stops, func() error { return errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()) })
	peers = []popPeer{{"ours", addr}}
	if why := mailtest.DovecotMissing(); why != "" {
		b.skip("no peer to compare with: %s", why)
		return peers, stop, nil
	}
	theirs := filepath.Join(dir, "dovecot")
	if err := popMaildir(filepath.Join(theirs, "md"), n, mailtest.Nobody); err != nil {
		return nil, stop, err
	}
	d, err := mailtest.StartDovecot(mailtest.DovecotOptions{Dir: theirs, Maildir: filepath.Join(theirs, "md")})
	if err != nil {
		return nil, stop, err
	}
	stops = append(stops, d.Stop)
	return append(peers, popPeer{"dovecot", d.POP3}), stop, nil
}

// popMaildir makes a Maildir of n messages as they are: a header with a few Received lines, text,
// HTML, and now and then something attached.
func popMaildir(dir string, n, uid int) error {
	for _, d := range []string{"cur", "new", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		m := popMessage(r, i)
		name := fmt.Sprintf("%d.M%dP7.host,S=%d,W=%d:2,", 1_700_000_000+i, i, len(m), len(m)+bytes.Count(m, []byte("\n")))
		if err := os.WriteFile(filepath.Join(dir, "cur", name), m, 0o600); err != nil {
			return err
		}
		if uid >= 0 {
			if err := os.Chown(filepath.Join(dir, "cur", name), uid, uid); err != nil {
				return err
			}
		}
	}
	if uid < 0 {
		return nil
	}
	var errs []error
	for _, d := range []string{"", "cur", "new", "tmp"} {
		errs = append(errs, os.Chown(filepath.Join(dir, d), uid, uid))
	}
	return errors.Join(errs...)
}

func popMessage(r *rand.Rand, i int) []byte {
	var b bytes.Buffer
	for hop := range 1 + r.IntN(4) {
		fmt.Fprintf(&b, "Received: from host%d.example.org (host%[1]d.example.org [192.0.2.%[1]d])\n\tby mx.example.test with ESMTPS id %x;\n\tSun, 22 Nov 2026 05:%02d:00 +0000\n", hop, r.Uint64(), i%60)
	}
	fmt.Fprintf(&b, "From: Sender %d <s%[1]d@example.org>\nTo: alice@example.test\nSubject: Message number %[1]d about something\nMessage-ID: <%x@example.org>\nDate: Sun, 22 Nov 2026 05:00:00 +0000\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"b1\"\n\n--b1\nContent-Type: text/plain; charset=utf-8\n\n", i, r.Uint64())
	for range 10 + r.IntN(60) {
		fmt.Fprintf(&b, "A line of text %d as people write them, or programs.\n", r.IntN(1000))
	}
	b.WriteString("\n--b1\nContent-Type: text/html; charset=utf-8\n\n<html>\n")
	for range 10 + r.IntN(60) {
		fmt.Fprintf(&b, "<p>A line of text %d as <b>people</b> write them</p>\n", r.IntN(1000))
	}
	if i%10 == 0 {
		b.WriteString("\n--b1\nContent-Type: application/pdf\nContent-Transfer-Encoding: base64\n\n")
		raw := make([]byte, 57)
		for range 50 + r.IntN(500) {
			for j := range raw {
				raw[j] = byte(r.Uint32())
			}
			b.WriteString(base64.StdEncoding.EncodeToString(raw) + "\n")
		}
	}
	b.WriteString("\n--b1--\n")
	return b.Bytes()
}

// popSession is one whole session; the times are those of login and STAT, UIDL, RETR of all.
func popSession(addr string, n int) (times [3]time.Duration, err error) {
	begin := time.Now()
	c, err := net.Dial("tcp", addr)
	for end := begin.Add(10 * time.Second); err != nil && time.Now().Before(end); c, err = net.Dial("tcp", addr) {
		time.Sleep(5 * time.Millisecond) // it has just been started
		begin = time.Now()
	}
	if err != nil {
		return times, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return times, err
	}
	r := bufio.NewReaderSize(c, 256<<10)
	ok := func(command string) (string, error) {
		if command != "" {
			if _, err := io.WriteString(c, command+"\r\n"); err != nil {
				return "", err
			}
		}
		l, err := r.ReadString('\n')
		if err == nil && !strings.HasPrefix(l, "+OK") {
			err = fmt.Errorf("%s: %q", command, l)
		}
		return l, err
	}
	for _, command := range []string{"", "USER alice@example.test", "PASS secret"} {
		if _, err := ok(command); err != nil {
			return times, err
		}
	}
	l, err := ok("STAT")
	if err == nil && !strings.HasPrefix(l, fmt.Sprintf("+OK %d ", n)) {
		err = fmt.Errorf("STAT: %q", l)
	}
	if err != nil {
		return times, err
	}
	times[0] = time.Since(begin)
	begin = time.Now()
	if _, err := ok("UIDL"); err != nil {
		return times, err
	}
	if err := popBodies(r, 1); err != nil {
		return times, err
	}
	times[1] = time.Since(begin)
	begin = time.Now()
	go func() {
		var all bytes.Buffer
		for i := range n {
			fmt.Fprintf(&all, "RETR %d\r\n", i+1)
		}
		_, _ = c.Write(all.Bytes()) // what comes back tells
	}()
	if err := popBodies(r, n); err != nil {
		return times, err
	}
	times[2] = time.Since(begin)
	_, err = ok("QUIT")
	return times, err
}

// popBodies reads to the end of n multi-line replies with as little work as it takes: what the
// client does is in the figure too.
func popBodies(r *bufio.Reader, n int) error {
	end := []byte("\r\n.\r\n")
	buf := make([]byte, 0, 512<<10)
	for {
		k, err := r.Read(buf[len(buf):cap(buf)])
		if err != nil {
			return err
		}
		buf = buf[:len(buf)+k]
		if n -= bytes.Count(buf, end); n <= 0 {
			return nil
		}
		// The end of one may begin here; what was counted is not seen again.
		keep := buf[max(0, len(buf)-len(end)+1):]
		if bytes.HasSuffix(buf, end) {
			keep = keep[len(keep):]
		}
		buf = buf[:copy(buf, keep)]
	}
}
