package mailbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// modseqBlock is how many MODSEQs are reserved at a time.
const modseqBlock = 1 << 20

const (
	// deadMin and a quarter of all lines must be of messages that are gone before the uidlist is
	// written anew for that alone.
	deadMin = 1000
	maxList = 1 << 30
)

// listRead is what the uidlist and the keyword file say that the state does not.
type listRead struct {
	at, keywordsAt stamp
	keywords       []string // nil: as in the state
	pending        []listed // lines of messages that the state does not have
	uids           []uint32 // of all lines, when all were read
	size           int64    // octets of whole lines
	next           uint32   // no UID from here on was ever used
	lines          uint32
	oldCeiling     uint64
	torn           bool // something follows the whole lines
	full           bool
	rewrite        bool // the list must be written anew
	jump           bool // MODSEQs start above the ceiling
	unlisted       bool // there is no list, and none can be made
	rebuilt        bool // there was no state to compare with
	aside          bool // the file is of no use: it is put aside
	pop3           bool
	sum            uint32 // of the first line
}

func (m *Mailbox) lockList(ctx context.Context) (*maildir.UIDLock, error) {
	l, err := maildir.LockUIDList(ctx, m.fs(), m.control, maildir.LockOptions{})
	if errors.Is(err, fs.ErrNotExist) && m.control != m.dir {
		if err = durable.MkdirAllOn(m.fs(), m.control, 0o700); err == nil {
			l, err = maildir.LockUIDList(ctx, m.fs(), m.control, maildir.LockOptions{})
		}
	}
	if err != nil {
		return nil, fmt.Errorf("mailbox %s: %w", m.name, err)
	}
	return l, nil
}

func (m *Mailbox) unlockList(l *maildir.UIDLock) {
	if err := l.Unlock(); err != nil {
		m.store.log.Warn("the lock of a uidlist was lost", "mailbox", m.name, "err", err)
	}
}

// readList reads what is new in the uidlist. Where there is no state, or the list contradicts
// it, the writer gets an empty one and everything is pending.
func (w *writer) readList() (*listRead, error) {
	m := w.m
	l := &listRead{jump: m.suspect}
	var err error
	if l.at, err = m.lstat(filepath.Join(m.control, maildir.UIDListName)); err != nil {
		return nil, err
	}
	if l.keywordsAt, err = m.lstat(filepath.Join(m.control, maildir.KeywordsName)); err != nil {
		return nil, err
	}
	if w.st == nil || l.keywordsAt != w.st.stamps[atKeywords] {
		if l.keywords, err = m.readKeywords(); err != nil {
			return nil, err
		}
	}
	if w.st != nil {
		was := w.st.stamps[atList]
		l.next, l.lines, l.oldCeiling, l.size = w.st.next, w.st.lines, w.st.ceiling, was.size
		l.pop3, l.sum = w.st.listBits&listPOP3 != 0, w.st.listSum
		switch {
		case m.suspect:
		case was.ino == 0 || was.ino != l.at.ino || l.at.size < was.size:
		case was == l.at:
			return l, nil
		case l.at.size > was.size:
			if ok, err := w.readTail(l); ok || err != nil {
				return l, err
			}
		}
	}
	return l, w.readAll(l)
}

func (m *Mailbox) readKeywords() ([]string, error) {
	b, err := m.readFile(filepath.Join(m.control, maildir.KeywordsName), 1<<20)
	if err != nil {
		return nil, err
	}
	k, damage := maildir.ParseKeywords(b)
	for _, d := range damage {
		m.store.log.Warn("a line of dovecot-keywords cannot be read", "mailbox", m.name, "err", d.Why)
	}
	return k[:], nil
}

