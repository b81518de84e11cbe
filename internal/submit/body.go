package submit

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"io"
	"strings"
	"unicode/utf8"
)

// maxLine is the longest line, without its line end, that every relay carries: RFC 5322 §2.1.1.
const maxLine = 998

// encoding is what is done to the bytes of a body from a pipe.
type encoding int

const (
	encNone   encoding = iota // LF line ends, nothing else
	encQP                     // quoted-printable, RFC 2045 §6.7
	encBase64                 // RFC 2045 §6.8, the exact bytes
)

// plan is the form in which a body is stored. It follows from the header and from what has
// been seen of the body, and only ever moves in one direction.
type plan struct {
	enc     encoding
	eight   bool   // the stored form has bytes over 127
	charset string // of the Content-Type field to be added, "" when none is added
}

func (p plan) encodes() bool { return p.enc != encNone }

// fields returns the MIME fields that p adds to header h.
func (p plan) fields(h *header) string {
	if !p.encodes() && p.charset == "" && (!p.eight || h.encodings > 0 || !encodable(h)) {
		return ""
	}
	var b strings.Builder
	if !h.mimeVersion {
		b.WriteString("MIME-Version: 1.0\n")
	}
	if h.types == 0 {
		switch {
		case p.enc == encBase64:
			b.WriteString("Content-Type: application/octet-stream\n")
		default:
			b.WriteString("Content-Type: text/plain; charset=" + p.charset + "\n")
		}
	}
	switch {
	case p.enc == encBase64:
		b.WriteString("Content-Transfer-Encoding: base64\n")
	case p.enc == encQP:
		b.WriteString("Content-Transfer-Encoding: quoted-printable\n")
	case h.encodings == 0:
		b.WriteString("Content-Transfer-Encoding: 8bit\n")
	}
	return b.String()
}

// encodable tells whether the body may be given a transfer encoding: it is one part, and not
// encoded yet. RFC 2045 §6.4 forbids it for multipart and message types.
func encodable(h *header) bool {
	if h.types > 1 || h.encodings > 1 {
		return false
	}
	if h.types == 1 {
		top, _, ok := strings.Cut(h.ctype, "/")
		if !ok || top == "multipart" || top == "message" {
			return false
		}
	}
	switch h.encoding {
	case "", "7bit", "8bit", "binary":
		return true
	}
	return false
}

// bodyWriter turns the body of a pipe's message into its stored form.
type bodyWriter struct {
	plan
	head      *header
	encodable bool
	crlf      bool // the input's lines end in CRLF: a CR before LF is part of the line end

	// What has been seen of the body.
	bareCR, nul, high, badUTF8, long bool

	lineLen  int  // of the unfinished line
	heldCR   bool // the last chunk ended in CR; the next one tells what it is
	utf      utf8Check
	last     byte // last byte written in form encNone
	replaced int64

	scratch []byte
	qp      qpEncoder
	b64     base64Encoder
}

// begin says what the header is and shows the first bytes of the whole message.
func (w *bodyWriter) begin(h *header, message, body []byte) {
	w.head, w.encodable = h, encodable(h)
	if i := bytes.IndexByte(message, '\n'); i > 0 {
		w.crlf = message[i-1] == '\r'
	}
	w.last = '\n'
}

// use makes p the plan. An encoder in the middle of a line goes on with it.
func (w *bodyWriter) use(p plan) {
	if w.plan.enc != p.enc {
		w.qp, w.b64 = qpEncoder{crlf: w.crlf}, base64Encoder{}
	}
	w.plan = p
}

// chunk returns the next bytes to be looked at and written: p with the CR that was held back
// before it, without a CR at its end unless nothing follows.
func (w *bodyWriter) chunk(p []byte, eof bool) []byte {
	if w.heldCR && (len(p) > 0 || eof) {
		p = append([]byte{'\r'}, p...)
		w.heldCR = false
	}
	if n := len(p); n > 0 && p[n-1] == '\r' && !eof {
		w.heldCR = true
		p = p[:n-1]
	}
	return p
}

// look notes what p holds.
func (w *bodyWriter) look(p []byte) {
	if w.plan.enc == encBase64 {
		return
	}
	if w.plan.enc == encNone {
		w.nul = w.nul || bytes.IndexByte(p, 0) >= 0
		w.bareCR = w.bareCR || hasBareCR(p)
		if !w.long && w.encodable {
			w.long, w.lineLen = longLine(p, w.lineLen)
		}
	}
	w.high = w.high || hasHigh(p)
	// Validity matters only where we are the ones to name the character set.
	if w.high && !w.badUTF8 && w.head.types == 0 && w.encodable {
		w.badUTF8 = !w.utf.feed(p)
	}
}

// end notes that the body is over.
func (w *bodyWriter) end() {
	w.badUTF8 = w.badUTF8 || w.utf.n > 0
}

