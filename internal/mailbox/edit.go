package mailbox

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"pennypost/internal/maildir"
)

// edit makes a new state from an old one and, on the way, the log record that makes the same
// state of the same old one elsewhere. Whoever reads the record calls the same methods.
type edit struct {
	st      *state
	head    head
	chunks  []*chunk
	own     []bool  // chunks that are copies already
	names   []*blob // of chunks whose names this edit has begun to add to
	dead    [][]bool
	gone    []goneRange
	ownGone bool
	kws     []string
	guid    string
	touched bool // something changed that clients can see
	log     []byte
	last    uint32 // UID of the latest operation in log
	ops     int
	whole   bool // a snapshot is due anyway: no log record is wanted
}

func (s *state) edit() *edit {
	return &edit{
		st: s, head: s.head, chunks: slices.Clone(s.chunks), own: make([]bool, len(s.chunks)),
		dead: make([][]bool, len(s.chunks)), names: make([]*blob, len(s.chunks)), gone: s.gone, kws: s.keywords, guid: s.guid,
	}
}

// mod is the MODSEQ of what this edit changes: one for all of it.
func (e *edit) mod() uint64 {
	if !e.touched {
		e.touched = true
		e.head.modseq++
	}
	return e.head.modseq
}

// mut finds a message and makes it changeable.
func (e *edit) mut(uid uint32) (k, j int, ok bool) {
	k = sort.Search(len(e.chunks), func(k int) bool { return e.chunks[k].recs[0].uid > uid }) - 1
	if k < 0 {
		return 0, 0, false
	}
	c := e.chunks[k]
	j = sort.Search(len(c.recs), func(j int) bool { return c.recs[j].uid >= uid })
	if j == len(c.recs) || c.recs[j].uid != uid || e.dead[k] != nil && e.dead[k][j] {
		return 0, 0, false
	}
	e.copyChunk(k)
	return k, j, true
}

func (e *edit) copyChunk(k int) {
	if !e.own[k] {
		c := *e.chunks[k]
		c.recs = slices.Clone(c.recs)
		e.chunks[k], e.own[k] = &c, true
	}
}

// The operations of a log record.
const (
	opAdd byte = iota + 1
	opChange
	opGone
	opLearn
	opKeywords
	opFloor
	opGUID
	opRestamp
)

func (e *edit) op(kind byte, uid uint32) {
	e.ops++
	if e.whole {
		e.log = e.log[:0]
	}
	e.log = append(e.log, kind)
	e.log = binary.AppendVarint(e.log, int64(uid)-int64(e.last))
	e.last = uid
}

// fresh is a message to add.
type fresh struct {
	rec
	base, suffix, guid string // suffix counts with bitLiteral
	pop3               string // for the uidlist alone
}

func (e *edit) logString(s string) {
	e.log = append(binary.AppendUvarint(e.log, uint64(len(s))), s...)
}

// add puts a message into its place by UID, which must be free.
func (e *edit) add(f *fresh) error {
	if f.uid == 0 || len(f.base) == 0 || len(f.base) > 255 || len(f.suffix) > 255 || len(f.guid) > 255 {
		return fmt.Errorf("%w: message %d cannot be", errDamaged, f.uid)
	}
	f.bits &^= bitGUID
	if f.guid != "" {
		f.bits |= bitGUID
	}
	f.modseq = e.mod()
	e.op(opAdd, f.uid)
	e.log = append(e.log, byte(f.flags), f.bits)
	e.log = binary.AppendUvarint(e.log, uint64(f.kw))
	e.log = binary.AppendVarint(e.log, f.size)
	e.log = binary.AppendVarint(e.log, f.internal)
	e.log = binary.AppendVarint(e.log, f.saved)
	e.logString(f.base)
	if f.bits&bitLiteral != 0 {
		e.logString(f.suffix)
	}
	if f.guid != "" {
		e.logString(f.guid)
	}
	k := len(e.chunks) - 1
	if k >= 0 && e.chunks[k].recs[len(e.chunks[k].recs)-1].uid > f.uid {
		k = max(0, sort.Search(len(e.chunks), func(k int) bool { return e.chunks[k].recs[0].uid > f.uid })-1)
	} else if k < 0 || len(e.chunks[k].recs) >= chunkSize {
		c := &chunk{names: ready(nil), recs: make([]rec, 0, 16)}
		if k >= 0 && e.whole { // one of many
			c.recs, c.names = make([]rec, 0, chunkSize), ready(make([]byte, 0, len(e.chunks[k].names.b)+4096))
		}
		e.chunks = append(e.chunks, c)
		e.own = append(e.own, true)
		e.dead = append(e.dead, nil)
		e.names = append(e.names, c.names)
		k++
	}
	e.copyChunk(k)
	c := e.chunks[k]
	j := sort.Search(len(c.recs), func(j int) bool { return c.recs[j].uid >= f.uid })
	if j < len(c.recs) && c.recs[j].uid == f.uid {
		return fmt.Errorf("%w: two messages have UID %d", errDamaged, f.uid)
	}
	r := f.rec
	if err := e.setName(k, &r, f.base, f.suffix, f.guid); err != nil {
		return err
	}
	c.recs = slices.Insert(c.recs, j, r)
	if e.dead[k] != nil {
		e.dead[k] = slices.Insert(e.dead[k], j, false)
	}
	if f.uid >= e.head.next {
		e.head.next = f.uid + 1
	}
	return nil
}

