package mailbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// A folder that another process deletes and makes again has another lock file: one who had the
// old one open must not go on with that.
func TestLockOfFolderMadeAgain(t *testing.T) {
	b := newBed(t)
	s, other := b.store(), b.store()
	b.must(s.Create(t.Context(), "A"))
	m := b.mailbox(s, "A")
	b.append(m, "one", 0)
	b.must(other.Delete(t.Context(), "A"))
	b.must(other.Create(t.Context(), "A"))
	o := b.mailbox(other, "A")
	b.must(o.enter(t.Context()))
	defer o.leave()
	unlock, err := o.lock(t.Context())
	b.must(err)
	defer unlock()
	b.must(m.enter(t.Context()))
	defer m.leave()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.lock(ctx); err == nil {
		t.Error("two have the lock of one index")
	}
}

func (b *bed) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// What is no file and no link to one is no message, and nobody waits for its other end.
func TestSpecialFiles(t *testing.T) {
	b := newBed(t)
	s := b.store()
	in := b.mailbox(s, "INBOX")
	b.append(in, "one", 0)
	b.must(syscall.Mkfifo(filepath.Join(b.root, "cur", "1.fifo.h:2,"), 0o600))
	b.must(os.Mkdir(filepath.Join(b.root, "cur", "1.dir.h:2,"), 0o700))
	b.must(os.Symlink("/dev/tty", filepath.Join(b.root, "cur", "1.tty.h:2,")))
	b.must(os.Symlink("nowhere", filepath.Join(b.root, "cur", "1.nowhere.h:2,")))
	b.must(os.Symlink("../new", filepath.Join(b.root, "cur", "1.new.h:2,")))
	v := b.view(s, "INBOX", false)
	done := make(chan error, 1)
	go func() {
		l, err := v.POP3(t.Context())
		if err == nil && (len(l) != 1 || l[0].UID != 1) {
			err = fmt.Errorf("POP3 lists %+v", l)
		}
		done <- err
	}()
	select {
	case err := <-done:
		b.must(err)
	case <-time.After(10 * time.Second):
		t.Fatal("POP3 waits for a FIFO")
	}
	for _, m := range v.All(1, v.Len()) {
		body, err := v.Open(t.Context(), m.UID)
		if (err == nil) != (m.UID == 1) {
			t.Errorf("UID %d: %v", m.UID, err)
		}
		if err == nil {
			b.must(body.Close())
		}
	}
}

// files are the names in a directory of the inbox.
func (b *bed) files(sub string) (names []string) {
	b.Helper()
	ds, err := os.ReadDir(filepath.Join(b.root, sub))
	b.must(err)
	for _, d := range ds {
		names = append(names, d.Name())
	}
	return names
}

// A letter whose keyword nobody knows any more is not given to another one while messages have
// it in their names.
func TestLetterOfLostKeyword(t *testing.T) {
	b := newBed(t)
	s := b.store()
	in := b.mailbox(s, "INBOX")
	b.append(in, "one", 0, "old")
	b.append(in, "two", 0)
	b.must(os.Remove(filepath.Join(b.root, maildir.KeywordsName)))
	v := b.view(s, "INBOX", false)
	if _, err := v.Store(t.Context(), []uint32{2}, FlagChange{Op: Add, Keywords: []string{"new"}}); err != nil {
		t.Fatal(err)
	}
	b.sync(v)
	if got := keywordNames(v.Keywords(), v.At(1).Keywords); slices.Contains(got, "new") {
		t.Errorf("message 1 has the keywords %v", got)
	}
	if got := keywordNames(v.Keywords(), v.At(2).Keywords); !slices.Equal(got, []string{"new"}) {
		t.Errorf("message 2 has the keywords %v", got)
	}
}

// The UIDVALIDITY of a name only rises, wherever the one of the folder before came from.
func TestValidityRises(t *testing.T) {
	const high = 4_000_000_000
	for _, how := range []string{"delete", "rename"} {
		b := newBed(t)
		s := b.store()
		b.must(s.Create(t.Context(), "A"))
		list := fmt.Sprintf("3 V%d N1 G%032x\n", high, 7)
		b.must(os.WriteFile(filepath.Join(b.root, ".A", maildir.UIDListName), []byte(list), 0o600))
		if how == "delete" {
			b.must(s.Delete(t.Context(), "A"))
		} else {
			b.must(s.Rename(t.Context(), "A", "B"))
		}
		b.must(s.Create(t.Context(), "A"))
		if st, err := s.Status(t.Context(), "A"); err != nil || st.UIDValidity <= high {
			t.Errorf("%s: UIDVALIDITY %d after %d (%v)", how, st.UIDValidity, uint32(high), err)
		}
	}
}

