package submit

import (
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"

	"pennypost/internal/envelope"
)

// ParseAddressList reads the addresses out of an address field (RFC 5322 §3.4): mailboxes with
// and without names, groups, comments, and the obsolete routes. domain completes an address
// without one. Names are not looked at: whatever they hold, encoded words or raw text, they
// name nobody. An entry that is no address makes the whole list an error that quotes it.
func ParseAddressList(s, domain string) ([]envelope.Address, error) {
	boxes, err := ParseMailboxes(s, domain)
	list := make([]envelope.Address, len(boxes))
	for i, b := range boxes {
		list[i] = b.Addr
	}
	return list, err
}

// Mailbox is one address with the name written beside it.
type Mailbox struct {
	Name string // without quotes
	Addr envelope.Address
}

// String is the mailbox as it stands in a header field: the name encoded where it has to be.
func (m Mailbox) String() string {
	name := strings.TrimSpace(printable(m.Name, 500))
	if name == "" {
		return m.Addr.String()
	}
	return EncodePhrase(name) + " <" + m.Addr.String() + ">"
}

// ParseMailboxes is ParseAddressList with the names kept.
func ParseMailboxes(s, domain string) ([]Mailbox, error) {
	var list []Mailbox
	p := addrParser{s: s}
	for {
		entry, sep, err := p.entry()
		if err != nil {
			return nil, err
		}
		if sep != ':' { // what ends in a colon is the name of a group
			if a, ok, err := entry.address(domain); err != nil {
				return nil, err
			} else if ok {
				list = append(list, Mailbox{entry.name(), a})
			}
		}
		if sep == 0 {
			return list, nil
		}
	}
}

// addrParser cuts an address field into its entries.
type addrParser struct {
	s string
	i int
}

// addrEntry is one entry without its comments.
type addrEntry struct {
	text  string // as it stands in the field, for errors
	plain string // outside angle brackets
	angle string // inside them
	has   bool   // there were angle brackets
}

// entry reads up to the next separator: ',' or ';', ':' behind the name of a group, 0 at the
// end.
func (p *addrParser) entry() (e addrEntry, sep byte, err error) {
	start := p.i
	var plain, angle strings.Builder
	out := &plain
	for p.i < len(p.s) {
		c := p.s[p.i]
		switch {
		case c == '"':
			q, err := p.quoted()
			if err != nil {
				return e, 0, err
			}
			out.WriteString(q)
			continue
		case c == '(':
			if err := p.comment(); err != nil {
				return e, 0, err
			}
			out.WriteByte(' ')
			continue
		case c == '[' && out == &angle, c == '[' && strings.HasSuffix(strings.TrimRight(plain.String(), " \t"), "@"):
			n := strings.IndexByte(p.s[p.i:], ']')
			if n < 0 {
				return e, 0, fmt.Errorf("%w: %q: ']' missing", envelope.ErrAddress, p.s[start:])
			}
			out.WriteString(p.s[p.i : p.i+n+1])
			p.i += n + 1
			continue
		case c == '<' && !e.has:
			e.has, out = true, &angle
		case c == '>' && out == &angle:
			out = &plain
		case out == &plain && (c == ',' || c == ';' || c == ':' && !e.has):
			sep = c
		case c == '\r' || c == '\n':
			out.WriteByte(' ')
		default:
			out.WriteByte(c)
		}
		p.i++
		if sep != 0 {
			break
		}
	}
	end := p.i
	if sep != 0 {
		end--
	}
	e.text = strings.TrimSpace(p.s[start:end])
	if out == &angle {
		return e, 0, fmt.Errorf("%w: %q: '>' missing", envelope.ErrAddress, e.text)
	}
	e.plain, e.angle = plain.String(), angle.String()
	return e, sep, nil
}

