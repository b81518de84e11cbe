package mailbox

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// stiff is a file system on which nothing can be written: only removed and, where it is merely
// full, renamed and written in place.
type stiff struct {
	durable.OS
	err *error // nil: all goes
}

type stiffFile struct {
	durable.File
	name string
	err  *error
}

func (s stiff) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	if *s.err == syscall.EROFS && flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE) != 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: *s.err}
	}
	f, err := s.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return stiffFile{f, filepath.Base(name), s.err}, nil
}

func (f stiffFile) Write(b []byte) (int, error) {
	if *f.err != nil {
		return 0, *f.err
	}
	return f.File.Write(b)
}

func (f stiffFile) WriteAt(b []byte, off int64) (int, error) {
	if *f.err != nil && f.name != indexLock {
		return 0, *f.err
	}
	return f.File.WriteAt(b, off)
}

// On a full disk a process that comes anew reads and deletes mail, though it can reserve no
// MODSEQs: the index is behind the lock file, of another run of the machine, or not there.
func TestFullDisk(t *testing.T) {
	for _, why := range []string{"behind", "reboot", "gone"} {
		b := newBed(t)
		var full error
		b.o.FS, b.o.Boot = stiff{err: &full}, 7
		s := b.store()
		in := b.mailbox(s, "INBOX")
		for _, text := range []string{"one", "two", "three"} {
			b.append(in, text, 0)
		}
		v := b.view(s, "INBOX", false)
		path := filepath.Join(b.root, indexName)
		old, err := os.ReadFile(path)
		b.must(err)
		for i := range 5 {
			_, err := v.Store(t.Context(), []uint32{2}, FlagChange{Op: Add + Op(i%2), Flags: maildir.Seen})
			b.must(err)
		}
		b.sync(v)
		told := v.HighestModSeq()
		validity := v.UIDValidity()
		switch why {
		case "behind":
			b.must(os.WriteFile(path, old, 0o600))
		case "reboot":
			b.o.Boot = 8
		case "gone":
			b.must(os.Remove(path))
		}
		b.deliver(b.root, "late")
		full = syscall.ENOSPC
		for round := range 3 { // three processes
			w, err := b.mailbox(b.store(), "INBOX").Select(t.Context(), false)
			if err != nil {
				t.Fatalf("%s, process %d: %v", why, round, err)
			}
			if w.Len() != 3-round || w.HighestModSeq() <= told || w.UIDValidity() != validity {
				t.Fatalf("%s, process %d: %d messages, HIGHESTMODSEQ %d after %d", why, round, w.Len(), w.HighestModSeq(), told)
			}
			told = w.HighestModSeq()
			if w.Len() > 1 {
				want(t, why, b.text(w, w.At(2).UID), []string{"two", "three"}[round])
			}
			_, err = w.Store(t.Context(), []uint32{3}, FlagChange{Op: Set, Flags: maildir.Flagged})
			b.must(err)
			if gone, err := w.Expunge(t.Context(), []uint32{uint32(round + 1)}); err != nil || len(gone) != 1 {
				t.Fatalf("%s: %v %v", why, gone, err)
			}
			b.sync(w)
			if w.HighestModSeq() <= told {
				t.Errorf("%s: HIGHESTMODSEQ %d after %d", why, w.HighestModSeq(), told)
			}
			told = w.HighestModSeq()
		}
		full = nil
		b.o.Now = func() time.Time { return time.Now().Add(2 * time.Second) }
		w := b.view(b.store(), "INBOX", false)
		if w.Len() != 1 || w.At(1).UID != 4 || w.HighestModSeq() <= told {
			t.Errorf("%s: with room again: %s, HIGHESTMODSEQ %d after %d", why, show(w), w.HighestModSeq(), told)
		}
	}
}

// Who may only read a Maildir opens it read-only, with or without an index, or a uidlist.
func TestReadOnlyMaildir(t *testing.T) {
	for _, lacks := range []string{"", indexName, maildir.UIDListName} {
		b := newBed(t)
		var no error
		b.o.FS = stiff{err: &no}
		s := b.store()
		b.append(b.mailbox(s, "INBOX"), "one", 0, "k")
		b.append(b.mailbox(s, "INBOX"), "two", 0)
		told := b.view(s, "INBOX", false).HighestModSeq()
		switch lacks {
		case maildir.UIDListName:
			b.must(os.Remove(filepath.Join(b.root, maildir.UIDListName)))
			fallthrough
		case indexName:
			b.must(os.Remove(filepath.Join(b.root, indexName)))
		}
		no = syscall.EROFS
		r := b.store()
		v, err := b.mailbox(r, "INBOX").Select(t.Context(), true)
		if err != nil {
			t.Fatalf("without %q: %v", lacks, err)
		}
		want(t, "messages", v.Len(), 2)
		want(t, "text", b.text(v, 2), "two")
		want(t, "keywords", keywordNames(v.Keywords(), v.At(1).Keywords), []string{"k"})
		b.must(v.Sizes(t.Context(), []Range{{1, 9}}))
		b.must(v.Dates(t.Context(), []Range{{1, 9}}))
		if !v.At(2).Dated || v.At(2).Size != 3 {
			t.Errorf("without %q: %+v", lacks, v.At(2))
		}
		for _, n := range b.files("cur") { // somebody else flags one
			if text, _ := os.ReadFile(filepath.Join(b.root, "cur", n)); string(text) == "two" {
				b.must(os.Rename(filepath.Join(b.root, "cur", n), filepath.Join(b.root, "cur", n+"S")))
			}
		}
		b.sync(v)
		want(t, "flags", v.At(2).Flags, maildir.Seen)
		if st, err := r.Status(t.Context(), "INBOX"); err != nil || st.Messages != 2 {
			t.Errorf("without %q: STATUS %+v %v", lacks, st, err)
		}
		if lacks != maildir.UIDListName {
			told = max(told, v.HighestModSeq())
		}
		no = nil
		b.sync(v) // which may write now
		if v.HighestModSeq() < told && lacks != maildir.UIDListName {
			t.Errorf("without %q: HIGHESTMODSEQ %d after %d", lacks, v.HighestModSeq(), told)
		}
	}
}
