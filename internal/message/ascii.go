package message

import (
	"bytes"
	"encoding/base64"
	"strings"
	"unicode/utf8"
)

// unreachable stands for an address that ASCII has no form for, RFC 6858 §2.1.
const unreachable = "<invalid@internationalized-address.invalid>"

// AppendASCII appends a header for clients that know ASCII alone: what RFC 6858 makes of it, but
// that parameters keep their value in the form of RFC 2231. header is as stored, with the empty
// line behind it or without; the result has LF line ends. A header that is ASCII comes out as it
// is. Octets that are no UTF-8 are octets of an unknown charset (RFC 1428 §3).
func AppendASCII(dst, header []byte) []byte {
	for len(header) > 0 {
		n := fieldEnd(header)
		field := header[:n]
		header = header[n:]
		if !isASCII(field) {
			field = asciiField(field)
		}
		for line := range bytes.Lines(field) {
			text, ended := bytes.CutSuffix(line, []byte{'\n'})
			dst = append(dst, text...)
			if ended {
				dst = append(bytes.TrimSuffix(dst, []byte{'\r'}), '\n')
			}
		}
	}
	return dst
}

// fieldEnd is the length of the first field with the lines that continue it.
func fieldEnd(h []byte) int {
	for n := 0; n < len(h); {
		i := bytes.IndexByte(h[n:], '\n')
		if i < 0 {
			break
		}
		if n += i + 1; n == len(h) || h[n] != ' ' && h[n] != '\t' {
			return n
		}
	}
	return len(h)
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// asciiField is one field in ASCII; nothing is left of one that has no such form.
func asciiField(field []byte) []byte {
	name, value, ok := bytes.Cut(field, []byte{':'})
	if !ok || !isASCII(name) {
		return nil
	}
	v := strings.Trim(strings.NewReplacer("\r", "", "\n", "").Replace(string(value)), " \t")
	switch strings.ToLower(string(bytes.TrimRight(name, " \t"))) {
	case "from", "sender", "reply-to", "to", "cc", "bcc", "return-path", "disposition-notification-to",
		"resent-from", "resent-sender", "resent-to", "resent-cc", "resent-bcc", "resent-reply-to":
		v = asciiAddresses(v)
	case "content-type", "content-disposition":
		v = asciiParams(v)
	case "date", "message-id", "in-reply-to", "references", "received", "mime-version", "content-transfer-encoding",
		"content-id", "resent-date", "resent-message-id", "dkim-signature", "authentication-results":
		return nil // RFC 6858 §2.4: the form of these has no place for words
	default:
		v = asciiText(v)
	}
	if v == "" {
		return nil
	}
	return append(append(bytes.Clone(name), ": "...), v+"\n"...)
}

// asciiText encodes the words of unstructured text that need it, with what stands between two of
// them: a reader drops space between encoded words (RFC 2047 §6.2).
func asciiText(s string) string {
	first := strings.IndexFunc(s, notASCII)
	if first < 0 {
		return s
	}
	last := strings.LastIndexFunc(s, notASCII)
	start := strings.LastIndexAny(s[:first], " \t") + 1
	end := len(s)
	if i := strings.IndexAny(s[last:], " \t"); i >= 0 {
		end = last + i
	}
	return s[:start] + words(s[start:end]) + s[end:]
}

func notASCII(r rune) bool { return r >= utf8.RuneSelf }

// maxWord is how many octets of text one encoded word holds: of its 75 characters (RFC 2047 §2)
// "=?unknown-8bit?B??=" takes 19, and three octets take four.
const maxWord = 42

// words encodes text, one word a line where it takes several. Characters stay whole.
func words(s string) string {
	charset := "UTF-8"
	if !utf8.ValidString(s) {
		charset = "unknown-8bit"
	}
	var b strings.Builder
	for s != "" {
		n := min(len(s), maxWord)
		for charset == "UTF-8" && n < len(s) && !utf8.RuneStart(s[n]) {
			n--
		}
		if b.Len() > 0 {
			b.WriteString("\n ")
		}
		b.WriteString("=?" + charset + "?B?" + base64.StdEncoding.EncodeToString([]byte(s[:n])) + "?=")
		s = s[n:]
	}
	return b.String()
}

// asciiAddresses encodes names, and puts an address that cannot be written in front of one that
// nobody has. Groups are taken apart: their members stay.
func asciiAddresses(s string) string {
	var out []string
	for _, m := range splitList(s) {
		if strings.IndexFunc(m, notASCII) >= 0 {
			m = asciiMailbox(m)
		}
		if m != "" {
			out = append(out, m)
		}
	}
	return strings.Join(out, ",\n ")
}

// splitList splits at the commas, semicolons and colons outside of quotes, comments and brackets,
// and drops the name of a group in front of its colon.
func splitList(s string) []string {
	var out []string
	start := 0
	emit := func(end int) {
		if m := strings.Trim(s[start:end], " \t"); m != "" {
			out = append(out, m)
		}
		start = end + 1
	}
	quoted, depth, angle := false, 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && (quoted || depth > 0):
			i++
		case c == '"' && depth == 0:
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
		case c == ')':
			depth = max(depth-1, 0)
		case depth > 0:
		case c == '<':
			angle = true
		case c == '>':
			angle = false
		case angle:
		case c == ':':
			start = i + 1
		case c == ',' || c == ';':
			emit(i)
		}
	}
	if start < len(s) {
		emit(len(s))
	}
	return out
}

