// Package handoff is the way of a message into the spool for a program that people run. It hides
// which of three doors is open: the spool itself, the local submission socket of msmtpd, or the
// user's own spool, from which a later run hands the message on.
package handoff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"pennypost/internal/envelope"
	"pennypost/internal/spool"
	"pennypost/internal/submit"
)

// Doors through which a message went.
const (
	ViaSpool  = "spool"
	ViaSocket = "socket"
	ViaOwn    = "own"
)

// Options name the doors.
type Options struct {
	Spool    string // the spool of the installation
	Make     bool   // the spool belongs to this user alone: make it when it is missing
	Socket   string // the local submission socket; "" when there is none
	Own      string // the user's own spool; "" when there is none
	Hostname string // said in EHLO
	Limits   spool.Options
	Timeout  time.Duration // silence of the socket's other end; default 5m
}

// Door is the way messages go. It is a submit.Store for one message at a time.
type Door struct {
	o     Options
	spool *spool.Spool // nil: through the socket
	via   string
	id    string
	why   error // why the message had to wait in the own spool
}

// MissingError says that the spool is missing and that this user is the one to make it.
type MissingError struct{ Err error }

func (e *MissingError) Error() string { return e.Err.Error() }
func (e *MissingError) Unwrap() error { return e.Err }

// ExitStatus is EX_OSFILE: a file of the system is missing.
func (e *MissingError) ExitStatus() int { return envelope.ExOSFile }

// Open finds the door for this user.
func Open(o Options) (*Door, error) {
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Minute
	}
	d := &Door{o: o}
	in := filepath.Join(o.Spool, "incoming")
	err := unix.Access(in, unix.W_OK|unix.X_OK)
	if errors.Is(err, fs.ErrNotExist) {
		if !o.Make {
			return d, d.missing()
		}
		if err := spool.Init(o.Spool); err != nil {
			return nil, fmt.Errorf("cannot make the spool: %w", err)
		}
		err = nil
	}
	if err == nil {
		d.spool, err = spool.Open(o.Spool, o.Limits)
		return d, err
	}
	return d, nil
}

// missing tells whether a missing spool is this user's to make. Anybody else goes by the
// socket or waits.
func (d *Door) missing() error {
	if _, err := os.Lstat(d.o.Socket); err == nil {
		return nil
	}
	if unix.Access(filepath.Dir(d.o.Spool), unix.W_OK|unix.X_OK) == nil {
		return &MissingError{fmt.Errorf("%s: %w (mqueue init makes one)", d.o.Spool, spool.ErrNoSpool)}
	}
	return nil
}

// Direct tells whether messages go straight into the spool.
func (d *Door) Direct() bool { return d.spool != nil }

// Via tells which way the committed message went.
func (d *Door) Via() string { return d.via }

// ID is the queue id of the committed message, "" when the other end did not tell.
func (d *Door) ID() string { return d.id }

// Waiting is why the committed message waits in the own spool, nil when it does not.
func (d *Door) Waiting() error { return d.why }

// Close releases the spool.
func (d *Door) Close() error {
	if d.spool == nil {
		return nil
	}
	return d.spool.Close()
}

// Create implements submit.Store.
func (d *Door) Create(env *envelope.Envelope) (submit.Draft, error) {
	if d.spool == nil {
		h := newHeld(env)
		h.commit = func() error { return d.give(&h.env, h) }
		return h, nil
	}
	w, err := d.spool.Create(env)
	if err != nil {
		return nil, err
	}
	return &direct{w, d}, nil
}

type direct struct {
	*spool.Writer
	d *Door
}

func (w *direct) Commit() error {
	err := w.Writer.Commit()
	if err == nil {
		w.d.via, w.d.id = ViaSpool, w.ID()
	}
	return err
}

// give hands a finished message to the socket, or puts it into the own spool when that fails
// for now. A refusal for good is the caller's to report.
func (d *Door) give(env *envelope.Envelope, h *held) error {
	id, err := send(d.o, env, h.reader(), h.size)
	if err == nil {
		d.via, d.id = ViaSocket, id
		return nil
	}
	var e *submit.Error
	if errors.As(err, &e) && e.Status.Verdict == envelope.Failed {
		return err
	}
	if d.o.Own == "" {
		return fmt.Errorf("%w; no own spool either: no home directory", err)
	}
	if oerr := d.keep(env, h.reader()); oerr != nil {
		return fmt.Errorf("%w; own spool: %w", err, oerr)
	}
	d.via, d.id, d.why = ViaOwn, env.ID, err
	return nil
}

// keep puts a message into the own spool.
func (d *Door) keep(env *envelope.Envelope, r io.Reader) error {
	if err := spool.Init(d.o.Own); err != nil {
		return err
	}
	s, err := spool.Open(d.o.Own, d.o.Limits)
	if err != nil {
		return err
	}
	defer s.Close()
	w, err := s.Create(env)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, r); err != nil {
		return errors.Join(err, w.Abort())
	}
	return w.Commit()
}

