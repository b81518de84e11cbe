package smtp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// flaw is what makes a message unacceptable, found while it is decoded.
type flaw int

const (
	flawNone flaw = iota
	flawBareCR
	flawBareLF
	flawNUL
	flawLongLine
)

func (f flaw) String() string {
	return [...]string{"", "a bare CR", "a bare LF", "a NUL octet", "a line that is too long"}[f]
}

// Where the decoder is between two blocks.
type dotState uint8

const (
	atStart  dotState = iota // of a line
	afterDot                 // that is the first octet of its line
	dotCR                    // "." CR at the start of a line
	inLine
	afterCR // within a line
)

// decoder turns wire lines into lines ended by LF and finds what must not be there. With dots
// it undoes dot stuffing and finds the end of the message, which is CRLF "." CRLF and nothing
// else, however much the message looks as if it ended before (RFC 5321 §4.1.1.4 and §2.3.8):
// a server that ends it elsewhere takes text for commands.
type decoder struct {
	dots    bool
	maxLine int
	state   dotState
	lineLen int
	flaw    flaw // the first one found
}

func (d *decoder) found(f flaw) {
	if d.flaw == flawNone {
		d.flaw = f
	}
}

// decode appends the text of src to dst, which may be src[:0], and tells how much of src it
// used: all of it, unless the end of the message (done) lies before. After the first flaw the
// text no longer matters and only the end is looked for.
func (d *decoder) decode(dst, src []byte) (text []byte, used int, done bool) {
	for used < len(src) {
		if d.state == inLine || d.state == atStart && (!d.dots || src[used] != '.') {
			dst, used = d.run(dst, src, used)
			continue
		}
		c := src[used]
		used++
		switch d.state {
		case atStart:
			d.state = afterDot
		case afterDot:
			if c == '\r' {
				d.state = dotCR
				continue
			}
			used-- // the dot was stuffing; c belongs to the line
			d.state = inLine
		case dotCR:
			if c == '\n' {
				return dst, used, true
			}
			used--
			d.state = afterCR // the dot was stuffing, the CR is followed by something else
		case afterCR:
			dst, used = d.endOrFlaw(dst, c, used)
		}
	}
	return dst, used, false
}

// run copies from src[used:], at the start of a line or within one, up to the end of the line
// or of the block.
func (d *decoder) run(dst, src []byte, used int) ([]byte, int) {
	rest := src[used:]
	end := bytes.IndexByte(rest, '\n')
	part := rest
	whole := end > 0 && rest[end-1] == '\r'
	switch {
	case whole:
		part = rest[:end-1]
	case end >= 0:
		part = rest[:end]
		d.found(flawBareLF)
	case rest[len(rest)-1] == '\r':
		part = rest[:len(rest)-1]
	}
	if bytes.IndexByte(part, '\r') >= 0 {
		d.found(flawBareCR)
	}
	if bytes.IndexByte(part, 0) >= 0 {
		d.found(flawNUL)
	}
	if d.lineLen += len(part); d.lineLen > d.maxLine {
		d.found(flawLongLine)
	}
	dst = append(dst, part...)
	switch {
	case whole:
		d.state, d.lineLen = atStart, 0
		return append(dst, '\n'), used + end + 1
	case end >= 0:
		// Not the start of a line: "LF . CRLF" must not look like an end.
		d.state = inLine
		return dst, used + end + 1
	case len(part) < len(rest):
		d.state = afterCR
	default:
		d.state = inLine
	}
	return dst, len(src)
}

// endOrFlaw looks at the octet c after a CR.
func (d *decoder) endOrFlaw(dst []byte, c byte, used int) ([]byte, int) {
	switch c {
	case '\n':
		d.state, d.lineLen = atStart, 0
		return append(dst, '\n'), used
	case '\r':
		d.found(flawBareCR) // the first of the two; the second may still begin a line end
		return dst, used
	}
	d.found(flawBareCR)
	d.state = inLine
	return dst, used - 1
}

// end is called where the text ends by counting: a CR cannot be the last octet.
func (d *decoder) end() {
	if d.state == afterCR {
		d.found(flawBareCR)
	}
}

// ErrBadData is wrapped in the errors of a DotReader about octets that must not be in a message.
var ErrBadData = errors.New("message is not made of lines ended by CRLF")

// DotReader reads one dot-stuffed message and gives its lines ended by LF. After the end, which
// it reads and does not give, it returns io.EOF; the rest of the input stays in the reader below.
type DotReader struct {
	br   *bufio.Reader
	d    decoder
	text []byte
	done bool
}

// NewDotReader reads from br, which is at the first octet of the message.
func NewDotReader(br *bufio.Reader) *DotReader {
	return &DotReader{br: br, d: decoder{dots: true, maxLine: 1 << 20}}
}

// Read gives text. A message with a bare CR, a bare LF or a NUL is read to its end, then
// reported by ErrBadData in place of io.EOF.
func (r *DotReader) Read(p []byte) (int, error) {
	for len(r.text) == 0 {
		if r.done {
			if r.d.flaw != flawNone {
				return 0, errors.Join(ErrBadData, errors.New(r.d.flaw.String()))
			}
			return 0, io.EOF
		}
		if _, err := r.br.Peek(1); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		b, _ := r.br.Peek(r.br.Buffered()) // cannot fail: that much is there
		var used int
		r.text, used, r.done = r.d.decode(r.text[:0], b)
		r.br.Discard(used)
	}
	n := copy(p, r.text)
	r.text = r.text[n:]
	return n, nil
}
