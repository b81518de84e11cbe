package worker

import (
	"net"

	"golang.org/x/sys/unix"
)

// PeerUID asks the kernel which user is at the other end of a UNIX socket.
func PeerUID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	uid := -1
	cerr := raw.Control(func(fd uintptr) {
		var u *unix.Ucred
		if u, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid = int(u.Uid)
		}
	})
	if cerr != nil {
		return -1, cerr
	}
	return uid, err
}
