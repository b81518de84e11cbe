package accounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"pennypost/internal/envelope"
)

// A name that the file's own form would make another one, or none, is refused; nothing is written.
func TestEditNames(t *testing.T) {
	p := put(t, t.TempDir(), "users", "ann@a.test::\n")
	for local, ok := range map[string]bool{
		"a:b": false, "#x": false, "# y": true, "Ann": false, `a"b`: true, "a b": true, "x#": true, "-z": true, " s": true, "ü": true,
	} {
		addr := envelope.Address{Local: local, Domain: "a.test"}
		for what, err := range map[string]error{
			"user": AddUser(p, "a.test", addr, "", "", true), "secret": SetSecret(p, "a.test", addr, []string{"{S}x"}, true, true),
		} {
			if (err == nil) != ok || err != nil && !errors.Is(err, envelope.ErrAddress) {
				t.Errorf("%s %q: %v", what, local, err)
			}
		}
	}
}

func TestEdits(t *testing.T) {
	dir := t.TempDir()
	p := put(t, dir, "secrets", "# people\nann@a.test:{PLAIN}x:1:2::/h::e=1\n\n  # more\nBob:{PLAIN}y\nlast@a.test:{PLAIN}z")
	if err := os.Chmod(p, 0o640); err != nil {
		t.Fatal(err)
	}
	at := func(l string) envelope.Address { return envelope.Address{Local: l, Domain: "a.test"} }
	for _, c := range []struct {
		do   func() error
		err  error
		want string
	}{
		{func() error { return SetSecret(p, "a.test", at("ann"), []string{"{S}new"}, false, false) }, nil,
			"# people\nann@a.test:{S}new:1:2::/h::e=1\n\n  # more\nBob:{PLAIN}y\nlast@a.test:{PLAIN}z\n"},
		{func() error { return SetSecret(p, "a.test", at("bob"), []string{"{S}b"}, false, false) }, nil,
			"# people\nann@a.test:{S}new:1:2::/h::e=1\n\n  # more\nBob:{S}b\nlast@a.test:{PLAIN}z\n"},
		{func() error { return SetSecret(p, "a.test", at("bob"), []string{"{S}c"}, true, false) }, ErrExists, ""},
		{func() error { return SetSecret(p, "a.test", at("eve"), []string{"{S}c"}, false, false) }, ErrNoUser, ""},
		{func() error { return AddUser(p, "a.test", at("bob"), "", "", false) }, ErrExists, ""},
		{func() error { return SetSecret(p, "a.test", at("eve"), []string{"{S}e"}, true, true) }, nil, ""}, // dry
		{func() error { _, err := Remove(p, "a.test", at("bob"), true); return err }, nil, ""},             // dry
		{func() error { return AddUser(p, "a.test", at("eve"), "/home/eve", "q=1", false) }, nil,
			"# people\nann@a.test:{S}new:1:2::/h::e=1\n\n  # more\nBob:{S}b\nlast@a.test:{PLAIN}z\neve@a.test:::::/home/eve::q=1\n"},
		{func() error { return SetSecret(p, "a.test", at("eve"), []string{"{S}e"}, true, false) }, nil,
			"# people\nann@a.test:{S}new:1:2::/h::e=1\n\n  # more\nBob:{S}b\nlast@a.test:{PLAIN}z\neve@a.test:{S}e::::/home/eve::q=1\n"},
		{func() error { _, err := Remove(p, "a.test", at("bob"), false); return err }, nil,
			"# people\nann@a.test:{S}new:1:2::/h::e=1\n\n  # more\nlast@a.test:{PLAIN}z\neve@a.test:{S}e::::/home/eve::q=1\n"},
		// The records of one password come and go together.
		{func() error {
			return SetSecret(p, "a.test", at("ann"), []string{"{S}2", "{SCRAM-X}k", "{SCRAM-Y}l"}, false, false)
		}, nil,
			"# people\nann@a.test:{S}2:1:2::/h::e=1\nann@a.test:{SCRAM-X}k\nann@a.test:{SCRAM-Y}l\n\n  # more\nlast@a.test:{PLAIN}z\neve@a.test:{S}e::::/home/eve::q=1\n"},
		{func() error { return SetSecret(p, "a.test", at("ann"), []string{"{S}3"}, true, false) }, ErrExists, ""},
		{func() error { return SetSecret(p, "a.test", at("ann"), []string{"{S}3"}, false, false) }, nil,
			"# people\nann@a.test:{S}3:1:2::/h::e=1\n\n  # more\nlast@a.test:{PLAIN}z\neve@a.test:{S}e::::/home/eve::q=1\n"},
		{func() error { return SetSecret(p, "a.test", at("last"), []string{"{S}l", "{SCRAM-X}k"}, false, false) }, nil,
			"# people\nann@a.test:{S}3:1:2::/h::e=1\n\n  # more\nlast@a.test:{S}l\nlast@a.test:{SCRAM-X}k\neve@a.test:{S}e::::/home/eve::q=1\n"},
		{func() error { _, err := Remove(p, "a.test", at("last"), false); return err }, nil,
			"# people\nann@a.test:{S}3:1:2::/h::e=1\n\n  # more\neve@a.test:{S}e::::/home/eve::q=1\n"},
	} {
		before, _ := os.ReadFile(p)
		if err := c.do(); !errors.Is(err, c.err) {
			t.Errorf("%v, want %v", err, c.err)
		}
		if c.want == "" {
			c.want = string(before)
		}
		if b, _ := os.ReadFile(p); string(b) != c.want {
			t.Errorf("got  %q\nwant %q", b, c.want)
		}
	}
	if fi, _ := os.Stat(p); fi.Mode().Perm() != 0o640 {
		t.Errorf("rights changed to %v", fi.Mode())
	}
	if err := AddUser(p, "a.test", at("x"), "/a:b", "", false); err == nil {
		t.Error("a colon in a field was written")
	}
	// A new file is made with its rights, and a link stays a link.
	q := filepath.Join(dir, "new-secrets")
	if err := SetSecret(q, "a.test", at("x"), []string{"{S}x"}, true, false); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(q); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi, err)
	}
	l := filepath.Join(dir, "link")
	if err := os.Symlink(q, l); err != nil {
		t.Fatal(err)
	}
	if err := SetSecret(l, "a.test", at("y"), []string{"{S}y"}, true, false); err != nil {
		t.Fatal(err)
	}
	if fi, _ := os.Lstat(l); fi.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced")
	}
	if b, _ := os.ReadFile(q); string(b) != "x@a.test:{S}x\ny@a.test:{S}y\n" {
		t.Errorf("%q", b)
	}
}

// Edits at the same time lose nothing.
func TestEditsTogether(t *testing.T) {
	p := put(t, t.TempDir(), "users", "")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			a := envelope.Address{Local: fmt.Sprintf("u%d", i), Domain: "a.test"}
			if err := AddUser(p, "a.test", a, "", "", false); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if b, _ := os.ReadFile(p); strings.Count(string(b), "\n") != 20 {
		t.Errorf("%s", b)
	}
}

func TestList(t *testing.T) {
	a, _ := fixture(t)
	var got []string
	if err := a.List(func(l Listed) error {
		got = append(got, fmt.Sprintf("%s %s %v %v", l.Address, l.Mailbox, l.Password, l.Err != ""))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := `ann@a.test /mail/a.test/ann true false
bob@a.test /mail/a.test/bob true false
carl@b.test /srv/carl/Mail false false
hal@b.test  false true
info@b.test /mail/b.test/info false false
strange@a.test  false true
net@a.test  true false
odd@a.test  true false`
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got\n%s", s)
	}
}