// quoted reads a quoted string and returns it with its quotes, unfolded.
func (p *addrParser) quoted() (string, error) {
	start := p.i
	for p.i++; p.i < len(p.s); p.i++ {
		switch p.s[p.i] {
		case '\\':
			p.i++
		case '"':
			p.i++
			return strings.NewReplacer("\r", "", "\n", "").Replace(p.s[start:p.i]), nil
		}
	}
	p.i = len(p.s)
	return "", fmt.Errorf("%w: %q: closing quote missing", envelope.ErrAddress, p.s[start:])
}

// comment skips a comment with those inside it.
func (p *addrParser) comment() error {
	start, depth := p.i, 0
	for ; p.i < len(p.s); p.i++ {
		switch p.s[p.i] {
		case '\\':
			p.i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				p.i++
				return nil
			}
		}
	}
	p.i = len(p.s)
	return fmt.Errorf("%w: %q: ')' missing", envelope.ErrAddress, p.s[start:])
}

// address returns the address of an entry; ok is false for an empty one.
func (e addrEntry) address(domain string) (a envelope.Address, ok bool, err error) {
	spec := e.plain
	if e.has {
		spec = e.angle
		if strings.HasPrefix(strings.TrimSpace(spec), "@") { // RFC 5322 §4.4: obs-route
			if i := strings.IndexByte(spec, ':'); i >= 0 {
				spec = spec[i+1:]
			}
		}
	}
	spec = closeUp(spec)
	if spec == "" {
		if e.has {
			return a, false, fmt.Errorf("%w: %q: nothing between the angle brackets", envelope.ErrAddress, e.text)
		}
		return a, false, nil
	}
	a, err = envelope.ParseLocal(spec, domain)
	if err != nil {
		return a, false, err
	}
	return a, true, nil
}

// name returns the name of an entry that has one, unquoted.
func (e addrEntry) name() string {
	if !e.has {
		return ""
	}
	s := strings.TrimSpace(e.plain)
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return s
	}
	var b strings.Builder
	for i := 1; i < len(s)-1; i++ {
		if s[i] == '\\' && i < len(s)-2 {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// closeUp removes the white space that RFC 5322 §4.4 lets stand around the dots and the @ of
// an address.
func closeUp(s string) string {
	s = strings.Trim(s, " \t")
	if !strings.ContainsAny(s, " \t") {
		return s
	}
	var b strings.Builder
	quoted := false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && quoted && i+1 < len(s):
			b.WriteByte(c)
			i++
			c = s[i]
		case c == '"':
			quoted = !quoted
		case isWSP(c) && !quoted:
			rest := strings.TrimLeft(s[i:], " \t")
			before := b.String()
			if rest != "" && (rest[0] == '.' || rest[0] == '@') || before != "" && (before[len(before)-1] == '.' || before[len(before)-1] == '@') {
				continue
			}
		}
		b.WriteByte(c)
	}
	return b.String()
}

// EncodePhrase returns a display name as RFC 5322 §3.2.5 wants it: as it is, quoted, or as
// encoded words when it is not ASCII.
func EncodePhrase(s string) string {
	safe := true
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= utf8.RuneSelf {
			return EncodeWords(s)
		}
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(" !#$%&'*+-/=?^_`{|}~", c) >= 0) {
			safe = false
		}
	}
	if safe && !strings.Contains(s, "=?") {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// EncodeWords returns text for a header field: ASCII as it is, anything else as encoded words
// of RFC 2047 §2, folded between them.
func EncodeWords(s string) string {
	s = printable(s, len(s))
	plain := !strings.Contains(s, "=?")
	for i := 0; i < len(s) && plain; i++ {
		plain = s[i] < utf8.RuneSelf
	}
	if plain {
		return s
	}
	// 45 octets make 60 characters of base64; with =?utf-8?B?...?= that is under the 75 of
	// RFC 2047 §2. A character is never divided (§5).
	var words []string
	for len(s) > 0 {
		n := min(45, len(s))
		for n < len(s) && !utf8.RuneStart(s[n]) {
			n--
		}
		words = append(words, "=?utf-8?B?"+base64.StdEncoding.EncodeToString([]byte(s[:n]))+"?=")
		s = s[n:]
	}
	return strings.Join(words, "\n ")
}
