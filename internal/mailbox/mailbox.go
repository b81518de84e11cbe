package mailbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

const (
	indexName = "pennypost-index"
	indexLock = "pennypost-index.lock"
	indexTmp  = "pennypost-index.tmp"
)

// Mailbox is one folder. It may be used by any number of goroutines.
type Mailbox struct {
	store                 *Store
	name                  string
	dir, control, indexAt string
	refs                  int // guarded by store.mu

	subs      subscribers
	cacheOnce sync.Once
	cache     *cache

	sem chan struct{} // held by the one goroutine that looks at or changes the folder
	st  atomic.Pointer[state]

	// What follows is guarded by sem.
	file     durable.File // the index; nil: none
	seen     stamp        // of the index at the last look
	base     int64        // where its log begins
	end      int64        // and where the last whole record ends
	memory   bool         // the index is of a later release, which is not to be disturbed
	adrift   bool         // the state is ahead of the index, for which there was no room
	unsaid   bool         // MODSEQs were told that nobody wrote down
	suspect  bool         // the index may have lost records: MODSEQ goes on above the ceiling
	told     uint64       // highest MODSEQ that somebody in this process knows
	lockFile durable.File
	missing  map[uint32]int // scans in a row that did not find a message
}

func (m *Mailbox) fs() durable.FS { return m.store.fs }

// enter waits for the other goroutines of this process.
func (m *Mailbox) enter(ctx context.Context) error {
	select {
	case m.sem <- struct{}{}:
		return nil
	default:
	}
	select {
	case m.sem <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *Mailbox) leave() { <-m.sem }

func inode(i fs.FileInfo) uint64 {
	if st, ok := i.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Ino)
	}
	return 0
}

func stampOf(i fs.FileInfo) stamp {
	return stamp{i.ModTime().UnixNano(), inode(i), i.Size()}
}

// lstat is the stamp of a path; the zero stamp when nothing is there.
func (m *Mailbox) lstat(path string) (stamp, error) {
	i, err := m.fs().Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return stamp{}, nil
	}
	if err != nil {
		return stamp{}, err
	}
	return stampOf(i), nil
}

// look takes the stamps of the four places. The dot makes lstat follow a link.
func (m *Mailbox) look() (s [places]stamp, err error) {
	for i, p := range [places]string{
		filepath.Clean(m.dir) + "/new/.", filepath.Clean(m.dir) + "/cur/.",
		filepath.Join(m.control, maildir.UIDListName), filepath.Join(m.control, maildir.KeywordsName),
	} {
		if s[i], err = m.lstat(p); err != nil {
			return s, err
		}
		if i == atCur && s[i] == (stamp{}) {
			return s, fmt.Errorf("%s: %w", m.dir, ErrNotFound)
		}
		if i <= atCur {
			s[i].size = 0 // of a directory it tells nothing that its time does not
		}
	}
	return s, nil
}

// catchUp reads what others have written into the index. Only the owner of the lock may
// conclude that an unfinished record will stay so.
func (m *Mailbox) catchUp(owner bool) error {
	if m.memory {
		return nil
	}
	at, err := m.lstat(filepath.Join(m.indexAt, indexName))
	if err != nil {
		return err
	}
	switch {
	case m.adrift && at == m.seen:
		return nil // the state is ahead of the file, for which there was no room
	case at == (stamp{}):
		m.dropIndex()
		return nil
	case m.adrift:
		return m.load(owner)
	case m.file != nil && at == m.seen && !(owner && at.size != m.end):
		return nil
	case m.file == nil || at.ino != m.seen.ino || at.size < m.end || m.st.Load() == nil:
		return m.load(owner)
	}
	b := make([]byte, at.size-m.end)
	if _, err := readAtFull(m.file, b, m.end); err != nil {
		return m.load(owner) // it was cut meanwhile
	}
	e := m.st.Load().edit()
	used, err := e.replay(b)
	if err != nil && !errors.Is(err, errTorn) {
		m.damaged(err)
		return nil
	}
	m.end += used
	m.seen = at
	if used > 0 {
		m.publish(e.done())
	}
	return m.torn(err, owner)
}

