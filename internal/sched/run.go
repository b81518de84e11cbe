package sched

import (
	"container/heap"
	"context"
	"errors"
	"iter"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"pennypost/internal/spool"
)

// Pauses of the main loop.
const (
	sweepPause   = time.Minute
	journalPause = time.Second
	journalBatch = 500
	housePause   = time.Hour
	jumpPause    = 10 * time.Second
)

// Run works on the queue until ctx ends, or with Options.UntilEmpty until nothing is queued.
// ready, if not nil, is called once messages are taken in and verbs answered. Attempts under
// way when ctx ends get Options.Grace to finish; then they are given up, and made again by the
// next scheduler.
func (s *Scheduler) Run(ctx context.Context, ready func() error) error {
	wake, control, err := s.listen()
	if err != nil {
		return err
	}
	actx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s.ctx = actx
	if err := s.open(); err != nil {
		return errors.Join(err, wake.Close(), control.Close())
	}
	var side sync.WaitGroup
	for range 2 { // a second one reads pokes while the first opens a file
		side.Go(func() { s.pokes(wake) })
	}
	side.Go(func() { s.serveControl(actx, control) })
	s.scan(true)
	if ready != nil {
		err = ready()
	}
	if err == nil {
		s.loop(ctx)
	}
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	// Errors of closing a socket we only read from tell nothing.
	_ = wake.Close()
	_ = control.Close()
	s.drain(cancel)
	side.Wait()
	err = errors.Join(err, s.put(), s.q.WriteDue(s.earliest()))
	if s.missed != "" {
		// The datagram is read and gone; a service manager that holds the socket starts the
		// next scheduler for a new one.
		s.o.Spool.Poke(s.missed)
	}
	return err
}

func (s *Scheduler) listen() (*spool.Wake, *net.UnixListener, error) {
	wake := s.o.Wake
	var err error
	if wake == nil {
		if wake, err = s.q.ListenWake(); err != nil {
			return nil, nil, err
		}
	}
	control := s.o.Control
	if control == nil {
		if control, err = listenControl(s.o.Spool.ControlPath()); err != nil {
			return nil, nil, errors.Join(err, wake.Close())
		}
	}
	return wake, control, nil
}

// open cleans up after a crash and loads the queue.
func (s *Scheduler) open() error {
	s.clean()
	return s.load()
}

func (s *Scheduler) clean() {
	aside, err := s.q.Clean()
	for _, a := range aside {
		s.o.Log.Warn("message is set aside in corrupt/", "id", a.ID, "err", a.Why)
	}
	if err != nil {
		s.o.Log.Error("spool cannot be cleaned", "err", err)
	}
	if err := s.q.SweepHistory(s.o.History); err != nil {
		s.o.Log.Error("old history cannot be removed", "err", err)
	}
}

// pokes takes in messages as their submitters tell of them. The kernel keeps few datagrams (ten
// on Linux) and drops what comes on top, so they are read while others are being worked on, and
// behind every burst incoming/ is looked at for messages whose poke was dropped.
func (s *Scheduler) pokes(w *spool.Wake) {
	ids := make(chan string, pokeQueue)
	go s.readPokes(w, ids)
	burst := 0
	for id := range ids {
		burst++
		if domain, below, ok := spool.PokedDomain(id); ok {
			s.flushDomain(domain, below)
		} else if id == "" {
			s.scan(false)
		} else if err := s.intake(id, false); err != nil {
			s.o.Log.Error("message cannot be taken in", "id", id, "err", err)
		}
		if len(ids) > 0 {
			continue
		}
		if burst >= pokeBurst {
			s.scan(false)
		}
		burst = 0
	}
}

const (
	pokeQueue = 1024
	pokeBurst = 4 // so many in a row may have been more
)

