package smtpd

import (
	"context"
	"slices"
	"strings"

	"pennypost/internal/envelope"
	"pennypost/internal/login"
)

// NewSenders is the table of addresses that users may send as.
func NewSenders(path, firstDomain string) *login.Table {
	return login.NewTable(path, firstDomain, cleanSender)
}

// cleanSender takes an address, "@domain", "@.domain" for what is below it, or "*".
func cleanSender(s string) (string, error) {
	if s == "*" {
		return s, nil
	}
	if d, ok := strings.CutPrefix(s, "@"); ok {
		return "@" + envelope.FoldDomain(d), envelope.CheckDomain(strings.TrimPrefix(d, "."))
	}
	a, err := envelope.ParseAddress(s)
	return fold(a), err
}

// fold gives the form in which addresses are compared.
func fold(a envelope.Address) string {
	a.Local, a.Domain = strings.ToLower(a.Local), envelope.FoldDomain(a.Domain)
	return a.String()
}

// senderListed tells whether the table of senders lets the user send as from, with or without
// a subaddress where from is one of ours.
func (s *session) senderListed(ctx context.Context, from envelope.Address) (bool, error) {
	t := s.o.Auth.Senders
	if t == nil {
		return false, nil
	}
	user, first := s.user, ""
	if len(s.o.Domains) > 0 {
		first = s.o.Domains[0]
	}
	if u, err := envelope.ParseLocal(user, first); err == nil {
		user = fold(u) // the login of a local user gets the first domain
	}
	exact, base := fold(from), fold(from)
	if s.o.Accounts.IsLocal(from.Domain) {
		r, err := s.o.Accounts.Lookup(ctx, from)
		if err != nil {
			return false, err
		}
		if !r.Address.IsNull() {
			base = fold(r.Address)
		}
	}
	domain := envelope.FoldDomain(from.Domain)
	users, err := t.Having(func(item string) bool {
		below, isBelow := strings.CutPrefix(item, "@.")
		return item == "*" || item == exact || item == base || item == "@"+domain ||
			isBelow && strings.HasSuffix(domain, "."+below)
	})
	return slices.Contains(users, user), err
}
