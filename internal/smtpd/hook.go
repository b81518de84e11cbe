package smtpd

import (
	"context"
	"fmt"
	"strings"

	"pennypost/internal/envelope"
	"pennypost/internal/hook"
	"pennypost/internal/milter"
	"pennypost/internal/smtp"
	"pennypost/internal/submit"
)

// hookAsker puts the stages of a session to a policy hook.
type hookAsker struct {
	s    *session
	h    *hook.Hook
	helo string // the name it was asked about
}

// question holds what is known at any stage.
func (a *hookAsker) question(stage string) *hook.Request {
	s := a.s
	q := &hook.Request{
		Stage: stage, Session: s.named, Role: s.o.Role, UID: s.st.Peer.UID,
		Helo: s.st.Helo, TLS: tlsText(s.st.TLS), User: s.user,
	}
	if p := s.st.Peer.Addr; p.IsValid() {
		q.Peer, q.IP = p.String(), p.Addr().String()
	}
	if q.User == "" {
		q.User = s.st.User
	}
	return q
}

// transaction adds what MAIL and RCPT said.
func (a *hookAsker) transaction(q *hook.Request, from envelope.Address, o *smtp.MailOptions) {
	f := from.String()
	q.From, q.Size, q.Body, q.SMTPUTF8 = &f, o.Size, o.Body, o.SMTPUTF8
}

func (a *hookAsker) put(ctx context.Context, q *hook.Request) (ruling, error) {
	if !a.h.Wants(q.Stage) {
		return ruling{}, nil
	}
	ans, err := a.h.Ask(ctx, q)
	if err != nil {
		return ruling{}, err
	}
	r := ruling{why: ans.Why}
	for i, f := range ans.AddHeader {
		name, value, ok := strings.Cut(f, ":")
		if !ok || !isFieldName(name) {
			return ruling{}, fmt.Errorf("%q is no header field", shorten(f))
		}
		// In their order on top, where a reader sees who added them.
		r.changes = append(r.changes, milter.Change{Kind: milter.InsertHeader, Index: i + 1, Name: name, Value: value})
	}
	switch ans.Verdict {
	case hook.Reject, hook.Defer:
		r.refuse = &smtp.Answer{Code: ans.Code, Enhanced: ans.DSN, Text: ans.Reply}
	case hook.Discard:
		r.drop = true
	case hook.Hold:
		r.hold = true
	}
	return r, nil
}

func (a *hookAsker) connect(ctx context.Context) (ruling, error) {
	r, err := a.put(ctx, a.question(hook.Connect))
	r.changes, r.drop, r.hold = nil, false, false // there is no message they could be about
	return r, err
}

// mail asks about the name in HELO first, once a name: a refusal of HELO itself would only make
// a client try without it.
func (a *hookAsker) mail(ctx context.Context, from envelope.Address, o *smtp.MailOptions) (ruling, error) {
	var before ruling
	if a.h.Wants(hook.Helo) && a.helo != a.s.st.Helo {
		r, err := a.put(ctx, a.question(hook.Helo))
		if err != nil || r.refuse != nil {
			return r, err
		}
		a.helo, before = a.s.st.Helo, r
	}
	q := a.question(hook.Mail)
	a.transaction(q, from, o)
	r, err := a.put(ctx, q)
	r.drop, r.hold = r.drop || before.drop, r.hold || before.hold
	r.changes = append(before.changes, r.changes...)
	return r, err
}

func (a *hookAsker) rcpt(ctx context.Context, to envelope.Address) (ruling, error) {
	q := a.question(hook.Rcpt)
	a.transaction(q, a.s.from, &a.s.mail)
	q.To = to.String()
	return a.put(ctx, q)
}

func (a *hookAsker) data(ctx context.Context) (ruling, error) {
	q := a.question(hook.Data)
	a.transaction(q, a.s.from, &a.s.mail)
	for _, r := range a.s.to {
		q.Rcpts = append(q.Rcpts, r.Addr)
	}
	return a.put(ctx, q)
}

func (a *hookAsker) message(ctx context.Context, v *submit.Sealed, header []byte) (ruling, error) {
	if !a.h.Wants(hook.Message) {
		return ruling{}, nil
	}
	q := a.question(hook.Message)
	a.transaction(q, a.s.from, &a.s.mail)
	env := v.Envelope()
	q.From, q.ID, q.Size = &env.From, env.ID, v.Size()
	for _, r := range env.To {
		q.Rcpts = append(q.Rcpts, r.Addr)
	}
	q.Header = string(header[:min(len(header), hook.MaxHeader)])
	return a.put(ctx, q)
}

func (a *hookAsker) reset() {}
func (a *hookAsker) close() {}
