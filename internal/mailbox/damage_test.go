package mailbox

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// damaged is a small folder with a history, and what was told of it.
type damaged struct {
	*bed
	v        *View
	flags    string
	validity uint32
	next     uint32
	modseq   uint64
	early    uint64 // MODSEQ before UID 2 was expunged
	old      []byte // the index at that time
	good     []byte
}

func newDamaged(t *testing.T) *damaged {
	b := newBed(t)
	s := b.store()
	in := b.mailbox(s, "INBOX")
	for i := range 4 {
		b.append(in, fmt.Sprint("m", i), maildir.Flags(i), "k")
	}
	d := &damaged{bed: b, v: b.view(s, "INBOX", false)}
	d.early = d.v.HighestModSeq()
	d.old = d.index()
	for range 3 {
		d.store1(1, Add)
		d.store1(1, Remove)
	}
	d.store1(1, Add)
	if _, err := d.v.Expunge(t.Context(), []uint32{2}); err != nil {
		t.Fatal(err)
	}
	d.sync(d.v)
	d.hear()
	d.good = d.index()
	return d
}

func (d *damaged) store1(uid uint32, op Op) {
	d.Helper()
	if _, err := d.v.Store(d.Context(), []uint32{uid}, FlagChange{Op: op, Flags: maildir.Seen}); err != nil {
		d.Fatal(err)
	}
}

func (d *damaged) index() []byte {
	b, err := os.ReadFile(filepath.Join(d.root, indexName))
	if err != nil {
		d.Fatal(err)
	}
	return b
}

func (d *damaged) hear() {
	d.flags, d.validity, d.next, d.modseq = show(d.v), d.v.UIDValidity(), d.v.UIDNext(), d.v.HighestModSeq()
}

// check opens the account as a new process.
func (d *damaged) check(what string) {
	d.Helper()
	s := d.store()
	d.v = d.view(s, "INBOX", false)
	if d.v.UIDValidity() != d.validity || d.v.UIDNext() < d.next || d.v.HighestModSeq() < d.modseq {
		d.Fatalf("%s: UIDVALIDITY %d, UIDNEXT %d, HIGHESTMODSEQ %d; were %d, %d, %d", what,
			d.v.UIDValidity(), d.v.UIDNext(), d.v.HighestModSeq(), d.validity, d.next, d.modseq)
	}
	if got := strings.ReplaceAll(show(d.v), "*", ""); got != strings.ReplaceAll(d.flags, "*", "") {
		d.Fatalf("%s: %s, was %s", what, got, d.flags)
	}
	if gone := d.v.VanishedSince(d.early, []Range{{1, 10}}); fmt.Sprint(gone[0]) != "{2 2}" {
		d.Fatalf("%s: a client of old hears %v", what, gone)
	}
	d.hear()
	if err := d.v.Close(); err != nil {
		d.Fatal(err)
	}
	if err := s.Close(); err != nil {
		d.Fatal(err)
	}
}

// over writes in place, replace as backup programs do.
func (d *damaged) over(b []byte) {
	if err := os.WriteFile(filepath.Join(d.root, indexName), b, 0o600); err != nil {
		d.Fatal(err)
	}
}

func (d *damaged) replace(b []byte) {
	p := filepath.Join(d.root, indexName)
	if err := os.WriteFile(p+".bak", b, 0o600); err != nil {
		d.Fatal(err)
	}
	if err := durable.Rename(p+".bak", p); err != nil {
		d.Fatal(err)
	}
}

func TestIndexDamage(t *testing.T) {
	t.Parallel()
	d := newDamaged(t)
	d.check("whole")
	for n := 0; n < len(d.good); n += damageStride {
		d.over(d.good[:n])
		d.check(fmt.Sprint("cut at ", n))
	}
	rng := rand.New(rand.NewPCG(5, 6))
	for range 3000 / damageStride / 5 {
		b := bytes.Clone(d.good)
		at := rng.IntN(len(b))
		b[at] ^= 1 << rng.IntN(8)
		d.over(b)
		d.check(fmt.Sprint("a bit of octet ", at))
	}
	if err := os.Remove(filepath.Join(d.root, indexName)); err != nil {
		t.Fatal(err)
	}
	d.check("deleted")
	d.over(append(bytes.Clone(d.good), make([]byte, 500)...))
	d.check("NULs behind it")
}