// A message with two names, left so by whoever renames with link and unlink, is one message, and
// gone when it is expunged.
func TestTwoNamesOfOneFile(t *testing.T) {
	b := newBed(t)
	s := b.store()
	in := b.mailbox(s, "INBOX")
	b.append(in, "one", 0)
	b.append(in, "two", 0)
	name := ""
	for _, n := range b.files("cur") {
		if text, err := os.ReadFile(filepath.Join(b.root, "cur", n)); err == nil && string(text) == "one" {
			name = n
		}
	}
	b.must(os.Link(filepath.Join(b.root, "cur", name), filepath.Join(b.root, "cur", name+"S")))
	b.o.Now = func() time.Time { return time.Now().Add(time.Hour) } // long after
	s = b.store()
	v := b.view(s, "INBOX", false)
	if v.Len() != 2 {
		t.Fatalf("%d messages", v.Len())
	}
	if gone, err := v.Expunge(t.Context(), []uint32{1}); err != nil || len(gone) != 1 {
		t.Fatal(gone, err)
	}
	old := time.Unix(1, 0)
	b.must(os.Chtimes(filepath.Join(b.root, "cur"), old, old)) // so that a scan is due
	v = b.view(b.store(), "INBOX", false)
	if v.Len() != 1 || v.At(1).UID != 2 {
		t.Errorf("%d messages after EXPUNGE: %v", v.Len(), b.files("cur"))
	}
}

// oneDevice is a file system on which hard links and renames between directories fail.
type oneDevice struct {
	durable.OS
	err error
}

type plainFile struct{ durable.File } // without Fd

func (o oneDevice) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := o.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return plainFile{f}, nil
}

func (o oneDevice) folder(p string) string { return filepath.Dir(filepath.Dir(p)) }

func (o oneDevice) Link(a, b string) error {
	return &os.LinkError{Op: "link", Old: a, New: b, Err: o.err}
}

func (o oneDevice) RenameNew(a, b string) error {
	if o.folder(a) != o.folder(b) && errors.Is(o.err, syscall.EXDEV) {
		return &os.LinkError{Op: "rename", Old: a, New: b, Err: o.err}
	}
	return o.OS.RenameNew(a, b)
}

// Where names cannot be linked or moved, messages are copied octet by octet.
func TestCopyWithoutLinks(t *testing.T) {
	for _, why := range []error{syscall.EXDEV, syscall.EMLINK, syscall.EPERM} {
		b := newBed(t)
		b.o.FS = oneDevice{err: why}
		s := b.store()
		b.must(s.Create(t.Context(), "A"))
		in, a := b.mailbox(s, "INBOX"), b.mailbox(s, "A")
		day := time.Unix(1_000_000_000, 0)
		for i := range 3 {
			_, err := in.Append(t.Context(), Item{Message: strings.NewReader(fmt.Sprint("m", i)), Internal: day, Flags: maildir.Seen, Keywords: []string{"k"}})
			b.must(err)
		}
		v := b.view(s, "INBOX", false)
		if c, err := v.Copy(t.Context(), []uint32{1, 2}, a); err != nil || len(c.To) != 2 {
			t.Errorf("%v: COPY: %v", why, err)
			continue
		}
		if c, err := v.Move(t.Context(), []uint32{3}, a); err != nil || len(c.To) != 1 {
			t.Errorf("%v: MOVE: %v", why, err)
			continue
		}
		w := b.view(b.store(), "A", false)
		if w.Len() != 3 || len(b.files("cur")) != 2 || len(b.files("tmp"))+len(b.files(".A/tmp")) != 0 {
			t.Fatalf("%v: %d messages, %v", why, w.Len(), b.files("cur"))
		}
		b.must(w.Dates(t.Context(), []Range{{1, 9}}))
		for i, m := range w.All(1, 3) {
			if got := b.text(w, m.UID); got != fmt.Sprint("m", i-1) || m.Internal != day.Unix() || m.Flags != maildir.Seen || m.Keywords == 0 {
				t.Errorf("%v: %q %+v", why, got, m)
			}
		}
	}
}

