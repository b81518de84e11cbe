package sched

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/spool"
	"pennypost/internal/submit"
	"pennypost/internal/worker"
)

// nullWorker delivers everything at once.
type nullWorker struct{}

func (nullWorker) Do(_ context.Context, r *worker.Request, _ *os.File) (*worker.Report, error) {
	rep := &worker.Report{Results: make([]worker.Result, len(r.To))}
	for i := range r.To {
		rep.Results[i] = worker.Result{To: r.To[i].Addr, Status: envelope.Status{Verdict: envelope.Delivered, Code: "2.0.0"}}
	}
	return rep, nil
}

func benchSched(b testing.TB, relay Doer) (*spool.Spool, *Scheduler) {
	dir := b.TempDir()
	if err := spool.Init(dir); err != nil {
		b.Fatal(err)
	}
	sp, err := spool.Open(dir, spool.Options{})
	if err != nil {
		b.Fatal(err)
	}
	s, err := New(Options{
		Spool: sp, Submit: submit.New(submit.Options{Spool: sp, Hostname: "mx.test"}), Hostname: "mx.test", Domains: []string{"example.test"},
		Workers: map[string]Worker{Local: {nullWorker{}, 50}, Relay: {relay, 100}}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}, false)
	if err == nil {
		err = s.open()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return sp, s
}

// BenchmarkIntakeToDone is a message's whole life with a worker that costs nothing: taken,
// routed, handed on, written into the history, removed. The submission and its two syncs are
// not measured.
func BenchmarkIntakeToDone(b *testing.B) {
	sp, s := benchSched(b, nullWorker{})
	ids := make([]string, b.N)
	for i := range ids {
		env := mail("ann@x.test", "bob@example.test")
		w, err := sp.Create(env)
		if err == nil {
			_, err = io.WriteString(w, "Subject: x\n\nbody\n")
		}
		if err == nil {
			err = w.Commit()
		}
		if err != nil {
			b.Fatal(err)
		}
		ids[i] = env.ID
	}
	b.ReportAllocs()
	b.ResetTimer()
	for _, id := range ids {
		if err := s.intake(id, false); err != nil {
			b.Fatal(err)
		}
	}
	s.wg.Wait()
}

// TestMemory: an entry of a backlog, with its share of map and heap, stays below 300 bytes.
func TestMemory(t *testing.T) {
	_, s := benchSched(t, nullWorker{})
	const n = 100_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	now := s.now()
	s.mu.Lock()
	for i := range n {
		m := spool.Entry{
			ID: spool.NewID(time.Now()), From: fmt.Sprintf("sender%06d@example.test", i), To: fmt.Sprintf("recipient%06d@dead.test", i),
			Due: time.Now().Add(time.Hour), Size: 4096, Left: 1, Attempts: 1,
		}
		r := s.entries.add(m.ID)
		s.fill(s.entries.at(r), &m, now)
		s.park(r, s.entries.at(r))
	}
	s.mu.Unlock()
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := (after.HeapAlloc - before.HeapAlloc) / n
	t.Logf("%d bytes an entry", per)
	if per > 250 { // the collector's room on top of it is a matter of GOGC
		t.Errorf("%d bytes an entry", per)
	}
}

// BenchmarkList is one line of the list.
func BenchmarkList(b *testing.B) {
	_, s := benchSched(b, nullWorker{})
	s.mu.Lock()
	for i := range b.N {
		m := spool.Entry{ID: spool.NewID(time.Now()), From: "sender@example.test", To: fmt.Sprintf("r%d@dead.test", i), Left: 1, Attempts: 1}
		r := s.entries.add(m.ID)
		s.fill(s.entries.at(r), &m, s.now())
		s.entries.at(r).state = idle
	}
	s.mu.Unlock()
	b.ReportAllocs()
	b.ResetTimer()
	if _, err := s.list(&Command{Verb: "list"}, Who{Admin: true}, &discard{}); err != nil {
		b.Fatal(err)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Raw([]byte) error            { return nil }
func (discard) Fail(error) error            { return nil }
