package maildir

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pennypost/internal/durable"
)

func TestMUTF7(t *testing.T) {
	for name, want := range map[string]string{
		"Sent":          "Sent",
		"Größe":         "Gr&APYA3w-e",
		"Tom & Jerry":   "Tom &- Jerry",
		"日本":            "&ZeVnLA-",
		"a\U0001F4E7b":  "a&2D3c5w-b",
		"&":             "&-",
		"ü&ü":           "&APw-&-&APw-",
		"~peter/台北/日本語": "~peter/&U,BTFw-/&ZeVnLIqe-",
	} {
		if got := EncodeMUTF7(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
		if got, ok := DecodeMUTF7(want); !ok || got != name {
			t.Errorf("%q back: %q %v", want, got, ok)
		}
	}
	for _, s := range []string{"&", "&APY", "&AGE-", "&APZ-", "&2D0-", "&!-", "Größe", "a&A-", "&APY-&APY-", "x\x01"} {
		if got, ok := DecodeMUTF7(s); ok {
			t.Errorf("%q is taken for %q", s, got)
		}
	}
}

func FuzzMUTF7(f *testing.F) {
	for _, s := range []string{"Gr&APYA3w-e", "&-", "&2D3c5w-", "日本"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if name, ok := DecodeMUTF7(s); ok && EncodeMUTF7(name) != s {
			t.Errorf("%q is %q, which is %q", s, name, EncodeMUTF7(name))
		}
		if valid := strings.ToValidUTF8(s, ""); !strings.Contains(valid, "\uFFFD") {
			if back, ok := DecodeMUTF7(EncodeMUTF7(valid)); !ok || back != valid {
				t.Errorf("%q: %q %v", valid, back, ok)
			}
		}
	})
}

func TestTreeDir(t *testing.T) {
	plus, utf8 := &Tree{Root: "/m"}, &Tree{Root: "/m", UTF8: true}
	fsl := &Tree{Root: "/m", Layout: LayoutFS}
	esc := &Tree{Root: "/m", Escape: '\\'}
	fsEsc := &Tree{Root: "/m", Layout: LayoutFS, Escape: '\\'}
	for _, c := range []struct {
		tree       *Tree
		name, want string // want "" is a refusal
	}{
		{plus, "INBOX", "/m"},
		{plus, "Sent", "/m/.Sent"},
		{plus, "Work/Größe", "/m/.Work.Gr&APYA3w-e"},
		{plus, "INBOX/Kid", "/m/.INBOX.Kid"},
		{plus, "cur", "/m/.cur"},
		{utf8, "Work/Größe", "/m/.Work.Größe"},
		{utf8, "Tom & Jerry", "/m/.Tom & Jerry"},
		{fsl, "Work/Größe", "/m/Work/Gr&APYA3w-e"},
		{fsl, "a.b", "/m/a.b"},
		{esc, "a.b/~c", `/m/.a\2eb.\7ec`},
		{esc, `a\b`, `/m/.a\5cb`},
		{fsEsc, "cur", `/m/\63ur`},
		{fsEsc, "..", `/m/\2e.`},
		{plus, "a.b", ""},
		{plus, "", ""},
		{plus, "inbox", ""},
		{plus, "/a", ""},
		{plus, "a//b", ""},
		{plus, "a/", ""},
		{plus, "..", ""},
		{plus, "a/../../b", ""},
		{plus, "a\x00", ""},
		{plus, "a\nb", ""},
		{plus, "a\xff", ""},
		{plus, strings.Repeat("a/", 64) + "b", ""},
		{plus, strings.Repeat("x", 255), ""},
		{fsl, "..", ""},
		{fsl, "a/../b", ""},
		{fsl, ".", ""},
		{fsl, "a/cur", ""},
		{fsl, "new", ""},
		{fsl, "dovecot-uidlist", ""},
		{fsl, "pennypost-index", ""},
		{fsl, "subscriptions", ""},
		{fsl, strings.Repeat("x", 256), ""},
	} {
		got, err := c.tree.Dir(c.name)
		if got != c.want || (err != nil) != (c.want == "") || err != nil && !errors.Is(err, ErrBadMailbox) {
			t.Errorf("%+v %q: %q %v", *c.tree, c.name, got, err)
		}
		if c.want == "" {
			continue
		}
		rel, err := filepath.Rel("/m", got)
		if err != nil {
			t.Fatal(err)
		}
		if name, ok := c.tree.Name(rel); name != c.name || !ok {
			t.Errorf("%+v %q back: %q %v", *c.tree, rel, name, ok)
		}
	}
	for _, rel := range []string{".", ".a..b", "..", ".Größe", "x", ".inbox", ".a&b"} {
		if name, ok := plus.Name(rel); ok && name != Inbox {
			t.Errorf("%q is mailbox %q", rel, name)
		}
	}
}

