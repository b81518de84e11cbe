package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"pennypost/internal/config"
	"pennypost/internal/policy"
	"pennypost/internal/resolve"
)

// policy looks at the files of mpolicy(5).
func (k *checker) policy(cfg *config.Config) {
	c := &cfg.Policy
	if c.Greylist != "off" || c.ClientRate+c.NetworkRate+c.ClientSessions+c.NetworkSessions+c.UserRecipients > 0 {
		switch err := policy.CheckState(c.State); {
		case errors.Is(err, fs.ErrPermission):
			k.unseen("policy.state", err)
		case err != nil:
			k.fail("policy.state", err.Error(), "correct it: until then the checks that count are left out")
		default:
			k.ok("policy.state", c.State)
		}
	}
	switch {
	case c.RelayRecipients != "":
		n, err := policy.CheckRecipients(c.RelayRecipients)
		if err != nil {
			k.fail("policy.relay_recipients", err.Error(), "correct it: until then mail for these domains is deferred")
			return
		}
		k.ok("policy.relay_recipients", fmt.Sprintf("%s, %d entries", c.RelayRecipients, n))
	case len(cfg.SMTPD.RelayDomains) > 0:
		k.warn("smtpd.relay_domains", "mail for addresses that do not exist there is taken, and bounced to strangers",
			"list those that exist in policy.relay_recipients")
	}
}

// lists asks each list in DNS whether it is alive.
func (k *checker) lists(ctx context.Context, r *resolve.Resolver, cfg *config.Config) {
	for _, d := range cfg.Policy.DNSBL {
		thing := "policy.dnsbl.zone " + d.Zone
		if err := (policy.Zone{Name: d.Zone}).Check(ctx, r); err != nil {
			k.warn(thing, err.Error(), "ask its keeper, or take it out")
			continue
		}
		k.ok(thing, "answers")
	}
}
