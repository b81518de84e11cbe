package sched

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/spool"
	"pennypost/internal/submit"
	"pennypost/internal/worker"
)

// attempt hands one job to its worker and acts on the report.
func (s *Scheduler) attempt(j *job) {
	rd := j.round
	begun := s.now()
	var rep *worker.Report
	var err error
	if s.returned(rd.msg.Env) {
		rep = overdueReport(j)
	} else {
		rep, err = j.hop.worker.do.Do(s.ctx, request(j), rd.msg.File)
	}
	var down *worker.DownError
	switch {
	case errors.As(err, &down):
		s.putBack(j, down)
		return
	case err != nil && s.ctx.Err() != nil:
		s.abandon(j)
		return
	}
	results := s.results(j, rep, err)
	s.expand(rd, results)
	for i := range results {
		s.logAttempt(rd, &results[i])
	}
	rd.mu.Lock()
	s.mu.Lock()
	rd.trouble = rd.trouble || err != nil
	s.freeSlot(j.hop)
	if err == nil {
		s.answered(j.hop, begun, results)
	}
	rd.results = append(rd.results, results...)
	rd.open--
	last := rd.open == 0
	s.counts.Attempts++
	s.dispatch()
	s.mu.Unlock()
	if !last {
		s.logPart(rd)
	}
	rd.mu.Unlock()
	if last {
		s.finish(rd)
	}
}

func request(j *job) *worker.Request {
	m := j.round.msg
	e := m.Env
	return &worker.Request{
		ID: m.ID, Attempt: j.round.n, From: e.From, To: j.to,
		NextHop: j.hop.target.NextHop, Auth: j.hop.target.Auth, TLSMode: j.hop.target.TLS,
		Offset: m.Offset, Size: m.Size, EOL: e.EOL, Body: e.Body, UTF8: e.SMTPUTF8, TLS: e.RequireTLS,
		Ret: e.Ret, EnvID: e.EnvID, By: e.DeliverBy, Priority: e.Priority, Time: e.Time, Origin: e.Origin,
	}
}

// putBack returns a job that its worker could not even be asked about.
func (s *Scheduler) putBack(j *job, down *worker.DownError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := j.hop.worker
	now := s.now()
	// Not before the agent lets us, and not so often that waiting messages keep it busy.
	pause := max(time.Until(down.Until).Milliseconds(), 50)
	if s.ending || s.ctx.Err() != nil {
		s.drop(j)
		return
	}
	if a.until <= now {
		a.err = down.Err
		s.after(pause, 0)
	}
	a.until = max(a.until, now+pause)
	i := item{j.round.ref, j}
	if j.round.open == 1 && len(j.round.results) == 0 {
		i = s.keepWarm(j)
		e := s.entries.at(i.ref)
		e.state, e.hop = waiting, j.hop.index
		s.busy--
	}
	j.hop.queue.pushFront(i, s.entries.at(i.ref).prio)
	s.freeSlot(j.hop)
	s.dispatch()
}

// abandon ends a job at the end of the scheduler: the message stays as it is on disk.
func (s *Scheduler) abandon(j *job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(j)
}

// drop forgets a job without a result. The round never closes. s.mu is held.
func (s *Scheduler) drop(j *job) {
	s.freeSlot(j.hop)
	s.shut(j.round.msg)
}

// results pairs a report with the recipients; an error defers them all.
func (s *Scheduler) results(j *job, rep *worker.Report, err error) []result {
	out := make([]result, len(j.to))
	for i := range j.to {
		out[i] = result{rcpt: j.to[i], hop: j.hop}
		if err != nil {
			out[i].Result = worker.Result{To: j.to[i].Addr, Status: envelope.Defer("4.3.0", "no answer from worker "+j.hop.worker.name+": "+err.Error())}
			continue
		}
		out[i].Result = rep.Results[i]
	}
	return out
}

// expand submits what expanded recipients became. A child that cannot be queued defers its
// recipient: the alias is followed again at the next attempt.
func (s *Scheduler) expand(rd *round, results []result) {
	for i := range results {
		x := results[i].Expand
		if x == nil {
			continue
		}
		id, err := s.child(rd, x, results[i].To)
		if err != nil {
			s.o.Log.Error("forwarded copy cannot be queued", "id", rd.msg.ID, "to", results[i].To, "err", err)
			results[i].Status = childStatus(err)
			results[i].Expand = nil
			continue
		}
		if results[i].Reply == "" {
			results[i].Reply = "expanded to " + strconv.Itoa(len(x.To)) + " recipients as message " + id
		}
	}
}

