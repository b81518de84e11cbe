package mailbox

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// locking counts how often the lock of a uidlist is taken.
type locking struct {
	durable.OS
	n *atomic.Int32
}

func (l locking) RenameNew(from, to string) error {
	if filepath.Base(to) == maildir.UIDListName+".lock" {
		l.n.Add(1)
	}
	return l.OS.RenameNew(from, to)
}

// many appends n messages, of which each has one of three keywords.
func (b *bed) many(m *Mailbox, n int) {
	b.Helper()
	i := 0
	c, err := m.AppendAll(b.Context(), func() (Item, error) {
		if i++; i > n {
			return Item{}, io.EOF
		}
		text := fmt.Sprintf("Subject: %d\r\n\r\n%s\r\n", i, strings.Repeat("x", 4000))
		return Item{Message: strings.NewReader(text), Keywords: []string{fmt.Sprint("k", i%3)}}, nil
	})
	if err != nil || len(c.To) != n {
		b.Fatal(len(c.To), err)
	}
}

// The keywords of many messages get their letters under one lock.
func TestKeywordsOfMany(t *testing.T) {
	b := newBed(t)
	var locks atomic.Int32
	b.o.FS = locking{n: &locks}
	s := b.store()
	in := b.mailbox(s, "INBOX")
	for _, n := range []string{"A", "B"} {
		b.must(s.Create(t.Context(), n))
	}
	v := b.view(s, "INBOX", false)
	locks.Store(0)
	b.many(in, 30)
	if n := locks.Load(); n > 3 {
		t.Errorf("APPEND of 30 messages took the lock %d times", n)
	}
	b.sync(v)
	uids := make([]uint32, 30)
	for i := range uids {
		uids[i] = v.At(i + 1).UID
	}
	for _, name := range []string{"A", "B"} {
		dst := b.mailbox(s, name)
		locks.Store(0)
		var err error
		if name == "A" {
			_, err = v.Copy(t.Context(), uids, dst)
		} else {
			_, err = v.Move(t.Context(), uids, dst)
		}
		b.must(err)
		if n := locks.Load(); n > 3 {
			t.Errorf("30 messages to %s took the lock %d times", name, n)
		}
		w := b.view(s, name, false)
		for i, m := range w.All(1, w.Len()) {
			want(t, name, keywordNames(w.Keywords(), m.Keywords), []string{fmt.Sprint("k", i%3)})
		}
	}
}

func BenchmarkAppendMany(b *testing.B) {
	for b.Loop() {
		s, err := Open(filepath.Join(b.TempDir(), "Maildir"), Options{Create: true, Host: "h"})
		if err != nil {
			b.Fatal(err)
		}
		m, err := s.Mailbox(b.Context(), "INBOX")
		if err != nil {
			b.Fatal(err)
		}
		i := 0
		_, err = m.AppendAll(b.Context(), func() (Item, error) {
			if i++; i > 1000 {
				return Item{}, io.EOF
			}
			return Item{Message: strings.NewReader(strings.Repeat("x", 4000))}, nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
