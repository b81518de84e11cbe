package mailbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

const benchSize = 100_000

// fill makes a mailbox of n messages that share a few files: what is measured here never reads
// them.
func fill(tb testing.TB, root string, n int) {
	tb.Helper()
	if err := maildir.Create(durable.OS{}, root); err != nil {
		tb.Fatal(err)
	}
	text := "Subject: x\n\nbody\n"
	src := ""
	for i := range n {
		name := filepath.Join(root, "cur", fmt.Sprintf("%d.M%06dP7Q%dRabcdefgh.host,S=%d,W=%d:2,%s", 1700000000+i/10, i%1e6, i, len(text), len(text)+3, []string{"S", "", "RS", "FS"}[i%4]))
		if i%30_000 == 0 { // file systems bound the links of a file
			src = name
			if err := os.WriteFile(src, []byte(text), 0o600); err != nil {
				tb.Fatal(err)
			}
			continue
		}
		if err := durable.Link(src, name); err != nil {
			tb.Fatal(err)
		}
	}
	time.Sleep(1100 * time.Millisecond) // so that the directory is old enough to be believed
}

type rig struct {
	*testing.B
	root string
}

func newRig(b *testing.B) *rig {
	r := &rig{b, filepath.Join(b.TempDir(), "Maildir")}
	fill(b, r.root, benchSize)
	b.ReportAllocs()
	return r
}

func (r *rig) view() (*Store, *View) {
	s, err := Open(r.root, Options{})
	if err != nil {
		r.Fatal(err)
	}
	m, err := s.Mailbox(r.Context(), "INBOX")
	if err != nil {
		r.Fatal(err)
	}
	v, err := m.Select(r.Context(), false)
	if err != nil {
		r.Fatal(err)
	}
	return s, v
}

func (r *rig) remove(names ...string) {
	for _, n := range names {
		if err := os.Remove(filepath.Join(r.root, n)); err != nil {
			r.Fatal(err)
		}
	}
}

// Probe is one scan of the directory and nothing else.
func BenchmarkProbeScan(b *testing.B) {
	r := newRig(b)
	for b.Loop() {
		f, err := os.Open(filepath.Join(r.root, "cur"))
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		if err := eachName(f, make([]byte, 256<<10), func([]byte) { n++ }); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

func BenchmarkOpenNothing(b *testing.B) { // neither uidlist nor index
	r := newRig(b)
	for b.Loop() {
		r.view()
		b.StopTimer()
		r.remove(indexName, maildir.UIDListName)
		b.StartTimer()
	}
}

func BenchmarkOpenList(b *testing.B) { // a uidlist, as after another server
	r := newRig(b)
	r.view()
	for b.Loop() {
		b.StopTimer()
		r.remove(indexName)
		b.StartTimer()
		r.view()
	}
}

func BenchmarkOpenIndex(b *testing.B) { // a fresh process
	r := newRig(b)
	r.view()
	time.Sleep(1100 * time.Millisecond)
	r.view()
	for b.Loop() {
		r.view()
	}
}

func BenchmarkSelectResident(b *testing.B) {
	r := newRig(b)
	_, v := r.view()
	time.Sleep(1100 * time.Millisecond)
	for b.Loop() {
		w, err := v.m.Select(b.Context(), false)
		if err != nil {
			b.Fatal(err)
		}
		w.Close()
	}
}

func BenchmarkSelectChanged(b *testing.B) {
	r := newRig(b)
	_, v := r.view()
	d, err := maildir.NewSet(maildir.Options{}).Open(r.root)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		if _, err := d.Deliver(b.Context(), nil, strings.NewReader("x")); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		w, err := v.m.Select(b.Context(), false)
		if err != nil {
			b.Fatal(err)
		}
		w.Close()
	}
}

func (v *View) uids(n int) (uids []uint32) {
	for _, m := range v.All(1, min(n, v.Len())) {
		uids = append(uids, m.UID)
	}
	return uids
}

// BenchmarkProbeRename is what STORE 1:* is measured against.
func BenchmarkProbeRename(b *testing.B) {
	r := newRig(b)
	d, err := durable.OpenNames(durable.OS{}, filepath.Join(r.root, "cur"))
	if err != nil {
		b.Fatal(err)
	}
	names := list2(b, filepath.Join(r.root, "cur"))
	for b.Loop() {
		for i, n := range names {
			to := n + "T"
			if strings.HasSuffix(n, "T") {
				to = n[:len(n)-1]
			}
			if err := d.RenameNew(n, d, to); err != nil {
				b.Fatal(err)
			}
			names[i] = to
		}
	}
}

func list2(b *testing.B, dir string) (names []string) {
	es, err := os.ReadDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

func BenchmarkStoreAll(b *testing.B) {
	r := newRig(b)
	_, v := r.view()
	op := Add
	for b.Loop() {
		if _, err := v.Store(b.Context(), v.uids(benchSize), FlagChange{Op: op, Flags: maildir.Trashed}); err != nil {
			b.Fatal(err)
		}
		op = Add + Remove - op
	}
}

func (r *rig) folder(s *Store, name string) *Mailbox {
	if err := s.Create(r.Context(), name); err != nil {
		r.Fatal(err)
	}
	m, err := s.Mailbox(r.Context(), name)
	if err != nil {
		r.Fatal(err)
	}
	return m
}

func BenchmarkCopy10000(b *testing.B) {
	r := newRig(b)
	s, v := r.view()
	m := r.folder(s, "A")
	for b.Loop() {
		if _, err := v.Copy(b.Context(), v.uids(10_000), m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMove10000(b *testing.B) {
	r := newRig(b)
	s, v := r.view()
	m := r.folder(s, "A")
	for b.Loop() {
		b.StopTimer()
		if _, err := v.Sync(b.Context()); err != nil || v.Len() < 10_000 {
			b.Skip("no message is left")
		}
		b.StartTimer()
		if _, err := v.Move(b.Context(), v.uids(10_000), m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExpunge10000(b *testing.B) {
	r := newRig(b)
	_, v := r.view()
	for b.Loop() {
		b.StopTimer()
		if _, err := v.Sync(b.Context()); err != nil || v.Len() < 10_000 {
			b.Skip("no message is left")
		}
		b.StartTimer()
		if _, err := v.Expunge(b.Context(), v.uids(10_000)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend1000(b *testing.B) {
	r := newRig(b)
	_, v := r.view()
	text := strings.Repeat("Some text of a message\r\n", 100)
	for b.Loop() {
		for range 1000 {
			if _, err := v.m.Append(b.Context(), Item{Message: strings.NewReader(text)}); err != nil {
				b.Fatal(err)
			}
		}
	}
}
