package smtp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Buffer sizes. A command group fits the small one; the large one serves message data and the
// few lines that are longer (AUTH).
const (
	smallBuffer = 4 << 10
	largeBuffer = 32 << 10
)

// pools lend buffers to connections that have something to say. An idle connection holds none,
// which is what lets one process keep thousands of them.
type pools struct {
	small, large sync.Pool
}

func (p *pools) get(size int) []byte {
	pool := &p.small
	if size > smallBuffer {
		pool, size = &p.large, largeBuffer
	} else {
		size = smallBuffer
	}
	if b, ok := pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, size)
}

func (p *pools) put(b []byte) {
	b = b[:cap(b)]
	switch cap(b) {
	case smallBuffer:
		p.small.Put(&b)
	case largeBuffer:
		p.large.Put(&b)
	}
}

// Errors of the input side.
var (
	errStopping = errors.New("server is stopping")
	errLongLine = errors.New("line too long")
	errBareLF   = errors.New("bare LF")
	errBareCR   = errors.New("bare CR")
	errFlood    = errors.New("too much input to skip")
)

// input reads from the connection. It knows lines, not commands. Before it waits for the
// client it calls flush, so that all replies so far leave in one write.
type input struct {
	ctx   context.Context
	conn  net.Conn
	raw   syscall.RawConn // nil: a buffer must be held while waiting (TLS, pipes)
	pools *pools
	now   func() time.Time
	flush func() error

	buf  []byte // nil while idle
	r, w int
	rawN int // result of readRaw
	rawE error
	read func(fd uintptr) bool // readRaw, made once

	timeout  time.Duration
	deadline time.Time // of the line or block being read; zero: not waiting yet
	finish   bool      // in a message: a stopping server reads it to the end
}

func (in *input) attach(conn net.Conn) {
	in.conn, in.raw = conn, nil
	if sc, ok := conn.(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			in.raw = rc
			in.read = in.readRaw
		}
	}
}

// discard forgets what was received and not looked at.
func (in *input) discard() (n int) {
	n = in.w - in.r
	in.release()
	return n
}

func (in *input) release() {
	if in.buf != nil {
		in.pools.put(in.buf)
	}
	in.buf, in.r, in.w = nil, 0, 0
}

func (in *input) buffered() []byte { return in.buf[in.r:in.w] }

// enlarge moves to the large buffer.
func (in *input) enlarge() {
	if cap(in.buf) == largeBuffer {
		return
	}
	b := in.pools.get(largeBuffer)
	n := copy(b, in.buffered())
	in.release()
	in.buf, in.w = b, n
}

// readRaw is called when the socket may be readable, and takes a buffer only if it is.
func (in *input) readRaw(fd uintptr) bool {
	borrowed := in.buf == nil
	if borrowed {
		in.buf = in.pools.get(smallBuffer)
	}
	for {
		n, err := syscall.Read(int(fd), in.buf[in.w:])
		if err == syscall.EINTR {
			continue
		}
		if err == syscall.EAGAIN {
			if borrowed {
				in.release()
			}
			return false
		}
		in.rawN, in.rawE = max(n, 0), err
		if n == 0 && err == nil {
			in.rawE = io.EOF
		}
		return true
	}
}

// fill waits for more input. There is room for it: callers never let the buffer fill up.
func (in *input) fill() error {
	if err := in.flush(); err != nil {
		return err
	}
	if in.r == in.w {
		if in.raw != nil && cap(in.buf) == smallBuffer {
			in.release()
		}
		in.r, in.w = 0, 0
	}
	if in.r > 0 {
		in.w = copy(in.buf, in.buffered())
		in.r = 0
	}
	if in.deadline.IsZero() {
		in.deadline = in.now().Add(in.timeout)
	}
	for {
		// The deadline is set before looking at ctx: whoever ends ctx moves the deadline after.
		if err := in.conn.SetReadDeadline(in.deadline); err != nil {
			return err
		}
		if in.ctx.Err() != nil && !in.finish {
			return errStopping
		}
		n, err := in.readOnce()
		in.w += n
		if n > 0 {
			return nil
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && in.ctx.Err() != nil && in.now().Before(in.deadline) {
			continue // woken by the end of ctx, not by the clock
		}
		if err == nil {
			err = io.ErrNoProgress
		}
		return err
	}
}

func (in *input) readOnce() (int, error) {
	if in.raw == nil {
		if in.buf == nil {
			in.buf = in.pools.get(smallBuffer)
		}
		return in.conn.Read(in.buf[in.w:])
	}
	in.rawN, in.rawE = 0, nil
	if err := in.raw.Read(in.read); err != nil {
		return 0, err
	}
	return in.rawN, in.rawE
}

// line returns the next line without its CRLF; it is valid until the next call. Every line ends
// in CRLF and nothing else (RFC 5321 §2.3.8): a line with a bare CR or LF is an error after which
// the two sides disagree about where commands begin.
func (in *input) line(limit int) ([]byte, error) {
	in.deadline = time.Time{}
	seen := 0
	for {
		b := in.buffered()
		if i := bytes.IndexByte(b[seen:], '\n'); i >= 0 {
			return in.take(seen+i, longer(b, limit))
		}
		seen = len(b)
		if seen > longer(b, limit) {
			return nil, in.skipLine()
		}
		if seen == cap(in.buf) && seen > 0 {
			in.enlarge()
		}
		if err := in.fill(); err != nil {
			return nil, err
		}
	}
}

// longer lets AUTH have its length with an initial response as well. RFC 4954 §4 keeps that to
// the length of a command, but clients put tokens of several thousand octets there.
func longer(b []byte, limit int) int {
	if len(b) >= 5 && bytes.EqualFold(b[:5], []byte("AUTH ")) {
		return max(limit, maxAuthLine)
	}
	return limit
}

func (in *input) take(end, limit int) ([]byte, error) {
	b := in.buffered()[:end+1]
	in.r += end + 1
	switch {
	case end > limit:
		return nil, errLongLine
	case end == 0 || b[end-1] != '\r':
		return nil, errBareLF
	case bytes.IndexByte(b[:end-1], '\r') >= 0:
		return nil, errBareCR
	}
	return b[:end-1], nil
}

// skipLimit bounds what is read to find the end of an over-long line.
const skipLimit = 1 << 20

func (in *input) skipLine() error {
	skipped := 0
	for {
		b := in.buffered()
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			in.r += i + 1
			return errLongLine
		}
		skipped += len(b)
		in.r = in.w
		if skipped > skipLimit {
			return errFlood
		}
		if err := in.fill(); err != nil {
			return err
		}
	}
}
