package mailbox

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"pennypost/internal/durable"
)

// unlinked tells whether err says that a file can have no second name, or no other one, there:
// the folders are on two file systems, a file has all the names that it can have, or the system
// grants links to owners alone.
func unlinked(err error) bool {
	for _, e := range []error{syscall.EXDEV, syscall.EMLINK, syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOSYS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// duplicate makes a copy of a message, durable but for its name, with the same date.
func (m *Mailbox) duplicate(ctx context.Context, from *durable.Names, old string, to *durable.Names, name string) error {
	src, err := m.fs().OpenFile(filepath.Join(from.Path(), old), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errNoFile
	}
	if err != nil {
		return err
	}
	tmp := filepath.Join(m.dir, "tmp", m.store.namer.Base())
	f, err := m.fs().OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	bp := m.store.bufs.Get().(*[]byte)
	defer m.store.bufs.Put(bp)
	n := int64(0)
	for err == nil {
		var k int
		if k, err = src.ReadAt(*bp, n); k > 0 {
			n += int64(k)
			if _, werr := f.Write((*bp)[:k]); werr != nil {
				err = werr
			}
		}
		if err == nil {
			err = ctx.Err()
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err == nil {
		err = durable.Chtimes(m.fs(), tmp, info.ModTime())
	}
	if err == nil {
		err = durable.Sync(f)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = m.fs().RenameNew(tmp, filepath.Join(to.Path(), name))
	}
	if err != nil {
		_ = m.fs().Remove(tmp) // a leftover in tmp/ is swept one day
	}
	return err
}