// Names are read when they are needed; damage in them is mended then.
func TestNamesDamaged(t *testing.T) {
	t.Parallel()
	for name, use := range map[string]func(d *damaged) error{
		"open":    func(d *damaged) error { _, err := d.v.Open(d.Context(), 3); return err },
		"store":   func(d *damaged) error { d.store1(3, Add); return nil },
		"copy":    func(d *damaged) error { _, err := d.v.Copy(d.Context(), []uint32{3}, d.v.m); return err },
		"move":    func(d *damaged) error { _, err := d.v.Move(d.Context(), []uint32{3}, d.v.m); return err },
		"expunge": func(d *damaged) error { _, err := d.v.Expunge(d.Context(), []uint32{3}); return err },
		"sizes":   func(d *damaged) error { _, err := d.v.POP3(d.Context()); return err },
	} {
		d := newDamaged(t)
		if err := d.v.m.write(t.Context(), func(w *writer) error { return w.snapshot(w.st) }); err != nil {
			t.Fatal(err)
		}
		b := d.index()
		at := bytes.LastIndex(b, []byte(",S=2,W=2"))
		b[at] ^= 1
		d.over(b)
		d.v = d.view(d.store(), "INBOX", false)
		if err := use(d); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		d.sync(d.v)
		if d.v.UIDValidity() != d.validity || d.v.HighestModSeq() < d.modseq {
			t.Errorf("%s: HIGHESTMODSEQ %d after %d", name, d.v.HighestModSeq(), d.modseq)
		}
	}
}

func TestIndexRestored(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		how  func(*damaged)
	}{
		{"an old copy in place", func(d *damaged) { d.over(d.old) }},
		{"an old copy in another file", func(d *damaged) { d.replace(d.old) }},
		{"the same in another file", func(d *damaged) { d.replace(d.good) }},
		{"an old copy, and its lock file, in other files", func(d *damaged) {
			d.replace(d.old)
			if err := os.Remove(filepath.Join(d.root, indexLock)); err != nil {
				d.Fatal(err)
			}
		}},
		{"another run of the machine", func(d *damaged) { d.o.Boot = 77 }},
	} {
		d := newDamaged(t)
		c.how(d)
		d.check(c.name)
		d.check(c.name + ", again")
		// A process that still knows better is not confused either.
	}
}

// An index of a later release stays as it is, and the mailbox works.
func TestIndexNewer(t *testing.T) {
	d := newDamaged(t)
	b := bytes.Clone(d.good)
	le := binary.LittleEndian
	le.PutUint16(b[8:], indexVersion+1)
	n := le.Uint32(b[12:])
	le.PutUint32(b[n-4:], crc32.Checksum(b[:n-4], castagnoli()))
	d.over(b)
	d.check("a later version")
	d.v = d.view(d.store(), "INBOX", false)
	d.store1(3, Add)
	d.sync(d.v)
	d.hear()
	if !bytes.Equal(d.index(), b) {
		t.Error("the index of a later release was changed")
	}
	d.check("a later version, after a change")
}

// The uidlist is older than the index, or hurt: UIDs that were told stay.
func TestListRestored(t *testing.T) {
	d := newDamaged(t)
	p := filepath.Join(d.root, maildir.UIDListName)
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(b, []byte("\n"))
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"the last line is missing", bytes.Join(lines[:len(lines)-2], nil)},
		{"a line in the middle is missing", append(bytes.Join(lines[:2], nil), bytes.Join(lines[3:], nil)...)},
		{"the header is missing", bytes.Join(lines[1:], nil)},
		{"a torn line behind it", append(bytes.Clone(b), "99 :x"...)},
		{"NULs behind it", append(bytes.Clone(b), make([]byte, 100)...)},
		{"empty", nil},
	} {
		if err := os.WriteFile(p, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		d.check(c.name)
		d.v = d.view(d.store(), "INBOX", false)
		u := d.append(d.v.m, "new", 0)
		if u < d.next {
			t.Errorf("%s: a new message got UID %d", c.name, u)
		}
		if _, err := d.v.Expunge(t.Context(), []uint32{u}); err != nil {
			t.Fatal(err)
		}
		d.sync(d.v)
		d.hear()
		if err := os.Remove(filepath.Join(d.root, indexName)); err != nil {
			t.Fatal(err)
		}
		d.check(c.name + ", and the index is gone later")
	}
}

// crowded is a file system without room for the index.
type crowded struct {
	durable.OS
	full *bool
}

type crowdedFile struct {
	durable.File
	full *bool
}

func (c crowded) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := c.OS.OpenFile(name, flag, perm)
	if n := filepath.Base(name); err == nil && (n == indexName || n == indexTmp) {
		return crowdedFile{f, c.full}, nil
	}
	return f, err
}

func (f crowdedFile) WriteAt(b []byte, off int64) (int, error) {
	if *f.full {
		return 0, syscall.ENOSPC
	}
	return f.File.WriteAt(b, off)
}

