package sched

import (
	"sync"
	"time"
)

// clockJump notices when the wall clock and the monotonic one disagree. Waiting and ages are on
// the monotonic clock, so a jump moves no mail; it only is told, since stored times and log
// lines on both sides of it do not fit together.
type clockJump struct {
	wall time.Time
	mono int64
}

const jumpLimit = time.Hour

// watchClock compares the clocks.
func (s *Scheduler) watchClock() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, wall := s.now(), s.wall()
	was := s.jump
	s.jump = clockJump{wall, now}
	if was.wall.IsZero() {
		return
	}
	off := wall.Round(0).Sub(was.wall.Round(0)) - time.Duration(now-was.mono)*time.Millisecond
	if off.Abs() < jumpLimit {
		return
	}
	s.o.Log.Warn("the clock has jumped; due times and deadlines move with it", "by", off.Round(time.Second).String())
	// Stored due times are of the old clock: write all down anew.
	s.entries.each(func(r ref, _ *entry) bool {
		s.dirty[r] = struct{}{}
		return true
	})
}

// logLock is the lock of a message's attempt log.
func (s *Scheduler) logLock(id string) *sync.Mutex {
	h := uint32(0)
	for i := 9; i < len(id); i++ {
		h = h*31 + uint32(id[i])
	}
	return &s.logs[h%uint32(len(s.logs))]
}
