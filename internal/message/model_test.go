package message

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

// The model is the parser written for the reader: it cuts the message into lines, keeps
// them all, and looks at every boundary for every line. Field values are not its business.
type model struct {
	lines []string
	offs  []int64
	i     int // the line at hand
	open  []string
	count int
	hit   int
	close bool
	at    int64
}

func newModel(msg string) *model {
	m := &model{}
	off := int64(0)
	for msg != "" {
		n := strings.IndexByte(msg, '\n') + 1
		if n == 0 {
			n = len(msg)
		}
		m.lines, m.offs = append(m.lines, msg[:n]), append(m.offs, off)
		off += int64(n)
		msg = msg[n:]
	}
	m.offs = append(m.offs, off)
	return m
}

// boundary looks whether line i is one of an open multipart.
func (m *model) boundary(i int) bool {
	l, ok := strings.CutPrefix(m.lines[i], "--")
	if !ok {
		return false
	}
	l = strings.TrimSuffix(strings.TrimSuffix(l, "\n"), "\r")
	best := -1
	for j, b := range m.open {
		if strings.HasPrefix(l, b) && (best < 0 || len(b) >= len(m.open[best])) {
			best = j
		}
	}
	if best < 0 {
		return false
	}
	m.hit, m.close = best, strings.HasPrefix(l[len(m.open[best]):], "--")
	return true
}

// end is where content ends whose first line is start and behind which line i is a boundary.
func (m *model) end(start, i int) int64 {
	if i == start {
		return m.offs[i]
	}
	n := 1
	if strings.HasSuffix(m.lines[i-1], "\r\n") {
		n = 2
	}
	return m.offs[i] - int64(n)
}

func (m *model) body() {
	start := m.i
	for ; m.i < len(m.lines); m.i++ {
		if m.boundary(m.i) {
			m.at = m.end(start, m.i)
			return
		}
	}
	m.hit, m.close, m.at = -1, false, m.offs[m.i]
}

func (m *model) part(mime, digest bool, depth int) *Part {
	m.count++
	p := &Part{Header: m.offs[m.i]}
	start := m.i
	inside := false
	for ; m.i < len(m.lines) && !inside; m.i++ {
		if m.boundary(m.i) {
			m.at = m.end(start, m.i)
			break
		}
		inside = m.lines[m.i] == "\n" || m.lines[m.i] == "\r\n"
	}
	head := strings.Join(m.lines[start:m.i], "")
	if mime {
		head = "MIME-Version: 1.0\n" + head
	}
	h, err := Parse(strings.NewReader(head), int64(len(head)))
	if err != nil {
		panic(err)
	}
	p.Kind = h.Kind
	if digest && h.Type == nil && !typeField.MatchString(head) {
		p.Kind = Message
	}
	if !inside {
		if m.i == len(m.lines) {
			m.hit, m.close, m.at = -1, false, m.offs[m.i]
		}
		p.Body, p.End = m.at, m.at
		if p.Kind == Message {
			p.Parts = []*Part{{Header: m.at, Body: m.at, End: m.at, Kind: Text}}
		}
		return p
	}
	p.Body = m.offs[m.i]
	bound := string(h.Param("boundary"))
	switch {
	case p.Kind == Message && depth < maxDepth:
		p.Parts = []*Part{m.part(false, false, depth+1)}
	case p.Kind == Multipart && bound != "" && depth < maxDepth:
		m.multipart(p, bound, bytes.EqualFold(h.Subtype, []byte("digest")), depth)
	default:
		if p.Kind == Multipart && depth >= maxDepth || p.Kind == Message {
			p.Kind = Opaque
		}
		m.body()
	}
	p.End = m.at
	return p
}

func (m *model) multipart(p *Part, bound string, digest bool, depth int) {
	k := len(m.open)
	m.open = append(m.open, bound[:min(len(bound), maxBoundary)])
	m.body()
	for m.hit == k && !m.close {
		m.i++
		p.Parts = append(p.Parts, m.part(true, digest, depth+1))
	}
	m.open = m.open[:k]
	if m.hit == k {
		m.i++
		m.body()
	}
}

var typeField = regexp.MustCompile(`(?mi)^content-type[ \t\r]*:`)

