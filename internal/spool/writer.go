package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"pennypost/internal/durable"
	"pennypost/internal/envelope"
)

// bufferSize is what a Writer holds in memory. A message that fits is written by one write
// with its finished first line, and makes no file before Commit.
const bufferSize = 64 << 10

const createFlags = os.O_WRONLY | os.O_CREATE | os.O_EXCL | unix.O_NOFOLLOW

// Writer takes one message into the spool. It is used by one goroutine.
type Writer struct {
	s    *Spool
	id   string
	buf  *[]byte
	f    durable.File // nil while everything fits the buffer
	h    header
	err  error // of a failed Write; Commit refuses after it
	done bool
}

// Create begins a message. It fills env's ID and Time when they are empty and writes env as it
// is then: later changes do not count. ErrFull means that the reserve of free space is
// reached. For a given ID, ErrExists means that the message is there already, complete and
// durable.
func (s *Spool) Create(env *envelope.Envelope) (*Writer, error) {
	space, err := s.fsys.Free(s.dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: %w", s.dir, ErrNoSpool)
		}
		return nil, err
	}
	if space.Bytes < s.o.FreeSpace {
		return nil, fmt.Errorf("%s: %w: %d octets free, %d are kept in reserve", s.dir, ErrFull, space.Bytes, s.o.FreeSpace)
	}
	if space.Inodes >= 0 && space.Inodes < s.o.FreeInodes {
		return nil, fmt.Errorf("%s: %w: %d inodes free, %d are kept in reserve", s.dir, ErrFull, space.Inodes, s.o.FreeInodes)
	}
	if env.Time.IsZero() {
		env.Time = s.o.Now().UTC().Truncate(time.Millisecond)
	}
	if env.EOL == "" {
		env.EOL = envelope.EOLLF
	}
	given := env.ID != ""
	if !given {
		env.ID = s.newID(env.Time)
	}
	if !ValidID(env.ID) {
		return nil, fmt.Errorf("spool: %q is not a queue id", env.ID)
	}
	line2, err := encodeEnvelope(env)
	if err != nil {
		return nil, fmt.Errorf("spool %s: %w", env.ID, err)
	}
	w := &Writer{s: s, id: env.ID, buf: s.bufs.Get().(*[]byte)}
	*w.buf = append(append((*w.buf)[:0], unfinished...), line2...)
	w.h = header{envelope: int64(len(line2)), crc: checksum(0, line2)}
	if given {
		if err := w.createGiven(); err != nil {
			return nil, fmt.Errorf("spool %s: %w", env.ID, errors.Join(err, w.Abort()))
		}
	}
	return w, nil
}

// ID is the message's queue id.
func (w *Writer) ID() string { return w.id }

// Size is the number of message octets written so far.
func (w *Writer) Size() int64 { return w.h.message }

// Write adds to the message. After an error the message can only be aborted.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil || w.done {
		return 0, errors.Join(w.err, errFinished(w.done))
	}
	if len(*w.buf)+len(p) > bufferSize {
		if w.err = w.flush(); w.err != nil {
			return 0, w.err
		}
	}
	w.h.crc = checksum(w.h.crc, p)
	w.h.message += int64(len(p))
	if len(p) < bufferSize {
		*w.buf = append(*w.buf, p...)
		return len(p), nil
	}
	n, err := w.f.Write(p)
	w.err = err
	return n, err
}

// ReadFrom adds everything r holds; io.Copy uses it.
func (w *Writer) ReadFrom(r io.Reader) (int64, error) {
	var total int64
	for {
		if w.err != nil || w.done {
			return total, errors.Join(w.err, errFinished(w.done))
		}
		b := *w.buf
		if len(b) >= bufferSize-512 {
			if w.err = w.flush(); w.err != nil {
				return total, w.err
			}
			b = *w.buf
		}
		if cap(b)-len(b) < 512 {
			b = append(b, make([]byte, 512)...)[:len(b)]
		}
		n, err := r.Read(b[len(b):cap(b)])
		p := b[len(b) : len(b)+n]
		*w.buf = b[:len(b)+n]
		w.h.crc = checksum(w.h.crc, p)
		w.h.message += int64(n)
		total += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			w.err = err // a short read must never become a short message
			return total, err
		}
	}
}

