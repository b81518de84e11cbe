// Package submit is the one door into the spool: every message, from a pipe, from the network
// or written by the scheduler itself, passes through it. It hides what happens to a message on
// the way in: the trace line, missing header fields, Bcc, recipients taken from the header, the
// loop and size limits, and the encoding of bytes that would not survive the journey.
//
// A message streams through a Message. Its first 64 KiB are held, so that nearly every message
// is judged whole before a byte of it is written. A byte that shows up later and asks for
// another form of the body (8-bit text, a bare CR, a NUL) makes the Message begin a second
// draft, fill it from the first one, and drop the first. Memory stays bounded.
package submit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/spool"
)

// Store takes messages: the spool, or what stands for it where the spool is out of reach.
type Store interface {
	// Create begins a draft for env and fills env's ID and Time when they are empty.
	Create(env *envelope.Envelope) (Draft, error)
}

// Draft is a message being stored. After Commit or Abort it is of no further use.
type Draft interface {
	io.Writer
	// Reread gives back what has been written so far, from its first byte.
	Reread() (io.ReadCloser, error)
	Commit() error // nil: the message is on stable storage
	Abort() error  // leaves nothing
}

// Options say how messages are taken in. A zero limit is no limit.
type Options struct {
	Spool    *spool.Spool
	Store    Store            // instead of Spool
	Hostname string           // in trace lines and Message-IDs
	MaxSize  int64            // octets of a message as stored
	MaxHops  int              // Received fields
	MaxRcpts int              // recipients, those found in the header included
	Now      func() time.Time // nil: time.Now; its location is that of the dates written
	Log      *slog.Logger     // one line per accepted message; nil: none
}

// maxHeader bounds the header of a message, which is held in memory.
const maxHeader = 1 << 20

// holdSize is how much of a message is looked at before anything is written.
const holdSize = 64 << 10

// Submitter takes in messages. It may be used concurrently.
type Submitter struct {
	o    Options
	bufs sync.Pool
}

