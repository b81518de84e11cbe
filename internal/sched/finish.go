package sched

import (
	"container/heap"
	"slices"
	"strconv"
	"time"

	"pennypost/internal/dsn"
	"pennypost/internal/envelope"
	"pennypost/internal/spool"
)

// reportRetry is the pause after a delivery report could not be queued.
const reportRetry = 5 * time.Minute

// finish closes a round whose jobs have all reported. The order of its steps is the promise of
// the package comment.
func (s *Scheduler) finish(rd *round) {
	rd.mu.Lock() // the last part of the log is written
	defer rd.mu.Unlock()
	id := rd.msg.ID
	s.mu.Lock()
	e := *s.entries.at(rd.ref)
	s.mu.Unlock()
	s.expire(rd, &e)
	left := remaining(rd.st.Left, rd.results)
	if e.flags&removed != 0 {
		left = nil
	}
	rec := spool.Record{Kind: spool.RecAttempt, Round: rd.n}
	var pending error
	if e.flags&removed == 0 {
		rec.Children, rec.Why, pending = s.reports(rd, &e, left)
	}
	if len(left) == 0 && pending == nil {
		s.done(rd, &e, rec.Children)
		return
	}
	for _, r := range rd.results[rd.logged:] {
		rec.Results = append(rec.Results, r.record())
	}
	due := s.nextDue(rd, left, pending)
	if len(rec.Results) > 0 {
		at := s.wallTime(due.at)
		rec.Due = &at
		if err := s.appendLog(id, rec); err != nil {
			// The message file is as before: the recipients are worked on again.
			s.o.Log.Error("attempt log cannot be written", "id", id, "err", err)
		}
	}
	s.shut(rd.msg)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rounds--
	s.settle(rd, left, due)
	s.dispatch()
}

// expire fails the deferred recipients of a message that is too old. An attempt begun after the
// deadline must have been the third at least; while a next hop is down, attempts with another
// message in front count too.
func (s *Scheduler) expire(rd *round, e *entry) {
	for i := range rd.results {
		r := &rd.results[i]
		if r.Verdict != envelope.Deferred || r.hop == nil && rd.n < minAttempts {
			continue
		}
		exp := s.o.Expiry
		tries := rd.n
		if r.hop != nil {
			exp = s.expiryOf(&r.hop.target)
			tries += int(s.probesSince(r.hop, e))
		}
		late := rd.began >= e.born+exp.Milliseconds() && tries >= minAttempts && !rd.trouble
		why := "not delivered within " + days(exp)
		if s.returned(rd.msg.Env) {
			late, why = true, tooLate
		}
		if !late {
			continue
		}
		reply := r.Reply
		r.Verdict, r.Code = envelope.Failed, "5.4.7"
		r.Reply = why
		if reply != "" {
			r.Reply += "; the last answer was: " + reply
		}
		s.logAttempt(rd, r)
	}
}

func days(d time.Duration) string {
	if d >= 48*time.Hour {
		return strconv.Itoa(int(d/(24*time.Hour))) + " days"
	}
	return d.String()
}

func (s *Scheduler) expiryOf(t *Target) time.Duration {
	if t.Expiry > 0 {
		return t.Expiry
	}
	return s.o.Expiry
}

// probesSince is how often the hop failed for others while this message waited behind it.
func (s *Scheduler) probesSince(h *hop, e *entry) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.probes == 0 || e.hop != h.index || h.probes < e.probes {
		return 0
	}
	return h.probes - e.probes
}

