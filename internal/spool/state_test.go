package spool

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pennypost/internal/envelope"
)

var at0 = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)

func result(to string, v envelope.Verdict) Result {
	return Result{To: to, Status: envelope.Status{Verdict: v, Code: "2.0.0"}}
}

func left(st *State) string {
	var s []string
	for _, r := range st.Left {
		s = append(s, r.Addr)
	}
	return strings.Join(s, " ")
}

func TestStateApply(t *testing.T) {
	due := at0.Add(time.Hour)
	round := func(n int, rs ...Result) Record {
		return Record{Time: at0, Kind: RecAttempt, Round: n, Results: rs, Due: &due}
	}
	attempt := func(rs ...Result) Record { return round(0, rs...) }
	for _, c := range []struct {
		name string
		recs []Record
		left string
		ok   func(st *State) bool
	}{
		{"fresh", nil, "a b c a", func(st *State) bool { return st.Due.IsZero() && st.Attempts == 0 && !st.Hold }},
		{"all verdicts", []Record{attempt(result("a", envelope.Delivered), result("b", envelope.Deferred), result("c", envelope.Failed))}, "b",
			func(st *State) bool { return st.Attempts == 1 && st.First.Equal(at0) && st.Due.Equal(due) }},
		{"records without a round", []Record{attempt(result("b", envelope.Expanded)), attempt(result("c", envelope.Relayed))}, "a a",
			func(st *State) bool { return st.Attempts == 2 }},
		{"a round in two parts", []Record{round(1, result("b", envelope.Relayed)), round(1, result("c", envelope.Failed))}, "a a",
			func(st *State) bool { return st.Attempts == 1 }},
		{"unknown verdict", []Record{attempt(result("b", "eaten"))}, "a b c a", nil},
		{"hold", []Record{{Kind: RecHold}}, "a b c a", func(st *State) bool { return st.Hold }},
		{"release", []Record{{Kind: RecHold}, {Kind: RecRelease}}, "a b c a", func(st *State) bool { return !st.Hold }},
		{"retry", []Record{attempt(), {Kind: RecRetry}}, "a b c a", func(st *State) bool { return st.Due.IsZero() }},
		{"retry later", []Record{{Kind: RecRetry, Due: &due}}, "a b c a", func(st *State) bool { return st.Due.Equal(due) }},
		{"route", []Record{{Kind: RecRoute, Route: "mx:x.test"}}, "a b c a", func(st *State) bool { return st.Route == "mx:x.test" }},
		{"route away", []Record{{Kind: RecRoute, Route: "mx:x.test"}, {Kind: RecRoute}}, "a b c a", func(st *State) bool { return st.Route == "" }},
		{"bounce one", []Record{{Kind: RecBounce, To: []string{"c"}, Children: []string{"x"}}}, "a b a",
			func(st *State) bool { return slices.Equal(st.Children, []string{"x"}) }},
		{"rm all", []Record{{Kind: RecRemove}}, "", nil},
		{"notice", []Record{{Kind: RecNotice}}, "a b c a", func(st *State) bool { return st.Notified }},
		{"of a newer release", []Record{{Kind: "dance", Due: &due}}, "a b c a", func(st *State) bool { return st.Due.Equal(due) }},
	} {
		st := NewState(&envelope.Envelope{To: []envelope.Recipient{{Addr: "a"}, {Addr: "b"}, {Addr: "c"}, {Addr: "a"}}})
		for i := range c.recs {
			st.Apply(&c.recs[i])
		}
		if left(&st) != c.left || c.ok != nil && !c.ok(&st) {
			t.Errorf("%s: left %q, %+v", c.name, left(&st), st)
		}
	}
}

func TestHoldUntil(t *testing.T) {
	until := at0.Add(time.Hour)
	if st := NewState(&envelope.Envelope{HoldUntil: &until}); !st.Due.Equal(until) {
		t.Errorf("due %v", st.Due)
	}
}

func readLog(t *testing.T, v *View, id string) []string {
	t.Helper()
	var kinds []string
	if err := v.ReadLog(id, func(r *Record) error { kinds = append(kinds, r.Kind+r.Who); return nil }); err != nil {
		t.Fatal(err)
	}
	return kinds
}

