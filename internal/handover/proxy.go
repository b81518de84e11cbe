package handover

import (
	"context"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	// stall ends a session whose client takes nothing, or that itself takes nothing, for so long.
	// Silence is the session's business: it has its own time-out.
	stall = 30 * time.Minute
	// grace is what a session gets to end once the login process is to stop.
	grace = 15 * time.Second

	// small is what a direction holds while there is nothing to copy.
	small = 512
	large = 16 << 10

	lingerTime   = 2 * time.Second
	lingerOctets = 256 << 10
)

// proxies copy between clients and sessions. An idle one costs two goroutines; buffers are
// borrowed while there is something to copy.
type proxies struct{ pool sync.Pool }

func (p *proxies) get() *[large]byte {
	if b, ok := p.pool.Get().(*[large]byte); ok {
		return b
	}
	return new([large]byte)
}

// run copies both ways until the session is over or the client cannot be reached any more. It
// closes session; the client's connection is left for the caller to close.
func (p *proxies) run(ctx context.Context, client net.Conn, session *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() {
		// The session sees the client leave, which is what ends a session in good order. These
		// fail only on connections that are gone.
		_ = session.CloseWrite()
		_ = client.SetReadDeadline(time.Unix(1, 0))
		_ = session.SetReadDeadline(time.Now().Add(grace))
	})
	defer stop()
	up := make(chan struct{})
	go func() {
		defer close(up)
		p.up(client, session)
	}()
	p.down(client, session)
	_ = session.Close() // whatever is left there has no reader
	if w, ok := client.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
		// Closing with unread input would make the kernel take our last words from the client.
		_ = client.SetReadDeadline(time.Now().Add(lingerTime)) // without it the client's own end has to do
	} else {
		_ = client.SetReadDeadline(time.Unix(1, 0)) // as above
	}
	<-up
}

// up copies what the client says. A client that is done, or gone, is one that the session hears
// nothing more of; it decides itself what to say then.
func (p *proxies) up(client net.Conn, session *net.UnixConn) {
	first := make([]byte, small)
	for {
		n, err := client.Read(first)
		if n == small && err == nil {
			if !p.write(session, first) || !p.more(client, session) {
				break
			}
			continue
		}
		if n > 0 && !p.write(session, first[:n]) {
			break
		}
		if err != nil {
			_ = session.CloseWrite() // fails when the session is gone, and then there is no need
			return
		}
	}
	// The session is gone: what still comes is read for a moment, so that its last words arrive.
	_, _ = io.CopyN(io.Discard, client, lingerOctets) // ends by the deadline that run sets
}

// more copies what has come while a full small buffer was read. It returns when the client
// pauses, and tells whether the session still takes anything.
func (p *proxies) more(client net.Conn, session *net.UnixConn) bool {
	b := p.get()
	defer p.pool.Put(b)
	for {
		n, err := client.Read(b[:])
		if n > 0 && !p.write(session, b[:n]) {
			return false
		}
		// The next Read says the error once more. A short one means that there is no more now.
		if err != nil || n < small {
			return true
		}
	}
}

func (p *proxies) write(c net.Conn, b []byte) bool {
	if c.SetWriteDeadline(time.Now().Add(stall)) != nil {
		return false
	}
	_, err := c.Write(b)
	return err == nil
}

// down copies what the session says, until it is over or the client does not take it.
func (p *proxies) down(client net.Conn, session *net.UnixConn) {
	rc, err := session.SyscallConn()
	if err != nil {
		return
	}
	for {
		var b *[large]byte
		n, rerr := 0, error(nil)
		err := rc.Read(func(fd uintptr) bool {
			b = p.get()
			for n, rerr = syscall.Read(int(fd), b[:]); rerr == syscall.EINTR; {
				n, rerr = syscall.Read(int(fd), b[:])
			}
			if rerr == syscall.EAGAIN {
				p.pool.Put(b)
				b = nil
				return false // wait without a buffer
			}
			return true
		})
		ok := err == nil && rerr == nil && n > 0 && p.write(client, b[:n])
		if b != nil {
			p.pool.Put(b)
		}
		if !ok {
			return
		}
	}
}
