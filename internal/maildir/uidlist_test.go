package maildir

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func readList(t *testing.T, text string) *UIDList {
	t.Helper()
	l, err := ReadUIDList(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func golden(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Files of real servers, with their traps.
func TestUIDListOfServers(t *testing.T) {
	l := readList(t, golden(t, "dovecot/uidlist-stale-next"))
	if l.Validity != 1795325129 || l.Next != 6 || l.GUID != "b8fc5216c77c026b4b6c000083ecc375" || len(l.Entries) != 5 || l.Damage != nil {
		t.Errorf("header says N5, and the last UID is 5: %+v", l)
	}
	if e := l.Entries[4]; e.UID != 5 || e.Base != "1795325127.M499857P27734.vm,S=20,W=23" {
		t.Errorf("%+v", e)
	}
	text := golden(t, "dovecot/uidlist-extra-keys")
	l = readList(t, text)
	if l.Ceiling != 1048576 || !reflect.DeepEqual(l.Extra, []string{"Yfoo", "Zbar"}) {
		t.Errorf("header: %+v", l)
	}
	want := UIDEntry{
		UID: 2, Base: "1795324574.M839421P16772.vm,S=19,W=22", File: "1795324574.M839421P16772.vm,S=19,W=22",
		Size: -1, Wire: -1, POP3: "abc", Order: 7, Extra: []string{"Qzz"},
	}
	if !reflect.DeepEqual(l.Entries[0], want) {
		t.Errorf("%+v", l.Entries[0])
	}
	if got := string(l.AppendTo(nil)); got != text {
		t.Errorf("written:\n%s\nDovecot wrote:\n%s", got, text)
	}
	l = readList(t, golden(t, "courier/uiddb"))
	if l.Version != 1 || l.Validity != 795324898 || l.Next != 5 || len(l.Entries) != 4 || l.Entries[3].Base != "1000000004.M1P1.host" {
		t.Errorf("Courier's: %+v", l)
	}
	if got, _, _ := strings.Cut(string(l.AppendTo(nil)), "\n"); got != "3 V795324898 N5" {
		t.Errorf("converted: %q", got)
	}
}

func TestUIDListDamage(t *testing.T) {
	for _, c := range []struct {
		name, text string
		validity   uint32
		next       uint32
		uids       []uint32
		damage     int
		tail       int64
	}{
		{"keys in any order", "3 N9 Gabc V7\n", 7, 9, nil, 1, 0},
		{"a tail without a line end", "3 V7 N1\n1 :a\n2 :b", 7, 2, []uint32{1}, 0, 4},
		{"a tail of NULs", "3 V7 N1\n1 :a\n\x00\x00\x00", 7, 2, []uint32{1}, 0, 3},
		{"NULs in the middle", "3 V7 N1\n1 :a\n\x00\x00\x003 :b\n5 :c\n", 7, 6, []uint32{1, 5}, 1, 0},
		{"a UID twice", "3 V7 N1\n1 :a\n1 :b\n2 :c\n", 7, 3, []uint32{1, 2}, 1, 0},
		{"UIDs go down", "3 V7 N1\n4 :a\n3 :b\n", 7, 6, []uint32{4}, 1, 0},
		{"a bad last line keeps its UID", "3 V7 N1\n1 :a\n8 no name\n", 7, 9, []uint32{1}, 1, 0},
		{"a number nobody can believe", "3 V7 N1\n1 :a\n4000000000 no name\n", 7, 3, []uint32{1}, 1, 0},
		{"the largest number is no UID", "3 V7 N1\n4294967295 :a\n", 7, 2, nil, 1, 0},
		{"the header is gone", "12 :a\n13 S5 :b\n", 0, 14, []uint32{12, 13}, 1, 0},
		{"the header is another line's", "hello\n12 :a\n", 0, 13, []uint32{12}, 1, 0},
		{"the header is empty", "\n12 :a\n", 0, 13, []uint32{12}, 1, 0},
		{"the header has no validity", "3 N5\n2 :a\n", 0, 5, []uint32{2}, 1, 0},
		{"validity is no number", "3 Vx N5\n2 :a\n", 0, 5, []uint32{2}, 1, 0},
		{"next is no number", "3 V7 Nx\n2 :a\n", 7, 3, []uint32{2}, 1, 0},
		{"no line end at all", "3 V7 N5", 0, 0, nil, 1, 7},
		{"empty", "", 0, 0, nil, 0, 0},
		{"names with blanks and colons", "3 V7 N1\n1 W3 :a b :c:2,S\n", 7, 2, []uint32{1}, 0, 0},
		{"a name that leads elsewhere", "3 V7 N1\n1 :../x\n2 :a\n", 7, 3, []uint32{2}, 1, 0},
		{"version 1", "1 7 5\n1 a\n3 b:2,S\n", 7, 5, []uint32{1, 3}, 0, 0},
		{"a line as long as a book", "3 V7 N1\n1 :" + strings.Repeat("x", 9000) + "\n2 :a\n", 7, 3, []uint32{2}, 1, 0},
	} {
		l := readList(t, c.text)
		var uids []uint32
		for _, e := range l.Entries {
			uids = append(uids, e.UID)
		}
		if l.Validity != c.validity || l.Next != c.next || !reflect.DeepEqual(uids, c.uids) || len(l.Damage) != c.damage || l.Tail != c.tail {
			t.Errorf("%s: V%d N%d %v damage %v tail %d", c.name, l.Validity, l.Next, uids, l.Damage, l.Tail)
		}
		if l.Size+l.Tail != int64(len(c.text)) {
			t.Errorf("%s: %d + %d octets of %d", c.name, l.Size, l.Tail, len(c.text))
		}
	}
	if _, err := ReadUIDList(strings.NewReader("4 V7 N1\n")); !errors.Is(err, ErrNewer) {
		t.Errorf("a later version: %v", err)
	}
}

// What was appended is read on its own, with the same result.
func TestUIDListInPieces(t *testing.T) {
	text := golden(t, "dovecot/uidlist-stale-next")
	whole := readList(t, text)
	for i := range len(text) + 1 {
		var l UIDList
		for _, end := range []int{i, len(text)} {
			if err := l.Parse(text[l.Size:end], nil); err != nil {
				t.Fatal(err)
			}
			if i <= strings.IndexByte(text, '\n') {
				l.Damage = nil // of a header that was not there yet
			}
		}
		if !reflect.DeepEqual(&l, whole) {
			t.Fatalf("cut at %d: %+v", i, l)
		}
	}
}

// The empty P key means the base name, for Dovecot too.
func TestUIDListPOP3(t *testing.T) {
	l := readList(t, "3 V7 N3\n1 P :a:2,S\n2 PUID5-3 O4 :b\n")
	if l.Entries[0].POP3 != "a" || l.Entries[1].POP3 != "UID5-3" || l.Entries[1].Order != 4 {
		t.Errorf("%+v", l.Entries)
	}
	if got := string(l.AppendTo(nil)); got != "3 V7 N3\n1 P :a:2,S\n2 PUID5-3 O4 :b\n" {
		t.Errorf("%q", got)
	}
}

func FuzzUIDList(f *testing.F) {
	f.Add("3 V7 N3 Gb8fc5216c77c026b4b6c000083ecc375 Xmodseq=5 Yx\n1 S5 W6 P O3 Gx Zy :a:2,S\n2 :b\n3 :")
	f.Add("1 7 3\n1 a:2,S\n2 b\n")
	f.Add("1 :a\n\x00\x00")
	f.Add("3 V1 N1\n5 O0 S W- :a\n9 x\n")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ReadUIDList(strings.NewReader(text))
		if err != nil {
			return
		}
		last := uint32(0)
		for _, e := range l.Entries {
			if e.UID <= last || e.UID >= l.Next || e.Base == "" || !strings.HasPrefix(e.File, e.Base) {
				t.Fatalf("%q: %+v", text, e)
			}
			last = e.UID
		}
		if l.Size+l.Tail != int64(len(text)) {
			t.Fatalf("%q: %d + %d", text, l.Size, l.Tail)
		}
		if l.Validity == 0 {
			return
		}
		printed := string(l.AppendTo(nil))
		back := new(UIDList)
		if err := back.Parse(printed, nil); err != nil || back.Damage != nil {
			t.Fatalf("%q: printed %q: %v %v", text, printed, err, back.Damage)
		}
		l.Version, l.Damage, l.Size, l.Tail = back.Version, nil, back.Size, 0
		if !reflect.DeepEqual(l, back) {
			t.Fatalf("%q:\n%+v\nprinted and parsed:\n%+v", text, l, back)
		}
	})
}

// A million lines are read without an allocation a line.
func BenchmarkUIDList(b *testing.B) {
	l := &UIDList{Validity: 1}
	for i := range 100_000 {
		l.Entries = append(l.Entries, UIDEntry{UID: uint32(i + 1), Size: -1, Wire: -1, Base: "1795325127.M429048P27726.mail.example.org,S=12345,W=12456"})
	}
	text := string(l.AppendTo(nil))
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if err := new(UIDList).Parse(text, func(*UIDEntry) { n++ }); err != nil || n != 100_000 {
			b.Fatal(n, err)
		}
	}
}
