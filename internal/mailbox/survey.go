package mailbox

import (
	"bytes"
	"context"
	"errors"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

func eachNameSlow(f durable.File, fn func(name []byte)) error {
	names, err := f.Readdirnames(-1)
	for _, n := range names {
		fn([]byte(n))
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

const (
	// tick is above the resolution of directory times in Linux: after it, a change gets
	// another time.
	tick = 12 * time.Millisecond
	// settleTime is how long a directory must have kept its time before its content is believed
	// to be what was seen.
	settleTime = time.Second
	// busyScans is how many scans in a row must miss a message in a directory that never rests.
	busyScans = 12
	maxPasses = 4
)

// listed is a line of the uidlist for a message that the index does not know.
type listed struct {
	uid        uint32
	wire       int64
	base, guid string
}

// found is a file whose base name neither index nor uidlist knows.
type found struct {
	base string
	look
}

// known finds messages by base name: those of the state first, then lines of the uidlist.
type known struct {
	st      *state
	pending []listed
	seed    maphash.Seed
	slots   []uint64 // upper half of the hash, then the index + 1
	mask    uint64
}

func newKnown(st *state, pending []listed) (*known, error) {
	n := st.n + len(pending)
	size := 16
	for size < 2*n {
		size *= 2
	}
	k := &known{st: st, pending: pending, seed: maphash.MakeSeed(), slots: make([]uint64, size), mask: uint64(size - 1)}
	i := 0
	for _, c := range st.chunks {
		b, err := c.names.bytes()
		if err != nil {
			return nil, err
		}
		for j := range c.recs {
			r := &c.recs[j]
			end := int(r.name) + r.span()
			if end > len(b) || end+1 > len(b) && r.bits&bitGUID != 0 {
				return nil, errDamaged
			}
			k.put(b[r.name:int(r.name)+int(r.baseLen)], i)
			i++
		}
	}
	for _, p := range pending {
		k.put([]byte(p.base), i)
		i++
	}
	return k, nil
}

func (k *known) put(base []byte, i int) {
	h := maphash.Bytes(k.seed, base)
	at := h & k.mask
	for k.slots[at] != 0 {
		at = (at + 1) & k.mask
	}
	k.slots[at] = h&^(1<<32-1) | uint64(i+1)
}

// find returns the last that was put under base: where the uidlist gives a message of the index
// another UID, the uidlist is right.
func (k *known) find(base []byte) int {
	h := maphash.Bytes(k.seed, base)
	hit := -1
	for at := h & k.mask; k.slots[at] != 0; at = (at + 1) & k.mask {
		s := k.slots[at]
		if s>>32 != h>>32 {
			continue
		}
		i := int(uint32(s)) - 1
		if k.is(i, base) {
			hit = i
		}
	}
	return hit
}

func (k *known) is(i int, base []byte) bool {
	if i >= k.st.n {
		return k.pending[i-k.st.n].base == string(base)
	}
	c, r := k.st.at(i)
	return bytes.Equal(c.names.b[r.name:int(r.name)+int(r.baseLen)], base)
}

// sighting is a message whose file is not as the state has it.
type sighting struct {
	i int
	look
}

// survey is what scans of new/ and cur/ found.
type survey struct {
	*known
	before  [places]stamp
	list    stamp    // of the uidlist whose lines are among the known
	seen    []uint64 // a bit for each that was found
	others  []sighting
	unknown []found
	doubles []sighting
	absent  []int // not found for sure
	doubt   []int // not found, but the directory was too busy to be sure
	names   int   // files seen in the last pass
	arena   []byte
}

func (s *survey) has(i int) bool { return s.seen[i>>6]&(1<<(i&63)) != 0 }

// lookOf takes a file name apart. ok is false for what is no message.
func lookOf(name []byte, isNew bool) (base []byte, l look, ok bool) {
	if !maildir.ValidName(string(name)) {
		return nil, l, false
	}
	base = name
	suffix := ""
	if i := bytes.IndexByte(name, ':'); i >= 0 {
		base, suffix = name[:i], string(name[i:])
	}
	if isNew {
		l.bits = bitNew
	}
	n := maildir.ParseName(suffix)
	l.flags, l.kw = n.Flags, n.Keywords
	var buf [48]byte
	r := rec{flags: l.flags, kw: l.kw, bits: l.bits}
	if string(appendSuffix(buf[:0], &r)) != suffix {
		l.bits |= bitLiteral
		l.suffix = suffix
	}
	return base, l, true
}

// file is the name that a look is of.
func (l look) file(base string) string {
	if l.bits&bitLiteral != 0 {
		return base + l.suffix
	}
	return string(appendSuffix([]byte(base), &rec{flags: l.flags, kw: l.kw, bits: l.bits}))
}

func (l look) sub() string {
	if l.bits&bitNew != 0 {
		return "new"
	}
	return "cur"
}

// pass scans once. new/ comes first: a file that moves to cur/ meanwhile is seen twice rather
// than never.
func (s *survey) pass(m *Mailbox, buf []byte) error {
	var suffix [64]byte
	s.names = 0
	for _, sub := range []string{"new", "cur"} {
		f, err := m.fs().OpenFile(filepath.Join(m.dir, sub), os.O_RDONLY, 0)
		if errors.Is(err, fs.ErrNotExist) && sub == "new" {
			continue
		}
		if err != nil {
			return err
		}
		isNew := sub == "new"
		err = eachName(f, buf, func(name []byte) {
			if len(name) == 0 || name[0] == '.' {
				return
			}
			s.names++
			base := name
			if i := bytes.IndexByte(name, ':'); i >= 0 {
				base = name[:i]
			}
			i := s.find(base)
			if i >= 0 && i < s.st.n && !s.has(i) {
				c, r := s.st.at(i)
				if isNew == (r.bits&bitNew != 0) {
					want := name[len(base):]
					if r.bits&bitLiteral != 0 {
						at := int(r.name) + int(r.baseLen)
						if bytes.Equal(c.names.b[at:at+int(r.sufLen)], want) {
							s.seen[i>>6] |= 1 << (i & 63)
							return
						}
					} else if bytes.Equal(appendSuffix(suffix[:0], r), want) {
						s.seen[i>>6] |= 1 << (i & 63)
						return
					}
				}
			}
			s.other(i, name, isNew)
		})
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// other notes a file that is not simply where the state has it.
func (s *survey) other(i int, name []byte, isNew bool) {
	base, l, ok := lookOf(name, isNew)
	switch {
	case !ok:
	case i < 0:
		s.unknown = append(s.unknown, found{s.keep(base), l})
	case s.has(i):
		s.doubles = append(s.doubles, sighting{i, l})
	default:
		s.seen[i>>6] |= 1 << (i & 63)
		s.others = append(s.others, sighting{i, l})
	}
}

// keep makes a string of a name without an allocation for each.
func (s *survey) keep(b []byte) string {
	if len(s.arena)+len(b) > cap(s.arena) {
		s.arena = make([]byte, 0, 64<<10)
	}
	at := len(s.arena)
	s.arena = append(s.arena, b...)
	return unsafe.String(&s.arena[at], len(b))
}

// survey scans until it is sure what is there, or until the folder proves too busy for that.
func (w *writer) survey(ctx context.Context, l *listRead) (*survey, error) {
	m, pending := w.m, l.pending
	k, err := newKnown(w.st, pending)
	if err != nil {
		return nil, err
	}
	n := w.st.n + len(pending)
	buf := make([]byte, 256<<10)
	var all *survey
	before, err := m.look()
	if err != nil {
		return nil, err
	}
	first := before
	for pass := 1; ; pass++ {
		s := &survey{known: k, before: first, list: l.at, seen: make([]uint64, n/64+1)}
		if err := s.pass(m, buf); err != nil {
			return nil, err
		}
		if all != nil {
			s.merge(all)
		}
		all = s
		lost := s.lost(n)
		if len(lost) == 0 {
			break
		}
		after, err := m.look()
		if err != nil {
			return nil, err
		}
		if pass > 1 {
			// Nothing has changed since a tick before this pass began: it has seen everything.
			if after[atNew] == before[atNew] && after[atCur] == before[atCur] && after[atCur].mtime%1e9 != 0 {
				s.absent = lost
				break
			}
			if pass == maxPasses {
				w.doubt(s, lost)
				break
			}
		}
		before = after
		if err := pause(ctx, tick); err != nil {
			return nil, err
		}
	}
	if len(all.absent)+len(all.doubt) == 0 {
		m.missing = nil
	}
	return all, w.resolve(all)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lost lists what was not found.
func (s *survey) lost(n int) (lost []int) {
	for w, bits := range s.seen {
		if bits == 1<<64-1 {
			continue
		}
		for b := range 64 {
			if i := w<<6 | b; i < n && bits&(1<<b) == 0 {
				lost = append(lost, i)
			}
		}
	}
	return lost
}

// merge adds what an earlier pass saw and this one did not.
func (s *survey) merge(o *survey) {
	for _, x := range o.others {
		if !s.has(x.i) {
			s.others = append(s.others, x)
		}
	}
	have := make(map[string]bool, len(s.unknown))
	for _, f := range s.unknown {
		have[f.base] = true
	}
	for _, f := range o.unknown {
		if !have[f.base] {
			s.unknown = append(s.unknown, f)
		}
	}
	for i := range s.seen {
		s.seen[i] |= o.seen[i]
	}
}

// doubt counts how often messages were missed where no scan was undisturbed. Lines of the
// uidlist are no promise to anybody: they are left out at once.
func (w *writer) doubt(s *survey, lost []int) {
	missing := map[uint32]int{}
	for _, i := range lost {
		if i >= w.st.n {
			s.absent = append(s.absent, i)
			continue
		}
		_, r := w.st.at(i)
		n := w.m.missing[r.uid] + maxPasses
		if n >= busyScans {
			s.absent = append(s.absent, i)
			continue
		}
		missing[r.uid] = n
		s.doubt = append(s.doubt, i)
	}
	w.m.missing = missing
}

// resolve settles base names that were seen under two names. Mostly a rename went on and one of
// them is history. Two different files, though, are two messages: one gets a new base name.
func (w *writer) resolve(s *survey) error {
	slices.SortFunc(s.unknown, func(a, b found) int { return strings.Compare(a.base, b.base) })
	var once []found
	for i, f := range s.unknown {
		if i == 0 || s.unknown[i-1].base != f.base {
			once = append(once, f)
			continue
		}
		keep, extra, err := w.which(f.base, once[len(once)-1].look, f.look)
		if err != nil {
			return err
		}
		once[len(once)-1].look = keep
		once = append(once, extra...)
	}
	s.unknown = once
	for _, d := range s.doubles {
		base, l, at := s.first(d.i)
		keep, extra, err := w.which(base, l, d.look)
		if err != nil {
			return err
		}
		if at >= 0 {
			s.others[at].look = keep
		} else if keep != l {
			s.others = append(s.others, sighting{d.i, keep})
		}
		s.unknown = append(s.unknown, extra...)
	}
	return nil
}

// first is how a message was seen before its double: at is its place in others, -1 when it was
// as the state has it.
func (s *survey) first(i int) (base string, l look, at int) {
	for at, o := range s.others {
		if o.i == i {
			return s.base(i), o.look, at
		}
	}
	c, r := s.st.at(i)
	l = look{flags: r.flags, kw: r.kw, bits: r.bits & (bitNew | bitLiteral)}
	if r.bits&bitLiteral != 0 {
		end := int(r.name) + int(r.baseLen)
		l.suffix = string(c.names.b[end : end+int(r.sufLen)])
	}
	return s.base(i), l, -1
}

func (s *survey) base(i int) string {
	if i >= s.st.n {
		return s.pending[i-s.st.n].base
	}
	c, r := s.st.at(i)
	return string(c.names.b[r.name : int(r.name)+int(r.baseLen)])
}

// which decides between two names of one base name.
func (w *writer) which(base string, a, b look) (keep look, extra []found, err error) {
	m := w.m
	path := func(l look) string { return filepath.Join(m.dir, l.sub(), l.file(base)) }
	ia, ea := m.fs().Lstat(path(a))
	ib, eb := m.fs().Lstat(path(b))
	switch {
	case eb != nil || a == b:
		return a, nil, nil
	case ea != nil:
		return b, nil, nil
	case w.bare:
		return a, nil, nil
	case durable.SameFile(ia, ib):
		return a, nil, w.dropSecond(path(a), path(b), ib)
	}
	// Not while somebody moves things: both must be there under the same names a tick later.
	fresh := m.store.namer.Base()
	if i := strings.IndexByte(base, ','); i >= 0 {
		fresh += base[i:]
	}
	err = m.fs().RenameNew(path(b), filepath.Join(m.dir, b.sub(), b.file(fresh)))
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil, nil
	}
	if err != nil {
		return a, nil, err
	}
	m.store.log.Warn("two messages had one base name; one has a new name", "mailbox", m.name, "err", base)
	return a, []found{{fresh, b}}, nil
}

// secondStays is how long both names of a file must have been there before one goes. Dovecot
// waits as long for who renames with link and unlink.
const secondStays = 30 * time.Second

// dropSecond removes the second name that a rename left when it was broken off: with it, an
// expunged message would be back.
func (w *writer) dropSecond(a, b string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Nlink < 2 || w.m.store.now().Unix()-changed(info) < int64(secondStays/time.Second) {
		return nil
	}
	if first, err := w.m.fs().Lstat(a); err != nil || !durable.SameFile(first, info) {
		return nil // it was renamed between two looks
	}
	if err := w.m.fs().Remove(b); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	w.m.store.log.Warn("a second name of a message was removed", "mailbox", w.m.name, "path", b)
	return nil
}
