package smtpd

import (
	"fmt"
	"strings"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
)

// Explain is told how each decision of a session comes about: the stage it belongs to (connect,
// auth, mail, rcpt, data, store, policy) and one sentence. It is nil in a server at work, where
// the sentences are not even made; msmtpd --simulate prints them.
type Explain func(stage, text string)

// Explaining tells whether somebody wants to know.
func (e Explain) Explaining() bool { return e != nil }

// Say makes the sentence if somebody wants to know.
func (e Explain) Say(stage, format string, args ...any) {
	if e != nil {
		e(stage, fmt.Sprintf(format, args...))
	}
}

func (s *session) explain(stage, format string, args ...any) { s.o.Explain.Say(stage, format, args...) }

// explainStart says what is known before the client speaks, and what follows from the role.
func (s *session) explainStart() {
	if !s.o.Explain.Explaining() {
		return
	}
	rule := map[string]string{
		MX:          "anybody may send to existing addresses of the local domains; AUTH is not offered",
		Submission:  "users may send anywhere after STARTTLS and AUTH",
		Submissions: "users may send anywhere after AUTH; TLS is on from the first octet",
		Local:       "processes of this host may send anywhere, as themselves",
	}[s.o.Role]
	s.explain("connect", "role %s: %s", s.o.Role, rule)
	switch p := s.st.Peer; {
	case p.Addr.IsValid():
		s.explain("connect", "the client's address is %s", p.Addr.Addr())
	case p.UID != nil:
		s.explain("connect", "the client is a process of user id %d", *p.UID)
	default:
		s.explain("connect", "the client's address is not known: it matches no network and gets the least rights")
	}
	if s.st.TLS != nil {
		s.explain("connect", "TLS is on")
	}
	if s.st.User != "" {
		s.explain("auth", "%s counts as authenticated", s.st.User)
	}
}

// explainLookup says what an address turned out to be.
func (s *session) explainLookup(stage string, addr envelope.Address, r accounts.Result, err error) {
	if !s.o.Explain.Explaining() {
		return
	}
	switch {
	case err != nil:
		s.explain(stage, "look-up of %s failed: %v", addr, err)
	case r.Kind == accounts.IsMailbox:
		s.explain(stage, "look-up: %s is a mailbox of %s", addr, r.Mailbox.Address)
	case r.Kind == accounts.IsAlias:
		to := make([]string, 0, len(r.Alias.Targets))
		for _, t := range r.Alias.Targets {
			if t.Addr.IsNull() {
				to = append(to, "a program or file")
				continue
			}
			to = append(to, t.Addr.String())
		}
		s.explain(stage, "look-up: %s is the alias %s, to %s", addr, r.Alias.Name, strings.Join(to, ", "))
	case r.Kind == accounts.NotLocal:
		s.explain(stage, "look-up: %s has a domain that is not ours", addr)
	default:
		s.explain(stage, "look-up: %s is no mailbox, no alias, and nothing catches it", addr)
	}
}

// explainSender says what decided about a reverse-path.
func (s *session) explainSender(from envelope.Address, err error) {
	if !s.o.Explain.Explaining() {
		return
	}
	name := from.String()
	if from.IsNull() {
		name = "<>"
	}
	switch {
	case err != nil:
		// The reply, which follows, is the sentence.
	case s.o.Role == MX:
		s.explain("mail", "anybody may use any reverse-path in the role mx")
	case from.IsNull():
		s.explain("mail", "the null reverse-path is everybody's")
	default:
		s.explain("mail", "%s may send as %s", s.user, name)
	}
}
