package durable_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"pennypost/internal/durable"
	"pennypost/internal/mailtest"
)

func TestPublish(t *testing.T) {
	dir := t.TempDir()
	tmp, dst := filepath.Join(dir, "tmp"), filepath.Join(dir, "dst")
	if err := durable.Publish(tmp, dst, strings.NewReader("one")); err != nil {
		t.Fatal(err)
	}
	if err := durable.Publish(tmp, dst, strings.NewReader("two")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second one: %v", err)
	}
	if b, err := os.ReadFile(dst); err != nil || string(b) != "one" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := os.Lstat(tmp); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("tmp stays: %v", err)
	}
}

type failing struct{ err error }

func (r failing) Read([]byte) (int, error) { return 0, r.err }

func TestPublishFaults(t *testing.T) {
	boom := errors.New("boom")
	if err := durable.Publish(filepath.Join(t.TempDir(), "tmp"), filepath.Join(t.TempDir(), "dst"), failing{boom}); !errors.Is(err, boom) {
		t.Errorf("a read error: %v", err)
	}
	for _, op := range []string{"create", "write", "sync", "close", "link"} {
		c := mailtest.NewCrashFS()
		c.Fault = func(o, _ string) error {
			if o == op {
				return syscall.EIO
			}
			return nil
		}
		err := durable.PublishOn(c, "/tmp", "/dst", strings.NewReader("x"))
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v", op, err)
		}
		if names := c.Names("/"); len(names) != 0 {
			t.Errorf("%s: left over %v", op, names)
		}
	}
}

// A link whose answer was lost has happened all the same (NFS): two links say so.
func TestLinkAnswerLost(t *testing.T) {
	c := mailtest.NewCrashFS()
	f, err := c.OpenFile("/a", os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = c.Link("/a", "/b")
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := durable.LinkOn(c, "/a", "/b"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file system that cannot compare files: %v", err)
	}
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := errors.Join(os.WriteFile(a, nil, 0o600), durable.Link(a, b), durable.Link(a, b)); err != nil {
		t.Errorf("the same link again: %v", err)
	}
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.Link(a, other); !errors.Is(err, fs.ErrExist) {
		t.Errorf("another file: %v", err)
	}
}

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, s := range []string{"one", "two, longer", ""} {
		if err := durable.WriteFile(path, []byte(s), 0o640); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != s {
			t.Errorf("%q %v", b, err)
		}
	}
	for _, op := range []string{"write", "sync", "close", "rename"} {
		c := mailtest.NewCrashFS()
		if err := durable.WriteFileOn(c, "/f", []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Fault = func(o, _ string) error {
			if o == op {
				return syscall.ENOSPC
			}
			return nil
		}
		if err := durable.WriteFileOn(c, "/f", []byte("new"), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", op, err)
		}
		if names := c.Names("/"); len(names) != 1 {
			t.Errorf("%s: %v", op, names)
		}
	}
}

func TestMkdirAll(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "b", "c")
	for range 2 {
		if err := durable.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{file, filepath.Join(file, "x")} {
		if err := durable.MkdirAll(p, 0o700); err == nil {
			t.Errorf("%s was made", p)
		}
	}
}

// Each directory that is made is synced into its parent.
func TestMkdirAllSyncs(t *testing.T) {
	c := mailtest.NewCrashFS()
	synced := map[string]bool{}
	c.Fault = func(op, name string) error {
		if op == "sync" {
			synced[name] = true
		}
		return nil
	}
	if err := durable.MkdirAllOn(c, "/a/b/c", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"/", "/a", "/a/b"} {
		if !synced[d] {
			t.Errorf("%s was not synced: %v", d, synced)
		}
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	a, err := durable.Lock(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := durable.Lock(path, true); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("twice: %v", err)
	}
	got := make(chan error)
	go func() {
		b, err := durable.Lock(path, false)
		if err == nil {
			err = b.Close()
		}
		got <- err
	}()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("the one who waited: %v", err)
	}
}

func TestTryLockShared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	a, b, c := open(), open(), open()
	if err := errors.Join(durable.TryLock(a, true), durable.TryLock(b, true)); err != nil {
		t.Errorf("two readers: %v", err)
	}
	if err := durable.TryLock(c, false); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("a writer beside readers: %v", err)
	}
}

func TestUnlock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	a, b := open(), open()
	if err := errors.Join(durable.TryLock(a, false), durable.Unlock(a), durable.TryLock(b, false)); err != nil {
		t.Error(err)
	}
	if err := durable.TryLock(a, false); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("locked again: %v", err)
	}
}

