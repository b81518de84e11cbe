package smtpd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"pennypost/internal/envelope"
	"pennypost/internal/smtp"
	"pennypost/internal/submit"
)

// Data implements smtp.Session: it opens the door of the spool.
func (s *session) Data(ctx context.Context) (smtp.Message, error) {
	if err := s.filterData(ctx); err != nil {
		return nil, err
	}
	env := &envelope.Envelope{
		From: s.from.String(), To: s.to,
		Ret: s.mail.Ret, EnvID: s.mail.EnvID, Body: s.mail.Body, SMTPUTF8: s.mail.SMTPUTF8,
		EOL: envelope.EOLLF, Origin: s.origin(),
		RequireTLS: s.mail.RequireTLS, HoldUntil: s.mail.HoldUntil, Hold: s.mail.Hold, DeliverBy: s.mail.By, Priority: s.mail.Priority,
	}
	if env.Body == envelope.BodyBinary {
		env.EOL = envelope.EOLWire
	}
	fix := submit.Fixup{Trace: s.trace(env.Origin.Proto)}
	if s.o.Role != MX {
		// RFC 6409 §8.2 and §8.3: what a user's program left out.
		fix.AddDate, fix.AddMessageID = true, true
	}
	m, err := s.o.Submit.Begin(env, fix)
	if err != nil {
		return nil, s.refusal(err)
	}
	return &message{m: m, s: s, ctx: ctx}, nil
}

// message is one message on its way into the spool.
type message struct {
	m   *submit.Message
	s   *session
	ctx context.Context // of the command that began it
}

func (m *message) Write(p []byte) (int, error) {
	n, err := m.m.Write(p)
	if err != nil {
		return n, m.s.refusal(err)
	}
	return n, nil
}

// Commit implements smtp.Message.
func (m *message) Commit() (string, error) {
	if taken, err := m.filter(); taken != "" || err != nil {
		return taken, err
	}
	id, err := m.m.Commit()
	if err != nil {
		return "", m.s.refusal(err)
	}
	return "queued as " + id, nil
}

// Abort implements smtp.Message.
func (m *message) Abort() {
	if err := m.m.Abort(); err != nil {
		m.s.o.Log.Error("unfinished message not removed", "err", err)
	}
}

// refusal turns an error of submit into an answer. Its cause is for the log: the client sees
// only what concerns it.
func (s *session) refusal(err error) error {
	var e *submit.Error
	if !errors.As(err, &e) {
		s.fault = err
		return err
	}
	if e.Status.Verdict != envelope.Failed {
		s.fault = e.Err
	}
	return smtp.Refuse(replyCode(e.Status.Code), e.Status)
}

// replyCode is the basic code that goes with an enhanced one.
func replyCode(enhanced string) int {
	switch enhanced {
	case "4.3.1":
		return 452
	case "5.3.4":
		return 552
	}
	if strings.HasPrefix(enhanced, "4.") {
		return 451
	}
	return 554
}

func (s *session) origin() envelope.Origin {
	o := envelope.Origin{
		Kind: envelope.OriginSMTP, User: s.user, Peer: s.peer(), Helo: s.st.Helo,
		Proto: s.st.Proto(s.mail.SMTPUTF8), TLS: tlsText(s.st.TLS),
	}
	switch {
	case s.submission():
		o.Kind = envelope.OriginSubmit
	case s.o.Role == Local:
		o.Kind, o.UID = envelope.OriginLocal, s.st.Peer.UID
	}
	return o
}

// peer is the client as it stands in logs and envelopes.
func (s *session) peer() string { return s.st.Peer.String() }

func tlsText(cs *tls.ConnectionState) string {
	if cs == nil {
		return ""
	}
	return strings.Replace(tls.VersionName(cs.Version), "TLS ", "TLSv", 1) + " " + tls.CipherSuiteName(cs.CipherSuite)
}

// trace is the content of the Received line, RFC 5321 §4.4. The name the client gave comes
// first, what the connection shows stands in parentheses behind it.
func (s *session) trace(proto string) *submit.Trace {
	t := &submit.Trace{With: proto, For: true}
	if s.mail.HasPriority {
		t.Pri = strconv.Itoa(s.mail.Priority)
	}
	if s.st.TLS != nil {
		t.TLS = tls.CipherSuiteName(s.st.TLS.CipherSuite)
	}
	ip := s.st.Peer.Addr.Addr()
	switch {
	case s.o.Role == Local:
		t.Comment = fmt.Sprintf("pennypost, from userid %d", *s.st.Peer.UID)
	case !ip.IsValid():
		t.From = s.st.Helo
	case ip.Is4():
		t.From = s.st.Helo + " ([" + ip.String() + "])"
	default:
		t.From = s.st.Helo + " ([IPv6:" + ip.WithZone("").String() + "])"
	}
	return t
}

// Refused implements smtp.Observer: one line a refusal, with the cause where that is a fault on
// our side. A password that was checked has had its own.
func (s *session) Refused(verb, arg string, a *smtp.Answer) {
	if verb == "AUTH" && (a.Code == 535 || a.Code == 454) {
		return
	}
	attrs := []slog.Attr{
		slog.String("peer", s.peer()), slog.String("role", s.o.Role), slog.String("helo", s.st.Helo),
		slog.String("verb", verb), slog.String("arg", shorten(arg)),
		slog.Int("code", a.Code), slog.String("dsn", a.Enhanced), slog.String("reply", a.Text),
	}
	if s.user != "" {
		attrs = append(attrs, slog.String("user", s.user))
	}
	if verb != "MAIL" && (!s.from.IsNull() || s.to != nil) {
		attrs = append(attrs, slog.String("from", s.from.String()))
	}
	if s.blame != nil {
		attrs = append(attrs, slog.String("check", s.blame.Check), slog.String("why", s.blame.Why))
		s.blame = nil
	}
	level := slog.LevelInfo
	if s.fault != nil {
		level, attrs = slog.LevelError, append(attrs, slog.Any("err", s.fault))
		s.fault = nil
	}
	s.o.Log.LogAttrs(context.Background(), level, "refused", attrs...)
}

func shorten(s string) string {
	if len(s) > 300 {
		return s[:300] + "..."
	}
	return s
}
