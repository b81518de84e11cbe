package message

// address is one element of an address list as ENVELOPE has it: a group begins with one
// that has only a box, its name, and ends with one that has nothing.
type address struct{ name, route, box, host []byte }

// What stands for the missing half of a broken address. NIL would mean a group (RFC 9051
// §7.5.2).
const (
	missingBox   = "MISSING_MAILBOX"
	missingHost  = "MISSING_DOMAIN"
	syntaxError  = "SYNTAX_ERROR"
	maxAddresses = 8192
)

// addresses reads an address list (RFC 5322 §3.4, obsolete forms included). What it
// returns is valid until the next call.
type addresses struct {
	lexer
	group bool
	count int
	store [256]byte
	buf   []byte
}

// next returns the next address; false at the end of the list.
func (a *addresses) next() (address, bool) {
	a.buf = a.store[:0]
	a.noting = true
	for {
		if !a.space() || a.count >= maxAddresses || !a.more() {
			a.i = len(a.b)
			if a.group {
				a.group = false
				return address{}, true
			}
			return address{}, false
		}
		switch {
		case a.at(','):
			a.i++ // an empty element (RFC 5322 §4.4)
			continue
		case a.at(';') && a.group:
			a.i++
			a.group = false
			return address{}, true
		}
		a.count++
		if ad := a.element(); ad.box != nil {
			return ad, true
		}
	}
}

// element reads a group's beginning or a mailbox; what it returns has no box when there is
// neither. It always steps forward.
func (a *addresses) element() address {
	start := a.i
	name, ok := a.phrase()
	switch {
	case ok && a.at(':') && !a.group:
		a.i++
		a.group = true
		return address{box: name}
	case ok && a.at('<'):
		ad := address{name: name}
		if len(name) == 0 {
			ad.name = nil
		}
		a.i++
		a.angle(&ad)
		return ad
	}
	a.i, a.buf = start, a.buf[:0]
	return a.bare()
}

// bare reads an address without angle brackets, named by a comment.
func (a *addresses) bare() (ad address) {
	a.comment = a.comment[:0]
	start := a.i
	quoted := a.at('"')
	box, ok := a.local()
	if len(box) > 0 || quoted && ok {
		ad.box = box
	}
	if a.at('@') {
		a.i++
		if host, ok := a.domain(); ok && len(host) > 0 {
			ad.host = host
		}
		if len(a.comment) > 0 {
			ad.name = a.comment
		}
	} else if len(a.comment) > 0 {
		ad.name = a.comment
	} else if ok {
		// Nothing that could be an address: a single word is a mailbox, more a name.
		if a.word() || quoted {
			a.i, a.buf = start, a.buf[:0]
			ad.name, _ = a.phrase()
			ad.box = nil
		}
	}
	a.resync(&ad)
	if ad.box == nil && ad.host == nil && ad.name == nil {
		return ad // nothing legible
	}
	if ad.box == nil {
		ad.box = []byte(missingBox)
	}
	if ad.host == nil {
		ad.host = []byte(missingHost)
	}
	return ad
}

// word tells whether a word comes next.
func (a *addresses) word() bool {
	return a.more() && (a.b[a.i] == '"' || a.b[a.i] == '.' || class(a.b[a.i])&classAtext != 0)
}

// resync skips what follows an address and is none, up to where the next one may begin.
func (a *addresses) resync(ad *address) {
	for a.space() && a.more() && !a.at(',') && (!a.at(';') || !a.group) {
		if a.at('"') {
			if _, ok := a.quoted(a.buf[len(a.buf):]); !ok {
				return
			}
			continue
		}
		a.i++
	}
}

// angle reads the rest of "<@route:local@domain>".
func (a *addresses) angle(ad *address) {
	ok := a.space()
	if ok && a.at('@') {
		ad.route, ok = a.routes()
	}
	if ok && !a.at('>') {
		if ad.box, ok = a.local(); ok && a.at('@') {
			a.i++
			ad.host, ok = a.domain()
		}
	}
	if ok = ok && a.at('>'); ok {
		a.i++
	}
	if len(ad.box) == 0 && (ad.box == nil || !ok || ad.host == nil) {
		ad.box = []byte(missingBox)
	}
	switch {
	case !ok:
		ad.host = []byte(syntaxError)
	case len(ad.host) == 0:
		ad.host = []byte(missingHost)
	}
	a.resync(ad)
}

// take returns what has been appended to buf since it had n octets.
func (a *addresses) take(n int) []byte { return a.buf[n:len(a.buf):len(a.buf)] }

// phrase reads words, with obsolete dots, and joins them by single spaces.
func (a *addresses) phrase() ([]byte, bool) {
	n := len(a.buf)
	ok := true
	for ok && a.word() {
		if len(a.buf) > n {
			a.buf = append(a.buf, ' ')
		}
		if a.at('"') {
			a.buf, ok = a.quoted(a.buf)
		} else {
			start := a.i
			for a.more() && (a.b[a.i] == '.' || class(a.b[a.i])&classAtext != 0) {
				a.i++
			}
			a.buf = append(a.buf, a.b[start:a.i]...)
		}
		ok = ok && a.space()
	}
	return a.take(n), ok
}

