package deliver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"pennypost/internal/envelope"
)

const (
	inMemory  = 64 << 10 // messages up to this size are read once and kept for all recipients
	maxHeader = 1 << 20  // how far the header is searched for Delivered-To
)

// errShort says that the descriptor holds less than the request promised.
var errShort = errors.New("message file is shorter than announced")

// message is the bytes to deliver. The descriptor may be shared with other deliveries and is
// read by position only.
type message struct {
	src       io.ReaderAt
	off, size int64
	data      []byte // all of it, when small
	crlf      bool   // every line ends in CRLF: stored with LF
	loops     []string
}

func newMessage(f *os.File, off, size int64, eol string) (*message, error) {
	if off < 0 || size < 0 {
		return nil, fmt.Errorf("impossible message range %d+%d", off, size)
	}
	m := &message{src: f, off: off, size: size}
	if size <= inMemory {
		m.data = make([]byte, size)
		if n, err := f.ReadAt(m.data, off); int64(n) < size {
			return nil, fmt.Errorf("read message: %w", errors.Join(errShort, err))
		}
		m.src, m.off = bytes.NewReader(m.data), 0
	}
	head := make([]byte, min(size, maxHeader))
	if m.data != nil {
		head = m.data
	} else if n, err := m.src.ReadAt(head, m.off); n < len(head) {
		return nil, fmt.Errorf("read message: %w", errors.Join(errShort, err))
	}
	m.loops = deliveredTo(head)
	if eol == envelope.EOLWire {
		var err error
		if m.crlf, err = allCRLF(m.raw()); err != nil {
			return nil, fmt.Errorf("read message: %w", err)
		}
	}
	return m, nil
}

// raw reads the bytes as they are. It fails when there are fewer than announced: a short read
// must never become a short message.
func (m *message) raw() io.Reader {
	return &exact{r: io.NewSectionReader(m.src, m.off, m.size), left: m.size}
}

// reader reads the bytes as they are stored.
func (m *message) reader() io.Reader {
	if m.crlf {
		return &lfReader{r: m.raw()}
	}
	return m.raw()
}

type exact struct {
	r    io.Reader
	left int64
}

func (e *exact) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = errShort
	}
	return n, err
}

// lfReader turns CRLF into LF. It is used only where every CR is part of one.
type lfReader struct{ r io.Reader }

func (l *lfReader) Read(p []byte) (int, error) {
	for {
		n, err := l.r.Read(p)
		out := p[:0]
		for rest := p[:n]; len(rest) > 0; {
			i := bytes.IndexByte(rest, '\r')
			if i < 0 {
				out = append(out, rest...)
				break
			}
			out = append(out, rest[:i]...)
			rest = rest[i+1:]
		}
		if len(out) > 0 || err != nil || len(p) == 0 {
			return len(out), err
		}
	}
}

// allCRLF tells whether LF form can reproduce r exactly: each LF follows a CR, each CR comes
// before an LF, there is no NUL, and the last line is ended.
func allCRLF(r io.Reader) (bool, error) {
	buf := make([]byte, 32<<10)
	cr, last := false, byte('\n')
	for {
		n, err := r.Read(buf)
		for _, c := range buf[:n] {
			if c == 0 || (c == '\n') != cr {
				return false, nil
			}
			cr, last = c == '\r', c
		}
		if err == io.EOF {
			return last == '\n', nil
		}
		if err != nil {
			return false, err
		}
	}
}

// deliveredTo returns the values of the Delivered-To lines in the header at the start of b.
func deliveredTo(b []byte) []string {
	var all []string
	const field = "delivered-to:"
	for len(b) > 0 {
		line := b
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			line, b = b[:i], b[i+1:]
		} else {
			b = nil
		}
		line = bytes.TrimSuffix(line, []byte{'\r'})
		if len(line) == 0 {
			break
		}
		if len(line) > len(field) && bytes.EqualFold(line[:len(field)], []byte(field)) {
			all = append(all, strings.TrimSpace(string(line[len(field):])))
		}
	}
	return all
}

// deliveredTo tells whether the header says that addr had the message before. Local domains
// fold case, and so does the comparison.
func (m *message) deliveredTo(addr string) bool {
	for _, l := range m.loops {
		if strings.EqualFold(l, addr) {
			return true
		}
	}
	return false
}
