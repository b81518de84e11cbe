package message

import (
	"bytes"
	"errors"
	"io"
)

const window = 64 << 10

// Wire is a range of a stored message as a client receives it: an LF that no CR precedes is
// sent as CR LF, everything else as it is. It needs one window of memory, whatever the size
// of the message. It is not for concurrent use.
type Wire struct {
	r        io.ReaderAt
	from, to int64
	same     bool // stored and sent octets are the same

	// The next octet to send: its offset as stored and on the wire.
	at, wire int64
	prev     byte // the octet before at
	half     bool // the CR of a bare LF at `at` has been sent

	buf  []byte // window
	have []byte // octets of the window from at on
	out  []byte
}

// NewWire returns the wire form of the octets [from, to) of r. octets is its size on the
// wire when the caller knows it, else -1; when it is to-from, offsets need no search.
func NewWire(r io.ReaderAt, from, to, octets int64) *Wire {
	w := new(Wire)
	w.Reset(r, from, to, octets)
	return w
}

// Reset is NewWire in w's memory.
func (w *Wire) Reset(r io.ReaderAt, from, to, octets int64) {
	*w = Wire{r: r, from: from, to: max(from, to), same: octets == max(from, to)-from, at: from, buf: w.buf, out: w.out[:0]}
}

// fill makes have non-empty, or returns io.EOF at the end. A file that has shrunk ends
// where it ends.
func (w *Wire) fill() error {
	if len(w.have) > 0 {
		return nil
	}
	n := min(w.to-w.at, window)
	if n <= 0 {
		return io.EOF
	}
	if int64(cap(w.buf)) < n {
		w.buf = make([]byte, n)
	}
	m, err := w.r.ReadAt(w.buf[:n], w.at)
	if m > 0 {
		w.have = w.buf[:m]
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, io.EOF) {
		w.to = w.at
	}
	return err
}

func (w *Wire) advance(n int) {
	w.prev = w.have[n-1]
	w.have = w.have[n:]
	w.at += int64(n)
}

// next returns at most limit octets as they are sent and steps over them. They are valid
// until the next call.
func (w *Wire) next(limit int64) ([]byte, error) {
	if err := w.fill(); err != nil {
		return nil, err
	}
	b := w.have
	if int64(len(b)) > limit { // the wire form is never shorter
		b = b[:limit]
	}
	return w.convert(b, limit), nil
}

// convert steps over b, which begins w.have and is not empty, or over as much of it as
// makes limit octets, and returns its wire form.
func (w *Wire) convert(b []byte, limit int64) []byte {
	if w.same {
		w.wire += int64(len(b))
		w.advance(len(b))
		return b
	}
	w.out = w.out[:0]
	for len(b) > 0 && int64(len(w.out)) < limit {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			i = len(b)
		}
		if i > 0 {
			i = int(min(int64(i), limit-int64(len(w.out))))
			w.out = append(w.out, b[:i]...)
			w.advance(i)
			b = b[i:]
			continue
		}
		if w.prev != '\r' && !w.half {
			w.out = append(w.out, '\r')
			if w.half = int64(len(w.out)) == limit; w.half {
				break
			}
		}
		w.half = false
		w.out = append(w.out, '\n')
		w.advance(1)
		b = b[1:]
	}
	w.wire += int64(len(w.out))
	return w.out
}

// seek makes the octet at wire offset off the next one; io.EOF when there is none.
func (w *Wire) seek(off int64) error {
	if w.same {
		w.at, w.wire, w.have, w.half = w.from+off, off, nil, false
		return nil
	}
	if off < w.wire {
		w.at, w.wire, w.have, w.half, w.prev = w.from, 0, nil, false, 0
	}
	for w.wire < off {
		if _, err := w.next(off - w.wire); err != nil {
			return err
		}
	}
	return nil
}

// WriteRange writes n octets from wire offset off on, fewer when the range ends before. A
// range that begins where the last one ended is found without reading from the start.
func (w *Wire) WriteRange(dst io.Writer, off, n int64) (int64, error) {
	done := int64(0)
	err := w.seek(off)
	for err == nil && done < n {
		var b []byte
		if b, err = w.next(n - done); err != nil {
			break
		}
		var m int
		m, err = dst.Write(b)
		done += int64(m)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return done, err
}

// WriteTo writes what has not been written or read yet.
func (w *Wire) WriteTo(dst io.Writer) (int64, error) {
	return w.WriteRange(dst, w.wire, 1<<62)
}

// WriteLines writes whole lines, n of them at most, from where the last call ended.
func (w *Wire) WriteLines(dst io.Writer, n int64) (int64, error) {
	done := int64(0)
	for n > 0 {
		if err := w.fill(); errors.Is(err, io.EOF) {
			return done, nil
		} else if err != nil {
			return done, err
		}
		// As many octets of the window as hold n lines.
		end := 0
		for n > 0 && end < len(w.have) {
			i := bytes.IndexByte(w.have[end:], '\n')
			if i < 0 {
				end = len(w.have)
				break
			}
			end += i + 1
			n--
		}
		for stop := w.at + int64(end); w.at < stop; {
			m, err := dst.Write(w.convert(w.have[:stop-w.at], 1<<62))
			done += int64(m)
			if err != nil {
				return done, err
			}
		}
	}
	return done, nil
}

// Read reads the wire form on.
func (w *Wire) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b, err := w.next(int64(len(p)))
	return copy(p, b), err
}

// WireSize returns how many octets r has on the wire, and how many line ends.
func WireSize(r io.Reader) (octets, lines int64, err error) {
	var c counter
	buf := make([]byte, window)
	for {
		n, err := r.Read(buf)
		c.add(buf[:n])
		if errors.Is(err, io.EOF) {
			return c.octets, c.lines, nil
		}
		if err != nil {
			return c.octets, c.lines, err
		}
	}
}

// counter counts octets and line ends on the wire. prev is the last octet it saw.
type counter struct {
	octets, lines int64
	prev          byte
}

func (c *counter) add(b []byte) {
	if len(b) == 0 {
		return
	}
	lf := bytes.Count(b, []byte{'\n'})
	c.lines += int64(lf)
	c.octets += int64(len(b) + lf)
	if c.prev == '\r' && b[0] == '\n' {
		c.octets--
	}
	c.prev = b[len(b)-1]
	if lf > 0 && bytes.IndexByte(b, '\r') >= 0 {
		c.octets -= int64(bytes.Count(b, []byte("\r\n")))
	}
}