func TestRenameNew(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := errors.Join(os.WriteFile(a, []byte("a"), 0o600), os.WriteFile(b, []byte("b"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := durable.RenameNew(a, b); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another: %v", err)
	}
	if err := durable.RenameNew(a, b+"2"); err != nil {
		t.Error(err)
	}
	if err := durable.RenameNew(a, b+"3"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
}

// slowDir is a directory whose sync waits for a signal, and says what it covered.
type slowDir struct {
	durable.File
	begun   chan struct{}
	release chan struct{}
	syncs   atomic.Int32
}

func (d *slowDir) Sync() error {
	d.syncs.Add(1)
	d.begun <- struct{}{}
	<-d.release
	return nil
}

type slowFS struct {
	durable.FS
	dir *slowDir
}

func (s slowFS) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := s.FS.OpenFile(name, flag, perm)
	s.dir.File = f
	return s.dir, err
}

// Callers who arrive while a sync runs share the next one; none is satisfied by the one that
// had begun before it came.
func TestGroupCommit(t *testing.T) {
	const n = 20
	for try := 1; ; try++ {
		got := groupCommit(t, n)
		if got <= n {
			return
		}
		if try == 10 { // a busy machine may bring the callers one by one, but not always
			t.Fatalf("%d syncs for %d callers, %d times", got, n+1, try)
		}
	}
}

// groupCommit lets n callers come while a sync runs and returns the number of syncs.
func groupCommit(t *testing.T, n int) int {
	sd := &slowDir{begun: make(chan struct{}), release: make(chan struct{})}
	d, err := durable.OpenDirOn(slowFS{mailtest.NewCrashFS(), sd}, "/")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		if err := d.Sync(); err != nil {
			t.Error(err)
		}
	})
	<-sd.begun
	var came atomic.Int32
	for range n {
		all.Go(func() {
			came.Add(1)
			if err := d.Sync(); err != nil {
				t.Error(err)
			}
			if sd.syncs.Load() < 2 {
				t.Error("a caller was satisfied by a sync that began before it came")
			}
		})
	}
	for came.Load() < int32(n) {
		runtime.Gosched()
	}
	sd.release <- struct{}{}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	for open := true; open; {
		select {
		case <-sd.begun:
			sd.release <- struct{}{}
		case <-done:
			open = false
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	return int(sd.syncs.Load())
}

func BenchmarkDirSync(b *testing.B) {
	d, err := durable.OpenDir(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := d.Sync(); err != nil {
				b.Error(err)
			}
		}
	})
	if err := d.Close(); err != nil {
		b.Error(err)
	}
}

// reboots calls fn for the file systems that may be found after a stop at each operation of
// live: once for the death of the process, several times for a power cut. done tells whether
// live had returned nil.
func reboots(t *testing.T, begin, live func(*mailtest.CrashFS) error, fn func(c *mailtest.CrashFS, done bool) error) {
	t.Helper()
	for stop := 0; ; stop++ {
		c := mailtest.NewCrashFS()
		if err := begin(c); err != nil {
			t.Fatal(err)
		}
		c.StopAfter(stop)
		err := live(c)
		if err != nil && !errors.Is(err, mailtest.ErrCrashed) {
			t.Fatal(err)
		}
		cuts := []*rand.Rand{nil}
		for seed := range uint64(50) {
			cuts = append(cuts, rand.New(rand.NewPCG(seed, uint64(stop))))
		}
		for i, cut := range cuts {
			if e := fn(c.Reboot(cut), err == nil); e != nil {
				t.Fatalf("stop after %d operations, cut %d: %v", stop, i, e)
			}
		}
		if err == nil {
			return
		}
	}
}

func content(c *mailtest.CrashFS, path string) (string, error) {
	f, err := c.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(f)
	return string(b), errors.Join(err, f.Close())
}

// What Publish has answered for is there, whole; what it has not is there whole or not at all.
func TestPublishCrash(t *testing.T) {
	text := strings.Repeat("a line of a message\n", 200)
	reboots(t,
		func(c *mailtest.CrashFS) error {
			return errors.Join(durable.MkdirAllOn(c, "/box/tmp", 0o700), durable.MkdirAllOn(c, "/box/new", 0o700))
		},
		func(c *mailtest.CrashFS) error {
			return durable.PublishOn(c, "/box/tmp/1", "/box/new/1", strings.NewReader(text))
		},
		func(c *mailtest.CrashFS, done bool) error {
			got, err := content(c, "/box/new/1")
			if errors.Is(err, fs.ErrNotExist) && !done {
				return nil
			}
			if err == nil && got != text {
				err = fmt.Errorf("%d octets of %d, or others", len(got), len(text))
			}
			return err
		})
}

