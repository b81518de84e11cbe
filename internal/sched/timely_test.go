package sched

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/worker"
)

func by(mode string, in time.Duration) *envelope.DeliverBy {
	return &envelope.DeliverBy{Deadline: time.Now().Add(in), Mode: mode}
}

// TestDeadlineReturn (RFC 2852 §4.1.3): at the deadline the message goes back, on the second, and
// is not tried any more, wherever it waits.
func TestDeadlineReturn(t *testing.T) {
	for _, c := range []struct {
		name   string
		others int    // messages that wait for the same host
		code   string // of the deferrals
	}{
		{"alone", 0, "4.2.1"},
		{"behind a dead host", 3, "4.4.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t, nil, nil)
				b.relay.answer = defers(c.code, "not now", true)
				b.run()
				for range c.others {
					b.check(b.s.intake(b.send(mail("", "x@far.test")), false))
				}
				env := mail("ann@example.test", "bob@far.test")
				env.DeliverBy = by("R", 47*time.Minute)
				b.check(b.s.intake(b.send(env), false))
				time.Sleep(46 * time.Minute)
				synctest.Wait()
				if n := b.local.attempts("ann@example.test"); n != 0 {
					t.Fatalf("%d reports before the deadline", n)
				}
				tried := b.relay.attempts("bob@far.test")
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if n := b.local.delivered("ann@example.test"); n != 1 {
					t.Errorf("%d reports after the deadline", n)
				}
				time.Sleep(48 * time.Hour)
				synctest.Wait()
				if n := b.relay.attempts("bob@far.test"); n != tried {
					t.Errorf("%d attempts after the deadline", n-tried)
				}
				if h := b.history(); !strings.Contains(h, `"dsn":"5.4.7"`) || !strings.Contains(h, tooLate) {
					t.Errorf("history: %s", h)
				}
				b.stop()
			})
		})
	}
}

// TestDeadlineNotice: with mode N the sender is told once, at the deadline, and the attempts go
// on; the usual report of a delay is not sent besides.
func TestDeadlineNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = func(n int, to string, r *worker.Request) worker.Result {
			if time.Since(b.s.start) > 20*time.Hour {
				return relayed(to, true)
			}
			return defers("4.2.1", "not now", true)(n, to, r)
		}
		b.run()
		env := mail("ann@example.test", "bob@far.test")
		env.DeliverBy = by("N", 10*time.Hour)
		b.check(b.s.intake(b.send(env), false))
		for _, step := range []struct {
			until   time.Duration
			reports int
		}{{9 * time.Hour, 0}, {10*time.Hour + time.Minute, 1}, {19 * time.Hour, 1}, {30 * time.Hour, 1}} {
			time.Sleep(step.until - time.Since(b.s.start))
			synctest.Wait()
			if n := b.local.delivered("ann@example.test"); n != step.reports {
				t.Errorf("after %v: %d reports, want %d", step.until, n, step.reports)
			}
		}
		if len(b.queued()) != 0 {
			t.Error("the message is still there")
		}
		b.stop()
	})
}

func relayed(to string, by bool) worker.Result {
	return worker.Result{To: to, Status: envelope.Status{Verdict: envelope.Relayed, Code: "2.0.0", Relay: "mx.far.test"}, By: by}
}

// TestRelayedReport (RFC 2852 §4.1.4): the sender learns that a message left for a host that
// knows nothing of its deadline, or wherever a trace was asked for.
func TestRelayedReport(t *testing.T) {
	for _, c := range []struct {
		name   string
		by     envelope.DeliverBy
		passed bool // the next hop took the deadline over
		notify []string
		want   int
	}{
		{"N, next hop knows", envelope.DeliverBy{Mode: "N"}, true, nil, 0},
		{"N, next hop does not", envelope.DeliverBy{Mode: "N"}, false, nil, 1},
		{"N, next hop does not, NEVER", envelope.DeliverBy{Mode: "N"}, false, []string{"NEVER"}, 0},
		{"R with trace", envelope.DeliverBy{Mode: "R", Trace: true}, true, []string{"FAILURE"}, 1},
		{"R", envelope.DeliverBy{Mode: "R"}, true, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t, nil, nil)
				b.relay.answer = func(_ int, to string, _ *worker.Request) worker.Result { return relayed(to, c.passed) }
				b.run()
				env := mail("ann@example.test", "bob@far.test")
				env.To[0].Notify = c.notify
				c.by.Deadline = time.Now().Add(time.Hour)
				env.DeliverBy = &c.by
				b.check(b.s.intake(b.send(env), false))
				time.Sleep(time.Minute)
				synctest.Wait()
				if n := b.local.delivered("ann@example.test"); n != c.want {
					t.Errorf("%d reports, want %d", n, c.want)
				}
				if r := b.relay.reqs[0]; r.By == nil || !r.By.Deadline.Equal(c.by.Deadline) {
					t.Errorf("request: %+v", r.By)
				}
				b.stop()
			})
		})
	}
}

