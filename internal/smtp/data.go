package smtp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"pennypost/internal/envelope"
)

func (c *session) data(arg string) error {
	switch {
	case arg != "":
		return c.fault(501, "5.5.4", "DATA takes no argument")
	case !c.tx.open:
		return c.fault(503, "5.5.1", "say MAIL and RCPT first")
	case c.tx.msg != nil || c.tx.bad:
		return c.fault(503, "5.5.1", "the message has begun with BDAT")
	case c.tx.rcpts == 0:
		// No mistake of a client that pipelines (RFC 2920 §3.1): it did not know yet.
		c.refused(&Answer{Code: 554, Enhanced: "5.5.1", Text: "no valid recipients"})
		return nil
	case c.tx.opts.Body == envelope.BodyBinary:
		return c.fault(503, "5.5.1", "BINARYMIME needs BDAT") // RFC 3030 §3
	}
	m, err := c.be.Data(c.ctx)
	if err != nil {
		c.answer(answerFor(err))
		c.reset()
		return nil
	}
	c.say(354, "", "go ahead, end with CR LF . CR LF")
	d := &decoder{dots: true, maxLine: or(c.srv.MaxLine, 128<<10)}
	r := receiver{c: c, m: m, d: d, start: c.srv.now()}
	if err := r.untilDot(); err != nil {
		m.Abort()
		return err
	}
	c.complete(m, r.verdict())
	return nil
}

// complete ends the transaction: the message is committed, or given up for the reason a.
func (c *session) complete(m Message, a *Answer) {
	c.tx.msg = nil
	if a != nil {
		m.Abort()
		c.answer(a)
		c.reset()
		return
	}
	// Replies to earlier commands do not wait for the disk. They are few: a client that waits
	// for 354 has had them already.
	if err := c.flush(); err != nil {
		m.Abort() // nobody is there to be told that we took it
		c.closing = true
		return
	}
	text, err := m.Commit()
	if err != nil {
		c.answer(answerFor(err))
	} else {
		c.say(250, "2.0.0", text)
		c.idle = 0
	}
	c.reset()
}

// receiver takes in one message, or one chunk of it.
type receiver struct {
	c     *session
	m     Message
	d     *decoder // nil: octets as they come
	size  int64    // as RFC 1870 §5 counts: with CRLF, without stuffed dots
	raw   int64    // octets taken from the wire by this receiver
	start time.Time
	fail  error // of Write
	big   bool
}

// untilDot reads to the end of the message, whatever is wrong with it on the way: what follows
// a message must never be taken for commands, and what belongs to it neither.
func (r *receiver) untilDot() error {
	in := &r.c.in
	in.finish = true
	defer func() { in.finish = false }()
	in.enlarge()
	for {
		b := in.buffered()
		text, used, done := r.d.decode(b[:0], b)
		in.r += used
		r.raw += int64(used)
		r.take(text)
		if done {
			return nil
		}
		if err := r.more(); err != nil {
			return err
		}
	}
}

// exactly reads n octets.
func (r *receiver) exactly(n int64) error {
	in := &r.c.in
	in.finish = true
	defer func() { in.finish = false }()
	in.enlarge()
	for {
		b := in.buffered()
		b = b[:min(int64(len(b)), n)]
		in.r += len(b)
		r.raw += int64(len(b))
		n -= int64(len(b))
		if r.d != nil {
			b, _, _ = r.d.decode(b[:0], b)
		}
		r.take(b)
		if n == 0 {
			return nil
		}
		if err := r.more(); err != nil {
			return err
		}
	}
}

// take hands on text, until something is wrong with the message.
func (r *receiver) take(text []byte) {
	r.size += int64(len(text))
	if r.d != nil {
		r.size += int64(bytes.Count(text, []byte{'\n'}))
	}
	if limit := r.c.srv.MaxSize; limit > 0 && r.size > limit {
		r.big = true
	}
	if len(text) == 0 || r.broken() {
		return
	}
	if _, err := r.m.Write(text); err != nil {
		r.fail = err
	}
}

func (r *receiver) broken() bool {
	return r.fail != nil || r.big || r.m == nil || r.d != nil && r.d.flaw != flawNone
}

