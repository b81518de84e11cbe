//go:build !linux

package mailbox

import "golang.org/x/sys/unix"

// bootID tells one run of the machine from the next: what was written without a sync in an
// earlier one may be lost.
func bootID() uint64 {
	tv, err := unix.SysctlTimeval("kern.boottime")
	if err != nil {
		return 1 // the same for ever: the index is then trusted after a power cut
	}
	return uint64(tv.Sec)<<1 | 1
}
