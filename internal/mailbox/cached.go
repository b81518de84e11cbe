package mailbox

import (
	"context"
	"encoding/binary"
	"errors"
	"iter"
	"runtime"
	"sync"

	"pennypost/internal/durable"
	"pennypost/internal/message"
)

// Columns says what Cached is to deliver.
type Columns uint8

// The columns of the cache.
const (
	Envelope Columns = 1 << iota
	BodyStructure
	Bodies // BODY, without extensions
	Parts  // offsets of the parts, for message.ReadMap
	Fields // header fields decoded for SEARCH, SORT and THREAD
)

// Row is one message's cached data. Its slices are valid until the next row.
type Row struct {
	UID           uint32
	Envelope      []byte
	BodyStructure []byte
	Body          []byte
	Parts         []byte
	Fields        FieldRow
}

func (r *Row) set(i int, b []byte) {
	switch i {
	case 0:
		r.Envelope = b
	case 1:
		r.BodyStructure = b
	case 2:
		r.Body = b
	case 3:
		r.Parts = b
	case 4:
		r.Fields = b
	}
}

// FieldRow is message.Fields in a form that is read without making strings.
type FieldRow []byte

// The fields of a FieldRow.
const (
	FieldSubject = iota
	FieldFrom
	FieldTo
	FieldCc
	FieldBase
	FieldFromMailbox
	FieldToMailbox
	FieldCcMailbox
	FieldFromDisplay
	FieldToDisplay
	FieldMessageID
	FieldInReplyTo
	FieldSender
	FieldReplyTo
	FieldBcc
	fieldCount
)

// fieldFixed is what is in front of the fields: the time, the zone, bits.
const fieldFixed = 8 + 2 + 1

func appendFields(dst []byte, f *message.Fields) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, uint64(f.Sent))
	dst = le.AppendUint16(dst, uint16(f.Zone))
	bits := byte(0)
	if f.HasSent {
		bits |= 1
	}
	if f.Reply {
		bits |= 2
	}
	dst = append(dst, bits)
	for _, s := range [fieldCount]string{
		f.Subject, f.From, f.To, f.Cc, f.Base, f.FromMailbox, f.ToMailbox, f.CcMailbox, f.FromDisplay, f.ToDisplay,
		f.MessageID, f.InReplyTo, f.Sender, f.ReplyTo, f.Bcc,
	} {
		dst = appendStr(dst, s)
	}
	dst = binary.AppendUvarint(dst, uint64(len(f.References)))
	for _, r := range f.References {
		dst = appendStr(dst, r)
	}
	return dst
}

// Get is one field; nil where the row holds nothing.
func (r FieldRow) Get(field int) []byte {
	if len(r) < fieldFixed {
		return nil
	}
	b := []byte(r[fieldFixed:])
	for i := 0; ; i++ {
		n, k := binary.Uvarint(b)
		if k <= 0 || n > uint64(len(b)-k) {
			return nil
		}
		if i == field {
			return b[k : k+int(n)]
		}
		b = b[k+int(n):]
	}
}

// Sent is the time of the Date field in seconds since 1970 and its zone in minutes; ok is false
// without a date.
func (r FieldRow) Sent() (sec int64, zone int, ok bool) {
	if len(r) < fieldFixed {
		return 0, 0, false
	}
	le := binary.LittleEndian
	return int64(le.Uint64(r)), int(int16(le.Uint16(r[8:]))), r[10]&1 != 0
}

// Reply tells whether the subject was that of a reply or a forward.
func (r FieldRow) Reply() bool { return len(r) >= fieldFixed && r[10]&2 != 0 }

// References calls fn for each id of the References field.
func (r FieldRow) References(fn func(id []byte)) {
	if len(r) < fieldFixed {
		return
	}
	b := []byte(r[fieldFixed:])
	left := uint64(fieldCount)
	for i := uint64(0); i < left; i++ {
		n, k := binary.Uvarint(b)
		if k <= 0 || n > uint64(len(b)-k) {
			return
		}
		if i >= fieldCount {
			fn(b[k : k+int(n)])
		}
		b = b[k+int(n):]
		if i == fieldCount-1 {
			refs, k := binary.Uvarint(b)
			if k <= 0 || refs > uint64(len(b)) {
				return
			}
			b, left = b[k:], left+refs
		}
	}
}

// parsed is a message to go into the cache.
type parsed struct {
	uid  uint32
	cols [columns][]byte
	fact learned
	err  error
}

// fillBatch is how many messages are parsed before they are written down.
const fillBatch = 256

// Cached yields rows for the messages in ranges of UIDs, in ascending order, from the cache or by
// parsing. A message whose file is gone has no row.
func (v *View) Cached(ctx context.Context, uids []Range, what Columns) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		c := v.m.cached()
		c.mu.Lock()
		err := c.refresh(v.st.validity)
		r := &cacheReader{c: c, f: c.f, what: what}
		c.mu.Unlock()
		if err != nil {
			r.f = nil // without a cache it only takes longer
		}
		var todo []uint32
		ok := true
		flush := func() {
			if len(todo) == 0 || !ok {
				return
			}
			ok = v.fill(ctx, todo, what, yield)
			todo = todo[:0]
		}
		v.st.within(uids, func(_ int, _ *chunk, x *rec) bool {
			row, hit := r.row(x.uid)
			if !hit {
				if todo = append(todo, x.uid); len(todo) == fillBatch {
					flush()
				}
				return ok
			}
			flush()
			ok = ok && yield(row, nil)
			return ok
		})
		flush()
	}
}