// torn cuts what a dead writer has left behind the last whole record.
func (m *Mailbox) torn(err error, owner bool) error {
	if err == nil {
		return nil
	}
	m.seen.size = m.end // look again
	if !owner {
		return nil
	}
	m.suspect = true
	return m.file.Truncate(m.end)
}

func (m *Mailbox) publish(s *state) {
	m.told = max(m.told, s.modseq)
	m.st.Store(s)
}

// healed calls fn again when it failed because names could not be read.
func (m *Mailbox) healed(ctx context.Context, fn func() error) error {
	err := fn()
	if !errors.Is(err, errDamaged) {
		return err
	}
	if err := m.enter(ctx); err != nil {
		return err
	}
	err = m.heal(ctx)
	m.leave()
	if err != nil {
		return err
	}
	return fn()
}

// dropIndex forgets a state that no file backs. The file is left to the collector, which closes
// it when no view needs names from it any more.
func (m *Mailbox) dropIndex() {
	m.file, m.seen, m.end, m.adrift = nil, stamp{}, 0, false
	m.st.Store(nil)
}

// damaged is dropIndex for a file that is there but of no use.
func (m *Mailbox) damaged(err error) {
	m.store.log.Warn("the index of a mailbox is built anew", "mailbox", m.name, "err", err)
	m.dropIndex()
}

// load reads the index from its beginning.
func (m *Mailbox) load(owner bool) error {
	m.dropIndex()
	f, err := m.fs().OpenFile(filepath.Join(m.indexAt, indexName), os.O_RDWR, 0)
	if barred(err) {
		f, err = m.fs().OpenFile(filepath.Join(m.indexAt, indexName), os.O_RDONLY, 0)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil // it is not for us
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	at := stampOf(info)
	sn, err := readSnapshot(f, at.size)
	if errors.Is(err, errNewer) {
		m.memory = true
		m.store.log.Warn("a later release keeps the index of a mailbox; it is not used", "mailbox", m.name)
		return f.Close()
	}
	if err != nil {
		m.damaged(err)
		return f.Close()
	}
	b := make([]byte, at.size-sn.log)
	if _, err := readAtFull(f, b, sn.log); err != nil {
		m.damaged(err)
		return f.Close()
	}
	st := sn.st
	used := int64(0)
	if len(b) > 0 {
		e := st.edit()
		used, err = e.replay(b)
		if err != nil && !errors.Is(err, errTorn) {
			m.damaged(err)
			return f.Close()
		}
		st = e.done()
	}
	m.file, m.seen, m.base, m.end = f, at, sn.log, sn.log+used
	m.suspect = m.suspect || sn.inode != at.ino || st.boot != m.store.boot || st.modseq < m.told || m.counter(st)
	m.publish(st)
	return m.torn(err, owner)
}

// counter tells whether the lock file knows of a later MODSEQ than the index: then the index is
// an old copy.
func (m *Mailbox) counter(st *state) bool {
	n, _ := m.counted(st.validity)
	return n > st.modseq
}

func (m *Mailbox) openLock() error {
	if m.lockFile != nil {
		return nil
	}
	p := filepath.Join(m.indexAt, indexLock)
	f, err := m.fs().OpenFile(p, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) && m.indexAt != m.dir {
		if err = durable.MkdirAllOn(m.fs(), m.indexAt, 0o700); err == nil {
			f, err = m.fs().OpenFile(p, os.O_RDWR|os.O_CREATE, 0o600)
		}
	}
	if err != nil {
		return err
	}
	m.lockFile = f
	return nil
}

// lock excludes writers of the index in other processes. sem is held.
func (m *Mailbox) lock(ctx context.Context) (unlock func(), err error) {
	for {
		err := m.openLock()
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%s: %w", m.dir, ErrNotFound)
		}
		if err != nil {
			return nil, fmt.Errorf("lock index: %w", err)
		}
		unlock, err := m.lockOpen(ctx)
		if err != nil || m.lockStands() {
			m.suspect, m.unsaid = m.suspect || m.unsaid, false
			return unlock, err
		}
		// The folder was removed, and maybe made again: others lock another file.
		err = m.lockFile.Close()
		m.lockFile = nil
		if err = errors.Join(err, ctx.Err()); err != nil {
			return nil, fmt.Errorf("lock index: %w", err)
		}
	}
}

