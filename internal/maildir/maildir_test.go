package maildir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"pennypost/internal/durable"
)

// spy counts syncs and fails chosen operations.
type spy struct {
	durable.OS
	files, dirs atomic.Int64
	together    bool             // a name is committed with its file
	fail        map[string]error // "create", "write", "writeout", "sync", "syncdir", "rename"
}

func (s *spy) Free(string) (durable.Space, error) {
	return durable.Space{NamesWithFile: s.together, Type: "spy"}, nil
}

type spyFile struct {
	durable.File
	s   *spy
	dir bool
}

func (s *spy) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	if flag&os.O_CREATE != 0 && s.fail["create"] != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: s.fail["create"]}
	}
	f, err := s.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &spyFile{f, s, flag&os.O_WRONLY == 0}, nil
}

func (s *spy) RenameNew(a, b string) error {
	if err := s.fail["rename"]; err != nil {
		return &os.LinkError{Op: "rename", Old: a, New: b, Err: err}
	}
	return s.OS.RenameNew(a, b)
}

func (f *spyFile) Write(b []byte) (int, error) {
	if err := f.s.fail["write"]; err != nil {
		n, _ := f.File.Write(b[:len(b)/2])
		return n, err
	}
	return f.File.Write(b)
}

func (f *spyFile) WriteOut() error { return f.s.fail["writeout"] }

func (f *spyFile) Sync() error {
	if f.dir {
		f.s.dirs.Add(1)
		if err := f.s.fail["syncdir"]; err != nil {
			return err
		}
		return f.File.Sync()
	}
	f.s.files.Add(1)
	if err := f.s.fail["sync"]; err != nil {
		return err
	}
	return f.File.Sync()
}

// list returns the names in a Maildir's sub-directory.
func list(t *testing.T, path, sub string) []string {
	t.Helper()
	des, err := os.ReadDir(filepath.Join(path, sub))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, de := range des {
		names = append(names, de.Name())
	}
	return names
}

func TestDeliver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "Maildir")
	now := time.Unix(1700000000, 123456000)
	s := NewSet(Options{Host: "mx/1:2,x", Create: true, Now: func() time.Time { return now }})
	m, err := s.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, c := range []struct {
		header, body string
		wire         int
	}{
		{"", "", 0},
		{"A: b\n", "\nx\n", 11},
		{"A: b\n", "\r\nx\r\n\n", 13},
		{"", "no end", 6},
		{strings.Repeat("H: 123\n", 30000), "\nbody\n", 30000*8 + 2 + 6},
		{"A: b\n\n", strings.Repeat("0123456\r\n", 50000), 8 + 450000},
		{"", strings.Repeat("x", 64<<10-1) + "\r\n" + "\n", 64<<10 - 1 + 4},
		{"", strings.Repeat("x", 64<<10), 64 << 10},
	} {
		name, err := m.Deliver(context.Background(), []byte(c.header), iotest.HalfReader(strings.NewReader(c.body)))
		if err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(path, "new", name)
		b, err := os.ReadFile(p)
		if err != nil || string(b) != c.header+c.body {
			t.Errorf("stored %d octets of %d: %v", len(b), len(c.header)+len(c.body), err)
		}
		want := fmt.Sprintf(`^1700000000\.M123456P%dQ\d+R[a-z2-7]{8}\.mx\\0571\\0722_x,S=%d,W=%d$`, os.Getpid(), len(b), c.wire)
		if !regexp.MustCompile(want).MatchString(name) {
			t.Errorf("name %s does not match %s", name, want)
		}
		if fi, _ := os.Stat(p); fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v", fi.Mode())
		}
	}
	if l := list(t, path, "tmp"); len(l) != 0 {
		t.Errorf("left in tmp: %v", l)
	}
}

