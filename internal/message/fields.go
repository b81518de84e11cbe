package message

import "bytes"

const maxReferences = 1000

// Decode decodes the fields of h.
func (h *Header) Decode() Fields {
	var (
		f     Fields
		store [1024]byte
		d     = decoder{buf: store[:0]}
	)
	subject := d.text(h.Subject)
	texts := [6]span{d.text(h.From), d.text(h.Sender), d.text(h.ReplyTo), d.text(h.To), d.text(h.Cc), d.text(h.Bcc)}
	from, fromName := d.first(h.From)
	to, toName := d.first(h.To)
	cc, _ := d.first(h.Cc)
	id := d.id(h.MessageID)
	reply := d.id(h.InReplyTo)
	refs := d.ids(h.References)

	all := string(d.buf)
	f.Subject = subject.of(all)
	f.Base, f.Reply = baseSubject(f.Subject)
	f.From, f.Sender, f.ReplyTo = texts[0].of(all), texts[1].of(all), texts[2].of(all)
	f.To, f.Cc, f.Bcc = texts[3].of(all), texts[4].of(all), texts[5].of(all)
	f.FromMailbox, f.ToMailbox, f.CcMailbox = from.of(all), to.of(all), cc.of(all)
	f.FromDisplay, f.ToDisplay = fromName.of(all), toName.of(all)
	f.MessageID, f.InReplyTo = id.of(all), reply.of(all)
	if len(refs) == 0 && f.InReplyTo != "" {
		f.References = []string{f.InReplyTo}
	} else if len(refs) > 0 {
		f.References = make([]string, len(refs))
		for i, r := range refs {
			f.References[i] = r.of(all)
		}
	}
	unix, zone, ok := date(h.Date)
	f.Sent, f.Zone, f.HasSent = unix, int16(zone), ok
	return f
}

// span is a piece of the decoder's text.
type span struct{ from, to int }

func (s span) of(all string) string { return all[s.from:s.to] }

// decoder collects all decoded values in one piece of memory.
type decoder struct{ buf []byte }

func (d *decoder) text(v []byte) span {
	start := len(d.buf)
	d.buf = decodeWords(d.buf, v)
	d.buf = append(d.buf[:start], squeeze(d.buf[start:])...)
	return span{start, len(d.buf)}
}

func (d *decoder) raw(v ...[]byte) span {
	start := len(d.buf)
	for _, b := range v {
		d.buf = appendRaw(d.buf, b)
	}
	return span{start, len(d.buf)}
}

// first returns mailbox and display name of the first address of a list.
func (d *decoder) first(v []byte) (box, display span) {
	var a addresses
	a.b = v
	ad, ok := a.next()
	switch {
	case !ok:
		return span{}, span{}
	case ad.host == nil: // a group: its name is both
		box = d.text(ad.box)
		return box, box
	}
	box = d.raw(ad.box)
	// RFC 5957 §3: the display name if there is one, else the address.
	if display = d.text(ad.name); display.from == display.to {
		display = d.raw(ad.box, []byte("@"), ad.host)
	}
	return box, display
}

// id returns the first message id in v.
func (d *decoder) id(v []byte) span {
	s, _, _ := d.nextID(v)
	return s
}

// ids returns all message ids in v; of an absurd number the last ones, which are nearest.
func (d *decoder) ids(v []byte) []span {
	var list []span
	for {
		s, rest, ok := d.nextID(v)
		if !ok {
			return list[max(0, len(list)-maxReferences):]
		}
		if list == nil {
			list = make([]span, 0, 8)
		}
		list = append(list, s)
		v = rest
	}
}

// nextID normalises the next msg-id (RFC 5256 §2.2, RFC 5322 §3.6.4): no angle brackets, no
// white space, which folding may have left in a long one, no quotes.
func (d *decoder) nextID(v []byte) (s span, rest []byte, ok bool) {
	for {
		i := bytes.IndexByte(v, '<')
		if i < 0 {
			return span{}, nil, false
		}
		v = v[i+1:]
		end := bytes.IndexAny(v, "<>")
		if end < 0 {
			return span{}, nil, false
		}
		id := v[:end]
		if at := bytes.LastIndexByte(id, '@'); v[end] == '<' || at <= 0 || at == end-1 {
			v = v[end:]
			continue
		}
		start := len(d.buf)
		for j := 0; j < len(id); j++ {
			c := id[j]
			if c == '\\' && j+1 < len(id) {
				j++
				c = id[j]
			} else if isLWSP(c) || c == '"' {
				continue
			}
			d.buf = append(d.buf, c)
		}
		return span{start, len(d.buf)}, v[end+1:], true
	}
}
