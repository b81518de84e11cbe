//go:build freebsd || darwin || dragonfly

package durable

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// statfs never promises NamesWithFile: no file system of these systems is measured.
func statfs(name string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(name, &st); err != nil {
		return Space{}, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return Space{
		Bytes: int64(st.Bavail) * int64(st.Bsize), Inodes: int64(st.Ffree),
		Type: unix.ByteSliceToString(st.Fstypename[:]),
	}, nil
}