// setName stores a name behind all others of the chunk. Older versions of the chunk share what
// is before it.
func (e *edit) setName(k int, r *rec, base, suffix, guid string) error {
	c := e.chunks[k]
	b, err := c.names.bytes()
	if err != nil {
		return err
	}
	r.name, r.baseLen, r.sufLen = uint32(len(b)), uint8(len(base)), 0
	b = append(b, base...)
	if r.bits&bitLiteral != 0 {
		b = append(b, suffix...)
		r.sufLen = uint8(len(suffix))
	}
	if r.bits&bitGUID != 0 {
		b = append(b, byte(len(guid)))
		b = append(b, guid...)
	}
	if c.names == e.names[k] { // nobody else has it
		c.names.b = b
		return nil
	}
	c.names = ready(b)
	e.names[k] = c.names
	return nil
}

// look is how a message is in its directory.
type look struct {
	flags  maildir.Flags
	kw     uint32
	bits   uint8  // bitNew, bitLiteral
	suffix string // with bitLiteral
}

// change gives a message other flags or another name. Only flags and keywords are something
// that clients see.
func (e *edit) change(uid uint32, l look) error {
	k, j, ok := e.mut(uid)
	if !ok {
		return fmt.Errorf("%w: no message %d to change", errDamaged, uid)
	}
	e.op(opChange, uid)
	e.log = append(e.log, byte(l.flags), l.bits)
	e.log = binary.AppendUvarint(e.log, uint64(l.kw))
	if l.bits&bitLiteral != 0 {
		e.logString(l.suffix)
	}
	c := e.chunks[k]
	r := &c.recs[j]
	if r.flags != l.flags || r.kw != l.kw {
		r.modseq = e.mod()
	}
	r.flags, r.kw = l.flags, l.kw
	if (r.bits|l.bits)&bitLiteral == 0 {
		r.bits = r.bits&bitGUID | l.bits
		return nil
	}
	base, err := c.base(r)
	if err != nil {
		return err
	}
	guid, err := c.guid(r)
	if err != nil {
		return err
	}
	r.bits = r.bits&bitGUID | l.bits
	return e.setName(k, r, base, l.suffix, guid)
}

// remove expunges a message.
func (e *edit) remove(uid uint32) error {
	k, j, ok := e.mut(uid)
	if !ok {
		return fmt.Errorf("%w: no message %d to remove", errDamaged, uid)
	}
	e.op(opGone, uid)
	mod := e.mod()
	if e.dead[k] == nil {
		e.dead[k] = make([]bool, len(e.chunks[k].recs))
	}
	e.dead[k][j] = true
	if n := len(e.gone); n > 0 && e.gone[n-1].last+1 == uid && e.gone[n-1].modseq == mod {
		e.gone[n-1].last = uid // of this edit, hence not shared
	} else {
		if !e.ownGone { // older versions share the slice
			e.gone, e.ownGone = slices.Clone(e.gone), true
		}
		e.gone = append(e.gone, goneRange{uid, uid, mod})
	}
	return nil
}

// learn stores what was found out about a message that had it all the time.
func (e *edit) learn(uid uint32, size, internal, saved int64) error {
	k, j, ok := e.mut(uid)
	if !ok {
		return fmt.Errorf("%w: no message %d to learn of", errDamaged, uid)
	}
	e.op(opLearn, uid)
	e.log = binary.AppendVarint(e.log, size)
	e.log = binary.AppendVarint(e.log, internal)
	e.log = binary.AppendVarint(e.log, saved)
	r := &e.chunks[k].recs[j]
	r.size, r.internal, r.saved = size, internal, saved
	return nil
}

func (e *edit) setKeywords(kws []string) {
	e.op(opKeywords, 0)
	e.log = binary.AppendUvarint(e.log, uint64(len(kws)))
	for _, k := range kws {
		e.logString(k)
	}
	e.kws = slices.Clone(kws)
}

// forget says that expunges up to now are not all known.
func (e *edit) forget() {
	e.op(opFloor, 0)
	e.head.floor = e.head.modseq
	e.gone = nil
}

// raise gives all messages the MODSEQ of the edit. The index may have lost changes that clients
// have heard of, and later ones that took them back: nobody may go on from what he knows. Only a
// snapshot holds that.
func (e *edit) raise() {
	e.whole = true
	for k := range e.chunks {
		e.copyChunk(k)
		recs := e.chunks[k].recs
		for j := range recs {
			recs[j].modseq = e.head.modseq
		}
	}
}

func (e *edit) setGUID(g string) {
	e.op(opGUID, 0)
	e.logString(g)
	e.guid = g
}

// maxGone bounds the history of expunges.
const maxGone = 100_000

// done is the new state.
func (e *edit) done() *state {
	s := &state{head: e.head, gone: e.gone, keywords: e.kws, guid: e.guid}
	s.chunks = make([]*chunk, 0, len(e.chunks))
	for k, c := range e.chunks {
		if d := e.dead[k]; d != nil {
			out := c.recs[:0]
			for j := range c.recs {
				if !d[j] {
					out = append(out, c.recs[j])
				}
			}
			c.recs = out
		}
		if len(c.recs) == 0 {
			continue
		}
		if e.own[k] {
			c.count()
		}
		s.chunks = append(s.chunks, c)
	}
	s.settle()
	if len(s.gone) > maxGone {
		drop := len(s.gone) - maxGone/2
		s.floor = s.gone[drop-1].modseq
		s.gone = slices.Clone(s.gone[drop:])
		for len(s.gone) > 0 && s.gone[0].modseq <= s.floor {
			s.gone = s.gone[1:]
		}
	}
	return s
}
