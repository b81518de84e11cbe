package durable

import (
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Names is a directory held open for many changes of the names in it; paths are looked up
// once. It may be used concurrently, except Close.
type Names struct {
	fsys FS
	path string
	f    File
	fd   int // -1: fsys is not the operating system's
}

// OpenNames opens a directory for changes of names.
func OpenNames(fsys FS, path string) (*Names, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY|openDirectory, 0)
	if err != nil {
		return nil, err
	}
	n := &Names{fsys: fsys, path: path, f: f, fd: -1}
	if o, ok := f.(interface{ Fd() uintptr }); ok {
		n.fd = int(o.Fd())
	}
	return n, nil
}

// Path is the directory's.
func (n *Names) Path() string { return n.path }

func (n *Names) join(name string) string { return filepath.Join(n.path, name) }

// RenameNew gives name another name in to, and fails with fs.ErrExist when that is there
// already. Where the system cannot do both in one step, it looks first: good for names that no
// two programs choose.
func (n *Names) RenameNew(name string, to *Names, newname string) error {
	if n.fd >= 0 && to.fd >= 0 {
		return renameNewAt(n, name, to, newname)
	}
	return n.fsys.RenameNew(n.join(name), to.join(newname))
}

// Link gives name a second name in to, which must not exist.
func (n *Names) Link(name string, to *Names, newname string) error {
	if n.fd >= 0 && to.fd >= 0 {
		return linkAt(n, name, to, newname)
	}
	return n.fsys.Link(n.join(name), to.join(newname))
}

// Remove removes a name of a file.
func (n *Names) Remove(name string) error {
	if n.fd >= 0 {
		return removeAt(n, name)
	}
	return n.fsys.Remove(n.join(name))
}

// Lstat is about a name.
func (n *Names) Lstat(name string) (fs.FileInfo, error) { return n.fsys.Lstat(n.join(name)) }

// Sync puts the names on stable storage.
func (n *Names) Sync() error { return syncDirFile(n.f) }

// Close closes the directory.
func (n *Names) Close() error { return n.f.Close() }

// Chtimes sets a file's time of change, which a Maildir keeps as the date of the message.
func Chtimes(fsys FS, name string, mtime time.Time) error {
	if c, ok := fsys.(interface {
		Chtimes(name string, atime, mtime time.Time) error
	}); ok {
		return c.Chtimes(name, time.Now(), mtime)
	}
	return fs.ErrInvalid
}

// Chtimes is os.Chtimes.
func (OS) Chtimes(name string, atime, mtime time.Time) error { return os.Chtimes(name, atime, mtime) }
