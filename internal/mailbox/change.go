package mailbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// renameRounds bounds how often files are looked for that others rename all the time.
const renameRounds = 20

// Store changes flags. The result is durable.
func (v *View) Store(ctx context.Context, uids []uint32, ch FlagChange) (Stored, error) {
	if v.ro {
		return Stored{}, ErrReadOnly
	}
	var out Stored
	err := v.m.write(ctx, func(w *writer) error {
		if err := v.same(w); err != nil {
			return err
		}
		e := w.st.edit()
		kw, err := w.keywordBits(ctx, e, ch, nil)
		if err != nil {
			return err
		}
		todo := w.plan(uids, ch, kw, &out)
		if len(todo) == 0 {
			return w.commit(e)
		}
		d, err := w.openFolder()
		if err != nil {
			return err
		}
		defer d.close()
		done, err := d.rename(ctx, e, todo)
		if err != nil {
			return err
		}
		out.Changed = slices.DeleteFunc(slices.Clone(done), func(uid uint32) bool { return d.kept[uid] })
		out.NoRoom, out.NoKeywords = d.noRoom, d.noKeywords
		if len(done) < len(todo) {
			for _, t := range todo {
				if !slices.Contains(done, t.uid) { // few, if any
					out.Expunged = append(out.Expunged, t.uid)
				}
			}
		}
		serr := d.sync()
		if err := d.finish(e); err != nil {
			return errors.Join(serr, err)
		}
		if len(out.Changed) > 0 {
			out.ModSeq = w.st.modseq
		}
		return serr
	})
	if err != nil {
		return Stored{}, fmt.Errorf("store flags in %s: %w", v.m.name, err)
	}
	return out, nil
}

// errReset says that the folder is not the one that the view was opened on.
var errReset = errors.New("UIDVALIDITY has changed")

func (v *View) same(w *writer) error {
	if w.st.validity != v.st.validity {
		return errReset
	}
	return nil
}

// target is what a message's flags are to be: a function, since they may change until it is
// the message's turn.
type target struct {
	uid uint32
	to  func(maildir.Flags, uint32) (maildir.Flags, uint32)
}

// plan lists the messages that need another name.
func (w *writer) plan(uids []uint32, ch FlagChange, kw uint32, out *Stored) []target {
	to := func(f maildir.Flags, k uint32) (maildir.Flags, uint32) {
		switch ch.Op {
		case Add:
			return f | ch.Flags, k | kw
		case Remove:
			return f &^ ch.Flags, k &^ kw
		}
		// Passed has no name in IMAP: who sets all flags does not mean it.
		return ch.Flags | f&maildir.Passed&^ch.Flags, kw
	}
	todo := make([]target, 0, len(uids))
	for _, uid := range uids {
		i, ok := w.st.find(uid)
		if !ok {
			out.Expunged = append(out.Expunged, uid)
			continue
		}
		_, r := w.st.at(i)
		if ch.Conditional && r.modseq > ch.UnchangedSince {
			out.Failed = append(out.Failed, uid)
			continue
		}
		if f, k := to(r.flags, r.kw); f != r.flags || k != r.kw {
			todo = append(todo, target{uid, to})
		}
	}
	return todo
}

// keywordBits finds the letters of keywords; those that have none get one when they are set.
// left is told of those that cannot get one; without it they are an error.
func (w *writer) keywordBits(ctx context.Context, e *edit, ch FlagChange, left func(keyword string)) (uint32, error) {
	var table maildir.Keywords
	copy(table[:], w.st.keywords)
	bits, missing := keywordMask(&table, ch.Keywords)
	if len(missing) == 0 || ch.Op == Remove {
		return bits, nil
	}
	missing, err := possible(missing, left)
	if err != nil || len(missing) == 0 {
		return bits, err
	}
	m := w.m
	lock, err := m.lockList(ctx)
	if err != nil {
		return 0, err
	}
	defer m.unlockList(lock)
	path := filepath.Join(m.control, maildir.KeywordsName)
	b, err := m.readFile(path, 1<<20)
	if err != nil {
		return 0, err
	}
	table, _ = maildir.ParseKeywords(b)
	_, missing = keywordMask(&table, missing)
	bits, _ = keywordMask(&table, ch.Keywords)
	taken := w.takenLetters(&table, missing)
	given := false
	for _, k := range missing {
		if i := table.Index(k); i >= 0 { // named twice
			bits |= 1 << i
			continue
		}
		free := slices.Index(taken[:], "")
		if free < 0 && left == nil {
			return 0, ErrKeywords
		}
		if free < 0 {
			left(k)
			continue
		}
		table[free], taken[free] = k, k
		bits |= 1 << free
		given = true
	}
	if given {
		if err := lock.Held(); err != nil {
			return 0, err
		}
		if err := m.writeKeywords(path, &table); err != nil {
			return 0, err
		}
	}
	at, err := m.lstat(path)
	if err != nil {
		return 0, err
	}
	e.setKeywords(table[:])
	e.head.stamps[atKeywords] = at
	return bits, nil
}

