package serve

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// proxy2 makes a header of version 2.
func proxy2(command, family byte, body []byte) string {
	b := append([]byte(proxySignature), command, family, 0, 0)
	binary.BigEndian.PutUint16(b[14:], uint16(len(body)))
	return string(append(b, body...))
}

func addresses(src, dst string) []byte {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	b := append(s.Addr().AsSlice(), d.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, s.Port())
	return binary.BigEndian.AppendUint16(b, d.Port())
}

func TestReadProxy(t *testing.T) {
	v4 := addresses("192.0.2.9:4711", "198.51.100.1:25")
	v6 := addresses("[2001:db8::9]:4711", "[2001:db8::1]:25")
	mapped := addresses("[::ffff:192.0.2.9]:4711", "[::ffff:198.51.100.1]:25")
	tlv := "\x04\x00\x03abc\x30\x00\x01x"
	for _, c := range []struct {
		name, in string
		src, dst string // "" is an unknown client
		local    bool
		bad      bool
	}{
		{name: "1, TCP4", in: "PROXY TCP4 192.0.2.9 198.51.100.1 4711 25\r\n", src: "192.0.2.9:4711", dst: "198.51.100.1:25"},
		{name: "1, TCP6", in: "PROXY TCP6 2001:db8::9 2001:db8::1 4711 25\r\n", src: "[2001:db8::9]:4711", dst: "[2001:db8::1]:25"},
		{name: "1, unknown", in: "PROXY UNKNOWN\r\n"},
		{name: "1, unknown with a rest", in: "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"},
		{name: "1, longest", in: "PROXY UNKNOWN " + strings.Repeat("x", 107-16) + "\r\n"},
		{name: "1, one too long", in: "PROXY UNKNOWN " + strings.Repeat("x", 107-15) + "\r\n", bad: true},
		{name: "1, LF alone", in: "PROXY TCP4 192.0.2.9 198.51.100.1 4711 25\n", bad: true},
		{name: "1, wrong family", in: "PROXY TCP4 2001:db8::9 2001:db8::1 4711 25\r\n", bad: true},
		{name: "1, port too big", in: "PROXY TCP4 192.0.2.9 198.51.100.1 65536 25\r\n", bad: true},
		{name: "1, port with a zero", in: "PROXY TCP4 192.0.2.9 198.51.100.1 04711 25\r\n", bad: true},
		{name: "1, two spaces", in: "PROXY TCP4  192.0.2.9 198.51.100.1 4711 25\r\n", bad: true},
		{name: "1, zone", in: "PROXY TCP6 fe80::1%eth0 2001:db8::1 4711 25\r\n", bad: true},
		{name: "1, cut off", in: "PROXY TCP4 192.0.2.9 198.", bad: true},
		{name: "2, TCP4", in: proxy2(0x21, 0x11, v4), src: "192.0.2.9:4711", dst: "198.51.100.1:25"},
		{name: "2, TCP6", in: proxy2(0x21, 0x21, v6), src: "[2001:db8::9]:4711", dst: "[2001:db8::1]:25"},
		{name: "2, mapped", in: proxy2(0x21, 0x21, mapped), src: "192.0.2.9:4711", dst: "198.51.100.1:25"},
		{name: "2, TLVs", in: proxy2(0x21, 0x11, append(bytes.Clone(v4), tlv...)), src: "192.0.2.9:4711", dst: "198.51.100.1:25"},
		{name: "2, LOCAL", in: proxy2(0x20, 0x00, nil), local: true},
		{name: "2, LOCAL with addresses", in: proxy2(0x20, 0x11, v4), local: true},
		{name: "2, unspecified", in: proxy2(0x21, 0x00, []byte(tlv))},
		{name: "2, UNIX", in: proxy2(0x21, 0x31, make([]byte, 216))},
		{name: "2, too short", in: proxy2(0x21, 0x11, v4[:11]), bad: true},
		{name: "2, version 3", in: proxy2(0x31, 0x11, v4), bad: true},
		{name: "2, unknown command", in: proxy2(0x22, 0x11, v4), bad: true},
		{name: "2, too long", in: proxy2(0x21, 0x11, make([]byte, maxProxy2+1)), bad: true},
		{name: "2, cut off", in: proxy2(0x21, 0x11, v4)[:20], bad: true},
		{name: "a client without a proxy", in: "EHLO client.test\r\n", bad: true},
		{name: "nothing", in: "", bad: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			const after = "EHLO x\r\n"
			in := strings.NewReader(c.in)
			var r io.Reader = in
			if !c.bad {
				r = io.MultiReader(in, strings.NewReader(after))
			}
			h, err := readProxy(r)
			if (err != nil) != c.bad {
				t.Fatalf("%+v, %v", h, err)
			}
			if c.bad {
				return
			}
			var want proxyHeader
			want.local = c.local
			if c.src != "" {
				want.src, want.dst = netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)
			}
			if h != want {
				t.Errorf("%+v, want %+v", h, want)
			}
			if rest, _ := io.ReadAll(r); string(rest) != after {
				t.Errorf("what follows became %q", rest)
			}
		})
	}
}

