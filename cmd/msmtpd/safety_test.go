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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// configure adds lines to the configuration.
func (s *site) configure(t *testing.T, lines string) {
	t.Helper()
	f, err := os.OpenFile(s.config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(f, "\n"+lines)
	if cerr := f.Close(); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
}

// serveMX starts one msmtpd for one listener and returns its process.
func (s *site) serveMX(t *testing.T) (*os.Process, string) {
	t.Helper()
	addr := freePort(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := s.command("--notify-fd", "3", "--listen", addr+"=mx")
	cmd.ExtraFiles = []*os.File{w}
	start(t, cmd)
	w.Close()
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatalf("msmtpd does not become ready: %v", err)
	}
	return cmd.Process, addr
}

// memory is the sum of some lines of a file in /proc, in KiB.
func memory(t *testing.T, p *os.Process, file string, keys ...string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.Pid, file))
	if err != nil {
		t.Skipf("this system does not tell: %v", err)
	}
	sum := 0
	for l := range bytes.Lines(b) {
		f := strings.Fields(string(l))
		for _, k := range keys {
			if len(f) >= 2 && f[0] == k+":" {
				n, err := strconv.Atoi(f[1])
				if err != nil {
					t.Fatal(err)
				}
				sum += n
			}
		}
	}
	return sum
}

// dialMany opens n connections and reads each greeting.
func dialMany(t *testing.T, addr string, n int) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			b := make([]byte, 512)
			for i := w; i < n && errs[w] == nil; i += len(errs) {
				c, err := net.DialTimeout("tcp", addr, 20*time.Second)
				if err != nil {
					errs[w] = err
					return
				}
				conns[i] = c
				c.SetDeadline(time.Now().Add(20 * time.Second))
				k, err := c.Read(b)
				if err == nil && !bytes.HasPrefix(b[:k], []byte("220 ")) {
					err = fmt.Errorf("connection %d: greeting %q", i, b[:k])
				}
				errs[w] = err
			}
		})
	}
	wg.Wait()
	t.Cleanup(func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	})
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	return conns
}

// TestManyIdle: one process holds thousands of clients who say nothing, with a few KiB each, and
// serves the next one as if they were not there.
func TestManyIdle(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector's own memory would be measured")
	}
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil || lim.Cur < manyClients+200 {
		t.Skipf("%d descriptors are too few (%v): raise ulimit -n", lim.Cur, err)
	}
	s := newSite(t)
	s.configure(t, "smtpd.max_sessions = 20000\n")
	p, addr := s.serveMX(t)
	deliver(t, "tcp", addr, "before")
	before := memory(t, p, "smaps_rollup", "Pss")
	conns := dialMany(t, addr, manyClients)
	after := memory(t, p, "smaps_rollup", "Pss")
	each := float64(after-before) / manyClients
	t.Logf("%d idle connections: PSS %d KiB, %d before, %.1f KiB each", manyClients, after, before, each)
	if each > 15 {
		t.Errorf("an idle connection costs %.1f KiB, more than 15", each)
	}
	begin := time.Now()
	if got := deliver(t, "tcp", addr, "among many"); !strings.Contains(got, "queued as") {
		t.Fatal(got)
	}
	t.Logf("a message among them: %v", time.Since(begin))
	// Each is still served.
	for i := 0; i < len(conns); i += 97 {
		c := conns[i]
		c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprint(c, "NOOP\r\n")
		if l, err := bufio.NewReader(c).ReadString('\n'); err != nil || l != "250 2.0.0 ok\r\n" {
			t.Fatalf("connection %d: %q %v", i, l, err)
		}
	}
}

// TestSlowAndHalfOpenClients: clients who keep a connection busy with as little as they can,
// or stop in the middle of anything, are gone when their time is over; others do not notice.
func TestSlowAndHalfOpenClients(t *testing.T) {
	s := newSite(t)
	s.configure(t, "smtpd.timeout = \"700ms\"\n")
	at := s.serve(t)
	inTLS := func(t *testing.T, addr string) net.Conn {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, c := range []struct {
		name, role string
		tls        bool
		say        string // at once
		drip       string // and then one octet of it, again and again
		end        string // the last words of the server, where the client can hear them
	}{
		{"silence", "mx", false, "", "", "421 4.4.2 "},
		{"half a command", "mx", false, "EH", "", "421 4.4.2 "},
		{"a command without end", "mx", false, "NOOP ", "x", "421 4.4.2 "},
		{"half a message", "mx", false, "EHLO c\r\nMAIL FROM:<x@far.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nSubject: x\r\n", "", "421 4.4.2 "},
		{"a message without end", "mx", false, "EHLO c\r\nMAIL FROM:<x@far.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n", "x", "421 4.4.2 "},
		{"half a chunk", "mx", false, "EHLO c\r\nMAIL FROM:<x@far.test>\r\nRCPT TO:<bob@example.test>\r\nBDAT 1000\r\nxx", "", "421 4.4.2 "},
		{"half a handshake", "submissions", false, "\x16\x03\x01\x02\x00\x01", "", ""},
		{"no handshake", "submissions", false, "", "", ""},
		{"half a handshake after STARTTLS", "submission", false, "EHLO c\r\nSTARTTLS\r\n", "", ""},
		{"silence under TLS", "submissions", true, "", "", "421 4.4.2 "},
		{"half an AUTH", "submissions", true, "EHLO c\r\nAUTH PLAIN\r\nAGFs", "", "421 4.4.2 "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var conn net.Conn
			if c.tls {
				conn = inTLS(t, at[c.role])
			} else {
				var err error
				if conn, err = net.Dial("tcp", at[c.role]); err != nil {
					t.Fatal(err)
				}
			}
			defer conn.Close()
			begin := time.Now()
			if _, err := io.WriteString(conn, c.say); err != nil {
				t.Fatal(err)
			}
			heard := make(chan string, 1)
			go func() {
				conn.SetReadDeadline(begin.Add(20 * time.Second))
				b, _ := io.ReadAll(conn)
				heard <- string(b)
			}()
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case got := <-heard:
					if d := time.Since(begin); d > 10*time.Second || d < 300*time.Millisecond {
						t.Errorf("over after %v: %q", d, got)
					}
					if !strings.Contains(got, c.end) {
						t.Errorf("heard %q, want %q", got, c.end)
					}
					return
				case <-tick.C:
					_, _ = io.WriteString(conn, c.drip) // fails once the server has gone
				}
			}
		})
	}
	t.Run("others", func(t *testing.T) {
		t.Parallel()
		if got := deliver(t, "tcp", at["mx"], "meanwhile"); !strings.Contains(got, "queued as") {
			t.Error(got)
		}
		if n := len(s.queued(t)); n != 1 {
			t.Errorf("%d messages, want the whole one alone", n)
		}
	})
}