// wire is the wire form, octet by octet.
func wire(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if s[i] == '\n' && (i == 0 || s[i-1] != '\r') {
			b.WriteByte('\r')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func same(msg, path string, got, want *Part) error {
	if got.Kind != want.Kind || got.Header != want.Header || got.Body != want.Body || got.End != want.End || len(got.Parts) != len(want.Parts) {
		return fmt.Errorf("part %s: kind %d, %d %d %d, %d parts; want kind %d, %d %d %d, %d parts", path, got.Kind, got.Header, got.Body, got.End, len(got.Parts), want.Kind, want.Header, want.Body, want.End, len(want.Parts))
	}
	head, body := msg[got.Header:got.Body], msg[got.Body:got.End]
	if n := int64(len(wire(head))); got.HeaderWire != n {
		return fmt.Errorf("part %s: header of %d octets on the wire, want %d", path, got.HeaderWire, n)
	}
	if n := int64(len(wire(body))); got.BodyWire != n {
		return fmt.Errorf("part %s: body of %d octets on the wire, want %d", path, got.BodyWire, n)
	}
	if h, b := strings.Count(head, "\n"), strings.Count(body, "\n"); got.HeaderLines != int64(h) || got.BodyLines != int64(b) {
		return fmt.Errorf("part %s: %d and %d lines, want %d and %d", path, got.HeaderLines, got.BodyLines, h, b)
	}
	for i := range got.Parts {
		if err := same(msg, fmt.Sprintf("%s.%d", path, i+1), got.Parts[i], want.Parts[i]); err != nil {
			return err
		}
	}
	return nil
}

// check compares parser and model, and holds the parser to its promises.
func check(t *testing.T, p *Parser, msg string) {
	t.Helper()
	root, err := p.Parse(strings.NewReader(msg), int64(len(msg)))
	if err != nil {
		t.Fatal(err)
	}
	if p.count < maxParts {
		if err := same(msg, "0", root, newModel(msg).part(false, false, 1)); err != nil {
			t.Fatalf("%v\n%q", err, msg)
		}
	}
	out := AppendEnvelope(nil, root.Fields)
	wellFormed(t, out)
	wellFormed(t, AppendBody(nil, root, true))
	wellFormed(t, AppendBody(nil, root, false))
	m := AppendMap(nil, root)
	back, rest, err := ReadMap(append(m, "rest"...))
	if err != nil || string(rest) != "rest" {
		t.Fatalf("ReadMap: %v, rest %q", err, rest)
	}
	if err := same(msg, "map", back, root); err != nil {
		t.Fatal(err)
	}
	if again := AppendMap(nil, back); !bytes.Equal(again, m) {
		t.Fatalf("the map of a map is %q, was %q", again, m)
	}
	f := root.Fields.Decode()
	for _, s := range []string{f.Subject, f.Base, f.From, f.To, f.FromDisplay, f.ToDisplay} {
		if strings.ContainsAny(s, "\r\n\x00") {
			t.Fatalf("control characters in %q of %q", s, msg)
		}
	}
	if b, _ := baseSubject(f.Base); b != f.Base {
		t.Fatalf("base subject of %q is %q, of that %q", f.Subject, f.Base, b)
	}
}

// wellFormed holds a finished string to the grammar of RFC 9051 §9: balanced parentheses,
// strings closed, no octet that may not be there.
func wellFormed(t *testing.T, b []byte) {
	t.Helper()
	depth := 0
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
				if b[i] == '\r' || b[i] == '\n' || b[i] == 0 || b[i] >= 0x80 {
					t.Fatalf("octet %#x in a quoted string of %q", b[i], b)
				}
			}
		case c == '{':
			n := 0
			for i++; b[i] != '}'; i++ {
				n = 10*n + int(b[i]-'0')
			}
			if string(b[i:i+3]) != "}\r\n" || bytes.IndexByte(b[i+3:i+3+n], 0) >= 0 {
				t.Fatalf("a bad literal in %q", b)
			}
			i += 2 + n
		case c < ' ' || c >= 0x7f:
			t.Fatalf("octet %#x outside of strings in %q", c, b)
		}
		if depth == 0 && i < len(b)-1 {
			t.Fatalf("something behind the end of %q", b)
		}
	}
	if depth != 0 {
		t.Fatalf("unbalanced: %q", b)
	}
}

func TestModel(t *testing.T) {
	var p Parser
	for seed := range uint64(600) {
		check(t, &p, generate(seed, seed%2 == 0))
	}
}

