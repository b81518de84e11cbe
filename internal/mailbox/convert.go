package mailbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"pennypost/internal/maildir"
)

// Origin is the server that a folder comes from.
type Origin string

// The origins.
const (
	FromDovecot Origin = "dovecot"
	FromCourier Origin = "courier"
	FromOurs    Origin = "pennypost"
	FromNone    Origin = "none" // nobody has given UIDs yet
)

// Taken is what clients will see of one folder after a take-over.
type Taken struct {
	Mailbox     string
	Path        string // on disk; "" when nothing is there to convert
	Rename      string // the directory gets this name, below the root
	From        Origin
	Messages    int
	UIDValidity uint32 // 0: a new one is made
	UIDNext     uint32
	Kept        int      // messages that keep their UIDs
	New         int      // messages that get new ones
	Keywords    []string // kept
	POP3        int      // messages with a UIDL that is kept
	ACL         int      // entries that go to pennypost-meta
	Modseq      uint64   // HIGHESTMODSEQ, where we know it
	Lost        []string // what does not come along
}

// Plan tells what a take-over does, without doing it: a line for each folder, and the
// subscriptions that it takes over from Courier, if it does.
func (s *Store) Plan(ctx context.Context) (folders []Taken, subscriptions []string, err error) {
	list, bad, err := s.tree.List(s.fs)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range list {
		if !f.Selectable {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		t, err := s.plan(f)
		if err != nil {
			return nil, nil, fmt.Errorf("mailbox %s: %w", f.Name, err)
		}
		folders = append(folders, t)
	}
	slices.Sort(bad)
	for _, rel := range bad {
		from, to, ok := s.tree.Repair(s.fs, rel)
		if !ok || from != rel {
			continue
		}
		name, _ := s.tree.Name(to)
		t, err := s.planAt(name, filepath.Join(s.root, rel), filepath.Join(cmp.Or(s.tree.Control, s.root), rel))
		if err != nil {
			return nil, nil, fmt.Errorf("mailbox %s: %w", name, err)
		}
		t.Rename = to
		folders = append(folders, t)
	}
	subscriptions, err = s.courierSubscriptions()
	return folders, subscriptions, err
}

func (s *Store) plan(f maildir.Folder) (Taken, error) {
	control, err := s.tree.ControlDir(f.Name)
	if err != nil {
		return Taken{}, err
	}
	t, err := s.planAt(f.Name, f.Path, control)
	if err != nil {
		return t, err
	}
	index, err := s.tree.IndexDir(f.Name)
	if err != nil {
		return t, err
	}
	if file, err := s.fs.OpenFile(filepath.Join(index, indexName), 0, 0); err == nil {
		if i, err := file.Stat(); err == nil {
			if st, err := readIndex(file, i.Size()); err == nil {
				t.Modseq = st.modseq
				if t.From == FromDovecot {
					t.From = FromOurs
				}
			}
		}
		if err := file.Close(); err != nil {
			return t, err
		}
	}
	return t, nil
}

// planAt looks at one directory.
func (s *Store) planAt(name, dir, control string) (Taken, error) {
	t := Taken{Mailbox: name, Path: dir, From: FromNone, UIDNext: 1}
	k := &folderCheck{checker: &checker{s: s, now: s.now()}, m: &Mailbox{store: s, name: name, dir: dir, control: control}, wires: map[string]int64{}}
	if err := k.messages(context.Background()); err != nil {
		return t, err
	}
	t.Messages = len(k.files)
	b, err := k.read(filepath.Join(control, maildir.KeywordsName), 1<<20)
	if err != nil {
		return t, err
	}
	keywords, _ := maildir.ParseKeywords(b)
	list, err := k.readList(filepath.Join(control, maildir.UIDListName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := s.planCourier(&t, k, keywords); err != nil {
			return t, err
		}
	case err != nil:
		return t, err
	default:
		t.From = FromDovecot
		t.count(list, k.files)
		t.named(keywords, k.kw)
		t.Lost = append(t.Lost, s.dovecotLosses(dir, keywords)...)
	}
	acl, err := k.read(filepath.Join(dir, maildir.CourierACL), 1<<20)
	if err == nil && t.From == FromCourier {
		t.ACL = len(maildir.ParseCourierACL(string(acl)))
	}
	t.New = t.Messages - t.Kept
	return t, err
}

func (s *Store) planCourier(t *Taken, k *folderCheck, have maildir.Keywords) error {
	c, err := maildir.ReadCourier(s.fs, t.Path, have)
	if err != nil || c == nil {
		return err
	}
	t.From = FromCourier
	t.count(c.List, k.files)
	used := k.kw
	for _, bits := range c.Letters {
		used |= bits
	}
	t.named(c.Keywords, used)
	if n := len(c.Beyond); n > 0 {
		t.Lost = append(t.Lost, fmt.Sprintf("%d messages have keywords beyond the 26 that have letters: they are kept in %s and not shown", n, maildir.MetaName))
	}
	for _, d := range c.Damage {
		t.Lost = append(t.Lost, fmt.Sprintf("a line of Courier's files cannot be read: %s: %.60q", d.Why, d.Line))
	}
	return nil
}

// dovecotLosses names what only Dovecot's index knows, where the folder has run out of letters.
func (s *Store) dovecotLosses(dir string, k maildir.Keywords) []string {
	if slices.Contains(k[:], "") {
		return nil
	}
	for _, n := range []string{"dovecot.index", "dovecot.index.log"} {
		if _, err := s.fs.Lstat(filepath.Join(dir, n)); err == nil {
			return []string{"keywords beyond the 26 that have letters, if there are any: only dovecot.index has them"}
		}
	}
	return nil
}

func (t *Taken) count(l *maildir.UIDList, files map[string]messageFile) {
	t.UIDValidity, t.UIDNext = l.Validity, max(l.Next, 1)
	for i := range l.Entries {
		e := &l.Entries[i]
		if _, ok := files[e.Base]; !ok {
			continue
		}
		t.Kept++
		if e.POP3 != "" {
			t.POP3++
		}
	}
}

// named lists the keywords that messages bear.
func (t *Taken) named(k maildir.Keywords, used uint32) {
	for i, name := range k {
		if used&(1<<i) != 0 && name != "" {
			t.Keywords = append(t.Keywords, name)
		}
	}
}

// courierSubscriptions are those that Subscribe does not know yet; nil where Dovecot's list is
// there.
func (s *Store) courierSubscriptions() ([]string, error) {
	if _, err := s.fs.Lstat(s.subsPath()); !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	b, err := (&Mailbox{store: s}).readFile(filepath.Join(s.root, maildir.CourierSubscribed), 16<<20)
	if err != nil {
		return nil, err
	}
	return maildir.ParseCourierSubscribed(b).Names, nil
}

// Convert takes the account over, in place: UIDs, keywords, POP3 keys, ACL and subscriptions of
// another server become those of ours. Its files stay. Doing it twice changes nothing the
// second time.
func (s *Store) Convert(ctx context.Context, each func(Taken)) error {
	folders, subs, err := s.Plan(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range folders {
		if t.Rename != "" {
			from, err := filepath.Rel(s.root, t.Path)
			if err == nil {
				err = s.renameDir(from, t.Rename)
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
		}
		if err := s.convert(ctx, t); err != nil {
			errs = append(errs, err)
			continue
		}
		each(t)
	}
	if len(subs) > 0 {
		errs = append(errs, s.adoptSubscriptions(ctx))
	}
	return errors.Join(errs...)
}

// adoptSubscriptions writes down in Dovecot's file what was read from Courier's.
func (s *Store) adoptSubscriptions(ctx context.Context) error {
	unlock, err := s.lockTree(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	subs, err := s.subscriptions()
	if err == nil {
		err = s.writeSubscriptions(subs)
	}
	return err
}

func (s *Store) convert(ctx context.Context, t Taken) (err error) {
	m, err := s.Mailbox(ctx, t.Mailbox)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	v, err := m.Select(ctx, true)
	if err != nil {
		return err
	}
	if err := v.Close(); err != nil || t.ACL == 0 {
		return err
	}
	b, err := m.readFile(filepath.Join(m.dir, maildir.CourierACL), 1<<20)
	if err != nil {
		return err
	}
	return s.editMeta(ctx, t.Mailbox, func(meta *maildir.Meta) {
		for who, rights := range maildir.ParseCourierACL(string(b)) {
			if meta.ACL[who] == "" {
				meta.ACL[who] = rights
			}
		}
	})
}
