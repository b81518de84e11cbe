package durable

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// statfs never promises NamesWithFile: no file system of this system is measured.
func statfs(name string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(name, &st); err != nil {
		return Space{}, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return Space{
		Bytes: st.F_bavail * int64(st.F_bsize), Inodes: int64(st.F_ffree),
		Type: unix.ByteSliceToString(st.F_fstypename[:]),
	}, nil
}
