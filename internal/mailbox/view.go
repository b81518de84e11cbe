package mailbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// View is what one session sees of a folder: sequence numbers stay until Sync. It is used by
// one goroutine at a time.
type View struct {
	m      *Mailbox
	st     *state
	ro     bool
	recent []Range
}

// Select brings the folder up to date and returns a view of it. Unless readOnly, files in new/
// go to cur/ and the view claims them as \Recent.
func (m *Mailbox) Select(ctx context.Context, readOnly bool) (*View, error) {
	st, claimed, err := m.refresh(ctx, !readOnly)
	if err != nil {
		return nil, fmt.Errorf("select %s: %w", m.name, err)
	}
	v := &View{m: m, st: st, ro: readOnly}
	v.claim(claimed)
	m.store.mu.Lock()
	m.refs++
	m.store.mu.Unlock()
	return v, nil
}

func (v *View) claim(r Range) {
	switch n := len(v.recent); {
	case r.First == 0:
	case n > 0 && v.recent[n-1].Last+1 == r.First:
		v.recent[n-1].Last = r.Last
	default:
		v.recent = append(v.recent, r)
	}
}

// Close ends the view.
func (v *View) Close() error {
	if v.m == nil {
		return nil
	}
	m := v.m
	v.m = nil
	return m.Close()
}

// Mailbox is the folder that the view is of.
func (v *View) Mailbox() *Mailbox { return v.m }

// Len is the number of messages.
func (v *View) Len() int { return v.st.n }

// At is the message with a sequence number between 1 and Len.
func (v *View) At(seq int) Message {
	_, r := v.st.at(seq - 1)
	return v.message(r)
}

func (v *View) message(r *rec) Message {
	m := Message{
		UID: r.uid, Flags: r.flags, Keywords: r.kw, Recent: v.isRecent(r.uid), ModSeq: r.modseq,
		Size: r.size, Internal: r.internal, Saved: r.saved, Dated: r.internal != unknown && r.saved != unknown,
	}
	if m.Size == unknown {
		m.Size = -1
	}
	return m
}

func (v *View) isRecent(uid uint32) bool {
	if v.ro {
		return uid >= v.st.firstRecent
	}
	for _, r := range slices.Backward(v.recent) {
		if uid >= r.First {
			return uid <= r.Last
		}
	}
	return false
}

// Seq is the sequence number of a UID, 0 when it is not there.
func (v *View) Seq(uid uint32) int {
	if i, ok := v.st.find(uid); ok {
		return i + 1
	}
	return 0
}

// From is the sequence number of the first message whose UID is uid or more, Len+1 when there
// is none.
func (v *View) From(uid uint32) int {
	i, _ := v.st.find(uid)
	return i + 1
}

// All yields the messages first to last, by sequence number.
func (v *View) All(first, last int) iter.Seq2[int, Message] {
	return func(yield func(int, Message) bool) {
		v.st.each(first-1, last, func(i int, _ *chunk, r *rec) bool { return yield(i+1, v.message(r)) })
	}
}

// each calls fn for the messages with indexes from (included) to (excluded), until it says no.
func (s *state) each(from, to int, fn func(i int, c *chunk, r *rec) bool) {
	for k, c := range s.chunks {
		at := s.first[k]
		if at+len(c.recs) <= from {
			continue
		}
		if at >= to {
			return
		}
		for j := max(0, from-at); j < len(c.recs) && at+j < to; j++ {
			if !fn(at+j, c, &c.recs[j]) {
				return
			}
		}
	}
}

