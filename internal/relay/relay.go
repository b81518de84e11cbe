// Package relay hands messages to next hops by SMTP and LMTP. It hides the choice of hosts and
// addresses, TLS policy, authentication, connections kept for the next message, and the
// adaption of a message to what a peer can take. It decides nothing about retries: mqueue does.
package relay

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/resolve"
	"pennypost/internal/smtp"
	"pennypost/internal/worker"
)

// Resolver finds hosts; *resolve.Resolver is one.
type Resolver interface {
	NextHops(ctx context.Context, domain string) ([]resolve.Host, error)
	Addrs(ctx context.Context, host string) ([]netip.Addr, error)
}

// TLS policies of a next hop.
const (
	TLSMay      = "may"     // STARTTLS when offered, clear text when it fails
	TLSEncrypt  = "encrypt" // STARTTLS or nothing; any certificate
	TLSVerify   = "verify"  // STARTTLS with a certificate that is valid for the host
	TLSNone     = "none"    // never
	TLSImplicit = "tls"     // TLS from the first octet on, certificate verified
)

// Policy is what the configuration says about one next hop.
type Policy struct {
	Auth string // file with USER:PASSWORD in one line; "" for none
	TLS  string // a TLS policy; "" takes Options.TLS
}

// Options of a Relayer.
type Options struct {
	Resolver Resolver
	Helo     string            // our name in EHLO
	Port     int               // of MX hosts; 0 takes 25
	TLS      string            // policy of next hops that have none; "" takes may
	Hops     map[string]Policy // by next hop, written as requests write it
	CAFile   string            // PEM; trusted besides the system's roots
	Bind     netip.Addr        // local address of connections; the zero Addr leaves it to the kernel
	Timeouts smtp.ClientTimeouts
	Idle     time.Duration // how long a connection waits for its next message; 0: not at all
	PerConn  int           // messages on one connection; 0 takes 100
	DeadTime time.Duration // how long a host that did not answer is tried last; 0 takes 10s
}

// Relayer makes attempts. It may be used concurrently. Close ends the connections it keeps.
type Relayer struct {
	o     Options
	pool  pool
	dead  deadHosts
	roots rootCAs
	texts sync.Pool // *[]byte for small messages
}

// New returns a Relayer.
func New(o Options) *Relayer {
	if o.Port == 0 {
		o.Port = 25
	}
	if o.TLS == "" {
		o.TLS = TLSMay
	}
	if o.PerConn <= 0 {
		o.PerConn = 100
	}
	if o.DeadTime <= 0 {
		o.DeadTime = 10 * time.Second
	}
	if o.Timeouts == (smtp.ClientTimeouts{}) {
		o.Timeouts = smtp.DefaultTimeouts()
	}
	r := &Relayer{o: o}
	r.pool.idle = map[sessionKey][]*session{}
	r.pool.wait = o.Idle
	r.dead.until = map[string]time.Time{}
	r.dead.keep = o.DeadTime
	r.roots.path = o.CAFile
	return r
}

// Close says goodbye on the connections that are kept, and waits for it.
func (r *Relayer) Close() { r.pool.close() }

// Handle makes one attempt at one message. It is a worker.Handler.
func (r *Relayer) Handle(ctx context.Context, req *worker.Request, f *os.File) *worker.Report {
	a := &attempt{Relayer: r, req: req, start: time.Now(), results: make([]worker.Result, len(req.To))}
	for i := range req.To {
		a.results[i].To = req.To[i].Addr
	}
	a.run(ctx, f)
	ms := time.Since(a.start).Milliseconds()
	for i := range a.results {
		a.results[i].DelayMS = ms
	}
	return &worker.Report{Seq: req.Seq, ID: req.ID, Results: a.results}
}

// Plan is what Handle would do for a next hop.
type Plan struct {
	Policy
	Hosts []resolve.Host // in the order they are tried
	Port  int
	LMTP  bool
}

// Plan looks a next hop up without connecting to it.
func (r *Relayer) Plan(ctx context.Context, nextHop string) (Plan, error) {
	h, err := parseHop(nextHop, r.o.Port)
	if err != nil {
		return Plan{}, err
	}
	req := &worker.Request{NextHop: nextHop}
	policy, _ := r.policyOf(req) // a request without credentials is always known
	a := &attempt{Relayer: r, req: req, hop: h, policy: policy}
	hosts, err := a.hosts(ctx)
	return Plan{Policy: policy, Hosts: hosts, Port: h.port, LMTP: h.lmtp}, err
}