// A word that comes while a watch begins does not fill the place of the first one.
func TestWatchWhileWoken(t *testing.T) {
	b := newBed(t)
	in := b.mailbox(b.store(), "INBOX")
	over := make(chan struct{})
	for range 2 {
		go func() {
			for {
				select {
				case <-over:
					return
				default:
					in.wake(false)
				}
			}
		}()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 5_000 {
			ctx, cancel := context.WithCancel(t.Context())
			<-in.Watch(ctx)
			cancel()
		}
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("Watch does not return")
	}
	close(over)
}

// After a power cut the index may be an older one. A client that knows flags between then and
// now must hear of the message again, though its file is named as the old index says.
func TestIndexBeforePowerCut(t *testing.T) {
	b := newBed(t)
	b.o.Boot = 1
	s := b.store()
	b.append(b.mailbox(s, "INBOX"), "one", maildir.Seen)
	v := b.view(s, "INBOX", false)
	path := filepath.Join(b.root, indexName)
	old, err := os.ReadFile(path)
	b.must(err)
	seen := func(op Op) {
		_, err := v.Store(t.Context(), []uint32{1}, FlagChange{Op: op, Flags: maildir.Seen})
		b.must(err)
		b.sync(v)
	}
	seen(Remove)
	told := v.HighestModSeq() // and that the message is not seen
	seen(Add)
	b.must(os.WriteFile(path, old, 0o600))
	b.o.Boot = 2
	w := b.view(b.store(), "INBOX", false)
	n := 0
	for range w.ChangedSince(told) {
		n++
	}
	if n != 1 || w.HighestModSeq() <= told {
		t.Errorf("%d messages changed since MODSEQ %d; HIGHESTMODSEQ %d", n, told, w.HighestModSeq())
	}
}

// Many sessions of one process share a folder, and another process is at work in it too.
func TestManyViews(t *testing.T) {
	b := newBed(t)
	s, other := b.store(), b.store()
	in := b.mailbox(s, "INBOX")
	for i := range 5 {
		b.append(in, fmt.Sprint("m", i), 0)
	}
	work := func(m *Mailbox, n int) error {
		v, err := m.Select(t.Context(), n == 1)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		woken := m.Watch(ctx)
		for i := range 20 {
			switch (n + i) % 4 {
			case 0:
				_, err = m.Append(ctx, Item{Message: strings.NewReader(fmt.Sprint("n", n, i))})
			case 1:
				_, err = v.Store(ctx, []uint32{v.At(1).UID}, FlagChange{Op: Op(i % 3), Flags: maildir.Seen, Keywords: []string{fmt.Sprint("k", i%5)}})
			case 2:
				if v.Len() > 4 {
					_, err = v.Expunge(ctx, []uint32{v.At(v.Len()).UID})
				}
			case 3:
				_, err = readAll(v, v.At(1).UID)
			}
			if err == nil {
				_, err = v.Sync(ctx)
			}
			if err != nil && !errors.Is(err, ErrExpunged) && !errors.Is(err, ErrReadOnly) {
				return err
			}
			select {
			case <-woken:
			default:
			}
		}
		return v.Close()
	}
	errs := make(chan error)
	for n := range 8 {
		m := in
		if n%4 == 0 {
			m = b.mailbox(other, "INBOX")
		}
		go func() { errs <- work(m, n) }()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	v, w := b.view(s, "INBOX", false), b.view(b.store(), "INBOX", false)
	if v.Len() != w.Len() || v.UIDNext() != w.UIDNext() {
		t.Errorf("%d and %d messages, UIDNEXT %d and %d", v.Len(), w.Len(), v.UIDNext(), w.UIDNext())
	}
}

// A name may be as long as names can be, with anything behind a comma.
func TestLongNames(t *testing.T) {
	b := newBed(t)
	s := b.store()
	b.must(s.Create(t.Context(), "A"))
	for i, name := range []string{
		"1000000001.a,S=3,W=3," + strings.Repeat("x", 220) + ":2,S",
		"1000000002." + strings.Repeat("y", 235) + ":2,S",
		"1000000003.\x01\xff \t,S=3:2,S",
		"1000000004.plain",
	} {
		b.must(os.WriteFile(filepath.Join(b.root, "cur", name), []byte(fmt.Sprint("m", i, "\n")), 0o600))
	}
	v := b.view(s, "INBOX", false)
	a := b.mailbox(s, "A")
	if c, err := v.Copy(t.Context(), []uint32{1, 2, 3, 4}, a); err != nil || len(c.To) != 4 {
		t.Fatal(c, err)
	}
	if c, err := v.Move(t.Context(), []uint32{1, 2, 3, 4}, a); err != nil || len(c.To) != 4 {
		t.Fatal(c, err)
	}
	w := b.view(b.store(), "A", false)
	b.must(w.Sizes(t.Context(), []Range{{1, 99}}))
	if w.Len() != 8 {
		t.Fatalf("%d messages", w.Len())
	}
	for i, m := range w.All(1, 8) {
		if want := fmt.Sprint("m", (i-1)%4, "\n"); b.text(w, m.UID) != want {
			t.Errorf("message %d: %q", i, b.text(w, m.UID))
		}
	}
}

// broken is a file system on which the index cannot be written.
type broken struct {
	durable.OS
	on *bool
}

type brokenFile struct {
	durable.File
	on *bool
}

func (f broken) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	file, err := f.OS.OpenFile(name, flag, perm)
	if n := filepath.Base(name); err == nil && (n == indexName || n == indexTmp) {
		return brokenFile{file, f.on}, nil
	}
	return file, err
}

