package sched

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/worker"
)

// slowStart is how many attempts a next hop gets at once before it has shown that it answers.
const slowStart = 5

// hop is one next hop with the messages that wait for it.
//
// While it fails, it is tried with one message at a time, at growing pauses; the others wait in
// its queue without being touched. The first success lets them go, a few more with each.
type hop struct {
	index   uint32
	target  Target
	worker  *agent
	running int
	limit   int // attempts at once at the moment
	fails   int // failures in a row: of the hop, not of single recipients
	probes  uint32
	until   int64 // no attempt before, while fails > 0
	resume  int64 // what until was before somebody asked for an attempt at once; 0: nobody did
	probed  int64 // when the last failure came
	since   int64 // when the row of failures began
	last    envelope.Status
	active  bool       // in line for the worker
	urgent  fifo[item] // overdue messages: their last attempt does not wait for the hop
	queue   line
}

// agent is a worker with what it is busy with.
type agent struct {
	name    string
	do      Doer
	max     int
	shared  bool // counts towards Options.Total: local delivery never waits behind slow hosts elsewhere
	running int
	until   int64      // cannot be asked before
	err     error      // why
	active  fifo[*hop] // in line, each with something in its queue
}

// item is one message in a hop's queue: warm with its open round, or cold.
type item struct {
	ref ref
	job *job
}

// fifo is a queue that gives its memory back.
type fifo[T any] struct {
	items []T
	head  int
}

func (f *fifo[T]) len() int { return len(f.items) - f.head }

func (f *fifo[T]) push(i T) { f.items = append(f.items, i) }

func (f *fifo[T]) pushFront(i T) {
	if f.head > 0 {
		f.head--
		f.items[f.head] = i
		return
	}
	f.items = append([]T{i}, f.items...)
}

func (f *fifo[T]) pop() T {
	var zero T
	i := f.items[f.head]
	f.items[f.head] = zero
	f.head++
	if f.head == len(f.items) {
		f.items, f.head = f.items[:0], 0
		if cap(f.items) > 4096 {
			f.items = nil
		}
	} else if f.head > 1024 && f.head > len(f.items)/2 {
		f.items = append([]T(nil), f.items[f.head:]...)
		f.head = 0
	}
	return i
}

func (s *Scheduler) addAgent(name string, w Worker) *agent {
	a := &agent{name: name, do: w.Do, max: max(w.Max, 1), shared: name != Local && name != ""}
	s.agents[name] = a
	s.order = append(s.order, a)
	return a
}

// missingWorker stands for a worker that a route names and nobody configured.
type missingWorker string

func (m missingWorker) Do(context.Context, *worker.Request, *os.File) (*worker.Report, error) {
	return nil, &worker.DownError{Name: string(m), Until: time.Now().Add(time.Minute), Err: errors.New("not configured")}
}

// hopFor finds or makes the hop of a target. s.mu is held.
func (s *Scheduler) hopFor(t Target) *hop {
	k := hopKey{t.Worker, t.NextHop, t.Auth, t.TLS}
	if h, ok := s.byTarget[k]; ok {
		h.target.Retry, h.target.Expiry = t.Retry, t.Expiry
		return h
	}
	h := &hop{index: uint32(len(s.hops)), target: t, worker: s.agents[t.Worker]}
	h.limit = min(slowStart, s.o.PerHop)
	if h.worker == nil { // a route names a worker that is not configured; mcheck says so too
		h.worker = s.addAgent(t.Worker, Worker{Do: missingWorker(t.Worker), Max: 1})
	}
	if t.NextHop == "" {
		h.limit = h.worker.max // one mailbox store, no host to be careful with
	}
	s.hops = append(s.hops, h)
	s.byTarget[k] = h
	return h
}

type hopKey struct{ worker, nextHop, auth, tls string }

// mixed is the hop 0: messages for several next hops wait in it for their turn to be opened.
func (h *hop) mixed() bool { return h.index == 0 }

// down tells whether the hop is in back-off.
func (h *hop) down(now int64) bool { return h.fails > 0 && h.until > now }

// ready tells whether the hop's own limits let an attempt start now.
func (s *Scheduler) ready(h *hop, now int64) bool {
	switch {
	case h.mixed():
		return s.rounds < maxRounds
	case h.urgent.len() > 0 && h.fails > 0:
		return h.running < s.o.PerHop
	case h.down(now):
		return false
	case h.fails > 0:
		return h.running < 1 // the probe
	}
	return h.running < h.limit
}

// activate puts the hop in line for its worker.
func (s *Scheduler) activate(h *hop) {
	if !h.active {
		h.active = true
		h.worker.active.push(h)
	}
}

// answered notes a request that the hop took part in.
func (s *Scheduler) answered(h *hop, begun int64, results []result) {
	if h.target.NextHop == "" {
		return // deferrals of a mailbox store are its recipients' own
	}
	kind := judge(results)
	now := s.now()
	switch {
	case kind == hopFine:
		if h.fails > 0 {
			s.o.Log.Info("next hop answers again", "relay", h.target.String(), "waiting", h.queue.len())
			h.fails, h.until, h.resume = 0, 0, 0
			h.limit = 1
		}
		h.limit = min(h.limit+1, s.o.PerHop)
	case kind == hopNeutral:
	case h.fails > 0 && h.resume > now:
		// It was asked out of turn: its turn comes when it would have come.
		h.until, h.resume, h.last = h.resume, 0, results[0].Status
		s.after(h.until-now, h.index)
	case h.fails > 0 && begun <= h.probed:
		// Begun before the failure was known: the same failure once more.
	default:
		s.hopFailed(h, kind, now, results[0].Status)
	}
}

func (s *Scheduler) hopFailed(h *hop, kind hopKind, now int64, st envelope.Status) {
	h.resume = 0
	if h.fails == 0 {
		h.since = now
	}
	h.fails++
	h.probes++
	h.probed, h.last, h.limit = now, st, 1
	pause := interval(s.retryOf(&h.target), h.fails, s.o.Rand())
	if kind == hopBusy { // it lives; it wants less
		pause = min(pause, (30*time.Second)<<min(h.fails-1, 10))
	}
	h.until = now + pause.Milliseconds()
	s.after(h.until-now, h.index) // a pause may be shorter than the main loop's sleep
	s.o.Log.Warn("next hop is tried with one message at a time", "relay", h.target.String(), "dsn", st.Code, "reply", st.Reply,
		"failures", h.fails, "waiting", h.queue.len(), "retry", s.wallTime(h.until).UTC().Format(time.RFC3339))
}

type hopKind int

const (
	hopFine    hopKind = iota // it took part in a transaction
	hopNeutral                // says nothing about the hop: our own worker's trouble
	hopBusy                   // it asks for less (421, 4.7.x, 4.3.2)
	hopDead                   // no connection, no name, no answer
)

// judge tells what the results of one request say about the next hop. One recipient that got
// any other answer shows that the host works.
func judge(results []result) hopKind {
	kind := hopNeutral
	for i := range results {
		k := judge1(&results[i].Status)
		if k == hopFine {
			return k
		}
		kind = max(kind, k)
	}
	return kind
}

func judge1(st *envelope.Status) hopKind {
	if st.Verdict != envelope.Deferred {
		return hopFine
	}
	switch {
	case strings.HasPrefix(st.Reply, "421") && st.Remote, strings.HasPrefix(st.Code, "4.7.") && st.Remote, st.Code == "4.3.2" && st.Remote:
		return hopBusy
	case strings.HasPrefix(st.Code, "4.4."):
		return hopDead
	case st.Remote:
		return hopFine
	}
	return hopNeutral
}
