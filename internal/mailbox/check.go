package mailbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// Finding is something that Check found.
type Finding struct {
	Mailbox  string // "" for the account
	Path     string // of the file or directory
	Kind     string // a word for each sort of damage; mstore(1) lists them
	What     string
	Remedy   string // what repairing does, or what a person can do
	Repaired bool
	Serious  bool // a client sees something wrong, or will
}

// CheckOptions says how Check looks.
type CheckOptions struct {
	Repair    bool
	Read      bool     // read every message and compare its size with what is told of it
	Mailboxes []string // nil: all
	Report    func(Finding)
	Progress  func(mailbox string, done, of int) // of a folder's messages; nil: nobody wants to know
}

// problem is a finding with what Check does about it.
type problem struct {
	Finding
	fix  func(context.Context) error // nil: mend alone, or nothing
	mend bool                        // writing uidlist and index anew repairs it
	drop bool                        // and the old index is of no use for that
}

// checker looks at one account.
type checker struct {
	s   *Store
	o   CheckOptions
	now time.Time
}

// Check looks for damage and repairs it when asked to. It never removes a message, and what it
// cannot read it puts aside. Without Repair nothing is written. Others may use the account
// meanwhile.
func (s *Store) Check(ctx context.Context, o CheckOptions) error {
	c := &checker{s: s, o: o, now: s.now()}
	var errs []error
	if o.Mailboxes == nil {
		errs = append(errs, c.settle(ctx, c.account, c.fix))
	}
	folders, _, err := s.tree.List(s.fs)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, f := range folders {
		if !f.Selectable || o.Mailboxes != nil && !slices.Contains(o.Mailboxes, f.Name) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		errs = append(errs, c.mailbox(ctx, f))
	}
	for _, name := range o.Mailboxes {
		if !slices.ContainsFunc(folders, func(f maildir.Folder) bool { return f.Selectable && f.Name == name }) {
			errs = append(errs, fmt.Errorf("mailbox %s: %w", name, ErrNotFound))
		}
	}
	return errors.Join(errs...)
}

// settle reports what look finds; with Repair it repairs first and looks again, so that a
// repair is reported only where the damage is gone.
func (c *checker) settle(ctx context.Context, look func(context.Context) ([]problem, error), repair func(context.Context, []problem) error) error {
	found, err := look(ctx)
	if err != nil {
		return err
	}
	var failed error
	if c.o.Repair && len(found) > 0 {
		failed = repair(ctx, found)
		after, err := look(ctx)
		if err != nil {
			return errors.Join(failed, err)
		}
		for i := range found {
			found[i].Repaired = !slices.ContainsFunc(after, found[i].same)
		}
		for _, p := range after {
			if !slices.ContainsFunc(found, p.same) {
				found = append(found, p)
			}
		}
	}
	for _, p := range found {
		c.o.Report(p.Finding)
	}
	return failed
}

// fix runs what the problems bring along.
func (c *checker) fix(ctx context.Context, found []problem) error {
	var errs []error
	for _, p := range found {
		if p.fix == nil {
			continue
		}
		if err := p.fix(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.Path, err))
		}
	}
	return errors.Join(errs...)
}

func (p problem) same(q problem) bool { return p.Kind == q.Kind && p.Path == q.Path }

// account looks at what the folders have in common.
func (c *checker) account(ctx context.Context) (found []problem, err error) {
	s := c.s
	folders, bad, err := s.tree.List(s.fs)
	if err != nil {
		return nil, err
	}
	slices.Sort(bad)
	for _, rel := range bad {
		found = append(found, c.unreachable(rel))
	}
	half, err := c.halfFolders()
	if err != nil {
		return nil, err
	}
	found = append(found, half...)
	highest, err := c.highestValidity(folders)
	if err != nil {
		return nil, err
	}
	root := s.tree.ControlRoot()
	last, err := maildir.LastUIDValidity(s.fs, root)
	if err != nil {
		return nil, err
	}
	next := int64(last) + 1
	if last == 0 {
		next = c.now.Unix()
	}
	if next <= int64(highest) {
		found = append(found, problem{
			Finding: Finding{
				Path: filepath.Join(root, maildir.UIDValidityName), Kind: "uidvalidity-counter", Serious: true,
				What:   fmt.Sprintf("the next new folder would get UIDVALIDITY %d, and %d is in use", next, highest),
				Remedy: "counts on from there",
			},
			fix: func(context.Context) error { return maildir.RaiseUIDValidity(s.fs, root, highest) },
		})
	}
	more, err := c.maildirSize(folders)
	if err != nil {
		return nil, err
	}
	found = append(found, more...)
	path := filepath.Join(root, maildir.SubscriptionsName)
	b, err := c.read(path, 16<<20)
	if err != nil {
		return nil, err
	}
	for _, line := range s.tree.ParseSubscriptions(b).Kept {
		found = append(found, problem{Finding: Finding{
			Path: path, Kind: "subscription", What: fmt.Sprintf("a line is not the name of a mailbox: %.80q", line),
			Remedy: "nothing; it is kept for the program that wrote it",
		}})
	}
	return found, nil
}

