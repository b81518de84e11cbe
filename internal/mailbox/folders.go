package mailbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// List names all folders, and names that are only subscribed.
func (s *Store) List(ctx context.Context) ([]Folder, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	found, _, err := s.tree.List(s.fs)
	if err != nil {
		return nil, fmt.Errorf("list mailboxes: %w", err)
	}
	subs, err := s.subscriptions()
	if err != nil {
		return nil, fmt.Errorf("list mailboxes: %w", err)
	}
	subscribed := make(map[string]bool, len(subs.Names))
	for _, n := range subs.Names {
		subscribed[canonical(n)] = true
	}
	out := make([]Folder, 0, len(found))
	parents := map[string]bool{}
	for _, f := range found {
		out = append(out, Folder{Name: f.Name, Exists: f.Selectable, Subscribed: subscribed[f.Name], Marked: f.Selectable && s.hasNew(f.Path)})
		delete(subscribed, f.Name)
		if i := strings.LastIndexByte(f.Name, '/'); i > 0 {
			parents[f.Name[:i]] = true
		}
	}
	for n := range subscribed {
		out = append(out, Folder{Name: n, Subscribed: true})
	}
	for i := range out {
		out[i].Children = parents[out[i].Name]
	}
	slices.SortFunc(out, func(a, b Folder) int {
		switch {
		case a.Name == b.Name:
			return 0
		case a.Name == maildir.Inbox:
			return -1
		case b.Name == maildir.Inbox:
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out, nil
}

// hasNew tells whether a folder's new/ holds a file.
func (s *Store) hasNew(dir string) bool {
	f, err := s.fs.OpenFile(filepath.Join(dir, "new"), os.O_RDONLY, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(16)
		if slices.ContainsFunc(names, maildir.ValidName) {
			return true
		}
		if err != nil || len(names) == 0 {
			return false
		}
	}
}

func (s *Store) subsPath() string {
	return filepath.Join(s.tree.ControlRoot(), maildir.SubscriptionsName)
}

func (s *Store) subscriptions() (maildir.Subscriptions, error) {
	m := Mailbox{store: s}
	b, err := m.readFile(s.subsPath(), 16<<20)
	if err != nil {
		return maildir.Subscriptions{}, err
	}
	if len(b) == 0 && s.o.Courier {
		names, err := s.courierSubscriptions()
		return maildir.Subscriptions{Names: names}, err
	}
	return s.tree.ParseSubscriptions(b), nil
}

func (s *Store) writeSubscriptions(subs maildir.Subscriptions) error {
	return durable.WriteFileOn(s.fs, s.subsPath(), s.tree.AppendSubscriptions(nil, subs), 0o600)
}

// Subscribe puts a name on the list of subscriptions, or takes it off. The mailbox need not exist
// (RFC 9051 §6.3.7).
func (s *Store) Subscribe(ctx context.Context, name string, on bool) error {
	name = canonical(name)
	if _, err := s.tree.Dir(name); err != nil {
		return fmt.Errorf("%w: %w", ErrName, err)
	}
	unlock, err := s.lockTree(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	subs, err := s.subscriptions()
	if err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	i := slices.Index(subs.Names, name)
	switch {
	case on == (i >= 0):
		return nil
	case on:
		subs.Names = append(subs.Names, name)
	default:
		subs.Names = slices.Delete(subs.Names, i, i+1)
	}
	if err := s.writeSubscriptions(subs); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	return nil
}

// treeLock excludes two who change the tree of folders.
const treeLock = "pennypost-tree.lock"

func (s *Store) lockTree(ctx context.Context) (unlock func(), err error) {
	m := &Mailbox{store: s, name: "the account"}
	if m.lockFile, err = s.fs.OpenFile(filepath.Join(s.tree.ControlRoot(), treeLock), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("lock the folders: %w", err)
	}
	f := m.lockFile
	if _, err := m.lockOpen(ctx); err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil // which drops the lock
}

// Create makes a folder. Its parents need no directory of their own to be listed.
func (s *Store) Create(ctx context.Context, name string) error {
	name = canonical(name)
	dir, err := s.tree.Dir(name)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrName, err)
	}
	unlock, err := s.lockTree(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := s.fs.Lstat(filepath.Join(dir, "cur")); err == nil {
		return fmt.Errorf("create %s: %w", name, ErrExists)
	}
	if err := s.vacate(name); err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	if name != maildir.Inbox && s.tree.Layout == maildir.LayoutPlus {
		if err = durable.MkdirAllOn(s.fs, dir, 0o700); err == nil {
			err = durable.WriteFileOn(s.fs, filepath.Join(dir, maildir.FolderFile), nil, 0o600)
		}
		if err != nil {
			return fmt.Errorf("create %s: %w", name, err)
		}
	}
	if err := maildir.Create(s.fs, dir); err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	// A UIDVALIDITY is given at once: the name may have stood for another folder.
	m, err := s.Mailbox(ctx, name)
	if err != nil {
		return err
	}
	_, _, err = m.refresh(ctx, false)
	return errors.Join(err, m.Close())
}

// Delete removes a folder and its messages; folders below it stay.
func (s *Store) Delete(ctx context.Context, name string) error {
	name = canonical(name)
	if name == maildir.Inbox {
		return fmt.Errorf("delete %s: %w", name, ErrName)
	}
	unlock, err := s.lockTree(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	dirs, err := s.placesOf(name)
	if err != nil {
		return err
	}
	if _, err := s.fs.Lstat(filepath.Join(dirs[0], "cur")); err != nil {
		return fmt.Errorf("delete %s: %w", name, ErrNotFound)
	}
	if err := s.retire(name); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	s.forget(name)
	counted := s.counts()
	if err := s.trash(dirs[0]); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	if err := s.clear(dirs[1:]); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	if counted {
		_, err = s.Recount(ctx)
	}
	return err
}

// clear removes the control files and the index of a folder without messages: its own files alone,
// since in one layout the folders below it are directories in these. They may be on another file
// system than the messages, and if the machine stops meanwhile, Create goes on.
func (s *Store) clear(dirs []string) error {
	for _, d := range dirs {
		names, err := s.names(d)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			_ = s.fs.Remove(d) // it may not be there
			continue
		}
		for _, n := range names {
			p := filepath.Join(d, n)
			if i, err := s.fs.Lstat(p); err != nil || i.IsDir() {
				continue
			}
			if err := s.fs.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := durable.SyncDirOn(s.fs, d); err != nil {
			return err
		}
		_ = s.fs.Remove(d) // it stays when folders are in it
	}
	return nil
}

// vacate removes what a folder whose deletion was broken off has left under its name: with its
// uidlist the next one would have the same UIDVALIDITY.
func (s *Store) vacate(name string) error {
	if name == maildir.Inbox {
		return nil
	}
	dirs, err := s.placesOf(name)
	if err == nil {
		err = s.retire(name)
	}
	if err == nil {
		err = s.clear(dirs[1:])
	}
	if err != nil {
		return err
	}
	for _, n := range []string{maildir.UIDListName, maildir.KeywordsName, indexName, indexLock, cacheName} {
		if err := s.fs.Remove(filepath.Join(dirs[0], n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// placesOf are the directories of a folder: messages, control files and index, each once.
func (s *Store) placesOf(name string) (dirs []string, err error) {
	for _, fn := range []func(string) (string, error){s.tree.Dir, s.tree.ControlDir, s.tree.IndexDir} {
		d, err := fn(name)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrName, err)
		}
		if !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return dirs, nil
}

// retire sees to it that the next folder of this name gets a higher UIDVALIDITY, also where the
// one that it has came from another server (RFC 9051 §2.3.1.1).
func (s *Store) retire(name string) error {
	dir, err := s.tree.ControlDir(name)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrName, err)
	}
	v, err := maildir.ReadValidity(s.fs, dir)
	if err != nil || v == 0 {
		return err
	}
	return maildir.RaiseUIDValidity(s.fs, s.tree.ControlRoot(), v)
}

// forget drops folders from the table of open ones; who has them open finds them gone.
func (s *Store) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.open {
		if n == name || strings.HasPrefix(n, name+"/") {
			delete(s.open, n)
		}
	}
}

// trash takes a folder away in one step where that is possible, and then removes it.
func (s *Store) trash(dir string) error {
	tmp := filepath.Join(s.root, "tmp", s.namer.Base())
	if s.tree.Layout == maildir.LayoutPlus {
		err := s.fs.Rename(dir, tmp)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = durable.SyncDirOn(s.fs, filepath.Dir(dir))
		}
		if err != nil {
			return err
		}
		return s.removeAll(tmp, 0)
	}
	// Folders below it are directories in it: only what is the folder's own goes, cur/ first, so
	// that it is no folder any more.
	if err := s.fs.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	names, err := s.names(dir)
	if err != nil {
		return err
	}
	slices.SortFunc(names, func(a, b string) int {
		if a == "cur" || b == "cur" {
			return strings.Compare(b, "cur") - strings.Compare(a, "cur")
		}
		return strings.Compare(a, b)
	})
	for _, n := range names {
		i, err := s.fs.Lstat(filepath.Join(dir, n))
		if err != nil || i.IsDir() && n != "cur" && n != "new" && n != "tmp" {
			continue
		}
		if err := s.fs.Rename(filepath.Join(dir, n), filepath.Join(tmp, n)); err != nil {
			return err
		}
	}
	if err := durable.SyncDirOn(s.fs, dir); err != nil {
		return err
	}
	_ = s.fs.Remove(dir) // it stays when folders are in it
	return s.removeAll(tmp, 0)
}

func (s *Store) names(dir string) ([]string, error) {
	f, err := s.fs.OpenFile(dir, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	return names, errors.Join(err, f.Close())
}

// removeAll removes what trash has put aside: a folder is three levels deep.
func (s *Store) removeAll(path string, depth int) error {
	i, err := s.fs.Lstat(path)
	if err != nil || depth > 8 {
		return err
	}
	if i.IsDir() {
		names, err := s.names(path)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := s.removeAll(filepath.Join(path, n), depth+1); err != nil {
				return err
			}
		}
	}
	return s.fs.Remove(path)
}

// Rename renames a folder with its children. Renaming INBOX moves its messages into a new one
// (RFC 9051 §6.3.6).
func (s *Store) Rename(ctx context.Context, from, to string) error {
	from, to = canonical(from), canonical(to)
	if strings.HasPrefix(to, from+"/") || from == to || to == maildir.Inbox {
		return fmt.Errorf("rename %s to %s: %w", from, to, ErrName)
	}
	if from == maildir.Inbox {
		return s.emptyInbox(ctx, to)
	}
	unlock, err := s.lockTree(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	found, _, err := s.tree.List(s.fs)
	if err != nil {
		return fmt.Errorf("rename %s: %w", from, err)
	}
	var names []string
	for _, f := range found {
		if f.Name == from || strings.HasPrefix(f.Name, from+"/") {
			names = append(names, f.Name)
		}
		if f.Name == to {
			return fmt.Errorf("rename %s to %s: %w", from, to, ErrExists)
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("rename %s: %w", from, ErrNotFound)
	}
	for _, n := range names {
		if err := s.retire(n); err != nil {
			return fmt.Errorf("rename %s: %w", from, err)
		}
	}
	if s.tree.Layout == maildir.LayoutFS {
		names = []string{from} // the others are in its directory
	}
	for _, n := range names {
		if _, err := s.placesOf(to + strings.TrimPrefix(n, from)); err != nil {
			return err
		}
	}
	s.forget(from)
	for _, n := range names {
		if err := s.renameOne(n, to+strings.TrimPrefix(n, from)); err != nil {
			return fmt.Errorf("rename %s to %s: %w", from, to, err)
		}
	}
	return nil
}

func (s *Store) renameOne(from, to string) error {
	a, err := s.placesOf(from)
	if err != nil {
		return err
	}
	b, err := s.placesOf(to)
	if err != nil {
		return err
	}
	for i := range a {
		if i > 0 { // control files before messages would be better seen missing than mixed
			if _, err := s.fs.Lstat(a[i]); err != nil {
				continue
			}
		}
		if err := durable.MkdirAllOn(s.fs, filepath.Dir(b[i]), 0o700); err != nil {
			return err
		}
		err := s.fs.RenameNew(a[i], b[i])
		if errors.Is(err, fs.ErrNotExist) {
			continue // a parent that is only a name
		}
		if err == nil {
			err = errors.Join(durable.SyncDirOn(s.fs, filepath.Dir(b[i])), durable.SyncDirOn(s.fs, filepath.Dir(a[i])))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// emptyInbox moves all messages of the inbox into a new folder.
func (s *Store) emptyInbox(ctx context.Context, to string) error {
	if err := s.Create(ctx, to); err != nil {
		return err
	}
	src, err := s.Mailbox(ctx, maildir.Inbox)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := s.Mailbox(ctx, to)
	if err != nil {
		return err
	}
	defer dst.Close()
	v, err := src.Select(ctx, false)
	if err != nil {
		return err
	}
	defer v.Close()
	uids := make([]uint32, 0, v.Len())
	for _, m := range v.All(1, v.Len()) {
		uids = append(uids, m.UID)
	}
	_, err = v.Move(ctx, uids, dst)
	return err
}

// Status answers without claiming \Recent.
func (s *Store) Status(ctx context.Context, name string) (Status, error) {
	m, err := s.Mailbox(ctx, name)
	if err != nil {
		return Status{}, err
	}
	st, _, err := m.refresh(ctx, false)
	if err = errors.Join(err, m.Close()); err != nil {
		return Status{}, fmt.Errorf("status of %s: %w", name, err)
	}
	first, _ := st.find(st.firstRecent)
	out := Status{
		Messages: st.n, Recent: st.n - first, Unseen: st.unseen, UIDValidity: st.validity, UIDNext: st.next,
		HighestModSeq: st.modseq, ID: st.id(),
	}
	for _, c := range st.chunks {
		out.Deleted += c.deleted
		out.Size += c.size
		out.DeletedSize += c.deletedSize
		if c.sizeless > 0 {
			out.Size = -1 << 62
		}
	}
	out.Size = max(out.Size, -1)
	return out, nil
}
