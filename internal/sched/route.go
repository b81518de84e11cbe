package sched

import (
	"fmt"
	"strings"
	"time"

	"pennypost/internal/envelope"
)

// Names of the two workers that exist without configuration.
const (
	Local = "local" // mdeliver
	Relay = "relay" // mrelay
)

// Route sends the recipients it matches to a target. The first match of the table wins.
type Route struct {
	Match  string // "ann@x.test", "x.test", "*.x.test" (sub-domains), "*"
	Target Target
}

// Target is where recipients go: a worker and what it is told, or an error instead.
type Target struct {
	Worker  string
	NextHop string
	Auth    string // file with the credentials for the next hop
	TLS     string
	Retry   []time.Duration  // nil: the table of Options
	Expiry  time.Duration    // 0: that of Options
	Error   *envelope.Status // the recipients fail, or are deferred, with it
}

// String is the target in the form of route.to, as list and explain show it.
func (t *Target) String() string {
	switch {
	case t.Error != nil:
		return "error:" + t.Error.Code + " " + t.Error.Reply
	case t.NextHop == "":
		return t.Worker
	case t.Worker != Relay:
		return t.Worker + "=" + t.NextHop
	}
	return t.NextHop
}

// ParseTarget reads route.to of mconf(5).
func ParseTarget(to string) (Target, error) {
	kind, rest, _ := strings.Cut(to, ":")
	switch {
	case to == Local:
		return Target{Worker: Local}, nil
	case kind == "error":
		code, text, _ := strings.Cut(rest, " ")
		if !envelope.ValidCode(code) || code[0] == '2' {
			return Target{}, fmt.Errorf("%q: write error:5.1.1 and a sentence", to)
		}
		st := envelope.Fail(code, text)
		if code[0] == '4' {
			st = envelope.Defer(code, text)
		}
		return Target{Error: &st}, nil
	case kind == "mx":
		if err := envelope.CheckDomain(rest); err != nil {
			return Target{}, err
		}
		return Target{Worker: Relay, NextHop: envelope.FoldDomain(rest)}, nil
	case kind == "lmtp" && rest != "":
		return Target{Worker: Relay, NextHop: to}, nil
	case to == "" || to == "lmtp:" || strings.ContainsAny(to, "@ \t\r\n/"):
		return Target{}, fmt.Errorf("%q is no next hop: write host:port, lmtp:host:port, lmtp:/socket, mx:domain, local or error:5.1.1 text", to)
	}
	return Target{Worker: Relay, NextHop: to}, nil
}

// table finds the target of a recipient.
type table struct {
	exact     map[string]*Target // addresses and domains that no pattern precedes
	patterns  []pattern
	domains   map[string]bool
	first     string // completes a bare local-part
	local     Target
	smarthost *Target
}

// pattern is a route in its place in the table.
type pattern struct {
	match  string // folded
	kind   byte   // '@' address, '.' sub-domains, 'd' domain, '*' all
	target *Target
}

func newTable(routes []Route, domains []string, smarthost *Target) *table {
	t := &table{domains: make(map[string]bool, len(domains)), local: Target{Worker: Local}, smarthost: smarthost}
	for i, d := range domains {
		if i == 0 {
			t.first = envelope.FoldDomain(d)
		}
		t.domains[envelope.FoldDomain(d)] = true
	}
	for i := range routes {
		t.add(&routes[i])
	}
	return t
}

// add keeps the order of the table and still finds ten thousand plain domains by one look-up:
// those before the first pattern that could match the same address go into a map.
func (t *table) add(r *Route) {
	p := pattern{match: strings.ToLower(r.Match), target: &r.Target}
	switch {
	case r.Match == "*":
		p.kind = '*'
	case strings.HasPrefix(r.Match, "*."):
		p.kind, p.match = '.', p.match[1:]
	case strings.Contains(r.Match, "@"):
		p.kind = '@'
	default:
		p.kind, p.match = 'd', envelope.FoldDomain(r.Match)
	}
	if len(t.patterns) == 0 && p.kind == 'd' {
		if t.exact == nil {
			t.exact = make(map[string]*Target)
		}
		if _, ok := t.exact[p.match]; !ok {
			t.exact[p.match] = p.target
		}
		return
	}
	t.patterns = append(t.patterns, p)
}

// find returns where the address goes.
func (t *table) find(addr string) Target {
	domain := t.first
	if i := strings.LastIndexByte(addr, '@'); i >= 0 {
		domain = envelope.FoldDomain(addr[i+1:])
	}
	if x, ok := t.exact[domain]; ok {
		return *x
	}
	for i := range t.patterns {
		if t.patterns[i].matches(addr, domain) {
			return *t.patterns[i].target
		}
	}
	if t.domains[domain] {
		return t.local
	}
	if t.smarthost != nil {
		return *t.smarthost
	}
	return Target{Worker: Relay, NextHop: domain}
}

func (p *pattern) matches(addr, domain string) bool {
	switch p.kind {
	case '*':
		return true
	case '.':
		return strings.HasSuffix(domain, p.match)
	case 'd':
		return domain == p.match
	}
	return strings.EqualFold(addr, p.match)
}
