package relay

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"pennypost/internal/resolve"
	"pennypost/internal/smtp"
)

// sessionKey tells which messages may share a connection: those for the same address, under
// the same name, rights and secrecy.
type sessionKey struct {
	addr string // addr:port, or the path of a socket
	name string
	tls  string
	auth string
	lmtp bool
}

// session is an open connection behind EHLO, TLS and AUTH.
type session struct {
	key    sessionKey
	client *smtp.Client
	relay  string // host[addr]:port
	tls    string // "TLSv1.3 TLS_AES_128_GCM_SHA256 verified"; "" in clear
	reused bool
	timer  *time.Timer // closes it while it is idle
}

// maxIdle bounds the connections kept in all: each costs a descriptor here and a process there.
const maxIdle = 200

// pool keeps idle sessions. The newest is used first, so that the others may end.
type pool struct {
	mu     sync.Mutex
	idle   map[sessionKey][]*session
	n      int
	wait   time.Duration
	closed bool
	bye    sync.WaitGroup
}

func (p *pool) take(k sessionKey) *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.idle[k]
	if len(l) == 0 {
		return nil
	}
	s := l[len(l)-1]
	p.drop(s)
	s.timer.Stop()
	s.reused = true
	return s
}

// drop takes s out of the pool and tells whether it was in it. p.mu is held.
func (p *pool) drop(s *session) bool {
	l := p.idle[s.key]
	i := slices.Index(l, s)
	if i < 0 {
		return false
	}
	if l = slices.Delete(l, i, i+1); len(l) == 0 {
		delete(p.idle, s.key)
	} else {
		p.idle[s.key] = l
	}
	p.n--
	return true
}

// keep puts s into the pool, or ends it when there is no room.
func (p *pool) keep(s *session) {
	s.client.Use(context.Background())
	p.mu.Lock()
	if p.wait <= 0 || p.closed || p.n >= maxIdle {
		p.bye.Add(1)
		p.mu.Unlock()
		p.quit(s)
		return
	}
	s.timer = time.AfterFunc(p.wait, func() { p.expire(s) })
	p.idle[s.key] = append(p.idle[s.key], s)
	p.n++
	p.mu.Unlock()
}

func (p *pool) expire(s *session) {
	p.mu.Lock()
	mine := p.drop(s)
	if mine {
		p.bye.Add(1)
	}
	p.mu.Unlock()
	if mine {
		defer p.bye.Done()
		s.client.Quit()
	}
}

// quit ends s without making the caller, who has results to report, wait for the 221.
func (p *pool) quit(s *session) {
	go func() {
		defer p.bye.Done()
		s.client.Quit()
	}()
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	var all []*session
	for _, l := range p.idle {
		all = append(all, l...)
	}
	for _, s := range all {
		s.timer.Stop()
		if p.drop(s) {
			p.bye.Add(1)
			p.quit(s)
		}
	}
	p.mu.Unlock()
	p.bye.Wait()
}

// keep gives a session back after its transactions.
func (a *attempt) keep(s *session) {
	most := a.o.PerConn
	if n := s.client.Abilities().MaxMails; n > 0 {
		most = min(most, n) // RFC 9422 §4.1
	}
	if s.client.Sent() >= most {
		a.pool.mu.Lock()
		a.pool.bye.Add(1)
		a.pool.mu.Unlock()
		a.pool.quit(s)
		return
	}
	a.pool.keep(s)
}

// deadHosts remembers for a short time which addresses did not answer. They are tried last,
// never left out: the memory may be wrong, and a wrong guess must not cost mail.
type deadHosts struct {
	mu    sync.Mutex
	keep  time.Duration
	until map[string]time.Time
}

func (d *deadHosts) set(addr string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.until) > 10000 {
		clear(d.until)
	}
	d.until[addr] = time.Now().Add(d.keep)
}

func (d *deadHosts) unset(addr string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.until, addr)
}

func (d *deadHosts) is(addr string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	t, ok := d.until[addr]
	return ok && time.Now().Before(t)
}

// addrsLast puts dead addresses behind the others.
func (d *deadHosts) addrsLast(addrs []netip.Addr, port int) []netip.Addr {
	addrs = slices.Clone(addrs)
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int {
		return rank(d.is(join(a, port))) - rank(d.is(join(b, port)))
	})
	return addrs
}

// hostsLast puts hosts of which every address is dead behind the others.
func (d *deadHosts) hostsLast(hosts []resolve.Host, port int) {
	all := func(h resolve.Host) bool {
		return len(h.Addrs) > 0 && !slices.ContainsFunc(h.Addrs, func(a netip.Addr) bool { return !d.is(join(a, port)) })
	}
	slices.SortStableFunc(hosts, func(a, b resolve.Host) int { return rank(all(a)) - rank(all(b)) })
}

func join(a netip.Addr, port int) string {
	return netip.AddrPortFrom(a, uint16(port)).String()
}

func rank(last bool) int {
	if last {
		return 1
	}
	return 0
}
