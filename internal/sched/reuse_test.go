package sched

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestPlaceIsReused: a message removed while it waits in line is not tried in the name of the
// message that took its place in memory.
func TestPlaceIsReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan bool)
		slow := newFake()
		b := newBed(t, nil, func(o *Options) { o.Workers[Relay] = Worker{gated{slow, gate}, 1} })
		b.run()
		b.check(b.s.intake(b.send(mail("", "first@far.test")), false))
		synctest.Wait() // it is in the worker's hands; the others wait in line
		gone := b.send(mail("", "gone@far.test"))
		b.check(b.s.intake(gone, false))
		if _, errs, status := b.do(0, Command{Verb: "rm", IDs: []string{gone}}); status != 0 {
			t.Fatal(errs)
		}
		b.check(b.s.intake(b.send(mail("", "next@far.test")), false))
		close(gate)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := slow.attempts("gone@far.test"); n != 0 {
			t.Errorf("%d attempts at a removed message", n)
		}
		if n := slow.delivered("next@far.test"); n != 1 {
			t.Errorf("the message in its place was delivered %d times", n)
		}
		if left := b.queued(); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
		b.stop()
	})
}
