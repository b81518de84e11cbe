//go:build !linux && !darwin && !freebsd

package worker

import (
	"errors"
	"fmt"
	"net"
)

// PeerUID would ask the kernel which user is at the other end; golang.org/x/sys has no call for
// it on this platform, so who depends on the answer refuses.
func PeerUID(*net.UnixConn) (int, error) {
	return -1, fmt.Errorf("user of a UNIX socket's other end: %w", errors.ErrUnsupported)
}
