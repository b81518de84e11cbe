// Package policy judges clients of the mail port: how many connections they make, what DNS says
// about their addresses and names, whether they can wait and come back. Every check gives an
// action and a sentence that says why, so that a log and a dry run explain each decision. It
// hides how the answers are found and where they are remembered; it knows no protocol syntax.
package policy

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"pennypost/internal/envelope"
)

// Action is what a check wants done.
type Action int

// The actions, mildest first.
const (
	Pass   Action = iota // go on
	Note                 // go on, and say so in the log
	Defer                // refuse for now
	Reject               // refuse for good
)

// String is the action's name in logs.
func (a Action) String() string { return [...]string{"pass", "note", "defer", "reject"}[a] }

// Verdict is the result of one check.
type Verdict struct {
	Check  string // its name in mpolicy(5)
	Action Action
	Why    string // one sentence, for the log: it may name what strangers need not know
	Err    error  // a fault on our side, where that is the cause

	// The answer to the client, with Defer and Reject.
	Code  int
	DSN   string // enhanced code
	Reply string
	Close bool // nothing more is heard from this client
}

// Refuses tells whether the verdict ends what was asked for.
func (v Verdict) Refuses() bool { return v.Action >= Defer }

func pass(check, why string, args ...any) Verdict {
	return Verdict{Check: check, Why: fmt.Sprintf(why, args...)}
}

// DNS answers what the checks ask; *resolve.Resolver does.
type DNS interface {
	Reverse(ctx context.Context, ip netip.Addr) ([]string, error)
	Addrs(ctx context.Context, host string) ([]netip.Addr, error)
	A(ctx context.Context, name string) ([]netip.Addr, error)
}

// Zone is one list of addresses in DNS.
type Zone struct {
	Name    string
	Weight  int            // below 0 for good addresses
	Answers []netip.Prefix // what counts; empty: all of 127.0.0.0/8
}

// Options say what is checked. A zero value asks nothing.
type Options struct {
	Hostname string         // our own
	Trusted  []netip.Prefix // asked nothing
	DNS      DNS            // needed by ReverseDNS and Zones
	State    string         // directory of the state files
	DryRun   bool           // judge by what is remembered, remember nothing

	HeloOwn, HeloAddress, HeloUnqualified bool
	ReverseDNS                            string // "", "off", "exists" or "confirmed"

	Zones       []Zone
	Score       int           // default 1
	DNSTimeout  time.Duration // default 5s
	GreetDelay  time.Duration
	EarlyAction Action // Reject, or Note

	ClientRate, NetworkRate         int // connections a minute
	ClientSessions, NetworkSessions int // at once
	UserRecipients                  int // an hour

	Greylist string // "", "off", "domain" or "full"
	Grey     GreyTimes

	Tarpit       time.Duration // before an unknown recipient is answered
	UnknownLimit int           // unknown recipients of one session
	Quota        bool
	RelayFile    string // recipients of the domains we are backup MX for

	Now func() time.Time
	Log *slog.Logger
}

// Policy holds what all sessions share. It may be used concurrently.
type Policy struct {
	o      Options
	rates  *table
	grey   *table
	relay  recipientFile
	checks []check

	mu     sync.Mutex
	mine   map[uint64]uint32    // sessions of this process by key
	failed map[string]time.Time // state files that could not be used, when that was logged
}

// check is one question asked at a recipient.
type check struct {
	name  string
	judge func(*Visit, context.Context, Mail) Verdict
	// Postmaster must hear even from clients that others refuse (RFC 5321 §4.5.1).
	postmaster bool
}

// Sizes of the state files, in buckets of 128 records: 1 MiB and 4 MiB when full.
const (
	rateBuckets = 256
	greyBuckets = 1024
)