// maildirSize compares maildirsize, where it is kept, with what is there.
func (c *checker) maildirSize(folders []maildir.Folder) ([]problem, error) {
	s := c.s
	p := problem{
		Finding: Finding{Path: s.sizePath(), Kind: "maildirsize", Remedy: "counts anew"},
		fix: func(ctx context.Context) error {
			_, err := s.Recount(ctx)
			return err
		},
	}
	says, _, err := s.readSize()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		p.What = err.Error()
		return []problem{p}, nil
	}
	var is Limits
	buf := make([]byte, 64<<10)
	for _, f := range folders {
		for _, sub := range []string{"new", "cur"} {
			if err := s.countDir(filepath.Join(f.Path, sub), buf, &is); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
	}
	if now, _, err := s.readSize(); err != nil || now != says || says.Used == (maildir.Quota{Octets: is.Octets, Messages: is.Messages}) {
		return nil, nil // or mail came meanwhile
	}
	p.What = fmt.Sprintf("it says %d octets in %d messages, and there are %d in %d", says.Used.Octets, says.Used.Messages, is.Octets, is.Messages)
	return []problem{p}, nil
}

// highestValidity is the highest UIDVALIDITY of a folder.
func (c *checker) highestValidity(folders []maildir.Folder) (highest uint32, err error) {
	for _, f := range folders {
		if !f.Selectable {
			continue
		}
		dir, err := c.s.tree.ControlDir(f.Name)
		if err != nil {
			return 0, err
		}
		v, err := maildir.ReadValidity(c.s.fs, dir)
		if err != nil {
			return 0, fmt.Errorf("mailbox %s: %w", f.Name, err)
		}
		highest = max(highest, v)
	}
	return highest, nil
}

// unreachable is a folder that no mailbox name leads to: mostly its name is UTF-8 where modified
// UTF-7 is expected.
func (c *checker) unreachable(rel string) problem {
	s := c.s
	p := problem{Finding: Finding{
		Path: filepath.Join(s.tree.Root, rel), Kind: "folder-name", Serious: true,
		What: "no client can open this folder: its name on disk is not that of a mailbox",
	}}
	from, to, ok := s.tree.Repair(s.fs, rel)
	if !ok {
		p.Remedy = "rename the directory"
		return p
	}
	p.Remedy = "is renamed to " + to
	p.fix = func(context.Context) error { return s.renameDir(from, to) }
	return p
}

// renameDir gives a directory another name in all trees of the account. The messages come last:
// cut short, it begins anew.
func (s *Store) renameDir(from, to string) error {
	for _, root := range []string{s.tree.Index, s.tree.Control, s.root} {
		if root == "" {
			continue
		}
		err := s.fs.RenameNew(filepath.Join(root, from), filepath.Join(root, to))
		if errors.Is(err, fs.ErrNotExist) {
			continue // nothing of it is there, or it went with the folder above it
		}
		if err := cmp.Or(err, durable.SyncDirOn(s.fs, root)); err != nil {
			return err
		}
	}
	return nil
}

// halfFolders finds directories of Maildir++ that were folders once but lack cur/.
func (c *checker) halfFolders() (found []problem, err error) {
	s := c.s
	if s.tree.Layout == maildir.LayoutFS {
		return nil, nil // any directory may be there
	}
	names, err := c.names(s.tree.Root)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if n == "." || n == ".." || !strings.HasPrefix(n, ".") {
			continue
		}
		path := filepath.Join(s.tree.Root, n)
		if c.isDir(filepath.Join(path, "cur")) || !c.isDir(filepath.Join(path, "new")) && !c.isDir(filepath.Join(path, "tmp")) {
			continue
		}
		found = append(found, problem{
			Finding: Finding{Path: path, Kind: "no-cur", Serious: true, What: "the folder has no cur/: no program sees it", Remedy: "makes it"},
			fix: func(context.Context) error {
				err := maildir.Create(s.fs, path)
				return cmp.Or(err, durable.WriteFileOn(s.fs, filepath.Join(path, maildir.FolderFile), nil, 0o600))
			},
		})
	}
	return found, nil
}

func (c *checker) isDir(path string) bool {
	i, err := c.s.fs.Lstat(path)
	return err == nil && (i.IsDir() || i.Mode()&fs.ModeSymlink != 0)
}

func (c *checker) names(dir string) ([]string, error) {
	f, err := c.s.fs.OpenFile(dir, 0, 0)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, cmp.Or(err, f.Close())
}

// read reads a small file; one that is not there is empty.
func (c *checker) read(path string, limit int64) ([]byte, error) {
	return (&Mailbox{store: c.s}).readFile(path, limit)
}
