package sched

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/worker"
)

func TestDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.run()
		id := b.send(mail("a@x.test", "bob@example.test", "ann@example.test", "c@y.test"))
		if err := b.s.intake(id, false); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if q := b.queued(); len(q) != 0 {
			t.Errorf("left in the queue: %v\n%s", q, b.log)
		}
		b.stop()
		if n := len(b.local.reqs); n != 1 {
			t.Errorf("%d requests for two recipients of one next hop", n)
		}
		if r := b.relay.reqs[0]; r.NextHop != "y.test" || r.Attempt != 1 || r.Size == 0 {
			t.Errorf("request to the relay: %+v", r)
		}
		for _, want := range []string{`"to":"bob@example.test"`, `"to":"c@y.test"`, `"status":"delivered"`, id} {
			if !strings.Contains(b.history(), want) {
				t.Errorf("history lacks %s: %s", want, b.history())
			}
		}
	})
}

// TestNoLogOnTheFastPath: a message done in its first round has no attempt log and no entry in
// the journal, ever.
func TestNoLogOnTheFastPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		var logs atomic.Int32
		b.crash().Fault = func(op, name string) error {
			if op == "create" && strings.HasPrefix(name, "/spool/log/") {
				logs.Add(1)
			}
			return nil
		}
		b.run()
		for range 20 {
			if err := b.s.intake(b.send(mail("a@x.test", "bob@example.test")), false); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if logs.Load() != 0 || b.s.journal.Len() != 0 {
			t.Errorf("%d attempt logs made, %d journal entries", logs.Load(), b.s.journal.Len())
		}
		b.stop()
	})
}

func TestFailureReport(t *testing.T) {
	for _, c := range []struct {
		name   string
		from   string
		notify []string
		answer func(int, string, *worker.Request) worker.Result
		want   string // recipient and a phrase of the report; "" for none
	}{
		{"failed", "ann@example.test", nil, refuse, "Action: failed"},
		{"never", "ann@example.test", []string{"NEVER"}, refuse, ""},
		{"null reverse-path", "", nil, refuse, ""},
		{"success asked for", "ann@example.test", []string{"SUCCESS"}, deliverIt, "Action: delivered"},
		{"success not asked for", "ann@example.test", nil, deliverIt, ""},
		{"failure not asked for", "ann@example.test", []string{"SUCCESS"}, refuse, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t, nil, nil)
				b.relay.answer = c.answer
				b.run()
				env := mail(c.from, "bob@y.test")
				env.To[0].Notify = c.notify
				id := b.send(env)
				b.check(b.s.intake(id, false))
				time.Sleep(time.Minute)
				synctest.Wait()
				reports := b.local.attempts("ann@example.test")
				if (reports == 1) != (c.want != "") {
					t.Errorf("%d reports\n%s", reports, b.log)
				}
				if reports == 1 {
					if r := b.local.reqs[0]; r.From != "" || r.Origin.Parent != id || r.To[0].Notify[0] != "NEVER" {
						t.Errorf("report travels as %+v", r)
					}
				}
				if len(b.queued()) != 0 {
					t.Errorf("left: %v", b.queued())
				}
				b.stop()
			})
		})
	}
}

func refuse(_ int, to string, _ *worker.Request) worker.Result {
	st := envelope.Fail("5.1.1", "550 no such user")
	st.Remote = true
	return worker.Result{To: to, Status: st}
}

// TestOneReportForARound: three failures, two next hops, one report that names all.
func TestOneReportForARound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = refuse
		b.run()
		b.check(b.s.intake(b.send(mail("ann@example.test", "a@y.test", "b@y.test", "c@z.test", "ok@example.test")), false))
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := b.local.attempts("ann@example.test"); n != 1 {
			t.Errorf("%d reports for one round", n)
		}
		if n := b.local.delivered("ok@example.test"); n != 1 {
			t.Errorf("the other recipient was delivered %d times", n)
		}
		b.stop()
	})
}

