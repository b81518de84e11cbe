package dsn

import (
	"bufio"
	"errors"
	"io"
)

// qpWriter encodes text as quoted-printable (RFC 2045 §6.7) with LF line ends. The standard
// library's writer ends its lines with CRLF, which the spool does not have.
type qpWriter struct {
	w    *bufio.Writer
	col  int
	last byte // a space or tab not yet written: it must be encoded at the end of a line
}

func (q *qpWriter) write(p []byte) {
	for _, c := range p {
		switch {
		case c == '\n':
			q.flushSpace(true)
			// Ignored here and below: bufio.Writer keeps the first error for Flush.
			_ = q.w.WriteByte('\n')
			q.col = 0
		case c == ' ' || c == '\t':
			q.flushSpace(false)
			q.last = c
		case c > ' ' && c < 0x7f && c != '=':
			q.flushSpace(false)
			q.room(1)
			_ = q.w.WriteByte(c)
		default:
			q.flushSpace(false)
			q.hex(c)
		}
	}
}

func (q *qpWriter) flushSpace(lineEnd bool) {
	c := q.last
	q.last = 0
	switch {
	case c == 0:
	case lineEnd:
		q.hex(c)
	default:
		q.room(1)
		_ = q.w.WriteByte(c)
	}
}

func (q *qpWriter) hex(c byte) {
	const digits = "0123456789ABCDEF"
	q.room(3)
	_, _ = q.w.Write([]byte{'=', digits[c>>4], digits[c&15]})
}

// room makes a soft line break unless n more octets fit before one: 76 octets a line.
func (q *qpWriter) room(n int) {
	if q.col+n > 75 {
		_, _ = q.w.WriteString("=\n")
		q.col = 0
	}
	q.col += n
}

func (q *qpWriter) end() { q.flushSpace(true) }

// encodeQP copies src encoded.
func encodeQP(w *bufio.Writer, src io.Reader) error {
	q := qpWriter{w: w}
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		q.write(buf[:n])
		if errors.Is(err, io.EOF) {
			q.end()
			return nil
		}
		if err != nil {
			return err
		}
	}
}
