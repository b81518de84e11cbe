package submit

import (
	"bytes"
	"fmt"
	"io"

	"pennypost/internal/envelope"
	"pennypost/internal/spool"
)

// advance takes the held bytes as far as they are judged: the end of the header, then the end
// of the hold. With eof set no more will come.
func (m *Message) advance(eof bool) error {
	if err := m.judge(eof); err != nil {
		return err
	}
	if m.phase == inHold && (eof || len(*m.held) >= holdSize) {
		return m.open(eof)
	}
	return nil
}

// judge takes the header once it is complete.
func (m *Message) judge(eof bool) error {
	if m.phase == inHeader {
		end, body, done := m.scan.next(*m.held, eof)
		if !done {
			if len(*m.held) > maxHeader {
				return fail("5.3.4", fmt.Errorf("%w of %d octets", ErrHeader, maxHeader))
			}
			return nil
		}
		if end > maxHeader {
			return fail("5.3.4", fmt.Errorf("%w of %d octets", ErrHeader, maxHeader))
		}
		if err := m.takeHeader((*m.held)[:end]); err != nil {
			return err
		}
		m.body, m.phase = body, inHold
	}
	return nil
}

// takeHeader reads the facts from the header and applies what depends on it alone.
func (m *Message) takeHeader(raw []byte) error {
	if m.fix.Pipe {
		var n int64
		raw, n = cleanHeader(raw)
		m.out.replaced += n
	}
	// The held buffer goes on to grow; the header keeps its own copy.
	m.head = parseHeader(bytes.Clone(raw), m.scan.mbox)
	if max := m.s.o.MaxHops; max > 0 && m.head.received > max {
		return fail("5.4.6", fmt.Errorf("%w (%d, %d are allowed)", ErrLoop, m.head.received, max))
	}
	m.env.Origin.MsgID = m.head.msgid
	if m.fix.Extract {
		if err := m.extract(); err != nil {
			return err
		}
	}
	if len(m.env.To) == 0 {
		return fail("5.5.4", ErrNoRecipients)
	}
	if max := m.s.o.MaxRcpts; max > 0 && len(m.env.To) > max {
		return fail("5.5.3", fmt.Errorf("%w (%d, %d are allowed)", ErrTooMany, len(m.env.To), max))
	}
	return nil
}

// cleanHeader gives header lines LF line ends and replaces bare CR and NUL by spaces.
func cleanHeader(raw []byte) ([]byte, int64) {
	if bytes.IndexByte(raw, '\r') < 0 && bytes.IndexByte(raw, 0) < 0 {
		return raw, 0
	}
	var n int64
	out := make([]byte, 0, len(raw))
	for i, c := range raw {
		switch {
		case c == '\r' && i+1 < len(raw) && raw[i+1] == '\n':
			continue
		case c == '\r' || c == 0:
			c = ' '
			n++
		}
		out = append(out, c)
	}
	return out, n
}

// extract adds the header's recipients to the envelope, each address once.
func (m *Message) extract() error {
	seen := make(map[string]bool, len(m.env.To))
	for _, r := range m.env.To {
		if a, err := envelope.ParseAddress(r.Addr); err == nil {
			seen[a.Key()] = true
		}
	}
	h := m.head
	for f := range h.fields() {
		// As sendmail does: in a resent message only the Resent- fields name recipients.
		if h.resent && !h.is(f, "resent-to", "resent-cc", "resent-bcc") || !h.resent && !h.is(f, "to", "cc", "bcc") {
			continue
		}
		list, err := ParseAddressList(h.value(f), m.fix.Domain)
		if err != nil {
			return fail("5.1.3", fmt.Errorf("%s: %w", h.raw[f.start:f.nameEnd], err))
		}
		for _, a := range list {
			if !seen[a.Key()] {
				seen[a.Key()] = true
				m.env.To = append(m.env.To, envelope.Recipient{Addr: a.String(), Notify: m.fix.Notify})
				m.env.SMTPUTF8 = m.env.SMTPUTF8 || !a.IsASCII()
			}
		}
	}
	return nil
}

// finalHeader is the header as it is stored, with the empty line behind it.
func (m *Message) finalHeader(p plan) []byte {
	var b bytes.Buffer
	b.Grow(len(m.head.raw) + 1024)
	if m.fix.Trace != nil {
		b.WriteString(m.fix.Trace.line(m.env, m.s.o.Hostname, m.s.o.Now()))
	}
	b.WriteString(m.fix.Prepend)
	m.top = b.Len()
	if m.env.EOL == envelope.EOLWire {
		m.top = len(wireEnds(b.Bytes()))
	}
	if m.edited != nil {
		b.Write(m.edited)
	} else {
		m.ownHeader(&b, p)
	}
	if m.env.EOL == envelope.EOLWire {
		return wireEnds(b.Bytes())
	}
	return b.Bytes()
}

// ownHeader writes the part of it that is the message's own, with what it lacked.
func (m *Message) ownHeader(b *bytes.Buffer, p plan) {
	h := m.head
	now := m.s.o.Now()
	re, prefix := 0, ""
	if h.resent {
		re, prefix = 1, "Resent-"
	}
	if m.fix.AddFrom != "" && !h.from[re] && !h.sender[re] {
		b.WriteString(prefix + "From: " + m.fix.AddFrom + "\n")
	}
	if m.fix.AddDate && !h.date[re] {
		b.WriteString(prefix + "Date: " + now.Format(dateFormat) + "\n")
	}
	if m.fix.AddMessageID && !h.msgID[re] {
		b.WriteString(prefix + "Message-ID: " + m.madeID() + "\n")
	}
	added := b.Len()
	for f := range h.fields() {
		if m.dropped(f, p) {
			continue
		}
		b.Write(h.raw[f.start:f.end])
	}
	if n := b.Len(); n > added && b.Bytes()[n-1] != '\n' {
		b.WriteByte('\n') // the input ended within the header
	}
	mime := p.fields(h)
	b.WriteString(mime)
	b.WriteByte('\n')
}