// TestSchedule: a recipient that is deferred for good is tried by the table, reported late once,
// and given up after the expiry, the last attempt behind it.
func TestSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = defers("4.2.2", "452 mailbox full", true)
		b.run()
		begun := time.Now()
		b.check(b.s.intake(b.send(mail("ann@example.test", "bob@y.test")), false))
		time.Sleep(6 * 24 * time.Hour)
		synctest.Wait()
		times := b.relay.times["bob@y.test"]
		want := []time.Duration{0, 5 * time.Minute, 20 * time.Minute, 50 * time.Minute, 110 * time.Minute, 230 * time.Minute, 470 * time.Minute}
		for i, w := range want {
			if got := times[i].Sub(begun); got < w || got > w+10*time.Second {
				t.Errorf("attempt %d after %v, want %v", i+1, got, w)
			}
		}
		last := times[len(times)-1].Sub(begun)
		if last < 5*24*time.Hour || last > 5*24*time.Hour+2*time.Minute {
			t.Errorf("last attempt after %v", last)
		}
		if n := b.local.attempts("ann@example.test"); n != 2 { // one delay report, one failure report
			t.Errorf("%d reports\n%s", n, b.log)
		}
		if h := b.history(); !strings.Contains(h, `"dsn":"5.4.7"`) || !strings.Contains(h, "not delivered within 5 days") {
			t.Errorf("history: %s", h)
		}
		b.stop()
	})
}

// TestOldMessageGetsThreeAttempts: mail that is older than its expiry when the scheduler first
// sees it (a host that was off, a clock set wrong) is not bounced at once.
func TestOldMessageGetsThreeAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, func(o *Options) { o.DelayNotice = -1 })
		b.relay.answer = defers("4.2.2", "452 mailbox full", true)
		b.run()
		env := mail("ann@example.test", "bob@y.test")
		env.Time = time.Now().Add(-30 * 24 * time.Hour)
		b.check(b.s.intake(b.send(env), false))
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if n := b.relay.attempts("bob@y.test"); n != minAttempts {
			t.Errorf("%d attempts", n)
		}
		if n := b.local.attempts("ann@example.test"); n != 1 {
			t.Errorf("%d reports", n)
		}
		b.stop()
	})
}

// TestDeadHop: of many messages for a host that does not answer, one at a time is tried; when it
// is back, all go, each once.
func TestDeadHop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 2000
		b := newBed(t, nil, nil)
		b.relay.answer = defers("4.4.1", "connection refused", false)
		b.run()
		for i := range n {
			b.check(b.s.intake(b.send(mail("ann@example.test", fmt.Sprintf("u%d@dead.test", i))), false))
		}
		time.Sleep(90 * time.Minute)
		synctest.Wait()
		// 0, 5, 20, 50 min, and what was under way when the first failed.
		if got := len(b.relay.reqs); got > 4+slowStart {
			t.Errorf("%d attempts at a dead host", got)
		}
		out, _, _ := b.do(0, Command{Verb: "explain", IDs: []string{b.queued()[n/2]}})
		if !strings.Contains(out, "No attempt was made for this message itself yet") || !strings.Contains(out, "connection refused") {
			t.Errorf("explain does not tell why:\n%s", out)
		}
		b.relay.mu.Lock()
		b.relay.answer = deliverIt
		b.relay.mu.Unlock()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if left := b.queued(); len(left) != 0 {
			t.Errorf("%d messages left\n%.3000s", len(left), b.log.String()[strings.Index(b.log.String(), "msg=attempt"):])
			st, _, _ := b.do(0, Command{Verb: "stats"})
			t.Log(st)
		}
		for i := range n {
			if d := b.relay.delivered(fmt.Sprintf("u%d@dead.test", i)); d != 1 {
				t.Fatalf("u%d: delivered %d times", i, d)
			}
		}
		b.stop()
	})
}