// WriteFile leaves the old bytes or the new ones, and the new ones once it has answered.
func TestWriteFileCrash(t *testing.T) {
	old, text := strings.Repeat("old\n", 500), strings.Repeat("new!\n", 700)
	reboots(t,
		func(c *mailtest.CrashFS) error { return durable.WriteFileOn(c, "/f", []byte(old), 0o600) },
		func(c *mailtest.CrashFS) error { return durable.WriteFileOn(c, "/f", []byte(text), 0o600) },
		func(c *mailtest.CrashFS, done bool) error {
			got, err := content(c, "/f")
			if err == nil && got != text && (done || got != old) {
				err = fmt.Errorf("%d octets, neither old nor new", len(got))
			}
			return err
		})
}

// What Commit has answered for is there under its name, whole; what it has not is there whole or
// not at all: with a file system that commits a name with its file, and with one that does not,
// with a name made in front and with one that Commit makes.
func TestCommitCrash(t *testing.T) {
	text := strings.Repeat("a line of a message\n", 200)
	for _, together := range []bool{false, true} {
		for _, rename := range []bool{false, true} {
			t.Run(fmt.Sprintf("together %t, rename %t", together, rename), func(t *testing.T) {
				reboots(t,
					func(c *mailtest.CrashFS) error {
						c.NamesWithFile = together
						return errors.Join(durable.MkdirAllOn(c, "/box/tmp", 0o700), durable.MkdirAllOn(c, "/box/new", 0o700))
					},
					func(c *mailtest.CrashFS) error { return commitOne(c, rename, text) },
					func(c *mailtest.CrashFS, done bool) error {
						got, err := content(c, "/box/new/1")
						if !done && (errors.Is(err, fs.ErrNotExist) || !rename) {
							return nil // a reader of names made in front can tell a torn file
						}
						if err == nil && got != text {
							err = fmt.Errorf("%d octets of %d, or others", len(got), len(text))
						}
						return err
					})
			})
		}
	}
}

// commitOne makes the file /box/new/1.
func commitOne(c *mailtest.CrashFS, rename bool, text string) error {
	d, err := durable.OpenDirOn(c, "/box/new")
	if err != nil {
		return err
	}
	path, name := "/box/new/1", (func() error)(nil)
	if rename {
		path, name = "/box/tmp/1", func() error { return c.RenameNew("/box/tmp/1", "/box/new/1") }
	}
	f, err := c.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write([]byte(text)); err != nil {
		return err
	}
	return errors.Join(d.Commit(f, name), f.Close(), d.Close())
}

// RenameSync leaves the file under one of its names, and under the new one once it has answered.
func TestRenameSyncCrash(t *testing.T) {
	reboots(t,
		func(c *mailtest.CrashFS) error {
			return errors.Join(durable.MkdirAllOn(c, "/a", 0o700), durable.MkdirAllOn(c, "/b", 0o700), durable.WriteFileOn(c, "/a/f", []byte("x"), 0o600))
		},
		func(c *mailtest.CrashFS) error { return durable.RenameSyncOn(c, "/a/f", "/b/f") },
		func(c *mailtest.CrashFS, done bool) error {
			_, err1 := content(c, "/a/f")
			_, err2 := content(c, "/b/f")
			if (err1 == nil) == (err2 == nil) || done && err2 != nil {
				return fmt.Errorf("old name: %v, new name: %v", err1, err2)
			}
			return nil
		})
}

// gateFS is a file system whose files sync when the test says so; directories sync at once and
// are counted.
type gateFS struct {
	durable.FS
	dirs *atomic.Int32
}

type gateFile struct {
	durable.File
	begun *sync.WaitGroup
	gate  chan error
}

type countedDir struct {
	durable.File
	n *atomic.Int32
}

func (f gateFile) Sync() error {
	f.begun.Done()
	return <-f.gate
}

func (d countedDir) Sync() error { d.n.Add(1); return d.File.Sync() }

func (g gateFS) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := g.FS.OpenFile(name, flag, perm)
	return countedDir{f, g.dirs}, err
}