// madeID is the Message-ID of a message that came without one.
func (m *Message) madeID() string { return "<" + m.env.ID + "@" + m.s.o.Hostname + ">" }

// dropped tells whether a field is left out. Content-Length and Return-Path speak of a stored
// or delivered message and are wrong in one that begins its journey.
func (m *Message) dropped(f field, p plan) bool {
	h := m.head
	switch {
	case m.fix.RemoveBcc && h.is(f, "bcc", "resent-bcc"):
		return true
	case m.fix.Pipe && h.is(f, "return-path", "content-length"):
		return true
	}
	return p.encodes() && h.is(f, "content-transfer-encoding")
}

// wireEnds turns every line end into CRLF, for a message that is kept as it came.
func wireEnds(b []byte) []byte {
	out := make([]byte, 0, len(b)+len(b)/32)
	for i, c := range b {
		if c == '\n' && (i == 0 || b[i-1] != '\r') {
			out = append(out, '\r')
		}
		out = append(out, c)
	}
	return out
}

// open chooses the form of the body by what is held, makes the draft and writes the header and
// the held part, which is of no further use then.
func (m *Message) open(eof bool) error {
	if err := m.openDraft(eof); err != nil {
		return err
	}
	m.release()
	if !m.fix.Pipe {
		m.head.raw = nil // only a message from a pipe may need a second draft made from it
	}
	return nil
}

func (m *Message) openDraft(eof bool) error {
	body := (*m.held)[m.body:]
	if m.fix.Pipe {
		m.out.begin(m.head, *m.held, body)
	} else if m.env.Body == "" && hasHigh(*m.held) {
		m.env.Body = envelope.Body8Bit // whatever the client declared or forgot to
	}
	m.phase = inBody
	if !m.fix.Pipe {
		if err := m.create(plan{}); err != nil {
			return err
		}
		return m.emit(body)
	}
	chunk := m.out.chunk(body, eof)
	m.out.look(chunk)
	if err := m.create(m.out.choose(chunk)); err != nil {
		return err
	}
	return m.out.write(m.emit, chunk)
}

// create makes a draft in the form of p and writes the header into it.
func (m *Message) create(p plan) error {
	if p.eight {
		m.env.Body = envelope.Body8Bit
	} else if m.fix.Pipe {
		m.env.Body = ""
	}
	if h := m.head; m.fix.AddMessageID && !h.msgID[0] && !h.resent {
		// The envelope is fixed from Create on and names the Message-ID, so the id comes first.
		if m.env.ID == "" {
			m.env.ID = spool.NewID(m.s.o.Now())
		}
		m.env.Origin.MsgID = m.madeID()
	}
	d, err := m.s.o.Store.Create(m.env)
	if err != nil {
		return err
	}
	m.draft, m.written = d, 0
	m.out.use(p)
	head := m.finalHeader(p)
	m.header = len(head)
	return m.emit(head)
}

// emit writes finished bytes into the draft, within the size limit.
func (m *Message) emit(p []byte) error {
	m.written += int64(len(p))
	if max := m.s.o.MaxSize; max > 0 && m.written > max {
		return fail("5.3.4", fmt.Errorf("%w of %d octets", ErrTooBig, max))
	}
	_, err := m.draft.Write(p)
	return err
}

// feed takes the next bytes of the body.
func (m *Message) feed(p []byte) error {
	if !m.fix.Pipe {
		return m.emit(p)
	}
	p = m.out.chunk(p, false)
	m.out.look(p)
	if next := m.out.choose(nil); next != m.out.plan {
		if err := m.restart(next); err != nil {
			return err
		}
	}
	return m.out.write(m.emit, p)
}

// finish writes what the end of the body asks for.
func (m *Message) finish() error {
	if !m.fix.Pipe {
		return nil
	}
	rest := m.out.chunk(nil, true)
	m.out.look(rest)
	m.out.end()
	if next := m.out.choose(nil); next != m.out.plan {
		if err := m.restart(next); err != nil {
			return err
		}
	}
	if err := m.out.write(m.emit, rest); err != nil {
		return err
	}
	return m.out.close(m.emit)
}

// restart begins a second draft in the form of next, fills it from the first and drops the
// first. A crash in between leaves two unfinished files, which the spool clears away.
func (m *Message) restart(next plan) (err error) {
	old, skip := m.draft, int64(m.header)
	defer func() {
		if aerr := old.Abort(); err == nil {
			err = aerr
		}
	}()
	r, err := old.Reread()
	if err != nil {
		return err
	}
	defer r.Close()
	env := *m.env
	env.ID = ""
	m.env = &env
	same := m.out.plan.enc == next.enc
	m.draft = nil // until create has made the next one, a failure must not abort the old one twice
	if err := m.create(next); err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, r, skip); err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			write := m.emit
			if !same {
				// What the first draft holds is plain text with LF line ends.
				write = func(p []byte) error { return m.out.write(m.emit, p) }
			}
			if werr := write(buf[:n]); werr != nil {
				return werr
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