// readPokes empties the wake-up socket until it is closed.
func (s *Scheduler) readPokes(w *spool.Wake, ids chan<- string) {
	defer close(ids)
	for {
		id, err := w.Next()
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				s.o.Log.Error("wake-up socket fails: new mail waits for the scan", "err", err)
			}
			return
		}
		ids <- id
	}
}

// loop sleeps from one timer to the next.
func (s *Scheduler) loop(ctx context.Context) {
	var sweep, put, house, jump int64
	scan := s.now()
	t := time.NewTimer(0)
	defer t.Stop()
	for ctx.Err() == nil {
		now := s.now()
		at := func(last *int64, every time.Duration, fn func()) {
			if now >= *last+every.Milliseconds() {
				*last = now
				fn()
			}
		}
		at(&jump, jumpPause, s.watchClock)
		at(&scan, s.o.Scan, func() { s.scan(false) })
		at(&put, journalPause, func() { s.logPut(s.put()) })
		at(&house, housePause, s.clean)
		at(&sweep, sweepPause, func() {
			s.sendDigest(false)
			s.mu.Lock()
			s.sweep()
			s.mu.Unlock()
		})
		wait := s.fire()
		if s.o.UntilEmpty && s.empty() {
			return
		}
		next := min(wait, s.o.Scan.Milliseconds(), jumpPause.Milliseconds())
		if s.dirtyLen() > 0 {
			next = min(next, journalPause.Milliseconds())
		}
		t.Reset(time.Duration(max(next, 1)) * time.Millisecond)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-s.kick:
			if s.dirtyLen() >= journalBatch {
				s.logPut(s.put())
			}
		}
	}
}

// fire starts what is due and returns the milliseconds to the next timer.
func (s *Scheduler) fire() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.fireUntil(now)
	s.dispatch()
	if len(s.timers) == 0 {
		return time.Hour.Milliseconds()
	}
	return s.timers[0].at - now
}

// fireUntil moves what is due at now into the queues. s.mu is held.
func (s *Scheduler) fireUntil(now int64) {
	for len(s.timers) > 0 && s.timers[0].at <= now {
		t := heap.Pop(&s.timers).(timer)
		switch {
		case t.ref != 0:
			e := s.entries.at(t.ref)
			if e.state == idle && e.flags&held == 0 && e.due <= now {
				s.wait(s.hops[e.hop], item{ref: t.ref})
			} else {
				s.deadline(t.ref, e, now)
			}
		case t.hop != 0:
			if h := s.hops[t.hop]; h.queue.len() > 0 || h.urgent.len() > 0 {
				s.activate(h)
			}
		}
	}
}

// after has the main loop look again in some milliseconds, for a hop or (0) for all workers.
// s.mu is held.
func (s *Scheduler) after(ms int64, hop uint32) {
	heap.Push(&s.timers, timer{at: s.now() + ms, hop: hop})
	s.wakeUp()
}

// empty tells whether nothing is queued at all, incoming/ included.
func (s *Scheduler) empty() bool {
	s.mu.Lock()
	n := s.entries.len()
	s.mu.Unlock()
	if n > 0 {
		return false
	}
	s.scan(false)
	s.sendDigest(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries.len() == 0
}

// Once attempts everything that is due, each message once, and what came out of it, and
// returns when that is done.
func (s *Scheduler) Once(ctx context.Context) error {
	actx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s.ctx = actx
	if err := s.open(); err != nil {
		return err
	}
	s.watchClock()
	due := s.now()
	s.mu.Lock()
	s.sweep()
	s.mu.Unlock()
	s.quiet(ctx) // a message whose delay is being reported cannot be attempted meanwhile
	s.scan(true)
	for ctx.Err() == nil {
		before := s.total()
		s.mu.Lock()
		s.fireUntil(due)
		s.dispatch()
		s.mu.Unlock()
		s.quiet(ctx)
		s.scan(true) // what came out of it
		if s.total() == before {
			break
		}
	}
	s.sendDigest(true)
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	s.drain(cancel)
	return errors.Join(s.put(), s.q.WriteDue(s.earliest()))
}

func (s *Scheduler) total() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts.Taken
}