// within calls fn for the messages in ranges of UIDs, each once and in ascending order.
func (s *state) within(uids []Range, fn func(i int, c *chunk, r *rec) bool) {
	rs := slices.Clone(uids)
	slices.SortFunc(rs, func(a, b Range) int { return int(int64(a.First) - int64(b.First)) })
	from, ok := 0, true
	for _, u := range rs {
		if u.Last < u.First {
			continue
		}
		i, _ := s.find(u.First)
		to, hit := s.find(u.Last)
		if hit {
			to++
		}
		from = max(from, i)
		s.each(from, to, func(i int, c *chunk, r *rec) bool {
			ok = fn(i, c, r)
			return ok
		})
		if !ok {
			return
		}
		from = max(from, to)
	}
}

// UIDValidity of the folder.
func (v *View) UIDValidity() uint32 { return v.st.validity }

// UIDNext is above all UIDs that were ever used.
func (v *View) UIDNext() uint32 { return v.st.next }

// HighestModSeq is the MODSEQ of the latest change in the view.
func (v *View) HighestModSeq() uint64 { return v.st.modseq }

// FirstUnseen is the number of the first message without \Seen, 0 when there is none.
func (v *View) FirstUnseen() int {
	for k, c := range v.st.chunks {
		if c.unseen == 0 {
			continue
		}
		for j := range c.recs {
			if c.recs[j].flags&maildir.Seen == 0 {
				return v.st.first[k] + j + 1
			}
		}
	}
	return 0
}

// Unseen is the number of messages without \Seen.
func (v *View) Unseen() int { return v.st.unseen }

// Recent is the number of \Recent messages.
func (v *View) Recent() int {
	if v.ro {
		return v.st.n - v.From(v.st.firstRecent) + 1
	}
	n := 0
	for _, r := range v.recent {
		n += v.From(r.Last+1) - v.From(r.First)
	}
	return n
}

// ReadOnly tells how the view was opened.
func (v *View) ReadOnly() bool { return v.ro }

// ID is the MAILBOXID.
func (v *View) ID() string { return v.st.id() }

func (s *state) id() string {
	if s.guid != "" {
		return "F" + s.guid
	}
	return fmt.Sprintf("F%08x", s.validity)
}

// Keywords names the bits of Message.Keywords; an unused bit is "".
func (v *View) Keywords() []string { return v.st.keywords }

// Sync makes the view current.
func (v *View) Sync(ctx context.Context) (Changes, error) { return v.sync(ctx, false) }

// SyncKeep is Sync for commands during which nothing may be expunged (RFC 9051 §7.5.1):
// messages that are gone stay in the view until the next Sync.
func (v *View) SyncKeep(ctx context.Context) (Changes, error) { return v.sync(ctx, true) }

func (v *View) sync(ctx context.Context, keep bool) (Changes, error) {
	st, claimed, err := v.m.refresh(ctx, !v.ro)
	if err != nil {
		return Changes{}, fmt.Errorf("sync %s: %w", v.m.name, err)
	}
	if st.validity != v.st.validity {
		return Changes{Reset: true}, nil
	}
	v.claim(claimed)
	ch := diff(v.st, st)
	if keep && len(ch.Expunged) > 0 {
		if st, err = revive(v.st, st, ch.Expunged); err != nil {
			return Changes{}, err
		}
		ch = diff(v.st, st)
	}
	v.st = st
	return ch, nil
}

// revive puts messages of an old state back into a new one.
func revive(old, st *state, gone []Gone) (*state, error) {
	e := st.edit()
	for _, g := range gone {
		i, _ := old.find(g.UID)
		c, r := old.at(i)
		base, err := c.base(r)
		if err != nil {
			return nil, err
		}
		guid, err := c.guid(r)
		if err != nil {
			return nil, err
		}
		f := fresh{rec: *r, base: base, guid: guid, suffix: ""}
		f.bits &^= bitLiteral
		if err := e.add(&f); err != nil {
			return nil, err
		}
		if k, j, ok := e.mut(g.UID); ok {
			e.chunks[k].recs[j].modseq = r.modseq
		}
	}
	e.head = st.head
	return e.done(), nil
}