func TestFailureLeavesNothing(t *testing.T) {
	for _, c := range []struct {
		op       string
		err      error
		together bool
	}{
		{"create", syscall.EDQUOT, false},
		{"write", syscall.ENOSPC, false},
		{"sync", syscall.EIO, false},
		{"rename", syscall.EACCES, false},
		{"syncdir", syscall.EIO, false},
		{"writeout", syscall.EIO, true},
		{"rename", syscall.EACCES, true},
		{"sync", syscall.EIO, true},
	} {
		op, err := c.op, c.err
		path := filepath.Join(t.TempDir(), "M")
		sp := &spy{together: c.together}
		s := NewSet(Options{Create: true, FS: sp})
		m, e := s.Open(path)
		if e != nil {
			t.Fatal(e)
		}
		sp.fail = map[string]error{op: err}
		if _, e := m.Deliver(context.Background(), nil, strings.NewReader("x")); !errors.Is(e, err) {
			t.Errorf("%s: %v", op, e)
		}
		sp.fail = nil
		if n, c := list(t, path, "new"), list(t, path, "tmp"); len(n)+len(c) != 0 {
			t.Errorf("%s leaves %v %v", op, n, c)
		}
	}
	// A reader that fails, or says that it is cut short, is no end of the message.
	path := filepath.Join(t.TempDir(), "M")
	m, err := NewSet(Options{Create: true}).Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []error{io.ErrUnexpectedEOF, syscall.EIO} {
		if _, err := m.Deliver(context.Background(), nil, io.MultiReader(strings.NewReader("half"), iotest.ErrReader(bad))); !errors.Is(err, bad) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := m.Deliver(ctx, nil, strings.NewReader("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if n, c := list(t, path, "new"), list(t, path, "tmp"); len(n)+len(c) != 0 {
		t.Errorf("left %v %v", n, c)
	}
}

func TestMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "M")
	if _, err := NewSet(Options{}).Open(path); !errors.Is(err, ErrNotMaildir) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("was made")
	}
	// A Maildir replaced by another under our feet is used, and synced, as it is now.
	sp := &spy{}
	s := NewSet(Options{Create: true, FS: sp})
	m, err := s.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, change := range []func(){
		func() { os.RemoveAll(path) },
		func() { os.Rename(path, path+".old"); Create(durable.OS{}, path) },
		func() { os.Remove(filepath.Join(path, "tmp")) },
	} {
		change()
		before := sp.dirs.Load()
		if _, err := m.Deliver(context.Background(), nil, strings.NewReader("x")); err != nil {
			t.Errorf("%d: %v", i, err)
		}
		if len(list(t, path, "new")) == 0 || sp.dirs.Load() == before {
			t.Errorf("%d: not delivered, or not synced", i)
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// A hundred deliveries at once share directory syncs, and all arrive.
func TestManyAtOnce(t *testing.T) {
	for _, together := range []bool{false, true} {
		t.Run(fmt.Sprintf("names with files %t", together), func(t *testing.T) { manyAtOnce(t, &spy{together: together}) })
	}
}

func manyAtOnce(t *testing.T, sp *spy) {
	path := filepath.Join(t.TempDir(), "M")
	s := NewSet(Options{Create: true, FS: sp})
	if err := Create(durable.OS{}, path); err != nil {
		t.Fatal(err)
	}
	const n = 100
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			m, err := s.Open(path)
			if err == nil {
				_, err = m.Deliver(context.Background(), []byte("N: "+strconv.Itoa(i)+"\n\n"), strings.NewReader("x"))
				err = errors.Join(err, m.Close())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, name := range list(t, path, "new") {
		b, err := os.ReadFile(filepath.Join(path, "new", name))
		if err != nil {
			t.Fatal(err)
		}
		seen[string(b)] = true
	}
	if len(seen) != n {
		t.Errorf("%d of %d arrived", len(seen), n)
	}
	t.Logf("%d deliveries: %d file syncs, %d directory syncs", n, sp.files.Load(), sp.dirs.Load())
	if sp.files.Load() != n || sp.dirs.Load() > n || sp.dirs.Load() < 1 && !sp.together {
		t.Errorf("%d file syncs, %d directory syncs", sp.files.Load(), sp.dirs.Load())
	}
}

func TestManyMaildirs(t *testing.T) {
	dir := t.TempDir()
	s := NewSet(Options{Create: true})
	for i := range maxOpen + 20 {
		m, err := s.Open(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.open) != maxOpen {
		t.Errorf("%d kept open", len(s.open))
	}
}

func TestMaildirsize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "M")
	m, err := NewSet(Options{Create: true}).Open(path)
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(path, "maildirsize")
	if _, err := m.Deliver(context.Background(), nil, strings.NewReader("12345")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p); err == nil {
		t.Error("maildirsize was made where nobody counts")
	}
	if err := os.WriteFile(p, []byte("1000S\n5 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Deliver(context.Background(), nil, strings.NewReader("1234567")); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(p); !bytes.Equal(b, []byte("1000S\n5 1\n7 1\n")) {
		t.Errorf("%q", b)
	}
}

func TestSweep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "M")
	if err := Create(durable.OS{}, path); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for name, age := range map[string]time.Duration{"young": 35 * time.Hour, "old": 37 * time.Hour} {
		p := filepath.Join(path, "tmp", name)
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(p, now.Add(-age), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	m, err := NewSet(Options{Sweep: true}).Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if l := list(t, path, "tmp"); len(l) != 1 || l[0] != "young" {
		t.Errorf("%v", l)
	}
}
