package smtpd

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSenders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "senders")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	put("# who may send as whom\n\nAnn: Boss@far.test, bob@home.test, @Lists.test, @.below.test\nann@home.test: extra@far.test\nbob@home.test: *\ncarl: box@far.test\n")
	table := NewSenders(path, "home.test")
	try := func(role, login, from string) string {
		t.Helper()
		f := newFixture(role)
		f.o.Auth.Senders = table
		if role == Local {
			uid := 1000
			f.peer.UID = &uid
			f.o.Login = func(context.Context, int) (string, error) { return login, nil }
			return f.say(t, "EHLO c.test", "MAIL FROM:<"+from+">")[1]
		}
		c := f.submissions(t, nil)
		c.play(step{"EHLO c.test", "250"}, step{plain(login, "secret"), "235"})
		return c.ask("MAIL FROM:<" + from + ">")
	}
	for _, c := range []struct{ role, login, from, want string }{
		{Submissions, "ann", "ann@home.test", "250"},
		{Submissions, "ann", "boss@far.test", "250"},
		{Submissions, "ann", "BOSS@FAR.test", "250"},
		{Submissions, "ann", "other@far.test", "550 5.7.1"},
		{Submissions, "ann", "boss+x@far.test", "550 5.7.1"}, // what a + means there is not known
		{Submissions, "ann", "bob@home.test", "250"},
		{Submissions, "ann", "bob+x@home.test", "250"},
		{Submissions, "ann", "any@lists.test", "250"},
		{Submissions, "ann", "any@x.lists.test", "550 5.7.1"},
		{Submissions, "ann", "any@x.y.below.test", "250"},
		{Submissions, "ann", "any@below.test", "550 5.7.1"},
		{Submissions, "ann", "extra@far.test", "250"},
		{Submissions, "bob", "any@where.test", "250"},
		{Submissions, "bob", "nobody@home.test", "250"},
		{Submissions, "eve", "boss@far.test", "550 5.7.1"},
		{Local, "carl", "box@far.test", "250"},
		{Local, "carl", "boss@far.test", "550 5.7.1"},
	} {
		if got := try(c.role, c.login, c.from); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s %s as %s: %s, want %s", c.role, c.login, c.from, got, c.want)
		}
	}
	// A table that cannot be used defers what needs it, and nothing else.
	again := func() { table = NewSenders(path, "home.test") } // it is looked at once a second
	for _, text := range []string{"ann boss@far.test\n", "ann: boss\n", "@: x@far.test\n", "ann: \n", "ann: @\n"} {
		put(text)
		again()
		if got := try(Submissions, "ann", "boss@far.test"); !strings.HasPrefix(got, "451 4.3") {
			t.Errorf("%q: %s", text, got)
		}
	}
	if got := try(Submissions, "ann", "ann+x@home.test"); !strings.HasPrefix(got, "250") {
		t.Errorf("own address, broken table: %s", got)
	}
	put("ann: boss@far.test\n")
	again()
	if got := try(Submissions, "ann", "boss@far.test"); !strings.HasPrefix(got, "250") {
		t.Errorf("repaired: %s", got)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	again()
	if got := try(Submissions, "ann", "boss@far.test"); !strings.HasPrefix(got, "451") {
		t.Errorf("writable by all: %s", got)
	}
}

func FuzzSender(f *testing.F) {
	for _, s := range []string{"boss@far.test", "@lists.test", "@.below.test", "*", "@", "cn:x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		clean, err := cleanSender(s)
		if err != nil {
			return
		}
		if again, err := cleanSender(clean); err != nil || again != clean {
			t.Fatalf("%q: %q, and again %q (%v)", s, clean, again, err)
		}
	})
}