// possible leaves out what can be no keyword.
func possible(names []string, left func(keyword string)) (out []string, err error) {
	for _, k := range names {
		switch {
		case maildir.ValidKeyword(k):
			out = append(out, k)
		case left == nil:
			return nil, fmt.Errorf("%w: %.60q is none", ErrKeywords, k)
		default:
			left(k)
		}
	}
	return out, nil
}

// takenLetters is table with a word for letters that stand for nothing but are in file names: a
// keyword that got such a letter would be on messages where nobody has put it.
func (w *writer) takenLetters(table *maildir.Keywords, missing []string) maildir.Keywords {
	taken := *table
	if len(missing) == 0 {
		return taken
	}
	used := uint32(0)
	for _, c := range w.st.chunks {
		for i := range c.recs {
			used |= c.recs[i].kw
		}
	}
	for i := range taken {
		if taken[i] == "" && used&(1<<i) != 0 {
			taken[i] = "?"
		}
	}
	return taken
}

// writeKeywords replaces the file. Dovecot looks at the seconds of its time alone: of two versions
// from one second it would know the first only, and write that again with a keyword of its own.
// So ours get times of some past day, which no other version has had or will have.
func (m *Mailbox) writeKeywords(path string, table *maildir.Keywords) error {
	if err := durable.WriteFileOn(m.fs(), path, table.AppendTo(nil), 0o600); err != nil {
		return err
	}
	const day = 24 * time.Hour
	return durable.Chtimes(m.fs(), path, m.store.now().Add(-day-time.Duration(rand.Int64N(int64(30*day)))))
}

func keywordMask(table *maildir.Keywords, names []string) (bits uint32, missing []string) {
	for _, k := range names {
		if i := table.Index(k); i >= 0 {
			bits |= 1 << i
		} else {
			missing = append(missing, k)
		}
	}
	return bits, missing
}

// folder is a mailbox whose files a writer renames or removes.
type folder struct {
	w         *writer
	news, cur *durable.Names
	stamps    [places]stamp // before the first change
	fromNew   bool          // new/ has lost names

	noRoom, noKeywords []uint32        // messages whose names are too long
	kept               map[uint32]bool // of those, who stayed as they were
}

func (w *writer) openFolder() (*folder, error) {
	d := &folder{w: w}
	var err error
	if d.stamps, err = w.m.look(); err != nil {
		return nil, err
	}
	d.news, d.cur, err = w.m.openDirs()
	return d, err
}

func (d *folder) close() {
	// Ignored: they were opened to read.
	_ = d.news.Close()
	_ = d.cur.Close()
}

func (d *folder) sub(l look) *durable.Names {
	if l.bits&bitNew != 0 {
		return d.news
	}
	return d.cur
}

// sync puts the changes of names on stable storage.
func (d *folder) sync() error {
	err := d.cur.Sync()
	if d.fromNew {
		err = errors.Join(err, d.news.Sync())
	}
	return err
}

// finish commits an edit that describes what was done to the files. Where the stamps before
// were those of the state, the stamps now stand for it too, and a scan later makes sure that
// nobody else did something in between.
func (d *folder) finish(e *edit) error {
	w := d.w
	now, err := w.m.look()
	if err != nil {
		return err
	}
	for _, i := range []int{atNew, atCur} {
		if d.stamps[i] == w.st.stamps[i] {
			e.head.stamps[i] = now[i]
		}
	}
	e.head.verify = w.m.store.now().Add(settleTime).UnixNano()
	return w.commit(e)
}

// lookAt is how the state knows a message.
func lookAt(c *chunk, r *rec) (base string, l look, err error) {
	name, err := c.file(nil, r)
	if err != nil {
		return "", l, err
	}
	l = look{flags: r.flags, kw: r.kw, bits: r.bits & (bitNew | bitLiteral)}
	if l.bits&bitLiteral != 0 {
		l.suffix = string(name[r.baseLen:])
	}
	return string(name[:r.baseLen]), l, nil
}

// with is the look of a message in cur/ with other flags; what is unknown in its name stays.
func (l look) with(base string, f maildir.Flags, kw uint32) look {
	if l.bits&bitLiteral == 0 {
		return look{flags: f, kw: kw}
	}
	name := maildir.ParseName(base+l.suffix).With(f, kw).String()
	_, n, ok := lookOf([]byte(name), false)
	if !ok {
		return look{flags: f, kw: kw}
	}
	return n
}

