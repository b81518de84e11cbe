package mailbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// folderCheck looks at one folder.
type folderCheck struct {
	*checker
	m     *Mailbox
	found []problem
	files map[string]messageFile // by base name
	kw    uint32                 // letters in the names
	list  *maildir.UIDList
	wires map[string]int64 // sizes that are told wrong, by base name
}

type messageFile struct {
	sub, name string
	size      int64
	ino       uint64
}

func (f *messageFile) path(m *Mailbox) string { return filepath.Join(m.dir, f.sub, f.name) }

// mailbox looks at one folder and repairs it.
func (c *checker) mailbox(ctx context.Context, f maildir.Folder) error {
	m, err := c.s.Mailbox(ctx, f.Name)
	if err != nil {
		return err
	}
	k := &folderCheck{checker: c, m: m}
	return errors.Join(c.settle(ctx, k.look, k.repair), m.Close())
}

func (k *folderCheck) add(p problem) {
	p.Mailbox = k.m.name
	k.found = append(k.found, p)
}

func (k *folderCheck) look(ctx context.Context) ([]problem, error) {
	k.found, k.wires = nil, map[string]int64{}
	k.directories()
	for _, step := range []func(context.Context) error{k.messages, k.uidlist, k.keywords, k.staleLock, k.meta, k.index, k.cache, k.sizes} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("mailbox %s: %w", k.m.name, err)
		}
	}
	return k.found, nil
}

// directories wants all three, and Maildir++'s mark.
func (k *folderCheck) directories() {
	m := k.m
	for _, sub := range []string{"new", "tmp"} {
		path := filepath.Join(m.dir, sub)
		if k.isDir(path) {
			continue
		}
		k.add(problem{
			Finding: Finding{Path: path, Kind: "no-directory", Serious: true, What: "the directory is missing: nothing can be delivered", Remedy: "makes it"},
			fix:     func(context.Context) error { return maildir.Create(m.fs(), m.dir) },
		})
	}
	mark := filepath.Join(m.dir, maildir.FolderFile)
	if m.name == maildir.Inbox || m.store.tree.Layout == maildir.LayoutFS {
		return
	}
	if _, err := m.fs().Lstat(mark); errors.Is(err, fs.ErrNotExist) {
		k.add(problem{
			Finding: Finding{Path: mark, Kind: "no-mark", What: "the mark of a folder is missing: deliveries into it count for no quota", Remedy: "makes it"},
			fix:     func(context.Context) error { return durable.WriteFileOn(m.fs(), mark, nil, 0o600) },
		})
	}
}

// messages looks at every file in new/ and cur/.
func (k *folderCheck) messages(ctx context.Context) error {
	k.files, k.kw = map[string]messageFile{}, 0
	for _, sub := range []string{"new", "cur"} {
		names, err := k.names(filepath.Join(k.m.dir, sub))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for i, name := range names {
			if i%1024 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			if name[0] != '.' { // maildir(5): no messages
				k.message(sub, name)
			}
		}
	}
	return nil
}

