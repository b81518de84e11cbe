package mailbox

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pennypost/internal/message"
)

func mail(i int) string {
	return fmt.Sprintf("From: A%d <a%d@x.test>\nTo: b@y.test\nSubject: Re: number %d\nDate: Thu, 01 Jan 1970 00:%02d:00 +0100\nReferences: <r1@x> <r%d@x>\n\nbody %d\n", i, i, i, i%60, i, i)
}

// rows reads what the cache gives, as text.
func (b *bed) rows(v *View, uids ...Range) string {
	b.Helper()
	if len(uids) == 0 {
		uids = []Range{{1, 1<<32 - 1}}
	}
	var out strings.Builder
	for r, err := range v.Cached(b.Context(), uids, Envelope|BodyStructure|Bodies|Parts|Fields) {
		if err != nil {
			b.Fatal(err)
		}
		sec, zone, ok := r.Fields.Sent()
		fmt.Fprintf(&out, "%d %s %s %s %x %q %d %d %v %v", r.UID, r.Envelope, r.BodyStructure, r.Body, r.Parts, r.Fields.Get(FieldBase), sec, zone, ok, r.Fields.Reply())
		r.Fields.References(func(id []byte) { fmt.Fprintf(&out, " <%s>", id) })
		out.WriteByte('\n')
	}
	return out.String()
}

func TestCache(t *testing.T) {
	b := newBed(t)
	s := b.store()
	in := b.mailbox(s, "INBOX")
	for i := range 40 {
		b.append(in, mail(i), 0)
	}
	v := b.view(s, "INBOX", false)
	first := b.rows(v)
	if !strings.Contains(first, `"number 39" -1260 60 true true <r1@x> <r39@x>`) || strings.Count(first, "\n") != 40 {
		t.Fatalf("rows: %s", first)
	}
	want(t, "from the cache", b.rows(v), first)
	for i := 40; i < 45; i++ {
		b.append(in, mail(i), 0)
		b.sync(v)
		b.rows(v, Range{uint32(i) + 1, uint32(i) + 1})
	}
	whole := b.rows(v)
	if !strings.HasPrefix(whole, first) {
		t.Error("new messages changed the rows of old ones")
	}
	// Nothing is parsed again: the files are not even there.
	if err := os.Rename(filepath.Join(b.root, "cur"), filepath.Join(b.root, "cur.away")); err != nil {
		t.Fatal(err)
	}
	want(t, "without the files", b.rows(v), whole)
	if err := os.Rename(filepath.Join(b.root, "cur.away"), filepath.Join(b.root, "cur")); err != nil {
		t.Fatal(err)
	}
	c := in.cached()
	c.mu.Lock()
	err := c.merge(v.UIDValidity())
	n := len(c.blocks)
	c.mu.Unlock()
	if err != nil || n != 1 {
		t.Errorf("merged into %d blocks: %v", n, err)
	}
	want(t, "merged", b.rows(b.view(b.store(), "INBOX", true)), whole)
}

// Whatever happens to the file, the rows are right.
func TestCacheDamage(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	s := b.store()
	in := b.mailbox(s, "INBOX")
	for i := range 3 {
		b.append(in, mail(i), 0)
	}
	v := b.view(s, "INBOX", false)
	whole := b.rows(v)
	path := filepath.Join(b.root, cacheName)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		v := b.view(b.store(), "INBOX", true)
		for range 2 { // damaged, and as it was mended
			if got := b.rows(v); got != whole {
				t.Fatalf("%s: %s", what, got)
			}
		}
		v.Close()
	}
	for n := range len(good) {
		if n%7 == 0 || n < 200 {
			try(fmt.Sprint("cut at ", n), good[:n])
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		data := bytes.Clone(good)
		at := rng.IntN(len(data))
		data[at] ^= 1 << rng.IntN(8)
		try(fmt.Sprint("bit flip ", n, " at ", at), data)
	}
	newer := bytes.Clone(good)
	newer[8] = 2
	sum := appendCacheHead(0)
	copy(newer[20:], sum[20:]) // a wrong checksum is damage, not a version
	try("a later version, damaged", newer)
}

func FuzzCache(f *testing.F) {
	var cols [columns][][]byte
	for i := range cols {
		cols[i] = [][]byte{[]byte("a"), {}}
	}
	f.Add(append(appendCacheHead(7), encodeBlock([]uint32{1, 3}, &cols)...))
	f.Add(appendCacheHead(7))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, cacheName)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir, Options{Create: true})
		if err != nil {
			t.Fatal(err)
		}
		c := &cache{m: &Mailbox{store: s, indexAt: dir}}
		if err := c.refresh(7); err != nil {
			t.Fatal(err)
		}
		for _, p := range c.places {
			for i := range columns {
				if col, _, err := c.blocks[p.block].read(c.f, i, nil); err == nil {
					col.at(int(p.pos))
				}
			}
		}
	})
}

func FuzzFieldRow(f *testing.F) {
	f.Add(appendFields(nil, &message.Fields{Subject: "s", References: []string{"a", "b"}, HasSent: true}))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := FieldRow(data)
		for i := range fieldCount {
			r.Get(i)
		}
		r.Sent()
		r.Reply()
		r.References(func([]byte) {})
	})
}
