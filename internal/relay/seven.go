package relay

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"mime"
	"strings"
)

// sevenBit rewrites a message so that its bodies are 7-bit (RFC 6152 §3): every part that is
// not encoded yet becomes quoted-printable, and multipart bodies lose their 8bit label. Parts
// that are encoded, and everything else, stay octet for octet. Lines of the source end in LF.
type sevenBit struct {
	src        *bufio.Reader
	out        bytes.Buffer
	header     []byte   // lines of the header being read
	inHeader   bool     // of the message or of a part
	top        bool     // it is the message's own
	encode     bool     // the body being read becomes quoted-printable
	qp         quoted   // its encoder
	boundaries []string // of the multiparts around it, innermost last
	midLine    bool     // the last piece had no line end
	err        error
}

// Bounds against hostile structures; what exceeds them passes unchanged.
const (
	maxPartHeader = 256 << 10
	maxDepth      = 50
)

func newSevenBit(r io.Reader) *sevenBit {
	return &sevenBit{src: bufio.NewReaderSize(r, 16<<10), inHeader: true, top: true}
}

// Read implements io.Reader.
func (s *sevenBit) Read(p []byte) (int, error) {
	for s.out.Len() < len(p) && s.err == nil {
		line, err := s.src.ReadSlice('\n')
		whole := !s.midLine && (err == nil || errors.Is(err, io.EOF))
		s.line(line, whole)
		s.midLine = errors.Is(err, bufio.ErrBufferFull)
		if err != nil && !s.midLine {
			s.end(err)
		}
	}
	if s.out.Len() > 0 {
		return s.out.Read(p)
	}
	return 0, s.err
}

func (s *sevenBit) end(err error) {
	s.err = err
	if s.inHeader {
		s.out.Write(s.header)
	}
	s.qp.flush(&s.out)
}

// line takes the next line, or a piece of one that is longer than the buffer.
func (s *sevenBit) line(l []byte, whole bool) {
	if whole && len(l) > 2 && l[0] == '-' && l[1] == '-' && s.boundary(l) {
		return
	}
	switch {
	case s.inHeader:
		s.header = append(s.header, l...)
		if whole && len(bytes.TrimRight(l, "\r\n")) == 0 || len(s.header) > maxPartHeader {
			s.headerDone()
		}
	case s.encode:
		s.qp.write(&s.out, l)
	default:
		s.out.Write(l)
	}
}

// boundary handles a line that begins or ends a part.
func (s *sevenBit) boundary(l []byte) bool {
	text := strings.TrimRight(string(l[2:]), " \t\r\n")
	for i := len(s.boundaries) - 1; i >= 0; i-- {
		last := false
		if text != s.boundaries[i] {
			if text != s.boundaries[i]+"--" {
				continue
			}
			last = true
		}
		if s.inHeader { // a part without a body
			s.out.Write(s.header)
		}
		s.qp.flush(&s.out)
		s.out.Write(l)
		s.boundaries = s.boundaries[:i+1]
		if last {
			s.boundaries = s.boundaries[:i]
		}
		s.header, s.inHeader, s.encode = s.header[:0], !last, false
		return true
	}
	return false
}

// headerDone decides about the entity whose header has been read.
func (s *sevenBit) headerDone() {
	h := s.header
	top := s.top
	s.inHeader, s.top, s.encode = false, false, false
	encoding := strings.ToLower(strings.TrimSpace(field(h, "Content-Transfer-Encoding")))
	kind, params, _ := mime.ParseMediaType(field(h, "Content-Type"))
	switch {
	case len(h) > maxPartHeader:
	case encoding == "quoted-printable" || encoding == "base64":
	case strings.HasPrefix(kind, "multipart/"):
		if b := params["boundary"]; b != "" && len(s.boundaries) < maxDepth {
			s.boundaries = append(s.boundaries, b)
		}
		h = relabel(h, encoding, "7bit")
	case kind == "message/rfc822":
		s.out.Write(relabel(h, encoding, "7bit"))
		s.header, s.inHeader = s.header[:0], true
		return
	default:
		s.encode = true
		h = relabel(h, "", "quoted-printable")
		if top && field(h, "MIME-Version") == "" {
			add := "MIME-Version: 1.0\n"
			if kind == "" { // RFC 1428: whatever it is, it is not ASCII
				add += "Content-Type: text/plain; charset=unknown-8bit\n"
			}
			h = insert(h, add)
		}
	}
	s.out.Write(h)
	s.header = s.header[:0]
}

