//go:build !linux

package durable

import (
	"errors"

	"golang.org/x/sys/unix"
)

// FastCommit is about ext4, which only Linux has.
func FastCommit(string) (on, known bool) { return false, true }

// writeOutFile has no gentler way than a sync.
func writeOutFile(f File) error { return syncFile(f) }

func renameNew(oldname, newname string) error { return renameNewSlow(oldname, newname) }

// lockFile takes a flock(2) lock, which like Linux's OFD locks belongs to the open file.
func lockFile(fd uintptr, shared, try bool) error {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	if try {
		how |= unix.LOCK_NB
	}
	for {
		err := unix.Flock(int(fd), how)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrLocked
		}
		return err
	}
}

func unlockFile(fd uintptr) error { return unix.Flock(int(fd), unix.LOCK_UN) }