// Property: no more is read than a header may hold, and an address is never half there.
func FuzzReadProxy(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.9 198.51.100.1 4711 25\r\n"))
	f.Add([]byte("PROXY UNKNOWN\r\nEHLO x\r\n"))
	f.Add([]byte(proxy2(0x21, 0x11, addresses("192.0.2.9:4711", "198.51.100.1:25"))))
	f.Add([]byte(proxy2(0x21, 0x21, addresses("[2001:db8::9]:1", "[2001:db8::1]:25"))))
	f.Add([]byte(proxy2(0x20, 0, nil)))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		h, err := readProxy(r)
		if used := len(in) - r.Len(); used > maxProxy2+16 || used > maxProxy1 && !bytes.HasPrefix(in, []byte(proxySignature)) {
			t.Fatalf("%d octets read", used)
		}
		if err != nil && h != (proxyHeader{}) {
			t.Fatalf("%+v beside the error %v", h, err)
		}
		if h.src.Addr().IsValid() != h.dst.Addr().IsValid() || h.local && h.src.IsValid() {
			t.Fatalf("%+v", h)
		}
		if ip := h.src.Addr(); ip.Is4In6() || ip.Zone() != "" {
			t.Fatalf("address %v", ip)
		}
	})
}

// proxied runs one connection of a server that trusts loopback as a proxy, or does not. It
// returns what the handler saw, and what it read.
func proxied(t *testing.T, trust bool, send string) (peer *Peer, got string, log string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var buf bytes.Buffer
	r := &runner{conns: make(map[net.Conn]struct{})}
	r.o.Log = slog.New(slog.NewTextHandler(&buf, nil))
	if trust {
		r.o.ProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}
	r.h = func(_ context.Context, c net.Conn, p Peer, _ string) {
		peer = &p
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		b, _ := io.ReadAll(c)
		got = string(b)
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, send); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	r.start(context.Background(), sc, "mx")
	r.wg.Wait()
	return peer, got, buf.String()
}

func TestProxyPeers(t *testing.T) {
	const header = "PROXY TCP4 192.0.2.9 198.51.100.1 4711 25\r\n"
	peer, got, log := proxied(t, true, header+"EHLO x\r\n")
	if peer == nil || peer.Addr != netip.MustParseAddrPort("192.0.2.9:4711") || peer.Local != netip.MustParseAddrPort("198.51.100.1:25") || got != "EHLO x\r\n" {
		t.Errorf("trusted: %+v %q %s", peer, got, log)
	}
	peer, got, _ = proxied(t, false, header)
	if peer == nil || !peer.Addr.Addr().IsLoopback() || got != header {
		t.Errorf("not trusted: %+v %q", peer, got)
	}
	peer, _, _ = proxied(t, true, "PROXY UNKNOWN\r\nEHLO x\r\n")
	if peer == nil || peer.Addr.IsValid() || peer.Local.IsValid() {
		t.Errorf("an unknown client got the proxy's address: %+v", peer)
	}
	peer, _, _ = proxied(t, true, proxy2(0x20, 0, nil)+"QUIT\r\n")
	if peer == nil || !peer.Addr.Addr().IsLoopback() {
		t.Errorf("health check: %+v", peer)
	}
	peer, _, log = proxied(t, true, "EHLO client.test\r\n")
	if peer != nil || !strings.Contains(log, `msg="PROXY header refused" peer=127.0.0.1:`) {
		t.Errorf("no header: %+v %s", peer, log)
	}
}