// relabel replaces the transfer encoding. With an old one of "" it is added where missing.
func relabel(h []byte, old, encoding string) []byte {
	if old == "7bit" || old == "" && encoding == "7bit" {
		return h
	}
	var out []byte
	drop := false
	for l := range bytes.Lines(h) {
		if l[0] != ' ' && l[0] != '\t' {
			drop = isField(l, "Content-Transfer-Encoding")
		}
		if !drop {
			out = append(out, l...)
		}
	}
	return insert(out, "Content-Transfer-Encoding: "+encoding+"\n")
}

// insert puts lines at the end of a header, before its empty line.
func insert(h []byte, lines string) []byte {
	end := len(bytes.TrimRight(h, "\r\n"))
	if end > 0 {
		end += bytes.IndexByte(h[end:], '\n') + 1
	}
	out := append(make([]byte, 0, len(h)+len(lines)), h[:end]...)
	return append(append(out, lines...), h[end:]...)
}

// field is the unfolded value of the first field of that name.
func field(h []byte, name string) string {
	var v []byte
	found := false
	for l := range bytes.Lines(h) {
		switch {
		case l[0] == ' ' || l[0] == '\t':
			if found {
				v = append(append(v, ' '), bytes.TrimSpace(l)...)
			}
		case found:
			return string(v)
		case isField(l, name):
			found = true
			v = bytes.TrimSpace(l[len(name)+1:])
			v = v[:len(v):len(v)]
		}
	}
	return string(v)
}

func isField(l []byte, name string) bool {
	return len(l) > len(name) && l[len(name)] == ':' && strings.EqualFold(string(l[:len(name)]), name)
}

// quoted encodes lines as quoted-printable, RFC 2045 §6.7.
type quoted struct {
	col   int
	space byte // white space that may turn out to be the line's last; 0: none
}

func (q *quoted) write(out *bytes.Buffer, p []byte) {
	for i, c := range p {
		switch {
		case c == '\n':
			q.newline(out)
		case c == '\r' && i+1 < len(p) && p[i+1] == '\n':
		case c == ' ' || c == '\t':
			q.pending(out, false)
			q.space = c
		default:
			q.pending(out, false)
			q.octet(out, c, c < '!' || c > '~' || c == '=')
		}
	}
}

func (q *quoted) newline(out *bytes.Buffer) {
	q.pending(out, true)
	out.WriteByte('\n')
	q.col = 0
}

// flush ends a body whose last line may be open.
func (q *quoted) flush(out *bytes.Buffer) {
	q.pending(out, true)
	q.col = 0
}

// pending writes white space held back; at a line's end it must be encoded.
func (q *quoted) pending(out *bytes.Buffer, last bool) {
	if q.space != 0 {
		q.octet(out, q.space, last)
		q.space = 0
	}
}

func (q *quoted) octet(out *bytes.Buffer, c byte, encode bool) {
	const hex = "0123456789ABCDEF"
	n := 1
	if encode {
		n = 3
	}
	if q.col+n > 75 { // 76 with the "=" of the soft line break
		out.WriteString("=\n")
		q.col = 0
	}
	q.col += n
	if encode {
		out.Write([]byte{'=', hex[c>>4], hex[c&15]})
		return
	}
	out.WriteByte(c)
}
