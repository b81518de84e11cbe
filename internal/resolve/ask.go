package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	typeA    = dns.TypeA
	typeAAAA = dns.TypeAAAA
	typeMX   = dns.TypeMX
	typePTR  = dns.TypePTR
)

// question is a cache key; the name is in lower case without a trailing dot.
type question struct {
	name string
	typ  uint16
}

// answer is what a look-up found. It is shared and never changed after it is made.
type answer struct {
	addrs   []netip.Addr
	mx      []mxRecord
	names   []string // of PTR records
	missing bool     // NXDOMAIN
	ad      bool
	ttl     time.Duration
}

type mxRecord struct {
	host string // "" for the root, which is the null MX
	pref int
}

// entry is an answer in the cache, or a look-up under way that others wait for.
type entry struct {
	done    chan struct{}
	answer  *answer
	err     error
	expires time.Time
}

// Bounds of the cache. A negative answer is kept for a short time whatever its SOA says: the
// usual cause of a retry is that somebody has just mended the zone.
const (
	minTTL      = time.Second
	maxTTL      = time.Hour
	negativeTTL = time.Minute
	maxEntries  = 20000
)

// ask answers from the cache or from DNS. Equal questions at the same time are asked once.
func (r *Resolver) ask(ctx context.Context, name string, typ uint16) (*answer, error) {
	q := question{name, typ}
	for {
		r.mu.Lock()
		e := r.cache[q]
		if e == nil || e.finished() && (e.err != nil || !r.o.Now().Before(e.expires)) {
			e = &entry{done: make(chan struct{})}
			r.makeRoom()
			r.cache[q] = e
			r.mu.Unlock()
			r.fill(ctx, q, e)
			return e.answer, e.err
		}
		r.mu.Unlock()
		select {
		case <-e.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		// Whoever asked may have been broken off; that is no answer to our question.
		if e.err == nil || !errors.Is(e.err, context.Canceled) && !errors.Is(e.err, context.DeadlineExceeded) {
			return e.answer, e.err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

func (e *entry) finished() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

func (r *Resolver) fill(ctx context.Context, q question, e *entry) {
	e.answer, e.err = r.lookup(ctx, q)
	if e.err == nil {
		e.expires = r.o.Now().Add(e.answer.ttl)
	}
	close(e.done)
	if e.err != nil {
		r.mu.Lock()
		if r.cache[q] == e {
			delete(r.cache, q)
		}
		r.mu.Unlock()
	}
}

// makeRoom keeps the cache bounded: expired entries go first, then any. r.mu is held.
func (r *Resolver) makeRoom() {
	if len(r.cache) < maxEntries {
		return
	}
	now := r.o.Now()
	for q, e := range r.cache {
		if e.finished() && now.After(e.expires) {
			delete(r.cache, q)
		}
	}
	for q := range r.cache {
		if len(r.cache) < maxEntries*9/10 {
			return
		}
		delete(r.cache, q) // whoever waits for it holds the entry itself
	}
}

// lookup asks DNS and follows CNAMEs, over further questions where an answer holds only part
// of the chain.
func (r *Resolver) lookup(ctx context.Context, q question) (*answer, error) {
	a := &answer{ad: true, ttl: maxTTL}
	name := q.name
	for range maxCNAME {
		m, trusted, err := r.exchange(ctx, name, q.typ)
		if err != nil {
			return nil, err
		}
		a.ad = a.ad && trusted && m.AuthenticatedData
		next, err := a.collect(m, name, q.typ)
		if err != nil {
			return nil, err
		}
		if len(a.addrs) > 0 || len(a.mx) > 0 || len(a.names) > 0 {
			a.ttl = max(a.ttl, minTTL)
			return a, nil
		}
		if m.Rcode == dns.RcodeNameError || next == name {
			a.missing = m.Rcode == dns.RcodeNameError
			a.ttl = max(min(a.ttl, negativeTTL), minTTL)
			return a, nil
		}
		name = next
	}
	return nil, errChain
}

var errChain = fmt.Errorf("more than %d CNAMEs, or a loop of them", maxCNAME)

// collect takes the records that answer for name, and returns where its CNAMEs lead.
func (a *answer) collect(m *dns.Msg, name string, typ uint16) (string, error) {
	for n := 0; ; n++ {
		if n > maxCNAME {
			return "", errChain
		}
		alias := ""
		for _, rr := range m.Answer {
			h := rr.Header()
			if !strings.EqualFold(strings.TrimSuffix(h.Name, "."), name) {
				continue
			}
			switch v := rr.(type) {
			case *dns.CNAME:
				alias = lower(v.Target)
			case *dns.MX:
				if typ == typeMX {
					a.mx = append(a.mx, mxRecord{lower(v.Mx), int(v.Preference)})
				}
			case *dns.PTR:
				if typ == typePTR {
					a.names = append(a.names, lower(v.Ptr))
				}
			case *dns.A:
				if ip, ok := netip.AddrFromSlice(v.A); ok && typ == typeA {
					a.addrs = append(a.addrs, ip.Unmap())
				}
			case *dns.AAAA:
				if ip, ok := netip.AddrFromSlice(v.AAAA); ok && typ == typeAAAA {
					a.addrs = append(a.addrs, ip)
				}
			}
			a.ttl = min(a.ttl, time.Duration(h.Ttl)*time.Second)
		}
		if len(a.mx) > 0 || len(a.addrs) > 0 || len(a.names) > 0 || alias == "" || alias == name {
			break
		}
		name = alias
	}
	for _, rr := range m.Ns { // RFC 2308 §5
		if soa, ok := rr.(*dns.SOA); ok {
			a.ttl = min(a.ttl, time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second)
		}
	}
	return name, nil
}

func lower(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// exchange asks the servers in turn until one gives an answer: yes, no, or no such name.
func (r *Resolver) exchange(ctx context.Context, name string, typ uint16) (m *dns.Msg, trusted bool, err error) {
	servers, err := r.servers()
	if err != nil {
		return nil, false, err
	}
	for range r.o.Rounds {
		for _, s := range servers {
			var got *dns.Msg
			if got, err = r.one(ctx, s, name, typ); err == nil {
				return got, r.o.TrustAD || loopback(s), nil
			}
			if ctx.Err() != nil {
				return nil, false, ctx.Err()
			}
		}
	}
	return nil, false, err
}

// one asks one server: by UDP with EDNS, without EDNS if that was not understood, by TCP if the
// answer was cut.
func (r *Resolver) one(ctx context.Context, server, name string, typ uint16) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), typ)
	// RFC 6840 §5.7: AD in a query asks for AD in the answer, without the signatures.
	q.AuthenticatedData = true
	q.SetEdns0(1232, false)
	m, err := r.send(ctx, "udp", server, q)
	if err == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		q.Extra = nil
		m, err = r.send(ctx, "udp", server, q)
	}
	if err == nil && m.Truncated {
		m, err = r.send(ctx, "tcp", server, q)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", server, err)
	}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("%s: %s", server, dns.RcodeToString[m.Rcode])
	}
	return m, nil
}

func (r *Resolver) send(ctx context.Context, network, server string, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.o.Timeout)
	defer cancel()
	c := &dns.Client{Net: network, UDPSize: 1232, Timeout: r.o.Timeout}
	m, _, err := c.ExchangeContext(ctx, q, server)
	if err != nil {
		return nil, tidyError(err)
	}
	// The library compares ids only; an answer to something else would poison the cache.
	if len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, q.Question[0].Name) || m.Question[0].Qtype != q.Question[0].Qtype {
		return nil, errors.New("answer to another question")
	}
	return m, nil
}

// tidyError drops our own port from network errors: it makes equal causes look different.
func tidyError(err error) error {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return errors.New("no answer in time")
	}
	var oe *net.OpError
	if errors.As(err, &oe) {
		return oe.Err
	}
	return err
}

func loopback(server string) bool {
	ap, err := netip.ParseAddrPort(server)
	return err == nil && ap.Addr().IsLoopback()
}
