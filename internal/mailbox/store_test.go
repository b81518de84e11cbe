package mailbox

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pennypost/internal/maildir"
)

// bed is an account on the real file system.
type bed struct {
	*testing.T
	root string
	o    Options
}

func newBed(t *testing.T) *bed {
	t.Helper()
	return &bed{T: t, root: filepath.Join(t.TempDir(), "Maildir"), o: Options{Create: true, Host: "h"}}
}

// store opens the account as another process would.
func (b *bed) store() *Store {
	b.Helper()
	s, err := Open(b.root, b.o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	return s
}

func (b *bed) mailbox(s *Store, name string) *Mailbox {
	b.Helper()
	m, err := s.Mailbox(b.Context(), name)
	if err != nil {
		b.Fatal(err)
	}
	return m
}

func (b *bed) view(s *Store, name string, ro bool) *View {
	b.Helper()
	v, err := b.mailbox(s, name).Select(b.Context(), ro)
	if err != nil {
		b.Fatal(err)
	}
	return v
}

func (b *bed) append(m *Mailbox, text string, f maildir.Flags, kw ...string) uint32 {
	b.Helper()
	c, err := m.Append(b.Context(), Item{Message: strings.NewReader(text), Flags: f, Keywords: kw})
	if err != nil {
		b.Fatal(err)
	}
	return c.To[0]
}

// deliver does what a delivery agent does.
func (b *bed) deliver(dir, text string) string {
	b.Helper()
	m, err := maildir.NewSet(maildir.Options{Create: true}).Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	name, err := m.Deliver(b.Context(), nil, strings.NewReader(text))
	if err != nil {
		b.Fatal(err)
	}
	return name
}

// show prints a view: UID, flags, keywords.
func show(v *View) string {
	var b strings.Builder
	for _, m := range v.All(1, v.Len()) {
		fmt.Fprintf(&b, "%d:%s", m.UID, maildir.Name{Flags: m.Flags, Info: true}.String()[3:])
		for _, k := range keywordNames(v.Keywords(), m.Keywords) {
			b.WriteString("+" + k)
		}
		if m.Recent {
			b.WriteByte('*')
		}
		b.WriteByte(' ')
	}
	return strings.TrimSpace(b.String())
}

func (b *bed) text(v *View, uid uint32) string {
	b.Helper()
	f, err := v.Open(b.Context(), uid)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	t, err := io.ReadAll(f)
	if err != nil {
		b.Fatal(err)
	}
	return string(t)
}

func (b *bed) sync(v *View) Changes {
	b.Helper()
	ch, err := v.Sync(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return ch
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		t.Errorf("%s: %s\nwant %s", what, g, w)
	}
}

func TestSession(t *testing.T) {
	b := newBed(t)
	s := b.store()
	b.deliver(b.root, "one")
	b.deliver(b.root, "two")
	v := b.view(s, "inbox", false)
	want(t, "select", show(v), "1:* 2:*")
	want(t, "text", b.text(v, 2), "two")
	want(t, "next", v.UIDNext(), 3)
	mod := v.HighestModSeq()
	other := b.store()
	w := b.view(other, "INBOX", false)
	want(t, "a second session", show(w), "1: 2:")
	if w.UIDValidity() != v.UIDValidity() || w.HighestModSeq() < mod {
		t.Errorf("validity %d %d, modseq %d %d", v.UIDValidity(), w.UIDValidity(), mod, w.HighestModSeq())
	}
	r, err := w.Store(t.Context(), []uint32{1, 2, 7}, FlagChange{Op: Add, Flags: maildir.Seen, Keywords: []string{"$Junk"}})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "store", fmt.Sprint(r.Changed, r.Expunged), "[1 2] [7]")
	b.append(b.mailbox(other, "INBOX"), "three\r\n", maildir.Draft)
	ch := b.sync(v)
	want(t, "sync", fmt.Sprint(ch.Changed, ch.First, ch.Keywords), "[1 2] 3 true")
	want(t, "flags", show(v), "1:S+$Junk* 2:S+$Junk* 3:D*")
	want(t, "text", b.text(v, 3), "three\n")
	want(t, "size", v.At(3).Size, 7)
	if v.At(1).ModSeq != r.ModSeq || r.ModSeq <= mod {
		t.Errorf("modseq %d, store said %d after %d", v.At(1).ModSeq, r.ModSeq, mod)
	}
	if _, err := w.Expunge(t.Context(), []uint32{1}); err != nil {
		t.Fatal(err)
	}
	kept, err := v.SyncKeep(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want(t, "nothing is expunged yet", fmt.Sprint(kept.Expunged, v.Len()), "[] 3")
	if _, err := v.Open(t.Context(), 1); err == nil {
		t.Error("an expunged message opens")
	}
	ch = b.sync(v)
	want(t, "expunge", ch.Expunged, "[{1 1}]")
	want(t, "left", show(v), "2:S+$Junk* 3:D*")
	want(t, "vanished", v.VanishedSince(mod, []Range{{1, 100}}), "[{1 1}]")
	want(t, "vanished before all", v.VanishedSince(0, []Range{{1, 100}}), "[{1 1}]")
}

func TestCopyMove(t *testing.T) {
	b := newBed(t)
	s := b.store()
	for _, f := range []string{"A", "A/B"} {
		if err := s.Create(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	in := b.mailbox(s, "INBOX")
	for i := range 4 {
		b.append(in, fmt.Sprint("m", i), maildir.Flagged, "k")
	}
	v := b.view(s, "INBOX", false)
	a, ab := b.mailbox(s, "A"), b.mailbox(s, "A/B")
	c, err := v.Copy(t.Context(), []uint32{3, 1}, a)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "copied", fmt.Sprint(c.From, c.To), "[1 3] [1 2]")
	va := b.view(s, "A", false)
	want(t, "copies", show(va), "1:F+k* 2:F+k*")
	e1, _ := v.EmailID(3)
	e2, _ := va.EmailID(2)
	want(t, "EMAILID over a copy", e2, e1)
	if c, err = v.Move(t.Context(), []uint32{2, 4}, ab); err != nil {
		t.Fatal(err)
	}
	want(t, "moved", fmt.Sprint(c.From, c.To), "[2 4] [1 2]")
	b.sync(v)
	want(t, "left", show(v), "1:F+k* 3:F+k*")
	vb := b.view(s, "A/B", false)
	want(t, "text", b.text(vb, 2), "m3")
	if _, err = vb.Move(t.Context(), []uint32{2}, in); err != nil {
		t.Fatal(err)
	}
	b.sync(v)
	want(t, "back with a new UID", show(v), "1:F+k* 3:F+k* 5:F+k*")
	if c, err = v.Move(t.Context(), []uint32{1}, in); err != nil {
		t.Fatal(err)
	}
	want(t, "onto itself", fmt.Sprint(c.From, c.To), "[1] [6]")
	fresh := b.view(b.store(), "INBOX", true)
	want(t, "another process", show(fresh), "3:F+k 5:F+k 6:F+k*")
}

// What another program does to the files is seen.
func TestOthers(t *testing.T) {
	b := newBed(t)
	s := b.store()
	in := b.mailbox(s, "INBOX")
	for i := range 5 {
		b.append(in, fmt.Sprint("m", i), 0)
	}
	v := b.view(s, "INBOX", false)
	names, err := os.ReadDir(filepath.Join(b.root, "cur"))
	if err != nil {
		t.Fatal(err)
	}
	cur := func(n string) string { return filepath.Join(b.root, "cur", n) }
	for i, n := range names {
		switch i {
		case 0:
			err = os.Remove(cur(n.Name()))
		case 1:
			err = os.Rename(cur(n.Name()), cur(n.Name()+"SZ,x"))
		case 2:
			err = os.Rename(cur(n.Name()), cur(strings.TrimSuffix(n.Name(), ":2,")))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b.deliver(b.root, "new")
	for range 100 { // the change may hide in the tick of our own last one
		b.sync(v)
		if v.Len() == 5 && v.UIDNext() == 7 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	want(t, "seen", show(v), "2:S* 3:* 4:* 5:* 6:*")
	if _, err := v.Store(t.Context(), []uint32{2, 3}, FlagChange{Op: Add, Flags: maildir.Flagged}); err != nil {
		t.Fatal(err)
	}
	for _, n := range list(t, filepath.Join(b.root, "cur")) {
		if strings.HasSuffix(n, ":2,FSZ,x") {
			return
		}
	}
	t.Errorf("unknown letters are lost: %v", list(t, filepath.Join(b.root, "cur")))
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

// What APPEND stores comes back as the wire form says, whatever the sizes of the reads.
func TestStoreLF(t *testing.T) {
	for in, out := range map[string]string{
		"a\r\nb\r\n": "a\nb\n", "a\nb\n": "a\nb\n", "\r": "\r", "a\r": "a\r", "\r\r\n": "\r\r\n", "\r\r\r\nx": "\r\r\r\nx",
		"\rx\r\n\r\n\n": "\rx\n\n\n", "": "", "a\r\n\r\r\n\r\n": "a\n\r\r\n\n", "\r\n\r": "\n\r",
	} {
		for _, size := range []int{2, 4, 6, 64} {
			var got bytes.Buffer
			n, wire, err := storeLF(context.Background(), &got, strings.NewReader(in), make([]byte, size))
			if err != nil || got.String() != out || n != int64(len(out)) {
				t.Errorf("%q, buffer %d: %q %d %v, want %q", in, size, got.String(), n, err, out)
			}
			back := toWire(out)
			if wire != int64(len(back)) {
				t.Errorf("%q, buffer %d: wire %d, want %d", in, size, wire, len(back))
			}
			if !strings.Contains(strings.ReplaceAll(in, "\r\n", ""), "\n") && back != in {
				t.Errorf("%q comes back as %q", in, back)
			}
		}
	}
}

func toWire(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if s[i] == '\n' && (i == 0 || s[i-1] != '\r') {
			b.WriteByte('\r')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func TestFolders(t *testing.T) {
	for _, fsLayout := range []bool{false, true} {
		b := newBed(t)
		b.o.FSLayout = fsLayout
		s := b.store()
		for _, n := range []string{"A", "A/B", "Ä", "C"} {
			if err := s.Create(t.Context(), n); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Create(t.Context(), "A"); err == nil {
			t.Error("A is made twice")
		}
		b.append(b.mailbox(s, "A/B"), "x", 0)
		if err := s.Subscribe(t.Context(), "A/B", true); err != nil {
			t.Fatal(err)
		}
		if err := s.Rename(t.Context(), "A", "Z/Y"); err != nil {
			t.Fatal(err)
		}
		var names []string
		fs, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fs {
			if f.Exists {
				names = append(names, f.Name)
			}
		}
		slices.Sort(names)
		want(t, "list", names, "[C INBOX Z/Y Z/Y/B Ä]")
		st, err := s.Status(t.Context(), "Z/Y/B")
		if err != nil {
			t.Fatal(err)
		}
		want(t, "status", fmt.Sprint(st.Messages, st.UIDNext, st.Recent, st.Unseen, st.Size), "1 2 1 1 1")
		if err := s.Delete(t.Context(), "Z/Y"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Mailbox(t.Context(), "Z/Y"); err == nil {
			t.Error("a deleted folder opens")
		}
		v := b.view(s, "Z/Y/B", true)
		want(t, "the folder below stays", show(v), "1:*")
		if err := s.Rename(t.Context(), "INBOX", "old"); err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{"", "/", "A//B", "../x", "a/../../b"} {
			if err := s.Create(t.Context(), bad); err == nil {
				t.Errorf("%q is made", bad)
			}
		}
	}
}

func TestQuota(t *testing.T) {
	b := newBed(t)
	b.o.Limits = Limits{Octets: 100, Messages: 3}
	s := b.store()
	in := b.mailbox(s, "INBOX")
	b.append(in, strings.Repeat("x", 60), 0)
	if _, err := in.Append(t.Context(), Item{Message: strings.NewReader(strings.Repeat("y", 50))}); err == nil {
		t.Error("110 octets of 100")
	}
	b.append(in, "", 0)
	v := b.view(s, "INBOX", false)
	if _, err := v.Copy(t.Context(), []uint32{1}, in); err == nil {
		t.Error("a copy of 60 octets beside 60 of 100")
	}
	used, _, err := s.Usage(t.Context())
	want(t, "used", fmt.Sprint(used, err), "{60 2} <nil>")
	if _, err := v.Expunge(t.Context(), []uint32{1}); err != nil {
		t.Fatal(err)
	}
	used, _, err = s.Usage(t.Context())
	want(t, "used", fmt.Sprint(used, err), "{0 1} <nil>")
	if l := list(t, filepath.Join(b.root, "tmp")); len(l) > 0 {
		t.Errorf("left in tmp: %v", l)
	}
}

func TestPOP3(t *testing.T) {
	b := newBed(t)
	s := b.store()
	in := b.mailbox(s, "INBOX")
	b.append(in, "a\n", 0)
	if err := os.WriteFile(filepath.Join(b.root, "cur", "1.x.h:2,"), []byte("b\nb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	unlock, err := in.LockMaildrop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.mailbox(b.store(), "INBOX").LockMaildrop(t.Context()); err == nil {
		t.Error("two sessions have the maildrop")
	}
	v := b.view(s, "INBOX", false)
	for range 100 {
		if v.Len() == 2 {
			break
		}
		time.Sleep(20 * time.Millisecond)
		b.sync(v)
	}
	if err := v.SetPOP3Keys(t.Context(), map[uint32]string{2: "key"}); err != nil {
		t.Fatal(err)
	}
	v = b.view(b.store(), "INBOX", false)
	es, err := v.POP3(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want(t, "maildrop", fmt.Sprintf("%d %d %q %d %d %q %s", es[0].UID, es[0].Size, es[0].Key, es[1].UID, es[1].Size, es[1].Key, es[1].Base), `1 3 "" 2 6 "key" 1.x.h`)
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
}
