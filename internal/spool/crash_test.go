package spool_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/envelope"
	"pennypost/internal/mailtest"
	"pennypost/internal/spool"
)

const crashDir = "/var/spool"

// life is one run of everything the spool does, up to the crash, with what it promised.
type life struct {
	fsys     *mailtest.CrashFS
	in       *spool.Spool // submitter
	q        *spool.Queue
	body     map[string][]byte // of every message begun
	accepted []string          // Commit returned nil
	removed  map[string]bool   // Remove was begun
	tried    map[string]map[string]bool
	synced   map[string]spool.State // promised by AppendLogSync
}

// newLife has a file system that commits a name with its file (together), and a submitter who may
// not open incoming/ (blind).
func newLife(together, blind bool) (*life, error) {
	c := mailtest.NewCrashFS()
	c.NamesWithFile = together
	if err := spool.InitOn(c, crashDir, -1); err != nil {
		return nil, err
	}
	l := &life{fsys: c, body: map[string][]byte{}, removed: map[string]bool{}, tried: map[string]map[string]bool{}, synced: map[string]spool.State{}}
	var err error
	if l.in, err = openSpool(c, blind); err != nil {
		return nil, err
	}
	s, err := openSpool(c, false)
	if err != nil {
		return nil, err
	}
	l.q, err = s.Lock(false)
	return l, err
}

// openSpool opens as a submitter who may not open incoming/ when blind.
func openSpool(c *mailtest.CrashFS, blind bool) (*spool.Spool, error) {
	if blind {
		c.Fault = func(op, name string) error {
			if op == "open" && name == crashDir+"/incoming" {
				c.Fault = nil // the Lstat that follows is allowed
				return fs.ErrPermission
			}
			return nil
		}
	}
	return spool.Open(crashDir, spool.Options{FS: c})
}

func (l *life) send(id string, size int) (string, error) {
	env := &envelope.Envelope{ID: id, From: "a@x.test", To: []envelope.Recipient{{Addr: "b@y.test"}, {Addr: "c@y.test"}, {Addr: "d@y.test"}}}
	w, err := l.in.Create(env)
	if env.ID != "" {
		l.body[env.ID] = bytes.Repeat([]byte(env.ID+"\n"), size/19)
	}
	if err != nil {
		return env.ID, err
	}
	if _, err = w.Write(l.body[env.ID]); err == nil {
		err = w.Commit()
	} else {
		err = errors.Join(err, w.Abort())
	}
	if err == nil {
		l.accepted = append(l.accepted, env.ID)
	}
	return env.ID, err
}

func (l *life) take(id string) error {
	m, err := l.q.Take(id)
	if err != nil {
		return err
	}
	return m.Close()
}

func (l *life) attempt(id string, done ...string) error {
	rec := spool.Record{Kind: spool.RecAttempt}
	if l.tried[id] == nil {
		l.tried[id] = map[string]bool{}
	}
	for _, to := range done {
		l.tried[id][to] = true
		rec.Results = append(rec.Results, spool.Result{To: to, Status: envelope.Status{Verdict: envelope.Delivered, Code: "2.0.0"}})
	}
	return l.q.AppendLog(id, rec)
}

func (l *life) hold(id string) error {
	err := l.q.AppendLogSync(id, spool.Record{Kind: spool.RecHold, Who: "root"})
	if err == nil {
		l.synced[id] = spool.State{Hold: true}
	}
	return err
}

