package message

import (
	"bytes"
	"errors"
	"io"
)

// source reads a message in windows. Offsets and counts are those of the octet at pos.
type source struct {
	r    io.ReaderAt
	size int64
	buf  []byte
	base int64 // offset of buf[0]
	pos  int
	end  int
	err  error
	eof  bool

	counter         // of everything before buf[counted]
	counted int     // at most pos
	last    [2]byte // the octets before the window
	cont    bool    // the line at pos began before it
}

func (s *source) reset(r io.ReaderAt, size int64) {
	n := int(min(max(size, 1), window))
	buf := s.buf
	if cap(buf) < n {
		buf = make([]byte, min(max(n+n/2, 8<<10), window))
	}
	*s = source{r: r, size: size, buf: buf[:n]}
}

func (s *source) offset() int64 { return s.base + int64(s.pos) }

// more moves what is unread to the front of the window and fills the rest; false when
// there is nothing more, or no room.
func (s *source) more() bool {
	if s.eof || s.err != nil || s.pos == 0 && s.end == len(s.buf) {
		return false
	}
	s.count()
	if s.pos > 0 {
		s.last = [2]byte{s.before(2), s.before(1)}
	}
	s.counted = 0
	copy(s.buf, s.buf[s.pos:s.end])
	s.base += int64(s.pos)
	s.end -= s.pos
	s.pos = 0
	next := s.base + int64(s.end)
	want := int(min(int64(len(s.buf)-s.end), s.size-next))
	if want <= 0 {
		s.eof = next >= s.size
		return false
	}
	n, err := s.r.ReadAt(s.buf[s.end:s.end+want], next)
	s.end += n
	switch {
	case n > 0:
		// A short read ends at the end of the file, or the next read tells why.
	case err == nil:
		s.err = io.ErrNoProgress
	case errors.Is(err, io.EOF):
		s.eof = true // the file is shorter than it was
	default:
		s.err = err
	}
	return n > 0
}

// peek returns the line at pos with its line end, or as much of it as a window holds; nil
// at the end.
func (s *source) peek() []byte {
	from := s.pos
	for {
		if i := bytes.IndexByte(s.buf[from:s.end], '\n'); i >= 0 {
			return s.buf[s.pos : from+i+1]
		}
		n := s.end - s.pos
		if !s.more() {
			return s.buf[s.pos:s.end]
		}
		from = s.pos + n
	}
}

// before returns the octet n before pos, n being 1 or 2; 0 at the beginning.
func (s *source) before(n int) byte {
	if s.pos >= n {
		return s.buf[s.pos-n]
	}
	return s.last[2+s.pos-n]
}

// skip steps over the first n octets of the unread window.
func (s *source) skip(n int) {
	if n == 0 {
		return
	}
	s.pos += n
	s.cont = s.buf[s.pos-1] != '\n'
}

// count brings the counter to pos.
func (s *source) count() {
	s.add(s.buf[s.counted:s.pos])
	s.counted = s.pos
}

// skipLine steps over the rest of the line at pos.
func (s *source) skipLine() {
	for {
		b := s.peek()
		s.skip(len(b))
		if len(b) == 0 || !s.cont {
			return
		}
	}
}

// mark is a place in the message.
type mark struct{ off, octets, lines int64 }

func (s *source) mark() mark {
	s.count()
	return mark{s.offset(), s.octets, s.lines}
}

// beforeLine is the mark before the line end that precedes pos.
func (s *source) beforeLine() mark {
	m := s.mark()
	m.off--
	if s.before(2) == '\r' {
		m.off--
	}
	m.octets -= 2
	m.lines--
	return m
}
