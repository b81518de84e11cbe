package relay

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"pennypost/internal/envelope"
	"pennypost/internal/smtp"
	"pennypost/internal/worker"
)

// smallText is how large a message may be to be read into memory, once for all attempts.
const smallText = 128 << 10

// text is the message of an attempt and what is known about it.
type text struct {
	whole *io.SectionReader
	mem   []byte  // the same when it is small
	buf   *[]byte // where mem is, to be given back
	shape smtp.Shape
	wire  bool
}

func (r *Relayer) newText(f *os.File, req *worker.Request) (*text, error) {
	t := &text{whole: io.NewSectionReader(f, req.Offset, req.Size), wire: req.EOL == envelope.EOLWire}
	if req.Size > smallText {
		var err error
		t.shape, err = smtp.ScanText(t.whole, t.wire)
		return t, err
	}
	t.buf, _ = r.texts.Get().(*[]byte)
	if t.buf == nil || cap(*t.buf) < int(req.Size) {
		b := make([]byte, 0, max(int(req.Size), 8<<10))
		t.buf = &b
	}
	t.mem = (*t.buf)[:req.Size]
	if n, err := t.whole.ReadAt(t.mem, 0); n < len(t.mem) {
		if err == io.EOF {
			err = fmt.Errorf("it has %d octets, announced are %d", n, req.Size)
		}
		return nil, err
	}
	t.shape = smtp.ScanBytes(t.mem, t.wire)
	return t, nil
}

func (t *text) release(r *Relayer) {
	if t.buf != nil {
		r.texts.Put(t.buf)
	}
}

func (t *text) reader() io.Reader {
	if t.mem != nil {
		return bytes.NewReader(t.mem)
	}
	return io.NewSectionReader(t.whole, 0, t.whole.Size())
}

// transaction adapts the message to what a peer announced. Where it cannot be adapted, the
// transaction says what it needs, and the client refuses with the right code.
func (t *text) transaction(req *worker.Request, can *smtp.Abilities) *smtp.Transaction {
	x := &smtp.Transaction{
		From: req.From, Ret: req.Ret, EnvID: req.EnvID,
		UTF8:       req.UTF8 && t.shape.HeaderEight,
		RequireTLS: req.TLS && req.From != "",
		By:         req.By, Priority: req.Priority,
		Size: t.shape.Size,
		Text: t.reader(),
	}
	if !can.UTF8 {
		x.From = asciiDomain(x.From)
	}
	eight := t.shape.HeaderEight || t.shape.BodyEight
	switch {
	case t.wire && t.shape.Binary:
		x.Body, x.Size = envelope.BodyBinary, req.Size
	case eight && can.EightBit:
		x.Body = envelope.Body8Bit
	case eight && !t.shape.HeaderEight:
		// RFC 6152 §3: to a peer without 8BITMIME goes no 8-bit text.
		x.Text, x.Size = newSevenBit(x.Text), 0
	case eight:
		x.Body = envelope.Body8Bit // 8-bit octets in the header have no 7-bit form: refused
	}
	return x
}