// diff tells how one state differs from a later one.
func diff(old, st *state) Changes {
	var ch Changes
	ch.Keywords = !slices.Equal(old.keywords, st.keywords)
	a, b := cursor{s: old}, cursor{s: st}
	for {
		if a.j == 0 && b.j == 0 && a.k < len(old.chunks) && b.k < len(st.chunks) && old.chunks[a.k] == st.chunks[b.k] {
			a.skip()
			b.skip()
			continue
		}
		x, y := a.rec(), b.rec()
		switch {
		case x == nil && y == nil:
			slices.Reverse(ch.Expunged)
			return ch
		case y == nil || x != nil && x.uid < y.uid:
			ch.Expunged = append(ch.Expunged, Gone{a.i + 1, x.uid})
			a.next()
		case x == nil || y.uid < x.uid:
			if ch.First == 0 {
				ch.First = b.i + 1
			}
			b.next()
		default:
			if x.flags != y.flags || x.kw != y.kw || x.modseq != y.modseq && old.floor == st.floor {
				ch.Changed = append(ch.Changed, b.i+1)
			}
			a.next()
			b.next()
		}
	}
}

// cursor walks over a state.
type cursor struct {
	s       *state
	i, k, j int
}

func (c *cursor) rec() *rec {
	if c.k == len(c.s.chunks) {
		return nil
	}
	return &c.s.chunks[c.k].recs[c.j]
}

func (c *cursor) next() {
	c.i++
	if c.j++; c.j == len(c.s.chunks[c.k].recs) {
		c.k, c.j = c.k+1, 0
	}
}

func (c *cursor) skip() {
	c.i += len(c.s.chunks[c.k].recs)
	c.k++
}

// Body is an open message. Offsets are as stored; message.NewWire gives what clients see.
type Body struct {
	durable.File
	Size int64 // octets as stored
}

// Open opens a message.
func (v *View) Open(ctx context.Context, uid uint32) (*Body, error) {
	b, err := v.m.openMessage(ctx, v.st, uid)
	if err != nil {
		return nil, fmt.Errorf("open message %d of %s: %w", uid, v.m.name, err)
	}
	return b, nil
}

// openTries bounds how often a message is looked for that others rename all the time.
const openTries = 20

func (m *Mailbox) openMessage(ctx context.Context, st *state, uid uint32) (b *Body, err error) {
	err = m.healed(ctx, func() error {
		b, err = m.findMessage(ctx, st, uid)
		return err
	})
	return b, err
}

func (m *Mailbox) findMessage(ctx context.Context, st *state, uid uint32) (*Body, error) {
	base := ""
	for try := range openTries {
		// Others may have renamed it since: what the process knows by now is asked first.
		for _, s := range []*state{m.st.Load(), st} {
			if s == nil || s.validity != st.validity {
				continue
			}
			i, ok := s.find(uid)
			if !ok {
				continue
			}
			c, r := s.at(i)
			name, err := c.file(nil, r)
			if err != nil && s == st && base != "" {
				continue // the newer state has told the name
			}
			if err != nil {
				return nil, err
			}
			base = string(name[:r.baseLen])
			b, err := m.openFile(look{bits: r.bits}.sub(), string(name))
			if !isGone(err) {
				return b, err
			}
		}
		if base == "" {
			return nil, ErrExpunged
		}
		if try > 0 {
			if err := pause(ctx, time.Duration(try)*time.Millisecond); err != nil {
				return nil, err
			}
		}
		hits, err := m.findFiles(map[string]bool{base: true})
		if err != nil {
			return nil, err
		}
		for _, h := range hits {
			b, err := m.openFile(h.sub(), h.file(h.base))
			if !isGone(err) {
				return b, err
			}
		}
		if len(hits) == 0 && try >= 3 {
			break
		}
	}
	return nil, ErrExpunged
}

var errNoFile = errors.New("not a regular file")

// unreadable tells whether err says that a message cannot be read, now or later, by this user.
func unreadable(err error) bool {
	return errors.Is(err, errNoFile) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENXIO)
}

