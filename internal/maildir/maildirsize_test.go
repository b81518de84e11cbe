package maildir

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestReadMaildirSize(t *testing.T) {
	for _, c := range []struct {
		name, text  string
		limit, used Quota
		bad         bool
	}{
		{"both limits", "1000S,10C\n100 1\n200 2\n-50 -1\n", Quota{1000, 10}, Quota{250, 2}, false},
		{"size only", "1000S\n", Quota{1000, 0}, Quota{}, false},
		{"no limit", "\n5 1\n", Quota{}, Quota{5, 1}, false},
		{"padded, as Courier writes", "1000S\n          5           1\n   \n", Quota{1000, 0}, Quota{5, 1}, false},
		{"a torn end", "1000S\n5 1\n10", Quota{1000, 0}, Quota{5, 1}, false},
		{"a huge sum", "1S\n9223372036854775807 1\n9223372036854775807 1\n", Quota{1, 0}, Quota{1<<63 - 1, 2}, false},
		{"empty", "", Quota{}, Quota{}, true},
		{"no line end", "1000S", Quota{}, Quota{}, true},
		{"an unknown limit", "1000X\n", Quota{}, Quota{}, true},
		{"a negative limit", "-1S\n", Quota{}, Quota{}, true},
		{"text", "hello\n", Quota{}, Quota{}, true},
		{"one number", "1000S\n5\n", Quota{}, Quota{}, true},
		{"too long", strings.Repeat("1 1\n", maxMaildirSize/4+1), Quota{}, Quota{}, true},
	} {
		s, err := ReadMaildirSize(strings.NewReader(c.text))
		if (err != nil) != c.bad || !c.bad && (s.Limit != c.limit || s.Used != c.used) {
			t.Errorf("%s: %+v %v", c.name, s, err)
		}
	}
}

func FuzzMaildirSize(f *testing.F) {
	f.Add("1000S,10C\n100 1\n-50 -1\n")
	f.Add("\n  5  1\n10")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ReadMaildirSize(strings.NewReader(text))
		if err != nil {
			return
		}
		if s.Limit.Octets < 0 || s.Limit.Messages < 0 {
			t.Errorf("%q: %+v", text, s)
		}
		again, err := ReadMaildirSize(bytes.NewReader(AppendMaildirSize(nil, s.Limit, s.Used)))
		if err != nil || again.Limit != s.Limit || again.Used != s.Used {
			t.Errorf("%q: %+v, written and read again %+v (%v)", text, s, again, err)
		}
	})
}

func TestRecountRules(t *testing.T) {
	now := time.Unix(1e9, 0)
	limit := Quota{Octets: 100, Messages: 10}
	ok := Size{Limit: limit, Used: Quota{50, 5}, Octets: 100, Lines: 3}
	over := ok
	over.Used.Octets, over.Lines = 101, 1
	for _, c := range []struct {
		name     string
		change   func(*Size)
		base     Size
		modified time.Time
		want     bool
	}{
		{"in order", func(*Size) {}, ok, now.Add(-time.Hour), false},
		{"as long as the rules allow", func(s *Size) { s.Octets = 5119 }, ok, now, false},
		{"full", func(s *Size) { s.Octets = 5120 }, ok, now, true},
		{"another limit", func(s *Size) { s.Limit.Octets = 99 }, ok, now, true},
		{"less than nothing", func(s *Size) { s.Used.Messages = -1 }, ok, now, true},
		{"over, counted just now", func(*Size) {}, over, now, false},
		{"over, counted long ago", func(*Size) {}, over, now.Add(-16 * time.Minute), true},
		{"over by additions", func(s *Size) { s.Lines = 2 }, over, now, true},
		{"at the limit", func(s *Size) { s.Used.Octets, s.Lines = 100, 2 }, over, now, false},
	} {
		s := c.base
		c.change(&s)
		if got := s.Recount(limit, c.modified, now); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// Courier pads to 14 octets, so that lines of the usual size are written over nobody's.
func TestSizeLine(t *testing.T) {
	for change, want := range map[Quota]string{
		{100, 1}:            "100 1        \n",
		{-100, -1}:          "-100 -1      \n",
		{12345678901234, 1}: "12345678901234 1\n",
	} {
		if got := string(AppendSizeLine(nil, change)); got != want {
			t.Errorf("%+v: %q, want %q", change, got, want)
		}
	}
}