// live goes through every transition of the state table.
func (l *life) live() error {
	var ids []string
	for i, size := range []int{190, 1900, 190_000, 0, 190, 190} {
		id, err := l.send("", size)
		if err != nil {
			return fmt.Errorf("send %d: %w", i, err)
		}
		ids = append(ids, id)
	}
	w, err := l.in.Create(&envelope.Envelope{To: []envelope.Recipient{{Addr: "z@y.test"}}})
	if err != nil {
		return err
	}
	if _, err := w.Write(make([]byte, 100_000)); err != nil {
		return errors.Join(err, w.Abort())
	}
	if err := w.Abort(); err != nil {
		return err
	}
	child := spool.ChildID(ids[0], 1, "dsn", 0)
	steps := []func() error{
		func() error { return l.take(ids[0]) },
		func() error { return l.take(ids[1]) },
		func() error { return l.attempt(ids[0], "b@y.test") },
		func() error { return l.hold(ids[1]) },
		func() error { return l.attempt(ids[0], "c@y.test") },
		func() error { return l.take(ids[2]) },
		func() error { _, err := l.send(child, 190_000); return err },
		func() error { return l.attempt(ids[0], "d@y.test") },
		func() error { l.removed[ids[0]] = true; return l.q.Remove(ids[0]) },
		func() error { return l.snapshot() },
		func() error { return l.take(ids[4]) },
		func() error { return l.attempt(ids[4], "b@y.test", "d@y.test") },
		func() error { return l.hold(ids[4]) },
		func() error { return l.q.SetAside(ids[5], "a test") },
		func() error { l.removed[ids[2]] = true; return l.q.Remove(ids[2]) },
		func() error { return l.q.History(map[string]string{"id": ids[2]}) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

func (l *life) snapshot() error {
	var all []spool.Entry
	j, _, err := l.q.Load(func(e spool.Entry) error { all = append(all, e); return nil })
	if err != nil {
		return err
	}
	if err := j.Compact(slices.Values(all)); err != nil {
		return errors.Join(err, j.Close())
	}
	return errors.Join(j.Put(all[0]), j.Drop(all[1].ID), j.Close())
}

// recoverAll does what a scheduler does at its start, and returns every message it finds.
func recoverAll(c *mailtest.CrashFS) (map[string]found, error) {
	s, err := openSpool(c, false)
	if err != nil {
		return nil, err
	}
	q, err := s.Lock(false)
	if err != nil {
		return nil, err
	}
	if _, err := q.Clean(); err != nil {
		return nil, err
	}
	for id, err := range q.Incoming() {
		if err != nil {
			return nil, err
		}
		m, err := q.Take(id)
		switch {
		case err == nil:
			err = m.Close()
		case errors.Is(err, spool.ErrUnfinished), errors.Is(err, spool.ErrExists):
			err = nil
		case errors.Is(err, spool.ErrCorrupt):
			err = q.SetAside(id, err.Error())
		}
		if err != nil {
			return nil, err
		}
	}
	all := map[string]found{}
	st, err := q.Entries(func(e spool.Entry) error {
		m, err := q.Open(e.ID)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(m.Body())
		if err != nil {
			return err
		}
		st, err := q.State(m)
		all[e.ID] = found{b, st}
		return errors.Join(err, m.Close())
	})
	if err == nil && len(st.Bad) > 0 {
		err = st.Bad[0].Err
	}
	return all, errors.Join(err, q.Close(), s.Close())
}

type found struct {
	body  []byte
	state spool.State
}

// check compares what was promised with what is found.
func (l *life) check(c *mailtest.CrashFS) error {
	all, err := recoverAll(c)
	if err != nil {
		return fmt.Errorf("recovery: %w", err)
	}
	aside := c.Names(crashDir + "/corrupt")
	for _, id := range l.accepted {
		if _, ok := all[id]; !ok && !l.removed[id] && !slices.Contains(aside, id) {
			return fmt.Errorf("%s was accepted and is gone", id)
		}
	}
	for id, f := range all {
		if !bytes.Equal(f.body, l.body[id]) {
			return fmt.Errorf("%s has %d octets of %d, or others", id, len(f.body), len(l.body[id]))
		}
		for _, to := range []string{"b@y.test", "c@y.test", "d@y.test"} {
			left := slices.ContainsFunc(f.state.Left, func(r envelope.Recipient) bool { return r.Addr == to })
			if !left && !l.tried[id][to] {
				return fmt.Errorf("%s: recipient %s is forgotten", id, to)
			}
		}
		if l.synced[id].Hold && !f.state.Hold {
			return fmt.Errorf("%s: the hold is forgotten", id)
		}
	}
	return l.repeat(c, all)
}

// repeat does again what a scheduler does after a crash between submitting a child and writing
// it down: the child is there afterwards, once and whole.
func (l *life) repeat(c *mailtest.CrashFS, all map[string]found) error {
	for parent := range all {
		child := spool.ChildID(parent, 1, "dsn", 0)
		if _, ok := l.body[child]; !ok {
			continue
		}
		in, err := openSpool(c, false)
		if err != nil {
			return err
		}
		next := &life{fsys: c, in: in, body: maps.Clone(l.body)}
		if _, err := next.send(child, 190_000); err != nil && !errors.Is(err, spool.ErrExists) {
			return fmt.Errorf("child again: %w", err)
		}
		again, err := recoverAll(c.Reboot(rand.New(rand.NewPCG(7, 7))))
		if err != nil {
			return err
		}
		if !bytes.Equal(again[child].body, l.body[child]) {
			return errors.New("the child is missing or cut after it was submitted again")
		}
	}
	return nil
}

// An accepted message survives a stop after each operation of each transition, whole, with all
// recipients nobody has worked on; by the death of the process and by a power cut.
func TestCrashEverywhere(t *testing.T) {
	for _, c := range []struct{ together, blind bool }{{false, false}, {true, false}, {true, true}} {
		t.Run(fmt.Sprintf("together=%v blind=%v", c.together, c.blind), func(t *testing.T) {
			l, err := newLife(c.together, c.blind)
			if err != nil {
				t.Fatal(err)
			}
			base := l.fsys.Ops()
			if err := l.live(); err != nil {
				t.Fatal(err)
			}
			n := l.fsys.Ops() - base
			if n < 60 {
				t.Fatalf("only %d operations", n)
			}
			for stop := range n + 1 {
				l, err := newLife(c.together, c.blind)
				if err != nil {
					t.Fatal(err)
				}
				l.fsys.StopAfter(stop)
				if err := l.live(); stop < n && !errors.Is(err, mailtest.ErrCrashed) {
					t.Fatalf("stop %d: %v", stop, err)
				}
				if err := l.check(l.fsys.Reboot(nil)); err != nil {
					t.Fatalf("killed after operation %d of %d: %v", stop, n, err)
				}
				for seed := range uint64(crashSeeds) {
					if err := l.check(l.fsys.Reboot(rand.New(rand.NewPCG(seed, uint64(stop))))); err != nil {
						t.Fatalf("power cut after operation %d of %d, seed %d: %v", stop, n, seed, err)
					}
				}
			}
		})
	}
}

// The test of the test: a file system that lies about one kind of sync loses mail.
func TestCrashNoticesMissingSync(t *testing.T) {
	for _, lie := range []string{"file", "directory"} {
		lost := 0
		for seed := range uint64(50) {
			c := mailtest.NewCrashFS()
			if err := spool.InitOn(c, crashDir, -1); err != nil {
				t.Fatal(err)
			}
			s, err := spool.Open(crashDir, spool.Options{FS: liar{c, lie}})
			if err != nil {
				t.Fatal(err)
			}
			l := &life{fsys: c, in: s, body: map[string][]byte{}, removed: map[string]bool{}}
			if _, err := l.send("", 1900); err != nil {
				t.Fatal(err)
			}
			if l.check(c.Reboot(rand.New(rand.NewPCG(seed, 3)))) != nil {
				lost++
			}
		}
		if lost == 0 {
			t.Errorf("no loss without %s sync", lie)
		}
	}
}

// liar leaves out the syncs of files or of directories.
type liar struct {
	durable.FS
	what string
}

func (l liar) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := l.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	i, err := f.Stat()
	if err == nil && i.IsDir() == (l.what == "directory") {
		return noSync{f}, nil
	}
	return f, err
}

type noSync struct{ durable.File }

func (noSync) Sync() error { return nil }

// Clean sets aside what a dead writer left, once it is old enough.
func TestCleanUnfinished(t *testing.T) {
	l, err := newLife(false, false)
	if err != nil {
		t.Fatal(err)
	}
	l.fsys.StopAfter(2) // create, write, and half a write
	id, err := l.send("", 190_000)
	if !errors.Is(err, mailtest.ErrCrashed) {
		t.Fatal(err)
	}
	c := l.fsys.Reboot(nil)
	if all, err := recoverAll(c); err != nil || len(all) != 0 {
		t.Fatalf("%v %v", all, err)
	}
	if names := c.Names(crashDir + "/incoming"); !slices.Equal(names, []string{id}) {
		t.Fatalf("a young unfinished file was touched: %v", names)
	}
	if err := c.Age(crashDir+"/incoming/"+id, 2*time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := recoverAll(c); err != nil {
		t.Fatal(err)
	}
	if names := c.Names(crashDir + "/corrupt"); !slices.Equal(names, []string{id, id + ".why"}) {
		t.Errorf("set aside: %v", names)
	}
}