// isGone tells whether a name leads nowhere any more; a network file system may say so in another
// way.
func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESTALE) }

func (m *Mailbox) openFile(sub, name string) (*Body, error) {
	// What a link leads to may be a FIFO, whose other end nobody waits for.
	f, err := m.fs().OpenFile(filepath.Join(m.dir, sub, name), os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errNoFile
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Body{f, info.Size()}, nil
}

// findFiles looks for the files of some base names.
func (m *Mailbox) findFiles(bases map[string]bool) (hits []found, err error) {
	buf := make([]byte, 64<<10)
	for _, sub := range []string{"new", "cur"} {
		f, err := m.fs().OpenFile(filepath.Join(m.dir, sub), os.O_RDONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		err = eachName(f, buf, func(name []byte) {
			base := name
			if i := bytes.IndexByte(name, ':'); i >= 0 {
				base = name[:i]
			}
			if bases[string(base)] {
				if base, l, ok := lookOf(name, sub == "new"); ok {
					hits = append(hits, found{strings.Clone(string(base)), l})
				}
			}
		})
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
	return hits, nil
}

// EmailID is the EMAILID of a message.
func (v *View) EmailID(uid uint32) (string, error) {
	i, ok := v.st.find(uid)
	if !ok {
		return "", ErrExpunged
	}
	c, r := v.st.at(i)
	return c.emailID(r)
}

func (c *chunk) emailID(r *rec) (string, error) {
	if g, err := c.guid(r); g != "" || err != nil {
		return g, err
	}
	return c.base(r)
}

// ChangedSince yields the messages whose MODSEQ is above modseq.
func (v *View) ChangedSince(modseq uint64) iter.Seq2[int, Message] {
	return func(yield func(int, Message) bool) {
		v.st.each(0, v.st.n, func(i int, _ *chunk, r *rec) bool {
			return r.modseq <= modseq || yield(i+1, v.message(r))
		})
	}
}

// VanishedSince returns which UIDs of the given ranges were expunged after modseq. Where that is
// not known any more, it returns all that are not there.
func (v *View) VanishedSince(modseq uint64, uids []Range) []Range {
	var gone []Range
	if modseq >= v.st.floor {
		for _, g := range v.st.gone {
			if g.modseq > modseq {
				gone = append(gone, Range{g.first, g.last})
			}
		}
	} else if v.st.next > 1 {
		gone = []Range{{1, v.st.next - 1}}
	}
	return v.st.without(intersect(normal(gone), normal(uids)))
}

// normal sorts ranges and joins those that touch.
func normal(rs []Range) []Range {
	rs = slices.Clone(rs)
	slices.SortFunc(rs, func(a, b Range) int { return int(int64(a.First) - int64(b.First)) })
	out := rs[:0]
	for _, r := range rs {
		if n := len(out); r.Last < r.First {
			continue
		} else if n > 0 && uint64(r.First) <= uint64(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

func intersect(a, b []Range) (out []Range) {
	for i, j := 0, 0; i < len(a) && j < len(b); {
		lo, hi := max(a[i].First, b[j].First), min(a[i].Last, b[j].Last)
		if lo <= hi {
			out = append(out, Range{lo, hi})
		}
		if a[i].Last < b[j].Last {
			i++
		} else {
			j++
		}
	}
	return out
}

// without takes the UIDs that exist out of ranges.
func (s *state) without(rs []Range) (out []Range) {
	for _, r := range rs {
		at := uint64(r.First)
		s.within([]Range{r}, func(_ int, _ *chunk, x *rec) bool {
			if uint64(x.uid) > at {
				out = append(out, Range{uint32(at), x.uid - 1})
			}
			at = uint64(x.uid) + 1
			return true
		})
		if at <= uint64(r.Last) {
			out = append(out, Range{uint32(at), r.Last})
		}
	}
	return out
}
