package maildir

import (
	"testing"
)

func TestKeywords(t *testing.T) {
	text := golden(t, "dovecot/keywords")
	k, damage := ParseKeywords([]byte(text))
	if k[0] != "foo" || k[1] != "$Label1" || k[2] != "bar" || k[3] != "" || damage != nil || string(k.AppendTo(nil)) != text {
		t.Errorf("Dovecot's: %q %v", k, damage)
	}
	if k.Index("FOO") != 0 || k.Index("nothing") != -1 {
		t.Errorf("%d %d", k.Index("FOO"), k.Index("nothing"))
	}
	for _, c := range []struct {
		name, text string
		at         int
		want       string
		damage     int
	}{
		{"a hole", "3 x\n", 3, "x", 0},
		{"the last letter", "25 x\n", 25, "x", 0},
		{"no letter", "26 x\n", 25, "", 1},
		{"no keyword", "3\n", 3, "", 1},
		{"an empty keyword", "3 \n", 3, "", 1},
		{"a number twice", "3 x\n3 y\n", 3, "x", 1},
		{"a keyword twice serves both letters", "3 x\n4 X\n", 4, "X", 1},
		{"no line end", "3 x", 3, "x", 0},
		{"UTF-8, as others write", "3 größe\n", 3, "größe", 0},
		{"two words", "3 x y\n", 3, "", 1},
	} {
		k, damage := ParseKeywords([]byte(c.text))
		if k[c.at] != c.want || len(damage) != c.damage {
			t.Errorf("%s: %q %v", c.name, k, damage)
		}
	}
	for name, want := range map[string]bool{"$Junk": true, "x": true, "": false, "a b": false, "a]": false, `\Seen`: false, "größe": false, "a*": false} {
		if ValidKeyword(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}

func FuzzKeywords(f *testing.F) {
	f.Add("0 foo\n1 $Label1\n3 x\n")
	f.Add("99 a\n\x00")
	f.Fuzz(func(t *testing.T, text string) {
		k, _ := ParseKeywords([]byte(text))
		if back, _ := ParseKeywords(k.AppendTo(nil)); back != k {
			t.Errorf("%q: %q, written and read %q", text, k, back)
		}
	})
}
