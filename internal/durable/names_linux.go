package durable

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

func renameNewAt(n *Names, name string, to *Names, newname string) error {
	var err error
	for {
		err = unix.Renameat2(n.fd, name, to.fd, newname, unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // NFS, for one
		var st unix.Stat_t
		if err = unix.Fstatat(to.fd, newname, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
			err = unix.EEXIST
		} else if errors.Is(err, unix.ENOENT) {
			err = unix.Renameat(n.fd, name, to.fd, newname)
		}
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: n.join(name), New: to.join(newname), Err: err}
	}
	return nil
}

func linkAt(n *Names, name string, to *Names, newname string) error {
	if err := unix.Linkat(n.fd, name, to.fd, newname, 0); err != nil {
		return &os.LinkError{Op: "link", Old: n.join(name), New: to.join(newname), Err: err}
	}
	return nil
}

func removeAt(n *Names, name string) error {
	if err := unix.Unlinkat(n.fd, name, 0); err != nil {
		return &fs.PathError{Op: "unlink", Path: n.join(name), Err: err}
	}
	return nil
}
