//go:build darwin || freebsd

package worker

import (
	"net"

	"golang.org/x/sys/unix"
)

// solLocal is the level of LOCAL_PEERCRED, which x/sys names on darwin only.
const solLocal = 0

// PeerUID asks the kernel which user is at the other end of a UNIX socket.
func PeerUID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	uid := -1
	cerr := raw.Control(func(fd uintptr) {
		var u *unix.Xucred
		if u, err = unix.GetsockoptXucred(int(fd), solLocal, unix.LOCAL_PEERCRED); err == nil {
			uid = int(u.Uid)
		}
	})
	if cerr != nil {
		return -1, cerr
	}
	return uid, err
}