// readFile reads a small file whole; one that is not there is empty.
func (m *Mailbox) readFile(path string, limit int64) ([]byte, error) {
	f, err := m.fs().OpenFile(path, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	return b, errors.Join(err, f.Close())
}

// readTail reads the lines that were appended since the state was made; false: the file is
// another one in spite of its number.
func (w *writer) readTail(l *listRead) (bool, error) {
	f, err := w.m.fs().OpenFile(filepath.Join(w.m.control, maildir.UIDListName), os.O_RDONLY, 0)
	if err != nil {
		return false, err
	}
	first := make([]byte, min(l.size, 4096))
	b := make([]byte, l.at.size-l.size+1)
	_, err = readAtFull(f, first, 0)
	n := 0
	if err == nil {
		n, err = f.ReadAt(b, l.size-1)
		if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil // a shorter one has taken its place since
		n = 0
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	if n == 0 || b[0] != '\n' || firstLine(first) != l.sum {
		return false, nil
	}
	list := &maildir.UIDList{Version: 3, Validity: w.st.validity, Next: w.st.next, Last: w.st.next - 1, Size: l.size}
	return true, w.take(l, list, string(b[1:n]), w.st.next)
}

// firstLine is the checksum of the first line.
func firstLine(b []byte) uint32 {
	line, _, _ := bytes.Cut(b, []byte{'\n'})
	return crc32.Checksum(line, castagnoli())
}

// take parses lines; those with UIDs from first on are pending.
func (w *writer) take(l *listRead, list *maildir.UIDList, data string, first uint32) error {
	err := list.Parse(data, func(e *maildir.UIDEntry) {
		l.lines++
		l.pop3 = l.pop3 || e.POP3 != "" || e.Order != 0
		if l.full {
			l.uids = append(l.uids, e.UID)
		}
		if e.UID >= first {
			l.pending = append(l.pending, listed{e.UID, e.Wire, e.Base, e.GUID})
			return
		}
		if l.full && w.st != nil {
			if i, ok := w.st.find(e.UID); ok {
				c, r := w.st.at(i)
				base, err := c.base(r)
				l.rebuilt = l.rebuilt || err != nil || base != e.Base // the list is right
			}
		}
	})
	for _, d := range list.Damage {
		w.m.store.log.Warn("a line of dovecot-uidlist cannot be read", "mailbox", w.m.name, "err", d.Why)
	}
	l.size, l.torn = list.Size, list.Tail > 0
	l.next = max(l.next, list.Next)
	return err
}

func (w *writer) readListFile() (string, error) {
	f, err := w.m.fs().OpenFile(filepath.Join(w.m.control, maildir.UIDListName), os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	if i, err := f.Stat(); err == nil {
		b.Grow(int(min(max(i.Size(), 0), maxList)))
	}
	_, err = io.Copy(&b, io.LimitReader(f, maxList))
	return b.String(), errors.Join(err, f.Close())
}

// readAll reads the whole list and decides whether the state agrees with it.
func (w *writer) readAll(l *listRead) error {
	m := w.m
	l.full, l.lines, l.uids = true, 0, nil
	data, err := w.readListFile()
	if errors.Is(err, fs.ErrNotExist) {
		l.at, l.rewrite, err = stamp{}, true, nil
	}
	if err != nil {
		return err
	}
	l.sum = firstLine([]byte(data[:min(len(data), 4096)]))
	l.pending = make([]listed, 0, len(data)/80)
	l.uids = make([]uint32, 0, len(data)/80)
	list := &maildir.UIDList{}
	if w.st != nil {
		list.Next = w.st.next // Parse only raises it
		if err := w.take(l, list, data, w.st.next); err != nil {
			return fmt.Errorf("mailbox %s: %w", m.name, err)
		}
		switch {
		case list.Validity == 0:
			l.rewrite = true // lost with the file or its first line; the state still knows it
		case list.Validity != w.st.validity:
			l.rebuilt = true
		}
		if !l.rebuilt {
			w.agree(l, list)
			return nil
		}
		m.store.log.Warn("the uidlist of a mailbox was replaced", "mailbox", m.name)
		*l = listRead{at: l.at, keywordsAt: l.keywordsAt, keywords: l.keywords, full: true, sum: l.sum}
		if l.keywords == nil {
			if l.keywords, err = m.readKeywords(); err != nil {
				return err
			}
		}
		w.st, list = nil, &maildir.UIDList{}
	}
	if err := w.take(l, list, data, 0); err != nil {
		return fmt.Errorf("mailbox %s: %w", m.name, err)
	}
	return w.begin(l, list)
}

// agree takes over what the header of a list says that belongs to the state.
func (w *writer) agree(l *listRead, list *maildir.UIDList) {
	l.rewrite = l.rewrite || list.Version != 3
	switch {
	case list.Ceiling > w.st.ceiling: // reserved by somebody whose index is not this one
		l.jump, l.oldCeiling = true, list.Ceiling
	case list.Ceiling < w.st.ceiling:
		l.rewrite = true
	}
}

// begin makes the state that the messages are added to.
func (w *writer) begin(l *listRead, list *maildir.UIDList) error {
	m := w.m
	l.rebuilt, l.jump, l.rewrite = true, true, true
	st := &state{guid: list.GUID}
	st.validity, st.next = list.Validity, 1
	if list.Validity == 0 && w.bare {
		l.unlisted = true
		st.validity = max(uint32(m.store.now().Unix()), 1) // of this process alone
		l.pending, l.uids, l.next, l.lines, l.size = nil, nil, 1, 0, 0
	} else if list.Validity == 0 {
		v, err := maildir.NextUIDValidity(m.fs(), m.store.tree.ControlRoot(), m.store.now())
		if err != nil {
			return fmt.Errorf("mailbox %s: %w", m.name, err)
		}
		st.validity = v
		l.aside = l.at != stamp{}
		l.pending, l.uids, l.next, l.lines, l.size = nil, nil, 1, 0, 0
	}
	l.next = max(l.next, 1)
	l.oldCeiling = max(list.Ceiling, m.told)
	st.modseq, st.ceiling = l.oldCeiling, l.oldCeiling
	w.st = st
	return nil
}

// missed has the list written anew when messages of the state are not in it: it was restored
// from an old copy, or damaged.
func (w *writer) missed(l *listRead, sv *survey) {
	if !l.full || l.rebuilt {
		return
	}
	i, k := 0, 0
	for _, c := range w.st.chunks {
		for j := range c.recs {
			uid := c.recs[j].uid
			for k < len(l.uids) && l.uids[k] < uid {
				k++
			}
			if (k == len(l.uids) || l.uids[k] != uid) && sv.has(i) {
				l.rewrite = true
				return
			}
			i++
		}
	}
}

// writeList makes UIDs and reserved MODSEQs durable. The list's lock is held.
func (w *writer) writeList(lock *maildir.UIDLock, e *edit, l *listRead, sv *survey, adds []*fresh) error {
	h := &e.head
	if l.jump {
		h.modseq = max(l.oldCeiling, w.st.ceiling, w.st.modseq, w.m.told) + 1
		h.ceiling = h.modseq + modseqBlock
		l.rewrite = true
	} else if h.modseq+2 > h.ceiling {
		h.ceiling = h.modseq + modseqBlock
		l.rewrite = true
	}
	dead := int64(l.lines) - int64(w.st.n) - int64(len(l.pending))
	if dead > deadMin && dead > int64(l.lines)/4 && !l.rebuilt {
		l.rewrite = true
	}
	var err error
	switch {
	case l.rewrite:
		err = w.rewriteList(lock, e, l, sv, adds)
	case len(adds) > 0 || l.torn:
		err = w.appendList(lock, l, adds)
	default:
		return nil
	}
	if err != nil {
		return fmt.Errorf("mailbox %s: write uidlist: %w", w.m.name, err)
	}
	l.at, err = w.m.lstat(filepath.Join(w.m.control, maildir.UIDListName))
	return err
}

func entryOf(f *fresh) maildir.UIDEntry {
	e := maildir.UIDEntry{UID: f.uid, Base: f.base, File: f.base, Size: -1, Wire: -1, GUID: f.guid}
	if _, _, _, ok := (maildir.Name{Base: f.base}).Sizes(); !ok && f.size >= 0 {
		e.Wire = f.size
	}
	return e
}

// appendList adds lines behind the last whole one.
func (w *writer) appendList(lock *maildir.UIDLock, l *listRead, adds []*fresh) error {
	// Whoever was stopped for so long that others took the lock away would write over their lines.
	if err := lock.Held(); err != nil {
		return err
	}
	f, err := w.m.fs().OpenFile(filepath.Join(w.m.control, maildir.UIDListName), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b []byte
	for _, a := range adds {
		e := entryOf(a)
		e.POP3 = a.pop3
		b = maildir.AppendEntry(b, &e)
		l.pop3 = l.pop3 || a.pop3 != ""
	}
	if l.torn {
		// UIDs of a line that was not finished were never told to anybody.
		err = f.Truncate(l.size)
	}
	if err == nil && len(b) > 0 {
		_, err = f.WriteAt(b, l.size)
	}
	if err == nil {
		err = durable.Sync(f)
	}
	if err != nil {
		// Ignored: the next writer cuts a line that is not whole, and whole ones use up UIDs.
		_ = f.Truncate(l.size)
	}
	l.size += int64(len(b))
	l.lines += uint32(len(adds))
	return errors.Join(err, f.Close())
}

// rewriteList replaces the list: without lines of messages that are gone, and with those that
// the state knows and the list has lost.
func (w *writer) rewriteList(lock *maildir.UIDLock, e *edit, l *listRead, sv *survey, adds []*fresh) error {
	m := w.m
	path := filepath.Join(m.control, maildir.UIDListName)
	old := &maildir.UIDList{Entries: make([]maildir.UIDEntry, 0, l.lines)}
	if l.at != (stamp{}) && !l.aside {
		data, err := w.readListFile()
		if err == nil {
			err = old.Parse(data, nil)
		}
		if err != nil {
			return err
		}
	}
	if l.aside {
		aside := path + ".unreadable." + strconv.FormatInt(m.store.now().Unix(), 10)
		if err := m.fs().RenameNew(path, aside); err != nil {
			return err
		}
		m.store.log.Warn("a uidlist that cannot be read was put aside", "mailbox", m.name, "err", aside)
	}
	out := &maildir.UIDList{Validity: e.head.validity, Ceiling: e.head.ceiling, GUID: old.GUID, Extra: old.Extra}
	if out.GUID == "" {
		out.GUID = w.st.guid
	}
	if out.GUID == "" {
		out.GUID = newGUID()
	}
	if e.guid != out.GUID {
		e.setGUID(out.GUID)
	}
	out.Entries = w.merged(old.Entries, l, sv, adds)
	out.Next = max(l.next, w.st.next, e.head.next)
	for i := range adds {
		l.pop3 = l.pop3 || adds[i].pop3 != ""
	}
	tmp := path + ".tmp" // under the lock: nobody else makes one
	b := out.AppendTo(make([]byte, 0, len(out.Entries)*100+200))
	if err := w.replaceList(lock, tmp, path, b); err != nil {
		return err
	}
	l.lines, l.size, l.sum = uint32(len(out.Entries)), int64(len(b)), firstLine(b[:min(len(b), 4096)])
	return nil
}

func (w *writer) replaceList(lock *maildir.UIDLock, tmp, path string, b []byte) error {
	fsys := w.m.fs()
	f, err := fsys.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = durable.Sync(f)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = lock.Held()
	}
	if err == nil {
		err = fsys.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, fsys.Remove(tmp))
	}
	return durable.SyncDirOn(fsys, filepath.Dir(path))
}

// merged are the lines of a new list.
func (w *writer) merged(old []maildir.UIDEntry, l *listRead, sv *survey, adds []*fresh) []maildir.UIDEntry {
	out := make([]maildir.UIDEntry, 0, len(old)+len(adds))
	i := 0 // index in the state
	next := func(limit uint32) {
		for ; i < w.st.n; i++ {
			c, r := w.st.at(i)
			if r.uid >= limit {
				return
			}
			if sv != nil && !sv.has(i) {
				continue
			}
			base, err := c.base(r)
			if err != nil {
				continue // the survey has read all names
			}
			guid, _ := c.guid(r)
			out = append(out, entryOf(&fresh{rec: *r, base: base, guid: guid}))
		}
	}
	for _, e := range old {
		next(e.UID)
		if i < w.st.n {
			if _, r := w.st.at(i); r.uid == e.UID {
				i++
				out = append(out, e)
				continue
			}
		}
		if l.rebuilt || e.UID >= w.st.next {
			out = append(out, e)
		}
	}
	next(1<<32 - 1)
	for _, a := range adds {
		e := entryOf(a)
		e.POP3 = a.pop3
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b maildir.UIDEntry) int { return int(int64(a.UID) - int64(b.UID)) })
	return out
}
