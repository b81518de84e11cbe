package durable

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// statfs never promises NamesWithFile: no file system of this system is measured.
func statfs(name string) (Space, error) {
	var st unix.Statvfs_t
	if err := unix.Statvfs(name, &st); err != nil {
		return Space{}, &fs.PathError{Op: "statvfs", Path: name, Err: err}
	}
	return Space{
		Bytes: int64(st.Bavail * st.Frsize), Inodes: int64(st.Favail),
		Type: unix.ByteSliceToString(st.Fstypename[:]),
	}, nil
}
