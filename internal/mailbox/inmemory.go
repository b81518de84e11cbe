package mailbox

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"syscall"
)

// A folder is looked at without writing anything where there is no room, or no right to write:
// mail can be read then, and with the right, deleted. Messages that have no UID yet are left out.

func noRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// barred tells whether err says that this user may not write here.
func barred(err error) bool {
	return errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission)
}

// freshenAnyhow is freshen that goes on in memory where nothing can be written.
func (w *writer) freshenAnyhow(ctx context.Context, claim bool) error {
	if w.bare {
		now, err := w.m.look()
		if err != nil || w.st != nil && !w.m.suspect && w.st.current(&now, w.m.store.now()) {
			return err
		}
		return w.scanInMemory(ctx, false)
	}
	st := w.st
	err := w.freshen(ctx, claim)
	if !noRoom(err) {
		return err
	}
	w.st = st
	if merr := w.scanInMemory(ctx, claim); merr != nil {
		return errors.Join(err, merr)
	}
	w.m.store.log.Warn("there is no room for the index of a mailbox", "mailbox", w.m.name, "err", err)
	return nil
}

// withoutLock is refresh for who may not write.
func (m *Mailbox) withoutLock(ctx context.Context) (*state, error) {
	w := &writer{m: m, st: m.st.Load(), bare: true}
	err := w.freshenAnyhow(ctx, false)
	return w.st, err
}

// scanInMemory is a scan that gives no UIDs and reserves no MODSEQs.
func (w *writer) scanInMemory(ctx context.Context, claim bool) error {
	m := w.m
	l, err := w.readList()
	if err != nil {
		return err
	}
	sv, err := w.survey(ctx, l)
	if err != nil {
		return err
	}
	e := w.st.edit()
	e.whole = l.rebuilt
	var adds []*fresh
	left := len(sv.unknown)
	if l.unlisted { // no list, no promise
		adds, left = w.number(e, l, sv.unknown), 0
	}
	if l.jump || e.head.modseq+2 > e.head.ceiling {
		if err := w.raiseInMemory(e, l); err != nil {
			return err
		}
	}
	if err := w.conclude(e, sv, l, adds, claim); err != nil {
		return err
	}
	if left > 0 && !w.bare { // look again soon: there may be room for UIDs
		st := *w.st
		st.verify = m.store.now().Add(settleTime).UnixNano()
		w.st = &st
		m.publish(&st)
	}
	return nil
}

var errNoModSeq = errors.New("no MODSEQ is left of those that are reserved")

// raiseInMemory goes on above what clients have heard and below the ceiling. In this run of the
// machine the lock file knows what they heard; after another one half of what is reserved is
// skipped, since more changes than that are not lost with a machine.
func (w *writer) raiseInMemory(e *edit, l *listRead) error {
	low := w.m.told
	if !l.rebuilt {
		low = max(low, w.st.modseq)
	}
	n, sure := w.m.counted(e.head.validity)
	low = max(low, n)
	top := max(l.oldCeiling, w.st.ceiling)
	next := low + 1
	if l.jump && !sure && top > low {
		next = low + (top-low)/2
	}
	if next+2 > top {
		if !w.bare {
			return errNoModSeq
		}
		top = next + modseqBlock
	}
	e.head.ceiling = top
	if l.jump {
		e.head.modseq = next
		e.forget()
		e.raise()
	}
	return nil
}

// drift keeps a state that the index does not have.
func (w *writer) drift(st *state) error {
	m := w.m
	at, err := m.lstat(filepath.Join(m.indexAt, indexName))
	if err != nil {
		return err
	}
	m.adrift, m.seen, w.st = true, at, st
	m.unsaid = m.unsaid || w.bare
	m.publish(st)
	return nil
}

// counted is the MODSEQ that the lock file knows; sure tells whether it was written in this run
// of the machine.
func (m *Mailbox) counted(validity uint32) (n uint64, sure bool) {
	if err := m.openLock(); err != nil {
		return 0, false // whoever cannot open it cannot write either
	}
	le := binary.LittleEndian
	b := make([]byte, 28)
	k, _ := m.lockFile.ReadAt(b, 0)
	if k < 16 || le.Uint32(b[12:]) != crc32.Checksum(b[:12], castagnoli()) || le.Uint32(b[8:]) != validity {
		return 0, false
	}
	sure = k == len(b) && le.Uint32(b[24:]) == crc32.Checksum(b[:24], castagnoli()) && le.Uint64(b[16:]) == m.store.boot
	return le.Uint64(b), sure
}

// count notes the MODSEQ in the lock file, so that an old copy of the index is recognised.
// Failing is ignored: it is the second of two checks.
func (w *writer) count(st *state) {
	le := binary.LittleEndian
	b := le.AppendUint64(make([]byte, 0, 28), st.modseq)
	b = le.AppendUint32(b, st.validity)
	b = le.AppendUint32(b, crc32.Checksum(b, castagnoli()))
	b = le.AppendUint64(b, w.m.store.boot)
	b = le.AppendUint32(b, crc32.Checksum(b, castagnoli()))
	_, _ = w.m.lockFile.WriteAt(b, 0)
}
