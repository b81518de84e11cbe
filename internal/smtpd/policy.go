package smtpd

import (
	"context"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
	"pennypost/internal/policy"
	"pennypost/internal/smtp"
)

// judge holds what mpolicy(5) asks of one client; the zero value asks nothing.
type judge struct {
	visit   *policy.Visit   // nil off the MX role
	blame   *policy.Verdict // of the refusal that is about to be logged
	unknown int             // recipients so far that do not exist
}

// policyConnect begins the judgement of a client. It is for the role that strangers use.
func (s *session) policyConnect(ctx context.Context) error {
	if s.o.Policy == nil || s.o.Role != MX || !s.o.Policy.Asks() {
		return nil
	}
	s.visit = s.o.Policy.Visit(ctx, policy.Client{Addr: s.st.Peer.Addr.Addr(), Local: s.st.Peer.Local.Addr()}, s.verdict)
	a := s.answer(s.visit.Connect())
	if a == nil {
		return nil
	}
	// No session comes of it: nobody else will log and close it.
	s.Refused("", "", a)
	s.Close()
	return a
}

// verdict is told of each one. Those that refuse are in the line of the refusal.
func (s *session) verdict(v policy.Verdict) {
	s.explain("policy", "%s: %s: %s", v.Check, v.Action, v.Why)
	if v.Action == policy.Note {
		s.o.Log.Info("policy", "check", v.Check, "action", v.Action.String(), "peer", s.peer(), "helo", s.st.Helo, "why", v.Why)
	}
}

// answer is what the client is told of a refusing verdict; nil of any other.
func (s *session) answer(v policy.Verdict) *smtp.Answer {
	if !v.Refuses() {
		return nil
	}
	s.blame, s.fault = &v, v.Err
	return &smtp.Answer{Code: v.Code, Enhanced: v.DSN, Text: v.Reply, Close: v.Close}
}

// refuse is answer as an error.
func (s *session) refuse(v policy.Verdict) error {
	if a := s.answer(v); a != nil {
		return a
	}
	return nil
}

// GreetDelay implements smtp.Patient.
func (s *session) GreetDelay() time.Duration {
	if s.visit == nil {
		return 0
	}
	d := s.visit.GreetDelay()
	// Lines of a script are there before the greeting: who explains, does not wait for them.
	if d > 0 && s.o.Explain.Explaining() {
		s.explain("policy", "early-talker: pass: the greeting would be held back for %s", d)
		return 0
	}
	return d
}

// Early implements smtp.Patient.
func (s *session) Early() error { return s.refuse(s.visit.EarlyTalker()) }

// policyRcpt judges a recipient who exists, or whom we may relay to.
func (s *session) policyRcpt(ctx context.Context, to envelope.Address) error {
	switch {
	case s.o.Policy == nil:
		return nil
	case s.submission():
		v := s.o.Policy.User(s.user)
		s.verdict(v)
		return s.refuse(v)
	case s.visit == nil:
		return nil
	}
	if !s.o.Accounts.IsLocal(to.Domain) && s.visit.Exempt() == "" {
		v := s.o.Policy.RelayRecipient(to)
		s.verdict(v)
		if err := s.refuse(v); err != nil {
			if v.Action == policy.Reject {
				err = s.unknownRcpt(ctx, err)
			}
			return err
		}
	}
	return s.refuse(s.visit.Recipient(ctx, policy.Mail{Helo: s.st.Helo, From: s.from, To: to}))
}

// policyMailbox judges whether a mailbox has room for what the client announced. Only other hosts
// are told: mail of users and programs waits in our own queue.
func (s *session) policyMailbox(m *accounts.Mailbox) error {
	if s.o.Policy == nil || s.o.Role != MX {
		return nil
	}
	v := s.o.Policy.Quota(m.Maildir, m.Extra, s.mail.Size)
	s.verdict(v)
	return s.refuse(v)
}

// unknownRcpt slows down whoever tries addresses; err is the answer that the recipient gets.
func (s *session) unknownRcpt(ctx context.Context, err error) error {
	if s.visit == nil || s.visit.Exempt() != "" {
		return err
	}
	s.unknown++
	switch d := s.o.Policy.Tarpit(); {
	case d <= 0:
	case s.o.Explain.Explaining():
		s.explain("policy", "tarpit: pass: the answer would be held back for %s", d)
	default:
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	v := s.o.Policy.Unknown(s.unknown)
	s.verdict(v)
	if over := s.refuse(v); over != nil {
		return over
	}
	return err
}

// policyClose ends what policyConnect began.
func (s *session) policyClose() {
	if s.visit != nil {
		s.visit.Close()
		s.visit = nil
	}
}
