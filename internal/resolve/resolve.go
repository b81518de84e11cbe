// Package resolve finds the hosts that take mail for a domain (RFC 5321 §5.1): MX records in
// order of preference, implicit and null MX, IPv6 and IPv4 addresses, loops back to ourselves. It
// hides the DNS library, the choice among servers, TCP fallback and a cache for long-lived
// workers. It knows no SMTP.
package resolve

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"pennypost/internal/envelope"
)

// Options of a Resolver. Without Servers and ResolvConf there is nobody to ask, and look-ups
// that the hosts file does not answer are deferred.
type Options struct {
	Servers    []string            // host:port, or a host for port 53; asked in order
	ResolvConf string              // file in resolv.conf(5) form that names servers when Servers is empty
	Hosts      string              // file in hosts(5) form, asked before DNS; "" for none
	Timeout    time.Duration       // of one query to one server; 0 takes 5s
	Rounds     int                 // how often each server is asked; 0 takes 2
	TrustAD    bool                // believe the AD flag of servers that are not on loopback
	IPv6       string              // "prefer" (also ""), "avoid", "never"
	Self       []string            // our own host names: an MX of that name is ourselves
	SelfAddrs  func() []netip.Addr // our own addresses, likewise; asked when MX records are there
	Now        func() time.Time
}

// Resolver looks names up and remembers the answers as long as their TTL says. It may be used
// concurrently.
type Resolver struct {
	o     Options
	mu    sync.Mutex
	cache map[question]*entry
	conf  watched[[]string]
	hosts watched[map[string][]netip.Addr]
}