// asciiMailbox is one mailbox, RFC 6858 §2.1.
func asciiMailbox(m string) string {
	name, address := "", m
	if i := lastAngle(m); i >= 0 {
		name, address = strings.Trim(m[:i], " \t"), m[i:]
		if j := strings.IndexByte(address, '>'); j >= 0 {
			address = address[:j+1] // a comment behind it is for people, who have the name
		}
	} else if i := strings.IndexByte(m, '('); i >= 0 {
		name, address = strings.TrimSuffix(m[i+1:], ")"), "<"+strings.Trim(m[:i], " \t")+">"
	} else {
		address = "<" + m + ">"
	}
	name = unquote(name)
	if strings.IndexFunc(address, notASCII) >= 0 {
		return words(strings.TrimLeft(name+" "+address, " ")) + " " + unreachable
	}
	return words(name) + " " + address
}

// lastAngle is where the bracket of the address opens, outside of quotes.
func lastAngle(s string) int {
	at, quoted := -1, false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && quoted:
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == '<' && !quoted:
			at = i
		}
	}
	return at
}

// unquote takes the quotes off the words of a name.
func unquote(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case s[i] != '"':
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// asciiParams encodes the values of parameters, RFC 2231 §4. A parameter whose name cannot be
// written goes; so does everything where the type cannot be.
func asciiParams(s string) string {
	var out []string
	for i, p := range splitParams(s) {
		switch name, value, ok := strings.Cut(p, "="); {
		case strings.IndexFunc(p, notASCII) < 0:
			out = append(out, p)
		case i == 0:
			return "" // the type itself
		case !ok || strings.IndexFunc(name, notASCII) >= 0:
		default:
			out = append(out, strings.TrimRight(name, " \t*")+"*="+percent(unquote(strings.TrimLeft(value, " \t"))))
		}
	}
	return strings.Join(out, ";\n ")
}

// splitParams splits at the semicolons outside of quotes.
func splitParams(s string) []string {
	var out []string
	start, quoted := 0, false
	for i := 0; i <= len(s); i++ {
		switch {
		case i == len(s) || s[i] == ';' && !quoted:
			if p := strings.Trim(s[start:i], " \t"); p != "" || start == 0 {
				out = append(out, p)
			}
			start = i + 1
		case s[i] == '\\' && quoted:
			i++
		case s[i] == '"':
			quoted = !quoted
		}
	}
	return out
}

func percent(s string) string {
	var b strings.Builder
	b.WriteString("UTF-8''")
	if !utf8.ValidString(s) {
		b.Reset()
		b.WriteString("unknown-8bit''")
	}
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' {
			b.WriteByte(c)
		} else {
			const hex = "0123456789ABCDEF"
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}
