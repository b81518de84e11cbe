package message

import (
	"bytes"
	"slices"
)

const maxParams = 256

// lexer reads structured field values: RFC 5322 §3.2 and RFC 2045 §5.1, obsolete forms
// included. Octets above 127 are letters (RFC 6532 §3.2).
type lexer struct {
	b []byte
	i int
	// comment is the last comment seen, unescaped.
	comment []byte
	noting  bool
}

func (l *lexer) more() bool { return l.i < len(l.b) }

// at tells whether the next octet is c.
func (l *lexer) at(c byte) bool { return l.i < len(l.b) && l.b[l.i] == c }

// space skips white space and comments; false when a comment does not end.
func (l *lexer) space() bool {
	for l.i < len(l.b) {
		switch c := l.b[l.i]; {
		case isLWSP(c):
			l.i++
		case c == '(':
			if !l.skipComment() {
				return false
			}
		default:
			return true
		}
	}
	return true
}

func (l *lexer) skipComment() bool {
	l.comment = l.comment[:0]
	level := 0
	for ; l.i < len(l.b); l.i++ {
		c := l.b[l.i]
		switch c {
		case '(':
			if level++; level == 1 {
				continue
			}
		case ')':
			if level--; level == 0 {
				l.i++
				return true
			}
		case '\\':
			if l.i++; l.i == len(l.b) {
				return false
			}
			c = l.b[l.i]
		}
		if l.noting {
			l.comment = append(l.comment, c)
		}
	}
	return false
}

// Classes of octets.
const (
	classAtext = 1 << iota // RFC 5322 §3.2.3
	classToken             // RFC 2045 §5.1
)

func class(c byte) int {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c >= 0x80:
		return classAtext | classToken
	}
	switch c {
	case '!', '#', '$', '%', '&', '\'', '*', '+', '-', '^', '_', '`', '{', '|', '}', '~':
		return classAtext | classToken
	case '/', '=', '?':
		return classAtext
	case '.':
		return classToken
	}
	return 0
}

// run returns the octets of a class from here on.
func (l *lexer) run(mask int) []byte {
	start := l.i
	for l.i < len(l.b) && class(l.b[l.i])&mask != 0 {
		l.i++
	}
	return l.b[start:l.i]
}

// quoted appends the content of the quoted string at the next octet and skips it; false
// when its end is missing.
func (l *lexer) quoted(dst []byte) ([]byte, bool) {
	for l.i++; l.i < len(l.b); l.i++ {
		c := l.b[l.i]
		switch c {
		case '"':
			l.i++
			return dst, true
		case '\\':
			if l.i++; l.i == len(l.b) {
				return dst, false
			}
			c = l.b[l.i]
		}
		dst = append(dst, c)
	}
	return dst, false
}

// rawParam is a parameter as it stands: RFC 2231 §3 index and §4 mark taken off the name.
type rawParam struct {
	name, value []byte
	index       int // -1 without one
	extended    bool
	order       int
}

// params reads ";name=value" until the end. Broken ones are passed over.
func (p *Parser) params(l *lexer) []Param {
	p.raw = p.raw[:0]
	split := false
	for len(p.raw) < maxParams {
		i := bytes.IndexByte(l.b[l.i:], ';')
		if i < 0 {
			break
		}
		l.i += i + 1
		if r, ok := p.rawParam(l); ok {
			r.order = len(p.raw)
			split = split || r.index >= 0 || r.extended
			p.raw = append(p.raw, r)
		}
	}
	if split {
		p.join()
	}
	if len(p.raw) == 0 {
		return nil
	}
	list := p.param.take(len(p.raw))
	for _, r := range p.raw {
		list = append(list, Param{r.name, r.value})
	}
	return list
}