// rename gives messages the names that their new flags need and returns whose were found.
// Messages that somebody else renames at the same time are looked for.
func (d *folder) rename(ctx context.Context, e *edit, todo []target) (done []uint32, err error) {
	done = make([]uint32, 0, len(todo))
	var lost map[string]target
	var from, to []byte
	for n, t := range todo {
		if n%1024 == 0 && ctx.Err() != nil {
			return done, d.abandon(e, ctx.Err())
		}
		k, j, ok := e.mut(t.uid)
		if !ok {
			continue
		}
		c := e.chunks[k]
		r := &c.recs[j]
		if r.bits&bitLiteral != 0 || r.bits&bitNew != 0 {
			base, l, err := lookAt(c, r)
			if err != nil {
				return done, d.abandon(e, err)
			}
			ok, err := d.one(e, t, base, l)
			if err != nil {
				return done, d.abandon(e, err)
			}
			if !ok {
				lost = put(lost, base, t)
				continue
			}
			done = append(done, t.uid)
			continue
		}
		if from, err = c.file(from[:0], r); err != nil {
			return done, d.abandon(e, err)
		}
		next := look{}
		next.flags, next.kw = t.to(r.flags, r.kw)
		to = append(to[:0], from[:r.baseLen]...)
		to = appendSuffix(to, &rec{flags: next.flags, kw: next.kw})
		err := d.cur.RenameNew(string(from), d.cur, string(to))
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrExist):
			lost = put(lost, string(from[:r.baseLen]), t)
			continue
		case errors.Is(err, syscall.ENAMETOOLONG):
			base := string(from[:r.baseLen])
			if ok, err := d.one(e, t, base, look{flags: r.flags, kw: r.kw}); err != nil {
				return done, d.abandon(e, err)
			} else if !ok {
				lost = put(lost, base, t)
			} else {
				done = append(done, t.uid)
			}
			continue
		case err != nil:
			return done, d.abandon(e, err)
		}
		if err := e.change(t.uid, next); err != nil {
			return done, d.abandon(e, err)
		}
		done = append(done, t.uid)
	}
	found, err := d.chase(ctx, e, lost)
	if err != nil {
		return done, d.abandon(e, err)
	}
	return append(done, found...), nil
}

func put(m map[string]target, base string, t target) map[string]target {
	if m == nil {
		m = map[string]target{}
	}
	m[base] = t
	return m
}

