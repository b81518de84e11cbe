package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"pennypost/internal/durable"
)

// View reads the queue without the scheduler lock, as mqueue list and show do. What it returns
// may be gone a moment later: an error that is fs.ErrNotExist means the message left. It may
// be used concurrently.
type View struct{ s *Spool }

// View gives read access to the queue.
func (s *Spool) View() *View { return &View{s: s} }

// Queue is the scheduler's view: whoever has one is the only one who takes messages out. It
// may be used concurrently, but each id by one goroutine at a time.
type Queue struct {
	*View
	lock *durable.FileLock
	hist history
	logd *durable.Dir
}

// Lock makes the caller the spool's only scheduler. With wait it waits for the present one to
// end; otherwise it returns ErrLocked.
func (s *Spool) Lock(wait bool) (*Queue, error) {
	if err := s.checkFormat(); err != nil {
		return nil, err
	}
	var l *durable.FileLock
	if _, real := s.fsys.(durable.OS); real {
		var err error
		if l, err = durable.Lock(filepath.Join(s.dir, fileLock), !wait); err != nil {
			return nil, err
		}
	}
	logd, err := durable.OpenDirOn(s.fsys, filepath.Join(s.dir, dirLog))
	if err != nil {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
		return nil, err
	}
	q := &Queue{View: s.View(), lock: l, logd: logd}
	q.hist.s = s
	return q, nil
}

// checkFormat refuses a spool whose layout a newer release has changed.
func (s *Spool) checkFormat() error {
	f, err := s.fsys.OpenFile(filepath.Join(s.dir, fileFormat), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // made by hand; the directories decide
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, len(formatLine))
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return err
	}
	if string(b[:n]) != formatLine {
		return fmt.Errorf("%s: spool layout %q: %w", s.dir, b[:n], ErrNewerFormat)
	}
	return nil
}

// Close ends the role of scheduler.
func (q *Queue) Close() error {
	err := errors.Join(q.hist.close(), q.logd.Close())
	if q.lock != nil {
		err = errors.Join(err, q.lock.Close())
	}
	return err
}

// Incoming yields the ids in incoming/, in no order. An error ends it.
func (v *View) Incoming() iter.Seq2[string, error] { return v.ids(dirIncoming) }

// Queued yields the ids in queue/, in no order. An error ends it.
func (v *View) Queued() iter.Seq2[string, error] { return v.ids(dirQueue) }

func (v *View) ids(dir string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		f, err := v.s.fsys.OpenFile(filepath.Join(v.s.dir, dir), os.O_RDONLY, 0)
		if err != nil {
			yield("", err)
			return
		}
		defer f.Close()
		for {
			names, err := f.Readdirnames(4096)
			for _, n := range names {
				if ValidID(n) && !yield(n, nil) {
					return
				}
			}
			if err == io.EOF {
				return
			}
			if err != nil {
				yield("", err)
				return
			}
		}
	}
}

// Open opens a message of queue/.
func (v *View) Open(id string) (*Message, error) { return v.open(dirQueue, id) }

// OpenIncoming opens a message that has not been taken yet.
func (v *View) OpenIncoming(id string) (*Message, error) { return v.open(dirIncoming, id) }

func (v *View) open(dir, id string) (*Message, error) {
	if !ValidID(id) {
		return nil, fmt.Errorf("spool: %q is not a queue id", id)
	}
	m, err := v.s.read(v.s.path(dir, id), id, dir == dirIncoming)
	if err != nil {
		return nil, fmt.Errorf("spool %s: %w", id, err)
	}
	return m, nil
}

// Take moves a message from incoming/ to queue/ and opens it. No sync is needed: whichever of
// the two names survives a power cut, the message is found.
//
// ErrBusy and ErrUnfinished mean that its writer is not done: try again at the next poke or
// scan. ErrNewerFormat means leave it. After ErrCorrupt, call SetAside. ErrExists means that
// queue/ has this id already and the repeated copy is gone from incoming/.
func (q *Queue) Take(id string) (*Message, error) {
	m, err := q.open(dirIncoming, id)
	if err != nil {
		return nil, err
	}
	from, to := q.s.path(dirIncoming, id), q.s.path(dirQueue, id)
	err = q.s.fsys.RenameNew(from, to)
	if errors.Is(err, fs.ErrExist) {
		err = q.dropCopy(m, from)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("spool %s: %w", id, err), m.Close())
	}
	return m, nil
}

// dropCopy removes from incoming/ what queue/ has already: a child that was submitted again
// after a crash. The same id with other bytes is nobody's copy and goes to corrupt/.
func (q *Queue) dropCopy(m *Message, path string) error {
	old, err := q.Open(m.ID)
	if err != nil {
		return err
	}
	same := old.head == m.head
	if err := old.Close(); err != nil {
		return err
	}
	if !same {
		return fmt.Errorf("%w: queue/ has another message with this id", ErrCorrupt)
	}
	if err := q.s.fsys.Remove(path); err != nil {
		return err
	}
	return ErrExists
}

// Remove ends a message: its file, then its attempt log. In this order a crash between leaves
// a log without a message, which Clean takes; the other way round it would leave a message
// whose finished recipients are forgotten.
func (q *Queue) Remove(id string) error {
	if !ValidID(id) {
		return fmt.Errorf("spool: %q is not a queue id", id)
	}
	if err := ignoreMissing(q.s.fsys.Remove(q.s.path(dirQueue, id))); err != nil {
		return err
	}
	return ignoreMissing(q.s.fsys.Remove(q.s.path(dirLog, id)))
}

// SetAside moves a file that cannot be read from incoming/ or queue/ to corrupt/ and writes the
// reason beside it. Nothing is deleted.
func (q *Queue) SetAside(id, why string) error {
	if !ValidID(id) {
		return fmt.Errorf("spool: %q is not a queue id", id)
	}
	from := ""
	for _, dir := range []string{dirIncoming, dirQueue} {
		_, err := q.s.fsys.Lstat(q.s.path(dir, id))
		if err == nil {
			from = q.s.path(dir, id)
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if from == "" {
		return fmt.Errorf("spool %s: %w", id, fs.ErrNotExist)
	}
	name := id
	for n := 1; ; n++ {
		err := q.s.fsys.RenameNew(from, q.s.path(dirCorrupt, name))
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		name = fmt.Sprintf("%s.%d", id, n)
	}
	line := q.s.o.Now().UTC().Format(time.RFC3339) + " " + why + "\n"
	return durable.WriteFileOn(q.s.fsys, q.s.path(dirCorrupt, name+".why"), []byte(line), 0o600)
}
