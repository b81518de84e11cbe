package message

import "bytes"

// fieldID names the fields that are kept.
type fieldID uint8

const (
	noField fieldID = iota
	mimeVersion
	contentType
	contentID
	contentDescription
	contentEncoding
	contentMD5
	contentDisposition
	contentLanguage
	contentLocation
	fieldDate
	fieldSubject
	fieldFrom
	fieldSender
	fieldReplyTo
	fieldTo
	fieldCc
	fieldBcc
	fieldInReplyTo
	fieldMessageID
	fieldReferences
)

// lookup finds the field called name, which may have white space at its end.
func lookup(name []byte) fieldID {
	for len(name) > 0 && isLWSP(name[len(name)-1]) {
		name = name[:len(name)-1]
	}
	if len(name) > len("content-transfer-encoding") || len(name) < 2 {
		return noField
	}
	var buf [25]byte
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		buf[i] = c
	}
	switch string(buf[:len(name)]) {
	case "mime-version":
		return mimeVersion
	case "content-type":
		return contentType
	case "content-id":
		return contentID
	case "content-description":
		return contentDescription
	case "content-transfer-encoding":
		return contentEncoding
	case "content-md5":
		return contentMD5
	case "content-disposition":
		return contentDisposition
	case "content-language":
		return contentLanguage
	case "content-location":
		return contentLocation
	case "date":
		return fieldDate
	case "subject":
		return fieldSubject
	case "from":
		return fieldFrom
	case "sender":
		return fieldSender
	case "reply-to":
		return fieldReplyTo
	case "to":
		return fieldTo
	case "cc":
		return fieldCc
	case "bcc":
		return fieldBcc
	case "in-reply-to":
		return fieldInReplyTo
	case "message-id":
		return fieldMessageID
	case "references":
		return fieldReferences
	}
	return noField
}

func isLWSP(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// contents holds the content fields of a part until its header has ended.
type contents struct {
	mime  bool // a MIME-Version or Content-Type was there
	value [contentLocation + 1][]byte
}

// header reads the header of q, its empty line included. inside is false when the body
// never begins: hit, close and at are set then. boundary is that of a multipart.
func (p *Parser) header(q *Part, mime, digest bool) (bound []byte, inside bool) {
	s := &p.src
	c := contents{mime: mime}
	id := noField
	fresh := true
	for {
		line := s.peek()
		if len(line) == 0 {
			p.hit, p.close, p.at = -1, false, s.mark()
			break
		}
		if line[0] == '-' && !s.cont && p.delimiter(line) {
			// The empty line is missing. The line end before this one is the boundary's.
			if p.at = s.mark(); !fresh {
				p.at = s.beforeLine()
			}
			break
		}
		text := trimEOL(line)
		if inside = len(text) == 0 && !s.cont; inside {
			s.skip(len(line))
			break
		}
		fresh = false
		if s.cont || isLWSP(text[0]) {
			if id != noField {
				p.extend(text)
			}
		} else {
			p.keep(id, q, &c)
			if id = p.begin(text, q.Fields != nil); id == mimeVersion || id == contentType {
				c.mime = true
			}
		}
		s.skip(len(line))
	}
	p.keep(id, q, &c)
	return p.describe(q, &c, digest), inside
}

// begin starts the field at the beginning of line, if it is one to keep.
func (p *Parser) begin(line []byte, message bool) fieldID {
	colon := bytes.IndexByte(line, ':')
	if colon < 0 {
		return noField
	}
	id := lookup(line[:colon])
	if id == noField || id >= fieldDate && !message {
		return noField
	}
	p.room()
	p.field = p.arena[len(p.arena):]
	p.extend(line[colon+1:])
	return id
}

// extend adds a line to the field being read.
func (p *Parser) extend(text []byte) {
	if len(p.field) == 0 {
		for len(text) > 0 && isLWSP(text[0]) {
			text = text[1:]
		}
	}
	room := min(keepField, keepTotal-p.kept) - len(p.field)
	p.field = append(p.field, text[:max(min(len(text), room), 0)]...)
}

// keep files the field that has ended. Of several content fields of one name the first
// counts, of several others the last one, and address lists are joined, as in Dovecot.
func (p *Parser) keep(id fieldID, q *Part, c *contents) {
	if id == noField {
		return
	}
	v := p.settle()
	switch {
	case id >= fieldDate:
		p.set(q.Fields, id, v)
	case c.value[id] == nil:
		c.value[id] = v
	}
}

// room makes sure that a value of usual size fits into the arena: what lies there is not
// moved any more.
func (p *Parser) room() {
	if cap(p.arena)-len(p.arena) < 1<<10 {
		p.arena = make([]byte, 0, min(max(2*cap(p.arena), 4<<10), 64<<10))
	}
}

// settle makes the field a part of the arena.
func (p *Parser) settle() []byte {
	p.kept += len(p.field)
	if len(p.field) > cap(p.arena)-len(p.arena) {
		return p.field // it has grown out of the arena
	}
	n := len(p.arena)
	p.arena = p.arena[:n+len(p.field)]
	return p.arena[n:len(p.arena):len(p.arena)]
}

func (p *Parser) set(h *Header, id fieldID, v []byte) {
	switch id {
	case fieldDate:
		h.Date = v
	case fieldSubject:
		h.Subject = v
	case fieldFrom:
		h.From = p.merge(h.From, v)
	case fieldSender:
		h.Sender = p.merge(h.Sender, v)
	case fieldReplyTo:
		h.ReplyTo = p.merge(h.ReplyTo, v)
	case fieldTo:
		h.To = p.merge(h.To, v)
	case fieldCc:
		h.Cc = p.merge(h.Cc, v)
	case fieldBcc:
		h.Bcc = p.merge(h.Bcc, v)
	case fieldInReplyTo:
		h.InReplyTo = v
	case fieldMessageID:
		h.MessageID = v
	case fieldReferences:
		h.References = v
	}
}

// merge makes one list of address fields that should have been one (RFC 5322 §3.6).
func (p *Parser) merge(old, v []byte) []byte {
	n := len(old) + 2 + len(v)
	switch {
	case old == nil:
		return v
	case len(v) == 0 || n > min(keepField, keepTotal-p.kept):
		return old
	}
	p.kept += n
	return append(append(append(make([]byte, 0, n), old...), ", "...), v...)
}

// ReadHeader picks the fields out of a header that lies in memory.
func ReadHeader(header []byte) *Header {
	q, err := Parse(bytes.NewReader(header), int64(len(header)))
	if err != nil {
		return new(Header) // a bytes.Reader has no errors
	}
	return q.Fields
}
