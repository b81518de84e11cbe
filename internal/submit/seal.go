package submit

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"pennypost/internal/envelope"
	"pennypost/internal/spool"
)

// Sealed is a message whose text is complete and which is not committed yet: what a content
// filter reads. Nothing of it is on stable storage. A message that fits the hold is in memory
// alone, a bigger one in its draft; either way it becomes durable once, by Commit.
type Sealed struct {
	m      *Message
	header []byte
}

// Seal ends the text of the message: Write must not follow, Commit or Abort must. A message
// from a pipe cannot be sealed: its form is settled while it is written.
func (m *Message) Seal() (*Sealed, error) {
	switch {
	case m.err != nil:
		return nil, m.err
	case m.fix.Pipe:
		return nil, m.fail(errors.New("a message from a pipe cannot be sealed"))
	}
	if err := m.judge(true); err != nil {
		return nil, m.fail(err)
	}
	s := &Sealed{m: m}
	if m.phase == inBody {
		h, err := m.storedHeader()
		if err != nil {
			return nil, m.fail(err)
		}
		s.header = h
		return s, nil
	}
	if m.env.ID == "" {
		// A filter's log names the message as ours will.
		m.env.ID = spool.NewID(m.s.o.Now())
	}
	var b bytes.Buffer
	m.ownHeader(&b, plan{})
	s.header = m.lfHeader(b.Bytes())
	m.edited = s.header
	return s, nil
}

// storedHeader reads the header back from the draft, in LF form and without our lines on top.
func (m *Message) storedHeader() ([]byte, error) {
	r, err := m.draft.Reread()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, m.header)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("header of the draft: %w", err)
	}
	return m.lfHeader(b[m.top:]), nil
}

func (m *Message) lfHeader(b []byte) []byte {
	if m.env.EOL == envelope.EOLWire {
		return bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	}
	return b
}

// ID is the message's queue id.
func (s *Sealed) ID() string { return s.m.env.ID }

// Envelope is the message's envelope. A change of it counts from the next Rewrite on.
func (s *Sealed) Envelope() *envelope.Envelope { return s.m.env }

// Header is the header in LF form with the empty line that ends it, below the trace line this
// host adds. It is not to be changed in place.
func (s *Sealed) Header() []byte { return s.header }

// Size is the number of octets of the message as it would be stored, our trace line aside.
func (s *Sealed) Size() int64 {
	if s.m.phase == inBody {
		return s.m.written - int64(s.m.top)
	}
	return int64(len(s.header) + len(*s.m.held) - s.m.body)
}

// Body opens the body as it is stored: lines end in LF, or with envelope.EOLWire as they came.
func (s *Sealed) Body() (io.ReadCloser, error) {
	m := s.m
	if m.err != nil {
		return nil, m.err
	}
	if m.phase != inBody {
		return io.NopCloser(bytes.NewReader((*m.held)[m.body:])), nil
	}
	r, err := m.draft.Reread()
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, r, int64(m.header)); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Rewrite gives the message another header, in the form of Header, and the envelope as it is
// now. The queue id stays.
func (s *Sealed) Rewrite(header []byte) error {
	m := s.m
	if m.err != nil {
		return m.err
	}
	if len(header) > maxHeader {
		return m.fail(fail("5.3.4", fmt.Errorf("%w of %d octets", ErrHeader, maxHeader)))
	}
	if len(m.env.To) == 0 {
		return m.fail(fail("5.5.4", ErrNoRecipients))
	}
	s.header, m.edited = header, header
	if m.phase != inBody {
		return nil
	}
	if err := m.again(); err != nil {
		return m.fail(err)
	}
	return nil
}

// again fills a draft of the same name from the one there is. The old name is given up first;
// what was read open stays readable. A crash in between loses a message nobody was promised.
func (m *Message) again() error {
	skip := int64(m.header)
	r, err := m.draft.Reread()
	if err != nil {
		return err
	}
	defer r.Close()
	old := m.draft
	m.draft = nil
	if err := old.Abort(); err != nil {
		return err
	}
	if err := m.create(plan{}); err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, r, skip); err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := m.emit(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
