package sched

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/envelope"
	"pennypost/internal/mailtest"
	"pennypost/internal/spool"
	"pennypost/internal/submit"
	"pennypost/internal/worker"
)

// fake is a worker that answers by a function and remembers what it was asked.
type fake struct {
	answer func(n int, to string, r *worker.Request) worker.Result // n counts attempts for to, from 1
	broken func(r *worker.Request) error                           // an error instead of a report

	mu    sync.Mutex
	asked map[string]int // attempts by recipient
	times map[string][]time.Time
	done  map[string]int // "delivered" and "relayed" results by recipient
	reqs  []worker.Request
}

func newFake() *fake {
	return &fake{asked: map[string]int{}, times: map[string][]time.Time{}, done: map[string]int{}, answer: deliverIt}
}

func deliverIt(_ int, to string, _ *worker.Request) worker.Result {
	return worker.Result{To: to, Status: envelope.Status{Verdict: envelope.Delivered, Code: "2.0.0"}}
}

func (f *fake) Do(ctx context.Context, r *worker.Request, _ *os.File) (*worker.Report, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reqs = append(f.reqs, *r)
	if f.broken != nil {
		if err := f.broken(r); err != nil {
			return nil, err
		}
	}
	rep := &worker.Report{Seq: r.Seq, ID: r.ID}
	for _, to := range r.To {
		f.asked[to.Addr]++
		f.times[to.Addr] = append(f.times[to.Addr], time.Now())
		res := f.answer(f.asked[to.Addr], to.Addr, r)
		if res.Verdict == envelope.Delivered || res.Verdict == envelope.Relayed {
			f.done[to.Addr]++
		}
		rep.Results = append(rep.Results, res)
	}
	return rep, nil
}

func (f *fake) attempts(to string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[to]
}

func (f *fake) delivered(to string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.done[to]
}

// bed is a spool with a scheduler over it, on a file system in memory.
type bed struct {
	t     testing.TB
	fs    durable.FS
	sp    *spool.Spool
	s     *Scheduler
	local *fake
	relay *fake
	log   *bytes.Buffer
	logMu sync.Mutex
	stop  func()
}

// Write takes log lines.
func (b *bed) Write(p []byte) (int, error) {
	b.logMu.Lock()
	defer b.logMu.Unlock()
	return b.log.Write(p)
}

func newBed(t testing.TB, fs durable.FS, set func(*Options)) *bed {
	t.Helper()
	b := &bed{t: t, fs: fs, local: newFake(), relay: newFake(), log: &bytes.Buffer{}}
	if fs == nil {
		c := mailtest.NewCrashFS()
		c.Space = durable.Space{Bytes: 1 << 40, Inodes: 1 << 30}
		b.fs = c
	}
	if err := b.boot(set); err != nil {
		t.Fatal(err)
	}
	return b
}

// boot makes the scheduler, as a start of the program does.
func (b *bed) boot(set func(*Options)) error {
	if err := spool.InitOn(b.fs, "/spool", -1); err != nil {
		return err
	}
	sp, err := spool.Open("/spool", spool.Options{FS: b.fs})
	if err != nil {
		return err
	}
	b.sp = sp
	o := Options{
		Spool: sp, Submit: submit.New(submit.Options{Spool: sp, Hostname: "mx.example.test", MaxHops: 50}),
		Hostname: "mx.example.test", Postmaster: "postmaster@example.test", Domains: []string{"example.test"},
		Workers: map[string]Worker{Local: {b.local, 50}, Relay: {b.relay, 100}},
		Rand:    func() float64 { return 0.5 },
		Log:     slog.New(slog.NewTextHandler(b, nil)),
	}
	if set != nil {
		set(&o)
	}
	b.s, err = New(o, false)
	return err
}

// run works on the queue until stop is called.
func (b *bed) run() {
	ctx, cancel := context.WithCancel(context.Background())
	if err := b.s.open(); err != nil {
		b.t.Fatal(err)
	}
	done := make(chan bool)
	go func() { b.s.scan(true); b.s.loop(ctx); close(done) }()
	synctest.Wait() // the first scan is over: what a test does next comes after it
	b.stop = func() {
		cancel()
		<-done
		b.s.mu.Lock()
		b.s.ending = true
		b.s.mu.Unlock()
		b.s.drain(func() {})
		if err := errors.Join(b.s.put(), b.s.Close()); err != nil {
			b.t.Error(err)
		}
	}
}

// send puts a message into the spool.
func (b *bed) send(env *envelope.Envelope) string {
	b.t.Helper()
	w, err := b.sp.Create(env)
	if err == nil {
		_, err = io.WriteString(w, "Subject: test\nMessage-ID: <m@x.test>\n\nbody\n")
	}
	if err == nil {
		err = w.Commit()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return env.ID
}

func to(addrs ...string) []envelope.Recipient {
	var rs []envelope.Recipient
	for _, a := range addrs {
		rs = append(rs, envelope.Recipient{Addr: a})
	}
	return rs
}

func mail(from string, addrs ...string) *envelope.Envelope {
	return &envelope.Envelope{From: from, To: to(addrs...), Origin: envelope.Origin{Kind: envelope.OriginPipe}}
}

// queued are the ids in queue/ and incoming/.
func (b *bed) queued() []string {
	b.t.Helper()
	var ids []string
	for id, err := range b.sp.View().Queued() {
		if err != nil {
			b.t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for id, err := range b.sp.View().Incoming() {
		if err != nil {
			b.t.Fatal(err)
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// history is all that the history files say.
func (b *bed) history() string {
	b.t.Helper()
	days, err := b.sp.View().HistoryDays()
	if err != nil {
		b.t.Fatal(err)
	}
	var out strings.Builder
	for _, d := range days {
		f, err := b.sp.View().OpenHistory(d)
		if err != nil {
			b.t.Fatal(err)
		}
		if _, err := io.Copy(&out, f); err != nil {
			b.t.Fatal(err)
		}
		f.Close()
	}
	return out.String()
}

// do executes a verb and returns what it printed.
func (b *bed) do(uid int, c Command) (out, errs string, status int) {
	b.t.Helper()
	var s testSink
	status, err := b.s.Do(b.t.Context(), &c, Who{UID: uid, Admin: uid == 0}, &s)
	if err != nil {
		fmt.Fprintf(&s.errs, "%v\n", err)
	}
	return s.String(), s.errs.String(), status
}

type testSink struct {
	bytes.Buffer
	errs bytes.Buffer
}

func (s *testSink) Raw(p []byte) error { _, err := s.Write(p); return err }
func (s *testSink) Fail(err error) error {
	_, werr := fmt.Fprintf(&s.errs, "%v\n", err)
	return werr
}

func defers(code, reply string, remote bool) func(int, string, *worker.Request) worker.Result {
	return func(_ int, to string, _ *worker.Request) worker.Result {
		st := envelope.Defer(code, reply)
		st.Remote = remote
		return worker.Result{To: to, Status: st}
	}
}

func (b *bed) crash() *mailtest.CrashFS { return b.fs.(*mailtest.CrashFS) }

// gated answers when the gate opens.
type gated struct {
	*fake
	gate chan bool
}

func (g gated) Do(ctx context.Context, r *worker.Request, f *os.File) (*worker.Report, error) {
	<-g.gate
	return g.fake.Do(ctx, r, f)
}
