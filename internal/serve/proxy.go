package serve

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// The PROXY protocol, versions 1 and 2, as HAProxy's proxy-protocol.txt defines it: the first
// octets of a connection tell for whom a proxy made it. They come before everything else, a TLS
// handshake included. A peer in Options.ProxyFrom must send them and no other may: guessing
// would let anybody choose an address.

const (
	// proxyTime is how long a proxy may take for its header. It sends the header by itself,
	// with the connection's first segment.
	proxyTime = 5 * time.Second
	// maxProxy1 is the longest line of version 1 with its CR LF.
	maxProxy1 = 107
	// maxProxy2 bounds what follows the 16 fixed octets of version 2. The field could say
	// 65535; addresses and TLVs of real proxies, certificates' names included, stay far below.
	maxProxy2 = 4096

	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
)

var errNoProxy = errors.New("no PROXY header where one must stand: this peer is in the list of proxies")

// introduced returns the peer that the handler serves; without one the connection is over.
func (r *runner) introduced(c net.Conn, p Peer, role string) (Peer, bool) {
	peer, err := r.meet(c, p)
	if err != nil {
		r.o.Log.Warn("PROXY header refused", "peer", p.Addr.String(), "role", role, "err", err)
	}
	return peer, err == nil
}

// meet reads the PROXY header of a trusted proxy and returns the peer behind it. The
// connection stands behind the header then.
func (r *runner) meet(c net.Conn, p Peer) (Peer, error) {
	if !trusted(r.o.ProxyFrom, p.Addr.Addr()) {
		return p, nil
	}
	if err := c.SetReadDeadline(time.Now().Add(proxyTime)); err != nil {
		return p, err
	}
	h, err := readProxy(c)
	if err != nil {
		return p, err
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return p, err
	}
	if h.local {
		return p, nil // the proxy speaks for itself: a health check
	}
	// A client the proxy does not name has no address at all. Taking the proxy's own instead
	// would hand its rights to strangers.
	p.Addr, p.Local = h.src, h.dst
	return p, nil
}

func trusted(list []netip.Prefix, ip netip.Addr) bool {
	for _, n := range list {
		if ip.IsValid() && n.Contains(ip) {
			return true
		}
	}
	return false
}

// proxyHeader is what a header says. Without addresses the client is unknown.
type proxyHeader struct {
	local    bool // the proxy itself is the client
	src, dst netip.AddrPort
}

// readProxy reads one header and not an octet more: what follows may be a TLS handshake.
func readProxy(r io.Reader) (proxyHeader, error) {
	// Both versions have at least 15 octets; 13 tell them apart and hold a version 2's command.
	b := make([]byte, 13, 128)
	if _, err := io.ReadFull(r, b); err != nil {
		return proxyHeader{}, fmt.Errorf("%w: %w", errNoProxy, err)
	}
	switch {
	case string(b[:12]) == proxySignature:
		return readProxy2(r, b)
	case string(b[:6]) == "PROXY ":
		return readProxy1(r, b)
	}
	return proxyHeader{}, errNoProxy
}

// readProxy1 reads the rest of the line octet by octet; proxies that are in a hurry use version 2.
func readProxy1(r io.Reader, b []byte) (proxyHeader, error) {
	for b[len(b)-1] != '\n' {
		if len(b) == maxProxy1 {
			return proxyHeader{}, errors.New("PROXY line is longer than 107 octets")
		}
		b = append(b, 0)
		if _, err := io.ReadFull(r, b[len(b)-1:]); err != nil {
			return proxyHeader{}, fmt.Errorf("PROXY line ends early: %w", err)
		}
	}
	line, ok := strings.CutSuffix(string(b), "\r\n")
	if !ok {
		return proxyHeader{}, errors.New("PROXY line does not end in CR LF")
	}
	if line == "PROXY UNKNOWN" || strings.HasPrefix(line, "PROXY UNKNOWN ") {
		return proxyHeader{}, nil
	}
	f := strings.Split(line, " ")
	if len(f) != 6 || f[1] != "TCP4" && f[1] != "TCP6" {
		return proxyHeader{}, fmt.Errorf("PROXY line %q cannot be read", line)
	}
	src, ok1 := endpoint(f[2], f[4], f[1] == "TCP4")
	dst, ok2 := endpoint(f[3], f[5], f[1] == "TCP4")
	if !ok1 || !ok2 {
		return proxyHeader{}, fmt.Errorf("PROXY line %q has a bad address or port", line)
	}
	return proxyHeader{src: src, dst: dst}, nil
}

func endpoint(host, port string, v4 bool) (netip.AddrPort, bool) {
	ip, err := netip.ParseAddr(host)
	if err != nil || ip.Is4() != v4 || ip.Zone() != "" {
		return netip.AddrPort{}, false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || port != strconv.FormatUint(n, 10) {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(n)), true
}

// readProxy2 reads the binary form. Its TLVs are read over: nothing here depends on them.
func readProxy2(r io.Reader, b []byte) (proxyHeader, error) {
	b = b[:16]
	if _, err := io.ReadFull(r, b[13:]); err != nil {
		return proxyHeader{}, fmt.Errorf("PROXY header ends early: %w", err)
	}
	command, family, n := b[12], b[13], int(binary.BigEndian.Uint16(b[14:]))
	if command&0xf0 != 0x20 || command&0x0f > 1 {
		return proxyHeader{}, fmt.Errorf("PROXY version and command %#x are not known", command)
	}
	if n > maxProxy2 {
		return proxyHeader{}, fmt.Errorf("PROXY header of %d octets is longer than %d", n, maxProxy2)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return proxyHeader{}, fmt.Errorf("PROXY header ends early: %w", err)
	}
	if command&0x0f == 0 {
		return proxyHeader{local: true}, nil
	}
	size := 0
	switch family {
	case 0x11: // TCP over IPv4
		size = 4
	case 0x21: // TCP over IPv6
		size = 16
	default: // unspecified, UNIX sockets, datagrams: nobody we could name
		return proxyHeader{}, nil
	}
	if n < 2*size+4 {
		return proxyHeader{}, errors.New("PROXY header is too short for its addresses")
	}
	at := func(ip, port int) netip.AddrPort {
		a, _ := netip.AddrFromSlice(body[ip : ip+size]) // 4 or 16 octets: always one
		return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(body[port:]))
	}
	return proxyHeader{src: at(0, 2*size), dst: at(size, 2*size+2)}, nil
}