// TestDeadHopExpires: messages behind a host that never answers are reported late and given up,
// though most attempts were made with others.
func TestDeadHopExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 30
		b := newBed(t, nil, func(o *Options) { o.DSNRate = 1000 })
		b.relay.answer = defers("4.4.1", "connection refused", false)
		b.run()
		for i := range n {
			b.check(b.s.intake(b.send(mail("ann@example.test", fmt.Sprintf("u%d@dead.test", i))), false))
		}
		time.Sleep(6 * 24 * time.Hour)
		synctest.Wait()
		if left := b.queued(); len(left) != 0 {
			t.Errorf("%d messages left", len(left))
		}
		for i := range n {
			times := b.relay.times[fmt.Sprintf("u%d@dead.test", i)]
			if len(times) == 0 || times[len(times)-1].Sub(b.s.start) < 5*24*time.Hour {
				t.Fatalf("u%d was given up without an attempt after its deadline: %v", i, times)
			}
		}
		if got := b.local.attempts("ann@example.test"); got != 2*n {
			t.Errorf("%d reports, want %d late and %d failed", got, n, n)
		}
		b.stop()
	})
}

// TestBusyHop: 421 makes the hop wait, not only the message.
func TestBusyHop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = defers("4.7.0", "421 too many connections", true)
		b.run()
		b.check(b.s.intake(b.send(mail("ann@example.test", "one@busy.test")), false))
		synctest.Wait()
		b.check(b.s.intake(b.send(mail("ann@example.test", "two@busy.test")), false))
		synctest.Wait()
		if n := b.relay.attempts("two@busy.test"); n != 0 {
			t.Errorf("a host that said 421 was asked again at once")
		}
		time.Sleep(40 * time.Second)
		synctest.Wait()
		if n := b.relay.attempts("one@busy.test") + b.relay.attempts("two@busy.test"); n != 2 {
			t.Errorf("%d attempts after the first pause", n)
		}
		b.stop()
	})
}

// TestGreylisted: one recipient's 4.7.1 beside another's success is no word about the host.
func TestJudge(t *testing.T) {
	remote := func(code, reply string) envelope.Status {
		st := envelope.Defer(code, reply)
		st.Remote = true
		return st
	}
	ok := envelope.Status{Verdict: envelope.Relayed, Code: "2.0.0"}
	for _, c := range []struct {
		name string
		sts  []envelope.Status
		want hopKind
	}{
		{"relayed", []envelope.Status{ok}, hopFine},
		{"refused", []envelope.Status{envelope.Fail("5.1.1", "550 no")}, hopFine},
		{"one greylisted", []envelope.Status{remote("4.7.1", "450 greylisted"), ok}, hopFine},
		{"mailbox full", []envelope.Status{remote("4.2.2", "452 full")}, hopFine},
		{"421", []envelope.Status{remote("4.0.0", "421 busy")}, hopBusy},
		{"4.7.28", []envelope.Status{remote("4.7.28", "450 rate")}, hopBusy},
		{"no connection", []envelope.Status{envelope.Defer("4.4.1", "refused")}, hopDead},
		{"no name", []envelope.Status{envelope.Defer("4.4.3", "SERVFAIL")}, hopDead},
		{"our own trouble", []envelope.Status{envelope.Defer("4.3.0", "no memory")}, hopNeutral},
	} {
		var rs []result
		for _, st := range c.sts {
			rs = append(rs, result{Result: worker.Result{Status: st}})
		}
		if got := judge(rs); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// TestWorkerDies: what was in its hands is tried again soon.
func TestWorkerDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		n := 0
		b.local.broken = func(*worker.Request) error {
			if n++; n == 1 {
				return worker.ErrGone
			}
			return nil
		}
		b.run()
		b.check(b.s.intake(b.send(mail("ann@example.test", "bob@example.test")), false))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if d := b.local.delivered("bob@example.test"); d != 1 {
			t.Errorf("delivered %d times 5 s after the worker died\n%s", d, b.log)
		}
		b.stop()
	})
}

// TestWorkerDown: a worker that cannot be reached costs no attempt and no report.
func TestWorkerDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		down := true
		b.local.broken = func(*worker.Request) error {
			if down {
				return &worker.DownError{Name: Local, Until: time.Now().Add(time.Second), Err: errors.New("no such socket")}
			}
			return nil
		}
		b.run()
		id := b.send(mail("ann@example.test", "bob@example.test"))
		b.check(b.s.intake(id, false))
		time.Sleep(time.Hour)
		out, _, _ := b.do(0, Command{Verb: "explain", IDs: []string{id}})
		b.local.mu.Lock()
		down = false
		b.local.mu.Unlock()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if b.local.delivered("bob@example.test") != 1 || b.local.reqs[len(b.local.reqs)-1].Attempt != 1 {
			t.Errorf("after the worker came back: %d deliveries, attempt %d", b.local.delivered("bob@example.test"), b.local.reqs[len(b.local.reqs)-1].Attempt)
		}
		if len(b.local.reqs) > 4000 {
			t.Errorf("%d tries in an hour", len(b.local.reqs))
		}
		_ = out
		b.stop()
	})
}

