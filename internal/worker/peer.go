package worker

import (
	"fmt"
	"net"
)

// CheckPeer returns nil when the other end of c runs as uid, or when root made the socket: under
// a service manager the kernel names who called listen(2), whatever user then serves there. A
// negative uid expects nobody in particular: the rights of the socket file decide.
func CheckPeer(c *net.UnixConn, uid int) error {
	if uid < 0 {
		return nil
	}
	got, err := PeerUID(c)
	if err != nil {
		return err
	}
	if !mayServe(got, uid) {
		return fmt.Errorf("other end of the worker socket runs as uid %d, expected %d", got, uid)
	}
	return nil
}

// mayServe tells whether the holder of a socket, as the kernel names it, may stand for uid.
func mayServe(holder, uid int) bool { return holder == uid || holder == 0 }
