package config

import (
	"net/netip"
	"time"
)

func defaultPolicy() Policy {
	const day = 24 * time.Hour
	return Policy{
		State: "/var/lib/pennypost/policy", ReverseDNS: "off", EarlyTalker: "reject", Greylist: "off",
		// RFC 6647 §5: a retry counts after one minute and within a day, and at least a week
		// passes before a client is forgotten.
		GreylistDelay: Duration(time.Minute), GreylistWindow: Duration(day), GreylistExpiry: Duration(5 * 7 * day), GreylistKnown: 1,
		DNSBLScore: 1, DNSBLTimeout: Duration(5 * time.Second),
		Quota: true,
	}
}

// maxPolicySessions is what one bucket of the state file can count, a process each.
const maxPolicySessions = 100

func (p *Policy) check(k *checker) {
	for _, n := range p.Trusted {
		k.network("policy.trusted", 0, n)
	}
	for _, h := range p.Helo {
		k.oneOf("policy.helo", 0, h, "own", "address", "unqualified")
	}
	k.oneOf("policy.reverse_dns", 0, p.ReverseDNS, "off", "exists", "confirmed")
	k.oneOf("policy.early_talker", 0, p.EarlyTalker, "reject", "log")
	k.oneOf("policy.greylist", 0, p.Greylist, "off", "domain", "full")
	for _, n := range []struct {
		key string
		v   int
	}{
		{"client_rate", p.ClientRate}, {"network_rate", p.NetworkRate}, {"user_recipients", p.UserRecipients},
		{"client_sessions", p.ClientSessions}, {"network_sessions", p.NetworkSessions}, {"unknown_limit", p.UnknownLimit},
	} {
		k.atLeast("policy."+n.key, int64(n.v), 0)
	}
	for key, v := range map[string]int{"policy.client_sessions": p.ClientSessions, "policy.network_sessions": p.NetworkSessions} {
		if v > maxPolicySessions {
			k.bad(key, 0, "%d is too much: at most %d, or 0 for no limit", v, maxPolicySessions)
		}
	}
	// RFC 5321 §4.5.3.2.1: a client waits five minutes for the greeting, and some only one.
	if p.GreetDelay > Duration(time.Minute) {
		k.bad("policy.greet_delay", 0, "%s is too long: clients give up; at most 1m", p.GreetDelay)
	}
	if p.Tarpit > Duration(time.Minute) {
		k.bad("policy.tarpit", 0, "%s is too long: at most 1m", p.Tarpit)
	}
	if p.GreylistDelay >= p.GreylistWindow {
		k.bad("policy.greylist_window", 0, "%s is not longer than greylist_delay: no retry would ever count", p.GreylistWindow)
	}
	if p.GreylistExpiry < p.GreylistWindow {
		k.bad("policy.greylist_expiry", 0, "%s is shorter than greylist_window", p.GreylistExpiry)
	}
	k.atLeast("policy.greylist_known", int64(p.GreylistKnown), 1)
	k.atLeast("policy.dnsbl_score", int64(p.DNSBLScore), 1)
	if p.DNSBLTimeout <= 0 {
		k.bad("policy.dnsbl_timeout", 0, "0 would fail every query")
	}
	for i, d := range p.DNSBL {
		k.domain("policy.dnsbl.zone", i, d.Zone)
		for _, n := range d.Answers {
			k.network("policy.dnsbl.answers", i, n)
		}
	}
}

func (k *checker) network(key string, n int, s string) {
	if _, err := netip.ParsePrefix(s); err == nil {
		return
	}
	if _, err := netip.ParseAddr(s); err != nil {
		k.bad(key, n, "%q is no network: write 192.0.2.0/24 or 2001:db8::/32", s)
	}
}
