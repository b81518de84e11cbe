package envelope

import (
	"errors"
	"strings"
	"testing"
)

func TestParsePath(t *testing.T) {
	for _, c := range []struct {
		in, want, rest string
		ok             bool
	}{
		{"<>", "", "", true},
		{"<> SIZE=1", "", " SIZE=1", true},
		{"<a@b.test>", "a@b.test", "", true},
		{"<a@B.Test.> BODY=7BIT", "a@B.Test", " BODY=7BIT", true},
		{"<@x.test,@y.test:a@b.test>", "a@b.test", "", true},
		{`<"a b"@c.test>`, `"a b"@c.test`, "", true},
		{`<"a\"b@c"@d.test>`, `"a\"b@c"@d.test`, "", true},
		{`<"plain"@c.test>`, "plain@c.test", "", true},
		{"<a..b@c.test>", `"a..b"@c.test`, "", true},
		{"<a@[192.0.2.1]>", "a@[192.0.2.1]", "", true},
		{"<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]", "", true},
		{"<Postmaster>", "Postmaster", "", true},
		{"<jörg@exämple.test>", "jörg@exämple.test", "", true},
		{"<root>", "", "", false},
		{"<a@b.test", "", "", false},
		{"<a@b@c.test>", "", "", false},
		{"<@b.test>", "", "", false},
		{"<a@>", "", "", false},
		{"<a@b..test>", "", "", false},
		{"<a@-b.test\r\nRCPT>", "", "", false},
		{"<\"a\nb\"@c.test>", "", "", false},
		{"<\"a\x00\"@c.test>", "", "", false},
		{"<a\xff@c.test>", "", "", false},
		{"<a\u2028b@c.test>", "", "", false},
		{"<\"\"@c.test>", "", "", false},
		{"<a@[300.1.1.1]>", "", "", false},
		{"<" + strings.Repeat("l", 65) + "@c.test>", "", "", false},
		{"<a@" + strings.Repeat("l", 64) + ".test>", "", "", false},
		{"a@b.test", "", "", false},
	} {
		a, rest, err := ParsePath(c.in)
		if (err == nil) != c.ok {
			t.Errorf("ParsePath(%q): err = %v, want ok %v", c.in, err, c.ok)
			continue
		}
		if err != nil {
			if !errors.Is(err, ErrAddress) {
				t.Errorf("ParsePath(%q): %v is not ErrAddress", c.in, err)
			}
			continue
		}
		if a.String() != c.want || rest != c.rest {
			t.Errorf("ParsePath(%q) = %q, %q; want %q, %q", c.in, a, rest, c.want, c.rest)
		}
	}
}

// Property: what was parsed prints to something that parses to the same, and holds no
// character that a line protocol could take for its own.
func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"<>", "<a@b.test>", `<"a\"b@c"@d.test>`, "<@x:a@b.test>", "<jörg@exämple.test>", "<a@[IPv6:::1]>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, _, err := ParsePath(s)
		if err != nil {
			return
		}
		out := a.String()
		if strings.ContainsAny(out, "\r\n\x00") {
			t.Fatalf("%q: control characters in %q", s, out)
		}
		b, rest, err := ParsePath("<" + out + ">")
		if err != nil || b != a || rest != "" {
			t.Fatalf("%q -> %q -> %v %q %v", s, out, b, rest, err)
		}
	})
}

func TestParseLocal(t *testing.T) {
	a, err := ParseLocal("root", "host.test")
	if err != nil || a.String() != "root@host.test" {
		t.Fatalf("%v %v", a, err)
	}
	if _, err := ParseLocal("root, ann", "host.test"); err == nil {
		t.Fatal("two addresses were taken for one")
	}
}