// TestFloodsCostNoMemory: what clients pour in without reading an answer does not pile up.
func TestFloodsCostNoMemory(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector's own memory would be measured")
	}
	const clients = 40
	head := "EHLO c\r\nMAIL FROM:<x@far.test>\r\nRCPT TO:<bob@example.test>\r\n"
	for _, c := range []struct {
		name, head, again string
		allowed           int // KiB a client, with what the garbage collector has not taken yet
	}{
		{"pipelined commands", "EHLO c\r\n", strings.Repeat("NOOP\r\n", 1000), 192},
		{"pipelined recipients", head, strings.Repeat("RCPT TO:<alice@example.test>\r\n", 300), 192},
		{"a line without end", "", strings.Repeat("x", 16<<10), 192},
		{"a message line without end", head + "DATA\r\n", strings.Repeat("x", 16<<10), 384},
		// A header is held whole, up to 1 MiB.
		{"a header without end", head + "DATA\r\n", strings.Repeat("X-Flood: y\r\n", 1000), 3 << 10},
		{"chunks without end", head, "BDAT 16384\r\n" + strings.Repeat("x", 16<<10), 384},
		{"an AUTH line without end", "EHLO c\r\nAUTH PLAIN ", strings.Repeat("x", 16<<10), 192},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			s.configure(t, "limits.message_size = 4194304\n")
			p, addr := s.serveMX(t)
			deliver(t, "tcp", addr, "before")
			before := memory(t, p, "status", "RssAnon")
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					conn, err := net.Dial("tcp", addr)
					if err != nil {
						t.Error(err)
						return
					}
					defer conn.Close()
					conn.SetDeadline(time.Now().Add(700 * time.Millisecond))
					_, err = io.WriteString(conn, c.head)
					for sent := 0; err == nil && sent < 3<<19; sent += len(c.again) {
						_, err = io.WriteString(conn, c.again) // the server may well hang up
					}
				})
			}
			wg.Wait()
			peak := memory(t, p, "status", "RssAnon")
			t.Logf("RSS %d KiB, %d before, %d clients", peak, before, clients)
			if peak-before > clients*c.allowed {
				t.Errorf("%d KiB for each of %d clients, more than %d", (peak-before)/clients, clients, c.allowed)
			}
			if got := deliver(t, "tcp", addr, "after"); !strings.Contains(got, "queued as") {
				t.Error(got)
			}
		})
	}
}

// TestDiskFillsUp: on a file system that really is full, clients hear 452 and nothing torn stays;
// when there is room again, the same process takes mail without being told.
func TestDiskFillsUp(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a small file system needs root")
	}
	s := newSite(t)
	if err := os.Rename(s.spool, s.spool+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.spool, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=2m", "pennypost-test", s.spool).CombinedOutput(); err != nil {
		t.Skipf("no file system can be mounted here: %s", out)
	}
	t.Cleanup(func() { // before the instance is removed
		if err := syscall.Unmount(s.spool, 0); err != nil {
			t.Errorf("umount: %v", err)
		}
	})
	if out, err := exec.Command("cp", "-a", s.spool+".old/.", s.spool).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	p, addr := s.serveMX(t)
	defer func() { // its spool is unmounted next
		p.Signal(syscall.SIGTERM)
		p.Wait()
	}()
	big := "x\r\n\r\n" + strings.Repeat(strings.Repeat("y", 70)+"\r\n", 6000)
	taken := 0
	var last string
	for range 20 {
		last = deliver(t, "tcp", addr, big)
		if !strings.Contains(last, "queued as") {
			break
		}
		taken++
	}
	if taken == 0 || !strings.Contains(last, "\r\n452 4.3.1 insufficient system storage\r\n221 ") {
		t.Fatalf("%d taken, then %q", taken, last)
	}
	names, err := filepath.Glob(filepath.Join(s.spool, "incoming", "*"))
	if err != nil || len(names) != taken {
		t.Errorf("%d files for %d messages taken (%v)", len(names), taken, err)
	}
	if got := deliver(t, "tcp", addr, big); !strings.Contains(got, "452 4.3.1") {
		t.Errorf("again: %q", got)
	}
	if err := os.Remove(names[0]); err != nil {
		t.Fatal(err)
	}
	if got := deliver(t, "tcp", addr, big); !strings.Contains(got, "queued as") {
		t.Errorf("with room again: %q", got)
	}
}
