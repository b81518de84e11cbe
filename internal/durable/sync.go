package durable

import (
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const openDirectory = unix.O_DIRECTORY

// The functions below are the only callers of Sync and WriteOut in the project. The power-cut
// harness builds writers with one of them emptied and demands that mail is then lost.

// syncFile puts the bytes of a file on stable storage.
func syncFile(f File) error { return f.Sync() }

// syncDirFile puts the names of an open directory on stable storage.
func syncDirFile(f File) error { return f.Sync() }

// writeOut gives the bytes of a file to the disk and waits until it has them; they may be in its
// cache still.
func writeOut(f File) error {
	if w, ok := f.(interface{ WriteOut() error }); ok {
		return w.WriteOut()
	}
	return writeOutFile(f)
}

func nlink(i fs.FileInfo) uint64 {
	if st, ok := i.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Nlink)
	}
	return 1
}

func sameFile(a, b fs.FileInfo) bool { return os.SameFile(a, b) }

// SameFile is os.SameFile for any FS whose files have a Stat_t.
func SameFile(a, b fs.FileInfo) bool {
	x, ok1 := a.Sys().(*syscall.Stat_t)
	y, ok2 := b.Sys().(*syscall.Stat_t)
	return ok1 && ok2 && x.Ino == y.Ino && x.Dev == y.Dev
}
