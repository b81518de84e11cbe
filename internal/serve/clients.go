package serve

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"
)

// clients counts the sessions that each client has open. An entry is there for as long as one is,
// so the number of sessions bounds the table.
type clients struct {
	mu   sync.Mutex
	open map[uint64]int
}

// clientKey is what counts as one client: an IPv4 address, or the /64 of an IPv6 address, since a
// host with one address of it has them all. A value below 1<<49 is an IPv4 address: as a /64 it
// would lie in ::/8, which belongs to no client.
func clientKey(ip netip.Addr) uint64 {
	if ip.Is4() {
		b := ip.As4()
		return 1<<48 | uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := ip.As16()
	return binary.BigEndian.Uint64(b[:])
}

// enter takes one of the places of a client; false is that all of them are taken.
func (c *clients) enter(ip netip.Addr, most int) bool {
	k := clientKey(ip)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[k] >= most {
		return false
	}
	if c.open == nil {
		c.open = make(map[uint64]int)
	}
	c.open[k]++
	return true
}

// leave gives a place back.
func (c *clients) leave(ip netip.Addr) {
	k := clientKey(ip)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[k]--; c.open[k] <= 0 {
		delete(c.open, k)
	}
}

// counted tells whether PerClient is about this peer: one with an address, and none that Exempt
// has. Who comes over a UNIX socket is on this host already and has other ways to be in the way.
func (r *runner) counted(p Peer) bool {
	ip := p.Addr.Addr()
	return r.o.PerClient > 0 && ip.IsValid() && !trusted(r.o.Exempt, ip)
}

// seldom lets one log line through in a second and counts the others: a flood of connections is
// not to become a flood of lines.
type seldom struct {
	mu     sync.Mutex
	last   time.Time
	missed int
}

// say tells whether to write the line, and how many were left out since the last one.
func (s *seldom) say(now time.Time) (missed int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.last.IsZero() && now.Sub(s.last) < time.Second {
		s.missed++
		return 0, false
	}
	missed, s.missed, s.last = s.missed, 0, now
	return missed, true
}
