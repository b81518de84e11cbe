package pop3

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Limits of what a client may send.
const (
	// RFC 2449 §4 asks for 255 octets; passwords may be longer than that.
	maxCommand = 1024
	// Tokens of OAUTHBEARER have thousands of octets (RFC 5034 §4 sets no limit to responses),
	// and clients put them behind AUTH as well.
	maxAuthLine = 16 << 10
	// What is read over to find the end of a longer line.
	maxSkip = 1 << 20

	firstRead = 1 << 10
)

// Sizes of the buffers that are borrowed while there is something to send.
const (
	// chunk is what is read of a message at once. Where every octet is a line end, it takes
	// twice the room on the wire.
	chunk = 32 << 10
	// full is where output is sent without waiting for the end of the input.
	full    = 64 << 10
	outRoom = full + 2*chunk + 1<<10
)

// Errors of the input side.
var (
	errStopping = errors.New("server is stopping")
	errLongLine = errors.New("line is too long")
	errFlood    = errors.New("too much input to skip")
)

// pools lend buffers; an idle connection holds none but its input's.
type pools struct{ out, in sync.Pool }

func (p *pools) getOut() []byte {
	if b, ok := p.out.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, outRoom)
}

func (p *pools) putOut(b []byte) {
	if cap(b) == outRoom {
		p.out.Put(&b)
	}
}

func (p *pools) getChunk() *[chunk]byte {
	if b, ok := p.in.Get().(*[chunk]byte); ok {
		return b
	}
	return new([chunk]byte)
}

func (p *pools) putChunk(b *[chunk]byte) { p.in.Put(b) }

// input reads lines from the connection. Before it waits for the client it calls flush, so that
// the replies of a whole group of commands leave together.
type input struct {
	ctx     context.Context
	conn    net.Conn
	timeout time.Duration
	flush   func() error

	buf      []byte
	r, w     int
	deadline time.Time // of the line being read; zero: not waiting yet
}

func (in *input) buffered() []byte { return in.buf[in.r:in.w] }

// discard forgets what was received and not looked at.
func (in *input) discard() int {
	n := in.w - in.r
	in.buf, in.r, in.w = nil, 0, 0
	return n
}

// shed forgets what was read already, passwords among it, and keeps no more room than the rest needs.
func (in *input) shed() []byte {
	rest := bytes.Clone(in.buffered())
	clear(in.buf)
	in.buf, in.r, in.w = rest, 0, len(rest)
	return rest
}

// line returns the next line without its end, valid until the next call. A line may end in LF
// alone, as people type it: nothing that follows is read differently for it.
func (in *input) line(limit int) ([]byte, error) {
	in.deadline = time.Time{}
	seen := 0
	for {
		b := in.buffered()
		if i := bytes.IndexByte(b[seen:], '\n'); i >= 0 {
			in.r += seen + i + 1
			line := bytes.TrimSuffix(b[:seen+i], []byte{'\r'})
			if len(line) > longer(line, limit) {
				return nil, errLongLine
			}
			return line, nil
		}
		if seen = len(b); seen > longer(b, limit) {
			return nil, in.skip()
		}
		if err := in.fill(); err != nil {
			return nil, err
		}
	}
}

// longer lets AUTH have its length with an initial response as well. RFC 5034 §4 keeps that to
// the length of a command; clients with tokens do not.
func longer(b []byte, limit int) int {
	if len(b) >= 5 && bytes.EqualFold(b[:5], []byte("AUTH ")) {
		return maxAuthLine
	}
	return limit
}

// skip reads over the rest of a line.
func (in *input) skip() error {
	for n := 0; ; {
		b := in.buffered()
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			in.r += i + 1
			return errLongLine
		}
		if n += len(b); n > maxSkip {
			return errFlood
		}
		in.r = in.w
		if err := in.fill(); err != nil {
			return err
		}
	}
}

// fill waits for more input.
func (in *input) fill() error {
	if err := in.flush(); err != nil {
		return err
	}
	in.room()
	if in.deadline.IsZero() {
		in.deadline = time.Now().Add(in.timeout)
	}
	for {
		// The deadline is set before looking at ctx: whoever ends ctx moves the deadline after.
		if err := in.conn.SetReadDeadline(in.deadline); err != nil {
			return err
		}
		if in.ctx.Err() != nil {
			return errStopping
		}
		n, err := in.conn.Read(in.buf[in.w:])
		in.w += n
		switch {
		case n > 0:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded) && in.ctx.Err() != nil && time.Now().Before(in.deadline):
			continue // woken by the end of ctx, not by the clock
		case err == nil:
			return io.ErrNoProgress
		}
		return err
	}
}

// room makes place for more input.
func (in *input) room() {
	switch {
	case in.r == in.w:
		in.r, in.w = 0, 0
	case in.r > 0:
		in.w = copy(in.buf, in.buffered())
		in.r = 0
	}
	if in.w == len(in.buf) {
		b := make([]byte, max(2*len(in.buf), firstRead))
		copy(b, in.buf[:in.w])
		in.buf = b
	}
}
