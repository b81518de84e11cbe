package mailbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
	"pennypost/internal/message"
)

// maildropLock is the file whose lock a POP3 session holds.
const maildropLock = "pennypost-pop3.lock"

// LockMaildrop keeps other POP3 sessions out, those of other processes too. It returns ErrInUse
// when one is there.
func (m *Mailbox) LockMaildrop(ctx context.Context) (unlock func() error, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := m.fs().OpenFile(filepath.Join(m.indexAt, maildropLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock maildrop: %w", err)
	}
	err = durable.TryLock(f, false)
	if errors.Is(err, durable.ErrLocked) {
		err = ErrInUse
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock maildrop: %w", err), f.Close())
	}
	return f.Close, nil
}

// POP3 lists the maildrop in the order in which POP3 numbers it, with all sizes.
func (v *View) POP3(ctx context.Context) (out []POP3Entry, err error) {
	again := false
	err = v.m.healed(ctx, func() error {
		if again { // with the names that could be read now
			if _, err := v.Sync(ctx); err != nil {
				return err
			}
		}
		again = true
		out, err = v.maildrop(ctx)
		return err
	})
	return out, err
}

func (v *View) maildrop(ctx context.Context) ([]POP3Entry, error) {
	if err := v.Sizes(ctx, []Range{{1, 1<<32 - 1}}); err != nil {
		return nil, err
	}
	out := make([]POP3Entry, 0, v.st.n)
	var err error
	v.st.each(0, v.st.n, func(_ int, c *chunk, r *rec) bool {
		var base, guid string
		if base, err = c.base(r); err == nil {
			guid, err = c.emailID(r)
		}
		if r.size >= 0 { // else the file is gone, or nobody can read it
			out = append(out, POP3Entry{UID: r.uid, Size: r.size, GUID: guid, Base: base})
		}
		return err == nil
	})
	if err != nil {
		return nil, fmt.Errorf("list maildrop: %w", err)
	}
	if v.st.listBits&listPOP3 != 0 {
		if err := v.keys(out); err != nil {
			return nil, fmt.Errorf("list maildrop: %w", err)
		}
	}
	return out, nil
}

// keys reads the P and O keys of the uidlist. Messages that Courier had numbered keep their
// order; the others follow by UID.
func (v *View) keys(out []POP3Entry) error {
	w := &writer{m: v.m}
	data, err := w.readListFile()
	if err != nil {
		return err
	}
	i := 0
	list := &maildir.UIDList{}
	err = list.Parse(data, func(e *maildir.UIDEntry) {
		for i < len(out) && out[i].UID < e.UID {
			i++
		}
		if i < len(out) && out[i].UID == e.UID {
			out[i].Key, out[i].Order = e.POP3, e.Order
		}
	})
	slices.SortStableFunc(out, func(a, b POP3Entry) int {
		switch {
		case (a.Order == 0) != (b.Order == 0): // those without order are younger
			return cmp.Compare(b.Order, a.Order)
		case a.Order != b.Order:
			return cmp.Compare(a.Order, b.Order)
		}
		return cmp.Compare(a.UID, b.UID)
	})
	return err
}

// SetPOP3Keys keeps UIDLs for good.
func (v *View) SetPOP3Keys(ctx context.Context, keys map[uint32]string) error {
	err := v.m.write(ctx, func(w *writer) error {
		if err := v.same(w); err != nil {
			return err
		}
		lock, err := w.m.lockList(ctx)
		if err != nil {
			return err
		}
		defer w.m.unlockList(lock)
		path := filepath.Join(w.m.control, maildir.UIDListName)
		was, err := w.m.lstat(path)
		if err != nil {
			return err
		}
		data, err := w.readListFile()
		if err != nil {
			return err
		}
		list := &maildir.UIDList{}
		if err := list.Parse(data, nil); err != nil {
			return err
		}
		for i := range list.Entries {
			if k, ok := keys[list.Entries[i].UID]; ok {
				list.Entries[i].POP3 = k
			}
		}
		list.Next = max(list.Next, w.st.next)
		list.Ceiling = max(list.Ceiling, w.st.ceiling)
		b := list.AppendTo(nil)
		if err := w.replaceList(lock, path+".tmp", path, b); err != nil {
			return err
		}
		at, err := w.m.lstat(path)
		if err != nil {
			return err
		}
		e := w.st.edit()
		if was == w.st.stamps[atList] { // else the next scan reads it
			e.head.stamps[atList], e.head.listSum = at, firstLine(b[:min(len(b), 4096)])
		}
		e.head.listBits |= listPOP3
		e.head.lines = uint32(len(list.Entries))
		return w.commit(e)
	})
	if err != nil {
		return fmt.Errorf("keep UIDLs of %s: %w", v.m.name, err)
	}
	return nil
}

// Sizes makes the sizes of the given messages known: those that neither name nor index tell
// are read.
func (v *View) Sizes(ctx context.Context, uids []Range) error {
	return v.learn(ctx, uids, func(r *rec) bool { return r.size < 0 }, true)
}

// Correct keeps sizes of messages that were read and turned out to have others than was known:
// some programs write wrong ones into names.
func (v *View) Correct(ctx context.Context, sizes map[uint32]int64) error {
	facts := make([]learned, 0, len(sizes))
	for uid, size := range sizes {
		facts = append(facts, learned{uid: uid, size: size, internal: unknown, saved: unknown})
	}
	return v.keep(ctx, facts)
}

// Dates makes Internal and Saved of the given messages known.
func (v *View) Dates(ctx context.Context, uids []Range) error {
	return v.learn(ctx, uids, func(r *rec) bool { return r.internal == unknown || r.saved == unknown }, false)
}

// learned is what was found out about a message.
type learned struct {
	uid                   uint32
	size, internal, saved int64
}

func (v *View) learn(ctx context.Context, uids []Range, missing func(*rec) bool, read bool) error {
	var todo []uint32
	v.st.within(uids, func(_ int, _ *chunk, r *rec) bool {
		if missing(r) {
			todo = append(todo, r.uid)
		}
		return true
	})
	if len(todo) == 0 {
		return nil
	}
	facts := make([]learned, 0, len(todo))
	for n, uid := range todo {
		if n%64 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		f, err := v.ask(ctx, uid, read)
		if errors.Is(err, ErrExpunged) {
			continue
		}
		if unreadable(err) { // one of them is no reason to show none
			v.m.store.log.Warn("a message cannot be read", "mailbox", v.m.name, "uid", uid, "err", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("read message %d of %s: %w", uid, v.m.name, err)
		}
		facts = append(facts, f)
	}
	return v.keep(ctx, facts)
}

// ask looks at a message's file.
func (v *View) ask(ctx context.Context, uid uint32, read bool) (learned, error) {
	l := learned{uid: uid, size: unknown}
	b, err := v.m.openMessage(ctx, v.st, uid)
	if err != nil {
		return l, err
	}
	i, err := b.Stat()
	if err == nil {
		l.internal, l.saved = i.ModTime().Unix(), changed(i)
		if read {
			l.size, _, err = message.WireSize(b)
		}
	}
	return l, errors.Join(err, b.Close())
}

// keep puts what was found out into the index and into the view.
func (v *View) keep(ctx context.Context, facts []learned) error {
	put := func(st *state) (*edit, error) {
		e := st.edit()
		for _, f := range facts {
			i, ok := st.find(f.uid)
			if !ok {
				continue
			}
			_, r := st.at(i)
			if f.size < 0 {
				f.size = r.size
			}
			if r.internal != unknown {
				f.internal = r.internal
			}
			if r.saved != unknown {
				f.saved = r.saved
			}
			if f.size == r.size && f.internal == r.internal && f.saved == r.saved {
				continue
			}
			if err := e.learn(f.uid, f.size, f.internal, f.saved); err != nil {
				return nil, err
			}
		}
		return e, nil
	}
	same := false
	err := v.m.write(ctx, func(w *writer) error {
		if err := v.same(w); err != nil {
			return err
		}
		same = w.st == v.st
		e, err := put(w.st)
		if err != nil {
			return err
		}
		if err := w.commit(e); err != nil {
			return err
		}
		if same {
			v.st = w.st
		}
		return nil
	})
	if err != nil && !barred(err) && !noRoom(err) || same {
		return err
	}
	e, err := put(v.st)
	if err != nil {
		return err
	}
	v.st = e.done()
	return nil
}
