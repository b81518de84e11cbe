package smtpd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"pennypost/internal/envelope"
	"pennypost/internal/hook"
	"pennypost/internal/milter"
	"pennypost/internal/policy"
	"pennypost/internal/smtp"
	"pennypost/internal/submit"
)

// Filter is somebody else who has a say in what is accepted: a policy hook, or a milter.
// They are asked in their order and after all that is decided here.
type Filter struct {
	Hook   *hook.Hook     // or
	Milter *milter.Client //
	Name   string
	Roles  []string // sessions it has a say in; none: all
	Accept bool     // without an answer the mail is taken as if there were no filter; else 451
}

// asker is a filter's side of one session.
type asker interface {
	connect(ctx context.Context) (ruling, error)
	mail(ctx context.Context, from envelope.Address, o *smtp.MailOptions) (ruling, error)
	rcpt(ctx context.Context, to envelope.Address) (ruling, error)
	data(ctx context.Context) (ruling, error)
	message(ctx context.Context, v *submit.Sealed, header []byte) (ruling, error)
	reset()
	close()
}

// ruling is what a filter says at one stage. The zero ruling has no objection.
type ruling struct {
	refuse  *smtp.Answer
	drop    bool   // take the message and throw it away
	hold    bool   // take it, and let a person decide
	pass    bool   // ask this filter no more about this message
	why     string // for the log
	changes []milter.Change
}

// filters is a session's state with all its filters.
type filters struct {
	named  string // the session's name in questions
	askers []filtered
	drop   string // why the message is thrown away; "" is not
	hold   string // why it is held
	header []milter.Change

	envChanged bool // a filter changed sender or recipients
}

type filtered struct {
	asker
	*Filter
	pass bool
}

// lasting keeps a server that is told to stop from cutting filters short: a message in progress
// comes to its end, and must not slip past a filter whose default is to accept. Each filter has
// its own time limit.
func lasting(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }

// filterConnect begins what the filters know of a session.
func (s *session) filterConnect(ctx context.Context) error {
	ctx = lasting(ctx)
	for i := range s.o.Filters {
		f := &s.o.Filters[i]
		if len(f.Roles) > 0 && !slices.Contains(f.Roles, s.o.Role) {
			continue
		}
		if s.named == "" {
			s.named = rand.Text()[:16]
		}
		var a asker = &hookAsker{s: s, h: f.Hook}
		if f.Milter != nil {
			a = &milterAsker{s: s, c: f.Milter}
		}
		s.askers = append(s.askers, filtered{asker: a, Filter: f})
	}
	err := s.ask(ctx, hook.Connect, func(a asker) (ruling, error) { return a.connect(ctx) })
	var a *smtp.Answer
	if errors.As(err, &a) {
		// No session comes of it: nobody else will log and close it.
		s.Refused("", "", a)
		s.Close()
	}
	return err
}

// ask puts one stage to all filters, until one refuses.
func (s *session) ask(ctx context.Context, stage string, put func(asker) (ruling, error)) error {
	for i := range s.askers {
		f := &s.askers[i]
		if f.pass || s.drop != "" {
			continue
		}
		r, err := put(f.asker)
		if err != nil {
			if a := s.unanswered(f, stage, err); a != nil {
				return a
			}
			continue
		}
		if err := s.obey(f, stage, r); err != nil {
			return err
		}
	}
	return nil
}

// unanswered applies a filter's default where it gave no answer.
func (s *session) unanswered(f *filtered, stage string, err error) *smtp.Answer {
	s.explain("filter", "%s gave no answer at %s: %v", f.Name, stage, err)
	if f.Accept {
		s.o.Log.Error("filter gave no answer", "filter", f.Name, "stage", stage, "peer", s.peer(), "err", err)
		f.pass = true
		return nil
	}
	s.blame, s.fault = &policy.Verdict{Check: "filter " + f.Name, Why: "no answer at " + stage}, err
	return &smtp.Answer{Code: 451, Enhanced: "4.7.1", Text: "service unavailable, try again later"}
}

// obey does what a ruling says, but for its changes of the message.
func (s *session) obey(f *filtered, stage string, r ruling) error {
	f.pass = r.pass
	why := f.Name
	if r.why != "" {
		why += ": " + r.why
	}
	switch {
	case r.refuse != nil:
		s.explain("filter", "%s refuses at %s: %s", f.Name, stage, r.refuse.Text)
		s.blame = &policy.Verdict{Check: "filter " + f.Name, Why: r.why}
		if r.why == "" { // most filters give no cause besides the reply
			s.blame.Why = verdictOf(r.refuse) + " at " + stage
		}
		return r.refuse
	case r.drop:
		s.explain("filter", "%s has the message thrown away", f.Name)
		s.drop = why
	case r.hold:
		s.explain("filter", "%s has the message held", f.Name)
		s.hold = why
	default:
		s.explain("filter", "%s has no objection at %s", f.Name, stage)
	}
	if stage != hook.Message {
		s.header = append(s.header, r.changes...)
	}
	return nil
}

