package sched

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/worker"
)

func TestVerbs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = defers("4.2.2", "452 mailbox full", true)
		b.run()
		id := b.send(mail("ann@example.test", "bob@y.test", "eve@y.test"))
		b.check(b.s.intake(id, false))
		time.Sleep(time.Second)
		one := func(verb string) Command { return Command{Verb: verb, IDs: []string{id}} }
		for _, c := range []struct {
			name   string
			uid    int
			cmd    Command
			status int
			out    string // a part of standard output or error
		}{
			{"list", 0, Command{Verb: "list"}, 0, id + "\tdeferred\t2000-01-01T00:05:00Z\t1\t43\t2\t-\t<ann@example.test>\t<bob@y.test>\n"},
			{"list of a stranger", 7, Command{Verb: "list"}, 0, ""},
			{"list json", 0, Command{Verb: "list", JSON: true}, 0, `"state":"deferred"`},
			{"show", 0, one("show"), 0, "to         left <eve@y.test>"},
			{"show of a stranger", 7, one("show"), 65, "no such message"},
			{"cat", 0, one("cat"), 0, "Subject: test\nMessage-ID: <m@x.test>\n\nbody\n"},
			{"explain", 0, one("explain"), 0, "452 mailbox full"},
			{"explain by address", 0, Command{Verb: "explain", IDs: []string{"eve@y.test"}}, 0, id},
			{"explain nobody", 0, Command{Verb: "explain", IDs: []string{"nobody@z.test"}}, 65, "no such message"},
			{"hold by a stranger", 7, one("hold"), 65, "no such message"},
			{"dry hold", 0, Command{Verb: "hold", IDs: []string{id}, DryRun: true}, 0, "would hold " + id},
			{"not held by it", 0, Command{Verb: "list"}, 0, "\tdeferred\t"},
			{"hold", 0, one("hold"), 0, ""},
			{"hold again", 0, one("hold"), 0, ""},
			{"held", 0, Command{Verb: "list"}, 0, "\theld\t-\t"},
			{"explain held", 0, one("explain"), 0, "mqueue release " + id},
			{"release", 0, one("release"), 0, ""},
			{"release again", 0, one("release"), 0, ""},
			{"rm one", 0, Command{Verb: "rm", IDs: []string{id}, Addrs: []string{"bob@y.test"}}, 0, ""},
			{"one left", 0, Command{Verb: "list"}, 0, "\t1\ty.test\t<ann@example.test>\t<eve@y.test>"},
			{"rm one that is not left", 0, Command{Verb: "rm", IDs: []string{id}, Addrs: []string{"bob@y.test"}}, 75, "none of its recipients"},
			{"route by rubbish", 0, Command{Verb: "route", IDs: []string{id}, Target: "a b"}, 64, "no next hop"},
			{"unknown id", 0, Command{Verb: "hold", IDs: []string{"000000000000000000", "x"}}, 65, "no such message"},
			{"unknown verb", 0, Command{Verb: "dance"}, 64, "unknown verb"},
			{"flush by a stranger", 7, Command{Verb: "flush"}, 77, "only"},
			{"stats", 0, Command{Verb: "stats"}, 0, "messages\t1\n"},
			{"routes", 0, Command{Verb: "route", Addrs: []string{"a@example.test", "b@z.test"}}, 0, "local\t<a@example.test>\nz.test\t<b@z.test>\n"},
		} {
			out, errs, status := b.do(c.uid, c.cmd)
			synctest.Wait()
			if status != c.status || !strings.Contains(out+errs, c.out) || c.out == "" && out+errs != "" {
				t.Errorf("%s: status %d, %q %q; want %d, %q", c.name, status, out, errs, c.status, c.out)
			}
		}
		if n := b.relay.attempts("eve@y.test"); n != 1 {
			t.Errorf("%d attempts while looking", n)
		}
		b.do(0, one("retry"))
		synctest.Wait()
		if n := b.relay.attempts("eve@y.test"); n != 2 {
			t.Errorf("%d attempts after retry", n)
		}
		b.do(0, Command{Verb: "flush", Target: "y.test"})
		synctest.Wait()
		if n := b.relay.attempts("eve@y.test"); n != 3 {
			t.Errorf("%d attempts after flush", n)
		}
		b.do(0, Command{Verb: "route", IDs: []string{id}, Target: "10.0.0.1:25"})
		synctest.Wait()
		if r := b.relay.reqs[len(b.relay.reqs)-1]; r.NextHop != "10.0.0.1:25" {
			t.Errorf("went to %q after route", r.NextHop)
		}
		b.do(0, Command{Verb: "bounce", IDs: []string{id}, Why: "wrong town"})
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(b.queued()) != 0 || b.local.attempts("ann@example.test") != 1 {
			t.Errorf("after bounce: %v, %d reports", b.queued(), b.local.attempts("ann@example.test"))
		}
		if h := b.history(); !strings.Contains(h, "wrong town") {
			t.Errorf("history: %s", h)
		}
		b.stop()
	})
}

