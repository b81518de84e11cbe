package smtp

import (
	"bytes"
	"strings"
)

// Bounds of a transcript: the start of the session is kept, then as much of the newest as fits.
const (
	scriptHead = 3 << 10
	scriptTail = 5 << 10
	scriptLine = 1000
)

// clientScript records a dialogue in little memory: it is written all the time and read only
// when something fails.
type clientScript struct {
	head, tail []byte
	cut        bool // something between head and tail was dropped
	session    int  // octets of head that belong to greeting, EHLO, TLS and AUTH
	full       bool // head takes no more
}

// begin starts the record of another transaction: the session's start stays, what earlier
// transactions said goes.
func (s *clientScript) begin(first bool) {
	if first {
		s.session = len(s.head)
		return
	}
	s.head, s.tail, s.cut, s.full = s.head[:min(s.session, len(s.head))], s.tail[:0], false, false
	s.add("", "(connection used again)")
}

// add records one line.
func (s *clientScript) add(who, text string) {
	dots := ""
	if len(text) > scriptLine {
		text, dots = text[:scriptLine], "..."
	}
	b := s.room(len(who) + len(text) + len(dots) + 1)
	*b = append(append(append(append(*b, who...), text...), dots...), '\n')
}

// addBytes is add for a line that is no string yet.
func (s *clientScript) addBytes(who string, text []byte) {
	text = text[:min(len(text), scriptLine)]
	b := s.room(len(who) + len(text) + 1)
	*b = append(append(append(*b, who...), text...), '\n')
}

// room chooses where a line of n octets goes, dropping old ones from the tail.
func (s *clientScript) room(n int) *[]byte {
	if !s.full && len(s.head)+n <= scriptHead {
		return &s.head
	}
	s.full = true
	if len(s.tail)+n > 2*scriptTail {
		s.tail = s.tail[:copy(s.tail, scriptNewest(s.tail))]
		s.cut = true
	}
	return &s.tail
}

// scriptNewest is the last part of tail that begins with a line and fits.
func scriptNewest(tail []byte) []byte {
	if len(tail) <= scriptTail {
		return tail
	}
	tail = tail[len(tail)-scriptTail:]
	return tail[bytes.IndexByte(tail, '\n')+1:]
}

// reply records a server's reply, line by line.
func (s *clientScript) reply(r *Reply) {
	for i, l := range r.Lines {
		l = l[:min(len(l), scriptLine)]
		sep := byte('-')
		if i == len(r.Lines)-1 {
			sep = ' '
		}
		p := s.room(len(l) + len(r.Enhanced) + 9)
		b := append(*p, 'S', ':', ' ', byte('0'+r.Code/100), byte('0'+r.Code/10%10), byte('0'+r.Code%10), sep)
		if r.Enhanced != "" {
			b = append(append(b, r.Enhanced...), ' ')
		}
		*p = append(append(b, l...), '\n')
	}
}

func (s *clientScript) lines() []string {
	tail := scriptNewest(s.tail)
	out := strings.Split(strings.TrimSuffix(string(s.head), "\n"), "\n")
	if s.cut || len(tail) < len(s.tail) {
		out = append(out, "(...)")
	}
	if len(tail) > 0 {
		out = append(out, strings.Split(strings.TrimSuffix(string(tail), "\n"), "\n")...)
	}
	return out
}