// lockStands tells whether the open lock file is the one that others open.
func (m *Mailbox) lockStands() bool {
	mine, err := m.lockFile.Stat()
	if err != nil {
		return false
	}
	there, err := m.fs().Lstat(filepath.Join(m.indexAt, indexLock))
	return err == nil && durable.SameFile(mine, there)
}

// lockOpen locks the open lock file.
func (m *Mailbox) lockOpen(ctx context.Context) (unlock func(), err error) {
	f := m.lockFile
	err = durable.TryLock(f, false)
	if errors.Is(err, durable.ErrLocked) {
		got := make(chan error, 1)
		go func() { got <- durable.WaitLock(f, false) }()
		select {
		case err = <-got:
		case <-ctx.Done():
			// The wait cannot be broken off: the file is given to it.
			m.lockFile = nil
			go func() {
				<-got
				_ = f.Close()
			}()
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("lock index: %w", err)
	}
	return func() {
		if err := durable.Unlock(f); err != nil {
			m.store.log.Error("an index lock stays", "mailbox", m.name, "err", err)
			_ = f.Close() // which drops it
			m.lockFile = nil
		}
	}, nil
}

// writer is the right to change the folder: sem and the index lock are held, and st is what
// the index says.
type writer struct {
	m    *Mailbox
	st   *state
	bare bool // without the locks: nothing may be written
}

// write runs fn as the only writer, with a state that is as fresh as a scan can make it.
func (m *Mailbox) write(ctx context.Context, fn func(w *writer) error) error {
	if err := m.enter(ctx); err != nil {
		return err
	}
	defer m.leave()
	err := m.writeHeld(ctx, fn)
	if errors.Is(err, errDamaged) { // names are read late; nothing was done without them
		if err = m.heal(ctx); err == nil {
			err = m.writeHeld(ctx, fn)
		}
	}
	return err
}

// heal builds the state anew when names of it cannot be read. sem is held.
func (m *Mailbox) heal(ctx context.Context) error {
	unlock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.catchUp(true); err != nil {
		return err
	}
	if st := m.st.Load(); st != nil {
		if _, err := newKnown(st, nil); err == nil {
			return nil // somebody was faster
		}
		err := m.fs().Remove(filepath.Join(m.indexAt, indexName))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		m.damaged(errDamaged)
	}
	w := &writer{m: m}
	return w.freshenAnyhow(ctx, false)
}

func (m *Mailbox) writeHeld(ctx context.Context, fn func(w *writer) error) error {
	unlock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.catchUp(true); err != nil {
		return err
	}
	w := &writer{m: m, st: m.st.Load()}
	if err := w.freshenAnyhow(ctx, false); err != nil {
		return err
	}
	return fn(w)
}

// refresh brings the folder up to date. With claim, files in new/ go to cur/ and their messages
// are \Recent for the caller: those with UIDs of the returned range.
func (m *Mailbox) refresh(ctx context.Context, claim bool) (*state, Range, error) {
	if err := m.enter(ctx); err != nil {
		return nil, Range{}, err
	}
	defer m.leave()
	st, claimed, err := m.refreshHeld(ctx, claim)
	if errors.Is(err, errDamaged) {
		if err = m.heal(ctx); err == nil {
			st, claimed, err = m.refreshHeld(ctx, claim)
		}
	}
	return st, claimed, err
}

func (m *Mailbox) refreshHeld(ctx context.Context, claim bool) (*state, Range, error) {
	var none Range
	if err := m.catchUp(false); err != nil {
		return nil, none, err
	}
	st := m.st.Load()
	if st != nil && !m.suspect && !(claim && (st.news > 0 || st.firstRecent < st.next)) {
		now, err := m.look()
		if err != nil {
			return nil, none, err
		}
		if st.current(&now, m.store.now()) {
			return st, none, nil
		}
	}
	unlock, err := m.lock(ctx)
	if !claim && barred(err) {
		st, err = m.withoutLock(ctx)
		return st, none, err
	}
	if err != nil {
		return nil, none, err
	}
	defer unlock()
	if err := m.catchUp(true); err != nil {
		return nil, none, err
	}
	w := &writer{m: m, st: m.st.Load()}
	if err := w.freshenAnyhow(ctx, claim); err != nil {
		return nil, none, err
	}
	if claim {
		none, err = w.claim()
	}
	return w.st, none, err
}

// claim gives the messages that are \Recent for nobody yet to the caller.
func (w *writer) claim() (Range, error) {
	st := w.st
	if st.firstRecent >= st.next {
		return Range{}, nil
	}
	e := st.edit()
	e.head.firstRecent = st.next
	return Range{st.firstRecent, st.next - 1}, w.commit(e)
}

// current tells whether stamps are those of the state and may be believed.
func (s *state) current(now *[places]stamp, t time.Time) bool {
	if s.stamps != *now {
		return false
	}
	n := t.UnixNano()
	return s.verify == 0 || n < s.verify && s.verify < n+int64(time.Hour)
}

// commit writes down what an edit has done and makes it the state.
func (w *writer) commit(e *edit) error {
	m := w.m
	e.head.boot = m.store.boot
	if e.ops == 0 && e.head == w.st.head && m.file != nil {
		return nil
	}
	if e.head.modseq > e.head.ceiling {
		return fmt.Errorf("mailbox %s: MODSEQ %d was not reserved", m.name, e.head.modseq)
	}
	st := e.done()
	if w.bare {
		return w.drift(st)
	}
	if m.memory {
		w.st = st
		m.publish(st)
		return nil
	}
	if m.file == nil || m.adrift || e.whole || int64(len(e.log)) > 1<<20+int64(st.n)*32 {
		return w.afloat(w.snapshot(st), st)
	}
	b := appendRecord(nil, &st.head, e.log)
	if _, err := m.file.WriteAt(b, m.end); err != nil {
		// What is there of the record is cut now or by the next writer.
		return w.afloat(fmt.Errorf("write index: %w", errors.Join(err, m.file.Truncate(m.end))), st)
	}
	m.end += int64(len(b))
	if at, err := m.lstat(filepath.Join(m.indexAt, indexName)); err == nil {
		m.seen = at
	}
	w.st = st
	m.publish(st)
	w.count(st)
	if m.end-m.base > max(64<<10, m.base/2) {
		if err := w.snapshot(st); err != nil { // the log has all of it
			m.store.log.Warn("an index grows and cannot be replaced", "mailbox", m.name, "err", err)
		}
	}
	return nil
}

// afloat keeps a state in memory when there was no room for the index, which is a cache: the files
// of the folder say what was done. The lock file, which needs no room, tells other processes
// that MODSEQs are known that the index lacks.
func (w *writer) afloat(err error, st *state) error {
	if !noRoom(err) {
		return err
	}
	w.m.store.log.Warn("there is no room for the index of a mailbox", "mailbox", w.m.name, "err", err)
	if derr := w.drift(st); derr != nil {
		return errors.Join(err, derr)
	}
	w.count(st)
	return nil
}

// snapshot replaces the index by a new file without log records.
func (w *writer) snapshot(st *state) error {
	m := w.m
	if st.fragmented() {
		s, err := st.regroup()
		if err != nil {
			return err
		}
		st = s
	}
	tmp, path := filepath.Join(m.indexAt, indexTmp), filepath.Join(m.indexAt, indexName)
	// What a dead writer has left must go: its inode is noted as that of another snapshot.
	if err := m.fs().Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write index: %w", err)
	}
	f, err := m.fs().OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	end, err := writeSnapshot(f, st)
	if err == nil {
		err = m.fs().Rename(tmp, path)
	}
	var at stamp
	if err == nil {
		at, err = m.lstat(path)
	}
	if err != nil {
		_ = m.fs().Remove(tmp) // the next snapshot does it
		return fmt.Errorf("write index: %w", errors.Join(err, f.Close()))
	}
	m.file, m.seen, m.base, m.end, m.adrift = f, at, end, end, false
	w.st = st
	m.publish(st)
	w.count(st)
	return nil
}