// TestHoldIsDurable: a hold that was answered survives a power cut.
func TestHoldIsDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = defers("4.2.2", "452 mailbox full", true)
		b.run()
		id := b.send(mail("ann@example.test", "bob@y.test"))
		b.check(b.s.intake(id, false))
		synctest.Wait()
		if _, errs, st := b.do(0, Command{Verb: "hold", IDs: []string{id}}); st != 0 {
			t.Fatal(errs)
		}
		after := b.crash().Reboot(rand.New(rand.NewPCG(1, 2)))
		b.stop()
		b.fs = after
		b.check(b.boot(slow))
		b.run()
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if n := b.relay.attempts("bob@y.test"); n != 1 {
			t.Errorf("%d attempts at a held message after a power cut", n)
		}
		if out, _, _ := b.do(0, Command{Verb: "list"}); !strings.Contains(out, "\theld\t") {
			t.Errorf("list: %q", out)
		}
		b.stop()
	})
}

// TestRemoveDuringAttempt: what an admin removes while it is tried is not tried again and not
// reported.
func TestRemoveDuringAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		gate := make(chan bool)
		b.s.agents[Relay].do = gated{b.relay, gate}
		b.relay.answer = refuse
		b.run()
		id := b.send(mail("ann@example.test", "bob@y.test"))
		b.check(b.s.intake(id, false))
		synctest.Wait()
		if _, errs, st := b.do(0, Command{Verb: "bounce", IDs: []string{id}}); st != 75 || !strings.Contains(errs, "under way") {
			t.Errorf("bounce during an attempt: %d %s", st, errs)
		}
		if _, errs, st := b.do(0, Command{Verb: "rm", IDs: []string{id}}); st != 0 {
			t.Errorf("rm: %s", errs)
		}
		close(gate)
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(b.queued()) != 0 || b.local.attempts("ann@example.test") != 0 {
			t.Errorf("left %v, %d reports", b.queued(), b.local.attempts("ann@example.test"))
		}
		b.stop()
	})
}

// TestWaitingInLine: what an admin holds or removes while it waits for its turn is not tried.
func TestWaitingInLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		gate := make(chan bool)
		b.s.agents[Relay].do = gated{b.relay, gate}
		b.run()
		var ids []string
		for i := range slowStart + 3 {
			id := b.send(mail("ann@example.test", fmt.Sprintf("u%d@y.test", i)))
			ids = append(ids, id)
			b.check(b.s.intake(id, false))
		}
		synctest.Wait()
		b.do(0, Command{Verb: "hold", IDs: ids[slowStart : slowStart+1]})
		b.do(0, Command{Verb: "rm", IDs: ids[slowStart+1 : slowStart+2]})
		if left := b.queued(); len(left) != slowStart+2 {
			t.Errorf("%d left after rm", len(left))
		}
		close(gate)
		time.Sleep(time.Hour)
		synctest.Wait()
		for i := range slowStart + 3 {
			want := 1
			if i == slowStart || i == slowStart+1 {
				want = 0
			}
			if n := b.relay.attempts(fmt.Sprintf("u%d@y.test", i)); n != want {
				t.Errorf("u%d: %d attempts", i, n)
			}
		}
		b.do(0, Command{Verb: "release", IDs: ids[slowStart : slowStart+1]})
		time.Sleep(time.Minute)
		synctest.Wait()
		if left := b.queued(); len(left) != 0 || b.s.rounds != 0 || b.s.warm != 0 || b.s.busy != 0 || b.s.running != 0 {
			t.Errorf("left %v, %d rounds, %d warm, %d busy, %d running", left, b.s.rounds, b.s.warm, b.s.busy, b.s.running)
		}
		b.stop()
	})
}