// TestDeadlineAfterRestart: a deadline is known again at once, though the snapshot has none.
func TestDeadlineAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = defers("4.4.1", "cannot connect", false)
		b.run()
		for range 3 {
			b.check(b.s.intake(b.send(mail("", "x@far.test")), false))
		}
		env := mail("ann@example.test", "bob@far.test")
		env.DeliverBy = by("R", 3*time.Hour)
		b.check(b.s.intake(b.send(env), false))
		time.Sleep(time.Hour)
		b.stop()
		b.check(b.boot(nil))
		b.run()
		time.Sleep(2*time.Hour + time.Minute)
		synctest.Wait()
		if n := b.local.delivered("ann@example.test"); n != 1 {
			t.Errorf("%d reports after the deadline", n)
		}
		b.stop()
	})
}

// TestPriorities: of what waits for one host, the higher priority goes first.
func TestPriorities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan bool)
		slow := newFake()
		b := newBed(t, nil, func(o *Options) {
			o.Workers[Relay] = Worker{gated{slow, gate}, 1}
		})
		b.run()
		b.check(b.s.intake(b.send(mail("", "first@far.test")), false))
		synctest.Wait() // it is in the worker's hands; the others wait in line
		for _, m := range []struct {
			to   string
			prio int
		}{{"d@far.test", 0}, {"f@far.test", -9}, {"b@far.test", 4}, {"e@far.test", -1}, {"a@far.test", 9}, {"c@far.test", 4}} {
			env := mail("", m.to)
			env.Priority = m.prio
			b.check(b.s.intake(b.send(env), false))
		}
		close(gate)
		synctest.Wait()
		var order strings.Builder
		for _, r := range slow.reqs {
			order.WriteString(r.To[0].Addr[:1])
			if r.To[0].Addr == "a@far.test" && r.Priority != 9 {
				t.Errorf("priority %d in the request", r.Priority)
			}
		}
		if order.String() != "fabcdef" {
			t.Errorf("order %s", order.String())
		}
		b.stop()
	})
}

// TestHeldMessageIsYoung: age counts from the release (RFC 4865), so that a message held longer
// than the queue's expiry is tried as long as any other.
func TestHeldMessageIsYoung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = defers("4.2.1", "not now", true)
		b.run()
		at := time.Now().Add(7 * 24 * time.Hour)
		env := mail("ann@example.test", "bob@far.test")
		env.HoldUntil = &at
		b.check(b.s.intake(b.send(env), false))
		for _, step := range []struct {
			after   time.Duration // the release
			reports int
		}{{-time.Minute, 0}, {3 * time.Hour, 0}, {5 * time.Hour, 1}, {4 * 24 * time.Hour, 1}, {6 * 24 * time.Hour, 2}} {
			time.Sleep(time.Until(at.Add(step.after)))
			synctest.Wait()
			if n := b.local.delivered("ann@example.test"); n != step.reports {
				t.Errorf("%v after the release: %d reports, want %d", step.after, n, step.reports)
			}
			if n := b.relay.attempts("bob@far.test"); (n == 0) != (step.after < 0) {
				t.Errorf("%v after the release: %d attempts", step.after, n)
			}
		}
		b.stop()
	})
}

// TestPokedDomain: a datagram makes the mail for a domain due, and no other.
func TestPokedDomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = defers("4.2.1", "not now", true)
		b.run()
		for _, to := range []string{"a@far.test", "b@sub.far.test", "c@notfar.test"} {
			b.check(b.s.intake(b.send(mail("", to)), false))
		}
		synctest.Wait()
		b.s.flushDomain("far.test", false)
		synctest.Wait()
		b.s.flushDomain("FAR.test", true)
		synctest.Wait()
		for to, want := range map[string]int{"a@far.test": 3, "b@sub.far.test": 2, "c@notfar.test": 1} {
			if n := b.relay.attempts(to); n != want {
				t.Errorf("%s: %d attempts, want %d", to, n, want)
			}
		}
		b.stop()
	})
}

// TestExplainRequests: a person who asks is told what the sender wanted.
func TestExplainRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.run()
		at := time.Now().Add(time.Hour)
		env := mail("ann@example.test", "bob@far.test")
		env.HoldUntil, env.DeliverBy, env.Priority = &at, by("R", 2*time.Hour), -3
		id := b.send(env)
		b.check(b.s.intake(id, false))
		out, errs, _ := b.do(0, Command{Verb: "explain", IDs: []string{id}})
		for _, want := range []string{"held until 2000-01-01 01:00:00 UTC", "delivered by 2000-01-01 02:00:00 UTC: it is returned", "priority is -3"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in %s%s", want, out, errs)
			}
		}
		b.stop()
	})
}
