package mailbox

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"pennypost/internal/maildir"
)

// repair does what the problems need, as the only writer of the index.
func (k *folderCheck) repair(ctx context.Context, found []problem) error {
	m := k.m
	if err := m.enter(ctx); err != nil {
		return err
	}
	defer m.leave()
	unlock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.catchUp(true); err != nil {
		return err
	}
	errs := []error{k.fix(ctx, found)}
	w := &writer{m: m, st: m.st.Load()}
	mend := false
	for _, p := range found {
		mend = mend || p.mend
		if p.drop {
			m.dropIndex()
			m.suspect, w.st = true, nil
		}
	}
	if !mend {
		return errors.Join(errs...)
	}
	errs = append(errs, w.tidyList(ctx, k.wires))
	if err := w.mend(ctx); err != nil {
		return errors.Join(append(errs, err)...)
	}
	if len(k.wires) > 0 { // once more: messages that were new have lines now
		errs = append(errs, w.tidyList(ctx, k.wires), w.learnSizes(k.wires))
	}
	return errors.Join(errs...)
}

// mend is a scan that believes nothing and writes the uidlist anew.
func (w *writer) mend(ctx context.Context) error {
	m := w.m
	lock, err := m.lockList(ctx)
	if err != nil {
		return err
	}
	defer m.unlockList(lock)
	if w.st != nil {
		st := *w.st
		st.stamps = [places]stamp{}
		w.st = &st
	}
	if err := w.takeOver(ctx, lock); err != nil {
		return err
	}
	l, err := w.readList()
	if err != nil {
		return err
	}
	sv, err := w.survey(ctx, l)
	if err != nil {
		return err
	}
	l.rewrite = true
	e := w.st.edit()
	e.whole = true
	adds := w.number(e, l, sv.unknown)
	if err := w.writeList(lock, e, l, sv, adds); err != nil {
		return err
	}
	if l.jump {
		e.forget()
	}
	return w.conclude(e, sv, l, adds, false)
}

// tidyList puts sizes into the uidlist, and takes lines out of it whose message has a later one.
func (w *writer) tidyList(ctx context.Context, wires map[string]int64) error {
	m := w.m
	lock, err := m.lockList(ctx)
	if err != nil {
		return err
	}
	defer m.unlockList(lock)
	path := filepath.Join(m.control, maildir.UIDListName)
	data, err := w.readListFile()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	list := new(maildir.UIDList)
	if err := list.Parse(data, nil); err != nil || list.Validity == 0 {
		return err // without a header there is nothing to tidy; the next check does it
	}
	last := make(map[string]uint32, len(list.Entries))
	for i := range list.Entries {
		last[list.Entries[i].Base] = list.Entries[i].UID
	}
	before := len(list.Entries)
	list.Entries = slices.DeleteFunc(list.Entries, func(e maildir.UIDEntry) bool { return last[e.Base] != e.UID })
	changed := len(list.Entries) != before
	for i := range list.Entries {
		e := &list.Entries[i]
		if wire, ok := wires[e.Base]; ok && wire >= 0 && e.Wire != wire {
			e.Wire, changed = wire, true
		}
	}
	if !changed {
		return nil
	}
	return w.replaceList(lock, path+".tmp", path, list.AppendTo(nil))
}

// learnSizes puts sizes into the index.
func (w *writer) learnSizes(wires map[string]int64) error {
	e := w.st.edit()
	for _, c := range w.st.chunks {
		for i := range c.recs {
			r := c.recs[i]
			base, err := c.base(&r)
			if err != nil {
				return err
			}
			if wire, ok := wires[base]; ok && wire >= 0 && wire != r.size {
				if err := e.learn(r.uid, wire, r.internal, r.saved); err != nil {
					return err
				}
			}
		}
	}
	return w.commit(e)
}