func TestExpanded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.local.answer = func(n int, to string, r *worker.Request) worker.Result {
			if to != "list@example.test" {
				return deliverIt(n, to, r)
			}
			return worker.Result{To: to, Status: envelope.Status{Verdict: envelope.Expanded, Code: "2.0.0"},
				Expand: &worker.Expansion{From: "owner@example.test", To: []envelope.Recipient{{Addr: "x@y.test"}, {Addr: "z@example.test"}}, Prepend: "Delivered-To: list@example.test\n"}}
		}
		b.run()
		id := b.send(mail("a@x.test", "list@example.test"))
		b.check(b.s.intake(id, false))
		time.Sleep(time.Minute)
		synctest.Wait()
		if b.relay.delivered("x@y.test") != 1 || b.local.delivered("z@example.test") != 1 {
			t.Errorf("the members got %v %v\n%s", b.relay.done, b.local.done, b.log)
		}
		if r := b.relay.reqs[0]; r.From != "owner@example.test" || r.Origin.Parent != id {
			t.Errorf("child: %+v", r)
		}
		b.stop()
	})
}

func TestHoldUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.run()
		at := time.Now().Add(20 * 24 * time.Hour)
		env := mail("ann@example.test", "bob@example.test")
		env.HoldUntil = &at
		b.check(b.s.intake(b.send(env), false))
		time.Sleep(19 * 24 * time.Hour)
		synctest.Wait()
		early := b.local.attempts("bob@example.test")
		time.Sleep(2 * 24 * time.Hour)
		synctest.Wait()
		if early != 0 || b.local.delivered("bob@example.test") != 1 {
			t.Errorf("%d attempts before its time, %d deliveries after it", early, b.local.delivered("bob@example.test"))
		}
		b.stop()
	})
}

// TestStoredTimes: what a clock set wrong has written is due now.
func TestStoredTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		now := b.s.now()
		for _, c := range []struct {
			in   time.Duration
			want int64
		}{
			{-time.Hour, now}, {0, now}, {time.Hour, now + 3600_000}, {4 * time.Hour, now + 4*3600_000},
			{6 * time.Hour, now}, {10 * 365 * 24 * time.Hour, now},
		} {
			if got := b.s.stored(time.Now().Add(c.in), now); got != c.want {
				t.Errorf("due in %v: %d, want %d", c.in, got, c.want)
			}
		}
		b.check(b.s.Close())
	})
}

// TestClockJump: a wall clock that leaps neither starts nor expires anything.
func TestClockJump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var jump atomic.Int64
		b := newBed(t, nil, func(o *Options) { o.Now = func() time.Time { return time.Now().Add(time.Duration(jump.Load())) } })
		b.relay.answer = defers("4.2.2", "452 mailbox full", true)
		b.run()
		b.check(b.s.intake(b.send(mail("ann@example.test", "bob@y.test")), false))
		time.Sleep(time.Minute)
		synctest.Wait()
		jump.Store(int64(40 * 24 * time.Hour))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := b.relay.attempts("bob@y.test"); n != 1 {
			t.Errorf("%d attempts right after the jump", n)
		}
		time.Sleep(2 * 24 * time.Hour)
		synctest.Wait()
		if len(b.queued()) != 1 {
			t.Errorf("the jump expired the message")
		}
		if !strings.Contains(b.log.String(), "the clock has jumped") {
			t.Errorf("not logged:\n%s", b.log)
		}
		b.stop()
	})
}

