package imapwire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func reader(s string) *Reader { return NewReader(strings.NewReader(s), Limits{}) }

func TestCommand(t *testing.T) {
	r := reader("a1 LOGIN \"a\\\"b\" {3+}\r\np w SP\r\nb2 APPEND foo (\\Seen $x) \" 1-Feb-1994 21:52:25 -0800\" {5}\r\nhello\r\n")
	asked := 0
	r.Continue = func(Literal) error { asked++; return nil }
	if err := r.Begin(); err != nil {
		t.Fatal(err)
	}
	tag := r.Tag()
	r.SP()
	name := r.Atom()
	r.SP()
	user := r.AString()
	r.SP()
	pass := r.AString()
	r.SP()
	rest := r.Atom()
	if err := r.End(); err != nil || fmt.Sprintf("%s %s %s %s %s", tag, name, user, pass, rest) != "a1 LOGIN a\"b p w SP" {
		t.Fatalf("%s %s %s %s %s: %v", tag, name, user, pass, rest, err)
	}
	if err := r.Begin(); err != nil {
		t.Fatal(err)
	}
	r.Tag()
	r.SP()
	r.Atom()
	r.SP()
	box := r.Mailbox(false)
	r.SP()
	flags := r.Flags()
	r.SP()
	when := r.DateTime()
	r.SP()
	l := r.LiteralHead()
	b, err := io.ReadAll(r.Body())
	if err != nil || r.End() != nil || box != "foo" || !slices.Equal(flags, []string{`\Seen`, "$x"}) || when.Unix() != 760168345 || l.Size != 5 || string(b) != "hello" {
		t.Fatalf("%q %q %v %v %q: %v %v", box, flags, when.Unix(), l, b, err, r.Err())
	}
	if asked != 1 {
		t.Errorf("asked for %d literals, want the synchronizing one alone", asked)
	}
	if err := r.Begin(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// After any mistake the next command is found, wherever the mistake was.
func TestSkip(t *testing.T) {
	for _, in := range []string{
		"a $ LIST\r\n",
		"a B )\r\n",
		"a B \"open\r\n",
		"a B {3+}\r\n\r\n\r c\r\n",
		"a ( {3+}\r\nabc {4+}\r\n\r\n\r\n x\r\n",
		"a B {99999999999999999999}\r\n",
		"a B {5000000+}\r\n" + strings.Repeat("x", 5_000_000) + "\r\n",
		"a B {5000000}\r\n", // never sent
		"a B {5}\r\n",       // not wanted: never sent
		"a B \x00\r\n",
		"\r\n",
		" \n",
		"a B " + strings.Repeat("(", 100) + "\r\n",
	} {
		r := reader(in + "z OK\r\n")
		r.Continue = func(Literal) error { return nil }
		if err := r.Begin(); err != nil {
			t.Fatal(err)
		}
		r.Tag()
		r.SP()
		if strings.HasPrefix(in, "a B {50") {
			r.Atom()
			r.SP()
			r.AString()
		} else if strings.HasPrefix(in, "a B ((") {
			r.Atom()
			r.SP()
			r.Skipped()
		} else {
			r.Atom()
		}
		err := r.End()
		if err == nil || !Recoverable(err) {
			t.Errorf("%.40q: %v", in, err)
			continue
		}
		if err := r.Begin(); err != nil {
			t.Errorf("%.40q: next: %v", in, err)
			continue
		}
		if tag := r.Tag(); string(tag) != "z" {
			t.Errorf("%.40q: next command begins with %q", in, tag)
		}
	}
}

func TestLimits(t *testing.T) {
	r := NewReader(strings.NewReader("a "+strings.Repeat("x", 2000)+"\r\n"), Limits{Line: 1000})
	if err := r.Begin(); err != nil {
		t.Fatal(err)
	}
	r.Tag()
	r.SP()
	r.Atom()
	if err := r.Skip(); !errors.Is(err, ErrTooLong) {
		t.Errorf("a long line: %v", err)
	}
	r = NewReader(strings.NewReader("a {60+}\r\n"+strings.Repeat("x", 60)+" {60+}\r\n"+strings.Repeat("y", 60)+"\r\nb\r\n"), Limits{Literal: 100})
	if err := r.Begin(); err != nil {
		t.Fatal(err)
	}
	r.Tag()
	r.SP()
	r.String()
	r.SP()
	r.String()
	var big *TooBigError
	if err := r.End(); !errors.As(err, &big) || big.Literal.Size != 60 {
		t.Errorf("literals of 120 octets: %v", err)
	}
	if err := r.Begin(); err != nil || string(r.Tag()) != "b" {
		t.Errorf("then: %v", err)
	}
	// A size announced costs nothing.
	r = NewReader(strings.NewReader("a {1000000000+}\r\nabc"), Limits{Literal: 2 << 30})
	if err := r.Begin(); err != nil {
		t.Fatal(err)
	}
	r.Tag()
	r.SP()
	if n := testing.AllocsPerRun(1, func() { r.String() }); n > 20 || cap(r.hold) > 1<<20 {
		t.Errorf("%v allocations, %d octets held", n, cap(r.hold))
	}
	if !errors.Is(r.Err(), io.ErrUnexpectedEOF) {
		t.Errorf("cut off: %v", r.Err())
	}
}

func TestResponse(t *testing.T) {
	r := reader("* 12 FETCH (FLAGS (\\Seen) BODY[HEADER.FIELDS (A B)]<0> {3}\r\na\r\n BODYSTRUCTURE ((\"a\" NIL)(\"b\" 1) \"c\") UID 7)\r\n* 2 EXISTS\r\n")
	if err := r.Begin(); err != nil {
		t.Fatal(err)
	}
	r.Want('*')
	r.SP()
	n := r.Number()
	r.SP()
	r.Atom()
	r.SP()
	var uid uint32
	r.List(func() {
		item := r.Name()
		if Fold(item, "BODY") {
			r.skipWord()
		}
		r.SP()
		if Fold(item, "UID") {
			uid = r.Number()
		} else {
			r.Skipped()
		}
	})
	if err := r.End(); err != nil || n != 12 || uid != 7 {
		t.Fatalf("%d %d %v", n, uid, err)
	}
	if err := r.Begin(); err != nil {
		t.Fatal(err)
	}
	r.Skipped()
	r.SP()
	if n := r.Number(); n != 2 {
		t.Errorf("next: %d", n)
	}
}

func TestSet(t *testing.T) {
	for _, c := range []struct {
		in   string
		last uint32
		want string
	}{
		{"1", 9, "1"},
		{"3:1,5,*", 9, "1:3,5,9"},
		{"1:*,1:*,2:4", 9, "1:9"},
		{"*:4", 2, "2:4"},
		{"*", 0, ""},
		{"1:*", 0, ""},
		{"1,2,3,5", 0, "1:3,5"},
		{"4294967295,4294967294", 1, "4294967294:4294967295"},
	} {
		r := reader(c.in + "\r\n")
		if err := r.Begin(); err != nil {
			t.Fatal(err)
		}
		s := r.Set()
		if err := r.End(); err != nil {
			t.Errorf("%s: %v", c.in, err)
		}
		if got := string(AppendSet(nil, s)); got != c.in {
			t.Errorf("%s printed is %s", c.in, got)
		}
		res := s.Resolve(c.last)
		if got := string(AppendSet(nil, res)); got != c.want {
			t.Errorf("%s of %d is %s, want %s", c.in, c.last, got, c.want)
		}
		if res.Contains(6) != (c.want == "1:9") {
			t.Errorf("%s contains 6: %v", c.want, res.Contains(6))
		}
	}
	for _, bad := range []string{"", "0", "1:", "1,,2", "a", "4294967296", "1-2", ":1"} {
		r := reader(bad + " \r\n")
		if err := r.Begin(); err != nil {
			t.Fatal(err)
		}
		r.Set()
		if r.SP(); r.Err() == nil {
			t.Errorf("%q is taken for a set", bad)
		}
	}
	var s Set
	for _, n := range []uint32{1, 2, 3, 7, 9, 10} {
		s = s.Add(n)
	}
	if got := string(AppendSet(nil, s)); got != "1:3,7,9:10" {
		t.Errorf("added: %s", got)
	}
}

func TestWriter(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	w.Raw("* LIST () \"/\" ").Mailbox("Entwürfe").CRLF()
	w.Raw("* ").Number(1).Raw(" FETCH (BODY[] ").Literal(3, strings.NewReader("abc")).Raw(")").CRLF()
	w.String("a\"b").Raw(" ").String("é").Raw(" ").String("a\x00b").CRLF()
	if b.Len() > 0 {
		t.Error("written before Flush")
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	const want = "* LIST () \"/\" Entw&APw-rfe\r\n* 1 FETCH (BODY[] {3}\r\nabc)\r\n\"a\\\"b\" {2}\r\né {5}\r\na\uFFFDb\r\n"
	if b.String() != want {
		t.Errorf("got  %q\nwant %q", b.String(), want)
	}
	if err := w.Literal(4, strings.NewReader("abc")).Flush(); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("a short literal: %v", err)
	}
	if err := w.CRLF().Flush(); err == nil {
		t.Error("the failure is forgotten")
	}
}

func TestDates(t *testing.T) {
	at := time.Date(2026, 11, 2, 5, 6, 7, 0, time.FixedZone("", -3*3600-1800))
	b := AppendDateTime(nil, at)
	if string(b) != `" 2-Nov-2026 05:06:07 -0330"` {
		t.Errorf("%s", b)
	}
	for _, in := range []string{`" 2-Nov-2026 05:06:07 -0330"`, `"2-nov-2026 05:06:07 -0330"`, `"02-Nov-2026 05:06:07 -0330"`} {
		r := reader(in + "\r\n")
		if err := r.Begin(); err != nil {
			t.Fatal(err)
		}
		if got := r.DateTime(); r.End() != nil || !got.Equal(at) {
			t.Errorf("%s: %v %v", in, got, r.Err())
		}
	}
	r := reader("1-Feb-1994 \"30-Mar-2000\" x\r\n")
	if err := r.Begin(); err != nil {
		t.Fatal(err)
	}
	a := r.Date()
	r.SP()
	c := r.Date()
	r.SP()
	if a.Unix() != 760060800 || c.Unix() != 954374400 || r.Err() != nil {
		t.Errorf("%v %v %v", a, c, r.Err())
	}
	if r.Date(); r.Err() == nil {
		t.Error("x is no date")
	}
}

func FuzzRoundTrip(f *testing.F) {
	f.Add("a b", uint32(1), uint32(0), true)
	f.Add("é\"\\", uint32(7), uint32(3), false)
	f.Fuzz(func(t *testing.T, s string, from, to uint32, utf8ok bool) {
		s = strings.ReplaceAll(s, "\x00", "")
		b := AppendString(nil, s, utf8ok)
		b = AppendAString(append(b, ' '), s, utf8ok)
		b = AppendSet(append(b, ' '), Set{{from, to}, {to, to}})
		b = append(b, "\r\n"...)
		r := NewReader(iotest.OneByteReader(bytes.NewReader(b)), Limits{Literal: 1 << 20, Line: 1 << 20})
		if err := r.Begin(); err != nil {
			t.Fatal(err)
		}
		s1 := string(r.String())
		r.SP()
		s2 := string(r.AString())
		r.SP()
		set := r.Set()
		if err := r.End(); err != nil || s1 != s || s2 != s || len(set) != 2 || set[0] != (Range{from, to}) {
			t.Fatalf("%q: %q %q %v: %v", b, s1, s2, set, err)
		}
	})
}

// transcript takes everything from in and says what it saw.
func transcript(in io.Reader, server bool) string {
	r := NewReader(in, Limits{Line: 500, Literal: 300, Depth: 5})
	if server {
		r.Continue = func(Literal) error { return nil }
	}
	var b strings.Builder
	for range 200 {
		if err := r.Begin(); err != nil {
			fmt.Fprintf(&b, "begin: %v\n", err)
			if !Recoverable(err) {
				break
			}
			continue
		}
		fmt.Fprintf(&b, "%q ", r.Tag())
		r.SP()
		switch c := r.Peek(); c {
		case 'a':
			fmt.Fprintf(&b, "%q", r.AString())
		case 'd':
			r.Is('d')
			fmt.Fprint(&b, r.DateTime().Unix())
		case 'f':
			r.Is('f')
			fmt.Fprint(&b, r.Flags())
		case 'l':
			r.Is('l')
			l := r.LiteralHead()
			v, err := io.ReadAll(io.LimitReader(r.Body(), 10))
			fmt.Fprint(&b, l, v, err)
		case 'm':
			r.Is('m')
			fmt.Fprintf(&b, "%q", r.Mailbox(false))
		case 'n':
			r.Is('n')
			fmt.Fprintf(&b, "%q", r.NString())
		case 's':
			r.Is('s')
			fmt.Fprint(&b, r.Set().Resolve(5))
		case 't':
			fmt.Fprintf(&b, "%q", r.Text())
		default:
			for r.Err() == nil && !r.AtEnd() {
				r.Skipped()
				if !r.AtEnd() {
					r.SP()
				}
			}
		}
		fmt.Fprintf(&b, " end: %v\n", r.End())
		if cap(r.hold) > 128<<10 {
			fmt.Fprintf(&b, "holds %d octets", cap(r.hold))
			break
		}
	}
	return b.String()
}

// What a Reader sees does not depend on how the octets arrive, and it holds no more than it
// may.
func FuzzReader(f *testing.F) {
	f.Add("a1 LOGIN x {3+}\r\nabc\r\n", true)
	f.Add("* 1 FETCH (BODY[] {3}\r\nabc FLAGS (\\Seen))\r\n", false)
	f.Add("a d\" 1-Feb-1994 21:52:25 -0800\"\r\nb f(\\a b)\r\nc l~{4}\r\nabcd\r\nd s1:*,2\r\ne m&AOk-\r\n", true)
	f.Add("a l{4}\r\nabcd x\r\nb nNIL\r\nc t rest of it\r\n", true)
	f.Fuzz(func(t *testing.T, in string, server bool) {
		want := transcript(strings.NewReader(in), server)
		if got := transcript(iotest.OneByteReader(strings.NewReader(in)), server); got != want {
			t.Errorf("%q\nat once:\n%s\nbyte by byte:\n%s", in, want, got)
		}
		if strings.Contains(want, "holds") {
			t.Errorf("%q: %s", in, want)
		}
	})
}

func BenchmarkCommand(b *testing.B) {
	cmd := strings.Repeat("a0001 UID FETCH 1:*,7,9:12 (FLAGS UID ENVELOPE BODY.PEEK[HEADER.FIELDS (DATE FROM)])\r\n", 100)
	b.ReportAllocs()
	for b.Loop() {
		r := reader(cmd)
		for r.Begin() == nil {
			r.Tag()
			r.SP()
			r.Atom()
			r.SP()
			r.Atom()
			r.SP()
			r.Set()
			r.SP()
			r.Skipped()
			if err := r.End(); err != nil {
				b.Fatal(err)
			}
		}
	}
}
