package spool

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func load(t *testing.T, q *Queue) (*Journal, []Entry, LoadStats) {
	t.Helper()
	var got []Entry
	j, st, err := q.Load(func(e Entry) error { got = append(got, e); return nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return j, got, st
}

func fill(t *testing.T, s *Spool, q *Queue, n int) []string {
	t.Helper()
	var ids []string
	for range n {
		id := put(t, s, testEnvelope(), []byte("x"))
		m, err := q.Take(id)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func ids(es []Entry) []string {
	var out []string
	for _, e := range es {
		out = append(out, e.ID)
	}
	return out
}

func TestSnapshot(t *testing.T) {
	s := testSpool(t, Options{})
	q := testQueue(t, s)
	all := fill(t, s, q, 20)
	j, got, st := load(t, q)
	if st.Opened != 20 || !slices.Equal(ids(got), all) {
		t.Fatalf("first load: %+v %v", st, ids(got))
	}
	due := time.UnixMilli(1763776800123).UTC()
	got[3].Due, got[3].Attempts, got[3].Hop = due, 2, "mx:y.test"
	if err := j.Compact(slices.Values(got)); err != nil {
		t.Fatal(err)
	}
	got[4].Hold, got[4].Left = true, 1
	if err := j.Put(got[4]); err != nil {
		t.Fatal(err)
	}
	if err := q.Remove(all[5]); err != nil {
		t.Fatal(err)
	}
	if err := j.Drop(all[5]); err != nil {
		t.Fatal(err)
	}
	if err := q.Remove(all[6]); err != nil { // and a crash before the journal knew
		t.Fatal(err)
	}
	late := fill(t, s, q, 1)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}

	j, again, st := load(t, q)
	want := slices.Concat(all[:5], all[7:], late)
	if st.Opened != 1 || st.Snapshot != 18 || !slices.Equal(ids(again), want) {
		t.Fatalf("second load: %+v\n%v\n%v", st, ids(again), want)
	}
	if again[3] != got[3] || again[4] != got[4] {
		t.Errorf("got %+v\n%+v, want %+v\n%+v", again[3], again[4], got[3], got[4])
	}
	if j.Len() != 2 {
		t.Errorf("journal has %d changes", j.Len())
	}
}

// Any damage sends the reader to the files; it never changes what is found.
func TestSnapshotDamage(t *testing.T) {
	s := testSpool(t, Options{})
	q := testQueue(t, s)
	all := fill(t, s, q, 10)
	j, got, _ := load(t, q)
	if err := j.Compact(slices.Values(got)); err != nil {
		t.Fatal(err)
	}
	if err := j.Put(got[2], got[7]); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{fileSnapshot, fileJournal} {
		path := filepath.Join(s.dir, name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(good); at += 41 {
			for _, bad := range [][]byte{
				good[:at],
				append(slices.Clone(good[:at]), append([]byte{good[at] ^ 1}, good[at+1:]...)...),
				append(slices.Clone(good[:at]), make([]byte, len(good)-at)...),
			} {
				if err := os.WriteFile(path, bad, 0o600); err != nil {
					t.Fatal(err)
				}
				j, got, st := load(t, q)
				if !slices.Equal(ids(got), all) {
					t.Fatalf("%s damaged at %d: %v, %+v", name, at, ids(got), st)
				}
				if err := j.Put(got[0]); err != nil {
					t.Fatal(err)
				}
				if err := j.Close(); err != nil {
					t.Fatal(err)
				}
				if _, again, _ := load(t, q); !slices.Equal(again, got) {
					t.Fatalf("%s damaged at %d: other entries after a Put", name, at)
				}
			}
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEntryLine(t *testing.T) {
	for _, e := range []Entry{
		{ID: NewID(time.Now())},
		{ID: NewID(time.Now()), From: `"a b"@x.test`, To: "jörg@y.test", Hop: "host:25", Due: time.UnixMilli(5).UTC(), Size: 1 << 40, Left: 3, Attempts: 9, Hold: true, Routed: true, Timed: true},
	} {
		b, err := appendLine(nil, &e, false)
		if err != nil {
			t.Fatal(err)
		}
		got, drop, err := parseLine(b[:len(b)-1])
		if err != nil || drop || got != e {
			t.Errorf("%q: %+v %v %v", b, got, drop, err)
		}
	}
	for _, e := range []Entry{{}, {ID: "x"}, {ID: NewID(time.Now()), Hop: "a\nb"}, {ID: NewID(time.Now()), Hop: "a\tb"}, {ID: NewID(time.Now()), To: strings.Repeat("x", maxLine)}} {
		if b, err := appendLine([]byte("kept"), &e, false); err == nil || string(b) != "kept" {
			t.Errorf("%+v gave %q", e, b)
		}
	}
}

func TestCompactWantsOrder(t *testing.T) {
	s := testSpool(t, Options{})
	q := testQueue(t, s)
	j, _, _ := load(t, q)
	a, b := Entry{ID: NewID(time.UnixMilli(2))}, Entry{ID: NewID(time.UnixMilli(1))}
	if err := j.Compact(slices.Values([]Entry{a, b})); err == nil {
		t.Error("entries in disorder were written")
	}
	if names := list(t, s, ""); strings.Contains(names, fileSnapshot) {
		t.Errorf("left over: %s", names)
	}
}
