package main

import (
	"log/slog"
	"net/netip"
	"slices"

	"pennypost/internal/config"
	"pennypost/internal/daemon"
	"pennypost/internal/policy"
	"pennypost/internal/resolve"
)

// newPolicy is what mpolicy(5) describes. With dry it reads what is remembered and remembers
// nothing.
func newPolicy(cfg *config.Config, relayFrom []netip.Prefix, dry bool, log *slog.Logger) (*policy.Policy, error) {
	c := &cfg.Policy
	trusted, err := daemon.Prefixes("policy.trusted", c.Trusted)
	if err != nil {
		return nil, err
	}
	o := policy.Options{
		Hostname: cfg.Hostname, Trusted: append(trusted, relayFrom...), State: c.State, DryRun: dry,
		HeloOwn: slices.Contains(c.Helo, "own"), HeloAddress: slices.Contains(c.Helo, "address"),
		HeloUnqualified: slices.Contains(c.Helo, "unqualified"),
		ReverseDNS:      c.ReverseDNS, Score: c.DNSBLScore, DNSTimeout: c.DNSBLTimeout.Std(),
		GreetDelay: c.GreetDelay.Std(), EarlyAction: policy.Reject,
		ClientRate: c.ClientRate, NetworkRate: c.NetworkRate,
		ClientSessions: c.ClientSessions, NetworkSessions: c.NetworkSessions, UserRecipients: c.UserRecipients,
		Greylist: c.Greylist, Grey: policy.GreyTimes{
			Delay: c.GreylistDelay.Std(), Window: c.GreylistWindow.Std(), Expiry: c.GreylistExpiry.Std(), Known: c.GreylistKnown,
		},
		Tarpit: c.Tarpit.Std(), UnknownLimit: c.UnknownLimit, Quota: c.Quota, RelayFile: c.RelayRecipients,
		Now: cfg.Now(), Log: log,
	}
	if c.EarlyTalker == "log" {
		o.EarlyAction = policy.Note
	}
	for _, d := range c.DNSBL {
		answers, err := daemon.Prefixes("policy.dnsbl.answers", d.Answers)
		if err != nil {
			return nil, err
		}
		o.Zones = append(o.Zones, policy.Zone{Name: d.Zone, Weight: d.Weight, Answers: answers})
	}
	r := resolve.Options{
		ResolvConf: "/etc/resolv.conf", Hosts: cfg.DNS.Hosts, Timeout: cfg.DNS.Timeout.Std(), TrustAD: cfg.DNS.TrustAD,
	}
	if cfg.DNS.Resolver != "" {
		r.Servers = []string{cfg.DNS.Resolver}
	}
	o.DNS = resolve.New(r)
	return policy.New(o), nil
}