// New returns a resolver. It opens and asks nothing yet.
func New(o Options) *Resolver {
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Rounds <= 0 {
		o.Rounds = 2
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	servers := make([]string, len(o.Servers))
	for i, s := range o.Servers {
		if _, _, err := net.SplitHostPort(s); err != nil {
			s = net.JoinHostPort(strings.Trim(s, "[]"), "53")
		}
		servers[i] = s
	}
	o.Servers = servers
	return &Resolver{
		o: o, cache: map[question]*entry{},
		conf:  watched[[]string]{path: o.ResolvConf, parse: parseResolvConf},
		hosts: watched[map[string][]netip.Addr]{path: o.Hosts, parse: parseHosts},
	}
}

// Host is one host that may take mail for a domain.
type Host struct {
	Name     string // as DNS has it, without a trailing dot; for an address literal the literal
	Pref     int
	Implicit bool // the domain itself, having no MX
	Addrs    []netip.Addr
	Err      error // why Addrs is empty; an *Error
	AD       bool  // the MX records and the addresses are DNSSEC-validated
}

// Error is a look-up without a usable answer. Its Status is what it means for a recipient.
type Error struct {
	Domain string
	Status envelope.Status
	Err    error // cause, where there is more to say
}

func (e *Error) Error() string {
	s := e.Domain + ": " + e.Status.Reply
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func failed(domain, code, text string) *Error {
	return &Error{Domain: domain, Status: envelope.Fail(code, domain+": "+text)}
}

func deferred(domain, code, text string, err error) *Error {
	if err != nil {
		text += ": " + err.Error()
	}
	return &Error{Domain: domain, Status: envelope.Defer(code, domain+": "+text), Err: err}
}

// Bounds that keep a hostile zone from costing much.
const (
	maxMX    = 32
	maxAddrs = 16
	maxCNAME = 8
)

// ToASCII returns the A-label form of a domain, in lower case and without a trailing dot.
func ToASCII(domain string) (string, error) {
	d := envelope.FoldDomain(domain)
	plain := true
	for i := 0; i < len(d) && plain; i++ {
		plain = d[i] < 0x80
	}
	if !plain {
		if !utf8.ValidString(d) {
			return "", fmt.Errorf("%w: domain %q is not UTF-8", envelope.ErrAddress, domain)
		}
		var err error
		if d, err = idna.Lookup.ToASCII(strings.TrimSuffix(domain, ".")); err != nil {
			return "", fmt.Errorf("%w: %w", envelope.ErrAddress, err)
		}
	}
	return d, envelope.CheckDomain(d)
}

// NextHops returns the hosts that take mail for domain, best first, equal preferences in
// random order. domain is a name or an address literal with its brackets. At least one of the
// hosts has addresses; else the error is an *Error.
func (r *Resolver) NextHops(ctx context.Context, domain string) ([]Host, error) {
	if ip, ok := envelope.ParseLiteral(domain); ok {
		return []Host{{Name: domain, Implicit: true, Addrs: []netip.Addr{ip}}}, nil
	}
	name, err := ToASCII(domain)
	if err != nil {
		return nil, &Error{Domain: domain, Status: envelope.Fail("5.1.2", err.Error()), Err: err}
	}
	if addrs, err := r.inHosts(name); err != nil {
		return nil, deferred(name, "4.3.0", "hosts file", err)
	} else if len(addrs) > 0 {
		return []Host{{Name: name, Implicit: true, Addrs: r.order(addrs)}}, nil
	}
	hosts, err := r.mx(ctx, name)
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	for i := range hosts {
		wg.Go(func() {
			h := &hosts[i]
			ad := false
			h.Addrs, ad, h.Err = r.addrs(ctx, h.Name)
			h.AD = h.AD && ad
		})
	}
	wg.Wait()
	if hosts, err = r.dropSelf(name, hosts); err != nil {
		return nil, err
	}
	return hosts, usable(name, hosts)
}

// mx returns the hosts of a domain's MX records in the order to try them, without addresses.
func (r *Resolver) mx(ctx context.Context, name string) ([]Host, error) {
	a, err := r.ask(ctx, name, typeMX)
	switch {
	case err != nil:
		return nil, deferred(name, "4.4.3", "no answer from DNS about MX records", err)
	case a.missing:
		return nil, failed(name, "5.1.2", "no such domain")
	case len(a.mx) == 0: // RFC 5321 §5.1: the domain stands for an MX of itself
		return []Host{{Name: name, Implicit: true, AD: a.ad}}, nil
	}
	if len(a.mx) == 1 && a.mx[0].host == "" { // RFC 7505 §3
		return nil, failed(name, "5.1.10", "the domain accepts no mail (null MX)")
	}
	var hosts []Host
	for _, m := range a.mx[:min(len(a.mx), maxMX)] {
		if m.host != "" { // a null MX among others means nothing (RFC 7505 §3)
			hosts = append(hosts, Host{Name: m.host, Pref: m.pref, AD: a.ad})
		}
	}
	rand.Shuffle(len(hosts), func(i, k int) { hosts[i], hosts[k] = hosts[k], hosts[i] })
	slices.SortStableFunc(hosts, func(a, b Host) int { return a.Pref - b.Pref })
	return hosts, nil
}

// Addrs returns the addresses of a host in the order to try them. host may be an address, with
// or without brackets. The error is an *Error.
func (r *Resolver) Addrs(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, ok := envelope.ParseLiteral(host); ok {
		return []netip.Addr{ip}, nil
	}
	if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return []netip.Addr{ip}, nil
	}
	name, err := ToASCII(host)
	if err != nil {
		return nil, &Error{Domain: host, Status: envelope.Fail("5.1.2", err.Error()), Err: err}
	}
	addrs, _, err := r.addrs(ctx, name)
	return addrs, err
}

// addrs asks for A and AAAA at the same time.
func (r *Resolver) addrs(ctx context.Context, name string) ([]netip.Addr, bool, error) {
	if known, err := r.inHosts(name); err != nil {
		return nil, false, deferred(name, "4.3.0", "hosts file", err)
	} else if len(known) > 0 {
		return r.order(known), false, nil
	}
	// RFC 6761 §6.3: resolvers answer localhost themselves; not all DNS servers know it.
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return r.order([]netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}), false, nil
	}
	var four, six *answer
	var err4, err6 error
	var wg sync.WaitGroup
	if r.o.IPv6 != "never" {
		wg.Go(func() { six, err6 = r.ask(ctx, name, typeAAAA) })
	}
	four, err4 = r.ask(ctx, name, typeA)
	wg.Wait()
	var all []netip.Addr
	ad := true
	for _, a := range []*answer{four, six} {
		if a != nil {
			all = append(all, a.addrs...)
			ad = ad && a.ad
		}
	}
	if len(all) > 0 {
		return r.order(all), ad, nil
	}
	for _, err := range []error{err4, err6} {
		if err != nil {
			return nil, false, deferred(name, "4.4.3", "no answer from DNS about addresses", err)
		}
	}
	if four.missing {
		return nil, false, failed(name, "5.4.4", "no such host")
	}
	return nil, false, failed(name, "5.4.4", "the host has no address")
}

