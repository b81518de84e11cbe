// Package imapwire reads and writes the tokens of IMAP (RFC 9051 §9, RFC 3501 §9): atoms,
// strings, literals, lists, numbers, sequence sets, flags, dates and mailbox names, in
// commands and in responses.
//
// A [Reader] takes tokens from a connection. It holds one command or response at a time,
// within [Limits]; literals may be as large as the other side likes because they are
// streamed to the caller. After a mistake of the other side it finds the end of the
// command, so that the session goes on. A [Writer] builds a reply in one buffer and sends
// it with one write.
package imapwire

import (
	"errors"
	"fmt"
	"io"
)

// Limits bound what a Reader holds in memory. A zero field has its default.
type Limits struct {
	Line    int   // octets of a command outside of literals; 64 KiB
	Literal int64 // octets of one literal, and of all of a command, that are held in memory; 64 KiB
	Depth   int   // nested lists; 64
}

func (l Limits) orDefault() Limits {
	if l.Line <= 0 {
		l.Line = 64 << 10
	}
	if l.Literal <= 0 {
		l.Literal = 64 << 10
	}
	if l.Depth <= 0 {
		l.Depth = 64
	}
	return l
}

// SyntaxError says what is wrong with a command. The connection can be used on after
// Reader.Skip.
type SyntaxError struct{ Msg string }

func (e *SyntaxError) Error() string { return e.Msg }

// TooBigError says that a literal is larger than Limits.Literal.
type TooBigError struct {
	Literal Literal
	Max     int64
}

func (e *TooBigError) Error() string {
	return fmt.Sprintf("literal of %d octets, at most %d are allowed here", e.Literal.Size, e.Max)
}

// ErrTooLong says that a command, or what had to be skipped of it, is so long that there is
// no use in talking on.
var ErrTooLong = errors.New("command too long")

// Recoverable tells whether the session can go on after err and a Skip.
func Recoverable(err error) bool {
	var s *SyntaxError
	var b *TooBigError
	return errors.As(err, &s) || errors.As(err, &b)
}

// Literal is the head of a literal (RFC 9051 §4.3, RFC 7888, RFC 3516 §4.4).
type Literal struct {
	Size    int64
	NonSync bool // "{5+}": sent without waiting
	Binary  bool // "~{5}": may hold NUL
}

// Reader reads tokens. Its methods do nothing once one has failed; Err or End tells. What
// they return as bytes is valid until the next Begin. It is not for concurrent use.
type Reader struct {
	// Continue is called before the body of a literal is read that the other side sends only
	// when asked to: a server sends "+" in it. A client leaves it nil: to it literals come
	// unasked.
	Continue func(Literal) error

	src    io.Reader
	limits Limits
	buf    []byte
	pos    int
	end    int

	line  int    // octets of the command read so far, literals apart
	held  int64  // octets of literals held
	hold  []byte // memory of tokens
	depth int
	ended bool // the end of the command has been read
	err   error

	pending Literal // a literal whose body has been announced and not been asked for
	waiting bool
	rest    int64 // octets of a literal's body not read yet
}

const bufSize = 8 << 10

// NewReader returns a Reader of r.
func NewReader(r io.Reader, l Limits) *Reader {
	return &Reader{src: r, limits: l.orDefault(), ended: true}
}

// SetSource makes the Reader read from r on: after STARTTLS or COMPRESS. What has been
// received and not been read is returned, and forgotten (RFC 9051 §6.2.1: it was sent in the
// clear).
func (r *Reader) SetSource(src io.Reader) (received []byte) {
	received = append(received, r.buf[r.pos:r.end]...)
	r.src, r.pos, r.end = src, 0, 0
	return received
}

// Buffered returns how many octets have been received and not been read.
func (r *Reader) Buffered() int { return r.end - r.pos }

// Release gives memory back while a session idles. It is taken again when needed.
func (r *Reader) Release() {
	if r.pos == r.end {
		r.buf, r.pos, r.end = nil, 0, 0
	}
	if r.ended {
		r.hold = nil
	}
}

// Begin starts the next command or response: it waits for its first octet. The error is
// io.EOF when the other side has ended between two.
func (r *Reader) Begin() error {
	if !r.ended {
		if err := r.Skip(); err != nil {
			return err
		}
	}
	r.line, r.held, r.depth, r.err, r.ended = 0, 0, 0, nil, false
	if cap(r.hold) > 64<<10 {
		r.hold = nil
	}
	r.hold = r.hold[:0]
	if _, err := r.peek(); err != nil {
		r.ended = true
		return r.err
	}
	return nil
}

// Err returns why a method has failed, nil when none has.
func (r *Reader) Err() error { return r.err }

