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