// What a crash leaves of a line is passed over by readers and cut off by the next writer.
func TestAttemptLogTorn(t *testing.T) {
	s := testSpool(t, Options{Now: func() time.Time { return at0 }})
	q := testQueue(t, s)
	id := NewID(at0)
	if got := readLog(t, q.View, id); got != nil {
		t.Errorf("no log: %v", got)
	}
	if err := q.AppendLog(id, Record{Kind: RecHold, Who: "1"}, Record{Kind: RecRelease, Who: "2"}); err != nil {
		t.Fatal(err)
	}
	path := s.path(dirLog, id)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tail := range []string{"{\"v\":1,\"kind\":\"rm\"", strings.Repeat("\x00", 5000), "{\"v\":1", strings.Repeat("x", 9000)} {
		if err := os.WriteFile(path, append(slices.Clone(good), tail...), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := readLog(t, q.View, id); !slices.Equal(got, []string{"hold1", "release2"}) {
			t.Errorf("tail %.9q: %v", tail, got)
		}
		if err := q.AppendLogSync(id, Record{Kind: RecHold, Who: "3"}); err != nil {
			t.Fatal(err)
		}
		if got := readLog(t, q.View, id); !slices.Equal(got, []string{"hold1", "release2", "hold3"}) {
			t.Errorf("after tail %.9q: %v", tail, got)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if rest, ok := bytes.CutPrefix(b, good); !ok || bytes.Count(rest, []byte("{")) != 1 || !bytes.HasPrefix(rest, []byte(`{"v":1,"time"`)) {
			t.Errorf("tail %.9q is still in %q", tail, b)
		}
	}
}

// A line that is no record is passed over: giving up would keep the message from everybody.
func TestAttemptLogDamage(t *testing.T) {
	const log = `{"v":1,"time":"2026-11-22T03:00:00Z","kind":"hold"}
not json
{"kind":"rm"}
` + "\x00\x00\x00\n" + `{"v":1,"time":"2026-11-22T03:00:00Z","kind":"release"}
`
	var kinds []string
	if err := readRecords(strings.NewReader(log), func(r *Record) error { kinds = append(kinds, r.Kind); return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(kinds, []string{"hold", "release"}) {
		t.Errorf("%v", kinds)
	}
	if err := readRecords(strings.NewReader("{\"v\":2}\n"), nil); !errors.Is(err, ErrNewerFormat) {
		t.Errorf("newer: %v", err)
	}
}

func TestHistory(t *testing.T) {
	now := at0
	s := testSpool(t, Options{Now: func() time.Time { return now }})
	q := testQueue(t, s)
	for range 3 {
		for range 2 {
			if err := q.History(map[string]string{"at": now.Format(time.DateOnly)}); err != nil {
				t.Fatal(err)
			}
		}
		now = now.AddDate(0, 0, 1)
	}
	days, err := q.HistoryDays()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(days)
	if !slices.Equal(days, []string{"2026-11-22", "2026-11-23", "2026-11-24"}) {
		t.Fatalf("days %v", days)
	}
	f, err := q.OpenHistory("2026-11-23")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err != nil || string(b) != strings.Repeat("{\"at\":\"2026-11-23\"}\n", 2) {
		t.Errorf("%q %v", b, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := q.SweepHistory(48 * time.Hour); err != nil {
		t.Fatal(err)
	}
	if got := list(t, s, dirHistory); got != "2026-11-23.jsonl 2026-11-24.jsonl" {
		t.Errorf("after the sweep: %s", got)
	}
	if _, err := q.OpenHistory("../lock"); err == nil {
		t.Error("a day that is none was opened")
	}
	if i, err := os.Stat(s.path(dirHistory, "2026-11-24.jsonl")); err != nil || i.Mode().Perm()&^0o640 != 0 {
		t.Errorf("mode %v %v", i.Mode(), err)
	}
}

func TestWake(t *testing.T) {
	s := testSpool(t, Options{})
	q := testQueue(t, s)
	s.Poke("1k80h9stqs8hdfoio9") // nobody listens
	w, err := q.ListenWake()
	if err != nil {
		t.Fatal(err)
	}
	again, err := q.ListenWake() // a second scheduler after the death of the first
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := again.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	id := put(t, s, testEnvelope(), []byte("x"))
	if got, err := again.Next(); err != nil || got != id {
		t.Errorf("%q %v, want %q", got, err, id)
	}
	for _, junk := range []string{"", "x", strings.Repeat("y", 200), "../../etc/passwd"} {
		s.Poke(junk)
		if got, err := again.Next(); err != nil || got != "" {
			t.Errorf("poke %q: %q %v", junk, got, err)
		}
	}
	for range 5000 { // a full socket blocks nobody
		s.Poke(id)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Next(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// A spool at a path that is longer than a socket address still wakes its scheduler.
func TestWakeLongPath(t *testing.T) {
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		t.Skip("no /proc/self/fd")
	}
	dir := t.TempDir() + strings.Repeat("/long-name-long-name-long-name", 4)
	if err := Init(dir); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	q := testQueue(t, s)
	w, err := q.ListenWake()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	id := put(t, s, testEnvelope(), nil)
	if got, err := w.Next(); err != nil || got != id {
		t.Errorf("%q %v", got, err)
	}
	if err := errors.Join(w.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}

func TestDue(t *testing.T) {
	s := testSpool(t, Options{})
	q := testQueue(t, s)
	if due, _ := s.ReadDue(at0); !due {
		t.Error("a missing file is not due")
	}
	for _, c := range []struct {
		write time.Time
		due   bool
	}{{time.Time{}, false}, {at0.Add(time.Second), false}, {at0, true}, {at0.Add(-time.Hour), true}} {
		if err := q.WriteDue(c.write); err != nil {
			t.Fatal(err)
		}
		if due, at := s.ReadDue(at0); due != c.due || !at.Equal(c.write) {
			t.Errorf("%v: %v %v", c.write, due, at)
		}
		before, err := os.Stat(s.path("", fileDue))
		if err = errors.Join(err, q.WriteDue(c.write)); err != nil {
			t.Fatal(err)
		}
		if after, err := os.Stat(s.path("", fileDue)); err != nil || !os.SameFile(before, after) {
			t.Errorf("%v: written anew, to say the same: %v", c.write, err)
		}
	}
	if err := os.WriteFile(s.path("", fileDue), []byte("soon\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if due, _ := s.ReadDue(at0); !due {
		t.Error("an unreadable file is not due")
	}
}

// The word of a submitter about himself counts only when he is trusted.
func TestDistrust(t *testing.T) {
	s := testSpool(t, Options{Trusted: func(uid uint32) bool { return uid == 70 }})
	said := envelope.Origin{Kind: envelope.OriginSMTP, Peer: "192.0.2.1:25"}
	for uid, trusted := range map[uint32]bool{0: true, s.euid: true, 70: true, 71: false} {
		m := &Message{UID: uid, Env: &envelope.Envelope{Origin: said}}
		s.distrust(m)
		if trusted != (m.Env.Origin == said) {
			t.Errorf("uid %d: %+v", uid, m.Env.Origin)
		}
		if !trusted && (m.Env.Origin.Kind != envelope.OriginPipe || *m.Env.Origin.UID != int(uid)) {
			t.Errorf("uid %d: %+v", uid, m.Env.Origin)
		}
	}
}

func TestInitModes(t *testing.T) {
	dir := t.TempDir() + "/spool"
	gid := os.Getgid()
	for range 2 {
		if err := InitGroup(dir, gid); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]os.FileMode{
		"": 0o711 | os.ModeSetgid, dirIncoming: 0o730 | os.ModeSetgid | os.ModeSticky, dirQueue: 0o700, dirLog: 0o700, dirHistory: 0o750, dirCorrupt: 0o700,
	} {
		i, err := os.Stat(dir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if got := i.Mode() &^ os.ModeDir; got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	id := put(t, s, testEnvelope(), nil)
	if i, err := os.Stat(s.path(dirIncoming, id)); err != nil || i.Mode().Perm() != 0o640 {
		t.Errorf("message file: %v %v", i.Mode(), err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestNewerLayout(t *testing.T) {
	s := testSpool(t, Options{})
	if err := os.WriteFile(s.path("", fileFormat), []byte("pennypost-spool 2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lock(false); !errors.Is(err, ErrNewerFormat) {
		t.Errorf("got %v", err)
	}
}

func TestOrphanedLog(t *testing.T) {
	s := testSpool(t, Options{})
	q := testQueue(t, s)
	id := put(t, s, testEnvelope(), nil)
	for _, l := range []string{id, NewID(at0)} {
		if err := q.AppendLog(l, Record{Kind: RecHold}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := q.Clean(); err != nil {
		t.Fatal(err)
	}
	if got := list(t, s, dirLog); got != id {
		t.Errorf("logs: %s, want %s", got, id)
	}
}

// A large message whose tail did not reach the disk has a good first line and the right
// length; only its checksum tells.
func TestTakeTornLarge(t *testing.T) {
	s := testSpool(t, Options{})
	q := testQueue(t, s)
	id := put(t, s, testEnvelope(), pattern(500_000))
	path := s.path(dirIncoming, id)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(make([]byte, 4096), 300_000)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Take(id); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Take: %v", err)
	}
}