// choose returns the form the body needs by what has been seen. sample is the beginning of the
// body while nothing has been written yet, else nil.
func (w *bodyWriter) choose(sample []byte) plan {
	if w.plan.enc == encBase64 {
		return w.plan
	}
	if !w.encodable {
		return plan{eight: w.high}
	}
	p := plan{enc: w.plan.enc}
	if w.bareCR || w.nul || w.long {
		p.enc = encQP
		if isBinary(sample) {
			return plan{enc: encBase64}
		}
	}
	p.eight = w.high && !p.encodes()
	if w.head.types == 0 && (p.eight || p.encodes()) {
		p.charset = "utf-8"
		if w.badUTF8 {
			p.charset = "unknown-8bit" // the name RFC 1428 gives to text of which nothing is known
		}
	}
	return p
}

// write stores p, which look has seen.
func (w *bodyWriter) write(emit func([]byte) error, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	switch w.plan.enc {
	case encQP:
		w.scratch = w.qp.encode(w.scratch[:0], p)
		return emit(w.scratch)
	case encBase64:
		w.scratch = w.b64.encode(w.scratch[:0], p)
		return emit(w.scratch)
	}
	if bytes.IndexByte(p, '\r') >= 0 || bytes.IndexByte(p, 0) >= 0 {
		p = w.normalise(p)
	}
	if len(p) == 0 {
		return nil
	}
	w.last = p[len(p)-1]
	return emit(p)
}

// normalise turns CRLF into LF, and any other CR and each NUL into a space.
func (w *bodyWriter) normalise(p []byte) []byte {
	out := w.scratch[:0]
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\r')
		if i < 0 {
			i = len(p)
		}
		out = append(out, p[:i]...)
		if i == len(p) {
			break
		}
		if i+1 == len(p) || p[i+1] != '\n' {
			out = append(out, ' ')
			w.replaced++
		}
		p = p[i+1:]
	}
	for i := 0; ; {
		j := bytes.IndexByte(out[i:], 0)
		if j < 0 {
			break
		}
		i += j
		out[i] = ' '
		w.replaced++
	}
	w.scratch = out
	return out
}

// close ends the body. Text always ends in a line end: SMTP cannot say otherwise.
func (w *bodyWriter) close(emit func([]byte) error) error {
	switch {
	case w.plan.enc == encQP:
		return emit(w.qp.close(w.scratch[:0]))
	case w.plan.enc == encBase64:
		return emit(w.b64.close(w.scratch[:0]))
	case w.last != '\n':
		return emit([]byte{'\n'})
	}
	return nil
}

// hasBareCR tells whether p holds a CR that no LF follows.
func hasBareCR(p []byte) bool {
	for {
		i := bytes.IndexByte(p, '\r')
		if i < 0 {
			return false
		}
		if i+1 == len(p) || p[i+1] != '\n' {
			return true
		}
		p = p[i+2:]
	}
}

// longLine tells whether p, behind carry octets of an unfinished line, completes or continues a
// line over maxLine, and returns the length of the line unfinished at its end. It looks only
// for the last line end in each stretch of maxLine+1 octets, never at every one.
func longLine(p []byte, carry int) (long bool, rest int) {
	start := -carry
	for {
		stop := start + maxLine + 1
		if stop > len(p) {
			break
		}
		from := max(start, 0)
		i := bytes.LastIndexByte(p[from:max(stop, from)], '\n')
		if i < 0 {
			return true, 0
		}
		start = from + i + 1
	}
	from := max(start, 0)
	if i := bytes.LastIndexByte(p[from:], '\n'); i >= 0 {
		start = from + i + 1
	}
	return false, len(p) - start
}

// hasHigh tells whether p holds a byte over 127.
func hasHigh(p []byte) bool {
	const tops = 0x8080808080808080
	for len(p) >= 32 {
		v := binary.LittleEndian.Uint64(p) | binary.LittleEndian.Uint64(p[8:]) |
			binary.LittleEndian.Uint64(p[16:]) | binary.LittleEndian.Uint64(p[24:])
		if v&tops != 0 {
			return true
		}
		p = p[32:]
	}
	for _, c := range p {
		if c >= utf8.RuneSelf {
			return true
		}
	}
	return false
}

// isBinary tells whether a sample is no text: too many control characters that no terminal
// knows. Text in a legacy character set has none, UTF-16 and compressed data have many.
func isBinary(sample []byte) bool {
	n := 0
	for _, c := range sample {
		if c < ' ' && (c < '\a' || c > '\r') && c != 0x1b {
			n++
		}
	}
	return n*33 > len(sample)
}

// utf8Check tells whether a stream is UTF-8, whatever its pieces.
type utf8Check struct {
	buf [utf8.UTFMax]byte
	n   int // of an unfinished character
}

// feed returns false when the stream is not UTF-8.
func (u *utf8Check) feed(p []byte) bool {
	for u.n > 0 && len(p) > 0 {
		u.buf[u.n] = p[0]
		u.n++
		p = p[1:]
		if utf8.FullRune(u.buf[:u.n]) {
			if !utf8.Valid(u.buf[:u.n]) {
				return false
			}
			u.n = 0
		}
	}
	for k := 1; k < utf8.UTFMax && k <= len(p); k++ {
		if tail := p[len(p)-k:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				u.n = copy(u.buf[:], tail)
				p = p[:len(p)-k]
			}
			break
		}
	}
	return utf8.Valid(p)
}