// Flush hands on what waits in the own spool: at most max messages, until ctx ends. It stops
// at the first that cannot go for now. refused is told of each message that will never go; it
// stays in the own spool's corrupt/ for the user to look at.
func (d *Door) Flush(ctx context.Context, max int, refused func(id string, err error)) (sent, left int, err error) {
	if d.o.Own == "" || d.o.Own == d.o.Spool {
		return 0, 0, nil
	}
	s, err := spool.Open(d.o.Own, d.o.Limits)
	if errors.Is(err, spool.ErrNoSpool) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	defer s.Close()
	if empty(s) {
		return 0, 0, nil
	}
	q, err := s.Lock(false)
	if errors.Is(err, spool.ErrLocked) {
		return 0, 0, nil // another msend is at it, or the user runs a scheduler there
	}
	if err != nil {
		return 0, 0, err
	}
	defer q.Close()
	ids, err := waiting(q)
	for i, id := range ids {
		if i == max || ctx.Err() != nil {
			return sent, len(ids) - i, err
		}
		switch herr := d.handOn(q, id); {
		case herr == nil:
			sent++
		case isRefusal(herr):
			if aerr := q.SetAside(id, herr.Error()); aerr != nil {
				return sent, len(ids) - i, aerr
			}
			refused(id, herr)
		default:
			return sent, len(ids) - i, herr
		}
	}
	return sent, 0, err
}

func isRefusal(err error) bool {
	var e *submit.Error
	return errors.As(err, &e) && e.Status.Verdict == envelope.Failed
}

// empty tells whether nothing waits, without taking the lock.
func empty(s *spool.Spool) bool {
	v := s.View()
	for range v.Incoming() {
		return false
	}
	for range v.Queued() {
		return false
	}
	return true
}

// waiting takes in what is new and returns the ids of all that waits.
func waiting(q *spool.Queue) ([]string, error) {
	var ids []string
	for id, err := range q.Incoming() {
		if err != nil {
			return ids, err
		}
		m, err := q.Take(id)
		if err != nil {
			continue // still being written, or torn: the cleaner of that spool decides
		}
		// Ignored: nothing was written.
		_ = m.Close()
	}
	for id, err := range q.Queued() {
		if err != nil {
			return ids, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// handOn gives one waiting message to the spool or the socket and drops it. A crash in between
// sends it twice, never not at all.
func (d *Door) handOn(q *spool.Queue, id string) error {
	m, err := q.Open(id)
	if err != nil {
		return err
	}
	defer m.Close()
	if d.spool == nil {
		_, err = send(d.o, m.Env, m.Body(), m.Size)
	} else {
		env := *m.Env
		var w *spool.Writer
		if w, err = d.spool.Create(&env); err == nil {
			if _, err = io.Copy(w, m.Body()); err == nil {
				err = w.Commit()
			} else {
				err = errors.Join(err, w.Abort())
			}
		}
		if errors.Is(err, spool.ErrExists) {
			err = nil // an earlier run got this far
		}
	}
	if err != nil {
		return err
	}
	return q.Remove(id)
}

// memoryMax is how much of a held message stays in memory.
const memoryMax = 256 << 10

// held is a message that waits for its last byte before it goes anywhere: in memory, then in a
// file without a name.
type held struct {
	env    envelope.Envelope
	buf    bytes.Buffer
	f      *os.File
	size   int64
	commit func() error
}

func newHeld(env *envelope.Envelope) *held {
	if env.Time.IsZero() {
		env.Time = time.Now().UTC().Truncate(time.Millisecond)
	}
	if env.ID == "" {
		env.ID = spool.NewID(env.Time)
	}
	return &held{env: *env}
}

func (h *held) Write(p []byte) (int, error) {
	if h.f == nil && h.buf.Len()+len(p) > memoryMax {
		f, err := os.CreateTemp("", "msend-*")
		if err != nil {
			return 0, err
		}
		h.f = f
		if err := os.Remove(f.Name()); err != nil {
			return 0, err
		}
		if _, err := h.buf.WriteTo(f); err != nil {
			return 0, err
		}
	}
	h.size += int64(len(p))
	if h.f != nil {
		return h.f.Write(p)
	}
	return h.buf.Write(p)
}

// reader reads the message from its beginning.
func (h *held) reader() io.Reader {
	if h.f != nil {
		return io.NewSectionReader(h.f, 0, h.size)
	}
	return bytes.NewReader(h.buf.Bytes())
}

func (h *held) Reread() (io.ReadCloser, error) { return io.NopCloser(h.reader()), nil }

func (h *held) Commit() error { return errors.Join(h.commit(), h.Abort()) }

func (h *held) Abort() error {
	if h.f == nil {
		return nil
	}
	// Ignored: the file has no name any more and nobody relies on its bytes.
	_ = h.f.Close()
	h.f = nil
	return nil
}

// Plan is a submit.Store that stores nothing: show gets the envelope and the final header.
type Plan struct {
	Show func(env *envelope.Envelope, header []byte, size int64) error
}

// Create implements submit.Store.
func (p Plan) Create(env *envelope.Envelope) (submit.Draft, error) {
	h := newHeld(env)
	h.commit = func() error {
		head := make([]byte, min(h.size, 2<<20))
		n, err := io.ReadFull(h.reader(), head)
		if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
			return err
		}
		head = head[:n]
		if bytes.HasPrefix(head, []byte("\n")) {
			head = nil
		} else if i := bytes.Index(head, []byte("\n\n")); i >= 0 {
			head = head[:i+1]
		}
		return p.Show(&h.env, head, h.size)
	}
	return h, nil
}