func (p *Parser) rawParam(l *lexer) (r rawParam, ok bool) {
	if !l.space() {
		return r, false
	}
	r.name, r.index = l.run(classToken), -1
	if len(r.name) == 0 || !l.space() || !l.at('=') {
		return r, false
	}
	l.i++
	if !l.space() {
		return r, false
	}
	switch {
	case l.at('"'):
		p.room()
		p.field = p.arena[len(p.arena):]
		if p.field, ok = l.quoted(p.field); !ok || p.kept+len(p.field) > keepTotal {
			return r, false
		}
		r.value = p.settle()
	case l.at('='): // name==?utf-8?b?...?=, as some write it
		start := l.i
		for l.i < len(l.b) && l.b[l.i] != ';' && !isLWSP(l.b[l.i]) {
			l.i++
		}
		r.value = l.b[start:l.i]
	default:
		r.value = l.run(classToken)
	}
	l.space()
	r.section()
	return r, true
}

// section takes "*0*", "*0" or "*" off the name.
func (r *rawParam) section() {
	i := bytes.IndexByte(r.name, '*')
	if i <= 0 {
		return
	}
	rest := r.name[i+1:]
	if len(rest) == 0 {
		r.name, r.extended = r.name[:i], true
		return
	}
	n, digits := 0, 0
	for digits < len(rest) && digits < 4 && rest[digits] >= '0' && rest[digits] <= '9' {
		n = 10*n + int(rest[digits]-'0')
		digits++
	}
	if digits == 0 || string(rest[digits:]) != "" && string(rest[digits:]) != "*" {
		return
	}
	r.name, r.index, r.extended = r.name[:i], n, digits < len(rest)
}

// join puts the sections of RFC 2231 parameters together. IMAP wants the pieces joined but
// still encoded (RFC 9051 §7.5.2 leaves charset and language to the client), named with the
// star that says so. Whole parameters come first, then the joined ones by name.
func (p *Parser) join() {
	slices.SortFunc(p.raw, func(a, b rawParam) int {
		sa, sb := a.index >= 0 || a.extended, b.index >= 0 || b.extended
		switch {
		case sa != sb && sb:
			return -1
		case sa != sb:
			return 1
		case !sa:
			return a.order - b.order
		}
		if c := bytes.Compare(a.name, b.name); c != 0 {
			return c
		}
		return a.index - b.index
	})
	out := p.raw[:0]
	for i := 0; i < len(p.raw); {
		r := p.raw[i]
		if r.index < 0 && !r.extended {
			out = append(out, r)
			i++
			continue
		}
		j := i
		whole, extended := true, false
		for ; j < len(p.raw) && bytes.EqualFold(p.raw[j].name, r.name); j++ {
			whole = whole && max(p.raw[j].index, 0) == j-i
			extended = extended || p.raw[j].extended
		}
		if whole {
			out = append(out, p.joined(p.raw[i:j], extended))
		} else {
			for k := i; k < j; k++ {
				out = append(out, p.apart(p.raw[k]))
			}
		}
		i = j
	}
	p.raw = out
}

// joined is one parameter made of sections.
func (p *Parser) joined(sections []rawParam, extended bool) rawParam {
	p.room()
	v := p.arena[len(p.arena):]
	if extended && !sections[0].extended {
		v = append(v, "''"...)
	}
	for _, s := range sections {
		if s.extended || !extended {
			v = append(v, s.value...)
			continue
		}
		for _, c := range s.value {
			if c == '%' {
				v = append(v, "%25"...)
			} else {
				v = append(v, c)
			}
		}
	}
	p.field = v
	r := rawParam{name: sections[0].name, value: p.settle()}
	if extended {
		r.name = p.store(r.name, "*")
	}
	return r
}

// apart is a section whose fellows are missing, as it was.
func (p *Parser) apart(r rawParam) rawParam {
	var n [8]byte
	suffix := "*"
	if r.index >= 0 {
		suffix += string(appendInt(n[:0], int64(r.index)))
		if r.extended {
			suffix += "*"
		}
	}
	r.name = p.store(r.name, suffix)
	return r
}