// Fail makes the Reader fail, as if what was read were no syntax.
func (r *Reader) Fail(format string, args ...any) {
	if r.err == nil {
		r.err = &SyntaxError{fmt.Sprintf(format, args...)}
	}
}

// fill waits for more octets.
func (r *Reader) fill() error {
	if r.buf == nil {
		r.buf = make([]byte, bufSize)
	}
	r.pos, r.end = 0, 0
	for range 100 {
		n, err := r.src.Read(r.buf)
		if n > 0 {
			r.end = n
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// peek returns the next octet.
func (r *Reader) peek() (byte, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.rest > 0 || r.waiting {
		if err := r.drain(); err != nil {
			r.err = err
			return 0, err
		}
	}
	if r.pos == r.end {
		if err := r.fill(); err != nil {
			if errors.Is(err, io.EOF) && r.line > 0 {
				err = io.ErrUnexpectedEOF
			}
			r.err = err
			return 0, err
		}
	}
	return r.buf[r.pos], nil
}

// step takes the octet that peek has returned.
func (r *Reader) step() {
	r.pos++
	if r.line++; r.line > r.limits.Line && r.err == nil {
		r.err = ErrTooLong
	}
}

// Peek returns the next octet without taking it; 0 after a failure.
func (r *Reader) Peek() byte {
	c, err := r.peek()
	if err != nil {
		return 0
	}
	return c
}

// Is takes the next octet if it is c.
func (r *Reader) Is(c byte) bool {
	if d, err := r.peek(); err != nil || d != c {
		return false
	}
	r.step()
	return r.err == nil
}

// Want takes c, or fails.
func (r *Reader) Want(c byte) {
	if r.err == nil && !r.Is(c) {
		r.Fail("%q expected", c)
	}
}

// SP takes one space, or fails.
func (r *Reader) SP() {
	if r.err == nil && !r.Is(' ') {
		r.Fail("space expected")
	}
}

// AtEnd tells whether the command ends here.
func (r *Reader) AtEnd() bool {
	c, err := r.peek()
	return err == nil && (c == '\r' || c == '\n')
}

// End takes the end of the command, or fails, and returns Err. A bare LF is taken for one:
// people type it.
func (r *Reader) End() error {
	if r.err != nil {
		return r.err
	}
	r.Is('\r')
	if r.err == nil && !r.Is('\n') {
		r.Fail("unexpected %s", r.what())
	}
	r.ended = r.err == nil
	return r.err
}

// what names the next octet for messages.
func (r *Reader) what() string {
	c, err := r.peek()
	switch {
	case err != nil:
		return "end"
	case c == '\r' || c == '\n':
		return "end of line"
	case c < ' ' || c >= 0x7f:
		return "control or 8-bit character"
	}
	return fmt.Sprintf("%q", string(c))
}

// Skip reads on to the end of a command that has failed, with the literals that are coming
// without being asked for.
func (r *Reader) Skip() error {
	if r.err != nil && !Recoverable(r.err) {
		return r.err
	}
	r.err = nil
	if r.ended {
		return nil
	}
	r.line = 0
	if r.waiting {
		r.waiting = false
		if !r.coming(r.pending) {
			// The other side waits for leave that it will not get: its command has ended.
			r.ended = true
			return nil
		}
		r.rest = r.pending.Size
	}
	var tail [24]byte // the end of the line
	n := 0
	for {
		c, err := r.peek()
		if err != nil {
			return err
		}
		r.pos++ // the limit is for what is held
		if r.line++; r.line > max(r.limits.Line, 1<<20) {
			r.err = ErrTooLong
			return r.err
		}
		if c != '\n' {
			if n == len(tail) {
				copy(tail[:], tail[1:])
				n--
			}
			tail[n] = c
			n++
			continue
		}
		l, ok := literalTail(tail[:n])
		if !ok || !r.coming(l) {
			r.ended = true
			return nil
		}
		r.rest, n = l.Size, 0
	}
}

// coming tells whether the body of l is sent without being asked for.
func (r *Reader) coming(l Literal) bool { return l.NonSync || r.Continue == nil }

// literalTail finds the head of a literal at the end of a line.
func literalTail(b []byte) (l Literal, ok bool) {
	if n := len(b); n > 0 && b[n-1] == '\r' {
		b = b[:n-1]
	}
	n := len(b)
	if n == 0 || b[n-1] != '}' {
		return l, false
	}
	n--
	if n > 0 && b[n-1] == '+' {
		l.NonSync = true
		n--
	}
	end := n
	for n > 0 && b[n-1] >= '0' && b[n-1] <= '9' {
		n--
	}
	if n == end || end-n > 18 || n == 0 || b[n-1] != '{' {
		return l, false
	}
	for _, c := range b[n:end] {
		l.Size = 10*l.Size + int64(c-'0')
	}
	return l, true
}
