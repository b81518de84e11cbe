package smtp

import (
	"bytes"
	"io"
)

// MaxTextLine is the longest line of message text without its CRLF, RFC 5321 §4.5.3.1.6.
const MaxTextLine = 998

// DotWriter writes message text in the form DATA wants (RFC 5321 §4.5.2): lines end in CRLF,
// a dot at a line's start is doubled, Close adds the final dot. Text that no peer may be sent is
// put right without losing a character of it:
//   - LF and CRLF both end a line; any other CR becomes a space (RFC 5321 §2.3.8);
//   - header lines over 998 octets are folded at white space, at any place if they have none;
//   - other lines over 998 octets are broken by a CRLF, between characters of UTF-8;
//   - a last line without an end gets one.
//
// It writes blocks of at least 32 KiB, and the end of the text together with the final dot.
type DotWriter struct {
	w      io.Writer
	buf    []byte
	line   []byte // start of a line whose end has not been seen; under 1000 octets
	folded bool   // line continues one that was broken
	body   bool   // the header is over
	err    error
}

// NewDotWriter returns a writer for one message.
func NewDotWriter(w io.Writer) *DotWriter {
	d := &DotWriter{buf: make([]byte, 0, clientBlock+2*MaxTextLine)}
	d.Reset(w)
	return d
}

// Reset makes d ready for another message.
func (d *DotWriter) Reset(w io.Writer) {
	d.w, d.buf, d.line, d.folded, d.body, d.err = w, d.buf[:0], d.line[:0], false, false, nil
}

// Write takes the next part of the text.
func (d *DotWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && d.err == nil {
		i := bytes.IndexByte(p, '\n')
		switch {
		case i < 0:
			d.partial(p)
			i = len(p) - 1
		case len(d.line) == 0 && !d.folded && d.whole(p[:i]):
		default:
			d.partial(p[:i])
			d.endLine()
		}
		p = p[i+1:]
	}
	if d.err != nil {
		return 0, d.err
	}
	return n, nil
}

// Close ends the text with the final dot and writes what is left. It does not close the writer.
func (d *DotWriter) Close() error {
	if d.err == nil && (len(d.line) > 0 || d.folded) {
		d.endLine()
	}
	if d.err == nil {
		d.buf = append(d.buf, '.', '\r', '\n')
		d.flush()
	}
	return d.err
}

// whole handles the usual line: complete, short and without CR inside.
func (d *DotWriter) whole(b []byte) bool {
	if n := len(b); n > 0 && b[n-1] == '\r' {
		b = b[:n-1]
	}
	if len(b) > MaxTextLine || bytes.IndexByte(b, '\r') >= 0 {
		return false
	}
	if len(b) == 0 {
		d.body = true
	}
	d.put(b)
	return true
}

// partial adds to the open line and breaks it as soon as it is certain to be too long: 1000
// octets, for the 1000th may be the CR of its end and the 999th not.
func (d *DotWriter) partial(p []byte) {
	for len(p) > 0 && d.err == nil {
		k := min(len(p), 2*MaxTextLine-len(d.line))
		d.line = append(d.line, p[:k]...)
		p = p[k:]
		for len(d.line) >= MaxTextLine+2 {
			d.fold()
		}
	}
}

func (d *DotWriter) endLine() {
	if n := len(d.line); n > 0 && d.line[n-1] == '\r' {
		d.line = d.line[:n-1]
	}
	dotBlankCR(d.line)
	for len(d.line) > MaxTextLine {
		d.fold()
	}
	if len(d.line) == 0 && !d.folded {
		d.body = true
	}
	d.piece(d.line)
	d.line, d.folded = d.line[:0], false
}

// fold writes the first part of the open line, which is over 998 octets long. Its last octet
// may be the CR of its end.
func (d *DotWriter) fold() {
	dotBlankCR(d.line[:len(d.line)-1])
	cut, space := d.foldAt()
	d.piece(d.line[:cut])
	rest := d.line[cut:]
	if space {
		copy(d.line[1:], rest)
		d.line[0] = ' '
		d.line = d.line[:len(rest)+1]
	} else {
		d.line = d.line[:copy(d.line, rest)]
	}
	d.folded = true
}

// foldAt finds where to break the open line, and whether what follows needs a space in front
// to be taken as its continuation.
func (d *DotWriter) foldAt() (cut int, space bool) {
	l := d.line
	if !d.body {
		// The last white space with something else on both sides: a line of nothing but white
		// space would look like the header's end.
		first := 0
		for first < MaxTextLine && clientSpace(l[first]) {
			first++
		}
		for i := MaxTextLine; i > first; i-- {
			if clientSpace(l[i]) && i+1 < len(l) && !clientSpace(l[i+1]) && l[i+1] != '\r' {
				return i, false
			}
		}
	}
	cut = MaxTextLine
	for cut > MaxTextLine-3 && l[cut]&0xc0 == 0x80 {
		cut--
	}
	return cut, !d.body && !clientSpace(l[cut])
}

func clientSpace(c byte) bool { return c == ' ' || c == '\t' }

// dotBlankCR makes spaces of CRs that end no line.
func dotBlankCR(b []byte) {
	for i := bytes.IndexByte(b, '\r'); i >= 0 && i < len(b); i++ {
		if b[i] == '\r' {
			b[i] = ' '
		}
	}
}

// piece writes one line's worth of text.
func (d *DotWriter) piece(b []byte) {
	if d.folded && !d.body && len(bytes.TrimLeft(b, " \t")) == 0 {
		return // white space at the end of a folded header line carries nothing
	}
	d.put(b)
}

func (d *DotWriter) put(b []byte) {
	if len(b) > 0 && b[0] == '.' {
		d.buf = append(d.buf, '.')
	}
	d.buf = append(append(d.buf, b...), '\r', '\n')
	if len(d.buf) >= clientBlock {
		d.flush()
	}
}

func (d *DotWriter) flush() {
	if d.err == nil {
		_, d.err = d.w.Write(d.buf)
	}
	d.buf = d.buf[:0]
}
