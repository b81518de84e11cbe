package transfer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"pennypost/internal/durable"
	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
)

// Restore copies the tree from, which ToMaildir or a server has written, into the account s,
// whose tree is to, with all UIDs, UIDVALIDITY, keywords and unique-ids of POP3. A mailbox
// into which it goes must hold nothing else; a restore that was cut off is taken up again.
func Restore(ctx context.Context, s *mailbox.Store, to, from maildir.Tree, o Options) error {
	src := Maildir{from, o.fs()}
	names, err := src.Mailboxes(ctx)
	if err != nil {
		return err
	}
	if names, err = o.choose(names); err != nil {
		return err
	}
	for _, name := range names {
		if err := o.restoreMailbox(ctx, s, to, from, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if o.DryRun {
		return nil
	}
	b, err := readFile(o.fs(), filepath.Join(from.ControlRoot(), maildir.SubscriptionsName))
	if err != nil {
		return err
	}
	for _, name := range from.ParseSubscriptions(b).Names {
		if o.wanted(name) {
			if err := s.Subscribe(ctx, name, true); err != nil {
				return err
			}
		}
	}
	_, err = s.Recount(ctx)
	return err
}

// restoring is the restore of one mailbox.
type restoring struct {
	o        *Options
	dir      string // where the messages go
	control  string
	list     *maildir.UIDList
	have     map[string]bool // base names that are there
	res      Result
	fromDir  string
	keywords []byte
}

func (o *Options) restoreMailbox(ctx context.Context, s *mailbox.Store, to, from maildir.Tree, name string) error {
	r := &restoring{o: o, have: make(map[string]bool), res: Result{From: name, To: name}}
	if err := r.read(from, name); err != nil {
		return err
	}
	var err error
	if r.dir, err = to.Dir(name); err != nil {
		return err
	}
	if r.control, err = to.ControlDir(name); err != nil {
		return err
	}
	if !o.DryRun {
		if err := s.Create(ctx, name); err != nil && !errors.Is(err, mailbox.ErrExists) {
			return err
		}
	}
	if err := r.fill(ctx, to); err != nil {
		return err
	}
	if !o.DryRun {
		if err := s.Reindex(ctx, name); err != nil {
			return err
		}
		meta, err := maildir.ReadMeta(o.fs(), r.fromDir)
		if err != nil {
			return err
		}
		if len(meta.SpecialUse) > 0 {
			if err := s.SetSpecialUse(ctx, name, meta.SpecialUse); err != nil {
				return err
			}
		}
	}
	o.report(r.res)
	return nil
}

// read reads the lists of the source.
func (r *restoring) read(from maildir.Tree, name string) (err error) {
	if r.fromDir, err = from.Dir(name); err != nil {
		return err
	}
	control, err := from.ControlDir(name)
	if err != nil {
		return err
	}
	if r.list, err = readList(r.o.fs(), control); err != nil {
		return err
	}
	if r.list == nil {
		return refused(ErrFormat, "%s has no %s: its UIDs are not known (import without --restore gives new ones)", control, maildir.UIDListName)
	}
	if r.list.Validity == 0 {
		return refused(ErrFormat, "%s: no UIDVALIDITY can be read there", filepath.Join(control, maildir.UIDListName))
	}
	r.keywords, err = readFile(r.o.fs(), filepath.Join(control, maildir.KeywordsName))
	return err
}

// fill copies the messages and then the lists, with other writers kept away.
func (r *restoring) fill(ctx context.Context, to maildir.Tree) (err error) {
	fsys := r.o.fs()
	if !r.o.DryRun {
		lock, err := maildir.LockUIDList(ctx, fsys, r.control, maildir.LockOptions{})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lock.Unlock()) }()
	}
	var names []string
	isNew := make(map[string]bool)
	for _, sub := range []string{"cur", "new"} {
		list, err := readNames(fsys, filepath.Join(r.fromDir, sub))
		if err != nil {
			return err
		}
		for _, n := range list {
			names = append(names, filepath.Join(sub, n))
			isNew[maildir.ParseName(n).Base] = true
		}
	}
	for _, sub := range []string{"cur", "new"} {
		there, err := readNames(fsys, filepath.Join(r.dir, sub))
		if err != nil {
			return err
		}
		for _, n := range there {
			base := maildir.ParseName(n).Base
			if !isNew[base] {
				return refused(ErrOccupied, "there are other messages in it already: UIDs can be restored into an empty mailbox alone (import without --restore adds messages)")
			}
			r.have[base] = true
		}
	}
	for i, n := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		r.o.progress(r.res.From, i+1, len(names))
		if err := r.message(n); err != nil {
			return err
		}
	}
	if r.o.DryRun {
		return nil
	}
	if err := durable.SyncDirOn(fsys, filepath.Join(r.dir, "cur")); err != nil {
		return err
	}
	return r.lists(to)
}

func (r *restoring) message(path string) (err error) {
	n := maildir.ParseName(filepath.Base(path))
	if r.have[n.Base] {
		r.res.Known++
		return nil
	}
	f, err := open(r.o.fs(), filepath.Join(r.fromDir, path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return err
	}
	if r.res.New++; r.o.DryRun {
		return nil
	}
	return place(r.o.fs(), r.dir, n.With(n.Flags, n.Keywords).String(), f, fi.ModTime())
}

// lists makes the UIDs those of the source: from here on clients know the messages.
func (r *restoring) lists(to maildir.Tree) error {
	fsys := r.o.fs()
	path := filepath.Join(r.control, maildir.UIDListName)
	old, err := readList(fsys, r.control)
	if err != nil {
		return err
	}
	if old != nil {
		r.list.Ceiling = max(r.list.Ceiling, old.Ceiling)
		if old.Validity == r.list.Validity { // UIDs told since the copy was made mean other messages
			r.list.Next = max(r.list.Next, old.Next)
		}
	}
	if len(r.keywords) > 0 {
		if err := durable.WriteFileOn(fsys, filepath.Join(r.control, maildir.KeywordsName), r.keywords, 0o600); err != nil {
			return err
		}
	}
	if err := durable.WriteFileOn(fsys, path, r.list.AppendTo(nil), 0o600); err != nil {
		return err
	}
	return maildir.RaiseUIDValidity(fsys, to.ControlRoot(), r.list.Validity)
}
