package sched

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Attempts asked for by hand fail without a change of the schedule.
func TestRetryKeepsTheSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = defers("4.4.1", "connection refused", false)
		b.run()
		id := b.send(mail("ann@example.test", "bob@dead.test"))
		b.check(b.s.intake(id, false))
		synctest.Wait()
		before, _, _ := b.do(0, Command{Verb: "list"})
		for range 24 {
			b.do(0, Command{Verb: "retry", IDs: []string{id}})
			time.Sleep(5 * time.Second)
		}
		b.do(0, Command{Verb: "flush"})
		synctest.Wait()
		if n := b.relay.attempts("bob@dead.test"); n != 26 {
			t.Errorf("%d attempts after 24 retries and a flush", n)
		}
		after, _, _ := b.do(0, Command{Verb: "list"})
		due := func(l string) string { return strings.Split(l, "\t")[2] }
		if due(after) != due(before) {
			t.Errorf("due at %s, was %s", due(after), due(before))
		}
		// 5 minutes after the first attempt, then 15 after that.
		time.Sleep(21 * time.Minute)
		synctest.Wait()
		if n := b.relay.attempts("bob@dead.test"); n != 28 {
			t.Errorf("%d attempts in the end", n)
		}
		b.stop()
	})
}

// A recipient who is deferred while the next hop answers has a schedule of its own. Neither retry
// nor flush changes it, nor does a scheduler that starts in between.
func TestRetryKeepsTheScheduleOfAMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = defers("4.2.2", "mailbox full", true)
		b.run()
		id := b.send(mail("ann@example.test", "bob@far.test"))
		b.check(b.s.intake(id, false))
		synctest.Wait()
		due := func() string {
			synctest.Wait()
			l, _, _ := b.do(0, Command{Verb: "list"})
			return strings.Split(l, "\t")[2]
		}
		first := due()
		for range 12 {
			b.do(0, Command{Verb: "retry", IDs: []string{id}})
			time.Sleep(5 * time.Second)
			b.do(0, Command{Verb: "flush"})
			time.Sleep(5 * time.Second)
		}
		if got := due(); got != first {
			t.Errorf("due at %s, was %s", got, first)
		}
		b.stop()
		b.check(b.boot(nil))
		b.run()
		if n := b.relay.attempts("bob@far.test"); n != 25 {
			t.Errorf("%d attempts after 12 retries and as many flushes", n)
		}
		b.do(0, Command{Verb: "retry", IDs: []string{id}})
		if got := due(); got != first {
			t.Errorf("after a start due at %s, was %s", got, first)
		}
		// 5 minutes after the first attempt, 15 after that, then 30.
		for _, c := range []struct {
			wait time.Duration
			n    int
		}{{4 * time.Minute, 27}, {13 * time.Minute, 27}, {2 * time.Minute, 28}, {28 * time.Minute, 28}, {2 * time.Minute, 29}} {
			time.Sleep(c.wait)
			synctest.Wait()
			if n := b.relay.attempts("bob@far.test"); n != c.n {
				t.Errorf("%d attempts %v later, want %d", n, c.wait, c.n)
			}
		}
		b.stop()
	})
}

func TestRouteOfNoAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.run()
		out, errs, status := b.do(0, Command{Verb: "route", Addrs: []string{"@", "b@z.test", ""}})
		if status != 65 || out != "z.test\t<b@z.test>\n" || strings.Count(errs, "\n") != 2 || !strings.Contains(errs, `"@"`) {
			t.Errorf("status %d, %q, %q", status, out, errs)
		}
		if out, _, _ := b.do(0, Command{Verb: "stats", JSON: true}); !strings.Contains(out, `"hops":[]`) {
			t.Errorf("stats of an idle scheduler: %s", out)
		}
		b.stop()
	})
}