func (k *folderCheck) message(sub, name string) {
	m := k.m
	path := filepath.Join(m.dir, sub, name)
	info, err := m.fs().Lstat(path)
	if err != nil {
		return // renamed or expunged meanwhile
	}
	if t := info.Mode().Type(); t != 0 && t != fs.ModeSymlink {
		k.add(problem{
			Finding: Finding{Path: path, Kind: "not-a-file", Serious: true, What: "clients see a message that is no file", Remedy: "moves it out of " + sub + "/"},
			fix: func(context.Context) error {
				return k.rename(path, filepath.Join(m.dir, "not-mail."+name))
			},
			mend: true,
		})
		return
	}
	n := maildir.ParseName(name)
	if !maildir.ValidName(name) {
		to := m.store.namer.Base() + suffixOf(n)
		k.add(problem{
			Finding: Finding{Path: path, Kind: "file-name", Serious: true, What: "no client sees this message: its file name cannot be that of a message", Remedy: "gets another name"},
			fix:     func(context.Context) error { return k.rename(path, filepath.Join(m.dir, sub, to)) },
			mend:    true,
		})
		return
	}
	if sub == "cur" && !n.Info {
		k.add(problem{
			Finding: Finding{Path: path, Kind: "no-info", What: "some programs do not see this message: its name lacks \":2,\"", Remedy: "adds it"},
			fix: func(context.Context) error {
				return k.rename(path, filepath.Join(m.dir, sub, n.With(0, 0).String()))
			},
			mend: true,
		})
	}
	f := messageFile{sub: sub, name: name, size: info.Size(), ino: inode(info)}
	k.kw |= n.Keywords
	if other, ok := k.files[n.Base]; ok && k.double(other, f) {
		return
	}
	k.files[n.Base] = f
	if info.Size() == 0 && info.Mode().IsRegular() {
		k.add(problem{Finding: Finding{
			Path: path, Kind: "empty", What: "the message is empty: whoever wrote it did not wait for the disk",
			Remedy: "nothing; delete it with a client",
		}})
	}
	if size, _, ok, _ := n.Sizes(); ok && size != info.Size() && info.Mode().IsRegular() {
		k.wrongSize(path, n.Base, fmt.Sprintf("its name says %d octets, it has %d", size, info.Size()))
	}
}

// suffixOf is what follows the base name, as far as it can be kept.
func suffixOf(n maildir.Name) string {
	s := strings.TrimPrefix(n.String(), n.Base)
	if !n.Info || !maildir.ValidName("x"+s) {
		return ":2,"
	}
	return s
}

// double reports two files of one base name, unless a rename just went on.
func (k *folderCheck) double(a, b messageFile) bool {
	m := k.m
	ia, ea := m.fs().Lstat(a.path(m))
	ib, eb := m.fs().Lstat(b.path(m))
	if ea != nil || eb != nil {
		return false
	}
	p := problem{
		Finding: Finding{Path: b.path(m), Kind: "double-name", Serious: true, What: fmt.Sprintf("it has the base name of another message, %s/%s", a.sub, a.name), Remedy: "one gets another name"},
		mend:    true,
	}
	if durable.SameFile(ia, ib) {
		p.What, p.Remedy = fmt.Sprintf("the message has a second name, %s/%s", a.sub, a.name), "the name with fewer flags goes; the file stays"
		p.fix = func(context.Context) error { return k.oneName(a, b) }
	}
	k.add(p)
	return true
}

// oneName removes one of two names of one file.
func (k *folderCheck) oneName(a, b messageFile) error {
	m := k.m
	ia, ea := m.fs().Lstat(a.path(m))
	ib, eb := m.fs().Lstat(b.path(m))
	if ea != nil || eb != nil || !durable.SameFile(ia, ib) {
		return nil // somebody has settled it
	}
	extra := a
	if a.sub == b.sub && len(a.name) > len(b.name) {
		extra = b
	}
	if err := m.fs().Remove(extra.path(m)); err != nil {
		return err
	}
	return durable.SyncDirOn(m.fs(), filepath.Join(m.dir, extra.sub))
}

// rename gives a file another name, which must be free; that the file is gone is no error.
func (k *folderCheck) rename(from, to string) error {
	fsys := k.m.fs()
	err := fsys.RenameNew(from, to)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = durable.SyncDirOn(fsys, filepath.Dir(to))
	}
	if err == nil && filepath.Dir(from) != filepath.Dir(to) {
		err = durable.SyncDirOn(fsys, filepath.Dir(from))
	}
	return err
}

