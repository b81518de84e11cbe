package mailbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// freshen makes the writer's state current. With claim, files in new/ go to cur/.
func (w *writer) freshen(ctx context.Context, claim bool) error {
	m := w.m
	now, err := m.look()
	if err != nil {
		return err
	}
	if w.st != nil && !m.suspect && !(claim && w.st.news > 0) && w.st.current(&now, m.store.now()) {
		return nil
	}
	return w.scan(ctx, claim)
}

// scan compares the folder with the state and writes down what is different.
func (w *writer) scan(ctx context.Context, claim bool) error {
	if w.st == nil || w.m.suspect {
		return w.scanLocked(ctx, nil, claim)
	}
	l, err := w.readList()
	if err != nil {
		return err
	}
	if l.rebuilt {
		w.st = nil
		return w.scanLocked(ctx, nil, claim)
	}
	sv, err := w.survey(ctx, l)
	if err != nil {
		return err
	}
	w.missed(l, sv)
	if len(sv.unknown) > 0 || l.rewrite || l.torn || l.jump || w.st.modseq+2 > w.st.ceiling {
		return w.scanLocked(ctx, sv, claim)
	}
	return w.conclude(w.st.edit(), sv, l, nil, claim)
}

// scanLocked is scan with the right to give UIDs. sv is what was seen before; the folder is looked
// at again when another program has given UIDs since.
func (w *writer) scanLocked(ctx context.Context, sv *survey, claim bool) error {
	lock, err := w.m.lockList(ctx)
	if err != nil {
		return err
	}
	defer w.m.unlockList(lock)
	return w.scanHeld(ctx, lock, sv, claim)
}

func (w *writer) scanHeld(ctx context.Context, lock *maildir.UIDLock, sv *survey, claim bool) error {
	if err := w.takeOver(ctx, lock); err != nil {
		return err
	}
	l, err := w.readList()
	if err != nil {
		return err
	}
	if sv == nil || l.at != sv.list || l.rebuilt {
		if sv, err = w.survey(ctx, l); err != nil {
			return err
		}
	}
	w.missed(l, sv)
	e := w.st.edit()
	e.whole = l.rebuilt
	adds := w.number(e, l, sv.unknown)
	if err := w.writeList(lock, e, l, sv, adds); err != nil {
		return err
	}
	if l.jump {
		e.forget()
		e.raise()
	}
	return w.conclude(e, sv, l, adds, claim)
}

// takeOver makes a uidlist of Courier's files where nobody has made one.
func (w *writer) takeOver(ctx context.Context, lock *maildir.UIDLock) error {
	m := w.m
	if w.st != nil || !m.store.o.Courier {
		return nil
	}
	at, err := m.lstat(filepath.Join(m.control, maildir.UIDListName))
	if err != nil || at != (stamp{}) {
		return err
	}
	t, err := maildir.TakeOverCourier(ctx, m.fs(), m.dir, m.control, m.store.tree.ControlRoot(), lock, m.store.now())
	if err != nil {
		return fmt.Errorf("mailbox %s: take over from Courier: %w", m.name, err)
	}
	if t != nil {
		m.store.log.Info("a mailbox was taken over from Courier", "mailbox", m.name)
	}
	return nil
}

// number gives UIDs to messages that have none, in the order in which they arrived.
func (w *writer) number(e *edit, l *listRead, files []found) []*fresh {
	type arrival struct {
		sec, usec int64
		f         *found
	}
	as := make([]arrival, len(files))
	for i := range files {
		as[i].f = &files[i]
		as[i].sec, as[i].usec = arrived(files[i].base)
	}
	slices.SortFunc(as, func(a, b arrival) int {
		switch {
		case a.sec != b.sec:
			return cmp64(a.sec, b.sec)
		case a.usec != b.usec:
			return cmp64(a.usec, b.usec)
		}
		return strings.Compare(a.f.base, b.f.base)
	})
	saved := int64(unknown)
	if !l.rebuilt {
		saved = w.m.store.now().Unix()
	}
	next := max(l.next, w.st.next)
	adds := make([]*fresh, 0, len(as))
	all := make([]fresh, len(as))
	for i, a := range as {
		if next == 1<<32-1 {
			break // such a mailbox needs another UIDVALIDITY; Check says so
		}
		f := &all[i]
		f.rec = newRec(next, a.f.look)
		f.size = wireSize(a.f.base, -1)
		f.saved = saved
		f.base, f.suffix = a.f.base, a.f.suffix
		adds = append(adds, f)
		next++
	}
	e.head.next = next
	return adds
}

func newRec(uid uint32, l look) rec {
	return rec{uid: uid, flags: l.flags, kw: l.kw, bits: l.bits, size: unknown, internal: unknown, saved: unknown}
}

// wireSize is wire, which a line of the uidlist tells, else the size that the name tells, else
// unknown. The line comes first because a name that is wrong cannot be changed.
func wireSize(base string, wire int64) int64 {
	if wire >= 0 {
		return wire
	}
	if _, n, _, ok := (maildir.Name{Base: base}).Sizes(); ok {
		return n
	}
	return unknown
}

func cmp64(a, b int64) int {
	if a < b {
		return -1
	}
	return 1
}

// arrived reads the time of delivery from a base name: seconds, then M and microseconds.
func arrived(base string) (sec, usec int64) {
	i := 0
	for ; i < len(base) && base[i] >= '0' && base[i] <= '9' && i < 18; i++ {
		sec = sec*10 + int64(base[i]-'0')
	}
	rest := base[i:]
	if !strings.HasPrefix(rest, ".") {
		return sec, 0
	}
	part, _, _ := strings.Cut(rest[1:], ".")
	j := strings.IndexByte(part, 'M')
	if j < 0 {
		return sec, 0
	}
	for j++; j < len(part) && part[j] >= '0' && part[j] <= '9' && usec < 1e15; j++ {
		usec = usec*10 + int64(part[j]-'0')
	}
	return sec, usec
}

