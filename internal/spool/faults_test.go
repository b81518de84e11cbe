package spool_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/mailtest"
	"pennypost/internal/spool"
)

// A fault anywhere on the way gives an error and leaves nothing in incoming/.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		op, name string
		err      error
		nth      int // which of the operations fails
		size     int
	}{
		{"create", "incoming", syscall.ENOSPC, 1, 100},
		{"create", "incoming", syscall.EACCES, 1, 100},
		{"create", "incoming", syscall.EMFILE, 1, 200_000},
		{"write", "incoming", syscall.ENOSPC, 1, 100},
		{"write", "incoming", syscall.ENOSPC, 1, 200_000},
		{"write", "incoming", syscall.EDQUOT, 2, 200_000},
		{"write", "incoming", syscall.EIO, 3, 200_000},
		{"sync", "incoming", syscall.EIO, 1, 100},
		{"sync", "incoming", syscall.EIO, 1, 200_000},
		{"sync", "incoming", syscall.EIO, 2, 100}, // the directory
		{"free", "", syscall.EIO, 1, 100},
	} {
		t.Run(fmt.Sprintf("%s %v %d %d", c.op, c.err, c.nth, c.size), func(t *testing.T) {
			l, err := newLife(false, false)
			if err != nil {
				t.Fatal(err)
			}
			seen := 0
			l.fsys.Fault = func(op, name string) error {
				if op == c.op && strings.Contains(name, c.name) {
					if seen++; seen == c.nth {
						return c.err
					}
				}
				return nil
			}
			if _, err := l.send("", c.size); !errors.Is(err, c.err) {
				t.Errorf("got %v", err)
			}
			if seen < c.nth {
				t.Errorf("%d operations, the fault was not met", seen)
			}
			if names := l.fsys.Names(crashDir + "/incoming"); len(names) != 0 {
				t.Errorf("left over: %v", names)
			}
			l.fsys.Fault = nil
			if _, err := l.send("", c.size); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// Once everything is durable, an error of close is nobody's business: failing would make the
// sender repeat a message that is queued.
func TestCloseErrorAfterSync(t *testing.T) {
	l, err := newLife(false, false)
	if err != nil {
		t.Fatal(err)
	}
	l.fsys.Fault = func(op, name string) error {
		if op == "close" {
			return syscall.EIO
		}
		return nil
	}
	id, err := l.send("", 100)
	if err != nil {
		t.Fatal(err)
	}
	l.fsys.Fault = nil
	if err := l.take(id); err != nil {
		t.Error(err)
	}
}

// A directory that cannot be opened is accepted only where syncing a file keeps its name.
func TestBlindNeedsJournal(t *testing.T) {
	c := mailtest.NewCrashFS()
	if err := spool.InitOn(c, crashDir, -1); err != nil {
		t.Fatal(err)
	}
	_, err := openSpool(c, true)
	if err == nil || !strings.Contains(err.Error(), "put the spool on ext4") {
		t.Errorf("got %v", err)
	}
}

func realSpool(t *testing.T) (string, *spool.Spool, *spool.Queue) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "spool")
	if err := spool.Init(dir); err != nil {
		t.Fatal(err)
	}
	s, err := spool.Open(dir, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	q, err := s.Lock(false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(q.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	return dir, s, q
}

// good is the bytes of a valid message file with the given id.
func good(t *testing.T, dir string, s *spool.Spool) (id string, b []byte) {
	t.Helper()
	w, err := s.Create(&envelope.Envelope{From: "a@x.test", To: []envelope.Recipient{{Addr: "b@y.test"}}})
	if err == nil {
		_, err = io.WriteString(w, "Subject: hi\n\nbody\n")
	}
	if err == nil {
		err = w.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "incoming", w.ID())
	if b, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	return w.ID(), b
}

// What somebody else plants in incoming/ is never taken, and never blocks.
func TestPlanted(t *testing.T) {
	dir, s, q := realSpool(t)
	id, b := good(t, dir, s)
	in := filepath.Join(dir, "incoming", id)
	outside := filepath.Join(t.TempDir(), "outside")
	text := string(b)
	file := func(content string) func() error {
		return func() error { return os.WriteFile(in, []byte(content), 0o600) }
	}
	for _, c := range []struct {
		name string
		make func() error
		want error
	}{
		{"symlink", func() error { return errors.Join(os.WriteFile(outside, b, 0o600), os.Symlink(outside, in)) }, spool.ErrCorrupt},
		{"dangling symlink", func() error { return os.Symlink(outside+"x", in) }, spool.ErrCorrupt},
		{"hard link", func() error { return errors.Join(os.WriteFile(outside, b, 0o600), os.Link(outside, in)) }, spool.ErrCorrupt},
		{"FIFO", func() error { return syscall.Mkfifo(in, 0o600) }, spool.ErrCorrupt},
		{"directory", func() error { return os.Mkdir(in, 0o700) }, spool.ErrCorrupt},
		{"empty", file(""), spool.ErrUnfinished},
		{"begun", file(text[:10]), spool.ErrUnfinished},
		{"header cut", file(text[:40]), spool.ErrUnfinished},
		{"unfinished", file(text[:18] + "0000000000 0000000000000000000 00000000\n{}"), spool.ErrUnfinished},
		{"short", file(text[:len(text)-1]), spool.ErrCorrupt},
		{"long", file(text + "x"), spool.ErrCorrupt},
		{"one bit", file(text[:len(text)-2] + "z\n"), spool.ErrCorrupt},
		{"no spool file", file("From: me\n\nbody\n                                            \n"), spool.ErrCorrupt},
		{"newer", file("pennypost-spool 2 whatever that means\n"), spool.ErrNewerFormat},
		{"much newer", file("pennypost-spool 17 x\n"), spool.ErrNewerFormat},
		{"huge envelope", file(text[:18] + "9999999999" + text[28:]), spool.ErrCorrupt},
		{"signed", file(text[:18] + "+000000100" + text[28:]), spool.ErrCorrupt},
		{"another id", file(strings.ReplaceAll(text, id, spool.ChildID(id, 1, "x", 1))), spool.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.make(); err != nil {
				t.Fatal(err)
			}
			if _, err := q.Take(id); !errors.Is(err, c.want) {
				t.Errorf("Take: %v, want %v", err, c.want)
			}
			if _, err := os.Lstat(in); err != nil {
				t.Errorf("Take touched it: %v", err)
			}
			if err := q.SetAside(id, c.name); err != nil {
				t.Errorf("SetAside: %v", err)
			}
			if _, err := os.Lstat(in); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("still there: %v", err)
			}
			_ = os.Remove(outside) // not all cases make it
		})
	}
	if err := os.WriteFile(in, b, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := q.Take(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	whys, err := filepath.Glob(filepath.Join(dir, "corrupt", "*.why"))
	if err != nil || len(whys) != 18 {
		t.Errorf("%d reasons, %v", len(whys), err)
	}
}

func TestTakeAgain(t *testing.T) {
	dir, s, q := realSpool(t)
	id, b := good(t, dir, s)
	in := filepath.Join(dir, "incoming", id)
	put := func(b []byte) {
		if err := os.WriteFile(in, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(b)
	m, err := q.Take(id)
	if err == nil {
		err = m.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	put(b)
	if _, err := q.Take(id); !errors.Is(err, spool.ErrExists) {
		t.Errorf("a copy: %v", err)
	}
	if _, err := os.Lstat(in); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the copy is still there: %v", err)
	}
	w, err := s.Create(&envelope.Envelope{ID: id, From: "other@x.test", To: []envelope.Recipient{{Addr: "b@y.test"}}})
	if err == nil {
		err = w.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Take(id); !errors.Is(err, spool.ErrCorrupt) {
		t.Errorf("another message with the id: %v", err)
	}
	if m, err = q.Open(id); err != nil || m.Env.From != "a@x.test" {
		t.Errorf("the first one: %+v %v", m, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// While its writer works, a message is busy; a second message with its id is refused.
func TestBusy(t *testing.T) {
	dir, s, q := realSpool(t)
	id := spool.ChildID("1k80h9stqs8hdfoio9", 1, "dsn", 0)
	env := envelope.Envelope{ID: id, To: []envelope.Recipient{{Addr: "b@y.test"}}}
	w, err := s.Create(&env)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Take(id); !errors.Is(err, spool.ErrBusy) {
		t.Errorf("Take: %v", err)
	}
	if _, err := s.Create(&env); !errors.Is(err, spool.ErrBusy) {
		t.Errorf("Create: %v", err)
	}
	old := filepath.Join(dir, "incoming", id)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	if aside, err := q.Clean(); err != nil || len(aside) != 0 {
		t.Errorf("Clean took a file in use: %v %v", aside, err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(&env); !errors.Is(err, spool.ErrExists) {
		t.Errorf("Create after Commit: %v", err)
	}
}

var past = time.Now().Add(-2 * time.Hour)