// qpEncoder writes quoted-printable text.
type qpEncoder struct {
	crlf bool // CR before LF belongs to the line end
	line []byte
}

// encode appends the encoded form of p to dst, except for the unfinished line. p does not end
// in CR unless nothing follows.
func (q *qpEncoder) encode(dst, p []byte) []byte {
	for i := 0; i < len(p); i++ {
		// A run of characters that stand for themselves is copied at once.
		n := i
		for n < len(p) && n-i+len(q.line) < qpWidth && isQPPlain(p[n]) {
			n++
		}
		q.line = append(q.line, p[i:n]...)
		if i = n; i == len(p) {
			break
		}
		switch c := p[i]; {
		case c == '\n':
			// RFC 2045 §6.7 rule 3: white space at the end of a line would be lost.
			if n := len(q.line); n > 0 && isWSP(q.line[n-1]) {
				ws := q.line[n-1]
				q.line = q.line[:n-1]
				dst = q.escape(dst, ws)
			}
			dst = append(append(dst, q.line...), '\n')
			q.line = q.line[:0]
		case c == '\r' && q.crlf && i+1 < len(p) && p[i+1] == '\n':
		case isQPPlain(c): // the line is full
			dst = q.soft(dst)
			q.line = append(q.line, c)
		default:
			dst = q.escape(dst, c)
		}
	}
	return dst
}

// qpWidth is the longest encoded line without its soft line break: RFC 2045 §6.7 rule 5.
const qpWidth = 75

func isQPPlain(c byte) bool { return c >= ' ' && c <= '~' && c != '=' || c == '\t' }

// escape adds one byte in the form =XX.
func (q *qpEncoder) escape(dst []byte, c byte) []byte {
	const hex = "0123456789ABCDEF"
	if len(q.line)+3 > qpWidth {
		dst = q.soft(dst)
	}
	q.line = append(q.line, '=', hex[c>>4], hex[c&15])
	return dst
}

// soft breaks the line where the text has no line end.
func (q *qpEncoder) soft(dst []byte) []byte {
	dst = append(append(dst, q.line...), '=', '\n')
	q.line = q.line[:0]
	return dst
}

func (q *qpEncoder) close(dst []byte) []byte {
	if len(q.line) == 0 {
		return dst
	}
	return q.encode(dst, []byte{'\n'})
}

// base64Encoder writes base64 in lines of 76 characters.
type base64Encoder struct{ rest []byte }

const base64Line = 57 // octets that make one line

func (e *base64Encoder) encode(dst, p []byte) []byte {
	if len(e.rest) > 0 {
		n := min(base64Line-len(e.rest), len(p))
		e.rest = append(e.rest, p[:n]...)
		p = p[n:]
		if len(e.rest) < base64Line {
			return dst
		}
		dst = e.line(dst, e.rest)
		e.rest = e.rest[:0]
	}
	for len(p) >= base64Line {
		dst = e.line(dst, p[:base64Line])
		p = p[base64Line:]
	}
	e.rest = append(e.rest, p...)
	return dst
}

func (e *base64Encoder) line(dst, p []byte) []byte {
	return append(base64.StdEncoding.AppendEncode(dst, p), '\n')
}

func (e *base64Encoder) close(dst []byte) []byte {
	if len(e.rest) == 0 {
		return dst
	}
	return e.line(dst, e.rest)
}

// IsPlain tells whether p can travel as it is: ASCII in lines that every relay carries.
func IsPlain(p []byte) bool {
	long, _ := longLine(p, 0)
	return !long && len(p) > 0 && p[len(p)-1] == '\n' && !hasHigh(p) && bytes.IndexByte(p, '\r') < 0 && bytes.IndexByte(p, 0) < 0
}

// QuotedPrintable encodes text in quoted-printable form with LF line ends.
type QuotedPrintable struct {
	w   io.Writer
	enc qpEncoder
	buf []byte
	cr  bool
}

// NewQuotedPrintable returns an encoder that writes to w. Close ends the last line.
func NewQuotedPrintable(w io.Writer) *QuotedPrintable {
	return &QuotedPrintable{w: w, enc: qpEncoder{crlf: true}}
}

func (q *QuotedPrintable) Write(p []byte) (int, error) {
	n := len(p)
	if q.cr && n > 0 {
		p, q.cr = append([]byte{'\r'}, p...), false
	}
	if k := len(p); k > 0 && p[k-1] == '\r' {
		p, q.cr = p[:k-1], true // what it is shows with the next byte
	}
	q.buf = q.enc.encode(q.buf[:0], p)
	if _, err := q.w.Write(q.buf); err != nil {
		return 0, err
	}
	return n, nil
}

// Close writes the unfinished line. It does not close w.
func (q *QuotedPrintable) Close() error {
	q.buf = q.buf[:0]
	if q.cr {
		q.buf = q.enc.encode(q.buf, []byte{'\r'})
	}
	q.buf = q.enc.close(q.buf)
	_, err := q.w.Write(q.buf)
	return err
}
