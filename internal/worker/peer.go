package worker

import (
	"fmt"
	"net"
)

// CheckPeer returns nil when the other end of c runs as uid. A negative uid expects nobody in
// particular: the rights of the socket file decide.
func CheckPeer(c *net.UnixConn, uid int) error {
	if uid < 0 {
		return nil
	}
	got, err := PeerUID(c)
	if err != nil {
		return err
	}
	if got != uid {
		return fmt.Errorf("other end of the worker socket runs as uid %d, expected %d", got, uid)
	}
	return nil
}