// TestReplyStream: what a verb answers arrives whole at the other end of the control socket.
func TestReplyStream(t *testing.T) {
	var wire bytes.Buffer
	r := &replySink{enc: json.NewEncoder(&wire)}
	var want strings.Builder
	for i := range 3000 {
		line := fmt.Sprintf("%d\t<\"a<b&c\"@x.test>\u2028\n", i)
		want.WriteString(line)
		if _, err := r.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	raw := []byte{0, 255, '\n', '{'}
	if err := r.Raw(raw); err != nil {
		t.Fatal(err)
	}
	if err := r.Fail(errUnknown); err != nil {
		t.Fatal(err)
	}
	r.end(65, nil)
	var got testSink
	status, err := readReplies(&wire, &got)
	if status != 65 || err != nil || got.String() != want.String()+string(raw) || got.errs.String() != errUnknown.Error()+"\n" {
		t.Errorf("status %d, %v, %d octets of %d", status, err, got.Len(), want.Len())
	}
	if _, err := readReplies(strings.NewReader(`{"out":"half"}`), &got); err == nil {
		t.Error("an answer without its end was taken for whole")
	}
}

func TestField(t *testing.T) {
	for in, want := range map[string]string{
		"ann@x.test": "ann@x.test", "a\tb": `a\x09b`, "a\nb": `a\x0ab`, `a\b`: `a\\b`, "jörg": "jörg", "a\xffb": `a\xffb`, "a\u202eb": `a\xe2\x80\xaeb`,
	} {
		if got := field(in); got != want {
			t.Errorf("field(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestRoutes(t *testing.T) {
	target := func(to string) Target {
		tg, err := ParseTarget(to)
		if err != nil {
			t.Fatal(err)
		}
		return tg
	}
	smart := target("smart.test:587")
	routes := []Route{
		{"first.test", target("h1:25")}, {"first.test", target("h2:25")}, {"Ann@Example.test", target("h3:25")},
		{"*.sub.test", target("lmtp:/run/x")}, {"sub.test", target("mx:other.test")}, {"bad.test", target("error:5.1.2 no such place")},
	}
	for _, c := range []struct {
		addr, plain, smart string
	}{
		{"a@first.test", "h1:25", "h1:25"}, {"a@FIRST.test", "h1:25", "h1:25"},
		{"ann@example.test", "h3:25", "h3:25"}, {"bob@example.test", "local", "local"}, {"postmaster", "local", "local"},
		{"a@b.sub.test", "lmtp:/run/x", "lmtp:/run/x"}, {"a@sub.test", "other.test", "other.test"}, {"a@xsub.test", "xsub.test", "smart.test:587"},
		{"a@bad.test", "error:5.1.2 no such place", "error:5.1.2 no such place"}, {"a@else.test", "else.test", "smart.test:587"},
		{`"a@first.test"@else.test`, "else.test", "smart.test:587"},
	} {
		p := newTable(routes, []string{"example.test"}, nil).find(c.addr)
		s := newTable(routes, []string{"example.test"}, &smart).find(c.addr)
		if p.String() != c.plain || s.String() != c.smart {
			t.Errorf("%s goes to %s, with a smart host to %s", c.addr, p.String(), s.String())
		}
	}
	for _, bad := range []string{"", "a@b:25", "error:2.0.0 fine", "error:nonsense", "mx:", "lmtp:", "a b"} {
		if _, err := ParseTarget(bad); err == nil {
			t.Errorf("%q was taken for a next hop", bad)
		}
	}
}

func TestIntervals(t *testing.T) {
	table := []time.Duration{time.Minute, time.Hour}
	for _, c := range []struct {
		n    int
		rnd  float64
		want time.Duration
	}{
		{0, 0.5, time.Minute}, {1, 0.5, time.Minute}, {2, 0.5, time.Hour}, {9, 0.5, time.Hour}, {2, 0, 54 * time.Minute}, {2, 0.9999, 66 * time.Minute},
	} {
		if got := interval(table, c.n, c.rnd).Round(time.Minute); got != c.want {
			t.Errorf("interval(%d, %v) = %v, want %v", c.n, c.rnd, got, c.want)
		}
	}
	if interval(nil, 1, 0.5) != 5*time.Minute || longest(nil) != 4*time.Hour+24*time.Minute {
		t.Error("default table")
	}
	for n, want := range []time.Duration{1: time.Second, 2: 10 * time.Second, 3: time.Minute, 4: time.Minute, 5: time.Hour} {
		if n > 0 && troublePause(n, table, 0.5) != want {
			t.Errorf("pause after dying %d times: %v, want %v", n, troublePause(n, table, 0.5), want)
		}
	}
}

// TestManualNamesEveryLogLine compares the log calls of the sources with mqueue(8).
func TestManualNamesEveryLogLine(t *testing.T) {
	page, err := os.ReadFile("../../man/mqueue.8")
	if err != nil {
		t.Fatal(err)
	}
	call := regexp.MustCompile(`[lL]og\.(?:Info|Warn|Error)\("([^"]+)"`)
	n := 0
	for _, pattern := range []string{"*.go", "../worker/agent.go", "../../cmd/mqueue/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range call.FindAllSubmatch(text, -1) {
				n++
				if !bytes.Contains(page, append([]byte(".It "), m[1]...)) {
					t.Errorf("%s: DIAGNOSTICS of mqueue(8) lacks %q", f, m[1])
				}
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d log calls found: is the pattern right?", n)
	}
}

// FuzzCommand: whatever comes over the control socket, one bounded command is read or refused.
func FuzzCommand(f *testing.F) {
	f.Add([]byte(`{"v":1,"verb":"list"}` + "\n"))
	f.Add([]byte(`{"v":1,"verb":"rm","ids":["000000000000000000"],"addrs":["a@b"],"dry_run":true}` + "\n{}"))
	f.Add([]byte(`{"v":2}` + "\n"))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := readCommand(bytes.NewReader(in))
		if (c == nil) == (err == nil) {
			t.Fatalf("%v, %v", c, err)
		}
		if err != nil {
			return
		}
		line, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := readCommand(bufio.NewReader(bytes.NewReader(append(line, '\n'))))
		if err != nil || again.Verb != c.Verb || len(again.IDs) != len(c.IDs) {
			t.Fatalf("%+v -> %s -> %+v, %v", c, line, again, err)
		}
	})
}

// TestRouteOutlivesRestart: a message that an admin sent past a dead host does not wait behind
// that host after a restart, and list does not name it.
func TestRouteOutlivesRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = func(_ int, to string, r *worker.Request) worker.Result {
			if r.NextHop == "y.test" {
				return worker.Result{To: to, Status: envelope.Defer("4.4.1", "cannot connect")}
			}
			return deliverIt(0, to, r)
		}
		b.run()
		send := func(to string) string {
			id := b.send(mail("ann@example.test", to))
			b.check(b.s.intake(id, false))
			synctest.Wait()
			return id
		}
		send("a@y.test")
		id := send("b@y.test")
		b.do(0, Command{Verb: "hold", IDs: []string{id}})
		b.do(0, Command{Verb: "route", IDs: []string{id}, Target: "10.0.0.1:25"})
		b.stop()
		for range 2 { // from the journal; then from the snapshot it became
			b.check(b.boot(nil))
			b.run()
			if out, _, _ := b.do(0, Command{Verb: "list", IDs: []string{id}}); strings.Contains(out, "y.test\t<ann") {
				t.Errorf("list: %q", out)
			}
			b.s.compact()
			b.stop()
		}
		b.check(b.boot(nil))
		b.run()
		send("c@y.test")
		b.do(0, Command{Verb: "release", IDs: []string{id}})
		synctest.Wait()
		if n := b.relay.delivered("b@y.test"); n != 1 {
			out, _, _ := b.do(0, Command{Verb: "explain", IDs: []string{id}})
			t.Errorf("delivered %d times: %s", n, out)
		}
		b.stop()
	})
}

// TestFlushByHand: what is made due while no scheduler runs is due for the next one.
func TestFlushByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, nil, nil)
		b.relay.answer = defers("4.2.2", "452 mailbox full", true)
		b.run()
		b.check(b.s.intake(b.send(mail("ann@example.test", "bob@y.test")), false))
		synctest.Wait()
		b.stop()
		for i, dry := range []bool{true, false} {
			b.check(b.boot(nil))
			b.check(b.s.Prepare())
			if _, errs, st := b.do(0, Command{Verb: "flush", Target: "y.test", DryRun: dry}); st != 0 {
				t.Fatal(errs)
			}
			b.check(errors.Join(b.s.Finish(), b.s.Close()))
			b.check(b.boot(nil))
			b.run()
			if n := b.relay.attempts("bob@y.test"); n != i+1 {
				t.Errorf("dry %v: %d attempts, want %d", dry, n, i+1)
			}
			b.stop()
		}
	})
}
