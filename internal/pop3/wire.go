package pop3

import "bytes"

// wire turns a stored message into what a multi-line reply carries, in one pass: each LF becomes
// CR LF, each line that begins with a dot gets a second one (RFC 1939 §3). It counts the octets
// as POP3 counts them, without the dots that it added.
type wire struct {
	octets int64
	inLine bool // the last octet was no LF
	cr     bool // it was a CR
}

// append adds the wire form of p to dst.
func (w *wire) append(dst, p []byte) []byte {
	for len(p) > 0 {
		if p[0] == '.' && !w.inLine {
			dst = append(dst, '.')
		}
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			w.octets += int64(len(p))
			w.inLine, w.cr = true, p[len(p)-1] == '\r'
			return append(dst, p...)
		}
		// A CR that is there already makes the line end with this LF, as the stored size counts it.
		if i > 0 && p[i-1] == '\r' || i == 0 && w.cr {
			dst = append(dst, p[:i+1]...)
			w.octets += int64(i + 1)
		} else {
			dst = append(append(dst, p[:i]...), '\r', '\n')
			w.octets += int64(i + 2)
		}
		w.inLine, w.cr = false, false
		p = p[i+1:]
	}
	return dst
}

// end closes the reply. A message without a line end at its end gets one: without it the dot
// would be taken for text.
func (w *wire) end(dst []byte) []byte {
	if w.inLine {
		dst = append(dst, '\r', '\n')
	}
	return append(dst, '.', '\r', '\n')
}

// scan finds line ends in a message that comes in pieces, and where its header is over.
type scan struct {
	body bool
	cur  lineState
}

// lineState is what the line that is not over yet holds so far.
type lineState uint8

const (
	lineEmpty lineState = iota
	lineCR              // one CR and nothing else
	lineText
)

// line takes p up to the end of a line. It returns 0 when that is not in p.
func (s *scan) line(p []byte) int {
	i := bytes.IndexByte(p, '\n')
	if i < 0 {
		switch {
		case len(p) == 0:
		case len(p) == 1 && p[0] == '\r' && s.cur == lineEmpty:
			s.cur = lineCR
		default:
			s.cur = lineText
		}
		return 0
	}
	empty := i == 0 && s.cur != lineText || i == 1 && p[0] == '\r' && s.cur == lineEmpty
	s.body, s.cur = s.body || empty, lineEmpty
	return i + 1
}

// header returns how much of p belongs to the header, the empty line included, and whether that
// is in p.
func (s *scan) header(p []byte) (n int, whole bool) {
	for !s.body {
		k := s.line(p[n:])
		if k == 0 {
			return len(p), false
		}
		n += k
	}
	return n, true
}

// lines returns how much of p the next lines are, and lowers their number by those that are over.
func (s *scan) lines(p []byte, left *uint64) (n int) {
	for *left > 0 {
		k := s.line(p[n:])
		if k == 0 {
			return len(p)
		}
		n += k
		*left--
	}
	return n
}
