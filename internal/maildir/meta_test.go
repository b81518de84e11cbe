package maildir

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"pennypost/internal/durable"
)

const metaText = `pennypost-meta 1
special-use "\\Sent"
acl "bob" "lrs"
metadata "/private/comment" "two\nlines"
key "urlauth" "\x00\xff"
keyword 26 "$Foo"
tagged "1.M2.h,S=3" 26,40
tagged "a b" 27
later "something" 5
`

func TestMeta(t *testing.T) {
	m, damage, err := ParseMeta([]byte(metaText))
	if err != nil || damage != nil {
		t.Fatal(damage, err)
	}
	want := &Meta{
		SpecialUse: []string{`\Sent`}, ACL: map[string]string{"bob": "lrs"}, Metadata: map[string]string{"/private/comment": "two\nlines"},
		Keywords: map[int]string{26: "$Foo"}, Tagged: map[string][]int{"1.M2.h,S=3": {26, 40}, "a b": {27}},
		Keys: map[string]string{"urlauth": "\x00\xff"}, Kept: []string{`later "something" 5`},
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("%+v", m)
	}
	if got := string(m.AppendTo(nil)); got != metaText {
		t.Errorf("written: %s", got)
	}
	for _, c := range []struct {
		name, line string
		damage     int
		check      func(*Meta) bool
	}{
		{"the later line holds", "acl \"x\" \"l\"\nacl \"x\" \"r\"\n", 0, func(m *Meta) bool { return m.ACL["x"] == "r" }},
		{"taken out", "acl \"x\" \"l\"\nacl \"x\" \"\"\n", 0, func(m *Meta) bool { return len(m.ACL) == 0 }},
		{"no keyword any more", "tagged \"x\" 26\ntagged \"x\" -\n", 0, func(m *Meta) bool { return len(m.Tagged) == 0 }},
		{"a torn end", "acl \"x\" \"l\"\nacl \"x\" \"r", 0, func(m *Meta) bool { return m.ACL["x"] == "l" }},
		{"a keyword that has a letter", "keyword 25 \"x\"\n", 1, func(m *Meta) bool { return len(m.Keywords) == 0 }},
		{"a keyword of two words", "keyword 26 \"x y\"\n", 1, func(m *Meta) bool { return len(m.Keywords) == 0 }},
		{"numbers that are none", "tagged \"x\" 26,\ntagged \"x\" a\ntagged \"x\"26\ntagged x 26\n", 4, func(m *Meta) bool { return len(m.Tagged) == 0 }},
		{"no quotes", "special-use Sent\nacl x y\nacl \"x\"\n", 3, func(m *Meta) bool { return len(m.SpecialUse) == 0 }},
		{"too much", "special-use \"a\" \"b\"\n", 1, func(m *Meta) bool { return len(m.SpecialUse) == 0 }},
	} {
		m, damage, err := ParseMeta([]byte("pennypost-meta 1\n" + c.line))
		if err != nil || len(damage) != c.damage || !c.check(m) {
			t.Errorf("%s: %+v %v %v", c.name, m, damage, err)
		}
	}
	if _, _, err := ParseMeta([]byte("pennypost-meta 2\n")); !errors.Is(err, ErrNewer) {
		t.Errorf("a later version: %v", err)
	}
	if _, _, err := ParseMeta([]byte("hello\n")); err == nil {
		t.Error("another file is taken for one of ours")
	}
}

func TestMetaFile(t *testing.T) {
	dir := t.TempDir()
	m, err := ReadMeta(durable.OS{}, dir)
	if err != nil || !reflect.DeepEqual(m, NewMeta()) {
		t.Errorf("none: %+v %v", m, err)
	}
	m.SpecialUse = []string{`\Junk`}
	if err := WriteMeta(durable.OS{}, dir, m); err != nil {
		t.Fatal(err)
	}
	if back, err := ReadMeta(durable.OS{}, dir); err != nil || !reflect.DeepEqual(back, m) {
		t.Errorf("%+v %v", back, err)
	}
	if err := os.WriteFile(filepath.Join(dir, MetaName), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadMeta(durable.OS{}, dir); err == nil {
		t.Error("damage is not noticed")
	}
}

func FuzzMeta(f *testing.F) {
	f.Add(metaText)
	f.Add("pennypost-meta 1\ntagged \"x\" 30,26,26\nacl \"\" \"x\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		m, _, err := ParseMeta([]byte(text))
		if err != nil {
			return
		}
		back, damage, err := ParseMeta(m.AppendTo(nil))
		if err != nil || damage != nil || !reflect.DeepEqual(back, m) {
			t.Errorf("%q: %+v, written and read %+v %v %v", text, m, back, damage, err)
		}
	})
}
