package submit

import (
	"bytes"
	"iter"
	"strings"
)

// field is one header field in a buffer: its first line and its continuations.
type field struct {
	start, nameEnd, end int // name is [start,nameEnd), all of it including the last line end [start,end)
}

// headerScan walks over the lines of a header as they arrive. It never fails: what is no field
// ends the header. It keeps no table of the fields: one of the shortest would be eight times
// their size.
type headerScan struct {
	pos   int  // start of the first line not yet judged
	field bool // a field has come
	mbox  bool // a leading "From " line of a mailbox file is skipped
}

// maxName bounds a field name. RFC 5322 §2.1.1's line limit bounds it anyway; without a bound
// of its own a first line of many megabytes without a colon would be taken for a long name.
const maxName = 998

// next judges the lines of buf that have come in so far. done tells that the header is over: it
// ends at end, and the body starts at body. With eof set the last line needs no line end.
func (h *headerScan) next(buf []byte, eof bool) (end, body int, done bool) {
	for h.pos < len(buf) {
		line := buf[h.pos:]
		n := bytes.IndexByte(line, '\n') + 1
		whole := n > 0
		if whole {
			line = line[:n]
		}
		if !whole && !eof {
			// A line that can no longer become a field ends the header before all of it is here.
			if cont := line[0] == ' ' || line[0] == '\t'; cont && h.field || h.couldBeField(line) {
				return 0, 0, false
			}
			return h.pos, h.pos, true
		}
		switch {
		case len(line) == 1 && line[0] == '\n', len(line) == 2 && line[0] == '\r' && line[1] == '\n':
			return h.pos, h.pos + len(line), true
		case (line[0] == ' ' || line[0] == '\t') && h.field:
		case h.mbox && !h.field && isFromLine(line):
		case fieldName(line) == 0:
			return h.pos, h.pos, true
		default:
			h.field = true
		}
		h.pos += len(line)
	}
	return h.pos, h.pos, eof
}

// couldBeField tells whether an unfinished line may still turn out to be a field, an empty line
// or a From_ line.
func (h *headerScan) couldBeField(line []byte) bool {
	if line[0] == '\r' && len(line) == 1 {
		return true
	}
	if h.mbox && !h.field && (isFromLine(line) || len(line) < 6) {
		return true
	}
	for i, c := range line {
		if c == ':' {
			return i > 0
		}
		if i == maxName || c <= ' ' && !isWSP(c) || c >= 0x7f {
			return false
		}
	}
	return fieldName(append(line[:len(line):len(line)], ':')) > 0
}

// fieldName returns the length of the field name line starts with, 0 when it is no field.
// RFC 5322 §4.5 lets old messages put white space before the colon.
func fieldName(line []byte) int {
	i := 0
	for i < len(line) && i <= maxName && line[i] > ' ' && line[i] < 0x7f && line[i] != ':' {
		i++
	}
	if i == 0 || i > maxName {
		return 0
	}
	for j := i; j < len(line); j++ {
		if line[j] == ':' {
			return i
		}
		if !isWSP(line[j]) {
			break
		}
	}
	return 0
}

func isWSP(c byte) bool { return c == ' ' || c == '\t' }

// isFromLine tells a mailbox file's separator, with or without the quoting some programs leave.
func isFromLine(line []byte) bool {
	return bytes.HasPrefix(line, []byte("From ")) || bytes.HasPrefix(line, []byte(">From "))
}

// header is a parsed header: the raw bytes and what the fix-ups have to know about them.
type header struct {
	raw  []byte
	mbox bool // raw may begin with a "From " line

	received    int
	resent      bool
	date        [2]bool // without and with Resent-
	from        [2]bool
	sender      [2]bool
	msgID       [2]bool
	msgid       string // the author's Message-ID, for logs
	mimeVersion bool
	types       int // number of Content-Type fields
	ctype       string
	encodings   int // number of Content-Transfer-Encoding fields
	encoding    string
}

// fields are those of a header that a scan has found the end of.
func (h *header) fields() iter.Seq[field] {
	return func(yield func(field) bool) {
		var f field // the last one found; its continuations may follow
		for pos := 0; pos < len(h.raw); {
			line := h.raw[pos:]
			if n := bytes.IndexByte(line, '\n') + 1; n > 0 {
				line = line[:n]
			}
			next := pos + len(line)
			switch {
			case isWSP(line[0]) && f.end > 0:
				f.end = next
			case h.mbox && f.end == 0 && isFromLine(line):
			default:
				if f.end > 0 && !yield(f) {
					return
				}
				f = field{pos, pos + fieldName(line), next}
			}
			pos = next
		}
		if f.end > 0 {
			yield(f)
		}
	}
}

// parseHeader reads the facts out of a header whose end a scan has found.
func parseHeader(raw []byte, mbox bool) *header {
	h := &header{raw: raw, mbox: mbox}
	var low [32]byte
	for f := range h.fields() {
		n := f.nameEnd - f.start
		if n > len(low) {
			continue
		}
		name := lower(low[:0], raw[f.start:f.nameEnd])
		re := 0
		if bytes.HasPrefix(name, []byte("resent-")) {
			h.resent, re, name = true, 1, name[len("resent-"):]
		}
		switch string(name) {
		case "received":
			h.received++
		case "date":
			h.date[re] = true
		case "from":
			h.from[re] = true
		case "sender":
			h.sender[re] = true
		case "message-id":
			h.msgID[re] = true
			if re == 0 && h.msgid == "" {
				h.msgid = printable(h.value(f), 250)
			}
		case "mime-version":
			h.mimeVersion = true
		case "content-type":
			h.types++
			h.ctype = mimeToken(h.value(f))
		case "content-transfer-encoding":
			h.encodings++
			h.encoding = mimeToken(h.value(f))
		}
	}
	return h
}

// value returns a field's body, unfolded and trimmed.
func (h *header) value(f field) string {
	v := h.raw[f.nameEnd:f.end]
	v = v[bytes.IndexByte(v, ':')+1:]
	if i := bytes.IndexByte(v, '\n'); i >= 0 && i < len(v)-1 {
		// RFC 5322 §2.2.3: unfolding removes the line end before white space.
		v = bytes.ReplaceAll(bytes.ReplaceAll(v, []byte("\r\n"), []byte("\n")), []byte("\n"), nil)
	}
	return strings.Trim(string(v), " \t\r\n")
}

// is tells whether field f has one of the given lower-case names.
func (h *header) is(f field, names ...string) bool {
	name := h.raw[f.start:f.nameEnd]
	for _, n := range names {
		if len(n) == len(name) && strings.EqualFold(n, string(name)) {
			return true
		}
	}
	return false
}

// lower appends the ASCII lower-case form of s to dst.
func lower(dst, s []byte) []byte {
	for _, c := range s {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// mimeToken returns the leading token of a structured MIME field ("text/plain" of
// "Text/Plain (comment); charset=utf-8"), in lower case, without comments.
func mimeToken(v string) string {
	var b strings.Builder
	depth := 0
	for i := 0; i < len(v); i++ {
		c := v[i]
		switch {
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case depth > 0 || isWSP(c):
		case c == ';':
			return strings.ToLower(b.String())
		default:
			b.WriteByte(c)
		}
	}
	return strings.ToLower(b.String())
}

// printable returns at most n octets of s with control characters replaced, for logs and
// trace lines.
func printable(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
