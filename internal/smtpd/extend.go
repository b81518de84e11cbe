package smtpd

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/smtp"
)

// Extend says what sessions offer beside the extensions every session has.
type Extend struct {
	HoldMax     time.Duration // FUTURERELEASE: the longest time; 0: not offered
	MinBy       time.Duration // DELIVERBY: the shortest time; 0: not offered
	XClientFrom []netip.Prefix
	ETRNFrom    []netip.Prefix
	// Flush has the scheduler send the mail for a domain now; nil: no ETRN.
	Flush func(domain string, below bool) error
}

// Extensions implements smtp.Extender. What makes us write to the sender later, or work for it
// first, is for those who may relay here: a stranger's sender address may be forged.
func (s *session) Extensions() smtp.Extensions {
	_, proxy := among(s.st.Peer.Addr, s.o.Extend.XClientFrom)
	x := smtp.Extensions{RequireTLS: true, Priority: true, XClient: proxy && s.o.Role != Local, XClientLogin: s.submission()}
	if s.trusted() && s.o.Extend.MinBy > 0 {
		x.DeliverBy, x.MinBy = true, s.o.Extend.MinBy
	}
	if s.o.Role != MX { // RFC 4865 §4.2: submission only
		x.FutureRelease = s.o.Extend.HoldMax
	}
	return x
}

// trusted tells whether the client is one of ours: a user, who has to log in before MAIL, a
// process of this host, or a host that may relay.
func (s *session) trusted() bool {
	_, ours := among(s.st.Peer.Addr, s.o.RelayFrom)
	return ours || s.o.Role != MX
}

// among finds the network that an address is in.
func among(peer netip.AddrPort, nets []netip.Prefix) (netip.Prefix, bool) {
	ip := peer.Addr()
	for _, p := range nets {
		if ip.IsValid() && p.Contains(ip) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// priority is what a sender may have: RFC 6710 §4.1 forbids strangers to get ahead of others,
// and lets them stay behind.
func (s *session) priority(asked int) int {
	if asked <= 0 || s.trusted() {
		return asked
	}
	s.explain("mail", "priority %d becomes 0: the client is neither a user nor in smtpd.relay_from", asked)
	return 0
}

// MayStart implements smtp.Starter.
func (s *session) MayStart() bool {
	_, ok := among(s.st.Peer.Addr, s.o.Extend.ETRNFrom)
	return ok && s.o.Role != Local && s.o.Extend.Flush != nil
}

// Start implements smtp.Starter: for the domains we hold mail for.
func (s *session) Start(_ context.Context, domain string, below bool) error {
	domain = envelope.FoldDomain(domain)
	if _, ok := s.relayDomain(domain); !ok {
		return &smtp.Answer{Code: 459, Enhanced: "4.7.1", Text: "node " + domain + " not allowed: no mail is held for it here"}
	}
	if err := s.o.Extend.Flush(domain, below); err != nil {
		s.fault = err
		return &smtp.Answer{Code: 458, Enhanced: "4.3.0", Text: "unable to queue messages for node " + domain}
	}
	s.o.Log.Info("queue started", "peer", s.peer(), "domain", domain, "below", below)
	return nil
}

// relayDomain finds the word of RelayDomains that makes us backup MX for a domain.
func (s *session) relayDomain(domain string) (string, bool) {
	domain = envelope.FoldDomain(domain)
	for _, d := range s.o.RelayDomains {
		d = envelope.FoldDomain(d)
		if d == domain || strings.HasPrefix(d, ".") && strings.HasSuffix(domain, d) {
			return d, true
		}
	}
	return "", false
}