// Without room for the index everything goes on, in this process and in others, and no MODSEQ
// comes back when there is room again.
func TestNoRoomForIndex(t *testing.T) {
	d := newDamaged(t)
	full := true
	d.o.FS = crowded{full: &full}
	one, other := d.view(d.store(), "INBOX", false), d.view(d.store(), "INBOX", false)
	for i, v := range []*View{one, other, one, one, other} {
		d.sync(v)
		told := v.HighestModSeq()
		d.append(v.m, fmt.Sprint("late", i), 0)
		if _, err := v.Store(t.Context(), []uint32{1}, FlagChange{Op: Add + Op(i%2), Flags: maildir.Flagged}); err != nil {
			t.Fatal(err)
		}
		d.sync(v)
		if v.HighestModSeq() <= told || v.Len() != 4+i {
			t.Fatalf("step %d: HIGHESTMODSEQ %d after %d, %d messages", i, v.HighestModSeq(), told, v.Len())
		}
		d.modseq = max(d.modseq, v.HighestModSeq())
	}
	full = false
	for _, v := range []*View{one, other} {
		d.sync(v)
		if v.Len() != 8 || v.HighestModSeq() < d.modseq {
			t.Fatalf("%d messages, HIGHESTMODSEQ %d after %d", v.Len(), v.HighestModSeq(), d.modseq)
		}
		d.v = v
		d.hear()
	}
	d.store1(3, Add)
	d.sync(d.v)
	d.hear()
	d.check("with room again")
}

func FuzzSnapshot(f *testing.F) {
	dir := f.TempDir()
	st := (&state{head: head{validity: 7, next: 1, ceiling: 100}}).edit()
	for u := range uint32(3) {
		if err := st.add(&fresh{rec: rec{uid: u + 1, size: 5}, base: fmt.Sprint("b", u), guid: "g"}); err != nil {
			f.Fatal(err)
		}
	}
	if err := st.remove(2); err != nil {
		f.Fatal(err)
	}
	st.setKeywords([]string{"a", "", "b"})
	p := filepath.Join(dir, "seed")
	file, err := os.Create(p)
	if err != nil {
		f.Fatal(err)
	}
	s := st.done()
	if _, err := writeSnapshot(file, s); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(p)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, true)
	f.Add(appendRecord(b, &s.head, st.log), true)
	f.Add([]byte(indexMagic), false)
	f.Fuzz(func(t *testing.T, data []byte, seal bool) {
		if n := len(data); seal && n > indexFixed+4 { // or the checksum would keep all else out
			if h := binary.LittleEndian.Uint32(data[12:]); h > 4 && int64(h) <= int64(n) {
				data = bytes.Clone(data)
				binary.LittleEndian.PutUint32(data[h-4:], crc32.Checksum(data[:h-4], castagnoli()))
			}
		}
		name := filepath.Join(dir, "fuzz")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		sn, err := readSnapshot(file, int64(len(data)))
		if err != nil {
			return
		}
		e := sn.st.edit()
		if _, err := e.replay(data[sn.log:]); err != nil && err != errTorn {
			return
		}
		walk(e.done())
	})
}

// walk asks for all that a state tells: bad names are errors and nothing worse.
func walk(st *state) {
	st.each(0, st.n, func(_ int, c *chunk, r *rec) bool {
		_, _, err := lookAt(c, r)
		_, err2 := c.emailID(r)
		return err == nil && err2 == nil
	})
	_, _ = newKnown(st, nil)
	_, _ = st.regroup()
}

func FuzzLog(f *testing.F) {
	e := (&state{head: head{validity: 7, next: 1}}).edit()
	if err := e.add(&fresh{rec: rec{uid: 1, bits: bitLiteral}, base: "b", suffix: ":2,Z"}); err != nil {
		f.Fatal(err)
	}
	if err := e.change(1, look{flags: maildir.Seen}); err != nil {
		f.Fatal(err)
	}
	f.Add(e.log)
	f.Fuzz(func(t *testing.T, ops []byte) {
		e := (&state{head: head{validity: 7, next: 1}}).edit()
		if _, err := e.replay(appendRecord(nil, &head{modseq: 3}, ops)); err != nil {
			return
		}
		st := e.done()
		walk(st)
		// What was understood is written and read the same.
		again := (&state{head: head{validity: 7, next: 1}}).edit()
		if _, err := again.replay(appendRecord(nil, &e.head, e.log)); err != nil && len(e.log) > 0 {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		if n := again.done().n; n != st.n {
			t.Fatalf("%d messages, then %d", st.n, n)
		}
	})
}