func (m *Mailbox) cached() *cache {
	m.cacheOnce.Do(func() { m.cache = &cache{m: m} })
	return m.cache
}

// cacheReader reads rows block by block.
type cacheReader struct {
	c    *cache
	f    durable.File // nil: there is no cache
	what Columns
	open *block
	cols [columns]column
	bufs [columns][]byte
}

func (r *cacheReader) row(uid uint32) (Row, bool) {
	row := Row{UID: uid}
	if r.f == nil {
		return row, false
	}
	r.c.mu.Lock()
	p, ok := r.c.find(uid)
	f := r.c.f
	var b *block
	if ok && f != nil {
		b = r.c.blocks[p.block]
	}
	r.c.mu.Unlock()
	if b == nil {
		return row, false
	}
	if b != r.open {
		r.open = nil
		for i := range columns {
			if r.what&(1<<i) == 0 {
				continue
			}
			var err error
			if r.cols[i], r.bufs[i], err = b.read(f, i, r.bufs[i]); err != nil {
				r.c.drop()
				r.f = nil
				return row, false
			}
		}
		r.open = b
	}
	for i := range columns {
		if r.what&(1<<i) != 0 {
			row.set(i, r.cols[i].at(int(p.pos)))
		}
	}
	return row, true
}

// fill parses messages, writes them down and yields their rows.
func (v *View) fill(ctx context.Context, uids []uint32, what Columns, yield func(Row, error) bool) bool {
	ps := v.parse(ctx, uids)
	var good []uint32
	var cols [columns][][]byte
	var facts []learned
	for _, p := range ps {
		if p.err != nil {
			continue
		}
		good = append(good, p.uid)
		for i := range columns {
			cols[i] = append(cols[i], p.cols[i])
		}
		facts = append(facts, p.fact)
	}
	if len(good) > 0 {
		if err := v.m.cached().add(v.st.validity, encodeBlock(good, &cols)); err != nil {
			v.m.store.log.Warn("the cache of a mailbox cannot be written", "mailbox", v.m.name, "err", err)
		}
		if facts = v.news(facts); len(facts) > 0 {
			if err := v.keep(ctx, facts); err != nil {
				v.m.store.log.Warn("sizes and dates are not kept", "mailbox", v.m.name, "err", err)
			}
		}
	}
	for _, p := range ps {
		switch {
		case errors.Is(p.err, ErrExpunged):
			continue
		case p.err != nil:
			yield(Row{UID: p.uid}, p.err)
			return false
		}
		row := Row{UID: p.uid}
		for i := range columns {
			if what&(1<<i) != 0 {
				row.set(i, p.cols[i])
			}
		}
		if !yield(row, nil) {
			return false
		}
	}
	return true
}

// news are the facts that the index does not know, or knows otherwise: some programs write
// wrong sizes into names.
func (v *View) news(facts []learned) []learned {
	out := facts[:0]
	for _, f := range facts {
		i, ok := v.st.find(f.uid)
		if !ok {
			continue
		}
		if _, r := v.st.at(i); r.size != f.size || r.internal == unknown || r.saved == unknown {
			out = append(out, f)
		}
	}
	return out
}

// parse reads messages on all processors.
func (v *View) parse(ctx context.Context, uids []uint32) []parsed {
	out := make([]parsed, len(uids))
	workers := v.m.store.o.Parallelism
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	workers = min(workers, (len(uids)+15)/16)
	var wg sync.WaitGroup
	var next sync.Mutex
	at := 0
	take := func() (int, int) {
		next.Lock()
		defer next.Unlock()
		from := at
		at = min(at+16, len(uids))
		return from, at
	}
	for range workers {
		wg.Go(func() {
			var p message.Parser
			for {
				from, to := take()
				if from == to {
					return
				}
				for i := from; i < to; i++ {
					out[i] = v.parseOne(ctx, &p, uids[i])
				}
			}
		})
	}
	wg.Wait()
	return out
}

func (v *View) parseOne(ctx context.Context, p *message.Parser, uid uint32) parsed {
	out := parsed{uid: uid}
	if out.err = ctx.Err(); out.err != nil {
		return out
	}
	b, err := v.m.openMessage(ctx, v.st, uid)
	if err != nil {
		out.err = err
		return out
	}
	i, err := b.Stat()
	var part *message.Part
	if err == nil {
		part, err = p.Parse(b, b.Size)
	}
	if err = errors.Join(err, b.Close()); err != nil {
		out.err = err
		return out
	}
	out.fact = learned{uid, part.HeaderWire + part.BodyWire, i.ModTime().Unix(), changed(i)}
	buf := message.AppendEnvelope(make([]byte, 0, 1536), part.Fields)
	e := len(buf)
	buf = message.AppendBody(buf, part, true)
	s := len(buf)
	buf = message.AppendBody(buf, part, false)
	d := len(buf)
	buf = message.AppendMap(buf, part)
	m := len(buf)
	f := part.Fields.Decode()
	buf = appendFields(buf, &f)
	out.cols = [columns][]byte{buf[:e], buf[e:s], buf[s:d], buf[d:m], buf[m:]}
	return out
}
