package pop3

import (
	"fmt"
	"strconv"
	"strings"
)

// Format is how unique-ids are made of what the mailbox knows, in the notation of Dovecot's
// pop3_uidl_format, so that its setting can be taken over as it is. The zero Format is Dovecot's
// own default.
type Format struct{ parts []part }

// part is a piece of text, or a value with its form.
type part struct {
	text  string
	what  byte // v UIDVALIDITY, u UID, f base name, g GUID; 0: text
	width int  // 0: as long as it is
	pad   bool // a shorter value is filled up with zeros; otherwise a longer one is cut
	hex   bool
	upper bool
	lower bool
}

// dovecot is the format of the zero Format.
const dovecot = "%08Xu%08Xv"

// maxID is the longest unique-id, RFC 1939 §7.
const maxID = 70

// ParseFormat reads a format: "%u" and "%v" are the numbers UID and UIDVALIDITY, "%f" the base
// name of the file, "%g" the GUID. Between "%" and the letter may stand a width, that cuts what is
// longer or, with a 0 in front, fills up with zeros what is shorter; then X for hexadecimal
// digits, U and L for upper and lower case. "%%" is a per cent sign.
func ParseFormat(s string) (Format, error) {
	var f Format
	unique := false
	for s != "" {
		text, rest, found := strings.Cut(s, "%")
		if text != "" {
			f.parts = append(f.parts, part{text: text})
		}
		if !found {
			break
		}
		p, after, err := parsePart(rest)
		if err != nil {
			return Format{}, err
		}
		unique = unique || strings.IndexByte("ufg", p.what) >= 0 && p.what != 0
		f.parts = append(f.parts, p)
		s = after
	}
	for _, p := range f.parts {
		for _, c := range []byte(p.text) {
			if c < 0x21 || c > 0x7e {
				return Format{}, fmt.Errorf("%q cannot stand in a unique-id", c)
			}
		}
	}
	if !unique {
		return Format{}, fmt.Errorf("without %%u, %%f or %%g all messages have one unique-id")
	}
	return f, nil
}

// parsePart reads what stands behind a per cent sign.
func parsePart(s string) (p part, rest string, err error) {
	digits := s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
	if digits != "" {
		p.pad = digits[0] == '0'
		if p.width, err = strconv.Atoi(digits); err != nil || p.width > maxID {
			return p, "", fmt.Errorf("%%%s: a unique-id has %d characters at most", digits, maxID)
		}
	}
	for i := len(digits); i < len(s); i++ {
		switch c := s[i]; {
		case c == '%' && i == 0:
			return part{text: "%"}, s[1:], nil
		case c == 'X':
			p.hex = true
		case c == 'U':
			p.upper = true
		case c == 'L':
			p.lower = true
		case c == 'u', c == 'v', (c == 'f' || c == 'g') && !p.hex:
			p.what = c
			return p, s[i+1:], nil
		default:
			return p, "", fmt.Errorf("%%%s: want %%u, %%v, %%f or %%g", s[:i+1])
		}
	}
	return p, "", fmt.Errorf("%%%s: a letter is missing", s)
}

func (f Format) compile() Format {
	if f.parts == nil {
		f, _ = ParseFormat(dovecot) // a constant that a test parses
	}
	return f
}

// append adds the unique-id of a message.
func (f Format) append(b []byte, validity uint32, m *entry) []byte {
	for _, p := range f.parts {
		switch p.what {
		case 'u':
			b = p.number(b, m.uid)
		case 'v':
			b = p.number(b, validity)
		case 'f':
			b = p.string(b, m.base)
		case 'g':
			b = p.string(b, m.guid)
		default:
			b = append(b, p.text...)
		}
	}
	return b
}

func (p part) number(b []byte, n uint32) []byte {
	base := 10
	if p.hex {
		base = 16
	}
	var digits [10]byte
	return p.put(b, strconv.AppendUint(digits[:0], uint64(n), base))
}

func (p part) string(b []byte, s string) []byte { return p.put(b, appendID(nil, s)) }

func (p part) put(b, value []byte) []byte {
	switch {
	case p.pad:
		for i := len(value); i < p.width; i++ {
			b = append(b, '0')
		}
	case p.width > 0:
		value = value[:min(len(value), p.width)]
	}
	start := len(b)
	b = append(b, value...)
	p.letters(b[start:])
	return b
}

func (p part) letters(b []byte) {
	for i, c := range b {
		switch {
		case p.upper && c >= 'a' && c <= 'z':
			b[i] = c - 'a' + 'A'
		case p.lower && c >= 'A' && c <= 'Z':
			b[i] = c - 'A' + 'a'
		}
	}
}

// appendID adds s, which other programs have written. An octet that a unique-id cannot have
// (RFC 1939 §7) stands as Courier writes it. A long id stays as long as it is: the client has it
// from before.
func appendID(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c >= 0x21 && c <= 0x7e {
			b = append(b, c)
		} else {
			b = append(b, '+', "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
		}
	}
	return b
}
