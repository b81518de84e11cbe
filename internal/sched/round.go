package sched

import (
	"container/heap"
	"errors"
	"io/fs"
	"sync"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/spool"
	"pennypost/internal/worker"
)

// round is one pass over the recipients a message has left: a job for each next hop, all of
// which have reported before the round is closed.
type round struct {
	ref     ref
	msg     *spool.Message
	st      spool.State
	owed    []spool.Result // failures of earlier rounds whose report could not be queued
	n       int            // number of the round, from 1
	began   int64
	trouble bool // a worker broke off

	mu     sync.Mutex // of the steps from a report to the log: one job at a time
	logged int        // results[:logged] are in the attempt log

	open    int // jobs that have not reported; under Scheduler.mu
	results []result
	hops    []*hop // with recipients that were left alone because the hop is in back-off
}

// result is a worker's result with the recipient it is about.
type result struct {
	worker.Result
	rcpt envelope.Recipient
	hop  *hop // nil: no worker was asked
}

// job is one request to one worker.
type job struct {
	round *round
	hop   *hop
	to    []envelope.Recipient
	warm  bool   // the only one of its round, waiting with its file open; counted in Scheduler.warm
	gen   uint16 // of the entry when it began to wait
}

// maxHold bounds a hold-until time that is believed; see stored.
const maxHold = 45 * 24 * time.Hour

// begin starts a round for a message whose file is open, or lets the message wait when it may
// not start one. slot is a hop at which room for one job is reserved already. s.mu is held.
func (s *Scheduler) begin(r ref, m *spool.Message, st *spool.State, owed []spool.Result, slot *hop) {
	e := s.entries.at(r)
	s.know(e, m, st)
	s.timely(r, e, m.Env)
	now := s.now()
	wait := st.Attempts == 0 && st.Due.After(s.wall()) && st.Due.Sub(s.wall()) < maxHold
	if wait {
		e.due = now + st.Due.Sub(s.wall()).Milliseconds()
	}
	if wait || e.flags&held != 0 {
		s.shut(m)
		s.freeSlot(slot)
		s.park(r, e)
		s.note(r)
		return
	}
	rd := &round{ref: r, msg: m, st: *st, owed: owed, n: st.Attempts + 1, began: now}
	jobs := s.group(rd)
	s.rounds++
	if e.state != working {
		e.state = working
		s.busy++
	}
	rd.open = len(jobs)
	if len(jobs) == 1 && len(rd.results) == 0 && s.single(rd, jobs[0], slot, now) {
		return
	}
	for _, j := range jobs {
		switch {
		case j.hop == slot:
			slot = nil
			s.launch(j)
		case j.hop.down(now) && e.flags&overdue == 0:
			rd.open--
			rd.hops = append(rd.hops, j.hop)
		default:
			s.wait(j.hop, item{r, j})
		}
	}
	s.freeSlot(slot)
	if rd.open == 0 {
		s.wg.Go(func() { s.finish(rd) })
	}
}

// single places the only job of a round: it starts, or waits warm while there is room for open
// files, or is closed again and waits cold.
func (s *Scheduler) single(rd *round, j *job, slot *hop, now int64) bool {
	h := j.hop
	e := s.entries.at(rd.ref)
	switch {
	case h == slot:
		s.launch(j)
		return true
	case s.warm >= maxWarm || h.down(now) && e.flags&overdue == 0:
		s.shut(rd.msg)
		s.rounds--
		s.busy--
		s.wait(h, item{ref: rd.ref})
		s.note(rd.ref)
	default:
		s.busy--
		s.wait(h, s.keepWarm(j))
	}
	s.freeSlot(slot)
	return true
}

// keepWarm makes the only job of a round one that waits with its file open.
func (s *Scheduler) keepWarm(j *job) item {
	j.warm, j.gen = true, s.entries.at(j.round.ref).gen
	s.warm++
	return item{j.round.ref, j}
}

// chill closes a warm job that is not to start: its message waits cold, or went another way.
func (s *Scheduler) chill(j *job) {
	j.warm = false
	s.warm--
	s.rounds--
	s.shut(j.round.msg)
}

// skip leaves the recipients of a job alone in this round.
func (s *Scheduler) skip(j *job) {
	rd := j.round
	rd.hops = append(rd.hops, j.hop)
	rd.open--
	if rd.open == 0 {
		s.wg.Go(func() { s.finish(rd) })
	}
}

