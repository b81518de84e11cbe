package maildir

import (
	"strings"
	"testing"
	"time"
)

func TestParseName(t *testing.T) {
	for _, c := range []struct {
		file, print string // print "" is file
		want        Name
	}{
		{file: "1.M2P3.h", want: Name{Base: "1.M2P3.h"}},
		{file: "1.h:2,", want: Name{Base: "1.h", Info: true}},
		{file: "1.h,S=5:2,FRS", want: Name{Base: "1.h,S=5", Info: true, Flags: Flagged | Replied | Seen}},
		{file: "1.h:2,DFPRSTaz", want: Name{Base: "1.h", Info: true, Flags: 63, Keywords: 1<<25 | 1}},
		{file: "1.h:2,SF", print: "1.h:2,FS", want: Name{Base: "1.h", Info: true, Flags: Flagged | Seen}},
		{file: "1.h:2,SSaa", print: "1.h:2,Sa", want: Name{Base: "1.h", Info: true, Flags: Seen, Keywords: 1}},
		{file: "1.h:2,FXS", print: "1.h:2,FSX", want: Name{Base: "1.h", Info: true, Flags: Flagged | Seen, Rest: "X"}},
		{file: "1.h:2,F1G,more:S", print: "1.h:2,1FG,more:S", want: Name{Base: "1.h", Info: true, Flags: Flagged, Rest: "1G,more:S"}},
		{file: "1.h:2,,x", want: Name{Base: "1.h", Info: true, Rest: ",x"}},
		{file: "1.h:1,SF", want: Name{Base: "1.h", Rest: ":1,SF"}},
		{file: "1.h:", want: Name{Base: "1.h", Rest: ":"}},
		{file: "", want: Name{}},
	} {
		got := ParseName(c.file)
		if got != c.want {
			t.Errorf("%q: %+v", c.file, got)
		}
		if c.print == "" {
			c.print = c.file
		}
		if s := got.String(); s != c.print {
			t.Errorf("%q printed: %q, want %q", c.file, s, c.print)
		}
	}
}

func TestNameWith(t *testing.T) {
	for _, c := range []struct{ file, want string }{
		{"1.h", "1.h:2,Sb"},
		{"1.h:1,x", "1.h:2,Sb"},
		{"1.h:2,DXa,keep", "1.h:2,SXb,keep"},
	} {
		if got := ParseName(c.file).With(Seen, 2).String(); got != c.want {
			t.Errorf("%q: %q, want %q", c.file, got, c.want)
		}
	}
}

func TestNameSizes(t *testing.T) {
	for _, c := range []struct {
		base     string
		s, w     int64
		okS, okW bool
	}{
		{"1.h,S=12,W=13", 12, 13, true, true},
		{"1.h,W=13,S=12", 12, 13, true, true},
		{"1.h,S=12,x=1", 12, 0, true, false},
		{"1.h", 0, 0, false, false},
		{"1.h,S=", 0, 0, false, false},
		{"1.h,S=12a", 0, 0, false, false},
		{"1.h,S=-1", 0, 0, false, false},
		{"1.h,S=12.3,W=4", 0, 4, false, true},
		{"1.h,S=99999999999999999999", 0, 0, false, false},
		{"S=5", 0, 0, false, false},
	} {
		s, w, okS, okW := Name{Base: c.base}.Sizes()
		if s != c.s || w != c.w || okS != c.okS || okW != c.okW {
			t.Errorf("%q: %d %d %v %v", c.base, s, w, okS, okW)
		}
	}
}

func FuzzName(f *testing.F) {
	for _, s := range []string{"1.M2P3.h,S=4,W=5:2,FSab", "1.h:2,FX,more", "1.h:1,x", ":2,", "a:2,zYxW"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, file string) {
		n := ParseName(file)
		back := ParseName(n.String())
		if back != n {
			t.Errorf("%q: %+v, printed and parsed %+v", file, n, back)
		}
		if !strings.HasPrefix(file, n.Base) {
			t.Errorf("%q: base %q", file, n.Base)
		}
		m := ParseName(n.With(Seen, 4).String())
		if m.Base != n.Base || m.Flags != Seen || m.Keywords != 4 || n.Info && m.Rest != n.Rest {
			t.Errorf("%q with other flags: %+v", file, m)
		}
	})
}

func TestNamer(t *testing.T) {
	n := NewNamer("a/b:c,d", func() time.Time { return time.Unix(5, 6000) })
	a, b := n.Base(), n.Base()
	if a == b || !strings.HasPrefix(a, "5.M000006P") || !strings.HasSuffix(a, `.a\057b\072c_d`) || !ValidName(WithSizes(a, 1, 2)) {
		t.Errorf("%q %q", a, b)
	}
	if CompareBase(a, b) >= 0 {
		t.Errorf("%q is not before %q", a, b)
	}
}

func TestValidName(t *testing.T) {
	for file, want := range map[string]bool{
		"1.h": true, "a b": true, "x:2,S": true, "é": true,
		"": false, ".x": false, ":2,": false, "a/b": false, "a\nb": false, "a\x00": false, "a\r": false,
		strings.Repeat("x", 255): true, strings.Repeat("x", 256): false,
	} {
		if ValidName(file) != want {
			t.Errorf("%q: %v", file, !want)
		}
	}
}

func TestBaseFor(t *testing.T) {
	n := NewNamer("ex.example.test", nil)
	const id = "0123456789abcdef0123456789abcdef"
	for _, c := range []struct{ id, want string }{{id, id}, {"", ""}, {"a:b/c", ""}, {id + "0", ""}} {
		base := n.BaseFor(c.id)
		if got := EmailIDIn(WithSizes(base, 10, 12)); got != c.want || !ValidName(base) || !strings.HasSuffix(base, ".ex.example.test") {
			t.Errorf("%q: %s tells %q", c.id, base, got)
		}
	}
	for _, base := range []string{"", "1", "1.E", "1.M1E" + id + "x.h", "E" + id + ".M1.h"} {
		if got := EmailIDIn(base); got != "" {
			t.Errorf("%s tells %q", base, got)
		}
	}
}
