package mailbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// Append stores one message.
func (m *Mailbox) Append(ctx context.Context, it Item) (Copied, error) {
	first := true
	return m.AppendAll(ctx, func() (Item, error) {
		if !first {
			return Item{}, io.EOF
		}
		first = false
		return it, nil
	})
}

// staged is a message in tmp/, synced, that has yet to get its name.
type staged struct {
	tmp      string // path
	base     string
	item     Item
	size     int64 // as stored
	wire     int64
	internal int64
}

// AppendAll stores what next gives until io.EOF: all of it or, after an error, nothing.
func (m *Mailbox) AppendAll(ctx context.Context, next func() (Item, error)) (Copied, error) {
	var all []*staged
	syncs := m.newSyncs()
	drop := func() {
		_ = syncs.wait() // there is an error already
		for _, s := range all {
			_ = m.fs().Remove(s.tmp) // a leftover in tmp/ is swept one day
		}
	}
	for {
		it, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		var s *staged
		if err == nil {
			s, err = m.stage(ctx, it, syncs)
		}
		if err != nil {
			drop()
			return Copied{}, fmt.Errorf("append to %s: %w", m.name, err)
		}
		all = append(all, s)
	}
	if err := syncs.wait(); err != nil {
		drop()
		return Copied{}, fmt.Errorf("append to %s: %w", m.name, err)
	}
	var total Limits
	for _, s := range all {
		total.Octets += s.size
		total.Messages++
	}
	if err := m.store.room(ctx, total); err != nil {
		drop()
		return Copied{}, fmt.Errorf("append to %s: %w", m.name, err)
	}
	var out Copied
	err := m.write(ctx, func(w *writer) error {
		var err error
		out, err = w.adopt(ctx, all)
		return err
	})
	if err != nil {
		drop()
		return Copied{}, fmt.Errorf("append to %s: %w", m.name, err)
	}
	m.store.account(total)
	return out, nil
}

// copyBuffer is the window through which messages are copied.
const copyBuffer = 64 << 10

// maxSyncs is how many files are synced at once: they share commits of the journal.
const maxSyncs = 16

// syncs puts files on stable storage while more are written.
type syncs struct {
	wg    sync.WaitGroup
	slots chan struct{} // nil: one after the other
	mu    sync.Mutex
	err   error
}

func (m *Mailbox) newSyncs() *syncs {
	s := &syncs{}
	if _, ok := m.fs().(durable.OS); ok { // a model that stops after each operation wants an order
		s.slots = make(chan struct{}, maxSyncs)
	}
	return s
}

// add syncs and closes a file.
func (s *syncs) add(f durable.File) {
	if s.slots == nil {
		s.note(errors.Join(durable.Sync(f), f.Close()))
		return
	}
	s.slots <- struct{}{}
	s.wg.Go(func() {
		s.note(errors.Join(durable.Sync(f), f.Close()))
		<-s.slots
	})
}

func (s *syncs) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