// remaining is what the round leaves of to.
func remaining(to []envelope.Recipient, results []result) []envelope.Recipient {
	if len(to) == 1 && len(results) == 1 {
		if results[0].Verdict.Done() {
			return nil
		}
		return to
	}
	done := make(map[string]bool, len(results))
	for i := range results {
		if results[i].Verdict.Done() {
			done[results[i].To] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(to), func(r envelope.Recipient) bool { return done[r.Addr] })
}

// historyLine is what stays of a message: envelope and results, never a byte of the message.
type historyLine struct {
	ID       string          `json:"id"`
	Time     time.Time       `json:"time"` // when it was done
	Accepted time.Time       `json:"accepted"`
	From     string          `json:"from"`
	Size     int64           `json:"size"`
	Attempts int             `json:"attempts"`
	DelayMS  int64           `json:"delay_ms"` // from acceptance to the end
	Origin   envelope.Origin `json:"origin"`
	Results  []historyResult `json:"results"`
	Removed  bool            `json:"removed,omitempty"` // by an admin, without a report
	Children []string        `json:"children,omitempty"`
}

type historyResult struct {
	To     string `json:"to"`
	OrigTo string `json:"orig_to,omitempty"`
	envelope.Status
	TLS     string `json:"tls,omitempty"`
	Mailbox string `json:"mailbox,omitempty"`
}

// done ends a message: its line of history, then its removal.
func (s *Scheduler) done(rd *round, e *entry, children []string) {
	h := s.history(rd, children)
	h.Removed = e.flags&removed != 0
	s.bury(rd.msg, h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rounds--
	s.busy--
	s.counts.Done++
	s.forget(rd.ref)
	s.dispatch()
}

// bury writes the history line and removes the message.
func (s *Scheduler) bury(m *spool.Message, h *historyLine) {
	if err := s.q.History(h); err != nil {
		s.o.Log.Error("history cannot be written", "id", m.ID, "err", err)
	}
	l := s.logLock(m.ID)
	l.Lock()
	err := s.q.Remove(m.ID)
	l.Unlock()
	if err != nil {
		// It comes back at the next start, and is delivered again: say so loudly.
		s.o.Log.Error("finished message cannot be removed", "id", m.ID, "err", err)
	}
	s.shut(m)
}

// history collects the last word on each recipient, from this round or from the log.
func (s *Scheduler) history(rd *round, children []string) *historyLine {
	env := rd.msg.Env
	h := &historyLine{
		ID: rd.msg.ID, Time: s.wall().UTC().Truncate(time.Millisecond), Accepted: env.Time, From: env.From, Size: rd.msg.Size,
		Attempts: rd.n, Origin: env.Origin, Children: slices.Concat(rd.st.Children, children),
		DelayMS: max(0, s.wall().Sub(env.Time).Milliseconds()),
	}
	if rd.st.Attempts == 0 && rd.logged == 0 {
		h.Results = make([]historyResult, 0, len(rd.results))
		for i := range rd.results {
			h.add(rd.results[i].record(), env)
		}
		return h
	}
	last := map[string]int{}
	put := func(r spool.Result) {
		if i, ok := last[r.To]; ok {
			h.Results = slices.Delete(h.Results, i, i+1)
			for to, j := range last {
				if j > i {
					last[to] = j - 1
				}
			}
		}
		last[r.To] = len(h.Results)
		h.add(r, env)
	}
	err := s.q.ReadLog(rd.msg.ID, func(rec *spool.Record) error {
		for i := range rec.Results {
			put(rec.Results[i])
		}
		return nil
	})
	if err != nil {
		s.o.Log.Warn("history lacks what the attempt log says", "id", rd.msg.ID, "err", err)
	}
	for i := range rd.results {
		put(rd.results[i].record())
	}
	return h
}

func (h *historyLine) add(r spool.Result, env *envelope.Envelope) {
	line := historyResult{To: r.To, Status: r.Status, TLS: r.TLS, Mailbox: r.Mailbox}
	for i := range env.To {
		if env.To[i].Addr == r.To && env.To[i].Orig != r.To {
			line.OrigTo = env.To[i].Orig
			break
		}
	}
	h.Results = append(h.Results, line)
}

// next says what a message waits for after a round.
type next struct {
	at  int64
	hop *hop // wait behind this one; nil: for at
}

// nextDue finds when and behind which hop the recipients left go on.
func (s *Scheduler) nextDue(rd *round, left []envelope.Recipient, pending error) next {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if pending != nil {
		return next{at: now + reportRetry.Milliseconds()}
	}
	hops := slices.Clone(rd.hops)
	for i := range rd.results {
		if r := &rd.results[i]; r.Verdict == envelope.Deferred && r.hop != nil && !slices.Contains(hops, r.hop) {
			hops = append(hops, r.hop)
		}
	}
	if len(hops) == 1 && hops[0].fails > 0 {
		return next{at: max(hops[0].until, now), hop: hops[0]}
	}
	// An attempt that somebody asked for before its time is no step of the schedule: the next one
	// comes when it would have come. Should the clock have been set back, it comes within the
	// pause that was agreed on.
	table, step := s.o.Retry, rd.n-rd.st.Extra
	early := rd.st.Early(s.wall())
	if early {
		step--
	}
	at := int64(0)
	for _, h := range hops {
		t := now + interval(s.retryOf(&h.target), step, s.o.Rand()).Milliseconds()
		if h.fails > 0 {
			t = max(h.until, now+100)
		}
		if at == 0 || t < at {
			at = t
		}
	}
	if len(hops) == 0 {
		at = now + interval(table, step, s.o.Rand()).Milliseconds()
	}
	if early {
		at = min(at, now+rd.st.Planned.Sub(s.wall()).Milliseconds())
	}
	if rd.trouble {
		tr := int(s.entries.at(rd.ref).trouble) + 1
		at = min(at, now+troublePause(tr, table, s.o.Rand()).Milliseconds())
	}
	return next{at: at}
}

// settle lets a message wait after a round. s.mu is held.
func (s *Scheduler) settle(rd *round, left []envelope.Recipient, n next) {
	e := s.entries.at(rd.ref)
	e.gen++
	s.busy--
	attempted := len(rd.results) > 0
	if attempted {
		e.tries = uint16(min(rd.n, 65535))
	}
	if rd.trouble {
		e.trouble = uint8(min(int(e.trouble)+1, 100))
	} else {
		e.trouble = 0
	}
	e.left = uint32(len(left))
	to := ""
	if len(left) > 0 {
		to = left[0].Addr
	}
	if t := rd.msg.Env.From + "\t" + to; t != e.text {
		e.text = t
	}
	e.due = n.at
	e.probes = 0
	e.mark = s.nextMark(e)
	s.note(rd.ref)
	switch {
	case e.flags&held != 0 || n.hop == nil:
		e.hop = 0
		s.locate(e)
		s.park(rd.ref, e)
	default:
		e.flags &^= overdue
		s.wait(n.hop, item{ref: rd.ref})
	}
}

// hopIndex is the index of a target's hop, 0 for one that refuses.
func (s *Scheduler) hopIndex(t Target) uint32 {
	if t.Error != nil {
		return 0
	}
	return s.hopFor(t).index
}

// nextMark is when the message's age is looked at next.
func (s *Scheduler) nextMark(e *entry) int64 {
	exp := s.o.Expiry
	if e.hop != 0 {
		exp = s.expiryOf(&s.hops[e.hop].target)
	}
	m := e.born + exp.Milliseconds()
	if at := s.noticeAt(e); at != 0 {
		m = min(m, at)
	}
	if e.flags&returns != 0 {
		m = min(m, e.by)
	}
	return m
}

// sweep looks at the age of what waits: delay reports fall due, and messages past their expiry
// get an attempt that is their last. s.mu is held.
func (s *Scheduler) sweep() {
	now := s.now()
	budget := sweepBatch
	s.entries.each(func(r ref, e *entry) bool {
		if e.mark > now || e.flags&(held|overdue) != 0 || e.state != idle && e.state != waiting {
			return true
		}
		budget--
		exp := s.o.Expiry
		if e.hop != 0 {
			exp = s.expiryOf(&s.hops[e.hop].target)
		}
		switch {
		case now >= e.born+exp.Milliseconds():
			s.overdue(r, e, now)
		case e.flags&returns != 0 && now >= e.by:
			s.deadline(r, e, now)
		case s.noticeAt(e) != 0 && (e.tries > 0 || e.state == waiting):
			was := e.state
			e.state = working
			s.busy++
			s.wg.Go(func() { s.notice(r, was) })
		default:
			e.mark = now + time.Minute.Milliseconds()
		}
		return budget > 0
	})
	s.dispatch()
}

// sweepBatch bounds the files one sweep opens.
const sweepBatch = 2000

// overdue gives a message past its expiry an attempt. One that the next hop never got, nor was
// probed for often enough, waits for that first.
func (s *Scheduler) overdue(r ref, e *entry, now int64) {
	e.mark = now + time.Minute.Milliseconds()
	if e.state == idle {
		if int(e.tries)+1 >= minAttempts && e.due > now {
			e.due = now
			heap.Push(&s.timers, timer{at: now, ref: r})
			s.wakeUp()
		}
		return
	}
	h := s.hops[e.hop]
	if h.mixed() || h.fails == 0 || int(e.tries)+int(h.probes-min(e.probes, h.probes))+1 < minAttempts {
		return
	}
	e.flags |= overdue
	s.wait(h, item{ref: r})
}

// notice sends the delay report of a waiting message.
func (s *Scheduler) notice(r ref, was uint8) {
	s.mu.Lock()
	e := *s.entries.at(r)
	why := envelope.Defer("4.4.7", "no attempt was made yet")
	if h := s.hops[e.hop]; was == waiting && h.fails > 0 {
		why = h.last
	}
	s.mu.Unlock()
	err := s.delayReport(&e, why)
	if err != nil {
		s.o.Log.Error("delay report cannot be queued", "id", string(e.id[:]), "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.entries.at(r)
	s.busy--
	now := s.now()
	if err == nil {
		p.flags |= noticed
		p.mark = s.nextMark(p)
	} else {
		p.mark = now + reportRetry.Milliseconds()
	}
	if p.flags&removed != 0 {
		p.flags &^= removed // the verb's record is in the log: the next round ends the message
		p.due = now
		was = idle
	}
	if was == waiting && p.flags&held == 0 {
		s.wait(s.hops[p.hop], item{ref: r})
	} else {
		s.park(r, p)
	}
	s.dispatch()
}

// delayReport queues the delay report of a message, if one is wanted and not sent yet.
// why stands for recipients without an attempt of their own.
func (s *Scheduler) delayReport(e *entry, why envelope.Status) error {
	id := string(e.id[:])
	m, st, _, err := s.openMessage(id)
	if err != nil {
		return err
	}
	defer s.shut(m)
	if st.Notified {
		return nil
	}
	last := map[string]spool.Result{}
	if err := s.q.ReadLog(id, func(rec *spool.Record) error {
		for _, r := range rec.Results {
			last[r.To] = r
		}
		return nil
	}); err != nil {
		return err
	}
	rs := make([]dsn.Recipient, 0, len(st.Left))
	for _, to := range st.Left {
		status := why
		if r, ok := last[to.Addr]; ok {
			status = r.Status
		}
		status = lateStatus(m.Env, status, s.wall())
		rs = append(rs, dsn.Recipient{Recipient: to, Status: status, Last: st.Last, RetryUntil: s.wallTime(e.born + s.o.Expiry.Milliseconds())})
	}
	child, _, err := s.report(m, st.Attempts, dsn.Delay, rs)
	if err != nil {
		return err
	}
	rec := spool.Record{Kind: spool.RecNotice}
	if child != "" {
		rec.Children = []string{child}
	}
	return s.appendLog(id, rec)
}
