package smtp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// model is the slow and plain reading of RFC 5321 §4.5.2 over a whole input: it finds the first
// CRLF "." CRLF (the start counts as following a CRLF), takes the stuffed dots off, and looks
// for what must not be there.
func model(in []byte, maxLine int) (text []byte, used int, f bool, done bool) {
	s := "\r\n" + string(in)
	end := strings.Index(s, "\r\n.\r\n")
	if end < 0 {
		return nil, 0, false, false
	}
	used = end + 5 - 2
	body := s[:end+2] // with the CRLF in front
	for i := range len(body) {
		switch c := body[i]; {
		case c == 0,
			c == '\r' && (i+1 == len(body) || body[i+1] != '\n'),
			c == '\n' && (i == 0 || body[i-1] != '\r'):
			f = true
		}
	}
	if f {
		return nil, used, true, true
	}
	for _, line := range strings.SplitAfter(body[2:], "\r\n") {
		if line == "" {
			continue
		}
		line = strings.TrimPrefix(strings.TrimSuffix(line, "\r\n"), ".")
		if len(line) > maxLine {
			return nil, used, true, true
		}
		text = append(append(text, line...), '\n')
	}
	return text, used, false, true
}

// run feeds in to a decoder in blocks of n octets.
func run(in []byte, n, maxLine int) (text []byte, used int, f bool, done bool) {
	d := decoder{dots: true, maxLine: maxLine}
	for used < len(in) && !done {
		block := bytes.Clone(in[used:min(used+n, len(in))])
		out, k, end := d.decode(block[:0], block)
		text = append(text, out...)
		used += k
		done = end
	}
	return text, used, d.flaw != flawNone, done
}

func compare(t *testing.T, in []byte, n int) {
	t.Helper()
	const maxLine = 40
	want, wantUsed, wantFlaw, wantDone := model(in, maxLine)
	got, used, f, done := run(in, n, maxLine)
	if done != wantDone {
		t.Fatalf("block %d, input %q: done %v, model says %v", n, in, done, wantDone)
	}
	if !done {
		return
	}
	if used != wantUsed || f != wantFlaw || !f && !bytes.Equal(got, want) {
		t.Fatalf("block %d, input %q:\ngot  %q used %d flaw %v\nwant %q used %d flaw %v", n, in, got, used, f, want, wantUsed, wantFlaw)
	}
}

// TestDotExhaustive tries every text of up to seven of the five octets that matter.
func TestDotExhaustive(t *testing.T) {
	alphabet := []byte("\r\n.\x00a")
	limit := 7
	if testing.Short() {
		limit = 5
	}
	tail := []byte("\r\n.\r\n")
	var try func(in []byte)
	try = func(in []byte) {
		whole := append(bytes.Clone(in), tail...)
		compare(t, whole, 1)
		compare(t, whole, 3)
		compare(t, whole, len(whole))
		if len(in) < limit {
			for _, c := range alphabet {
				try(append(in, c))
			}
		}
	}
	try(nil)
}

func FuzzDot(f *testing.F) {
	f.Add([]byte("a\r\n..b\r\n.\r\nQUIT\r\n"), 7)
	f.Add([]byte("a\n.\n\r.\r\r\n.\r\n"), 1)
	f.Add([]byte(strings.Repeat("x", 100)+"\r\n.\r\n"), 16)
	f.Fuzz(func(t *testing.T, in []byte, n int) {
		compare(t, in, 1+(n&0x3ff))
	})
}

func TestDotReader(t *testing.T) {
	br := bufio.NewReaderSize(strings.NewReader("one\r\n..two\r\n.\r\nrest"), 16)
	b, err := io.ReadAll(NewDotReader(br))
	if err != nil || string(b) != "one\n.two\n" {
		t.Fatalf("got %q, %v", b, err)
	}
	if rest, _ := io.ReadAll(br); string(rest) != "rest" {
		t.Fatalf("left in the reader: %q", rest)
	}
	if _, err := io.ReadAll(NewDotReader(bufio.NewReader(strings.NewReader("a\nb\r\n.\r\n")))); !errors.Is(err, ErrBadData) {
		t.Fatalf("bare LF: %v", err)
	}
	if _, err := io.ReadAll(NewDotReader(bufio.NewReader(strings.NewReader("a\r\n.")))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("cut off: %v", err)
	}
}

func TestTextDecoder(t *testing.T) {
	// Without dots: a chunk of RFC 3030, cut anywhere.
	in := "a\r\n.\r\n..b\r\n"
	for cut := range len(in) + 1 {
		d := decoder{maxLine: 100}
		a, _, _ := d.decode(nil, []byte(in[:cut]))
		b, _, done := d.decode(a, []byte(in[cut:]))
		d.end()
		if string(b) != "a\n.\n..b\n" || done || d.flaw != flawNone {
			t.Fatalf("cut at %d: %q done %v flaw %v", cut, b, done, d.flaw)
		}
	}
	d := decoder{maxLine: 100}
	d.decode(nil, []byte("a\r"))
	if d.end(); d.flaw != flawBareCR {
		t.Fatal("a CR as the last octet is bare")
	}
}

func TestDotLineLimit(t *testing.T) {
	for _, n := range []int{39, 40, 41} {
		in := strings.Repeat("x", n) + "\r\n.\r\n"
		for _, block := range []int{1, 7, 100} {
			if _, _, f, done := run([]byte(in), block, 40); !done || f != (n > 40) {
				t.Errorf("line of %d, blocks of %d: flaw %v done %v", n, block, f, done)
			}
		}
	}
}

func BenchmarkDotDecoder(b *testing.B) {
	line := strings.Repeat("x", 74) + "\r\n"
	src := []byte(strings.Repeat(line, largeBuffer/len(line)))
	block := make([]byte, len(src))
	b.SetBytes(int64(len(src)))
	b.ReportAllocs()
	d := decoder{dots: true, maxLine: 1000}
	for b.Loop() {
		copy(block, src)
		d.decode(block[:0], block)
	}
}