func (f brokenFile) WriteAt(b []byte, off int64) (int, error) {
	if *f.on {
		return 0, syscall.EIO
	}
	return f.File.WriteAt(b, off)
}

// What is stored for good is not refused because the index, a cache, cannot be written.
func TestStoredWithoutIndex(t *testing.T) {
	b := newBed(t)
	on := false
	b.o.FS = broken{on: &on}
	s := b.store()
	b.must(s.Create(t.Context(), "A"))
	in, a := b.mailbox(s, "INBOX"), b.mailbox(s, "A")
	b.append(in, "one", 0)
	b.append(a, "two", 0)
	v := b.view(s, "INBOX", false)
	on = true
	c, err := in.Append(t.Context(), Item{Message: strings.NewReader("late")})
	if files := len(b.files("cur")); err != nil || files != 2 || len(c.To) != 1 {
		t.Errorf("APPEND: %v, and %d files are there", err, files)
	}
	on = false
	b.sync(v)
	on = true
	if _, err := v.Copy(t.Context(), []uint32{1}, a); err != nil || len(b.files(".A/cur")) != 2 {
		t.Errorf("COPY: %v, and %d files are there", err, len(b.files(".A/cur")))
	}
	on = false
	if b.sync(v); v.Len() != 2 || v.At(2).UID != c.To[0] {
		t.Errorf("%d messages", v.Len())
	}
	if w := b.view(s, "A", false); w.Len() != 2 {
		t.Errorf("%d messages in A", w.Len())
	}
}

// The uidlist may change hands between two steps: its lock taken away from one who was stopped
// for long, or a shorter list put in its place while nobody has the lock.
func TestListTakenAway(t *testing.T) {
	b := newBed(t)
	in := b.mailbox(b.store(), "INBOX")
	b.append(in, "one", 0)
	b.view(in.store, "INBOX", false)
	path := filepath.Join(b.root, maildir.UIDListName)
	was, err := os.ReadFile(path)
	b.must(err)
	b.must(in.write(t.Context(), func(w *writer) error {
		lock, err := in.lockList(t.Context())
		b.must(err)
		b.must(os.Remove(path + ".lock"))
		l := &listRead{size: 10}
		if err := w.appendList(lock, l, []*fresh{{rec: rec{uid: 9}, base: "x"}}); !errors.Is(err, maildir.ErrLockLost) {
			t.Errorf("lines were added without a lock: %v", err)
		}
		if is, err := os.ReadFile(path); err != nil || !slices.Equal(is, was) {
			t.Errorf("the list is now %q (%v)", is, err)
		}
		l = &listRead{size: int64(len(was)) + 100, at: stamp{size: int64(len(was)) + 200}}
		if ok, err := w.readTail(l); ok || err != nil {
			t.Errorf("a list that got shorter: %v %v", ok, err)
		}
		return nil
	}))
}
