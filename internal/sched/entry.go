package sched

import (
	"strings"
	"time"

	"pennypost/internal/spool"
)

// key is a queue id without a pointer, so that a million of them cost the collector nothing.
type key [18]byte

func keyOf(id string) key {
	var k key
	copy(k[:], id)
	return k
}

// ref names an entry by its place; 0 is none.
type ref uint32

// States of an entry.
const (
	free    uint8 = iota
	idle          // waits for its due time in the timer heap
	waiting       // due, in the queue of a next hop (or of mixed messages)
	working       // a round of attempts is under way, or a verb has it in its hands
)

// Flags of an entry.
const (
	held     uint16 = 1 << iota // by an admin
	removed                     // by an admin while working: dropped without a report when the round ends
	overdue                     // past its expiry: the attempt to come is its last
	noticed                     // the delay report was sent, or is not wanted
	fromDisk                    // acceptance time and owner are guesses until the file is opened
	routed                      // by an admin: the route table does not count
	returns                     // when by is over, the message goes back
	timed                       // the sender asked for a deadline or a priority
)

// entry is what is remembered of a message. It is kept below 300 bytes with its share of map
// and heap, strings included: a backlog of a million fits a small machine.
type entry struct {
	id      key
	state   uint8
	flags   uint16
	trouble uint8 // rounds that a dying worker ended, since the last proper one
	prio    int8  // RFC 6710
	tries   uint16
	gen     uint16 // raised by verbs: a round opened before does not know what they changed
	left    uint32 // recipients left
	uid     int32  // who handed it in; -1 unknown
	hop     uint32 // index of the next hop all recipients left share; 0: several, or not known yet
	probes  uint32 // the hop's count of failures when this message began to wait behind it
	size    int64
	born    int64 // acceptance, ms on the scheduler's clock
	due     int64 // next attempt, likewise
	mark    int64 // next of delay notice and expiry, likewise
	by      int64 // when the sender's time is over (RFC 2852), likewise; 0: none was given
	text    string
}

// from and to are kept in one string: reverse-path, TAB, first recipient left.
func (e *entry) from() string { s, _, _ := strings.Cut(e.text, "\t"); return s }
func (e *entry) to() string   { _, s, _ := strings.Cut(e.text, "\t"); return s }

const chunk = 1024

// entries holds all entries in chunks that never move.
type entries struct {
	chunks []*[chunk]entry
	free   []ref
	byID   map[key]ref
	next   ref
}

func newEntries() entries { return entries{byID: make(map[key]ref), next: 1} }

func (t *entries) at(r ref) *entry { return &t.chunks[r/chunk][r%chunk] }

func (t *entries) len() int { return len(t.byID) }

func (t *entries) find(id string) ref {
	if len(id) != len(key{}) {
		return 0
	}
	return t.byID[keyOf(id)]
}

// add makes room for a message that is not known yet.
func (t *entries) add(id string) ref {
	var r ref
	if n := len(t.free); n > 0 {
		r, t.free = t.free[n-1], t.free[:n-1]
	} else {
		r = t.next
		t.next++
		if int(r/chunk) == len(t.chunks) {
			t.chunks = append(t.chunks, new([chunk]entry))
		}
	}
	k := keyOf(id)
	t.byID[k] = r
	*t.at(r) = entry{id: k, uid: -1, flags: fromDisk, gen: t.at(r).gen}
	return r
}

func (t *entries) drop(r ref) {
	e := t.at(r)
	delete(t.byID, e.id)
	*e = entry{gen: e.gen + 1} // what still lies in a queue for it is not for its successor
	t.free = append(t.free, r)
}

// each calls fn for every entry, in no order, until it returns false.
func (t *entries) each(fn func(ref, *entry) bool) {
	for i, c := range t.chunks {
		for j := range c {
			if c[j].state != free && !fn(ref(i*chunk+j), &c[j]) {
				return
			}
		}
	}
}

// fill takes over what spool remembers of a message.
func (s *Scheduler) fill(e *entry, m *spool.Entry, now int64) {
	e.left, e.tries, e.size = uint32(m.Left), uint16(min(m.Attempts, 65535)), m.Size
	e.text = m.From + "\t" + m.To
	e.born = s.since(spool.IDTime(m.ID))

	if m.Hold {
		e.flags |= held
	}
	if m.Routed {
		e.flags |= routed
	}
	e.due = now
	if !m.Due.IsZero() {
		e.due = s.stored(m.Due, now)
	}
	if m.Timed && !m.Hold { // its deadline is in the file: it is opened now
		e.due, e.flags = now, e.flags|timed
	} else {
		s.locate(e)
	}
	e.mark = s.nextMark(e)
}

// locate finds the next hop of a message with one recipient left. An admin's route for it is not
// in memory; it counts when the message is opened.
func (s *Scheduler) locate(e *entry) {
	if e.left == 1 && e.flags&routed == 0 {
		e.hop = s.hopIndex(s.table.find(e.to()))
	}
}

// route remembers whether an admin has named the next hop, not which.
func (e *entry) route(to string) {
	e.flags &^= routed
	if to != "" {
		e.flags |= routed
	}
}

// stored turns a time read from disk into one on the scheduler's clock. One further ahead than
// any pause can be was written by a clock set wrong: it is due now.
func (s *Scheduler) stored(t time.Time, now int64) int64 {
	d := t.Sub(s.wall())
	if d <= 0 || d > s.longest {
		return now
	}
	return now + d.Milliseconds()
}

// since puts a past wall-clock time on the scheduler's clock. The future does not exist.
func (s *Scheduler) since(t time.Time) int64 {
	now := s.now()
	return min(now, now+t.Sub(s.wall()).Milliseconds())
}

// snapshot is the entry as spool keeps it.
func (s *Scheduler) snapshot(e *entry) spool.Entry {
	out := spool.Entry{
		ID: string(e.id[:]), From: e.from(), To: e.to(), Size: e.size, Left: int(e.left),
		Attempts: int(e.tries), Hold: e.flags&held != 0, Routed: e.flags&routed != 0, Timed: e.flags&timed != 0, Due: s.wallTime(e.due),
	}
	if e.hop != 0 {
		out.Hop = s.hops[e.hop].target.String()
	}
	return out
}

// timer is one line of the heap: an entry's due time, or a next hop's end of back-off. Stale
// lines are recognised when they come up, so nothing is ever removed from the middle.
type timer struct {
	at  int64
	ref ref    // of an entry; 0:
	hop uint32 // of a hop
}

type timers []timer

func (h timers) Len() int           { return len(h) }
func (h timers) Less(i, j int) bool { return h[i].at < h[j].at }
func (h timers) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *timers) Push(x any)        { *h = append(*h, x.(timer)) }
func (h *timers) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
