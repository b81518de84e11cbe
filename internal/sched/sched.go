// Package sched decides when, to whom, and how many at once: it takes messages out of the
// spool, groups their recipients by next hop, hands them to workers, and acts on the reports
// until each recipient is done, failed or expired. It knows no SMTP and no mailbox.
//
// What is on disk is the truth, what is in memory a view of it. The order of steps after a
// report makes every crash harmless: messages that came out of it (forwards, delivery reports)
// are durable first, under ids derived from the parent and the round, then the attempt log says
// what is done, or the message is removed. A crash between two steps repeats work; it forgets
// nothing.
package sched

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"pennypost/internal/spool"
	"pennypost/internal/submit"
	"pennypost/internal/worker"
)

// Doer makes one attempt: a worker.Agent, or in tests a fake.
type Doer interface {
	Do(ctx context.Context, r *worker.Request, f *os.File) (*worker.Report, error)
}

// Worker is a Doer and how many requests it takes at once.
type Worker struct {
	Do  Doer
	Max int
}

// Options say how a Scheduler works. Zero values take the defaults of mconf(5).
type Options struct {
	Spool      *spool.Spool
	Submit     *submit.Submitter // takes delivery reports and forwards
	Hostname   string
	Postmaster string
	Domains    []string // local ones; the first completes bare names
	Routes     []Route
	Smarthost  *Target
	Workers    map[string]Worker

	Retry       []time.Duration
	Expiry      time.Duration
	DelayNotice time.Duration // negative: never
	Scan        time.Duration
	History     time.Duration
	Grace       time.Duration // how long attempts may go on after the end of Run's context
	PerHop      int
	Total       int
	PerRequest  int // recipients in one request
	DSNRate     int // delivery reports to one reverse-path an hour

	Admin      func(uid int) bool // who may see and change every message
	Wake       *spool.Wake        // adopted from the activator; nil: own
	Control    *net.UnixListener  // likewise
	UntilEmpty bool               // Run returns when nothing is queued
	Now        func() time.Time   // wall clock; nil: time.Now
	Rand       func() float64     // spreads pauses
	Log        *slog.Logger
}

// Bounds on what is open at once.
const (
	openers   = 8   // messages being opened only to see where they go
	maxRounds = 500 // messages with open files that wait for a next hop's turn
	maxWarm   = 250 // of them, messages for one next hop only, which could as well be opened again
)

// Scheduler is the one scheduler of a spool.
type Scheduler struct {
	o       Options
	q       *spool.Queue
	start   time.Time // monotonic zero of the scheduler's clock
	longest time.Duration
	wg      sync.WaitGroup // attempts and other work that ends by itself
	kick    chan struct{}  // the main loop looks at its timers again
	logs    [64]sync.Mutex // of attempt logs, by id: a verb and a round may both append
	digest  digest

	mu       sync.Mutex
	table    *table
	entries  entries
	timers   timers
	agents   map[string]*agent
	hops     []*hop   // [0] holds mixed messages
	order    []*agent // the same, local ones first
	byTarget map[hopKey]*hop
	running  int // attempts under way, local ones left out
	rounds   int // rounds open
	warm     int // of them, waiting in a hop's queue
	busy     int // entries in state working
	journal  *spool.Journal
	dirty    map[ref]struct{} // entries the journal does not know yet
	ending   bool             // no attempt is begun any more
	missed   string           // id of a poke that came too late for this scheduler
	byHand   bool             // for verbs only, in place of a scheduler that does not run
	ctx      context.Context  // of attempts
	counts   Counts
	jump     clockJump
}

// Counts are the totals since the start.
type Counts struct {
	Taken, Attempts, Delivered, Relayed, Expanded, Deferred, Failed, Done uint64
}

// New takes the scheduler's lock, which it holds until Close. With wait it waits for another
// scheduler to end; otherwise the error is spool.ErrLocked.
func New(o Options, wait bool) (*Scheduler, error) {
	o.defaults()
	q, err := o.Spool.Lock(wait)
	if err != nil {
		return nil, err
	}
	s := &Scheduler{
		o: o, q: q, start: time.Now(), kick: make(chan struct{}, 1), entries: newEntries(),
		agents: make(map[string]*agent), byTarget: make(map[hopKey]*hop), dirty: make(map[ref]struct{}),
		ctx: context.Background(),
	}
	s.hops = []*hop{{worker: s.addAgent("", Worker{Max: openers})}}
	for name, w := range o.Workers {
		s.addAgent(name, w)
	}
	s.SetRoutes(o.Routes, o.Domains, o.Smarthost)
	s.digest.init(o.DSNRate)
	return s, nil
}

func (o *Options) defaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.Expiry, 5*24*time.Hour)
	def(&o.DelayNotice, 4*time.Hour)
	def(&o.Scan, 5*time.Second)
	def(&o.History, 14*24*time.Hour)
	def(&o.Grace, 20*time.Second)
	num := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	num(&o.PerHop, 10)
	num(&o.Total, 100)
	num(&o.PerRequest, 1000)
	num(&o.DSNRate, 20)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Admin == nil {
		o.Admin = func(int) bool { return false }
	}
}

