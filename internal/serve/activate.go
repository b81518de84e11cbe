package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// firstFd is where systemd's protocol puts the first passed descriptor, sd_listen_fds(3).
const firstFd = 3

// passedFds are the descriptors an activator passed to this very process.
type passedFds struct {
	files []*os.File
	names []string
}

// passed reads LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES. The variables stay: a child has
// another pid and will not take them for its own.
func passed() (*passedFds, error) {
	p := &passedFds{}
	pid, err := strconv.Atoi(os.Getenv("LISTEN_PID"))
	if err != nil || pid != os.Getpid() {
		return p, nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 || n > 1000 {
		return nil, fmt.Errorf("LISTEN_FDS=%q is no number of descriptors", os.Getenv("LISTEN_FDS"))
	}
	if s := os.Getenv("LISTEN_FDNAMES"); s != "" {
		p.names = strings.Split(s, ":")
	}
	for fd := firstFd; fd < firstFd+n; fd++ {
		unix.CloseOnExec(fd)
		p.files = append(p.files, os.NewFile(uintptr(fd), "fd "+strconv.Itoa(fd)))
	}
	return p, nil
}

// activated tells whether passed would find sockets. It makes no files of the descriptors, so
// that nothing closes them when it is collected.
func activated() bool {
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	return err == nil && n > 0 && os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid())
}

// Single tells whether Run serves one connection that somebody else accepted, and then ends.
func Single(listen []Listener) bool {
	switch {
	case activated():
		return isSocket(firstFd) && !acceptsConns(firstFd)
	case len(listen) > 0:
		return false
	}
	return isSocket(0) && !isPairEnd(0) && !acceptsConns(0)
}

func (p *passedFds) name(i int) string {
	if i < len(p.names) {
		return p.names[i]
	}
	return ""
}

// listening tells whether the first passed descriptor is a listening socket. Go's
// net.FileListener would also take a connected one and fail at the first Accept.
func (p *passedFds) listening() bool {
	return len(p.files) > 0 && isSocket(firstFd) && acceptsConns(firstFd)
}

func (p *passedFds) connected() bool {
	return len(p.files) > 0 && isSocket(firstFd) && !acceptsConns(firstFd) && socketType(firstFd) == unix.SOCK_STREAM
}

func (p *passedFds) close() {
	for _, f := range p.files {
		f.Close()
	}
}

func isSocket(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK
}

func acceptsConns(fd int) bool {
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && v != 0
}

func socketType(fd int) int {
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return -1
	}
	return v
}

// sameFile tells whether two descriptors are the same socket, pipe or file.
func sameFile(a, b int) bool {
	var x, y unix.Stat_t
	return unix.Fstat(a, &x) == nil && unix.Fstat(b, &y) == nil && x.Dev == y.Dev && x.Ino == y.Ino
}

// isPairEnd tells whether fd is one way of two: programs in some languages (and one shell) make
// socket pairs where others make pipes, one for input and one for output. A socket a client
// connected to has a name; a journal stream on fd 1 does not matter then.
func isPairEnd(fd int) bool {
	if sameFile(0, 1) {
		return false
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	u, ok := sa.(*unix.SockaddrUnix)
	return ok && (u.Name == "" || u.Name == "@") // the latter is how x/sys shows no name on Linux
}

// Fd2IsClient tells whether standard error is the client's connection, as under inetd and
// under systemd with StandardInput=socket. A log line there would be read as a reply.
func Fd2IsClient() bool {
	return isSocket(0) && isSocket(2) && sameFile(0, 2)
}

func fileListener(f *os.File) (net.Listener, error) {
	fd := int(f.Fd())
	if !isSocket(fd) || !acceptsConns(fd) {
		return nil, fmt.Errorf("%s is not a listening stream socket", f.Name())
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the starter goes on listening there
	}
	return l, nil
}

func listen(ctx context.Context, l Listener) (net.Listener, error) {
	var lc net.ListenConfig
	if !l.unix() {
		return lc.Listen(ctx, "tcp", l.Addr)
	}
	if err := removeStale(l.Addr); err != nil {
		return nil, err
	}
	n, err := lc.Listen(ctx, "unix", l.Addr)
	if err != nil {
		return nil, err
	}
	mode := l.Mode
	if mode == 0 {
		mode = 0o666
	}
	if err := os.Chmod(l.Addr, mode); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// removeStale takes away a socket file nobody listens on, left by a process that was killed.
func removeStale(path string) error {
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode().Type() != os.ModeSocket {
		return nil // bind says what is wrong, if anything is
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return errors.New("another process is serving there")
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return os.Remove(path)
	}
	return nil
}

// prepare sets what a passed socket may lack: replies are written whole, so waiting for more
// (Nagle) would only add the peer's delayed-ACK time.
func prepare(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetNoDelay(true) // fails only on a connection that is gone; the next read says so
	}
}

func peerOf(c net.Conn) Peer {
	var p Peer
	switch c := c.(type) {
	case *net.TCPConn:
		p.Addr, p.Local = addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())
	case *net.UnixConn:
		p.Unix = true
		p.Cred, p.CredErr = credOf(c)
	}
	return p
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok || t == nil {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// peerFromEnv is the peer as systemd (REMOTE_ADDR) or a UCSPI server (TCPREMOTEIP) tells it.
func peerFromEnv() netip.AddrPort {
	for _, v := range [][2]string{{"REMOTE_ADDR", "REMOTE_PORT"}, {"TCPREMOTEIP", "TCPREMOTEPORT"}} {
		ip, err := netip.ParseAddr(os.Getenv(v[0]))
		if err != nil {
			continue
		}
		port, err := strconv.ParseUint(os.Getenv(v[1]), 10, 16)
		if err != nil {
			port = 0
		}
		return netip.AddrPortFrom(ip.Unmap(), uint16(port))
	}
	return netip.AddrPort{}
}

// credOf asks the kernel who connected.
func credOf(c *net.UnixConn) (*Cred, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *Cred
	var credErr error
	if err := rc.Control(func(fd uintptr) { cred, credErr = peerCred(int(fd)) }); err != nil {
		return nil, err
	}
	return cred, credErr
}

// ready tells whoever started us that the sockets are open.
func ready(fd int) error {
	var err error
	if fd > 0 {
		f := os.NewFile(uintptr(fd), "notify fd")
		if f == nil {
			return fmt.Errorf("notify fd %d is not open", fd)
		}
		_, err = f.Write([]byte("\n"))
		err = errors.Join(err, f.Close())
	}
	return errors.Join(err, notify("READY=1"))
}

// notify speaks sd_notify(3): one datagram to $NOTIFY_SOCKET.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" || path[0] != '/' && path[0] != '@' {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	_, err = c.Write([]byte(state))
	return errors.Join(err, c.Close())
}
