package mailbox

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// undeleting is a file system on which another program takes \Deleted back just before a message
// is removed.
type undeleting struct {
	durable.OS
	of string // base name
}

func (u *undeleting) Remove(name string) error {
	if u.of != "" && strings.HasPrefix(filepath.Base(name), u.of) {
		u.of = ""
		if err := os.Rename(name, strings.TrimSuffix(name, "T")+"S"); err != nil {
			return err
		}
		return &os.PathError{Op: "remove", Path: name, Err: syscall.ENOENT}
	}
	return u.OS.Remove(name)
}

func (u *undeleting) OpenFile(name string, flag int, perm os.FileMode) (durable.File, error) {
	f, err := u.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return plainFile{f}, nil
}

// EXPUNGE removes what has \Deleted at that moment, not what had it when the session looked.
func TestExpungeDeleted(t *testing.T) {
	b := newBed(t)
	u := &undeleting{}
	b.o.FS = u
	s := b.store()
	in := b.mailbox(s, "INBOX")
	for range 5 {
		b.append(in, "x", maildir.Trashed)
	}
	b.append(in, "stays", 0)
	v := b.view(s, "INBOX", false)
	other := b.view(b.store(), "INBOX", false)
	if _, err := other.Store(t.Context(), []uint32{2}, FlagChange{Op: Remove, Flags: maildir.Trashed}); err != nil {
		t.Fatal(err)
	}
	i, _ := v.st.find(3)
	c, r := v.st.at(i)
	base, err := c.base(r)
	b.must(err)
	u.of = base
	gone, err := v.ExpungeDeleted(t.Context(), []Range{{1, 4}, {6, 99}})
	b.must(err)
	want(t, "gone", gone, []uint32{1, 4})
	b.sync(v)
	var left []uint32
	for _, m := range v.All(1, v.Len()) {
		left = append(left, m.UID)
	}
	want(t, "left", left, []uint32{2, 3, 5, 6})
}
