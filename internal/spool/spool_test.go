package spool

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pennypost/internal/envelope"
)

func testEnvelope() *envelope.Envelope {
	return &envelope.Envelope{From: "a@x.test", To: []envelope.Recipient{{Addr: "b@y.test"}, {Addr: "c@y.test"}}}
}

func testSpool(t testing.TB, o Options) *Spool {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "spool")
	if err := Init(dir); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func testQueue(t testing.TB, s *Spool) *Queue {
	t.Helper()
	q, err := s.Lock(false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	return q
}

// put commits a message and returns its id.
func put(t testing.TB, s *Spool, env *envelope.Envelope, body []byte) string {
	t.Helper()
	w, err := s.Create(env)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return w.ID()
}

func body(t testing.TB, m *Message) []byte {
	t.Helper()
	b, err := io.ReadAll(m.Body())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func list(t testing.TB, s *Spool, dir string) string {
	t.Helper()
	des, err := os.ReadDir(filepath.Join(s.dir, dir))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range des {
		names = append(names, d.Name())
	}
	return strings.Join(names, " ")
}

// pattern is n octets that differ from place to place.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*31 + i>>8)
	}
	return b
}

func TestCommitTake(t *testing.T) {
	s := testSpool(t, Options{})
	q := testQueue(t, s)
	sizes := []int{0, 1, 100, firstRead, bufferSize - 300, bufferSize, bufferSize + 1, 200_000, 1 << 20}
	for _, n := range sizes {
		for _, chunk := range []int{1000, bufferSize - 1, bufferSize, 1 << 21, -1} {
			want := pattern(n)
			w, err := s.Create(testEnvelope())
			if err != nil {
				t.Fatal(err)
			}
			if chunk < 0 {
				_, err = io.Copy(w, io.LimitReader(bytes.NewReader(want), int64(n)))
			} else {
				for rest := want; len(rest) > 0 && err == nil; {
					c := min(chunk, len(rest))
					_, err = w.Write(rest[:c])
					rest = rest[c:]
				}
			}
			if err == nil {
				err = w.Commit()
			}
			if err != nil {
				t.Fatalf("size %d chunk %d: %v", n, chunk, err)
			}
			m, err := q.Take(w.ID())
			if err != nil {
				t.Fatalf("size %d chunk %d: %v", n, chunk, err)
			}
			if m.Env.ID != w.ID() || m.Env.From != "a@x.test" || len(m.Env.To) != 2 || m.Env.EOL != envelope.EOLLF {
				t.Errorf("envelope %+v", m.Env)
			}
			if got := body(t, m); !bytes.Equal(got, want) {
				t.Errorf("size %d chunk %d: %d other octets", n, chunk, len(got))
			}
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			if err := q.Remove(w.ID()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if l := list(t, s, dirIncoming) + list(t, s, dirQueue); l != "" {
		t.Errorf("left over: %s", l)
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	s := testSpool(t, Options{})
	for _, n := range []int{10, 1 << 20} {
		w, err := s.Create(testEnvelope())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(pattern(n)); err != nil {
			t.Fatal(err)
		}
		if err := w.Abort(); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(); err == nil {
			t.Error("commit after abort")
		}
		if _, err := w.Write([]byte("x")); err == nil {
			t.Error("write after abort")
		}
	}
	if l := list(t, s, dirIncoming); l != "" {
		t.Errorf("left over: %s", l)
	}
}

// A short read must never become a short message.
func TestReadErrorIsFinal(t *testing.T) {
	s := testSpool(t, Options{})
	w, err := s.Create(testEnvelope())
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	if _, err := io.Copy(w, io.MultiReader(strings.NewReader("half a"), errReader{boom})); !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	if err := w.Commit(); !errors.Is(err, boom) {
		t.Errorf("commit after a read error: %v", err)
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	if l := list(t, s, dirIncoming); l != "" {
		t.Errorf("left over: %s", l)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestIDs(t *testing.T) {
	now := time.UnixMilli(1763776800123)
	a, b := NewID(now), NewID(now.Add(time.Millisecond))
	if !ValidID(a) || !ValidID(b) || a >= b || NewID(now) == a {
		t.Errorf("ids %s %s", a, b)
	}
	if !IDTime(a).Equal(now) {
		t.Errorf("time of %s is %v", a, IDTime(a))
	}
	c := ChildID(a, 1, "dsn", 0)
	if !ValidID(c) || c[:idHalf] != a[:idHalf] || c != ChildID(a, 1, "dsn", 0) {
		t.Errorf("child %s of %s", c, a)
	}
	seen := map[string]bool{a: true}
	for _, x := range []string{c, ChildID(a, 2, "dsn", 0), ChildID(a, 1, "fwd", 0), ChildID(a, 1, "dsn", 1), ChildID(b, 1, "dsn", 0)} {
		if seen[x] {
			t.Errorf("%s twice", x)
		}
		seen[x] = true
	}
	for _, bad := range []string{"", "x", a + "0", a[1:] + "w", a[1:] + "/", "..", strings.ToUpper(a[:17]) + "A"} {
		if ValidID(bad) {
			t.Errorf("%q is valid", bad)
		}
	}
}

// Ids of one process sort by the order they were made in, even when the clock steps back.
func TestIDsAfterClockStep(t *testing.T) {
	now := time.UnixMilli(1763776800123)
	s := testSpool(t, Options{Now: func() time.Time { return now }})
	a := put(t, s, testEnvelope(), nil)
	now = now.Add(-time.Hour)
	b := put(t, s, testEnvelope(), nil)
	if b[:idHalf] < a[:idHalf] {
		t.Errorf("%s after %s", b, a)
	}
}

func TestOpenMissing(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none"), Options{}); !errors.Is(err, ErrNoSpool) {
		t.Errorf("got %v", err)
	}
}

func TestFull(t *testing.T) {
	for _, o := range []Options{{FreeSpace: 1 << 62}, {FreeInodes: 1 << 62}} {
		s := testSpool(t, o)
		if _, err := s.Create(testEnvelope()); !errors.Is(err, ErrFull) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestOneScheduler(t *testing.T) {
	s := testSpool(t, Options{})
	q, err := s.Lock(false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lock(false); !errors.Is(err, ErrLocked) {
		t.Errorf("second scheduler: %v", err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	testQueue(t, s)
}