// flush writes the buffer out, making the file first.
func (w *Writer) flush() error {
	if w.f == nil {
		if err := w.create(); err != nil {
			return err
		}
	}
	_, err := w.f.Write(*w.buf)
	*w.buf = (*w.buf)[:0]
	return err
}

// create makes the file under its final name and locks it: a reader who finds it complete
// still leaves it alone until we have it on stable storage.
func (w *Writer) create() error {
	w.s.change.Lock()
	f, err := w.s.fsys.OpenFile(w.s.path(dirIncoming, w.id), createFlags, 0o640)
	w.s.change.Unlock()
	if err != nil {
		return err
	}
	w.f = f
	// Waits at most for a reader who finds the file empty and closes it again.
	if err := durable.WaitLock(f, false); err != nil {
		return err
	}
	if w.s.shared {
		return f.Chmod(0o640) // whatever the umask: the scheduler reads it by the group's right
	}
	return nil
}

// createGiven makes the file of a message whose id is derived from its parent. Finding it
// there, it sees to it that what is there is complete and durable before it says ErrExists,
// and replaces what a crashed writer left unfinished.
func (w *Writer) createGiven() error {
	for range 3 {
		err := w.create()
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		err = w.s.settle(w.id)
		if err != nil {
			return err
		}
	}
	return ErrBusy
}

// settle looks at an existing file of incoming/. It returns ErrExists when it is complete, nil
// when it was unfinished without a living writer and is gone, else why neither could be found
// out.
func (s *Spool) settle(id string) error {
	path := s.path(dirIncoming, id)
	m, err := s.read(path, id, true)
	switch {
	case err == nil:
		err = errors.Join(durable.Sync(m.f), m.Close())
		if err == nil {
			err = s.syncIncoming()
		}
		if err != nil {
			return err
		}
		return ErrExists
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, ErrUnfinished):
		return s.fsys.Remove(path)
	}
	return err
}

// Commit finishes the message. When it returns nil, the message is on stable storage under
// its name and the scheduler has been poked; otherwise nothing is left of it.
func (w *Writer) Commit() error {
	if w.err != nil || w.done {
		return errors.Join(w.err, errFinished(w.done))
	}
	err := w.finish()
	if err == nil {
		err = w.s.commit(w.f)
	}
	if err != nil {
		w.err = err
		return fmt.Errorf("spool %s: %w", w.id, errors.Join(err, w.Abort()))
	}
	// Everything is durable: an error of close could only make the sender repeat the message.
	_ = w.f.Close()
	w.release()
	w.s.Poke(w.id)
	return nil
}

// finish writes what is in the buffer and the first line.
func (w *Writer) finish() error {
	first := w.h.String()
	if w.f == nil {
		if err := w.create(); err != nil {
			return err
		}
		copy(*w.buf, first)
		_, err := w.f.Write(*w.buf)
		return err
	}
	if w.headInBuffer() {
		copy(*w.buf, first)
		_, err := w.f.Write(*w.buf)
		return err
	}
	if len(*w.buf) > 0 {
		if _, err := w.f.Write(*w.buf); err != nil {
			return err
		}
	}
	_, err := w.f.WriteAt([]byte(first), 0)
	return err
}

// headInBuffer tells whether nothing has been written yet.
func (w *Writer) headInBuffer() bool {
	return int64(len(*w.buf)) == int64(headerLen)+w.h.envelope+w.h.message
}

// Abort gives the message up and leaves nothing of it. After Commit it does nothing.
func (w *Writer) Abort() error {
	if w.done {
		return nil
	}
	var err error
	if w.f != nil {
		err = w.s.fsys.Remove(w.s.path(dirIncoming, w.id))
		// Ignored: the file has no name any more and nobody relies on its bytes.
		_ = w.f.Close()
	}
	w.release()
	return err
}

// release gives the buffer back; the Writer is of no use afterwards.
func (w *Writer) release() {
	w.done = true
	w.f = nil
	if cap(*w.buf) <= 2*bufferSize {
		w.s.bufs.Put(w.buf)
	}
	w.buf = nil
}

func errFinished(done bool) error {
	if done {
		return errors.New("spool: the message is finished")
	}
	return nil
}