// quiet waits until no attempt is under way and none may start.
func (s *Scheduler) quiet(ctx context.Context) {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for ctx.Err() == nil {
		s.mu.Lock()
		busy := s.busy > 0 && !s.stuck()
		s.mu.Unlock()
		if !busy {
			return
		}
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
}

// stuck tells whether all that is left to do waits for a worker that cannot be reached.
func (s *Scheduler) stuck() bool {
	down := false
	for _, a := range s.order {
		if a.running > 0 {
			return false
		}
		down = down || a.until > s.now()
	}
	return down
}

// earliest is when something is due next; zero when nothing waits.
func (s *Scheduler) earliest() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	var at int64
	s.entries.each(func(_ ref, e *entry) bool {
		if e.flags&held == 0 {
			if due := s.dueOf(e); at == 0 || due < at {
				at = due
			}
		}
		return true
	})
	if at == 0 {
		return time.Time{}
	}
	return s.wallTime(at)
}

// dueOf is when a message goes on as far as is known: behind a hop that is down, when that is
// tried again.
func (s *Scheduler) dueOf(e *entry) int64 {
	if e.state == waiting {
		if h := s.hops[e.hop]; h.fails > 0 {
			return h.until
		}
	}
	return e.due
}

// drain lets attempts under way finish, and gives them up after Grace.
func (s *Scheduler) drain(giveUp context.CancelFunc) {
	s.dropWarm()
	t := time.AfterFunc(s.o.Grace, func() {
		s.o.Log.Warn("attempts under way are given up; the next scheduler makes them again", "after", s.o.Grace.String())
		giveUp()
	})
	defer t.Stop()
	s.wg.Wait()
}

// dropWarm closes the files of rounds that will not start any more.
func (s *Scheduler) dropWarm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.hops {
		for h.waits() {
			if i := h.pop(); i.job != nil && i.job.warm {
				s.shut(i.job.round.msg)
			}
		}
	}
}

func (s *Scheduler) dirtyLen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.dirty)
}

func (s *Scheduler) logPut(err error) {
	if err != nil {
		s.o.Log.Error("journal cannot be written: the next start opens all messages", "err", err)
	}
}

// put tells the journal what changed, and begins a new snapshot when the journal got long. It
// is called by one goroutine at a time.
func (s *Scheduler) put() error {
	if s.journal == nil {
		return nil
	}
	s.mu.Lock()
	list := make([]spool.Entry, 0, len(s.dirty))
	for r := range s.dirty {
		list = append(list, s.snapshot(s.entries.at(r)))
	}
	clear(s.dirty)
	n := s.entries.len()
	s.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	if err := s.journal.Put(list...); err != nil {
		return err
	}
	if s.journal.Len() > n+10000 {
		return s.compact()
	}
	return nil
}

// compact writes a new snapshot. The entries are copied a few at a time: verbs and reports do
// not wait for a million lines.
func (s *Scheduler) compact() error {
	s.mu.Lock()
	ids := slices.Collect(maps.Keys(s.entries.byID))
	s.mu.Unlock()
	slices.SortFunc(ids, func(a, b key) int { return strings.Compare(string(a[:]), string(b[:])) })
	var seq iter.Seq[spool.Entry] = func(yield func(spool.Entry) bool) {
		for part := range slices.Chunk(ids, 1000) {
			for _, e := range s.copies(part) {
				if !yield(e) {
					return
				}
			}
		}
	}
	return s.journal.Compact(seq)
}

func (s *Scheduler) copies(ids []key) []spool.Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]spool.Entry, 0, len(ids))
	for _, id := range ids {
		if r := s.entries.byID[id]; r != 0 {
			out = append(out, s.snapshot(s.entries.at(r)))
		}
	}
	return out
}