// know takes over what the open file says.
func (s *Scheduler) know(e *entry, m *spool.Message, st *spool.State) {
	to := ""
	if len(st.Left) > 0 {
		to = st.Left[0].Addr
	}
	if t := m.Env.From + "\t" + to; t != e.text {
		e.text = t
	}
	e.left, e.size, e.tries = uint32(len(st.Left)), m.Size, uint16(min(st.Attempts, 65535))
	e.uid = int32(m.UID)
	if u := m.Env.Origin.UID; u != nil {
		e.uid = int32(*u)
	}
	if e.flags&fromDisk != 0 {
		e.born = s.since(m.Env.Time)
		e.flags &^= fromDisk
	}
	if st.Hold {
		e.flags |= held
	} else {
		e.flags &^= held
	}
	e.route(st.Route)
	if st.Notified || m.Env.From == "" {
		e.flags |= noticed
	}
	if e.mark == 0 {
		e.mark = s.nextMark(e)
	}
}

// group makes the jobs of a round, and results for recipients that a route refuses.
func (s *Scheduler) group(rd *round) []*job {
	var jobs []*job
	var byHop map[*hop]*job
	var seen map[string]bool
	if len(rd.st.Left) > 1 {
		byHop, seen = make(map[*hop]*job), make(map[string]bool, len(rd.st.Left))
	}
	late := s.returned(rd.msg.Env)
	for _, to := range rd.st.Left {
		if seen != nil {
			if seen[to.Addr] {
				continue // named twice in the envelope: one copy is enough
			}
			seen[to.Addr] = true
		}
		t := s.target(rd, to.Addr)
		if late {
			st := envelope.Fail("5.4.7", tooLate)
			t.Error = &st
		}
		if t.Error != nil {
			rd.results = append(rd.results, result{Result: worker.Result{To: to.Addr, Status: *t.Error}, rcpt: to})
			continue
		}
		h := s.hopFor(t)
		j := byHop[h]
		if j == nil || len(j.to) >= s.o.PerRequest {
			j = &job{round: rd, hop: h}
			jobs = append(jobs, j)
			if byHop != nil {
				byHop[h] = j
			}
		}
		j.to = append(j.to, to)
	}
	return jobs
}

// target is where a recipient goes: an admin's word for this message, else the table's.
func (s *Scheduler) target(rd *round, addr string) Target {
	if rd.st.Route != "" {
		if t, err := ParseTarget(rd.st.Route); err == nil {
			return t
		}
	}
	return s.table.find(addr)
}

func (s *Scheduler) shut(m *spool.Message) {
	_ = m.Close() // read only
}

// reserve takes room for one job at the hop.
func (s *Scheduler) reserve(h *hop) {
	h.running++
	h.worker.running++
	if h.worker.shared {
		s.running++
	}
}

// freeSlot gives it back.
func (s *Scheduler) freeSlot(h *hop) {
	if h == nil {
		return
	}
	h.running--
	h.worker.running--
	if h.worker.shared {
		s.running--
	}
	if h.queue.len() > 0 || h.urgent.len() > 0 {
		s.activate(h)
	}
}

// launch starts a job whose room is reserved.
func (s *Scheduler) launch(j *job) {
	if j.warm {
		j.warm = false
		s.warm--
	}
	s.wg.Go(func() { s.attempt(j) })
}

// dispatch starts what may start: each worker takes the next hops in turn, one message each.
// s.mu is held.
func (s *Scheduler) dispatch() {
	if s.ending {
		return
	}
	now := s.now()
	for _, a := range s.order {
		for a.active.len() > 0 && s.room(a, now) {
			h := a.active.pop()
			if s.ready(h, now) && s.startNext(h) {
				a.active.push(h)
			} else {
				h.active = false
			}
		}
	}
}

// room tells whether the worker can take one more request.
func (s *Scheduler) room(a *agent, now int64) bool {
	if a.running >= a.max || a.until > now {
		return false
	}
	return !a.shared || s.running < s.o.Total
}