// New prepares the checks. No file is opened before it is needed.
func New(o Options) *Policy {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.DNSTimeout <= 0 {
		o.DNSTimeout = 5 * time.Second
	}
	o.Score = max(o.Score, 1)
	o.Grey = o.Grey.complete()
	p := &Policy{
		o:      o,
		rates:  &table{path: filepath.Join(o.State, "rates"), buckets: rateBuckets, dry: o.DryRun},
		grey:   &table{path: filepath.Join(o.State, "greylist"), buckets: greyBuckets, dry: o.DryRun},
		relay:  recipientFile{path: o.RelayFile},
		mine:   map[uint64]uint32{},
		failed: map[string]time.Time{},
	}
	add := func(on bool, c check) {
		if on {
			p.checks = append(p.checks, c)
		}
	}
	add(o.HeloOwn || o.HeloAddress || o.HeloUnqualified, check{name: "helo", judge: (*Visit).helo})
	add(p.asksReverse(), check{name: "reverse-dns", judge: (*Visit).reverseDNS})
	add(len(o.Zones) > 0, check{name: "dnsbl", judge: (*Visit).dnsbl})
	// Last: a client that is refused anyhow leaves no trace in the greylist.
	add(p.greylists(), check{name: "greylist", judge: (*Visit).greylist})
	return p
}

func (p *Policy) asksReverse() bool {
	return p.o.ReverseDNS == "exists" || p.o.ReverseDNS == "confirmed"
}

func (p *Policy) greylists() bool { return p.o.Greylist == "domain" || p.o.Greylist == "full" }

// Asks tells whether anything is asked of clients; if not, nobody needs a Visit.
func (p *Policy) Asks() bool {
	o := &p.o
	return len(p.checks) > 0 || o.GreetDelay > 0 || o.ClientRate > 0 || o.NetworkRate > 0 || o.ClientSessions > 0 ||
		o.NetworkSessions > 0 || o.Tarpit > 0 || o.UnknownLimit > 0 || o.RelayFile != ""
}

// Tarpit is how long the answer to the nth unknown recipient of a session is held back.
func (p *Policy) Tarpit() time.Duration { return p.o.Tarpit }

// Unknown judges the nth unknown recipient of a session.
func (p *Policy) Unknown(n int) Verdict {
	if p.o.UnknownLimit <= 0 || n < p.o.UnknownLimit {
		return pass("unknown-limit", "unknown recipient %d of this session", n)
	}
	return Verdict{
		Check: "unknown-limit", Action: Defer, Why: fmt.Sprintf("%d unknown recipients in one session", n),
		Code: 421, DSN: "4.7.0", Reply: "too many unknown recipients", Close: true,
	}
}

// Client is who connects.
type Client struct {
	Addr  netip.Addr // invalid where it is not known
	Local netip.Addr // our end
}

// Mail is what the client has said when a recipient is judged.
type Mail struct {
	Helo string
	From envelope.Address
	To   envelope.Address
}

// Visit is one connection. Its methods are called one at a time; Close ends it.
type Visit struct {
	p       *Policy
	client  Client
	observe func(Verdict) // nil, or told of every verdict
	exempt  string        // why nothing is asked; "" when it is
	held    []uint64      // sessions counted in the state file
	lists   *lists
	reverse *reverse
	cancel  context.CancelFunc
	grey    *Verdict // of this transaction
}

// Visit begins the judgement of a connection: look-ups in DNS start now, so that their answers
// are there when the first recipient is named. observe, which may be nil, is told of every
// verdict in the order they are made.
func (p *Policy) Visit(ctx context.Context, c Client, observe func(Verdict)) *Visit {
	c.Addr, c.Local = c.Addr.Unmap().WithZone(""), c.Local.Unmap().WithZone("")
	v := &Visit{p: p, client: c, observe: observe, cancel: func() {}}
	switch {
	case !c.Addr.IsValid():
		v.exempt = "the client has no address"
	case p.trusted(c.Addr):
		v.exempt = c.Addr.String() + " is trusted"
	}
	if v.exempt != "" {
		return v
	}
	if len(p.o.Zones) > 0 || p.asksReverse() {
		// The connection's context may end with a command; the answers serve all of them.
		ctx, v.cancel = context.WithTimeout(context.WithoutCancel(ctx), p.o.DNSTimeout)
		if len(p.o.Zones) > 0 {
			v.lists = p.askLists(ctx, c.Addr)
		}
		if p.asksReverse() {
			v.reverse = p.askReverse(ctx, c.Addr)
		}
	}
	return v
}

