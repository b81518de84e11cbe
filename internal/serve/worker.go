package serve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// WorkerOptions say where a worker's connections come from.
type WorkerOptions struct {
	Pair   bool        // --worker: fd 3 is one end of a socket pair made by the parent
	Listen string      // --listen: path of our own UNIX socket
	Mode   fs.FileMode // of that socket; 0 takes 0660
	UIDs   []int       // who may connect to a listening socket; empty: our own uid and root
	Spool  string      // its owner runs mqueue and may connect too; "" is nobody
	Idle   time.Duration
	Grace  time.Duration // how long requests in flight may take after ctx; default 20s
	Log    *slog.Logger
}

// WorkerHandler serves one connection of mworker(7).
type WorkerHandler func(ctx context.Context, c *net.UnixConn) error

// Worker hands over the connections of a worker: the parent's socket pair, those to its own
// socket, or those to a socket passed by systemd. With a pair it returns when the parent is gone.
func Worker(ctx context.Context, o WorkerOptions, h WorkerHandler) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Pair && !activated() {
		c, err := pair(firstFd)
		if err != nil {
			return err
		}
		defer c.Close()
		return h(ctx, c)
	}
	so := Options{Idle: o.Idle, Grace: o.Grace, Log: o.Log}
	if o.Listen != "" {
		mode := o.Mode
		if mode == 0 {
			mode = 0o660
		}
		so.Listen = []Listener{{Addr: o.Listen, Mode: mode}}
		if !so.Listen[0].unix() {
			so.Listen[0].Addr = "./" + o.Listen // a plain file name is a path here
		}
	} else if !activated() {
		return errors.New("no socket: give --worker (socket pair on fd 3), --listen PATH, or start by a socket unit")
	}
	return Run(ctx, so, func(ctx context.Context, c net.Conn, peer Peer, _ string) {
		u, ok := c.(*net.UnixConn)
		if !ok {
			o.Log.Error("a worker serves UNIX sockets only", "peer", c.RemoteAddr().String())
			return
		}
		if err := o.allowed(peer); err != nil {
			o.Log.Warn("worker connection refused", "err", err)
			return
		}
		if err := h(ctx, u); err != nil && ctx.Err() == nil {
			o.Log.Warn("worker connection ended", "err", err)
		}
	})
}

func (o WorkerOptions) allowed(p Peer) error {
	if p.Cred == nil {
		return fmt.Errorf("unknown peer: %w", p.CredErr)
	}
	uid := p.Cred.UID
	if len(o.UIDs) == 0 && (uid == 0 || uid == os.Geteuid()) {
		return nil
	}
	for _, u := range o.UIDs {
		if u == uid {
			return nil
		}
	}
	var st unix.Stat_t
	if o.Spool != "" && unix.Stat(o.Spool, &st) == nil && int(st.Uid) == uid {
		return nil
	}
	return fmt.Errorf("uid %d may not use this worker", uid)
}

func pair(fd int) (*net.UnixConn, error) {
	if !isSocket(fd) || socketType(fd) != unix.SOCK_STREAM || acceptsConns(fd) {
		return nil, fmt.Errorf("fd %d is not the end of a stream socket pair", fd)
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "worker socket")
	c, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("fd %d: %w", fd, err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("fd %d is not a UNIX socket", fd)
	}
	return u, nil
}

// PassedSockets are sockets that an activator passed to a program that is not a daemon with
// sessions: mqueue's wake-up and control sockets.
type PassedSockets struct {
	Datagram *net.UnixConn     // nil: none passed
	Stream   *net.UnixListener // nil: none passed
}

// Adopt takes over the UNIX sockets passed by systemd: a datagram socket and a listening
// stream socket, each at most once. Without LISTEN_PID being ours both are nil.
func Adopt() (PassedSockets, error) {
	var s PassedSockets
	p, err := passed()
	if err != nil {
		return s, err
	}
	defer p.close()
	for _, f := range p.files {
		fd := int(f.Fd())
		switch t := socketType(fd); {
		case t == unix.SOCK_DGRAM && s.Datagram == nil:
			c, err := net.FilePacketConn(f)
			if err != nil {
				return s, fmt.Errorf("%s: %w", f.Name(), err)
			}
			u, ok := c.(*net.UnixConn)
			if !ok {
				return s, fmt.Errorf("%s: not a UNIX datagram socket", f.Name())
			}
			s.Datagram = u
		case t == unix.SOCK_STREAM && acceptsConns(fd) && s.Stream == nil:
			l, err := fileListener(f)
			if err != nil {
				return s, err
			}
			u, ok := l.(*net.UnixListener)
			if !ok {
				return s, fmt.Errorf("%s: not a UNIX stream socket", f.Name())
			}
			s.Stream = u
		default:
			return s, fmt.Errorf("%s: a socket nobody here asked for", f.Name())
		}
	}
	return s, nil
}

// Ready tells the starter of a program that uses Adopt that it is up (sd_notify).
func Ready() error { return notify("READY=1") }