// more waits for input. A client may be slow, but not without end: over the whole message it
// has to reach the minimum rate once the first time-out is used up.
func (r *receiver) more() error {
	c := r.c
	if r.broken() && r.raw > c.srv.drainLimit() {
		return errFlood
	}
	now := c.srv.now()
	c.in.deadline = now.Add(c.srv.timeout())
	if rate := or(c.srv.MinRate, 100); rate > 0 {
		slow := r.start.Add(c.srv.timeout() + time.Duration(min(r.raw/rate, math.MaxInt32))*time.Second)
		if slow.Before(c.in.deadline) {
			c.in.deadline = slow
		}
	}
	err := c.in.fill()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("message cut off: %w", err)
}

func (s *Server) drainLimit() int64 { return s.MaxSize + max(s.MaxSize, minDrain) }

// verdict says what is wrong with the message, in the order in which the client can do
// something about it; nil is nothing.
func (r *receiver) verdict() *Answer {
	switch {
	case r.big:
		return &Answer{Code: 552, Enhanced: "5.3.4", Text: "message is bigger than " + strconv.FormatInt(r.c.srv.MaxSize, 10) + " octets"}
	case r.d != nil && r.d.flaw == flawLongLine:
		return &Answer{Code: 554, Enhanced: "5.6.0", Text: "message has a line of more than " + strconv.Itoa(r.d.maxLine) + " octets"}
	case r.d != nil && r.d.flaw != flawNone:
		return &Answer{Code: 550, Enhanced: "5.6.11", Text: "message has " + r.d.flaw.String() + ": lines end in CR LF"}
	case r.fail != nil:
		return answerFor(r.fail)
	}
	return nil
}

// bdat is RFC 3030 §2. The octets of a chunk follow whether or not we want them, so they are
// read first and judged after.
func (c *session) bdat(arg string) error {
	n, last, ok := parseBdat(arg)
	if !ok {
		// Where the chunk ends cannot be known: what follows may be its text.
		c.answer(&Answer{Code: 501, Enhanced: "5.5.4", Text: "want BDAT and a size; closing the connection", Close: true})
		return nil
	}
	r := receiver{c: c, start: c.srv.now(), size: c.tx.size}
	a := c.bdatOrder()
	if a == nil && c.srv.MaxSize > 0 && n > c.srv.MaxSize-c.tx.size {
		r.big = true
		a = r.verdict()
	}
	if a == nil && c.tx.msg == nil {
		a = c.bdatBegin()
	}
	if a != nil {
		if n > c.srv.drainLimit() {
			a.Close = true
			c.answer(a)
			return nil
		}
	} else {
		r.m, r.d = c.tx.msg, c.tx.dec
	}
	if err := r.exactly(n); err != nil {
		return err
	}
	if a == nil {
		if last && r.d != nil {
			r.d.end()
		}
		a = r.verdict()
	}
	c.tx.size = r.size
	c.bdatDone(n, last, a)
	return nil
}

// bdatOrder tells why a chunk is not welcome now.
func (c *session) bdatOrder() *Answer {
	switch {
	case !c.tx.open:
		return &Answer{Code: 503, Enhanced: "5.5.1", Text: "say MAIL and RCPT first"}
	case c.tx.bad:
		return &Answer{Code: 503, Enhanced: "5.5.1", Text: "an earlier chunk was refused; say RSET"}
	case c.tx.rcpts == 0:
		return &Answer{Code: 554, Enhanced: "5.5.1", Text: "no valid recipients"}
	}
	return nil
}

func (c *session) bdatBegin() *Answer {
	m, err := c.be.Data(c.ctx)
	if err != nil {
		return answerFor(err)
	}
	c.tx.msg = m
	if c.tx.opts.Body != envelope.BodyBinary {
		c.tx.dec = &decoder{maxLine: or(c.srv.MaxLine, 128<<10)}
	}
	return nil
}

func (c *session) bdatDone(n int64, last bool, a *Answer) {
	switch {
	case last && c.tx.msg != nil:
		c.complete(c.tx.msg, a)
	case a == nil:
		c.say(250, "2.0.0", strconv.FormatInt(n, 10)+" octets")
		if n == 0 {
			c.idled()
		}
	default:
		c.refused(a)
		if c.tx.msg != nil {
			c.tx.msg.Abort()
			c.tx.msg = nil
		}
		c.tx.bad = c.tx.open
		if last && c.tx.open {
			c.reset()
		}
	}
}

func parseBdat(arg string) (n int64, last, ok bool) {
	size, rest, more := strings.Cut(arg, " ")
	n, ok = parseSize(size)
	if more {
		last = strings.EqualFold(strings.TrimLeft(rest, " "), "LAST")
		ok = ok && last
	}
	return n, last, ok
}