func (p *Policy) trusted(ip netip.Addr) bool {
	for _, n := range p.o.Trusted {
		if n.Contains(ip) {
			return true
		}
	}
	return false
}

// Client is whose visit it is.
func (v *Visit) Client() Client { return v.client }

// Name is the client's name in DNS, where it was looked up and leads back to the address; "" otherwise.
// It waits for that look-up.
func (v *Visit) Name(ctx context.Context) string {
	if v.reverse == nil || !wait(ctx, v.reverse.done) {
		return ""
	}
	return v.reverse.good
}

// Exempt says why the client is asked nothing, "" when it is.
func (v *Visit) Exempt() string { return v.exempt }

func (v *Visit) tell(r Verdict) Verdict {
	if v.observe != nil {
		v.observe(r)
	}
	return r
}

// Connect judges the connection itself, before the greeting. A refusal closes it.
func (v *Visit) Connect() Verdict {
	if v.exempt != "" {
		return v.tell(pass("exempt", "nothing is asked: %s", v.exempt))
	}
	return v.rate()
}

// GreetDelay is how long this client waits for the greeting.
func (v *Visit) GreetDelay() time.Duration {
	if v.exempt != "" {
		return 0
	}
	return v.p.o.GreetDelay
}

// EarlyTalker judges a client that did not wait for the greeting (RFC 5321 §3.1: it must).
func (v *Visit) EarlyTalker() Verdict {
	return v.tell(Verdict{
		Check: "early-talker", Action: v.p.o.EarlyAction, Why: "the client spoke before the greeting",
		Code: 554, DSN: "5.5.1", Reply: "wait for the greeting", Close: true,
	})
}

// Recipient judges one recipient whose address is good. The first refusal decides; a dry run
// asks every check all the same, since it is there to explain.
func (v *Visit) Recipient(ctx context.Context, m Mail) Verdict {
	if v.exempt != "" {
		return v.tell(pass("exempt", "nothing is asked: %s", v.exempt))
	}
	decided := pass("none", "no check has anything against it")
	postmaster := strings.EqualFold(m.To.Local, "postmaster")
	for _, c := range v.p.checks {
		if postmaster && !c.postmaster {
			v.tell(pass(c.name, "postmaster hears everybody"))
			continue
		}
		r := v.tell(c.judge(v, ctx, m))
		if r.Action > Pass && !decided.Refuses() {
			decided = r
		}
		if decided.Refuses() && !v.p.o.DryRun {
			return decided
		}
	}
	return decided
}

// Reset ends a transaction.
func (v *Visit) Reset() { v.grey = nil }

// Close ends the visit.
func (v *Visit) Close() {
	v.cancel()
	v.leave()
}

// stateFailed reports a state file that cannot be used, at most once in a while. The client is
// not made to suffer for it.
func (p *Policy) stateFailed(check string, err error) Verdict {
	p.mu.Lock()
	again := p.o.Now().Sub(p.failed[check]).Abs() >= time.Minute
	if again {
		p.failed[check] = p.o.Now()
	}
	p.mu.Unlock()
	if again {
		p.o.Log.Error("policy state cannot be used", "check", check, "err", err)
	}
	return pass(check, "the state file cannot be used, so the check is left out: %v", err)
}

// unix is now in the seconds that state files hold.
func (p *Policy) unix() uint32 { return uint32(p.o.Now().Unix()) }

// since is the age of a stored time; a clock that was set back makes nothing old.
func since(now, then uint32) time.Duration {
	if then >= now {
		return 0
	}
	return time.Duration(now-then) * time.Second
}

// network is the block of addresses that one customer usually has.
func network(ip netip.Addr) netip.Prefix {
	bits := 64
	if ip.Is4() {
		bits = 24
	}
	n, err := ip.Prefix(bits)
	if err != nil { // of an invalid address, which no caller has
		return netip.Prefix{}
	}
	return n
}
