package certs

import (
	"io/fs"
	"syscall"
)

// inode tells a replaced file from the one before, however alike they are otherwise.
func inode(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Ino)
	}
	return 0
}
