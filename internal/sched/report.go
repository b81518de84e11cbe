package sched

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"pennypost/internal/dsn"
	"pennypost/internal/envelope"
	"pennypost/internal/spool"
	"pennypost/internal/submit"
)

// reports queues the delivery reports that a round makes due: one about failures, one about
// successes that were asked for. An error means that the message must be kept until they can
// be queued. why is a remark for the log about a report that went into the digest.
func (s *Scheduler) reports(rd *round, e *entry, left []envelope.Recipient) (children []string, why string, err error) {
	rs := make([]dsn.Recipient, 0, len(rd.results)+len(rd.owed))
	now := s.wall().UTC()
	for _, o := range rd.owed {
		rs = append(rs, dsn.Recipient{Recipient: recipient(rd.msg.Env, o.To), Status: o.Status, Last: now})
	}
	for i := range rd.results {
		r := &rd.results[i]
		if r.Verdict != envelope.Deferred {
			rs = append(rs, dsn.Recipient{Recipient: r.rcpt, Status: r.Status, Last: now, Relayed: r.DSN, Told: s.relayedReport(rd.msg.Env, r)})
		}
	}
	for _, kind := range []dsn.Kind{dsn.Failure, dsn.Success} {
		id, note, err := s.report(rd.msg, rd.n, kind, rs)
		if err != nil {
			s.o.Log.Error("delivery report cannot be queued", "id", rd.msg.ID, "err", err)
			return children, why, err
		}
		if id != "" {
			children = append(children, id)
		}
		if note != "" {
			why = note
		}
	}
	return children, why, nil
}

func recipient(env *envelope.Envelope, to string) envelope.Recipient {
	for i := range env.To {
		if env.To[i].Addr == to {
			return env.To[i]
		}
	}
	return envelope.Recipient{Addr: to}
}

// report queues one delivery report and returns its id; "" when none is due.
func (s *Scheduler) report(m *spool.Message, n int, kind dsn.Kind, rs []dsn.Recipient) (id, why string, err error) {
	if m.Env.From == "" {
		s.doubleBounce(m, kind, rs)
		return "", "", nil
	}
	rs = dsn.Due(m.Env, kind, rs)
	if len(rs) == 0 {
		return "", "", nil
	}
	now := s.wall()
	if !s.digest.allow(m.Env.From, m.ID, now, rs) {
		s.o.Log.Warn("delivery report goes into the digest for postmaster: too many to one address", "id", m.ID, "to", m.Env.From)
		return "", "summed up in a digest to " + s.o.Postmaster, nil
	}
	rep := &dsn.Report{
		ID: spool.ChildID(m.ID, n, string(kind), 0), Kind: kind, Env: m.Env, Recipients: rs,
		Hostname: s.o.Hostname, Postmaster: s.o.Postmaster, Now: now, Original: m.Body(),
	}
	if s.known(rep.ID) {
		return rep.ID, "", nil
	}
	env, err := dsn.Child(rep)
	if err != nil {
		return "", "", err
	}
	env.Origin.Parent, env.Origin.Round = m.ID, n
	msg, err := s.o.Submit.Begin(env, submit.Fixup{})
	if err != nil {
		return "", "", err
	}
	if err := dsn.Write(msg, *rep); err != nil {
		return "", "", errors.Join(err, msg.Abort())
	}
	if _, err := msg.Commit(); err != nil && !errors.Is(err, spool.ErrExists) {
		return "", "", err
	}
	s.o.Log.Info("delivery report queued", "id", rep.ID, "parent", m.ID, "kind", string(kind), "to", m.Env.From)
	return rep.ID, "", nil
}

// doubleBounce says what becomes of a failed message that nobody sent: RFC 5321 §6.1 forbids
// a report about a report, so the log and the history are all that tells of it.
func (s *Scheduler) doubleBounce(m *spool.Message, kind dsn.Kind, rs []dsn.Recipient) {
	if kind != dsn.Failure {
		return
	}
	for i := range rs {
		if rs[i].Verdict == envelope.Failed {
			s.o.Log.Warn("message from the null reverse-path failed: dropped without a report", "id", m.ID, "to", rs[i].Addr,
				"dsn", rs[i].Code, "reply", rs[i].Reply, "kind", m.Env.Origin.Kind, "msgid", m.Env.Origin.MsgID)
		}
	}
}

// digest counts the reports to each reverse-path. Beyond the rate they are summed up in one
// message to postmaster: a forged sender of a thousand bad mails is not buried in a thousand
// reports.
type digest struct {
	mu    sync.Mutex
	rate  int
	hour  time.Time
	sent  map[string]int
	lines []string
	more  int
}

// digestLines bounds what is remembered until the digest goes out.
const digestLines = 1000

func (d *digest) init(rate int) { d.rate, d.sent = rate, make(map[string]int) }

// allow counts one report to an address, or takes it into the digest.
func (d *digest) allow(to, id string, now time.Time, rs []dsn.Recipient) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now.Sub(d.hour) >= time.Hour || now.Before(d.hour) {
		d.hour = now
		clear(d.sent)
	}
	d.sent[to]++
	if d.sent[to] <= d.rate {
		return true
	}
	if len(d.lines) >= digestLines {
		d.more++
		return false
	}
	for i := range rs {
		d.lines = append(d.lines, fmt.Sprintf("%s from <%s> to <%s>: %s %s %s", id, to, rs[i].Addr, rs[i].Verdict, rs[i].Code, rs[i].Reply))
	}
	return false
}

// flush takes what the digest holds once its hour is over, or at the end.
func (d *digest) flush(now time.Time, force bool) (lines []string, more int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.lines) == 0 || !force && now.Sub(d.hour) < time.Hour {
		return nil, 0
	}
	lines, more = d.lines, d.more
	d.lines, d.more = nil, 0
	return lines, more
}

// sendDigest queues the digest when it is due.
func (s *Scheduler) sendDigest(force bool) {
	now := s.wall()
	lines, more := s.digest.flush(now, force)
	if len(lines) == 0 || s.o.Postmaster == "" {
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "From: Mail Delivery System <MAILER-DAEMON@%s>\nTo: <%s>\nSubject: delivery reports that were held back\n", s.o.Hostname, s.o.Postmaster)
	fmt.Fprintf(&b, "Date: %s\nAuto-Submitted: auto-generated\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\n", now.Format(time.RFC1123Z))
	fmt.Fprintf(&b, "More than %d delivery reports an hour were due to one reverse-path.\nThese were not sent:\n\n", s.digest.rate)
	for _, l := range lines {
		b.WriteString(l)
		b.WriteByte('\n')
	}
	if more > 0 {
		fmt.Fprintf(&b, "and %d more, see the log.\n", more)
	}
	env := &envelope.Envelope{
		To:     []envelope.Recipient{{Addr: s.o.Postmaster, Notify: []string{"NEVER"}}},
		Body:   envelope.Body8Bit,
		Origin: envelope.Origin{Kind: envelope.OriginDSN},
	}
	if err := s.submitText(env, b.String()); err != nil {
		s.o.Log.Error("digest of delivery reports cannot be queued", "lines", len(lines), "err", err)
	}
}

func (s *Scheduler) submitText(env *envelope.Envelope, text string) error {
	m, err := s.o.Submit.Begin(env, submit.Fixup{AddMessageID: true})
	if err != nil {
		return err
	}
	if _, err := m.Write([]byte(text)); err != nil {
		return errors.Join(err, m.Abort())
	}
	_, err = m.Commit()
	return err
}