// one renames a single message from how it was seen; false: it is not there any more.
func (d *folder) one(e *edit, t target, base string, l look) (bool, error) {
	f, kw := t.to(l.flags, l.kw)
	next := l.with(base, f, kw)
	if next != l {
		err := d.sub(l).RenameNew(l.file(base), d.cur, next.file(base))
		if errors.Is(err, syscall.ENAMETOOLONG) && kw&^l.kw != 0 { // without new keywords, then
			if !slices.Contains(d.noKeywords, t.uid) { // it may be looked for twice
				d.noKeywords = append(d.noKeywords, t.uid)
			}
			u := t
			u.to = func(maildir.Flags, uint32) (maildir.Flags, uint32) { return f, kw & l.kw }
			if f == l.flags && kw&l.kw == l.kw {
				d.keep(t.uid)
				return true, nil
			}
			return d.one(e, u, base, l)
		}
		if errors.Is(err, syscall.ENAMETOOLONG) {
			d.noKeywords = slices.DeleteFunc(d.noKeywords, func(uid uint32) bool { return uid == t.uid })
			d.noRoom = append(d.noRoom, t.uid)
			d.keep(t.uid)
			return true, nil
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		d.fromNew = d.fromNew || l.bits&bitNew != 0
	}
	return true, e.change(t.uid, next)
}

func (d *folder) keep(uid uint32) {
	if d.kept == nil {
		d.kept = map[uint32]bool{}
	}
	d.kept[uid] = true
}

// chase renames messages that were not where the state had them.
func (d *folder) chase(ctx context.Context, e *edit, lost map[string]target) (done []uint32, err error) {
	for round := 0; len(lost) > 0 && round < renameRounds; round++ {
		if round > 0 {
			if err := pause(ctx, time.Duration(round)*time.Millisecond); err != nil {
				return done, err
			}
		}
		bases := make(map[string]bool, len(lost))
		for b := range lost {
			bases[b] = true
		}
		hits, err := d.w.m.findFiles(bases)
		if err != nil {
			return done, err
		}
		for _, h := range hits {
			t, ok := lost[h.base]
			if !ok {
				continue
			}
			if ok, err = d.one(e, t, h.base, h.look); err != nil {
				return done, err
			} else if ok {
				done = append(done, t.uid)
				delete(lost, h.base)
			}
		}
	}
	return done, nil
}

// abandon commits what was done before an error: the files have their new names.
func (d *folder) abandon(e *edit, err error) error {
	return errors.Join(err, d.finish(e))
}

// Expunge removes messages, whatever their flags: DELE of POP3.
func (v *View) Expunge(ctx context.Context, uids []uint32) (gone []uint32, err error) {
	return v.expunge(ctx, 0, func(*state) []uint32 { return uids })
}

// ExpungeDeleted removes the messages in ranges of UIDs that have \Deleted now, whatever the view
// says: EXPUNGE and UID EXPUNGE. Another session may have taken the flag back.
func (v *View) ExpungeDeleted(ctx context.Context, within []Range) (gone []uint32, err error) {
	return v.expunge(ctx, maildir.Trashed, func(st *state) (uids []uint32) {
		st.within(within, func(_ int, c *chunk, r *rec) bool {
			if r.flags&maildir.Trashed != 0 {
				uids = append(uids, r.uid)
			}
			return true
		})
		return uids
	})
}

// expunge removes those of the chosen messages that have all flags of need.
func (v *View) expunge(ctx context.Context, need maildir.Flags, choose func(*state) []uint32) (gone []uint32, err error) {
	if v.ro {
		return nil, ErrReadOnly
	}
	err = v.m.write(ctx, func(w *writer) error {
		if err := v.same(w); err != nil {
			return err
		}
		uids := choose(w.st)
		if len(uids) == 0 {
			return nil
		}
		d, err := w.openFolder()
		if err != nil {
			return err
		}
		defer d.close()
		e := w.st.edit()
		var used Limits
		gone, used, err = d.remove(ctx, e, uids, need)
		if len(gone) == 0 {
			return err
		}
		err = errors.Join(err, d.sync())
		err = errors.Join(err, d.finish(e))
		w.m.store.account(Limits{-used.Octets, -used.Messages})
		return err
	})
	if err != nil {
		return gone, fmt.Errorf("expunge from %s: %w", v.m.name, err)
	}
	return gone, nil
}

// remove unlinks messages that have all flags of need. used is what they took.
func (d *folder) remove(ctx context.Context, e *edit, uids []uint32, need maildir.Flags) (gone []uint32, used Limits, err error) {
	lost := map[string]uint32{}
	counts := d.w.m.store.counts()
	drop := func(uid uint32, base string, l look) (bool, error) {
		if l.flags&need != need {
			return true, nil // it stays, and the next scan tells its flags
		}
		size := int64(0)
		if counts {
			size = d.stored(base, l)
		}
		err := d.sub(l).Remove(l.file(base))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		d.fromNew = d.fromNew || l.bits&bitNew != 0
		used.Octets += size
		used.Messages++
		gone = append(gone, uid)
		return true, e.remove(uid)
	}
	uids = slices.Clone(uids)
	slices.Sort(uids)
	for n, uid := range uids {
		if n%1024 == 0 && ctx.Err() != nil {
			return gone, used, ctx.Err()
		}
		k, j, ok := e.mut(uid)
		if !ok {
			continue
		}
		base, l, err := lookAt(e.chunks[k], &e.chunks[k].recs[j])
		if err != nil {
			return gone, used, err
		}
		if ok, err := drop(uid, base, l); err != nil {
			return gone, used, err
		} else if !ok {
			lost[base] = uid
		}
	}
	for round := 0; len(lost) > 0 && round < renameRounds; round++ {
		if err := pause(ctx, time.Duration(round)*time.Millisecond); err != nil {
			return gone, used, err
		}
		bases := make(map[string]bool, len(lost))
		for b := range lost {
			bases[b] = true
		}
		hits, err := d.w.m.findFiles(bases)
		if err != nil {
			return gone, used, err
		}
		for _, h := range hits {
			if uid, ok := lost[h.base]; ok {
				if ok, err := drop(uid, h.base, h.look); err != nil {
					return gone, used, err
				} else if ok {
					delete(lost, h.base)
				}
			}
		}
		if len(hits) == 0 && round >= 3 {
			break // others have expunged them; the next scan says so
		}
	}
	slices.Sort(gone)
	return gone, used, nil
}

// stored is how many octets a message takes.
func (d *folder) stored(base string, l look) int64 {
	if n, _, ok, _ := (maildir.Name{Base: base}).Sizes(); ok {
		return n
	}
	if i, err := d.sub(l).Lstat(l.file(base)); err == nil {
		return i.Size()
	}
	return 0
}