// uidlist looks at the list as it lies there.
func (k *folderCheck) uidlist(ctx context.Context) error {
	m := k.m
	path := filepath.Join(m.control, maildir.UIDListName)
	list, err := k.readList(path)
	k.list = list
	if errors.Is(err, maildir.ErrNewer) {
		k.add(problem{Finding: Finding{Path: path, Kind: "uidlist-newer", Serious: true, What: err.Error(), Remedy: "nothing"}})
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := m.fs().Lstat(filepath.Join(m.indexAt, indexName)); err == nil {
			k.add(problem{
				Finding: Finding{Path: path, Kind: "uidlist-missing", Serious: true, What: "the list of UIDs is missing", Remedy: "is written anew from the index"},
				mend:    true,
			})
		}
		return nil
	}
	if err != nil {
		return err
	}
	if list.Validity == 0 && list.Size+list.Tail > 0 {
		k.add(problem{
			Finding: Finding{
				Path: path, Kind: "uidlist-header", Serious: true, What: "the first line cannot be read",
				Remedy: "is written anew; UIDs and UIDVALIDITY come from the index, or are new where there is none",
			},
			mend: true,
		})
	} else if n := len(list.Damage); n > 0 {
		d := list.Damage[0]
		k.add(problem{
			Finding: Finding{
				Path: path, Kind: "uidlist-line", Serious: true,
				What:   fmt.Sprintf("%d lines cannot be used; the first at octet %d: %s: %.60q", n, d.Offset, d.Why, d.Line),
				Remedy: "is written anew; a message that has lost its line is numbered from the index, or gets a new UID",
			},
			mend: true,
		})
	}
	if list.Validity != 0 && list.Tail > 0 && k.stays(ctx, path, list.Size+list.Tail) {
		k.add(problem{
			Finding: Finding{Path: path, Kind: "uidlist-tail", What: fmt.Sprintf("%d octets at the end are no whole line", list.Tail), Remedy: "cuts them off; their UIDs were never told"},
			mend:    true,
		})
	}
	k.doubleLines(path)
	if list.Next > 1<<32-1-1000 {
		k.add(problem{Finding: Finding{Path: path, Kind: "uids-used-up", Serious: true, What: fmt.Sprintf("the next UID is %d: there is no room for more", list.Next), Remedy: "copy the messages to a new mailbox"}})
	}
	return nil
}

func (k *folderCheck) readList(path string) (*maildir.UIDList, error) {
	f, err := k.m.fs().OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	list, err := maildir.ReadUIDList(f)
	return list, errors.Join(err, f.Close())
}

// stays tells whether a file has the same length a moment later: nobody is writing to it.
func (k *folderCheck) stays(ctx context.Context, path string, size int64) bool {
	if pause(ctx, 50*time.Millisecond) != nil {
		return false
	}
	i, err := k.m.fs().Lstat(path)
	return err == nil && i.Size() == size
}

func (k *folderCheck) doubleLines(path string) {
	seen := make(map[string]uint32, len(k.list.Entries))
	n, first := 0, ""
	for i := range k.list.Entries {
		e := &k.list.Entries[i]
		if old, ok := seen[e.Base]; ok {
			if n++; n == 1 {
				first = fmt.Sprintf("%s has the UIDs %d and %d", e.Base, old, e.UID)
			}
		}
		seen[e.Base] = e.UID
	}
	if n > 0 {
		k.add(problem{
			Finding: Finding{Path: path, Kind: "uidlist-double", Serious: true, What: fmt.Sprintf("%d messages have two UIDs: %s", n, first), Remedy: "keeps the higher one"},
			mend:    true,
		})
	}
}

