package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
)

// ToMaildir copies the account s to the tree to, which is made when it is missing: files
// under their own names, and dovecot-uidlist and dovecot-keywords, so that Restore, or
// Dovecot, has every UID as it was. Of each mailbox the state of one moment is copied; done
// again, only what is new is, and flags are brought up to date.
func ToMaildir(ctx context.Context, s *mailbox.Store, to maildir.Tree, o Options) error {
	names, err := existing(ctx, s)
	if err != nil {
		return err
	}
	if names, err = o.choose(names); err != nil {
		return err
	}
	if !o.DryRun {
		if err := maildir.Create(o.fs(), to.Root); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := o.exportMailbox(ctx, s, to, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if o.DryRun || o.Mailboxes != nil {
		return nil
	}
	return o.settings(ctx, s, to)
}

// settings copies subscriptions and special uses.
func (o *Options) settings(ctx context.Context, s *mailbox.Store, to maildir.Tree) error {
	list, err := s.List(ctx)
	if err != nil {
		return err
	}
	var subs maildir.Subscriptions
	for _, f := range list {
		if f.Subscribed {
			subs.Names = append(subs.Names, f.Name)
		}
		if !f.Exists {
			continue
		}
		use, err := s.SpecialUse(f.Name)
		if err != nil {
			return err
		}
		dir, err := to.Dir(f.Name)
		if err != nil {
			return err
		}
		if m, err := maildir.ReadMeta(o.fs(), dir); err != nil {
			return err
		} else if !slices.Equal(m.SpecialUse, use) {
			m.SpecialUse = use
			if err := maildir.WriteMeta(o.fs(), dir, m); err != nil {
				return err
			}
		}
	}
	return durable.WriteFileOn(o.fs(), filepath.Join(to.Root, maildir.SubscriptionsName), to.AppendSubscriptions(nil, subs), 0o600)
}

// exporting is the export of one mailbox.
type exporting struct {
	ctx   context.Context
	o     *Options
	v     *mailbox.View
	dir   string
	files map[string]string // base name to path below dir
	old   *maildir.UIDList
	lock  *maildir.UIDLock
	list  maildir.UIDList
	words maildir.Keywords
	prune bool
	res   Result
}

func (o *Options) exportMailbox(ctx context.Context, s *mailbox.Store, to maildir.Tree, name string) (err error) {
	e := &exporting{ctx: ctx, o: o, prune: o.Prune, files: make(map[string]string), res: Result{From: name}}
	if e.dir, err = to.Dir(name); err != nil {
		return err
	}
	e.res.To = e.dir
	v, done, err := view(ctx, s, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	e.v = v
	if !o.DryRun {
		if err := maildir.Create(o.fs(), e.dir); err != nil {
			return err
		}
		if e.dir != to.Root && to.Layout == maildir.LayoutPlus {
			if err := mark(o.fs(), e.dir); err != nil {
				return err
			}
		}
		// Two exports at once, or a server that uses the copy, must not mix their lists.
		if e.lock, err = maildir.LockUIDList(ctx, o.fs(), e.dir, maildir.LockOptions{}); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, e.lock.Unlock()) }()
	}
	if err := e.read(); err != nil {
		return err
	}
	if err := e.all(ctx); err != nil {
		return err
	}
	if err := e.finish(); err != nil {
		return err
	}
	o.report(e.res)
	return nil
}

// mark makes the file by which others know a folder.
func mark(fsys durable.FS, dir string) error {
	f, err := fsys.OpenFile(filepath.Join(dir, maildir.FolderFile), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// read notes what the copy has already.
func (e *exporting) read() error {
	for _, sub := range []string{"new", "cur"} {
		names, err := readNames(e.o.fs(), filepath.Join(e.dir, sub))
		if err != nil {
			return err
		}
		for _, n := range names {
			e.files[maildir.ParseName(n).Base] = filepath.Join(sub, n)
		}
	}
	var err error
	if e.old, err = readList(e.o.fs(), e.dir); err != nil {
		return err
	}
	if e.old == nil || len(e.old.Entries) == 0 {
		return e.unlisted()
	}
	if e.old.Validity != e.v.UIDValidity() || e.old.GUID != e.guid() {
		return refused(ErrOccupied, "%s holds the UIDs of another mailbox (UIDVALIDITY %d, not %d): export to another place", e.dir, e.old.Validity, e.v.UIDValidity())
	}
	return nil
}

// unlisted looks whose the messages are of which no list tells. An export that was cut off has
// left some that the account has.
func (e *exporting) unlisted() error {
	if len(e.files) == 0 {
		return nil
	}
	entries, err := e.v.POP3(e.ctx)
	if err != nil {
		return err
	}
	for _, p := range entries {
		if _, ok := e.files[p.Base]; ok {
			return nil
		}
	}
	return refused(ErrOccupied, "%s holds other mail: export to another place", e.dir)
}

// guid is the one in the uidlist, of which the MAILBOXID is made.
func (e *exporting) guid() string { return strings.TrimPrefix(e.v.ID(), "F") }

func (e *exporting) all(ctx context.Context) error {
	entries, err := e.v.POP3(ctx)
	if err != nil {
		return err
	}
	if len(entries) < e.v.Len() {
		e.unreadable(entries)
	}
	slices.SortFunc(entries, func(a, b mailbox.POP3Entry) int { return int(int64(a.UID) - int64(b.UID)) })
	e.list = maildir.UIDList{Version: 3, Validity: e.v.UIDValidity(), Next: e.v.UIDNext(), GUID: e.guid(), Ceiling: e.v.HighestModSeq()}
	for i, w := range e.v.Keywords() {
		if i < len(e.words) {
			e.words[i] = w
		} else if w != "" {
			e.res.Lost = append(e.res.Lost, "keyword "+w)
		}
	}
	for i, p := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		seq := e.v.Seq(p.UID)
		if seq == 0 {
			continue
		}
		e.o.progress(e.res.From, i+1, len(entries))
		if e.lock != nil {
			if err := e.lock.Touch(); err != nil {
				return err
			}
		}
		there, err := e.message(ctx, p, e.v.At(seq))
		if err != nil {
			return err
		}
		if there {
			entry := maildir.UIDEntry{UID: p.UID, Base: p.Base, File: p.Base, Size: -1, Wire: p.Size, POP3: p.Key, Order: p.Order}
			if p.GUID != p.Base {
				entry.GUID = p.GUID
			}
			e.list.Entries = append(e.list.Entries, entry)
		}
		delete(e.files, p.Base)
	}
	return nil
}

// unreadable names the messages that are there and cannot be read. The copy may have them from
// before: then nothing is removed.
func (e *exporting) unreadable(entries []mailbox.POP3Entry) {
	listed := make(map[uint32]bool, len(entries))
	for _, p := range entries {
		listed[p.UID] = true
	}
	for _, m := range e.v.All(1, e.v.Len()) {
		if listed[m.UID] {
			continue
		}
		body, err := e.v.Open(e.ctx, m.UID)
		switch {
		case err == nil:
			_ = body.Close() // it was only opened
		case errors.Is(err, mailbox.ErrExpunged) || errors.Is(err, fs.ErrNotExist):
			continue
		}
		e.prune = false
		if len(e.res.Lost) < maxLost {
			e.res.Lost = append(e.res.Lost, fmt.Sprintf("message with UID %d, which cannot be read", m.UID))
		}
	}
}

// message brings one message up to date; false when it is gone.
func (e *exporting) message(ctx context.Context, p mailbox.POP3Entry, m mailbox.Message) (bool, error) {
	want := maildir.Name{Base: p.Base, Info: true}
	if have, ok := e.files[p.Base]; ok {
		old := maildir.ParseName(filepath.Base(have))
		name := filepath.Join("cur", old.With(m.Flags, m.Keywords&(1<<maildir.MaxKeywords-1)).String())
		if have == name {
			e.res.Known++
			return true, nil
		}
		e.res.Changed++
		if e.o.DryRun {
			return true, nil
		}
		return true, e.o.fs().Rename(filepath.Join(e.dir, have), filepath.Join(e.dir, name))
	}
	if e.o.DryRun {
		e.res.New++
		return true, nil
	}
	body, err := e.v.Open(ctx, m.UID)
	if errors.Is(err, mailbox.ErrExpunged) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	name := want.With(m.Flags, m.Keywords&(1<<maildir.MaxKeywords-1)).String()
	err = place(e.o.fs(), e.dir, name, io.NewSectionReader(body, 0, body.Size), time.Unix(m.Internal, 0))
	if err = errors.Join(err, body.Close()); err == nil {
		e.res.New++
	}
	return true, err
}

// place writes a file to tmp and gives it its name in cur. The directory is synced later,
// for all files at once.
func place(fsys durable.FS, dir, name string, r io.Reader, date time.Time) error {
	tmp := filepath.Join(dir, "tmp", maildir.ParseName(name).Base)
	f, err := fsys.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = durable.Sync(f)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = durable.Chtimes(fsys, tmp, date)
	}
	if err == nil {
		err = fsys.Rename(tmp, filepath.Join(dir, "cur", name))
	}
	return err
}

// finish writes the lists when all files are there.
func (e *exporting) finish() error {
	if e.prune {
		e.onlyListed()
	}
	if e.prune {
		e.res.Removed = len(e.files)
	}
	if e.o.DryRun {
		return nil
	}
	if e.prune {
		for _, path := range e.files {
			if err := e.o.fs().Remove(filepath.Join(e.dir, path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	} else {
		e.keepOld()
	}
	for _, sub := range []string{"cur", "new"} {
		if err := durable.SyncDirOn(e.o.fs(), filepath.Join(e.dir, sub)); err != nil {
			return err
		}
	}
	var words []byte
	words = e.words.AppendTo(words)
	if err := e.replace(maildir.KeywordsName, words); err != nil {
		return err
	}
	if err := e.lock.Held(); err != nil {
		return err
	}
	return e.replace(maildir.UIDListName, e.list.AppendTo(nil))
}

// onlyListed leaves in files what an earlier export has put there: the rest came from others.
func (e *exporting) onlyListed() {
	listed := make(map[string]bool)
	if e.old != nil {
		for _, entry := range e.old.Entries {
			listed[entry.Base] = true
		}
	}
	maps.DeleteFunc(e.files, func(base, _ string) bool { return !listed[base] })
}

// keepOld keeps the lines of messages that the copy has and the mailbox has not any more.
func (e *exporting) keepOld() {
	if e.old == nil {
		return
	}
	for _, entry := range e.old.Entries {
		if _, ok := e.files[entry.Base]; ok {
			e.list.Entries = append(e.list.Entries, entry)
		}
	}
	slices.SortFunc(e.list.Entries, func(a, b maildir.UIDEntry) int { return int(int64(a.UID) - int64(b.UID)) })
	e.list.Entries = slices.CompactFunc(e.list.Entries, func(a, b maildir.UIDEntry) bool { return a.UID == b.UID })
}

// replace writes a file of the copy, unless it is as it should be.
func (e *exporting) replace(name string, data []byte) error {
	path := filepath.Join(e.dir, name)
	old, err := readFile(e.o.fs(), path)
	if err != nil || bytes.Equal(old, data) {
		return err
	}
	return durable.WriteFileOn(e.o.fs(), path, data, 0o600)
}