// startNext starts the first message in the hop's queue that still belongs there.
func (s *Scheduler) startNext(h *hop) bool {
	for h.waits() {
		i := h.pop()
		e := s.entries.at(i.ref)
		if i.job != nil && !i.job.warm {
			if e.flags&(held|removed) != 0 {
				s.skip(i.job)
				continue
			}
			s.reserve(h)
			s.launch(i.job)
			return true
		}
		if e.state != waiting || e.hop != h.index || i.job != nil && i.job.gen != e.gen {
			if i.job != nil { // an admin changed something, or it moved on
				s.chill(i.job)
			}
			continue
		}
		e.state = working
		s.busy++
		s.reserve(h)
		if i.job != nil {
			s.launch(i.job)
		} else {
			s.wg.Go(func() { s.reopen(i.ref, h) })
		}
		return true
	}
	return false
}

// reopen opens a message that waited cold and begins its round.
func (s *Scheduler) reopen(r ref, slot *hop) {
	s.mu.Lock()
	id := string(s.entries.at(r).id[:])
	s.mu.Unlock()
	m, st, owed, err := s.openMessage(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries.at(r)
	if err != nil {
		s.unreadable(r, e, err)
		s.freeSlot(slot)
	} else {
		s.begin(r, m, &st, owed, slot)
	}
	s.dispatch()
}

// openMessage opens a message of queue/ with what its attempt log says.
func (s *Scheduler) openMessage(id string) (*spool.Message, spool.State, []spool.Result, error) {
	m, err := s.q.Open(id)
	if err != nil {
		return nil, spool.State{}, nil, err
	}
	st := spool.NewState(m.Env)
	var owed []spool.Result
	err = s.q.ReadLog(id, func(r *spool.Record) error {
		st.Apply(r)
		if r.Kind != spool.RecAttempt {
			return nil
		}
		if len(r.Children) > 0 || r.Why != "" {
			owed = nil // a report of a later round names what earlier ones owe
		}
		if len(r.Children) == 0 && r.Why == "" {
			for i := range r.Results {
				if r.Results[i].Verdict == envelope.Failed {
					owed = append(owed, r.Results[i])
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, st, nil, errors.Join(err, m.Close())
	}
	return m, st, owed, nil
}

// unreadable deals with a message that could not be opened. s.mu is held.
func (s *Scheduler) unreadable(r ref, e *entry, err error) {
	id := string(e.id[:])
	s.busy--
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.o.Log.Error("message has vanished from queue/", "id", id)
		s.forget(r)
	case errors.Is(err, spool.ErrCorrupt), errors.Is(err, spool.ErrUnfinished):
		s.forget(r)
		s.wg.Go(func() { s.setAside(id, err) })
	default:
		s.o.Log.Error("message cannot be opened", "id", id, "err", err)
		e.due = s.now() + time.Minute.Milliseconds()
		s.park(r, e)
	}
}

// forget drops an entry. s.mu is held.
func (s *Scheduler) forget(r ref) {
	delete(s.dirty, r)
	s.entries.drop(r)
	if s.entries.len() == 0 {
		s.wakeUp()
	}
}

// note remembers to tell the journal of an entry. s.mu is held.
func (s *Scheduler) note(r ref) {
	s.dirty[r] = struct{}{}
	if len(s.dirty) == journalBatch {
		s.wakeUp()
	}
}

// wait puts an item into a hop's queue. s.mu is held.
func (s *Scheduler) wait(h *hop, i item) {
	e := s.entries.at(i.ref)
	if i.job == nil || i.job.warm {
		e.state, e.hop = waiting, h.index
		s.news(h, e)
		if e.probes == 0 {
			e.probes = h.probes
		}
	}
	if e.flags&overdue != 0 {
		h.urgent.push(i)
	} else {
		h.queue.push(i, e.prio)
	}
	s.activate(h)
}

// news shortens the back-off of a hop that has been failing for long when a new message comes
// for it, so that it is looked at as often as for a message of its own, not more.
func (s *Scheduler) news(h *hop, e *entry) {
	if e.tries > 0 || h.fails == 0 {
		return
	}
	at := h.probed + interval(s.retryOf(&h.target), 1, 0.5).Milliseconds()
	if h.until > at {
		h.until = at
		heap.Push(&s.timers, timer{at: at, hop: h.index})
	}
}

func (s *Scheduler) retryOf(t *Target) []time.Duration {
	if t.Retry != nil {
		return t.Retry
	}
	return s.o.Retry
}
