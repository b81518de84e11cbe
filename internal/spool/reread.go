package spool

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Reread gives back the message as written so far, from its first octet: submit begins a
// message again in another form when a late byte asks for it.
func (w *Writer) Reread() (io.ReadCloser, error) {
	if w.err != nil || w.done {
		return nil, errors.Join(w.err, errFinished(w.done))
	}
	if w.err = w.flush(); w.err != nil {
		return nil, w.err
	}
	f, err := w.s.fsys.OpenFile(w.s.path(dirIncoming, w.id), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, int64(headerLen)+w.h.envelope, w.h.message), f}, nil
}
