package accounts

import (
	"strings"
	"testing"

	"pennypost/internal/envelope"
)

// Property: whatever stands in an aliases file, each target prints to something that reads as
// the same target, and nothing grows beyond its input.
func FuzzAliases(f *testing.F) {
	for _, s := range []string{aliases, "a: b\n", `"a b": "c,d", |"x y", \z`, "@d.test: @e.test", "a:\\\n b", "x: <y@z.test>, Z <z@z.test>", "a: :include:/x", "a: \"|/bin/p \\\"q\\\"\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tab, err := parseAliasFile("f", s, 0)
		if err != nil {
			t.Fatal(err)
		}
		for key, al := range tab.byKey {
			if key != strings.ToLower(key) || len(al.Targets) > len(s)+1 {
				t.Fatalf("key %q, %d targets", key, len(al.Targets))
			}
			for _, tg := range al.Targets {
				sameTarget(t, tg)
			}
		}
	})
}

func FuzzForward(f *testing.F) {
	for _, s := range []string{"ann, bob@x.test\n", "\\ann\n|/bin/vacation ann\n", "\"|p a,b\"\n# no\n/var/mail/x\n~/y", "|'"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, tg := range ParseForward(s) {
			sameTarget(t, tg)
		}
	})
}

func sameTarget(t *testing.T, tg Target) {
	t.Helper()
	if tg.Kind == ToError {
		return
	}
	again := parseTarget(trim(tg.String()))
	if again != tg {
		t.Fatalf("%#v prints as %s, which reads as %#v", tg, tg, again)
	}
}

// Property: a users line gives a Maildir below the template, or an error.
func FuzzUsers(f *testing.F) {
	for _, s := range []string{users, "a:b:c:d:e:f:g:h", "../x@a.test:", "\"a/b\"@a.test:", "a@a.test:::::/h::mail=maildir:~/M", "::", "a@a.test:::::::mail=%"} {
		f.Add(s)
	}
	a := &Accounts{o: Options{Domains: []string{"a.test"}}}
	f.Fuzz(func(t *testing.T, s string) {
		tab, _ := a.parseUsers("f", s, 0)
		sec, _ := a.parseSecrets("f", s, 0)
		if len(tab.order) != len(tab.lines) || len(sec.order) > len(sec.byKey) {
			t.Fatal("keys are lost")
		}
		for _, key := range tab.order {
			addr, err := envelope.ParseAddress(key)
			if err != nil {
				t.Fatalf("key %q: %v", key, err)
			}
			if d, ok := plainKey(key); ok && (d != addr.Domain || addr.String() != key) {
				t.Fatalf("plain key %q is %q", key, addr)
			}
			m, err := tab.find(addr, "/mail/%d/%u")
			if err != nil {
				continue
			}
			if m.Extra["mail"] == "" && m.Extra["userdb_mail"] == "" &&
				(!strings.HasPrefix(m.Maildir, "/mail/") || strings.Count(m.Maildir, "/") != 3 || strings.HasSuffix(m.Maildir, "/..")) {
				t.Fatalf("%q: Maildir %q", key, m.Maildir)
			}
		}
	})
}
