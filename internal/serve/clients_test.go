package serve

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// syncBuffer is a log that several sessions write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// held serves o and returns the address and the log. Each session says "hi", and "bye" once its
// client has said a line.
func held(t *testing.T, o Options) (string, *syncBuffer) {
	t.Helper()
	addr, log := freePort(t), &syncBuffer{}
	o.Listen, o.Log = []Listener{{Addr: addr}}, slog.New(slog.NewTextHandler(log, nil))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, o, func(ctx context.Context, c net.Conn, _ Peer, _ string) {
			stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
			defer stop()
			io.WriteString(c, "hi\n")
			if _, err := bufio.NewReader(c).ReadString('\n'); err == nil {
				io.WriteString(c, "bye\n")
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	dialWait(t, "tcp", addr).Close()
	return addr, log
}

// hear connects from an address of this host and returns the first line.
func hear(t *testing.T, local, addr, first string) (net.Conn, string) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Skipf("this host is not %s: %v", local, err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, first); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatalf("from %s: %q, %v", local, line, err)
	}
	return c, line
}

// TestPerClient: each of many clients gets its sessions, and none gets more, whatever others do.
func TestPerClient(t *testing.T) {
	const most = 3
	addr, log := held(t, Options{
		PerClient: most, PerClientBusy: "421 too many\n", Exempt: []netip.Prefix{netip.MustParsePrefix("127.0.0.200/29")},
	})
	open := make(map[string][]net.Conn)
	for i := range 40 {
		ip := fmt.Sprintf("127.0.0.%d", 10+i)
		for n := range most + 2 {
			c, line := hear(t, ip, addr, "")
			if want := map[bool]string{true: "hi\n", false: "421 too many\n"}[n < most]; line != want {
				t.Fatalf("%s, session %d: %q", ip, n, line)
			}
			if n < most {
				open[ip] = append(open[ip], c)
			} else if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
				t.Fatalf("%s is not turned away: %q, %v", ip, rest, err)
			}
		}
	}
	for range 4 * most {
		if _, line := hear(t, "127.0.0.201", addr, ""); line != "hi\n" {
			t.Fatalf("a client without a limit: %q", line)
		}
	}
	// A place is free when its session is seen to be over.
	for ip, conns := range open {
		io.WriteString(conns[0], "x\n")
		if rest, err := io.ReadAll(conns[0]); err != nil || string(rest) != "bye\n" {
			t.Fatalf("%q, %v", rest, err)
		}
		if _, line := hear(t, ip, addr, ""); line != "hi\n" {
			t.Fatalf("%s has ended a session and hears %q", ip, line)
		}
		if _, line := hear(t, ip, addr, ""); line == "hi\n" {
			t.Fatalf("%s has one too many", ip)
		}
	}
	lines := strings.Count(log.String(), `msg="too many sessions of one client"`)
	if lines < 1 || lines > 20 || !strings.Contains(log.String(), "peer=127.0.0.10:") {
		t.Errorf("%d lines for 120 refusals in a moment:\n%s", lines, log)
	}
}

// TestPerClientBehindProxy counts the client and not the proxy; a /64 of IPv6 is one client.
func TestPerClientBehindProxy(t *testing.T) {
	addr, _ := held(t, Options{
		PerClient: 2, PerClientBusy: "full\n", ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.7/32")},
	})
	for i, c := range []struct{ header, want string }{
		{"TCP4 192.0.2.1 198.51.100.1 1 25", "hi\n"},
		{"TCP4 192.0.2.1 198.51.100.1 2 25", "hi\n"},
		{"TCP4 192.0.2.1 198.51.100.1 3 25", "full\n"},
		{"TCP4 192.0.2.2 198.51.100.1 4 25", "hi\n"},
		{"TCP6 2001:db8::1 2001:db8:ff::1 5 25", "hi\n"},
		{"TCP6 2001:db8::ffff:1 2001:db8:ff::1 6 25", "hi\n"},
		{"TCP6 2001:db8::2 2001:db8:ff::1 7 25", "full\n"},
		{"TCP6 2001:db8:0:1::2 2001:db8:ff::1 8 25", "hi\n"},
		{"UNKNOWN", "hi\n"}, {"UNKNOWN", "hi\n"}, {"UNKNOWN", "hi\n"},
	} {
		if _, line := hear(t, "127.0.0.7", addr, "PROXY "+c.header+"\r\n"); line != c.want {
			t.Errorf("%d, %s: %q, want %q", i, c.header, line, c.want)
		}
	}
}

// TestClientTable: nothing is left in the table when nobody is there.
func TestClientTable(t *testing.T) {
	var c clients
	ips := []string{"192.0.2.1", "0.0.0.0", "255.255.255.255", "::", "::1", "2001:db8::1", "fe80::1", "ffff:ffff:ffff:ffff::"}
	seen := make(map[uint64]string)
	for _, s := range ips {
		ip := netip.MustParseAddr(s)
		if other := seen[clientKey(ip)]; other != "" && other != "::" {
			t.Errorf("%s counts as %s", s, other)
		}
		seen[clientKey(ip)] = s
		for n := range 3 {
			if got := c.enter(ip, 2); got != (n < 2) && s != "::1" {
				t.Errorf("%s, %d: %v", s, n, got)
			}
		}
	}
	for _, s := range ips {
		for range 2 {
			c.leave(netip.MustParseAddr(s))
		}
	}
	if len(c.open) != 0 {
		t.Errorf("left: %v", c.open)
	}
}

func TestSeldom(t *testing.T) {
	var s seldom
	at := time.Unix(1000, 0)
	for _, c := range []struct {
		after  time.Duration
		missed int
		ok     bool
	}{{0, 0, true}, {0, 0, false}, {999 * time.Millisecond, 0, false}, {time.Second, 2, true}, {time.Second, 0, false}, {5 * time.Second, 1, true}} {
		if missed, ok := s.say(at.Add(c.after)); missed != c.missed || ok != c.ok {
			t.Errorf("after %v: %d %v", c.after, missed, ok)
		}
	}
}

func BenchmarkPerClient(b *testing.B) {
	var c clients
	for i := range 10000 {
		c.enter(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 50)
	}
	ip := netip.MustParseAddr("192.0.2.1")
	b.ReportAllocs()
	for b.Loop() {
		c.enter(ip, 50)
		c.leave(ip)
	}
}