// attempt is one call of Handle.
type attempt struct {
	*Relayer
	req     *worker.Request
	text    *text
	hop     hop
	policy  Policy
	start   time.Time
	results []worker.Result
	left    []int    // recipients without a settled result, by index
	tried   []string // hosts with the reason each failed
	opened  int      // connections made
	noTLS   bool     // this host's TLS failed and its policy allows clear text
}

func (a *attempt) run(ctx context.Context, f *os.File) {
	for i := range a.results {
		a.left = append(a.left, i)
	}
	var err error
	if a.hop, err = parseHop(a.req.NextHop, a.o.Port); err != nil {
		a.settle(envelope.Defer("4.3.5", err.Error()), nil)
		return
	}
	var ok bool
	if a.policy, ok = a.policyOf(a.req); !ok {
		a.settle(envelope.Defer("4.3.5", "mrelay knows no credentials named "+a.req.Auth), nil)
		return
	}
	if a.text, err = a.newText(f, a.req); err != nil {
		a.settle(envelope.Defer("4.3.0", "cannot read the message: "+err.Error()), nil)
		return
	}
	defer a.text.release(a.Relayer)
	hosts, err := a.hosts(ctx)
	if err != nil {
		a.settle(statusOf(err), nil)
		return
	}
	a.dead.hostsLast(hosts, a.hop.port)
	for i := range hosts {
		a.noTLS = false
		a.host(ctx, &hosts[i])
		if len(a.left) == 0 {
			break
		}
	}
	for i := range a.results {
		if res := &a.results[i]; res.Verdict != envelope.Relayed || len(a.tried) > 1 {
			res.MX = a.tried
		}
	}
}

// policyOf is the configuration for a request's next hop. A request may name credentials only
// among those configured here: mrelay reads no file because a request says so. The TLS mode of
// its route comes with it: two routes may lead to one next hop.
func (r *Relayer) policyOf(req *worker.Request) (Policy, bool) {
	p := r.o.Hops[req.NextHop]
	switch req.TLSMode {
	case TLSMay, TLSEncrypt, TLSVerify, TLSNone, TLSImplicit:
		p.TLS = req.TLSMode
	}
	if p.TLS == "" {
		p.TLS = r.o.TLS
	}
	if req.Auth == "" || req.Auth == p.Auth {
		return p, true
	}
	for _, q := range r.o.Hops {
		if q.Auth == req.Auth {
			p.Auth = req.Auth
			return p, true
		}
	}
	return p, false
}

// settle gives all recipients that are left one status.
func (a *attempt) settle(st envelope.Status, s *session) {
	for _, i := range a.left {
		a.results[i].Status = st
		a.mark(i, s)
	}
	a.left = a.left[:0]
}

// note keeps st as the best known for the recipients left: another host may still do better.
func (a *attempt) note(st envelope.Status, s *session, script []string) {
	for _, i := range a.left {
		if better(a.results[i].Status, st) {
			a.results[i].Status = st
			a.mark(i, s)
			a.results[i].Transcript = script
		}
	}
}

// better tells whether now says more than old about a recipient that no host took. A host that
// may take it later outweighs one that never will; a peer's words outweigh our own.
func better(old, now envelope.Status) bool {
	switch {
	case old.Verdict == "":
		return true
	case old.Verdict != now.Verdict:
		return now.Verdict == envelope.Deferred
	}
	return now.Remote || !old.Remote
}

// mark notes the session that gave a result.
func (a *attempt) mark(i int, s *session) {
	if s == nil {
		return
	}
	res := &a.results[i]
	res.Relay, res.TLS = s.relay, s.tls
}

