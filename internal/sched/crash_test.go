package sched

import (
	"context"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/envelope"
	"pennypost/internal/mailtest"
	"pennypost/internal/worker"
)

// TestCrashPoints stops the machine after each operation of a message's whole life (one recipient
// delivered, one refused, one deferred and then relayed, one expanded) and starts again. Whatever
// the point, everybody gets what is due to them; a mere kill makes at most one double of each.
func TestCrashPoints(t *testing.T) {
	cuts := crashCuts
	total := crashRun(t, -1, nil)
	if total < 10 {
		t.Fatalf("the whole life has %d operations", total)
	}
	for stop := range total + 1 {
		crashRun(t, stop, nil)
		for seed := range cuts {
			crashRun(t, stop, rand.New(rand.NewPCG(uint64(seed), uint64(stop))))
		}
	}
}

// crashRun lives through one stop and returns the number of operations of the first life.
func crashRun(t *testing.T, stop int, cut *rand.Rand) (ops int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, slow)
		b.relay.answer = func(n int, to string, r *worker.Request) worker.Result {
			switch {
			case to == "bad@y.test":
				return refuse(n, to, r)
			case r.Attempt == 1:
				return defers("4.2.2", "452 full", true)(n, to, r)
			}
			return worker.Result{To: to, Status: envelope.Status{Verdict: envelope.Relayed, Code: "2.0.0"}}
		}
		b.local.answer = func(n int, to string, r *worker.Request) worker.Result {
			if to == "list@example.test" {
				return worker.Result{To: to, Status: envelope.Status{Verdict: envelope.Expanded, Code: "2.0.0"},
					Expand: &worker.Expansion{From: "ann@example.test", To: []envelope.Recipient{{Addr: "member@example.test"}}}}
			}
			return deliverIt(n, to, r)
		}
		b.send(mail("ann@example.test", "ok@example.test", "bad@y.test", "later@z.test", "list@example.test"))
		if stop < 0 {
			stop = 1 << 30
		}
		b.crash().StopAfter(stop)
		before := b.crash().Ops()
		b.live()
		ops = b.crash().Ops() - before
		next := b.crash().Reboot(cut)
		next.Space = durable.Space{Bytes: 1 << 40, Inodes: 1 << 30}
		b.fs = next
		b.check(b.boot(slow))
		b.live()
		if left := b.queued(); len(left) != 0 {
			t.Errorf("stop %d: left %v\n%s", stop, left, b.log)
		}
		for _, to := range []string{"ok@example.test", "later@z.test", "member@example.test", "ann@example.test"} {
			n := b.local.delivered(to) + b.relay.delivered(to)
			if n < 1 {
				t.Errorf("stop %d: %s got nothing\n%s", stop, to, b.log)
			}
			if cut == nil && n > 2 {
				t.Errorf("stop %d: %s got %d copies\n%s", stop, to, n, b.log)
			}
		}
	})
	return ops
}

// slow looks for children now and then: two hours of looking each five seconds are long in a test.
func slow(o *Options) { o.Scan = 5 * time.Minute }

// live works on the queue for two hours, or as far as the machine lets it.
func (b *bed) live() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Hour)
	defer cancel()
	if b.s.open() == nil {
		b.s.scan(true)
		b.s.loop(ctx)
	}
	b.s.mu.Lock()
	b.s.ending = true
	b.s.mu.Unlock()
	b.s.drain(func() {})
	// Errors of a machine that is off; of one that is on, what is missing shows below.
	_ = b.s.put()
	_ = b.s.Close()
}

var _ durable.FS = (*mailtest.CrashFS)(nil)