// Where a name is committed with its file, a Commit by itself needs one sync.
func TestCommitSyncs(t *testing.T) {
	for _, c := range []struct {
		together, rename bool
		want             map[string]int
	}{
		{false, false, map[string]int{"/box/new/1": 1, "/box/new": 1}},
		{false, true, map[string]int{"/box/tmp/1": 1, "/box/new": 1}},
		{true, false, map[string]int{"/box/new/1": 1}},
		{true, true, map[string]int{"/box/tmp/1": 1}},
	} {
		fsys := mailtest.NewCrashFS()
		fsys.NamesWithFile = c.together
		if err := errors.Join(durable.MkdirAllOn(fsys, "/box/tmp", 0o700), durable.MkdirAllOn(fsys, "/box/new", 0o700)); err != nil {
			t.Fatal(err)
		}
		got := map[string]int{}
		fsys.Fault = func(op, name string) error {
			if op == "sync" {
				got[name]++
			}
			return nil
		}
		if err := commitOne(fsys, c.rename, "text"); err != nil {
			t.Error(err)
		}
		if !maps.Equal(got, c.want) {
			t.Errorf("together %t, rename %t: syncs %v, want %v", c.together, c.rename, got, c.want)
		}
	}
}

// A Commit that has company, or has had some a moment ago, shares the sync of the directory
// instead of writing its own file out first.
func TestCommitCompany(t *testing.T) {
	want := []string{"writeout /a", "sync /b", "sync /new", "sync /a", "sync /c", "sync /new"}
	for try := 1; ; try++ {
		got, err := commitCompany()
		if err != nil {
			t.Fatal(err)
		}
		if slices.Equal(got, want) {
			return
		}
		if try == 10 { // the moment may be over on a busy machine, but not always
			t.Fatalf("%q, want %q", got, want)
		}
	}
}

// commitCompany commits b while a is under way, then c, and returns what is synced.
func commitCompany() (ops []string, err error) {
	fsys := mailtest.NewCrashFS()
	fsys.NamesWithFile = true
	if err := durable.MkdirAllOn(fsys, "/new", 0o700); err != nil {
		return nil, err
	}
	fsys.Fault = func(op, name string) error {
		if op == "sync" || op == "writeout" {
			ops = append(ops, op+" "+name)
		}
		return nil
	}
	d, err := durable.OpenDirOn(fsys, "/new")
	if err != nil {
		return nil, err
	}
	commit := func(tmp string, then func() error) error {
		f, err := fsys.OpenFile(tmp, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		return d.Commit(f, func() error { return errors.Join(then(), fsys.RenameNew(tmp, "/new"+tmp)) })
	}
	none := func() error { return nil }
	err = errors.Join(commit("/a", func() error { return commit("/b", none) }), commit("/c", none))
	return ops, err
}

// A Commit waits for others whose files are being synced, so that one fsync of the directory
// serves them all; one that fails is not waited for, and one that hangs not for long.
func TestCommitTogether(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name    string
		results []error // of the file syncs, in the order they end
		hang    int     // Commits whose file sync ends only after the others have committed
		most    int32   // fsyncs of the directory
	}{
		{"alone", []error{nil}, 0, 1},
		{"together", []error{nil, nil, nil, nil}, 0, 1},
		{"some fail", []error{nil, broken, nil, broken}, 0, 1},
		{"one hangs", []error{nil, nil}, 1, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			var n atomic.Int32
			d, err := durable.OpenDirOn(gateFS{mailtest.NewCrashFS(), &n}, "/")
			if err != nil {
				t.Fatal(err)
			}
			files := make([]gateFile, len(c.results)+c.hang)
			var begun, some, all sync.WaitGroup
			for i := range files {
				files[i] = gateFile{begun: &begun, gate: make(chan error)}
				begun.Add(1)
				group := &some
				if i >= len(c.results) {
					group = &all
				}
				group.Go(func() {
					named := false
					err := d.Commit(files[i], func() error { named = true; return nil })
					if want := i < len(c.results) && c.results[i] != nil; (err != nil) != want || named == want {
						t.Errorf("Commit %d: %v, named %t", i, err, named)
					}
				})
			}
			begun.Wait()
			for i, err := range c.results {
				files[i].gate <- err
			}
			some.Wait()
			for _, f := range files[len(c.results):] {
				f.gate <- nil
			}
			all.Wait()
			if got := n.Load(); got > c.most || got < 1 {
				t.Errorf("%d fsyncs of the directory, want 1 to %d", got, c.most)
			}
		})
	}
}