// Lines and boundaries that lie across the ends of windows.
func TestWindows(t *testing.T) {
	var p Parser
	for _, eol := range []string{"\n", "\r\n"} {
		for shift := -12; shift <= 12; shift++ {
			head := strings.ReplaceAll("Content-Type: multipart/mixed; boundary=xyz\n\n--xyz\n\n", "\n", eol)
			msg := head + strings.Repeat("z", window-len(head)+shift) + strings.ReplaceAll("\n--xyz\nA: b\n\nc\n--xyz--\n", "\n", eol)
			check(t, &p, msg)
			check(t, &p, head+strings.Repeat("z\n", (window-len(head)+shift)/2)+strings.Repeat("X: y"+eol, 9)+"--xyz"+eol+strings.Repeat("H: i"+eol, window/5))
		}
	}
}

func FuzzParse(f *testing.F) {
	for seed := range uint64(40) {
		f.Add(generate(seed, seed%2 == 0))
	}
	var p Parser
	f.Fuzz(func(t *testing.T, msg string) { check(t, &p, msg) })
}

// dribble hands out a few octets at a time.
type dribble struct {
	*strings.Reader
	rnd *rand.Rand
}

func (d dribble) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.Reader.ReadAt(p[:min(len(p), 1+d.rnd.IntN(7))], off)
	if err == io.EOF && n > 0 {
		err = nil
	}
	return n, err
}

func FuzzWire(f *testing.F) {
	f.Add("a\nb\r\nc\n\n\r\n", int64(3), int64(2), uint64(1))
	f.Add("\n", int64(1), int64(5), uint64(1))
	f.Fuzz(func(t *testing.T, msg string, off, n int64, seed uint64) {
		want := wire(msg)
		off, n = off&0xff, n&0xff
		r := dribble{strings.NewReader(msg), rand.New(rand.NewPCG(seed, 1))}
		w := NewWire(r, 0, int64(len(msg)), -1)
		if len(want) == len(msg) && seed%2 == 0 {
			w = NewWire(r, 0, int64(len(msg)), int64(len(want)))
		}
		for range 3 { // ranges before, at and behind where the last one ended
			var b bytes.Buffer
			if _, err := w.WriteRange(&b, off, n); err != nil {
				t.Fatal(err)
			}
			from := min(off, int64(len(want)))
			if to := min(off+n, int64(len(want))); b.String() != want[from:to] {
				t.Fatalf("<%d.%d> of %q is %q, want %q", off, n, want, b.String(), want[from:to])
			}
			switch seed % 3 {
			case 0:
				off += n
			case 1:
				off /= 2
			}
			seed /= 3
		}
		w.Reset(r, 0, int64(len(msg)), -1)
		var b bytes.Buffer
		if _, err := w.WriteLines(&b, n%5); err != nil {
			t.Fatal(err)
		}
		top := strings.SplitAfter(want, "\n")
		if k := strings.Join(top[:min(int(n%5), len(top))], ""); b.String() != k {
			t.Fatalf("%d lines of %q are %q, want %q", n%5, want, b.String(), k)
		}
		if _, err := io.Copy(&b, struct{ io.Reader }{w}); err != nil || b.String() != want {
			t.Fatalf("lines and the rest are %q, want %q: %v", b.String(), want, err)
		}
		if o, l, err := WireSize(strings.NewReader(msg)); err != nil || o != int64(len(want)) || l != int64(strings.Count(want, "\n")) {
			t.Fatalf("WireSize of %q: %d, %d, %v", msg, o, l, err)
		}
	})
}

func FuzzReadMap(f *testing.F) {
	f.Add(AppendMap(nil, &Part{Kind: Multipart, Body: 10, End: 20, HeaderWire: 11, BodyWire: 12, Parts: []*Part{{Kind: Text, Header: 12, Body: 13, End: 14, HeaderWire: 1, BodyWire: 1}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, rest, err := ReadMap(b)
		if err != nil {
			return
		}
		again, _, err := ReadMap(append(AppendMap(nil, p), rest...))
		if err != nil || !bytes.Equal(AppendMap(nil, again), AppendMap(nil, p)) {
			t.Fatalf("%v", err)
		}
	})
}

func FuzzFields(f *testing.F) {
	f.Add("Subject: =?utf-8?b?w6k=?= =?utf-8?q?=C3?= =?utf-8?q?=A9_x?= y\nDate: 1 Jan 99 1:02 EST\nReferences: <a@b> <c\n d@e>\n")
	f.Add("From: =?iso-2022-jp?B?GyRCJDMbKEI=?= <a@b>\nSubject: Re: [x] Fwd: [fwd: y] (fwd)\n")
	f.Add("Subject: =?koi8-r?q?=C1?= =?gb2312?b?1tA=?=\n")
	f.Fuzz(func(t *testing.T, head string) {
		var p Parser
		check(t, &p, head)
	})
}
