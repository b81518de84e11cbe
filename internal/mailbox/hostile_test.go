package mailbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

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