// verdictOf is the word of mpolicyhook(7) for a refusal.
func verdictOf(a *smtp.Answer) string {
	if a.Code/100 == 4 {
		return hook.Defer
	}
	return hook.Reject
}

// filterReset ends a transaction.
func (s *session) filterReset() {
	s.drop, s.hold, s.header, s.envChanged = "", "", nil, false
	for i := range s.askers {
		s.askers[i].pass = false
		s.askers[i].reset()
	}
}

func (s *session) filterClose() {
	for _, f := range s.askers {
		f.close()
	}
	s.askers = nil
}

func (s *session) filterMail(ctx context.Context, from envelope.Address, o *smtp.MailOptions) error {
	ctx = lasting(ctx)
	return s.ask(ctx, hook.Mail, func(a asker) (ruling, error) { return a.mail(ctx, from, o) })
}

func (s *session) filterRcpt(ctx context.Context, to envelope.Address) error {
	ctx = lasting(ctx)
	return s.ask(ctx, hook.Rcpt, func(a asker) (ruling, error) { return a.rcpt(ctx, to) })
}

func (s *session) filterData(ctx context.Context) error {
	ctx = lasting(ctx)
	return s.ask(ctx, hook.Data, func(a asker) (ruling, error) { return a.data(ctx) })
}

// filter shows the message to the filters and makes their changes. taken says that the message
// is done with: it was thrown away, which the client does not learn.
func (m *message) filter() (taken string, err error) {
	s, ctx := m.s, lasting(m.ctx)
	if len(s.askers) == 0 {
		return "", nil
	}
	v, err := m.m.Seal()
	if err != nil {
		return "", s.refusal(err)
	}
	header := changeHeader(v.Header(), s.header)
	err = s.ask(ctx, hook.Message, func(a asker) (ruling, error) {
		r, err := a.message(ctx, v, header)
		if err == nil {
			header = changeHeader(header, r.changes)
			err = s.changeEnvelope(v.Envelope(), &r)
		}
		return r, err
	})
	if err != nil {
		m.Abort()
		return "", err
	}
	env := v.Envelope()
	if s.drop != "" {
		s.o.Log.LogAttrs(ctx, slog.LevelInfo, "discarded", slog.String("id", env.ID), slog.String("peer", s.peer()),
			slog.String("from", env.From), slog.String("msgid", env.Origin.MsgID), slog.String("why", s.drop))
		m.Abort()
		return "queued as " + env.ID, nil
	}
	if s.hold != "" {
		env.Quarantine = s.hold
		s.o.Log.LogAttrs(ctx, slog.LevelInfo, "quarantined", slog.String("id", env.ID), slog.String("peer", s.peer()),
			slog.String("from", env.From), slog.String("why", s.hold))
	}
	if s.hold == "" && !s.envChanged && string(header) == string(v.Header()) {
		return "", nil
	}
	if err := v.Rewrite(header); err != nil {
		return "", s.refusal(err)
	}
	return "", nil
}

// changeEnvelope makes the changes of sender and recipients. An address that cannot be read
// makes the filter's answer no answer.
func (s *session) changeEnvelope(env *envelope.Envelope, r *ruling) error {
	from, to := env.From, slices.Clone(env.To)
	for _, c := range r.changes {
		var addr envelope.Address
		switch c.Kind {
		case milter.AddRcpt, milter.DeleteRcpt, milter.ChangeFrom:
			var err error
			if addr, err = readPath(c.Value); err != nil {
				return fmt.Errorf("the address %q: %w", c.Value, err)
			}
			s.envChanged = true
		}
		same := func(r envelope.Recipient) bool {
			have, err := envelope.ParseAddress(r.Addr)
			return err == nil && have.Key() == addr.Key()
		}
		switch c.Kind {
		case milter.AddRcpt:
			if !addr.IsNull() && !slices.ContainsFunc(to, same) {
				to = append(to, envelope.Recipient{Addr: addr.String()})
			}
		case milter.DeleteRcpt:
			to = slices.DeleteFunc(to, same)
		case milter.ChangeFrom:
			from = addr.String()
		case milter.Quarantine:
			r.hold, r.why = true, c.Value
		}
		env.SMTPUTF8 = env.SMTPUTF8 || !addr.IsASCII()
	}
	env.From, env.To = from, to
	if len(to) == 0 {
		r.drop, r.why = true, "all recipients were taken away"
	}
	return nil
}

// readPath reads an address as filters write it, with or without angle brackets.
func readPath(s string) (envelope.Address, error) {
	if s == "" || strings.HasPrefix(s, "<") {
		if s == "" {
			s = "<>"
		}
		a, _, err := envelope.ParsePath(s)
		return a, err
	}
	return envelope.ParseAddress(s)
}
