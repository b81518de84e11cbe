//go:build freebsd || darwin

package serve

import "golang.org/x/sys/unix"

// solLocal is SOL_LOCAL of <sys/un.h>.
const solLocal = 0

func peerCred(fd int) (*Cred, error) {
	x, err := unix.GetsockoptXucred(fd, solLocal, unix.LOCAL_PEERCRED)
	if err != nil {
		return nil, err
	}
	c := &Cred{UID: int(x.Uid), GID: -1}
	if x.Ngroups > 0 {
		c.GID = int(x.Groups[0])
	}
	return c, nil
}
