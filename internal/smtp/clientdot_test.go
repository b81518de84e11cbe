package smtp

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"unicode/utf8"
)

func dotAll(t testing.TB, text string, chunk int) string {
	t.Helper()
	var out bytes.Buffer
	d := NewDotWriter(&out)
	for i := 0; i < len(text); i += chunk {
		if _, err := io.WriteString(d, text[i:min(i+chunk, len(text))]); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestDotWriter(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	for _, c := range []struct{ name, in, want string }{
		{"nothing", "", ".\r\n"},
		{"plain", "A: b\n\nc\n", "A: b\r\n\r\nc\r\n.\r\n"},
		{"CRLF stays", "A: b\r\n\r\nc\r\n", "A: b\r\n\r\nc\r\n.\r\n"},
		{"no last line end", "A: b\n\nc", "A: b\r\n\r\nc\r\n.\r\n"},
		{"dots", "A: b\n\n.\n..\n.x\nx.\n", "A: b\r\n\r\n..\r\n...\r\n..x\r\nx.\r\n.\r\n"},
		{"dot at the very start", ".\n", "..\r\n.\r\n"},
		{"lone CR", "A: b\n\na\rb\n", "A: b\r\n\r\na b\r\n.\r\n"},
		{"CR CR LF", "\na\r\r\n", "\r\na \r\n.\r\n"},
		{"smuggling", "\na\r.\r\nb\n.\r\r\nMAIL\n", "\r\na .\r\nb\r\n.. \r\nMAIL\r\n.\r\n"},
		{"CR at the end", "\nab\r", "\r\nab\r\n.\r\n"},
		{"998 octets", "\n" + x(998) + "\n", "\r\n" + x(998) + "\r\n.\r\n"},
		{"998 octets and CR", "\n" + x(998) + "\r\n", "\r\n" + x(998) + "\r\n.\r\n"},
		{"999 octets", "\n" + x(999) + "\n", "\r\n" + x(998) + "\r\nx\r\n.\r\n"},
		{"999 octets and no end", "\n" + x(999), "\r\n" + x(998) + "\r\nx\r\n.\r\n"},
		{"break before a dot", "\n" + x(998) + ".\n", "\r\n" + x(998) + "\r\n..\r\n.\r\n"},
		{"break between characters", "\n" + x(997) + "é\n", "\r\n" + x(997) + "\r\né\r\n.\r\n"},
		{"break not for what is no UTF-8", "\n" + x(995) + "\x80\x80\x80\x80\x80\n", "\r\n" + x(995) + "\r\n\x80\x80\x80\x80\x80\r\n.\r\n"},
		{"fold at white space", "A: " + x(600) + " " + x(600) + "\n\n", "A: " + x(600) + "\r\n " + x(600) + "\r\n\r\n.\r\n"},
		{"fold at a tab", "A: b\t" + x(1200) + "\n", "A: b\r\n\t" + x(997) + "\r\n " + x(203) + "\r\n.\r\n"},
		{"fold without white space", "A:" + x(1200) + "\n", "A:" + x(996) + "\r\n " + x(204) + "\r\n.\r\n"},
		{"fold before trailing white space", "A: b c" + strings.Repeat(" ", 1200) + "\n", "A: b\r\n c" + strings.Repeat(" ", 996) + "\r\n.\r\n"},
		{"white space only", "A:" + strings.Repeat(" ", 3000) + "y\n\n", "A:" + strings.Repeat(" ", 996) + "\r\n" + strings.Repeat(" ", 8) + "y\r\n\r\n.\r\n"},
		{"body is not folded", "\nA: " + x(600) + " " + x(600) + "\n", "\r\nA: " + x(600) + " " + x(394) + "\r\n" + x(206) + "\r\n.\r\n"},
	} {
		for _, chunk := range []int{1 << 20, 1000, 7, 1} {
			if got := dotAll(t, c.in, chunk); got != c.want {
				t.Errorf("%s, %d at a time:\n got %q\nwant %q", c.name, chunk, short(got), short(c.want))
				break
			}
		}
	}
}

func short(s string) string {
	for _, c := range []string{"x", " "} {
		for n := 1000; n > 50; n-- {
			s = strings.ReplaceAll(s, strings.Repeat(c, n), "<"+c+">")
		}
	}
	return s
}

// A writer gets blocks, and the last one holds the end of the text together with the dot.
func TestDotWriterBlocks(t *testing.T) {
	var sizes []int
	var last []byte
	d := NewDotWriter(writerFunc(func(p []byte) (int, error) {
		sizes = append(sizes, len(p))
		last = append(last[:0], p...)
		return len(p), nil
	}))
	for range 10 {
		io.WriteString(d, strings.Repeat(strings.Repeat("y", 70)+"\n", 1000))
	}
	d.Close()
	if len(sizes) > 24 || !bytes.HasSuffix(last, []byte("y\r\n.\r\n")) {
		t.Errorf("writes of %d", sizes)
	}
	for _, n := range sizes[:len(sizes)-1] {
		if n < clientBlock {
			t.Errorf("a block of %d octets", n)
		}
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// dotModel is what must come out where no line is too long, made slowly from the whole text.
func dotModel(text string) []string {
	if text == "" {
		return nil
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, l := range lines {
		lines[i] = strings.ReplaceAll(strings.TrimSuffix(l, "\r"), "\r", " ")
	}
	return lines
}

func FuzzDotWriter(f *testing.F) {
	f.Add("A: b\n\n.\nc\r\n..\r", 3)
	f.Add("A: "+strings.Repeat("x y", 700)+"\n\n"+strings.Repeat("é", 1200)+"\n.", 100)
	f.Add(strings.Repeat(" ", 2500)+"\n"+strings.Repeat(".", 1500), 1)
	f.Fuzz(func(t *testing.T, text string, chunk int) {
		if chunk < 1 {
			chunk = 1
		}
		got := dotAll(t, text, chunk)
		if whole := dotAll(t, text, len(text)+1); whole != got {
			t.Fatalf("in parts of %d: %q, at once: %q", chunk, got, whole)
		}
		body, ok := strings.CutSuffix(got, ".\r\n")
		if !ok || body != "" && !strings.HasSuffix(body, "\r\n") {
			t.Fatalf("bad end: %q", got)
		}
		var lines []string
		if body != "" {
			lines = strings.Split(strings.TrimSuffix(body, "\r\n"), "\r\n")
		}
		for i, l := range lines {
			if l == "." || strings.ContainsAny(l, "\r\n") {
				t.Fatalf("line %q in %q", l, got)
			}
			l = strings.TrimPrefix(l, ".")
			if len(l) > MaxTextLine {
				t.Fatalf("line of %d octets", len(l))
			}
			lines[i] = l
		}
		checkLines(t, dotModel(text), lines)
	})
}

// checkLines tells whether got is want with lines over 998 octets broken, nothing else.
func checkLines(t *testing.T, want, got []string) {
	t.Helper()
	header := true
	for _, w := range want {
		if len(got) == 0 {
			t.Fatalf("line %q is missing", w)
		}
		if w == "" {
			header = false
		}
		g := got[0]
		got = got[1:]
		if len(w) <= MaxTextLine {
			if g != w {
				t.Fatalf("line %q became %q", w, g)
			}
			continue
		}
		rest, ok := strings.CutPrefix(w, g)
		if !ok {
			t.Fatalf("line %q begins as %q", w, g)
		}
		for rest != "" {
			if header && strings.Trim(rest, " \t") == "" {
				rest = ""
				break
			}
			if len(got) == 0 {
				t.Fatalf("%q of a line is missing", rest)
			}
			g, got = got[0], got[1:]
			if utf8.ValidString(w) && !utf8.ValidString(g) {
				t.Fatalf("a character was cut: %q", g)
			}
			if header {
				if strings.Trim(g, " \t") == "" || g[0] != ' ' && g[0] != '\t' {
					t.Fatalf("continuation %q", g)
				}
				// White space that filled a whole line is left out.
				skipped := strings.TrimLeft(rest, " \t")
				switch {
				case strings.HasPrefix(rest, g):
					rest = rest[len(g):]
				case strings.HasPrefix(rest, g[1:]):
					rest = rest[len(g)-1:]
				case strings.HasSuffix(rest[:len(rest)-len(skipped)]+g, g) && strings.HasPrefix(skipped, strings.TrimLeft(g, " \t")):
					rest = skipped[len(strings.TrimLeft(g, " \t")):]
				default:
					t.Fatalf("continuation %q of %q", g, rest)
				}
				continue
			}
			if rest, ok = strings.CutPrefix(rest, g); !ok || g == "" {
				t.Fatalf("continuation %q", g)
			}
		}
	}
	if len(got) > 0 {
		t.Fatalf("lines too many: %q", got)
	}
}

func TestScanText(t *testing.T) {
	for _, c := range []struct {
		name, in string
		wire     bool
		want     Shape
	}{
		{"nothing", "", false, Shape{}},
		{"plain", "A: b\n\nc\n", false, Shape{Size: 11, Header: 6}},
		{"CRLF", "A: b\r\n\r\nc\r\n", true, Shape{Size: 11, Header: 8}},
		{"no last line end", "A: b\n\nc", false, Shape{Size: 11, Header: 6}},
		{"eight in the header", "A: \xc3\xa9\n\nc\n", false, Shape{Size: 12, Header: 7, HeaderEight: true}},
		{"eight in the body", "A: b\n\n123456789\xe9\n", false, Shape{Size: 20, Header: 6, BodyEight: true}},
		{"long", "A: b\n\n" + strings.Repeat("x", 999) + "\n", false, Shape{Size: 1009, Header: 6, Long: true}},
		{"NUL", "A: b\n\nx\x00\n", false, Shape{Size: 12, Header: 6, Binary: true}},
		{"wire with lone LF", "A: b\r\n\r\nc\n", true, Shape{Size: 11, Header: 8, Binary: true}},
		{"wire with lone CR", "A: b\r\n\r\nc\rd\r\n", true, Shape{Size: 13, Header: 8, Binary: true}},
	} {
		for _, r := range []io.Reader{strings.NewReader(c.in), &oneByte{c.in}} {
			got, err := ScanText(r, c.wire)
			if err != nil || got != c.want {
				t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
			}
		}
		// RFC 1870 counts what the dot writer writes, less dots and the end.
		if !c.want.Long && !c.want.Binary {
			if n := len(dotAll(t, c.in, 100)) - 3; int64(n) != c.want.Size {
				t.Errorf("%s: size %d, written %d", c.name, c.want.Size, n)
			}
		}
	}
}

type oneByte struct{ s string }

func (r *oneByte) Read(p []byte) (int, error) {
	if r.s == "" {
		return 0, io.EOF
	}
	p[0], r.s = r.s[0], r.s[1:]
	return 1, nil
}

func BenchmarkDotWriter(b *testing.B) {
	text := []byte("Subject: x\n\n" + strings.Repeat(strings.Repeat("y", 72)+"\n", 1000))
	d := NewDotWriter(io.Discard)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		d.Reset(io.Discard)
		d.Write(text)
		d.Close()
	}
}

func BenchmarkScan(b *testing.B) {
	text := []byte("Subject: x\n\n" + strings.Repeat(strings.Repeat("y", 72)+"\n", 1000))
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		ScanBytes(text, false)
	}
}
