package imapwire

import (
	"io"
	"strconv"
	"unicode/utf8"
)

// AppendQuoted appends b in quotes. It must hold no CR, LF or NUL.
func AppendQuoted(dst []byte, b string) []byte {
	dst = append(dst, '"')
	for i := range len(b) {
		if b[i] == '"' || b[i] == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, b[i])
	}
	return append(dst, '"')
}

// quotable tells whether s can stand in quotes: with utf8 characters above 127 too (RFC 9051
// §4.3).
func quotable(s string, utf8ok bool) bool {
	high := false
	for i := range len(s) {
		switch c := s[i]; {
		case c == 0 || c == '\r' || c == '\n':
			return false
		case c >= 0x80:
			high = true
		}
	}
	return !high || utf8ok && utf8.ValidString(s)
}

// AppendString appends s as a quoted string, else as a literal in a response: one whose
// octets follow at once. A NUL, which neither may hold, becomes U+FFFD.
func AppendString(dst []byte, s string, utf8ok bool) []byte {
	if quotable(s, utf8ok) {
		return AppendQuoted(dst, s)
	}
	n := len(s)
	for i := range len(s) {
		if s[i] == 0 {
			n += len("\uFFFD") - 1
		}
	}
	dst = AppendLiteral(dst, Literal{Size: int64(n)})
	for i := range len(s) {
		if s[i] == 0 {
			dst = append(dst, "\uFFFD"...)
		} else {
			dst = append(dst, s[i])
		}
	}
	return dst
}

// AppendLiteral appends the head of a literal. Its octets follow.
func AppendLiteral(dst []byte, l Literal) []byte {
	if l.Binary {
		dst = append(dst, '~')
	}
	dst = strconv.AppendInt(append(dst, '{'), l.Size, 10)
	if l.NonSync {
		dst = append(dst, '+')
	}
	return append(dst, "}\r\n"...)
}

// AppendAString appends s as an atom where that is possible.
func AppendAString(dst []byte, s string, utf8ok bool) []byte {
	atom := s != "" && !Fold([]byte(s), "NIL")
	for i := range len(s) {
		atom = atom && class(s[i])&classAstr != 0
	}
	if atom {
		return append(dst, s...)
	}
	return AppendString(dst, s, utf8ok)
}

// AppendMailbox appends a mailbox name, which is UTF-8: in modified UTF-7 unless the other
// side has enabled UTF-8.
func AppendMailbox(dst []byte, name string, utf8ok bool) []byte {
	if !utf8ok {
		name = EncodeMUTF7(name)
	}
	return AppendAString(dst, name, utf8ok)
}

// AppendFlags appends a list of flags.
func AppendFlags(dst []byte, flags []string) []byte {
	dst = append(dst, '(')
	for i, f := range flags {
		if i > 0 {
			dst = append(dst, ' ')
		}
		dst = append(dst, f...)
	}
	return append(dst, ')')
}

// ValidKeyword tells whether s can be a keyword: an atom.
func ValidKeyword(s string) bool {
	for i := range len(s) {
		if class(s[i])&classFlag == 0 {
			return false
		}
	}
	return s != ""
}

// Writer collects what is sent and sends it with one write, or several when it is much. Its
// methods do nothing once a write has failed; Flush tells. It is not for concurrent use.
type Writer struct {
	// UTF8 allows UTF-8 in quoted strings and mailbox names: IMAP4rev2 or UTF8=ACCEPT.
	UTF8 bool

	dst io.Writer
	buf []byte
	err error
}

const flushAt = 32 << 10

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{dst: w} }

// SetDest makes the Writer write to w from now on. What has not been flushed goes there.
func (w *Writer) SetDest(dst io.Writer) { w.dst = dst }

// Release gives memory back while a session idles.
func (w *Writer) Release() {
	if len(w.buf) == 0 {
		w.buf = nil
	}
}

// Raw appends octets as they are: keywords, spaces, finished strings.
func (w *Writer) Raw(s string) *Writer {
	w.buf = append(w.buf, s...)
	return w.check()
}

// Bytes is Raw for bytes.
func (w *Writer) Bytes(b []byte) *Writer {
	w.buf = append(w.buf, b...)
	return w.check()
}

// Append lets f append to the buffer.
func (w *Writer) Append(f func([]byte) []byte) *Writer {
	w.buf = f(w.buf)
	return w.check()
}

// Number appends a number.
func (w *Writer) Number(n int64) *Writer {
	w.buf = strconv.AppendInt(w.buf, n, 10)
	return w
}

// String appends a string.
func (w *Writer) String(s string) *Writer {
	w.buf = AppendString(w.buf, s, w.UTF8)
	return w.check()
}

// Mailbox appends a mailbox name.
func (w *Writer) Mailbox(name string) *Writer {
	w.buf = AppendMailbox(w.buf, name, w.UTF8)
	return w.check()
}

// Literal appends a literal of n octets that from writes. When from writes more or fewer,
// the conversation cannot go on: that is an error.
func (w *Writer) Literal(n int64, from io.WriterTo) *Writer {
	w.buf = AppendLiteral(w.buf, Literal{Size: n})
	if w.err != nil {
		return w
	}
	m, err := from.WriteTo(sink{w})
	if err == nil && m != n {
		err = io.ErrShortWrite
	}
	if w.err == nil {
		w.err = err
	}
	return w
}

// sink is the Writer as an io.Writer.
type sink struct{ w *Writer }

func (s sink) Write(p []byte) (int, error) {
	if len(p) >= flushAt {
		if err := s.w.Flush(); err != nil {
			return 0, err
		}
		n, err := s.w.dst.Write(p)
		s.w.err = err
		return n, err
	}
	s.w.Bytes(p)
	return len(p), s.w.err
}

// CRLF ends a line.
func (w *Writer) CRLF() *Writer { return w.Raw("\r\n") }

func (w *Writer) check() *Writer {
	if len(w.buf) >= flushAt {
		// What is wrong is told by the next Flush.
		_ = w.Flush()
	}
	return w
}

// Flush sends what has been collected.
func (w *Writer) Flush() error {
	if w.err == nil && len(w.buf) > 0 {
		_, w.err = w.dst.Write(w.buf)
	}
	if w.buf = w.buf[:0]; cap(w.buf) > 2*flushAt {
		w.buf = nil
	}
	return w.err
}