// local reads words with dots between them; white space and comments may stand around
// each (RFC 5322 §4.4).
func (a *addresses) local() ([]byte, bool) {
	n := len(a.buf)
	for {
		if a.at('"') {
			var ok bool
			if a.buf, ok = a.quoted(a.buf); !ok {
				return nil, false
			}
		} else {
			a.buf = append(a.buf, a.run(classAtext)...)
		}
		if !a.space() {
			return a.take(n), false
		}
		if !a.at('.') {
			return a.take(n), true
		}
		a.buf = append(a.buf, '.')
		a.i++
		if !a.space() {
			return a.take(n), false
		}
	}
}

// domain reads a domain or a literal in brackets.
func (a *addresses) domain() ([]byte, bool) {
	n := len(a.buf)
	if !a.space() {
		return nil, false
	}
	if !a.at('[') {
		return a.dotted(n)
	}
	for start := a.i; a.more(); a.i++ {
		switch a.b[a.i] {
		case '\\':
			a.i++
		case ']':
			a.i++
			a.buf = append(a.buf, a.b[start:a.i]...)
			return a.take(n), a.space()
		}
	}
	a.i = len(a.b)
	return nil, false
}

func (a *addresses) dotted(n int) ([]byte, bool) {
	for {
		a.buf = append(a.buf, a.run(classAtext)...)
		if !a.space() {
			return a.take(n), false
		}
		if !a.at('.') {
			return a.take(n), len(a.buf) > n
		}
		a.buf = append(a.buf, '.')
		a.i++
		if !a.space() {
			return a.take(n), false
		}
	}
}

// routes reads "@a,@b:" (RFC 5322 §4.4, obs-route).
func (a *addresses) routes() ([]byte, bool) {
	n := len(a.buf)
	for a.at('@') {
		if len(a.buf) > n {
			a.buf = append(a.buf, ',')
		}
		a.buf = append(a.buf, '@')
		a.i++
		if _, ok := a.domain(); !ok {
			return nil, false
		}
		for a.at(',') {
			a.i++
			if !a.space() {
				return nil, false
			}
		}
	}
	if !a.at(':') {
		return nil, false
	}
	r := a.take(n)
	a.i++
	return r, a.space()
}

// appendAddresses appends a list for ENVELOPE, NIL when it holds nothing.
func appendAddresses(dst, v []byte) []byte {
	if v == nil {
		return append(dst, "NIL"...)
	}
	var a addresses
	a.b = v
	any := false
	for {
		ad, ok := a.next()
		if !ok {
			break
		}
		if !any {
			dst = append(dst, '(')
			any = true
		}
		dst = append(dst, '(')
		dst = appendText(dst, ad.name)
		dst = appendNString(append(dst, ' '), ad.route)
		dst = appendNString(append(dst, ' '), ad.box)
		dst = appendNString(append(dst, ' '), ad.host)
		dst = append(dst, ')')
	}
	if !any {
		return append(dst, "NIL"...)
	}
	return append(dst, ')')
}

// appendText is appendNString for what people read: runs of white space are one space, none
// at the ends, as in Dovecot.
func appendText(dst, v []byte) []byte {
	if v == nil {
		return append(dst, "NIL"...)
	}
	return appendNString(dst, squeeze(v))
}

// squeeze returns v itself when there is nothing to do.
func squeeze(v []byte) []byte {
	tidy := true
	for i, c := range v {
		if c == '\t' || c == '\r' || c == '\n' || c == ' ' && (i == 0 || i == len(v)-1 || v[i-1] == ' ') {
			tidy = false
			break
		}
	}
	if tidy {
		return v
	}
	w := make([]byte, 0, len(v))
	for _, c := range v {
		switch c {
		case '\r', '\n':
		case ' ', '\t':
			if len(w) > 0 && w[len(w)-1] != ' ' {
				w = append(w, ' ')
			}
		default:
			w = append(w, c)
		}
	}
	if n := len(w); n > 0 && w[n-1] == ' ' {
		w = w[:n-1]
	}
	return w
}

// AppendEnvelope appends what follows ENVELOPE in a FETCH reply, parentheses included (RFC
// 9051 §7.5.2): a missing Sender or Reply-To is From.
func AppendEnvelope(dst []byte, h *Header) []byte {
	dst = appendNString(append(dst, '('), h.Date)
	dst = appendText(append(dst, ' '), h.Subject)
	dst = append(dst, ' ')
	start := len(dst)
	dst = appendAddresses(dst, h.From)
	end := len(dst)
	for _, v := range [2][]byte{h.Sender, h.ReplyTo} {
		dst = append(dst, ' ')
		n := len(dst)
		if dst = appendAddresses(dst, v); string(dst[n:]) == "NIL" {
			dst = append(dst[:n], dst[start:end]...)
		}
	}
	for _, v := range [3][]byte{h.To, h.Cc, h.Bcc} {
		dst = appendAddresses(append(dst, ' '), v)
	}
	dst = appendNString(append(dst, ' '), h.InReplyTo)
	dst = appendNString(append(dst, ' '), h.MessageID)
	return append(dst, ')')
}
