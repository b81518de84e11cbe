package handover

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// askTime bounds one hand-over: the root process asks others, who may be busy.
const askTime = 45 * time.Second

// Client is the login process's end. It may be used by many goroutines at once.
type Client struct {
	path  string
	proxy proxies
}

// NewClient makes a Client of the root process behind the socket at path. Nothing is connected
// before the first hand-over.
func NewClient(path string) *Client { return &Client{path: path} }

// Do hands conn over. With an error nothing has begun and conn is the caller's, to answer on.
// With nil there is nothing more to say: the caller closes conn, and that is all. A connection
// without TLS is then held by the session; for any other Do returns when the session is over, and
// ctx asks that to end. With ErrLost there is nothing to say either: a session may have conn.
func (c *Client) Do(ctx context.Context, conn net.Conn, r Request) error {
	line, err := r.line()
	if err != nil {
		return err
	}
	if clear, ok := conn.(syscall.Conn); ok && passable(conn) {
		err := c.pass(ctx, line, clear)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = errors.Join(ErrLost, err)
		}
		return err
	}
	ours, theirs, err := pair()
	if err != nil {
		return fmt.Errorf("hand-over: %w", err)
	}
	err = c.pass(ctx, line, theirs)
	if err = errors.Join(err, theirs.Close()); err != nil {
		return errors.Join(err, ours.Close())
	}
	c.proxy.run(ctx, conn, ours)
	return nil
}

// passable tells whether a session can have the connection itself.
func passable(conn net.Conn) bool {
	switch conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}

// pass sends the request with a descriptor and waits for the answer.
func (c *Client) pass(ctx context.Context, line []byte, conn syscall.Conn) error {
	if err := trusted(c.path); err != nil {
		return fmt.Errorf("hand-over: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var d net.Dialer
	up, err := d.DialContext(ctx, "unix", c.path)
	if err != nil {
		return fmt.Errorf("hand-over: %w", err)
	}
	defer up.Close()
	stop := context.AfterFunc(ctx, func() { _ = up.SetDeadline(time.Unix(1, 0)) }) // fails only when closed
	defer stop()
	if err := send(up.(*net.UnixConn), line, conn); err != nil {
		// What it says before it hangs up is more than that it has.
		if a, rerr := readReply(up); rerr == nil && a.err() != nil {
			return a.err()
		}
		return fmt.Errorf("hand-over: %w", err)
	}
	a, err := readReply(up)
	if err != nil {
		return fmt.Errorf("hand-over: %w", err)
	}
	return a.err()
}

func readReply(r io.Reader) (a reply, err error) {
	b, err := bufio.NewReaderSize(io.LimitReader(r, 4<<10), 512).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	return a, err
}

// trusted refuses a socket that neither root nor our own user has put there: whoever answers gets
// the ticket.
func trusted(path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs neither to root nor to this user", path)
	}
	return nil
}

// send writes the line, the descriptor with its first octet.
func send(up *net.UnixConn, line []byte, conn syscall.Conn) error {
	rc, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	n := 0
	var serr error
	if err := rc.Control(func(fd uintptr) {
		n, _, serr = up.WriteMsgUnix(line, syscall.UnixRights(int(fd)), nil)
	}); err != nil {
		return err
	}
	if serr == nil && n < len(line) {
		_, serr = up.Write(line[n:])
	}
	return serr
}

// pair makes two connected sockets.
func pair() (a, b *net.UnixConn, err error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	if a, err = unixConn(fds[0]); err != nil {
		closeAll(fds[1:])
		return nil, nil, err
	}
	if b, err = unixConn(fds[1]); err != nil {
		a.Close()
		return nil, nil, err
	}
	return a, b, nil
}

// unixConn makes a connection of a descriptor, which it takes.
func unixConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "socket pair")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("no UNIX socket")
	}
	return u, nil
}
