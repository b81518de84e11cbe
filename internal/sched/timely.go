package sched

import (
	"container/heap"
	"fmt"
	"strings"
	"time"

	"pennypost/internal/dsn"
	"pennypost/internal/envelope"
	"pennypost/internal/worker"
)

// timely takes over what a sender asked for in the way of time: a deadline, a priority, and that
// the age of a held message counts from its release.
func (s *Scheduler) timely(r ref, e *entry, env *envelope.Envelope) {
	e.prio = int8(max(-9, min(env.Priority, 9)))
	if env.DeliverBy != nil || env.Priority != 0 {
		e.flags |= timed
	}
	if env.HoldUntil != nil && env.HoldUntil.After(env.Time) {
		e.born = s.since(*env.HoldUntil)
		e.mark = s.nextMark(e)
	}
	if by := env.DeliverBy; by != nil {
		known := e.by != 0
		e.by = s.now() + by.Deadline.Sub(s.wall()).Milliseconds()
		if e.by == 0 {
			e.by = -1
		}
		if by.Mode == "R" {
			e.flags |= returns
		}
		e.mark = s.nextMark(e)
		if !known && e.by > s.now() {
			heap.Push(&s.timers, timer{at: e.by, ref: r})
			s.wakeUp()
		}
	}
}

// noticeAt is when the delay report falls due: at the time the sender gave with mode N (RFC 2852
// §4.1.3), and at the usual age else. 0 is never.
func (s *Scheduler) noticeAt(e *entry) int64 {
	switch {
	case e.flags&noticed != 0:
		return 0
	case e.by != 0 && e.flags&returns == 0:
		return e.by
	case s.o.DelayNotice > 0:
		return e.born + s.o.DelayNotice.Milliseconds()
	}
	return 0
}

// deadline acts on a waiting message whose sender's time is over: with mode R it goes back,
// with mode N the sender is told. s.mu is held.
func (s *Scheduler) deadline(r ref, e *entry, now int64) {
	switch {
	case e.by == 0 || e.by > now || e.flags&held != 0 || e.state != idle && e.state != waiting:
	case e.flags&returns != 0:
		// Through the hop of mixed messages it is opened even while its own hop is down.
		e.gen++
		e.mark = now + time.Minute.Milliseconds()
		s.wait(s.hops[0], item{ref: r})
	case e.flags&noticed == 0 && (e.tries > 0 || e.state == waiting):
		was := e.state
		e.state = working
		s.busy++
		s.wg.Go(func() { s.notice(r, was) })
	}
}

const tooLate = "not delivered by the time the sender asked for"

// returned tells whether a message must go back because its time is over: RFC 2852 §4.1.3
// allows no further attempt with mode R.
func (s *Scheduler) returned(env *envelope.Envelope) bool {
	by := env.DeliverBy
	return by != nil && by.Mode == "R" && !s.wall().Before(by.Deadline)
}

// overdueReport answers a job in place of its worker: all recipients failed.
func overdueReport(j *job) *worker.Report {
	rep := &worker.Report{ID: j.round.msg.ID, Results: make([]worker.Result, len(j.to))}
	for i := range j.to {
		rep.Results[i] = worker.Result{To: j.to[i].Addr, Status: envelope.Fail("5.4.7", tooLate)}
	}
	return rep
}

// lateStatus is what a delay report says of a recipient whose time is over, RFC 2852 §4.1.3.
func lateStatus(env *envelope.Envelope, st envelope.Status, now time.Time) envelope.Status {
	by := env.DeliverBy
	if by == nil || by.Mode != "N" || now.Before(by.Deadline) {
		return st
	}
	late := envelope.Defer("4.4.7", tooLate)
	if st.Reply != "" {
		late.Reply += "; the last answer was: " + st.Reply
	}
	return late
}

// relayedReport tells whether the sender is to learn that a recipient left our hands, RFC 2852
// §4.1.4: a trace was asked for, or the next hop knows nothing of the deadline.
func (s *Scheduler) relayedReport(env *envelope.Envelope, r *result) bool {
	by := env.DeliverBy
	switch {
	case by == nil || r.Verdict != envelope.Relayed || dsn.Never(r.rcpt.Notify):
		return false
	case by.Trace:
		return true
	}
	return by.Mode == "N" && !r.By && s.wall().Before(by.Deadline)
}

// explainRequests says what the sender asked for in the way of time.
func explainRequests(b *strings.Builder, env *envelope.Envelope) {
	if env.HoldUntil != nil {
		fmt.Fprintf(b, "The sender asked for it to be held until %s.\n", stamp(*env.HoldUntil))
	}
	if by := env.DeliverBy; by != nil {
		what := "the sender is told when it is late"
		if by.Mode == "R" {
			what = "it is returned when it is late"
		}
		fmt.Fprintf(b, "The sender asked for it to be delivered by %s: %s.\n", stamp(by.Deadline), what)
	}
	if env.Priority != 0 {
		fmt.Fprintf(b, "Its priority is %d.\n", env.Priority)
	}
}
