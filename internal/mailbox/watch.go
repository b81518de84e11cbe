package mailbox

import (
	"context"
	"path/filepath"
	"sync"
	"time"
)

const (
	// pollSlow stands beside what the system tells, pollAlone where it tells nothing.
	pollSlow  = 30 * time.Second
	pollAlone = 2 * time.Second
)

// Watcher learns from the system when directories change. A process has one for all its Stores:
// systems allow a user few of them. It may be used concurrently.
type Watcher struct {
	mu     sync.Mutex
	events notifier // nil: the system tells nothing
	boxes  map[*Mailbox][]int
	byDir  map[int]map[*Mailbox]bool // by the system's number of a directory
	poll   *time.Timer
}

// notifier is the system's half of a Watcher.
type notifier interface {
	add(dir string) (int, error)
	remove(id int)
	// run calls fn with the number of each directory that changes, -1 for all, until Close.
	run(fn func(id int))
	Close() error
}

// NewWatcher starts one. Where the system has no means, or none left, it polls.
func NewWatcher() *Watcher {
	w := &Watcher{boxes: map[*Mailbox][]int{}, byDir: map[int]map[*Mailbox]bool{}}
	if n, err := newNotifier(); err == nil {
		w.events = n
		go n.run(w.changed)
	}
	return w
}

// Close ends it; mailboxes that are watched hear no more.
func (w *Watcher) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.poll != nil {
		w.poll.Stop()
		w.poll = nil
	}
	w.boxes, w.byDir = nil, nil
	if w.events == nil {
		return nil
	}
	return w.events.Close()
}

func (w *Watcher) changed(id int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if id < 0 {
		for m := range w.boxes {
			m.wake(true)
		}
		return
	}
	for m := range w.byDir[id] {
		m.wake(true)
	}
}

// add begins to watch the directories of a mailbox.
func (w *Watcher) add(m *Mailbox) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, there := w.boxes[m]; there || w.boxes == nil {
		return // watched already, or closed
	}
	var ids []int
	if w.events != nil {
		for _, sub := range []string{"new", "cur"} {
			id, err := w.events.add(filepath.Join(m.dir, sub))
			if err != nil {
				continue // the poll finds it
			}
			if w.byDir[id] == nil {
				w.byDir[id] = map[*Mailbox]bool{}
			}
			w.byDir[id][m] = true
			ids = append(ids, id)
		}
	}
	w.boxes[m] = ids
	if w.poll == nil {
		w.poll = time.AfterFunc(w.interval(), w.tick)
	}
}

func (w *Watcher) interval() time.Duration {
	if w.events == nil {
		return pollAlone
	}
	return pollSlow
}

func (w *Watcher) tick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.boxes) == 0 {
		w.poll = nil
		return
	}
	for m := range w.boxes {
		m.wake(false)
	}
	w.poll.Reset(w.interval())
}

func (w *Watcher) remove(m *Mailbox) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m.subs.mu.Lock()
	again := len(m.subs.chans) > 0 // somebody came while the last one left
	m.subs.mu.Unlock()
	if again {
		return
	}
	for _, id := range w.boxes[m] {
		delete(w.byDir[id], m)
		if len(w.byDir[id]) == 0 {
			delete(w.byDir, id)
			w.events.remove(id)
		}
	}
	delete(w.boxes, m)
}

// subscribers are those who wait for a mailbox to change.
type subscribers struct {
	mu    sync.Mutex
	chans map[chan struct{}]bool
	again *time.Timer
}

// Watch sends on the channel when it is worth calling Sync, until ctx ends. Nobody waits for a
// receiver: a channel holds one word, and more is not said.
func (m *Mailbox) Watch(ctx context.Context) <-chan struct{} {
	ch := make(chan struct{}, 1)
	ch <- struct{}{} // something may have happened before the watch began
	s := &m.subs
	s.mu.Lock()
	first := len(s.chans) == 0
	if first {
		s.chans = map[chan struct{}]bool{}
	}
	s.chans[ch] = true
	s.mu.Unlock()
	w := m.store.watcher
	if first {
		w.add(m)
	}
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		delete(s.chans, ch)
		last := len(s.chans) == 0
		if last && s.again != nil {
			s.again.Stop()
			s.again = nil
		}
		s.mu.Unlock()
		if last {
			w.remove(m)
		}
	})
	return ch
}

// wake tells all who watch. A change may hide in the same tick of the directory's time as the
// one that is told: later says so again when a Sync can see it.
func (m *Mailbox) wake(later bool) {
	s := &m.subs
	s.mu.Lock()
	defer s.mu.Unlock()
	for ch := range s.chans {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
	if later && s.again == nil && len(s.chans) > 0 {
		s.again = time.AfterFunc(settleTime+settleTime/10, func() {
			s.mu.Lock()
			s.again = nil
			s.mu.Unlock()
			m.wake(false)
		})
	}
}
