package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// helloTimeout is how long the other side may take for its first line.
const helloTimeout = 30 * time.Second

// Handler makes one attempt. f is the spool file, read with ReadAt only: its position is shared
// with mqueue. It is closed when the handler returns. ctx ends when mqueue is gone.
type Handler func(ctx context.Context, r *Request, f *os.File) *Report

// Serve is the worker's side of one connection: it speaks its hello, then calls handle for each
// request in a goroutine of its own, at most max at once (0: no limit), and writes each report
// in one write. It returns nil when mqueue closed the connection and every handler has returned,
// or, when ctx ends, after the handlers running then have reported. Close of conn is the caller's.
func Serve(ctx context.Context, conn *net.UnixConn, h Hello, handle func(ctx context.Context, r *Request, f *os.File) *Report, max int) error {
	s := &server{conn: conn, handle: handle, in: newLineReader(newRightsSource(conn))}
	defer s.in.close()
	if err := s.hello(h); err != nil {
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		return err
	}
	if max > 0 {
		s.slots = make(chan struct{}, max)
	}
	// Handlers outlive ctx (they finish and report on SIGTERM) but not the connection.
	hctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		// An error here means a closed connection, which ends the reading just as well.
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	err := s.requests(hctx)
	if ctx.Err() == nil {
		cancel() // mqueue is gone: nobody reads the reports
	}
	s.wg.Wait()
	if errors.Is(err, io.EOF) || ctx.Err() != nil {
		return nil
	}
	return err
}

type server struct {
	conn   *net.UnixConn
	in     *lineReader
	handle Handler
	slots  chan struct{}
	wg     sync.WaitGroup
	enc    encoders
	mu     sync.Mutex // of writing
}

func (s *server) hello(h Hello) error {
	if len(h.Versions) == 0 {
		h.Versions = []int{Version}
	}
	if err := s.write(h); err != nil {
		return err
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	line, err := s.in.line()
	if err != nil {
		return err
	}
	var peer Hello
	if err := decode(line, &peer, "hello"); err != nil {
		return err
	}
	if err := common(peer); err != nil {
		return err
	}
	return s.conn.SetReadDeadline(time.Time{})
}

func (s *server) requests(ctx context.Context) error {
	for {
		line, err := s.in.line()
		if err != nil {
			return err
		}
		r := new(Request)
		if err := decode(line, r, "request"); err != nil {
			return err
		}
		f, ok := s.in.file()
		if !ok {
			return fmt.Errorf("%w: request %d without a descriptor", ErrProtocol, r.Seq)
		}
		if s.slots != nil {
			s.slots <- struct{}{} // freed by handlers, each of which ends
		}
		s.wg.Go(func() { s.one(ctx, r, f) })
	}
}

func (s *server) one(ctx context.Context, r *Request, f *os.File) {
	rep := s.handle(ctx, r, f)
	_ = f.Close() // read only
	if s.slots != nil {
		<-s.slots
	}
	if rep == nil {
		rep = &Report{}
	}
	rep.Seq, rep.ID = r.Seq, r.ID
	// A write that fails means mqueue is gone; it makes the attempt again from what it has on disk.
	_ = s.write(rep)
}

func (s *server) write(v any) error {
	e := s.enc.get()
	defer s.enc.put(e)
	if err := e.enc.Encode(v); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return writeLine(s.conn, e.buf.Bytes(), nil)
}

// Inherited returns the connection a child worker finds on descriptor fd (3 by mworker(7)).
func Inherited(fd uintptr) (*net.UnixConn, error) {
	f := os.NewFile(fd, "worker socket")
	if f == nil {
		return nil, fmt.Errorf("descriptor %d is not open", fd)
	}
	return unixConn(f)
}

// unixConn takes over f, which it closes.
func unixConn(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	_ = f.Close() // FileConn made a copy
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close() // never used
		return nil, fmt.Errorf("descriptor is a %T, not a UNIX socket", c)
	}
	return u, nil
}