// conclude completes an edit with what a survey found and commits it.
func (w *writer) conclude(e *edit, sv *survey, l *listRead, adds []*fresh, claim bool) error {
	m := w.m
	for _, i := range sv.absent {
		if i < w.st.n {
			_, r := w.st.at(i)
			if err := e.remove(r.uid); err != nil {
				return err
			}
		}
	}
	if err := w.apply(e, sv, l, adds); err != nil {
		return err
	}
	if l.keywords != nil {
		e.setKeywords(l.keywords)
	}
	stamps := sv.before
	stamps[atList], stamps[atKeywords] = l.at, l.keywordsAt
	young := false
	if claim {
		moved, err := w.takeIn(e, sv, &stamps)
		if err != nil {
			return err
		}
		young = moved
	}
	e.head.stamps = stamps
	e.head.lines, e.head.listSum = l.lines, l.sum
	e.head.listBits = 0
	if l.pop3 {
		e.head.listBits = listPOP3
	}
	e.head.verify = 0
	t := m.store.now()
	for _, s := range stamps {
		age := t.UnixNano() - s.mtime
		young = young || s.mtime != 0 && age < int64(settleTime) && age > -int64(time.Hour)
		if s.mtime != 0 && s.mtime%1e9 == 0 && age < 3*int64(settleTime) {
			young = true // a file system that counts whole seconds
		}
	}
	if young {
		e.head.verify = t.Add(settleTime).UnixNano()
	}
	if len(sv.doubt) > 0 {
		e.head.stamps[atCur] = stamp{} // look again
	}
	if err := w.commit(e); err != nil {
		return err
	}
	m.suspect = false
	return nil
}

// apply takes over new looks of messages that the index knows, and the messages that only the
// uidlist knew.
func (w *writer) apply(e *edit, sv *survey, l *listRead, adds []*fresh) error {
	slices.SortFunc(sv.others, func(a, b sighting) int { return a.i - b.i })
	for _, o := range sv.others {
		if o.i < w.st.n {
			_, r := w.st.at(o.i)
			if err := e.change(r.uid, o.look); err != nil {
				return err
			}
			continue
		}
		p := sv.pending[o.i-w.st.n]
		f := &fresh{rec: newRec(p.uid, o.look), base: p.base, suffix: o.suffix, guid: p.guid}
		f.size = wireSize(p.base, p.wire)
		if err := e.add(f); err != nil {
			return err
		}
	}
	for _, f := range adds {
		if err := e.add(f); err != nil {
			return err
		}
	}
	e.head.next = max(e.head.next, l.next)
	if l.rebuilt {
		// What lies in cur/ was seen by somebody; what lies in new/ was not.
		e.head.firstRecent = e.head.next
		for _, c := range e.chunks {
			for i := range c.recs {
				if c.recs[i].bits&bitNew != 0 {
					e.head.firstRecent = min(e.head.firstRecent, c.recs[i].uid)
				}
			}
		}
	}
	return nil
}

// takeIn moves what lies in new/ to cur/.
func (w *writer) takeIn(e *edit, sv *survey, stamps *[places]stamp) (moved bool, err error) {
	m := w.m
	var uids []uint32
	for _, c := range e.chunks {
		for i := range c.recs {
			if c.recs[i].bits&bitNew != 0 {
				uids = append(uids, c.recs[i].uid)
			}
		}
	}
	if len(uids) == 0 {
		return false, nil
	}
	from, to, err := m.openDirs()
	if err != nil {
		return false, err
	}
	defer from.Close()
	defer to.Close()
	now, err := m.look()
	if err != nil {
		return false, err
	}
	for _, uid := range uids {
		k, j, ok := e.mut(uid)
		if !ok {
			continue // gone in this edit
		}
		c := e.chunks[k]
		r := c.recs[j]
		base, err := c.base(&r)
		if err != nil {
			return false, err
		}
		old, err := c.file(nil, &r)
		if err != nil {
			return false, err
		}
		l := look{flags: r.flags, kw: r.kw}
		if err := from.RenameNew(string(old), to, l.file(base)); err != nil {
			continue // somebody else has taken it; the next scan finds out
		}
		if err := e.change(uid, l); err != nil {
			return false, err
		}
	}
	after, err := m.look()
	if err != nil {
		return false, err
	}
	for _, i := range []int{atNew, atCur} {
		if now[i] == stamps[i] {
			stamps[i] = after[i]
		}
	}
	return true, nil
}

// openDirs opens new/ and cur/ for renames.
func (m *Mailbox) openDirs() (from, to *durable.Names, err error) {
	from, err = durable.OpenNames(m.fs(), filepath.Join(m.dir, "new"))
	if errors.Is(err, fs.ErrNotExist) {
		// The machine has stopped while the folder was made, or it lacks new/ as clean-ups leave it.
		if _, cerr := m.fs().Lstat(filepath.Join(m.dir, "cur")); cerr == nil {
			if err = maildir.Create(m.fs(), m.dir); err == nil {
				from, err = durable.OpenNames(m.fs(), filepath.Join(m.dir, "new"))
			}
		}
	}
	if err == nil {
		if to, err = durable.OpenNames(m.fs(), filepath.Join(m.dir, "cur")); err != nil {
			_ = from.Close() // it was only opened
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("mailbox %s: %w", m.name, err)
	}
	return from, to, nil
}
