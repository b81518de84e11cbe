package pop3

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"pennypost/internal/mailbox"
	"pennypost/internal/message"
)

// retrieve is RETR.
func (c *session) retrieve(arg string) error {
	m, err := c.message(arg)
	if m == nil {
		return err
	}
	sent, err := c.send(m, math.MaxUint64)
	if sent {
		c.retr++
		m.fetched = true
	}
	return err
}

// topOf is TOP.
func (c *session) topOf(arg string) error {
	number, lines, _ := strings.Cut(arg, " ")
	n, ok := number64(lines)
	if !ok {
		return c.fault("want TOP message lines")
	}
	m, err := c.message(number)
	if m == nil {
		return err
	}
	sent, err := c.send(m, min(n, math.MaxUint64-1))
	if sent {
		c.top++
	}
	return err
}

// send answers with a message up to a number of lines of its body. sent tells that the client got
// it; an error ends the session.
func (c *session) send(m *entry, lines uint64) (sent bool, err error) {
	body, err := c.box.Open(c.ctx, m.uid)
	if err != nil {
		return false, c.unreadable(m, err)
	}
	defer body.Close()
	buf := c.srv.pools.getChunk()
	defer c.srv.pools.putChunk(buf)
	t := transfer{c: c, left: lines, whole: lines == math.MaxUint64, ascii: !c.utf8}
	first := true
	for end := false; !end; first = false {
		n, err := io.ReadFull(body, buf[:min(chunk, max(1, body.Size-t.read))])
		t.read += int64(n)
		end = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || t.read >= body.Size
		if err != nil && !end {
			if first {
				return false, c.unreadable(m, err)
			}
			// Too late for an error. Without its end the client knows that it has not got it all.
			return false, fmt.Errorf("message %d: %w", m.uid, err)
		}
		if first && t.whole {
			c.ok(itoa(m.size) + " octets")
		} else if first {
			c.ok("top of message")
		}
		end = t.pass(buf[:n], first) || end
		if err := c.room(); err != nil {
			return false, err
		}
	}
	if t.whole && !t.altered && t.w.octets != m.size {
		c.resize(m, t.w.octets)
	}
	c.out = t.w.end(c.out)
	c.sent += t.w.octets
	return true, c.room()
}

// unreadable answers for a message that cannot be sent.
func (c *session) unreadable(m *entry, err error) error {
	if errors.Is(err, mailbox.ErrExpunged) {
		return c.err("message is gone: another program has removed it")
	}
	c.srv.Log.Error("message cannot be read", "user", c.who, "uid", m.uid, "err", err)
	return c.err("[SYS/TEMP] message cannot be read")
}

// transfer is one message on its way to the client.
type transfer struct {
	c     *session
	w     wire
	s     scan
	read  int64
	left  uint64 // lines of the body
	whole bool   // no line is counted
	ascii bool   // the client is not in UTF-8 mode

	altered bool // the header was not sent as it is
}

// pass queues one piece of the message; done tells that the client wants no more of it.
func (t *transfer) pass(p []byte, first bool) (done bool) {
	if !t.s.body && (t.ascii || !t.whole) {
		n, ended := t.s.header(p)
		h := p[:n]
		if t.ascii && !isASCII(h) {
			h = t.header(h, first && (ended || t.read < chunk))
		}
		t.c.out = t.w.append(t.c.out, h)
		if !ended {
			return false
		}
		p = p[n:]
	}
	if !t.whole {
		p = p[:t.s.lines(p, &t.left)]
	}
	t.c.out = t.w.append(t.c.out, p)
	return !t.whole && t.left == 0
}

// header is what a client outside UTF-8 mode gets for a header that is not ASCII: RFC 6856 §2.1
// wants a surrogate or a refusal, and a refusal would stop many clients at that message for ever.
// A header that does not fit a piece of the message is none of a person's making: its octets are
// masked.
func (t *transfer) header(h []byte, whole bool) []byte {
	t.altered = true
	if whole {
		return message.AppendASCII(nil, h)
	}
	for i, b := range h {
		if b >= 0x80 {
			h[i] = '?'
		}
	}
	return h
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}