// TestDigest: reports beyond the rate are summed up for postmaster.
func TestDigest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, func(o *Options) { o.DSNRate = 5 })
		b.relay.answer = refuse
		b.run()
		for i := range 30 {
			b.check(b.s.intake(b.send(mail("ann@example.test", fmt.Sprintf("u%d@y.test", i))), false))
			synctest.Wait()
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if n := b.local.attempts("ann@example.test"); n != 5 {
			t.Errorf("%d reports", n)
		}
		if n := b.local.attempts("postmaster@example.test"); n != 1 {
			t.Errorf("%d digests", n)
		}
		if left := b.queued(); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
		b.stop()
	})
}

// TestReportCannotBeQueued: a failed message stays until its report is safe.
func TestReportCannotBeQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = refuse
		var full atomic.Bool
		b.crash().Fault = func(op, name string) error {
			if full.Load() && op == "create" && strings.HasPrefix(name, "/spool/incoming/") {
				return errors.New("no space left on device")
			}
			return nil
		}
		b.run()
		id := b.send(mail("ann@example.test", "bob@y.test"))
		full.Store(true)
		b.check(b.s.intake(id, false))
		time.Sleep(time.Minute)
		synctest.Wait()
		if q := b.queued(); len(q) != 1 || q[0] != id {
			t.Fatalf("queue: %v\n%s", q, b.log)
		}
		full.Store(false)
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if n := b.local.attempts("ann@example.test"); n != 1 || len(b.queued()) != 0 {
			t.Errorf("%d reports, left %v\n%s", n, b.queued(), b.log)
		}
		if n := b.relay.attempts("bob@y.test"); n != 1 {
			t.Errorf("the failed recipient was attempted %d times", n)
		}
		b.stop()
	})
}

// TestLimits: next hops take turns; one that is slow does not take all.
func TestPerRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, func(o *Options) { o.PerRequest = 100 })
		b.run()
		var addrs []string
		for i := range 950 {
			addrs = append(addrs, fmt.Sprintf("u%d@y.test", i))
		}
		addrs = append(addrs, "u1@y.test") // named twice
		b.check(b.s.intake(b.send(mail("ann@example.test", addrs...)), false))
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(b.relay.reqs); n != 10 {
			t.Errorf("%d requests", n)
		}
		if n := b.relay.delivered("u1@y.test"); n != 1 {
			t.Errorf("recipient named twice got %d copies", n)
		}
		if len(b.queued()) != 0 {
			t.Error("not done")
		}
		b.stop()
	})
}

func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = defers("4.2.2", "452 mailbox full", true)
		b.run()
		for range 5 {
			b.check(b.s.intake(b.send(mail("ann@example.test", "bob@y.test", "ok@example.test")), false))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		b.stop()
		b.check(b.boot(nil))
		b.run()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := b.relay.attempts("bob@y.test"); n != 5 {
			t.Errorf("%d attempts: a restart forgot the due time", n)
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if n := b.relay.attempts("bob@y.test"); n != 10 {
			t.Errorf("%d attempts after the due time", n)
		}
		if n := b.local.delivered("ok@example.test"); n != 5 {
			t.Errorf("the recipient that was done got %d copies", n)
		}
		b.stop()
	})
}

func (b *bed) check(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// TestOnce: one run attempts what is due, though its delay is reported first, and delivers the
// reports that come out of it.
func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, func(o *Options) { o.DelayNotice = 4 * time.Hour })
		b.relay.answer = defers("4.4.1", "cannot connect", false)
		once := func(after time.Duration, attempts, reports int) {
			t.Helper()
			time.Sleep(after)
			b.check(b.boot(func(o *Options) { o.DelayNotice = 4 * time.Hour }))
			b.check(b.s.Once(context.Background()))
			b.check(b.s.Close())
			if n := b.relay.attempts("bob@y.test"); n != attempts {
				t.Errorf("after %v: %d attempts, want %d", after, n, attempts)
			}
			if n := b.local.delivered("ann@example.test"); n != reports {
				t.Errorf("after %v: %d reports, want %d", after, n, reports)
			}
		}
		b.send(mail("ann@example.test", "bob@y.test"))
		b.check(b.s.Close())
		once(0, 1, 0)
		once(5*time.Hour, 2, 1)
		once(24*time.Hour, 3, 1)
		once(5*24*time.Hour, 4, 2)
		if left := b.queued(); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
}