// The places are those where Dovecot looks with CONTROL= and INDEX=.
func TestTreeBeside(t *testing.T) {
	for _, c := range []struct {
		layout     Layout
		name, want string
	}{
		{LayoutPlus, "INBOX", "/c/.INBOX"},
		{LayoutPlus, "Work/x", "/c/.Work.x"},
		{LayoutFS, "INBOX", "/c/INBOX"},
		{LayoutFS, "Work/x", "/c/Work/x"},
	} {
		tree := &Tree{Root: "/m", Layout: c.layout, Control: "/c"}
		if got, err := tree.ControlDir(c.name); got != c.want || err != nil {
			t.Errorf("%q: %q %v", c.name, got, err)
		}
		if _, err := tree.ControlDir("a//b"); !errors.Is(err, ErrBadMailbox) {
			t.Errorf("a bad name: %v", err)
		}
		if got, err := tree.IndexDir("INBOX"); got != "/m" || err != nil {
			t.Errorf("no place for indexes: %q %v", got, err)
		}
	}
}

func FuzzTree(f *testing.F) {
	f.Add("Work/Größe", byte('\\'), false)
	f.Add("a.b/~c", byte(0), true)
	f.Add("../../etc", byte('%'), true)
	f.Fuzz(func(t *testing.T, name string, escape byte, fsLayout bool) {
		if escape != '\\' && escape != '%' {
			escape = 0
		}
		tree := &Tree{Root: "/root/of", Escape: escape, UTF8: len(name)%2 == 0}
		if fsLayout {
			tree.Layout = LayoutFS
		}
		dir, err := tree.Dir(name)
		if err != nil {
			return
		}
		rel, err := filepath.Rel("/root/of", dir)
		if err != nil || rel == ".." || strings.HasPrefix(rel, "../") || filepath.Join("/root/of", rel) != dir {
			t.Fatalf("%q leads to %q", name, dir)
		}
		if back, ok := tree.Name(rel); !ok || back != name {
			t.Fatalf("%q: %q is %q %v", name, rel, back, ok)
		}
	})
}