// New returns a Submitter.
func New(o Options) *Submitter {
	if o.Store == nil {
		o.Store = spoolStore{o.Spool}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Submitter{o: o, bufs: sync.Pool{New: func() any { return new([]byte) }}}
}

type spoolStore struct{ *spool.Spool }

func (s spoolStore) Create(env *envelope.Envelope) (Draft, error) {
	w, err := s.Spool.Create(env)
	if err != nil {
		return nil, err
	}
	return w, nil
}

// Fixup says what is changed on a message's way in. The zero Fixup changes nothing but the
// separation of header and body, which is made explicit where a message lacks it.
type Fixup struct {
	Trace   *Trace // a Received line made from it is put first
	Prepend string // finished header lines put below it, each ending in LF

	AddDate      bool   // Date and Message-ID are added when missing, with Resent- in a resent message
	AddMessageID bool   //
	AddFrom      string // content of a From field added when the message has none; "" adds none
	RemoveBcc    bool

	Extract bool     // recipients in To, Cc and Bcc are added to those of the envelope
	Domain  string   // completes addresses without a domain found there
	Notify  []string // RFC 3461 NOTIFY of recipients found there

	// Pipe takes bytes as programs print them: CRLF becomes LF, and what SMTP would refuse or
	// hurt is encoded where the header allows it, else replaced by spaces.
	Pipe bool
}

// Error is why a message was not taken. Its status is what an SMTP server replies.
type Error struct {
	Status envelope.Status
	Err    error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// ExitStatus is the status a command ends with.
func (e *Error) ExitStatus() int {
	switch {
	case errors.Is(e.Err, ErrNoRecipients):
		return envelope.ExUsage
	case errors.Is(e.Err, ErrRead):
		return envelope.ExIOErr
	case errors.Is(e.Err, envelope.ErrAddress):
		return envelope.ExDataErr
	}
	return e.Status.ToExit()
}

var (
	// ErrNoRecipients says that neither the envelope nor the header names anybody.
	ErrNoRecipients = errors.New("no recipients")
	// ErrTooMany says that one message has more recipients than are taken.
	ErrTooMany = errors.New("too many recipients for one message")
	// ErrTooBig says that the message is over the size limit.
	ErrTooBig = errors.New("message is over the size limit")
	// ErrHeader says that the header is too long to be one.
	ErrHeader = errors.New("header is over the limit")
	// ErrLoop says that the message has passed too many hosts.
	ErrLoop = errors.New("too many Received lines: the message loops")
	// ErrRead says that the source of the message failed; nothing was taken.
	ErrRead = errors.New("the message could not be read to its end")
	// ErrFinished says that the message has been committed or aborted.
	ErrFinished = errors.New("the message is finished")
)

func fail(code string, err error) *Error {
	return &Error{Status: envelope.Fail(code, err.Error()), Err: err}
}

// storeError gives an error of the spool its status. The reply names no path: it may go to the
// network.
func storeError(err error) error {
	var e *Error
	switch {
	case err == nil || errors.As(err, &e):
		return err
	case errors.Is(err, spool.ErrFull), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &Error{Status: envelope.Defer("4.3.1", "insufficient system storage"), Err: err}
	case errors.Is(err, spool.ErrExists):
		return &Error{Status: envelope.Defer("4.3.0", "the message is queued already"), Err: err}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, spool.ErrNoSpool):
		return &Error{Status: envelope.Defer("4.3.5", "the spool cannot be written"), Err: err}
	}
	return &Error{Status: envelope.Defer("4.3.0", "the message could not be stored"), Err: err}
}

// Message is one message on its way in. It is used by one goroutine.
type Message struct {
	s   *Submitter
	fix Fixup
	env *envelope.Envelope

	phase phase
	err   error // why the message cannot be committed
	held  *[]byte
	scan  headerScan
	head  *header
	body  int // offset of the body in held

	draft   Draft
	written int64  // octets in the draft
	header  int    // octets of them that are the header
	top     int    // octets of that which are our trace line and Prepend
	edited  []byte // the header below them, where a filter has seen it; nil: as it came
	out     bodyWriter
}

type phase int

const (
	inHeader phase = iota // held is a prefix of the message; its header is not over
	inHold                // the header is known, the beginning of the body is held
	inBody                // a draft is open, the body streams into it
	finished
)

// Begin starts a message. The envelope's ID and Time are filled in when the draft is made; with
// Fixup.Extract its recipients grow. It belongs to the Message until Commit.
func (s *Submitter) Begin(env *envelope.Envelope, o Fixup) (*Message, error) {
	if len(env.To) == 0 && !o.Extract {
		return nil, fail("5.5.4", ErrNoRecipients)
	}
	if env.EOL == "" {
		env.EOL = envelope.EOLLF
	}
	m := &Message{s: s, fix: o, env: env, held: s.bufs.Get().(*[]byte)}
	*m.held = (*m.held)[:0]
	m.scan.mbox = o.Pipe
	return m, nil
}

// Write takes the next bytes of the message.
func (m *Message) Write(p []byte) (int, error) {
	if m.err != nil {
		return 0, m.err
	}
	n := len(p)
	if m.phase == inBody {
		if err := m.feed(p); err != nil {
			return 0, m.fail(err)
		}
		return n, nil
	}
	m.hold(p)
	if err := m.advance(false); err != nil {
		return 0, m.fail(err)
	}
	return n, nil
}

// hold keeps p. The buffer doubles: append grows big slices by less, and leaves more garbage.
func (m *Message) hold(p []byte) {
	if need := len(*m.held) + len(p); need > cap(*m.held) && need > holdSize {
		grown := make([]byte, len(*m.held), max(need, min(2*cap(*m.held), maxHeader+holdSize)))
		copy(grown, *m.held)
		*m.held = grown
	}
	*m.held = append(*m.held, p...)
}

// ReadFrom takes the message from r up to its end. A read error makes the whole message fail: a
// short read never becomes a short message.
func (m *Message) ReadFrom(r io.Reader) (int64, error) {
	if m.err != nil {
		return 0, m.err
	}
	buf := make([]byte, holdSize)
	var total int64
	for {
		n, err := r.Read(buf)
		total += int64(n)
		if n > 0 {
			if _, werr := m.Write(buf[:n]); werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			err = &Error{Status: envelope.Defer("4.3.0", ErrRead.Error()), Err: fmt.Errorf("%w: %w", ErrRead, err)}
			return total, m.fail(err)
		}
	}
}

// Commit finishes the message. When it returns nil, the message is on stable storage.
func (m *Message) Commit() (id string, err error) {
	if m.err != nil {
		return "", m.err
	}
	err = m.advance(true)
	if err == nil {
		err = m.finish()
	}
	if err == nil {
		err = m.draft.Commit()
	}
	if err != nil {
		return "", m.fail(err)
	}
	m.draft, m.phase, m.err = nil, finished, ErrFinished
	m.release()
	m.logAccepted()
	return m.env.ID, nil
}

// Abort gives the message up and leaves nothing of it. After Commit it does nothing.
func (m *Message) Abort() error {
	if m.err == nil {
		m.err = ErrFinished
	}
	m.phase = finished
	m.release()
	if m.draft == nil {
		return nil
	}
	err := m.draft.Abort()
	m.draft = nil
	return err
}

// Envelope is the message's envelope: complete once the header has passed, or after Commit.
func (m *Message) Envelope() *envelope.Envelope { return m.env }

// Size is the number of octets stored so far.
func (m *Message) Size() int64 { return m.written }

// Replaced is the number of bytes that were replaced by spaces because the message's header
// did not allow to encode them.
func (m *Message) Replaced() int64 { return m.out.replaced }

// fail makes err final and drops the draft.
func (m *Message) fail(err error) error {
	m.err = storeError(err)
	if aerr := m.Abort(); aerr != nil {
		var e *Error
		if errors.As(m.err, &e) {
			m.err = &Error{Status: e.Status, Err: errors.Join(e.Err, aerr)}
		}
	}
	return m.err
}

func (m *Message) release() {
	if m.held != nil && cap(*m.held) <= 2*holdSize {
		m.s.bufs.Put(m.held)
	}
	m.held = nil
}

// requests are what the sender asked for beside delivery; RFC 6710 §4.1 wants the priority logged.
func requests(env *envelope.Envelope) (a []slog.Attr) {
	if env.RequireTLS {
		a = append(a, slog.Bool("requiretls", true))
	}
	if env.HoldUntil != nil {
		a = append(a, slog.Time("hold_until", *env.HoldUntil))
	}
	if by := env.DeliverBy; by != nil {
		a = append(a, slog.Time("deliver_by", by.Deadline), slog.String("mode", by.Mode))
	}
	if env.Priority != 0 {
		a = append(a, slog.Int("priority", env.Priority))
	}
	return a
}

func (m *Message) logAccepted() {
	l := m.s.o.Log
	if l == nil {
		return
	}
	to := make([]string, 0, min(len(m.env.To), 20))
	for _, r := range m.env.To[:cap(to)] {
		to = append(to, r.Addr)
	}
	a := []slog.Attr{
		slog.String("id", m.env.ID), slog.String("from", m.env.From), slog.Any("to", to), slog.Int("nrcpt", len(m.env.To)),
		slog.Int64("size", m.written), slog.String("msgid", m.env.Origin.MsgID), slog.String("kind", m.env.Origin.Kind),
	}
	for _, kv := range [][2]string{{"peer", m.env.Origin.Peer}, {"user", m.env.Origin.User}, {"tls", m.env.Origin.TLS}} {
		if kv[1] != "" {
			a = append(a, slog.String(kv[0], kv[1]))
		}
	}
	a = append(a, requests(m.env)...)
	ctx := context.Background()
	l.LogAttrs(ctx, slog.LevelInfo, "accepted", a...)
	if n := m.out.replaced; n > 0 {
		l.LogAttrs(ctx, slog.LevelWarn, "bare CR or NUL replaced by spaces: the message's own MIME header forbids encoding",
			slog.String("id", m.env.ID), slog.Int64("count", n))
	}
}