// keywords looks at the names of the letters.
func (k *folderCheck) keywords(context.Context) error {
	path := filepath.Join(k.m.control, maildir.KeywordsName)
	b, err := k.read(path, 1<<20)
	if err != nil {
		return err
	}
	have, damage := maildir.ParseKeywords(b)
	if len(damage) > 0 {
		k.add(problem{
			Finding: Finding{
				Path: path, Kind: "keywords-line", Serious: true,
				What:   fmt.Sprintf("%d lines cannot be used; the first at octet %d: %s: %.60q", len(damage), damage[0].Offset, damage[0].Why, damage[0].Line),
				Remedy: "is written anew; the old file stays beside it",
			},
			fix: func(ctx context.Context) error { return k.writeKeywords(ctx, path, true) },
		})
	}
	letters := ""
	for i := range maildir.MaxKeywords {
		if k.kw&(1<<i) != 0 && have[i] == "" {
			letters += string(rune('a' + i))
		}
	}
	if letters != "" {
		k.add(problem{
			Finding: Finding{
				Path: path, Kind: "keyword-letter", Serious: true, What: "letters in file names stand for no keyword: " + letters,
				Remedy: "they get the names that the index knows, else unknown-<number>",
			},
			fix: func(ctx context.Context) error { return k.writeKeywords(ctx, path, false) },
		})
	}
	return nil
}

// writeKeywords names all letters that are in use.
func (k *folderCheck) writeKeywords(ctx context.Context, path string, aside bool) error {
	lock, err := k.m.lockList(ctx)
	if err != nil {
		return err
	}
	defer k.m.unlockList(lock)
	b, err := k.read(path, 1<<20)
	if err != nil {
		return err
	}
	if aside {
		if err := k.aside(path, b); err != nil {
			return err
		}
	}
	have, _ := maildir.ParseKeywords(b)
	var known []string
	if st := k.m.st.Load(); st != nil {
		known = st.keywords
	}
	for i := range have {
		switch {
		case have[i] != "" || k.kw&(1<<i) == 0:
		case i < len(known) && known[i] != "" && have.Index(known[i]) < 0:
			have[i] = known[i]
		default:
			have[i] = fmt.Sprintf("unknown-%d", i)
		}
	}
	return durable.WriteFileOn(k.m.fs(), path, have.AppendTo(nil), 0o600)
}

// aside keeps what could not be read.
func (k *folderCheck) aside(path string, b []byte) error {
	return durable.WriteFileOn(k.m.fs(), fmt.Sprintf("%s.unreadable.%d", path, k.now.Unix()), b, 0o600)
}

// staleLock finds a lock that its holder has left behind.
func (k *folderCheck) staleLock(context.Context) error {
	m := k.m
	path := filepath.Join(m.control, maildir.UIDListName+".lock")
	if !maildir.StaleLock(m.fs(), m.control, maildir.LockOptions{Now: k.s.now}) {
		return nil
	}
	k.add(problem{
		Finding: Finding{Path: path, Kind: "stale-lock", What: "the process that made this lock has ended", Remedy: "removes it"},
		fix: func(ctx context.Context) error {
			lock, err := m.lockList(ctx)
			if err != nil {
				return err
			}
			return lock.Unlock()
		},
	})
	return nil
}

// meta looks at our own file beside the uidlist.
func (k *folderCheck) meta(context.Context) error {
	path := filepath.Join(k.m.control, maildir.MetaName)
	b, err := k.read(path, 256<<20)
	if err != nil {
		return err
	}
	meta, damage, err := maildir.ParseMeta(b)
	f := Finding{Path: path, Kind: "meta", Serious: true, Remedy: "what can be read is kept; the old file stays beside it"}
	switch {
	case errors.Is(err, maildir.ErrNewer):
		f.Kind, f.What, f.Remedy, f.Serious = "meta-newer", err.Error(), "nothing", false
		k.add(problem{Finding: f})
		return nil
	case err != nil:
		f.What, meta = err.Error(), maildir.NewMeta()
	case len(damage) > 0:
		f.What = fmt.Sprintf("%d lines cannot be used; the first at octet %d: %.60q", len(damage), damage[0].Offset, damage[0].Line)
	default:
		return nil
	}
	k.add(problem{Finding: f, fix: func(ctx context.Context) error {
		lock, err := k.m.lockList(ctx)
		if err != nil {
			return err
		}
		defer k.m.unlockList(lock)
		if err := k.aside(path, b); err != nil {
			return err
		}
		return maildir.WriteMeta(k.m.fs(), k.m.control, meta)
	}})
	return nil
}