// host tries one host until it has an answer for everyone, or is of no use.
func (a *attempt) host(ctx context.Context, h *resolve.Host) {
	if h.Err != nil && len(h.Addrs) == 0 && a.hop.socket == "" {
		a.tried = append(a.tried, h.Name+": "+statusOf(h.Err).Reply)
		a.note(statusOf(h.Err), nil, nil)
		return
	}
	addrs := a.dead.addrsLast(h.Addrs, a.hop.port)
	for len(a.left) > 0 {
		s, fails := a.session(ctx, h, addrs)
		for _, f := range fails {
			a.tried = append(a.tried, f.relay+": "+f.status.Reply)
			f.status.Relay = f.relay
			a.note(f.status, nil, f.script)
			addrs = without(addrs, f.addr)
		}
		if s == nil {
			return
		}
		if again := a.deliver(ctx, s); again {
			continue // a kept connection had gone stale: that says nothing about the host
		}
		return
	}
}

// deliver runs transactions on s until it has taken or refused everybody it can, and keeps or
// closes it. It returns true when nothing happened because the kept connection had ended.
func (a *attempt) deliver(ctx context.Context, s *session) (stale bool) {
	for {
		before := len(a.left)
		out, err := a.transact(ctx, s)
		if err != nil && s.reused && allOther(out) {
			s.client.Close()
			return true
		}
		more, refused := a.apply(s, out)
		if err != nil || !s.client.Usable() {
			s.client.Close()
			a.tried = append(a.tried, s.relay+sep(refused))
			return false
		}
		if more == 0 || more == before {
			a.tried = append(a.tried, s.relay+sep(refused))
			a.keep(s)
			return false
		}
		s.reused = false // from here on a break is no sign of age
	}
}

func sep(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

// transact sends the message to the recipients that are left.
func (a *attempt) transact(ctx context.Context, s *session) ([]smtp.Outcome, error) {
	t := a.text.transaction(a.req, s.client.Abilities())
	if a.req.By != nil {
		t.Left = time.Until(a.req.By.Deadline)
	}
	// RFC 8689 §5: a report about such a message asks for the same where it can have it.
	t.RequireTLS = t.RequireTLS || a.req.TLS && s.client.Abilities().RequireTLS && strings.HasSuffix(s.tls, " verified")
	for _, i := range a.left {
		to := a.req.To[i]
		if !s.client.Abilities().UTF8 {
			to.Addr = asciiDomain(to.Addr)
		}
		t.To = append(t.To, to)
	}
	return s.client.Send(ctx, t)
}

// apply takes over the outcomes for the recipients left. more counts those for another
// transaction on this connection; refused is what was wrong with this host, if anything.
func (a *attempt) apply(s *session, out []smtp.Outcome) (more int, refused string) {
	var left []int
	var script []string
	for k, i := range a.left {
		o := &out[k]
		res := &a.results[i]
		o.Status.Relay = s.relay
		if o.Verdict != envelope.Relayed && script == nil {
			script = s.client.Transcript()
		}
		if refused == "" && (o.Again == smtp.OtherHost || o.Verdict == envelope.Deferred && !o.Remote) {
			refused = o.Reply
		}
		if o.Again != smtp.OtherHost || better(res.Status, o.Status) {
			res.Status, res.DSN, res.Transcript = o.Status, o.DSN && o.Verdict == envelope.Relayed, nil
			res.By = a.req.By != nil && o.Verdict == envelope.Relayed && s.client.Abilities().DeliverBy
			a.mark(i, s)
			if o.Verdict != envelope.Relayed {
				res.Transcript = script
			}
		}
		switch o.Again {
		case smtp.SameHost:
			more++
			left = append(left, i)
		case smtp.OtherHost:
			left = append(left, i)
		}
	}
	if more > 0 { // those for another host wait until this one has done its part
		more = len(left)
	}
	a.left = left
	return more, refused
}

func allOther(out []smtp.Outcome) bool {
	for i := range out {
		if out[i].Again != smtp.OtherHost {
			return false
		}
	}
	return true
}

func without(addrs []netip.Addr, a netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(addrs))
	for _, b := range addrs {
		if a != b {
			out = append(out, b)
		}
	}
	return out
}

// asciiDomain writes a domain in A-labels where that makes the whole address ASCII.
func asciiDomain(addr string) string {
	i := strings.LastIndexByte(addr, '@')
	if i < 0 {
		return addr
	}
	d, err := resolve.ToASCII(addr[i+1:])
	if err != nil || strings.HasPrefix(addr[i+1:], "[") {
		return addr
	}
	for k := i + 1; k < len(addr); k++ {
		if addr[k] >= 0x80 {
			return addr[:i+1] + d
		}
	}
	return addr
}
