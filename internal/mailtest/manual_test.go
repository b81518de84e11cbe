package mailtest

import (
	"reflect"
	"strings"
	"testing"
)

const page = `.Sh NAME
.Bd -literal
$ not an example
.Ed
.Sh EXAMPLES
.Bd -literal -offset indent
$ printf 'a\en' | cat \e
    \-u
a
$ true
$ cat <<\(aqEND\(aq >x
a \e
$ b
END
out
.Ed
.\" not run: needs root
.Bd -literal
$ rm \-rf /
.Ed
.Sh DIAGNOSTICS
$ no
`

func TestExamples(t *testing.T) {
	got, err := Examples(page)
	want := []Example{
		{Line: 7, Command: "printf 'a\\n' | cat \\\n    -u", Want: []string{"a"}},
		{Line: 10, Command: "true"},
		{Line: 11, Command: "cat <<'END' >x\na \\\n$ b\nEND", Want: []string{"out"}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := Examples(".Sh EXAMPLES\n.Bd -literal\noutput\n.Ed\n"); err == nil {
		t.Error("output above the first command is no error")
	}
	if _, err := Examples(".Sh EXAMPLES\n.Bd -literal\n$ a \\e\n.Ed\n"); err == nil {
		t.Error("a command that does not end is no error")
	}
}

func TestMatchLines(t *testing.T) {
	for _, c := range []struct {
		want, got string
		ok        bool
	}{
		{"", "", true}, {"a", "a", true}, {"a", "b", false}, {"a", "a b", false}, {"a b", "a", false},
		{"...", "", true}, {"...", "a b c", true}, {"a ... d", "a b c d", true}, {"a ... d", "a d", true},
		{"a ... d", "a b c", false}, {"x...y", "xaby", true}, {"x...y", "xab", false}, {"x...y...", "xyz", true}, {"...y", "y", true},
		{"x...b...b", "xb", false}, {"... b ...", "a b c", true}, {"... x ...", "a b c", false}, {"", "a", false},
	} {
		if got := MatchLines(strings.Fields(c.want), strings.Fields(c.got)); got != c.ok {
			t.Errorf("%q against %q: %v", c.want, c.got, got)
		}
	}
}

func TestDocuments(t *testing.T) {
	const page = ".Op Fl -json\n.It Fl f Ar x , Fl -from Ns = Ns Ar x\n.Fl \\-dry\\-run\n.Fl v Ns Fl -max-age\n"
	for flag, want := range map[string]bool{"json": true, "f": true, "from": true, "dry-run": true, "max-age": true,
		"max": false, "j": false, "t": false, "fr": false, "v": true} {
		if got := Documents(page, flag); got != want {
			t.Errorf("Documents(%q) = %v", flag, got)
		}
	}
}

func TestOptionPart(t *testing.T) {
	for in, want := range map[string]string{
		"  -f, --from ADDRESS     a reverse-path":        "-f, --from ADDRESS",
		"  --json                 print one":             "--json",
		"  -n, --an-option-as-long-as-this VALUE see it": "-n, --an-option-as-long-as-this",
	} {
		if got := optionPart(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
