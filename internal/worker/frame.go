package worker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// MaxLine bounds one line in either direction: a request for some hundred thousand recipients
// fits, a peer that never sends a line end does not fill the memory.
const MaxLine = 16 << 20

// ErrProtocol is wrapped by every error about a peer that broke mworker(7).
var ErrProtocol = errors.New("worker protocol broken")

// readBuffer is what one read asks for; most lines are far shorter.
const readBuffer = 16 << 10

// source is where lines come from: a socket that may carry descriptors, or in tests any reader.
type source interface {
	// read fills p; fds are descriptors that came with these octets.
	read(p []byte) (n int, fds []int, err error)
}

// lineReader cuts a stream into lines. Descriptors wait in a queue: a sender attaches one to
// the first octet of each request, and the kernel keeps their order, so the first descriptor
// waiting belongs to the first line that needs one.
type lineReader struct {
	src   source
	buf   []byte
	r, w  int // unread octets are buf[r:w]
	seen  int // octets of buf[r:] already searched for a line end
	files []int
}

func newLineReader(src source) *lineReader {
	return &lineReader{src: src, buf: make([]byte, readBuffer)}
}

// line returns the next line without its LF. The slice holds until the next call.
// A stream that ends inside a line ends with io.ErrUnexpectedEOF.
func (l *lineReader) line() ([]byte, error) {
	for {
		if i := bytes.IndexByte(l.buf[l.r+l.seen:l.w], '\n'); i >= 0 {
			end := l.r + l.seen + i
			s := l.buf[l.r:end]
			l.r, l.seen = end+1, 0
			return s, nil
		}
		l.seen = l.w - l.r
		if l.seen > MaxLine {
			return nil, fmt.Errorf("%w: line over %d octets", ErrProtocol, MaxLine)
		}
		l.room()
		n, fds, err := l.src.read(l.buf[l.w:])
		l.files = append(l.files, fds...)
		l.w += n
		if n > 0 {
			continue
		}
		if err == nil || err == io.EOF {
			err = io.EOF
			if l.seen > 0 {
				err = io.ErrUnexpectedEOF
			}
		}
		return nil, err
	}
}

// room makes space behind w: by moving the unread octets to the front, by a larger buffer for
// a long line, and by a small one again when the long line is gone.
func (l *lineReader) room() {
	switch {
	case l.r == l.w:
		l.r, l.w = 0, 0
		if len(l.buf) > 64*readBuffer {
			l.buf = make([]byte, readBuffer)
		}
	case l.w < len(l.buf):
	case l.r > 0:
		copy(l.buf, l.buf[l.r:l.w])
		l.w -= l.r
		l.r = 0
	default:
		l.buf = append(l.buf, make([]byte, len(l.buf))...)
	}
}

// file takes the first waiting descriptor.
func (l *lineReader) file() (*os.File, bool) {
	if len(l.files) == 0 {
		return nil, false
	}
	fd := l.files[0]
	l.files = l.files[1:]
	return os.NewFile(uintptr(fd), "message"), true
}

// close closes descriptors nobody asked for.
func (l *lineReader) close() {
	for _, fd := range l.files {
		_ = syscall.Close(fd) // a descriptor of a file read only; nothing can be lost
	}
	l.files = nil
}

// rightsSource reads a socket whose peer may send descriptors.
type rightsSource struct {
	conn *net.UnixConn
	oob  []byte
}

// maxFDs is how many descriptors one read can bring: the kernel ends a read behind the first
// octets that carry some, so a peer that keeps to one a request never sends two at once.
const maxFDs = 4

func newRightsSource(c *net.UnixConn) *rightsSource {
	return &rightsSource{conn: c, oob: make([]byte, syscall.CmsgSpace(4*maxFDs))}
}

func (s *rightsSource) read(p []byte) (int, []int, error) {
	n, oobn, flags, _, err := s.conn.ReadMsgUnix(p, s.oob)
	if oobn == 0 {
		return n, nil, err
	}
	fds, perr := parseRights(s.oob[:oobn])
	if err == nil && perr == nil && flags&syscall.MSG_CTRUNC != 0 {
		perr = fmt.Errorf("%w: too many descriptors at once", ErrProtocol)
	}
	if perr != nil {
		for _, fd := range fds {
			_ = syscall.Close(fd) // read only; nothing can be lost
		}
		return 0, nil, perr
	}
	return n, fds, err
}

func parseRights(oob []byte) ([]int, error) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: control message: %v", ErrProtocol, err)
	}
	var fds []int
	for i := range msgs {
		if msgs[i].Header.Level != syscall.SOL_SOCKET || msgs[i].Header.Type != syscall.SCM_RIGHTS {
			continue
		}
		f, err := syscall.ParseUnixRights(&msgs[i])
		fds = append(fds, f...)
		if err != nil {
			return fds, fmt.Errorf("%w: control message: %v", ErrProtocol, err)
		}
	}
	return fds, nil
}

// plainSource reads a stream that carries no descriptors: reports, and tests. The kernel closes
// descriptors a worker attaches to a report, since no room is given for them.
type plainSource struct{ r io.Reader }

func (s plainSource) read(p []byte) (int, []int, error) {
	n, err := s.r.Read(p)
	return n, nil, err
}

// encoder holds one line being made.
type encoder struct {
	buf bytes.Buffer
	enc *json.Encoder
}

// encoders hands out encoders for lines of one connection or more; lines are made outside the
// lock of the connection, so that many senders share its one writer only for the system call.
type encoders struct{ pool sync.Pool }

func (p *encoders) get() *encoder {
	if e, ok := p.pool.Get().(*encoder); ok {
		e.buf.Reset()
		return e
	}
	e := &encoder{}
	e.enc = json.NewEncoder(&e.buf)
	e.enc.SetEscapeHTML(false)
	return e
}

func (p *encoders) put(e *encoder) {
	if e.buf.Cap() <= 64*readBuffer {
		p.pool.Put(e)
	}
}

// writeLine sends one line with at most one descriptor in one system call; what the socket does
// not take at once follows without it.
func writeLine(c *net.UnixConn, line []byte, f *os.File) error {
	if f == nil {
		_, err := c.Write(line)
		return err
	}
	n, _, err := c.WriteMsgUnix(line, syscall.UnixRights(int(f.Fd())), nil)
	if err == nil && n < len(line) {
		_, err = c.Write(line[n:])
	}
	return err
}

func decode(line []byte, v any, what string) error {
	if err := json.Unmarshal(line, v); err != nil {
		return fmt.Errorf("%w: %s: %v", ErrProtocol, what, err)
	}
	return nil
}

// common tells whether both sides speak Version; the highest version both name is the one used,
// and there is one so far.
func common(h Hello) error {
	for _, v := range h.Versions {
		if v == Version {
			return nil
		}
	}
	return fmt.Errorf("%w: %.64q speaks versions %v, this program speaks %d: replace the older of both", ErrProtocol, h.Name, h.Versions, Version)
}