// order mixes the families, so that one that does not work costs one attempt and not all.
func (r *Resolver) order(addrs []netip.Addr) []netip.Addr {
	var first, second []netip.Addr
	for _, a := range addrs {
		a = a.Unmap()
		six := a.Is6()
		if six && r.o.IPv6 == "never" {
			continue
		}
		if six == (r.o.IPv6 != "avoid") {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	rand.Shuffle(len(first), func(i, k int) { first[i], first[k] = first[k], first[i] })
	rand.Shuffle(len(second), func(i, k int) { second[i], second[k] = second[k], second[i] })
	out := make([]netip.Addr, 0, len(addrs))
	for i := 0; i < max(len(first), len(second)); i++ {
		if i < len(first) {
			out = append(out, first[i])
		}
		if i < len(second) {
			out = append(out, second[i])
		}
	}
	return out[:min(len(out), maxAddrs)]
}

// dropSelf removes ourselves and whatever is not better than ourselves: handing mail to a host
// of the same or a worse preference would make it come back (RFC 5321 §5.1).
func (r *Resolver) dropSelf(domain string, hosts []Host) ([]Host, error) {
	var own []netip.Addr
	if r.o.SelfAddrs != nil {
		own = r.o.SelfAddrs()
	}
	for i, h := range hosts {
		if !r.isSelf(h, own) {
			continue
		}
		n := i
		for n > 0 && hosts[n-1].Pref == h.Pref {
			n--
		}
		if n == 0 {
			return nil, failed(domain, "5.4.6", "mail for it would come back to this host ("+h.Name+" is the best MX)")
		}
		return hosts[:n], nil
	}
	return hosts, nil
}

func (r *Resolver) isSelf(h Host, own []netip.Addr) bool {
	for _, n := range r.o.Self {
		if strings.EqualFold(envelope.FoldDomain(n), h.Name) {
			return true
		}
	}
	for _, a := range h.Addrs {
		if slices.Contains(own, a) {
			return true
		}
	}
	return false
}

// usable tells why none of the hosts has an address. One look-up that may succeed later makes
// it a deferral.
func usable(domain string, hosts []Host) error {
	var worst *Error
	for _, h := range hosts {
		if len(h.Addrs) > 0 {
			return nil
		}
		if e, ok := h.Err.(*Error); ok && (worst == nil || e.Status.Verdict == envelope.Deferred) {
			worst = e
		}
	}
	if worst == nil {
		return failed(domain, "5.4.4", "no host with an address that may be used")
	}
	if worst.Status.Verdict == envelope.Deferred || len(hosts) == 1 && hosts[0].Implicit {
		return worst
	}
	// RFC 5321 §5.1: MX records of which none is usable are an error to be reported.
	return failed(domain, "5.4.4", fmt.Sprintf("none of its %d MX hosts has an address", len(hosts)))
}