func (p *Parser) store(b []byte, suffix string) []byte {
	p.room()
	p.field = append(append(p.arena[len(p.arena):], b...), suffix...)
	return p.settle()
}

// describe turns the content fields into those of q and decides its kind. bound is the
// boundary of a multipart.
func (p *Parser) describe(q *Part, c *contents, digest bool) (bound []byte) {
	if !c.mime {
		// Without MIME-Version and Content-Type the other content fields mean nothing.
		q.Kind = Text
		return nil
	}
	if v := c.value[contentType]; v != nil {
		bound = p.contentType(q, v)
	} else if q.Kind = Text; digest {
		q.Kind = Message // RFC 2046 §5.1.5
	}
	q.ID, q.Description, q.MD5, q.Location = c.value[contentID], c.value[contentDescription], c.value[contentMD5], c.value[contentLocation]
	if v := c.value[contentEncoding]; v != nil {
		l := lexer{b: v}
		if l.space(); l.more() {
			if t := l.run(classToken); len(t) > 0 && l.space() && !l.more() {
				q.Encoding = t
			}
		}
	}
	if q.Kind == Message && bytes.EqualFold(q.Subtype, []byte("global")) && encoded(q.Encoding) {
		q.Kind = Opaque // RFC 6532 §3.7 allows it; there is no looking inside
	}
	if v := c.value[contentDisposition]; v != nil {
		l := lexer{b: v}
		l.space()
		if q.Disposition = l.run(classToken); l.space() {
			q.DispositionParams = p.params(&l)
		}
	}
	if v := c.value[contentLanguage]; v != nil {
		p.languages(q, v)
	}
	return bound
}

// encoded tells whether the body is not what it says until it is decoded.
func encoded(encoding []byte) bool {
	return bytes.EqualFold(encoding, []byte("base64")) || bytes.EqualFold(encoding, []byte("quoted-printable"))
}

// contentType sets type, parameters and kind.
func (p *Parser) contentType(q *Part, v []byte) (bound []byte) {
	l := lexer{b: v}
	l.space()
	typ := l.run(classToken)
	if !l.space() || !l.at('/') {
		q.Kind = Text // RFC 2045 §5.2: what is no type is text/plain
		return nil
	}
	l.i++
	l.space()
	sub := l.run(classToken)
	if len(typ) == 0 || len(sub) == 0 {
		q.Kind = Text
		return nil
	}
	q.Type, q.Subtype = typ, sub
	if l.space() {
		q.Params = p.params(&l)
	}
	switch {
	case bytes.EqualFold(typ, []byte("text")):
		q.Kind = Text
	case bytes.EqualFold(typ, []byte("multipart")):
		q.Kind = Multipart
		if b := param(q.Params, "boundary"); len(b) > 0 {
			bound = b
		}
	case bytes.EqualFold(typ, []byte("message")) && (bytes.EqualFold(sub, []byte("rfc822")) || bytes.EqualFold(sub, []byte("global"))):
		q.Kind = Message
	}
	return bound
}

func param(list []Param, name string) []byte {
	for _, v := range list {
		if bytes.EqualFold(v.Name, []byte(name)) {
			return v.Value
		}
	}
	return nil
}

// Param returns the value of a Content-Type parameter, nil without one.
func (p *Part) Param(name string) []byte { return param(p.Params, name) }

// languages reads Content-Language (RFC 3282 §2): tags with commas between.
func (p *Parser) languages(q *Part, v []byte) {
	l := lexer{b: v}
	var tags [16][]byte
	n := 0
	for n < len(tags) {
		l.space()
		t := l.run(classAtext)
		if len(t) == 0 {
			break
		}
		tags[n] = t
		n++
		if l.space(); !l.at(',') {
			break
		}
		l.i++
	}
	if n > 0 {
		q.Language = append(p.langs.take(n), tags[:n]...)
	}
}