func mkdirs(t *testing.T, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTreeList(t *testing.T) {
	for _, c := range []struct {
		name string
		tree Tree
		dirs []string
		want []string // "-" in front: not selectable
		bad  []string
	}{
		{
			"Maildir++", Tree{}, []string{
				"cur", "new", "tmp", ".Sent/cur", ".Work.Gr&APYA3w-e/cur", ".INBOX.Kid/cur", ".nothing", "plain/cur",
				".Größe/cur", ".inbox/cur", ".a..b/cur",
			},
			[]string{"INBOX", "INBOX/Kid", "Sent", "-Work", "Work/Größe"},
			[]string{".Größe", ".a..b", ".inbox"},
		},
		{
			"UTF-8", Tree{UTF8: true}, []string{"cur", ".Größe/cur", ".Tom & Jerry/cur"},
			[]string{"INBOX", "Größe", "Tom & Jerry"}, nil,
		},
		{
			"fs", Tree{Layout: LayoutFS}, []string{"cur", "Work/Gr&APYA3w-e/cur", "a.b/cur", ".x/cur", "x/y/z/cur", "empty"},
			[]string{"INBOX", ".x", "-Work", "Work/Größe", "a.b", "-x", "-x/y", "x/y/z"}, nil,
		},
		{"no inbox", Tree{}, []string{".Sent/cur"}, []string{"Sent"}, nil},
	} {
		c.tree.Root = t.TempDir()
		for _, d := range c.dirs {
			mkdirs(t, filepath.Join(c.tree.Root, d))
		}
		found, bad, err := c.tree.List(durable.OS{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range found {
			mark := ""
			if !f.Selectable {
				mark = "-"
			}
			got = append(got, mark+f.Name)
			if dir, err := c.tree.Dir(f.Name); err != nil || dir != f.Path {
				t.Errorf("%s: %+v is %q (%v)", c.name, f, dir, err)
			}
		}
		slices.Sort(bad)
		if !reflect.DeepEqual(got, c.want) || !reflect.DeepEqual(bad, c.bad) {
			t.Errorf("%s: %q %q", c.name, got, bad)
		}
	}
}

// A link that leads back must not be followed for ever.
func TestTreeLoop(t *testing.T) {
	root := t.TempDir()
	mkdirs(t, filepath.Join(root, "cur"), filepath.Join(root, "a", "cur"))
	if err := os.Symlink("..", filepath.Join(root, "a", "up")); err != nil {
		t.Fatal(err)
	}
	found, _, err := (&Tree{Root: root, Layout: LayoutFS}).List(durable.OS{})
	if err != nil || len(found) != 3 {
		t.Errorf("%+v %v", found, err)
	}
}

func TestSubscriptions(t *testing.T) {
	plus, utf8, fsl := &Tree{}, &Tree{UTF8: true}, &Tree{Layout: LayoutFS}
	for _, c := range []struct {
		name  string
		tree  *Tree
		text  string
		names []string
		kept  []string
	}{
		{"Dovecot's", plus, golden(t, "dovecot/subscriptions"), []string{"INBOX", "Sent", "Work/Größe", "Tom & Jerry", "日本", "Gone"}, nil},
		{"Dovecot's in UTF-8", utf8, golden(t, "dovecot/subscriptions-utf8"), []string{"Work/Größe", "INBOX"}, nil},
		{"UTF-8 in spite of the layout", plus, "V\t2\n\nWork\tGröße\n", []string{"Work/Größe"}, nil},
		{"old, Maildir++", plus, "Sent\nWork.Gr&APYA3w-e\ninbox\n", []string{"Sent", "Work/Größe", "INBOX"}, nil},
		{"old, fs", fsl, "a.b\nWork/x\n", []string{"a.b", "Work/x"}, nil},
		{"twice, and without an end", plus, "Sent\nSent\nWork", []string{"Sent", "Work"}, nil},
		{"not to be understood", plus, "V\t2\n\na&b\nx\x01\t\nok\n", []string{"ok"}, []string{"a&b", "x\x01\t"}},
		{"a slash in a level", plus, "V\t2\n\na/b\n", nil, []string{"a/b"}},
		{"empty", plus, "", nil, nil},
	} {
		s := c.tree.ParseSubscriptions([]byte(c.text))
		if !reflect.DeepEqual(s.Names, c.names) || !reflect.DeepEqual(s.Kept, c.kept) {
			t.Errorf("%s: %q %q", c.name, s.Names, s.Kept)
		}
		back := c.tree.ParseSubscriptions(c.tree.AppendSubscriptions(nil, s))
		if !reflect.DeepEqual(back, s) {
			t.Errorf("%s: written and read %q", c.name, back)
		}
	}
	text := golden(t, "dovecot/subscriptions")
	if got := string(plus.AppendSubscriptions(nil, plus.ParseSubscriptions([]byte(text)))); got != text {
		t.Errorf("written: %q", got)
	}
}

func FuzzSubscriptions(f *testing.F) {
	f.Add("V\t2\n\nWork\tGr&APYA3w-e\nx\x01t\n", false)
	f.Add("a.b\nSent\ninbox", true)
	f.Fuzz(func(t *testing.T, text string, utf8 bool) {
		tree := &Tree{UTF8: utf8}
		s := tree.ParseSubscriptions([]byte(text))
		back := tree.ParseSubscriptions(tree.AppendSubscriptions(nil, s))
		if !reflect.DeepEqual(back.Names, s.Names) {
			t.Errorf("%q: %q, written and read %q", text, s.Names, back.Names)
		}
	})
}
