//go:build long

package spool

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// A queue of a million messages: start from the snapshot, start without, memory an entry.
// SPOOL_MILLION=n sets another number; the default keeps the long tests short.
func TestMillion(t *testing.T) {
	n := 10_000
	if v := os.Getenv("SPOOL_MILLION"); v != "" {
		if _, err := fmt.Sscan(v, &n); err != nil {
			t.Fatal(err)
		}
	}
	s := testSpool(t, Options{})
	q := testQueue(t, s)
	plantQueue(t, s, n)
	for _, with := range []string{"without a snapshot", "with a snapshot"} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		start := time.Now()
		entries := make([]Entry, 0, n)
		j, st, err := q.Load(func(e Entry) error { entries = append(entries, e); return nil })
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if len(entries) != n || len(st.Bad) > 0 {
			t.Fatalf("%d entries, %+v", len(entries), st)
		}
		t.Logf("%s: %d entries in %v, %d files opened, %d octets of memory an entry",
			with, n, took.Round(time.Millisecond), st.Opened, int(after.HeapAlloc-before.HeapAlloc)/n)
		start = time.Now()
		if err := j.Compact(slices.Values(entries)); err != nil {
			t.Fatal(err)
		}
		t.Logf("snapshot written in %v", time.Since(start).Round(time.Millisecond))
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		if limit := 10 * time.Second; with == "with a snapshot" && (took > limit || st.Opened > 0) {
			t.Errorf("took %v, limit %v; %d files opened", took, limit, st.Opened)
		}
		runtime.KeepAlive(entries)
	}
}

// plantQueue makes message files of queue/ without the syncs of a submission.
func plantQueue(t *testing.T, s *Spool, n int) {
	t.Helper()
	text := []byte("Subject: hi\n\nbody\n")
	for i := range n {
		env := testEnvelope()
		env.ID = makeID(1763776800000+int64(i/100), uint64(i)*0x9e3779b97f4a7c15)
		env.Time, env.EOL = at0, "lf"
		env.To = env.To[:1]
		env.To[0].Addr = strings.Replace(env.To[0].Addr, "b@", fmt.Sprintf("user%d@", i), 1)
		line2, err := encodeEnvelope(env)
		if err != nil {
			t.Fatal(err)
		}
		h := header{envelope: int64(len(line2)), message: int64(len(text)), crc: checksum(checksum(0, line2), text)}
		b := append(append([]byte(h.String()), line2...), text...)
		if err := os.WriteFile(s.path(dirQueue, env.ID), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