// SetRoutes replaces the route table; messages follow it at their next attempt.
func (s *Scheduler) SetRoutes(routes []Route, domains []string, smarthost *Target) {
	t := newTable(routes, domains, smarthost)
	long := max(longest(s.o.Retry), s.o.DelayNotice, s.o.Scan)
	for i := range routes {
		long = max(long, longest(routes[i].Target.Retry))
	}
	s.mu.Lock()
	s.table, s.longest = t, long
	s.mu.Unlock()
}

// Close gives the lock back. Run has returned, or was never called.
func (s *Scheduler) Close() error {
	s.wg.Wait()
	var err error
	if s.journal != nil {
		err = s.journal.Close()
	}
	return errors.Join(err, s.q.Close())
}

// now is the scheduler's clock: milliseconds since its start, whatever the wall clock does.
func (s *Scheduler) now() int64 { return time.Since(s.start).Milliseconds() }

func (s *Scheduler) wall() time.Time { return s.o.Now() }

func (s *Scheduler) wallTime(ms int64) time.Time {
	return s.wall().Add(time.Duration(ms-s.now()) * time.Millisecond).UTC().Truncate(time.Millisecond)
}

// load fills the memory from queue/ and takes what waits in incoming/.
func (s *Scheduler) load() error {
	now := s.now()
	j, stats, err := s.q.Load(func(m spool.Entry) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		r := s.entries.add(m.ID)
		e := s.entries.at(r)
		s.fill(e, &m, now)
		s.park(r, e)
		return nil
	})
	if err != nil {
		return err
	}
	s.journal = j
	for _, b := range stats.Bad {
		s.setAside(b.ID, b.Err)
	}
	if stats.Opened > stats.Snapshot/10+1000 {
		s.compact()
	}
	if n := s.entries.len(); n > 0 {
		s.o.Log.Info("queue loaded", "messages", n, "snapshot", stats.Snapshot, "opened", stats.Opened)
	}
	return nil
}

// park lets an entry wait for its due time. s.mu is held.
func (s *Scheduler) park(r ref, e *entry) {
	e.state = idle
	if e.flags&held == 0 {
		heap.Push(&s.timers, timer{at: e.due, ref: r})
	}
	s.wakeUp()
}

func (s *Scheduler) wakeUp() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// setAside moves a file that cannot be used to corrupt/.
func (s *Scheduler) setAside(id string, why error) {
	if errors.Is(why, spool.ErrNewerFormat) {
		s.o.Log.Error("message of a newer format is left alone", "id", id, "err", why)
		return
	}
	if !errors.Is(why, spool.ErrCorrupt) && !errors.Is(why, spool.ErrUnfinished) {
		s.o.Log.Error("message cannot be read", "id", id, "err", why)
		return
	}
	if err := s.q.SetAside(id, why.Error()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.o.Log.Error("message cannot be set aside", "id", id, "err", err)
		return
	}
	s.o.Log.Error("message is set aside in corrupt/", "id", id, "err", why)
}

// intake takes one message from incoming/. checkLog is needed where the message may have been
// in queue/ before: a power cut can bring the old name back, with an attempt log beside it.
func (s *Scheduler) intake(id string, checkLog bool) error {
	s.mu.Lock()
	ending := s.ending && !s.byHand
	if ending {
		s.missed = id
	}
	s.mu.Unlock()
	if ending {
		return nil
	}
	m, err := s.q.Take(id)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, spool.ErrExists), errors.Is(err, spool.ErrBusy), errors.Is(err, spool.ErrUnfinished):
		return nil // taken before, or not finished: the next poke or scan finds it
	case errors.Is(err, spool.ErrCorrupt), errors.Is(err, spool.ErrNewerFormat):
		s.setAside(id, err)
		return nil
	case err != nil:
		return err
	}
	st := spool.NewState(m.Env)
	if checkLog {
		if st, err = s.q.State(m); err != nil {
			return errors.Join(err, m.Close())
		}
	}
	s.o.Log.Info("queued", "id", id, "from", m.Env.From, "size", m.Size, "nrcpt", len(m.Env.To), "msgid", m.Env.Origin.MsgID)
	s.mu.Lock()
	r := s.entries.find(id)
	if r != 0 { // only a bug or a person could bring this about
		s.mu.Unlock()
		return errors.Join(fmt.Errorf("message %s is queued already", id), m.Close())
	}
	r = s.entries.add(id)
	s.counts.Taken++
	if s.byHand {
		e := s.entries.at(r)
		s.know(e, m, &st)
		s.shut(m)
		e.due = s.now()
		if st.Due.After(s.wall()) {
			e.due += st.Due.Sub(s.wall()).Milliseconds()
		}
		s.locate(e)
		s.park(r, e)
		s.note(r)
		s.mu.Unlock()
		return nil
	}
	s.begin(r, m, &st, nil, nil)
	s.dispatch()
	s.mu.Unlock()
	return nil
}

// scan looks for messages whose poke got lost.
func (s *Scheduler) scan(first bool) {
	for id, err := range s.q.Incoming() {
		if err == nil {
			err = s.intake(id, first)
		}
		if err != nil {
			s.o.Log.Error("incoming/ cannot be read", "err", err)
			return
		}
	}
}