func childStatus(err error) envelope.Status {
	var e *submit.Error
	if errors.As(err, &e) && e.Status.Verdict == envelope.Failed {
		return e.Status // a loop or a limit: trying again cannot help
	}
	return envelope.Defer("4.3.0", "forwarded copy cannot be queued now: "+err.Error())
}

// child queues the message for the recipients that replace one. Its id is the same each time
// this round is repeated.
func (s *Scheduler) child(rd *round, x *worker.Expansion, to string) (string, error) {
	p := rd.msg.Env
	env := &envelope.Envelope{
		ID: spool.ChildID(rd.msg.ID, rd.n, "expand "+to, 0), From: x.From, To: x.To,
		Ret: p.Ret, EnvID: p.EnvID, Body: p.Body, SMTPUTF8: p.SMTPUTF8, RequireTLS: p.RequireTLS, EOL: p.EOL,
		DeliverBy: p.DeliverBy, Priority: p.Priority,
		Origin: envelope.Origin{Kind: envelope.OriginForward, Parent: rd.msg.ID, Round: rd.n, MsgID: p.Origin.MsgID},
	}
	if s.known(env.ID) {
		return env.ID, nil
	}
	m, err := s.o.Submit.Begin(env, submit.Fixup{Prepend: x.Prepend})
	if err != nil {
		return "", err
	}
	if _, err := m.ReadFrom(rd.msg.Body()); err != nil {
		return "", errors.Join(err, m.Abort())
	}
	id, err := m.Commit()
	if errors.Is(err, spool.ErrExists) {
		return env.ID, nil
	}
	return id, err
}

// known tells whether a child is in the queue already, from before a crash.
func (s *Scheduler) known(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries.find(id) != 0
}

func (s *Scheduler) logAttempt(rd *round, r *result) {
	var a [11]slog.Attr
	n := 0
	put := func(at slog.Attr) { a[n] = at; n++ }
	put(slog.String("id", rd.msg.ID))
	put(slog.String("from", rd.msg.Env.From))
	put(slog.String("to", r.To))
	if r.rcpt.Orig != "" && r.rcpt.Orig != r.To {
		put(slog.String("orig_to", r.rcpt.Orig))
	}
	if r.Relay != "" {
		put(slog.String("relay", r.Relay))
	}
	put(slog.String("status", string(r.Verdict)))
	put(slog.String("dsn", r.Code))
	if r.Reply != "" {
		put(slog.String("reply", r.Reply))
	}
	put(slog.Int64("delay_ms", r.DelayMS))
	put(slog.Int("attempt", rd.n))
	if r.TLS != "" {
		put(slog.String("tls", r.TLS))
	}
	s.o.Log.LogAttrs(context.Background(), slog.LevelInfo, "attempt", a[:n]...)
}

// logPart writes down what some jobs of a round have finished while others still run: a crash
// in the meantime must not deliver it again. rd.mu is held.
func (s *Scheduler) logPart(rd *round) {
	done := false
	for i := rd.logged; i < len(rd.results); i++ {
		done = done || rd.results[i].Verdict.Done() && rd.results[i].Verdict != envelope.Failed
	}
	if !done {
		return
	}
	// Failures stay out until their report is queued, in finish.
	rec := spool.Record{Kind: spool.RecAttempt, Round: rd.n}
	kept := rd.results[:rd.logged:rd.logged]
	var failed []result
	for _, r := range rd.results[rd.logged:] {
		if r.Verdict == envelope.Failed {
			failed = append(failed, r)
			continue
		}
		kept = append(kept, r)
		rec.Results = append(rec.Results, r.record())
	}
	if err := s.appendLog(rd.msg.ID, rec); err != nil {
		s.o.Log.Error("attempt log cannot be written", "id", rd.msg.ID, "err", err)
		return
	}
	n := len(kept)
	rd.results = append(kept, failed...)
	rd.logged = n
}

func (r *result) record() spool.Result {
	return spool.Result{
		To: r.To, Status: r.Status, TLS: r.TLS, DelayMS: r.DelayMS, MX: r.MX,
		Transcript: r.Transcript, Mailbox: r.Mailbox, DSN: r.DSN,
	}
}

// appendLog adds to the attempt log of a message, which a verb may be adding to as well.
func (s *Scheduler) appendLog(id string, recs ...spool.Record) error {
	l := s.logLock(id)
	l.Lock()
	defer l.Unlock()
	return s.q.AppendLog(id, recs...)
}

var _ Doer = (*worker.Agent)(nil)