// wait returns when all that was added is durable, or the first error.
func (s *syncs) wait() error {
	s.wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// stage writes a message into tmp/ and has it synced.
func (m *Mailbox) stage(ctx context.Context, it Item, y *syncs) (s *staged, err error) {
	s = &staged{base: m.store.namer.BaseFor(it.EmailID), item: it}
	s.tmp = filepath.Join(m.dir, "tmp", s.base)
	f, err := m.fs().OpenFile(s.tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrNotExist) { // somebody has cleaned tmp/ away
		if err = durable.MkdirAllOn(m.fs(), filepath.Join(m.dir, "tmp"), 0o700); err == nil {
			f, err = m.fs().OpenFile(s.tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		}
	}
	if err != nil {
		return nil, err
	}
	bp := m.store.bufs.Get().(*[]byte)
	defer m.store.bufs.Put(bp)
	s.size, s.wire, err = storeLF(ctx, f, it.Message, *bp)
	if err == nil {
		when := it.Internal
		if when.IsZero() {
			when = m.store.now()
		}
		s.internal = when.Unix()
		if !it.Internal.IsZero() {
			err = durable.Chtimes(m.fs(), s.tmp, when)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), m.fs().Remove(s.tmp))
	}
	y.add(f)
	s.base = maildir.WithSizes(s.base, s.size, s.wire)
	return s, nil
}

// storeLF copies r to f with LF for CRLF and counts octets as stored and as sent. A CRLF behind
// another CR stays one, since an LF behind a CR is sent as it is. So all comes back as it was,
// except that an LF without CR comes back with one.
func storeLF(ctx context.Context, f io.Writer, r io.Reader, buf []byte) (size, wire int64, err error) {
	in, out := buf[:len(buf)/2], buf[len(buf)/2:len(buf)/2]
	held, before := false, false // a CR is held back; and one was written before it
	for {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		n, rerr := r.Read(in)
		out = out[:0]
		for b := in[:n]; len(b) > 0; {
			if held {
				held = false
				if b[0] != '\n' || before {
					out = append(out, '\r')
					wire++
					before = true
				}
				if b[0] == '\n' {
					if before {
						wire-- // of the CRLF below, the CR is counted
					}
					out, b, before = append(out, '\n'), b[1:], false
					wire += 2
					continue
				}
			}
			part := b
			if i := bytes.IndexByte(b, '\r'); i >= 0 {
				part, b, held = b[:i], b[i+1:], true
			} else {
				b = nil
			}
			if len(part) > 0 {
				out, before = append(out, part...), false
				wire += int64(len(part) + bytes.Count(part, []byte{'\n'}))
			}
		}
		if rerr != nil && held {
			out, held = append(out, '\r'), false
			wire++
		}
		if len(out) > 0 {
			size += int64(len(out))
			if _, err := f.Write(out); err != nil {
				return 0, 0, err
			}
		}
		if errors.Is(rerr, io.EOF) {
			return size, wire, nil
		}
		if rerr != nil {
			return 0, 0, rerr
		}
	}
}

// arrival is a file that is about to get its place in cur/.
type arrival struct {
	f     fresh
	place func(to *durable.Names, name string) error
	undo  func(to *durable.Names, name string) error // nil: remove the name
	done  func() error                               // of a MOVE, once the new name is durable
}

// adopt gives staged messages their names and UIDs.
func (w *writer) adopt(ctx context.Context, all []*staged) (Copied, error) {
	if len(all) == 0 {
		return Copied{UIDValidity: w.st.validity}, nil
	}
	e := w.st.edit()
	tmp, err := durable.OpenNames(w.m.fs(), filepath.Join(w.m.dir, "tmp"))
	if err != nil {
		return Copied{}, err
	}
	defer tmp.Close()
	as := make([]*arrival, len(all))
	var names []string
	for _, s := range all {
		names = append(names, s.item.Keywords...)
	}
	if err := w.reserve(ctx, e, names); err != nil {
		return Copied{}, err
	}
	for i, s := range all {
		kw, missing := e.keywordMask(s.item.Keywords)
		for _, k := range missing {
			if s.item.Left == nil {
				return Copied{}, fmt.Errorf("%w: %.60q", ErrKeywords, k)
			}
			s.item.Left(k)
		}
		a := &arrival{f: fresh{base: s.base, guid: s.item.EmailID, pop3: s.item.POP3}}
		a.f.rec = rec{flags: s.item.Flags, kw: kw, size: s.wire, internal: s.internal, saved: w.m.store.now().Unix()}
		name := filepath.Base(s.tmp)
		a.place = func(to *durable.Names, as string) error { return tmp.RenameNew(name, to, as) }
		as[i] = a
	}
	return w.admit(ctx, e, as, nil)
}

// admit places files in cur/ and gives them UIDs, in their order, and makes both durable. also
// is called when all are placed, before anything is durable. After an error none is there.
func (w *writer) admit(ctx context.Context, e *edit, as []*arrival, also func() error) (out Copied, err error) {
	m := w.m
	d, err := w.openFolder()
	if err != nil {
		return out, err
	}
	defer d.close()
	lock, err := m.lockList(ctx)
	if err != nil {
		return out, err
	}
	defer m.unlockList(lock)
	l, err := w.listFor(ctx, lock, e, d)
	if err != nil {
		return out, err
	}
	next := max(l.next, w.st.next)
	if uint64(next)+uint64(len(as)) >= 1<<32-1 {
		return out, errors.New("no UID is left: the mailbox needs a new UIDVALIDITY")
	}
	placed := 0
	undo := func() {
		for _, a := range as[:placed] {
			name := string(appendSuffix([]byte(a.f.base), &a.f.rec))
			if a.undo != nil {
				err = errors.Join(err, a.undo(d.cur, name))
			} else {
				err = errors.Join(err, d.cur.Remove(name))
			}
		}
	}
	adds := make([]*fresh, 0, len(as))
	for i, a := range as {
		a.f.uid = next + uint32(i)
		if i%256 == 0 {
			err = errors.Join(ctx.Err(), lock.Touch())
		}
		if err == nil {
			err = a.place(d.cur, string(appendSuffix([]byte(a.f.base), &a.f.rec)))
		}
		if err != nil {
			undo()
			return out, err
		}
		placed++
		adds = append(adds, &a.f)
		out.To = append(out.To, a.f.uid)
	}
	if also != nil {
		if err = also(); err != nil {
			undo()
			return out, err
		}
	}
	e.head.next = next + uint32(len(as))
	if err = w.settleNames(lock, d, e, l, adds); err != nil {
		undo()
		return out, err
	}
	out.UIDValidity = w.st.validity
	for _, f := range adds {
		err = errors.Join(err, e.add(f))
	}
	e.head.stamps[atList], e.head.lines, e.head.listSum = l.at, l.lines, l.sum
	if l.pop3 {
		e.head.listBits |= listPOP3
	}
	if err == nil {
		err = d.finish(e)
	}
	if err != nil {
		// They are there for good, and a new index will have them. Whoever were told otherwise
		// would store them twice.
		m.damaged(err)
		m.suspect = true
	}
	return out, nil
}

// listFor reads the uidlist for who is about to add to it. When another program was faster, its
// messages come first, and e begins anew.
func (w *writer) listFor(ctx context.Context, lock *maildir.UIDLock, e *edit, d *folder) (*listRead, error) {
	l, err := w.readList()
	if err != nil || !l.rebuilt && !l.rewrite && len(l.pending) == 0 && !l.jump {
		return l, err
	}
	if err := w.scanHeld(ctx, lock, nil, false); err != nil {
		return nil, err
	}
	n := w.st.edit()
	if e.ops > 0 { // new keywords are in the file already
		n.setKeywords(e.kws)
		n.head.stamps[atKeywords] = e.head.stamps[atKeywords]
	}
	*e = *n
	if d.stamps, err = w.m.look(); err != nil {
		return nil, err
	}
	return w.readList()
}

// settleNames syncs the directory and the uidlist; both wait for the same journal.
func (w *writer) settleNames(lock *maildir.UIDLock, d *folder, e *edit, l *listRead, adds []*fresh) error {
	if _, ok := w.m.fs().(durable.OS); !ok { // a model that stops after each operation wants an order
		return errors.Join(d.sync(), w.writeList(lock, e, l, nil, adds))
	}
	var wg sync.WaitGroup
	var serr error
	wg.Go(func() { serr = d.sync() })
	lerr := w.writeList(lock, e, l, nil, adds)
	wg.Wait()
	return errors.Join(serr, lerr)
}

// Copy copies messages into a folder of the same account: all or none.
func (v *View) Copy(ctx context.Context, uids []uint32, dst *Mailbox) (Copied, error) {
	out, err := v.copy(ctx, uids, dst)
	if err != nil {
		return Copied{}, fmt.Errorf("copy from %s to %s: %w", v.m.name, dst.name, err)
	}
	return out, nil
}

func (v *View) copy(ctx context.Context, uids []uint32, dst *Mailbox) (Copied, error) {
	src := v.m
	src.enterLoad(ctx) // what the process knows of names by now
	var from []source
	err := src.healed(ctx, func() (err error) {
		from, err = v.sources(uids)
		return err
	})
	if err != nil {
		return Copied{}, err
	}
	var total Limits
	for _, s := range from {
		n, _, ok, _ := (maildir.Name{Base: s.base}).Sizes()
		if !ok {
			n = max(s.rec.size, 0)
		}
		total.Octets += n
		total.Messages++
	}
	if err := dst.store.room(ctx, total); err != nil {
		return Copied{}, err
	}
	var out Copied
	err = dst.write(ctx, func(w *writer) error {
		e := w.st.edit()
		as := make([]*arrival, len(from))
		dirs, err := src.openPair()
		if err != nil {
			return err
		}
		defer dirs.close()
		if err := w.reserveFor(ctx, e, v.st, from); err != nil {
			return err
		}
		for i, s := range from {
			a := w.incoming(e, v.st, s)
			a.place = func(to *durable.Names, name string) error {
				return dirs.hold(ctx, s, func(sub *durable.Names, old string) error {
					err := sub.Link(old, to, name)
					if unlinked(err) {
						err = dst.duplicate(ctx, sub, old, to, name)
					}
					return err
				})
			}
			as[i] = a
		}
		out, err = w.admit(ctx, e, as, nil)
		return err
	})
	if err != nil {
		return Copied{}, err
	}
	dst.store.account(total)
	for _, s := range from {
		out.From = append(out.From, s.rec.uid)
	}
	return out, nil
}

// source is a message to copy or move.
type source struct {
	rec   rec
	base  string
	look  look
	email string
}

// sources finds messages by UID; one that is gone fails all (RFC 9051 §6.4.7: COPY is all or
// nothing), except that UIDs unknown to the view are passed over.
func (v *View) sources(uids []uint32) ([]source, error) {
	st := v.m.st.Load()
	if st == nil || st.validity != v.st.validity {
		st = v.st
	}
	uids = slices.Clone(uids)
	slices.Sort(uids)
	uids = slices.Compact(uids)
	out := make([]source, 0, len(uids))
	for _, uid := range uids {
		i, ok := st.find(uid)
		if !ok {
			if v.Seq(uid) == 0 {
				continue
			}
			return nil, ErrExpunged
		}
		c, r := st.at(i)
		base, l, err := lookAt(c, r)
		if err != nil {
			return nil, err
		}
		email, err := c.emailID(r)
		if err != nil {
			return nil, err
		}
		out = append(out, source{*r, base, l, email})
	}
	return out, nil
}

// enterLoad reads what other processes have written about names. Failing is no harm: names
// that are not right are looked for.
func (m *Mailbox) enterLoad(ctx context.Context) {
	if m.enter(ctx) == nil {
		_ = m.catchUp(false)
		m.leave()
	}
}

// incoming makes the arrival of a copy: a new base name, since the old one may come back to
// where it was, and the same EMAILID, date and flags.
func (w *writer) incoming(e *edit, st *state, s source) *arrival {
	kw, _ := e.keywordMask(keywordNames(st.keywords, s.rec.kw)) // the rest has no room
	base := w.m.store.namer.Base()
	// Nothing else of an old name is taken over: it may be as long as a name can be.
	if n, wire, okS, okW := (maildir.Name{Base: s.base}).Sizes(); okS && okW {
		base = maildir.WithSizes(base, n, wire)
	} else if okS {
		base += ",S=" + strconv.FormatInt(n, 10)
	}
	a := &arrival{f: fresh{base: base, guid: s.email}}
	a.f.rec = rec{flags: s.rec.flags, kw: kw, size: s.rec.size, internal: s.rec.internal, saved: w.m.store.now().Unix()}
	return a
}

// reserve finds letters for keywords of many messages under one lock. Those that cannot get one
// are missing afterwards.
func (w *writer) reserve(ctx context.Context, e *edit, names []string) error {
	slices.Sort(names)
	_, err := w.keywordBits(ctx, e, FlagChange{Op: Add, Keywords: slices.Compact(names)}, func(string) {})
	return err
}

// reserveFor does it for messages from another folder.
func (w *writer) reserveFor(ctx context.Context, e *edit, st *state, from []source) error {
	used := uint32(0)
	for _, s := range from {
		used |= s.rec.kw
	}
	return w.reserve(ctx, e, keywordNames(st.keywords, used))
}

// keywordMask is about the keywords that the mailbox has after the edit.
func (e *edit) keywordMask(names []string) (bits uint32, missing []string) {
	var table maildir.Keywords
	copy(table[:], e.kws)
	return keywordMask(&table, names)
}

func keywordNames(table []string, bits uint32) (names []string) {
	for i, k := range table {
		if bits&(1<<i) != 0 && k != "" {
			names = append(names, k)
		}
	}
	return names
}

// pair holds new/ and cur/ of a folder open from which messages are taken.
type pair struct {
	m         *Mailbox
	news, cur *durable.Names
}

func (m *Mailbox) openPair() (*pair, error) {
	n, c, err := m.openDirs()
	return &pair{m, n, c}, err
}

func (p *pair) close() {
	_ = p.news.Close() // opened to read
	_ = p.cur.Close()
}

// hold calls fn with the name that a message has, and again when it got another meanwhile.
func (p *pair) hold(ctx context.Context, s source, fn func(sub *durable.Names, name string) error) error {
	l := s.look
	for round := 0; ; round++ {
		sub := p.cur
		if l.bits&bitNew != 0 {
			sub = p.news
		}
		err := fn(sub, l.file(s.base))
		if !errors.Is(err, fs.ErrNotExist) || round == renameRounds {
			if errors.Is(err, fs.ErrNotExist) {
				return ErrExpunged
			}
			return err
		}
		if err := pause(ctx, time.Duration(round)*time.Millisecond); err != nil {
			return err
		}
		hits, err := p.m.findFiles(map[string]bool{s.base: true})
		if err != nil {
			return err
		}
		if len(hits) > 0 {
			l = hits[0].look
		} else if round > 3 {
			return ErrExpunged
		}
	}
}

// Move moves messages into a folder of the same account.
func (v *View) Move(ctx context.Context, uids []uint32, dst *Mailbox) (Copied, error) {
	if v.ro {
		return Copied{}, ErrReadOnly
	}
	var out Copied
	var err error
	if dst == v.m {
		// RFC 6851 §3.3 leaves moving onto itself to the server: the messages get new UIDs.
		err = v.m.write(ctx, func(w *writer) error {
			out, err = v.moveLocked(ctx, w, w, uids)
			return err
		})
	} else {
		err = v.moveBetween(ctx, uids, dst, &out)
	}
	if err != nil {
		return Copied{}, fmt.Errorf("move from %s to %s: %w", v.m.name, dst.name, err)
	}
	return out, nil
}

// moveBetween takes the locks of two folders in the order of their names.
func (v *View) moveBetween(ctx context.Context, uids []uint32, dst *Mailbox, out *Copied) error {
	both := func(src, to *writer) error {
		var err error
		*out, err = v.moveLocked(ctx, src, to, uids)
		return err
	}
	if v.m.indexAt < dst.indexAt {
		return v.m.write(ctx, func(src *writer) error {
			if same, err := dst.lockedAs(ctx, v.m); err != nil {
				return err
			} else if same {
				return both(src, src)
			}
			return dst.write(ctx, func(to *writer) error { return both(src, to) })
		})
	}
	return dst.write(ctx, func(to *writer) error {
		if same, err := v.m.lockedAs(ctx, dst); err != nil {
			return err
		} else if same {
			return both(to, to)
		}
		return v.m.write(ctx, func(src *writer) error { return both(src, to) })
	})
}

// lockedAs tells whether the lock of m is the one that other holds: two openings of one folder
// in one process, of which one would wait for the other. An opening under a name that is the
// folder's no more finds nothing.
func (m *Mailbox) lockedAs(ctx context.Context, other *Mailbox) (bool, error) {
	if err := m.enter(ctx); err != nil {
		return false, err
	}
	defer m.leave()
	if err := m.openLock(); errors.Is(err, fs.ErrNotExist) {
		return false, ErrNotFound
	} else if err != nil {
		return false, err
	}
	mine, err := m.lockFile.Stat()
	if err != nil {
		return false, err
	}
	its, err := other.lockFile.Stat()
	if err != nil || !durable.SameFile(mine, its) {
		return false, err
	}
	if !m.lockStands() {
		return false, ErrNotFound
	}
	return true, nil
}

func (v *View) moveLocked(ctx context.Context, src, dst *writer, uids []uint32) (Copied, error) {
	if err := v.same(src); err != nil {
		return Copied{}, err
	}
	from, err := v.sources(uids)
	if err != nil {
		return Copied{}, err
	}
	d, err := src.openFolder()
	if err != nil {
		return Copied{}, err
	}
	defer d.close()
	dirs := &pair{src.m, d.news, d.cur}
	e := dst.st.edit()
	if err := dst.reserveFor(ctx, e, src.st, from); err != nil {
		return Copied{}, err
	}
	as := make([]*arrival, len(from))
	for i, s := range from {
		a := dst.incoming(e, src.st, s)
		var was *durable.Names
		wasName := ""
		stays := false // a copy was made, and the old file is to be removed
		a.place = func(to *durable.Names, name string) error {
			return dirs.hold(ctx, s, func(sub *durable.Names, old string) error {
				was, wasName = sub, old
				d.fromNew = d.fromNew || sub == d.news
				err := sub.RenameNew(old, to, name)
				if stays = errors.Is(err, syscall.EXDEV); stays {
					err = dst.m.duplicate(ctx, sub, old, to, name)
				}
				return err
			})
		}
		a.undo = func(to *durable.Names, name string) error {
			if stays {
				return to.Remove(name)
			}
			return to.RenameNew(name, was, wasName)
		}
		a.done = func() error {
			if !stays {
				return nil
			}
			return dirs.hold(ctx, s, func(sub *durable.Names, old string) error { return sub.Remove(old) })
		}
		as[i] = a
	}
	out, err := dst.admit(ctx, e, as, nil)
	if err != nil {
		return Copied{}, err
	}
	// The new names are durable; now the old ones may go for good.
	for _, a := range as {
		if derr := a.done(); derr != nil && !errors.Is(derr, ErrExpunged) {
			err = errors.Join(err, derr)
		}
	}
	err = errors.Join(err, d.sync())
	se := src.st.edit()
	for _, s := range from {
		if err := se.remove(s.rec.uid); err != nil {
			return Copied{}, err
		}
		out.From = append(out.From, s.rec.uid)
	}
	return out, errors.Join(err, d.finish(se))
}
