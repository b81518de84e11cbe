package durable

import (
	"io"
	"io/fs"
	"os"
	"syscall"
)

// FS is what durable and spool ask of a file system. OS is the real one; mailtest has one
// that stops after any operation and forgets what was not synced.
type FS interface {
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	Mkdir(name string, perm fs.FileMode) error
	Link(oldname, newname string) error
	Rename(oldname, newname string) error
	// RenameNew renames and fails with fs.ErrExist when newname is there already.
	RenameNew(oldname, newname string) error
	Remove(name string) error
	Lstat(name string) (fs.FileInfo, error)
	Free(name string) (Space, error)
}

// File is an open file or directory; *os.File is one.
type File interface {
	io.Reader
	io.Writer
	io.ReaderAt
	io.WriterAt
	io.Closer
	Chmod(mode fs.FileMode) error
	Name() string
	Readdirnames(n int) ([]string, error)
	Stat() (fs.FileInfo, error)
	Sync() error
	Truncate(size int64) error
}

// Space is what a file system has left for an unprivileged user.
type Space struct {
	Bytes  int64
	Inodes int64 // -1: the file system does not count them
	// NamesWithFile: syncing a new file under its final name commits the name in the same
	// transaction, so that a directory that cannot be opened need not be synced.
	NamesWithFile bool
	Type          string // for messages: "ext4", "xfs", or a number
}

// NamesWithFile tells whether the sync of a file in dir commits the file's newest name in the
// same step, be it one it was made with or one given by a rename: where the power-cut harness
// has shown it (ext4 and xfs), and where there is nothing to lose. Not knowing is no.
func NamesWithFile(fsys FS, dir string) bool {
	space, err := fsys.Free(dir)
	if err != nil || !space.NamesWithFile {
		return false
	}
	switch space.Type {
	case "ext4":
		on, known := FastCommit(dir)
		return known && !on
	case "btrfs", "f2fs":
		return false
	}
	return true
}

// OS is the operating system's file system.
type OS struct{}

// OpenFile is os.OpenFile without its attempt to poll the file, which for a regular one fails after
// five system calls.
func (OS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	for {
		fd, err := syscall.Open(name, flag|syscall.O_CLOEXEC, uint32(perm.Perm()))
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if err != syscall.EINTR {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// Mkdir is os.Mkdir.
func (OS) Mkdir(name string, perm fs.FileMode) error { return os.Mkdir(name, perm) }

// Link is os.Link.
func (OS) Link(oldname, newname string) error { return os.Link(oldname, newname) }

// Rename is os.Rename.
func (OS) Rename(oldname, newname string) error { return os.Rename(oldname, newname) }

// RenameNew renames without replacing.
func (OS) RenameNew(oldname, newname string) error { return renameNew(oldname, newname) }

// Remove is os.Remove.
func (OS) Remove(name string) error { return os.Remove(name) }

// Lstat is os.Lstat.
func (OS) Lstat(name string) (fs.FileInfo, error) { return os.Lstat(name) }

// Free asks statfs(2).
func (OS) Free(name string) (Space, error) { return statfs(name) }

// renameNewSlow is for systems without an atomic call: link refuses to replace. Between link
// and unlink the file has two names; a crash there leaves both, which is never a loss.
func renameNewSlow(oldname, newname string) error {
	if err := os.Link(oldname, newname); err != nil {
		return err
	}
	return os.Remove(oldname)
}
