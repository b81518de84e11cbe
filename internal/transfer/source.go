package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/imapclient"
	"pennypost/internal/imapwire"
	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
)

// Maildir is a Source that reads a Maildir of anybody's and writes nothing there: keys are
// base names.
type Maildir struct {
	Tree maildir.Tree
	FS   durable.FS // default the operating system's
}

func (m *Maildir) fs() durable.FS {
	if m.FS == nil {
		return durable.OS{}
	}
	return m.FS
}

// ID is the same for all: base names are unique in the world.
func (m *Maildir) ID() string { return "maildir" }

// Close does nothing.
func (m *Maildir) Close() error { return nil }

// Mailboxes lists the folders.
func (m *Maildir) Mailboxes(context.Context) ([]string, error) {
	found, bad, err := m.Tree.List(m.fs())
	if err != nil {
		return nil, err
	}
	if len(bad) > 0 {
		return nil, fmt.Errorf("%s: no mailbox name leads to it (mstore check names the remedy)", strings.Join(bad, ", "))
	}
	var names []string
	for _, f := range found {
		if f.Selectable {
			names = append(names, f.Name)
		}
	}
	return names, nil
}

// open opens a file or directory to read it. A pipe in its place has no end to wait for.
func open(fsys durable.FS, path string) (durable.File, error) {
	return fsys.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// readFile returns what is in a file, nothing when it is not there.
func readFile(fsys durable.FS, path string) ([]byte, error) {
	f, err := open(fsys, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}

// readList reads the uidlist in a directory, nil when there is none.
func readList(fsys durable.FS, dir string) (*maildir.UIDList, error) {
	f, err := open(fsys, filepath.Join(dir, maildir.UIDListName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l, err := maildir.ReadUIDList(f)
	return l, errors.Join(err, f.Close())
}

// readNames returns the file names in a directory, the oldest messages first.
func readNames(fsys durable.FS, dir string) ([]string, error) {
	f, err := open(fsys, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	err = errors.Join(err, f.Close())
	names = slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, ".") })
	slices.SortFunc(names, maildir.CompareBase)
	return names, err
}

// Messages reads new and cur.
func (m *Maildir) Messages(ctx context.Context, name string, known func(string) bool, count func(int)) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		dir, err := m.Tree.Dir(name)
		if err != nil {
			yield(Message{}, err)
			return
		}
		words, err := readKeywords(m.fs(), m.Tree, name)
		if err != nil {
			yield(Message{}, err)
			return
		}
		var paths []string
		for _, sub := range []string{"cur", "new"} {
			names, err := readNames(m.fs(), filepath.Join(dir, sub))
			if err != nil {
				yield(Message{}, err)
				return
			}
			for _, n := range names {
				paths = append(paths, filepath.Join(dir, sub, n))
			}
		}
		count(len(paths))
		for _, path := range paths {
			n := maildir.ParseName(filepath.Base(path))
			if known(n.Base) {
				continue
			}
			if err := ctx.Err(); err != nil {
				yield(Message{}, err)
				return
			}
			f, err := open(m.fs(), path)
			if errors.Is(err, fs.ErrNotExist) {
				f, err = openAgain(m.fs(), dir, n.Base)
			}
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed meanwhile
			}
			if err != nil {
				yield(Message{}, err)
				return
			}
			more, err := yieldFile(f, n, words, yield)
			if err != nil {
				yield(Message{}, err)
				return
			}
			if !more {
				return
			}
		}
	}
}

func yieldFile(f durable.File, n maildir.Name, words maildir.Keywords, yield func(Message, error) bool) (more bool, err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil {
		return false, err
	}
	if !fi.Mode().IsRegular() {
		return true, nil
	}
	msg := Message{Key: n.Base, Flags: n.Flags, Date: fi.ModTime(), Size: -1, Body: f}
	if _, w, _, ok := n.Sizes(); ok {
		msg.Size = w
	}
	for bit := range words {
		if n.Keywords&(1<<bit) != 0 && words[bit] != "" {
			msg.Keywords = append(msg.Keywords, words[bit])
		}
	}
	return yield(msg, nil), nil
}

// openAgain finds a message whose flags have been changed since the directory was read.
func openAgain(fsys durable.FS, dir, base string) (durable.File, error) {
	for _, sub := range []string{"cur", "new"} {
		names, err := readNames(fsys, filepath.Join(dir, sub))
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if maildir.ParseName(n).Base == base {
				return open(fsys, filepath.Join(dir, sub, n))
			}
		}
	}
	return nil, fs.ErrNotExist
}

func readKeywords(fsys durable.FS, t maildir.Tree, name string) (maildir.Keywords, error) {
	dir, err := t.ControlDir(name)
	if err != nil {
		return maildir.Keywords{}, err
	}
	b, err := readFile(fsys, filepath.Join(dir, maildir.KeywordsName))
	k, _ := maildir.ParseKeywords(b) // what is no keyword is not taken along
	return k, err
}

// Account is a Source that is an account of ours, which others may use meanwhile. Keys are
// UIDs with UIDVALIDITY.
type Account struct {
	Root  string // its Maildir
	Store *mailbox.Store
	Name  string
}

// ID is the account's name.
func (a *Account) ID() string { return "account " + a.Name }

// Close closes the account.
func (a *Account) Close() error { return a.Store.Close() }

// Mailboxes lists those that exist.
func (a *Account) Mailboxes(ctx context.Context) ([]string, error) {
	return existing(ctx, a.Store)
}

func existing(ctx context.Context, s *mailbox.Store) ([]string, error) {
	list, err := s.List(ctx)
	var names []string
	for _, f := range list {
		if f.Exists {
			names = append(names, f.Name)
		}
	}
	return names, err
}

// Messages reads the mailbox as it is now.
func (a *Account) Messages(ctx context.Context, name string, known func(string) bool, count func(int)) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		v, done, err := view(ctx, a.Store, name)
		if err != nil {
			yield(Message{}, err)
			return
		}
		more, err := each(ctx, v, known, count, yield)
		if err = errors.Join(err, done()); err != nil && more {
			yield(Message{}, err)
		}
	}
}

// view opens a mailbox to read it.
func view(ctx context.Context, s *mailbox.Store, name string) (*mailbox.View, func() error, error) {
	m, err := s.Mailbox(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	v, err := m.Select(ctx, true)
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	all := []mailbox.Range{{First: 1, Last: 1<<32 - 1}}
	if err = errors.Join(v.Sizes(ctx, all), v.Dates(ctx, all)); err != nil {
		return nil, nil, errors.Join(err, v.Close(), m.Close())
	}
	return v, func() error { return errors.Join(v.Close(), m.Close()) }, nil
}

// key tells a message of an account apart.
func key(v *mailbox.View, uid uint32) string { return fmt.Sprintf("%d.%d", v.UIDValidity(), uid) }

// each yields the messages of a view. Those expunged meanwhile are passed over.
func each(ctx context.Context, v *mailbox.View, known func(string) bool, count func(int), yield func(Message, error) bool) (more bool, err error) {
	count(v.Len())
	for _, m := range v.All(1, v.Len()) {
		if known(key(v, m.UID)) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return true, err
		}
		body, err := v.Open(ctx, m.UID)
		if errors.Is(err, mailbox.ErrExpunged) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return true, err
		}
		msg := Message{Key: key(v, m.UID), Flags: m.Flags, Keywords: keywords(v, m), Date: time.Unix(m.Internal, 0), Size: m.Size, Body: io.NewSectionReader(body, 0, body.Size)}
		goOn := yield(msg, nil)
		if err := body.Close(); err != nil {
			return goOn, err
		}
		if !goOn {
			return false, nil
		}
	}
	return true, nil
}

func keywords(v *mailbox.View, m mailbox.Message) (list []string) {
	for bit, name := range v.Keywords() {
		if bit < 32 && m.Keywords&(1<<bit) != 0 && name != "" {
			list = append(list, name)
		}
	}
	return list
}

// IMAP is a Source that is an account on a server. Keys are UIDs with UIDVALIDITY.
type IMAP struct {
	Client *imapclient.Client
	Name   string // of the account: user and host
	boxes  []imapclient.Mailbox
	ours   []string // names of boxes here
}

// ID is the account's name.
func (s *IMAP) ID() string { return "imap " + s.Name }

// Close logs out.
func (s *IMAP) Close() error { return s.Client.Close() }

// Mailboxes lists those that can be opened. The server's hierarchy separator becomes "/"; a
// "/" that is a part of a name there becomes "_".
func (s *IMAP) Mailboxes(context.Context) ([]string, error) {
	list, err := s.Client.List()
	if err != nil {
		return nil, err
	}
	return s.take(list), nil
}

// take notes the mailboxes of a server and returns their names here. Names that become the
// same get "_" behind them, in the order of the server.
func (s *IMAP) take(list []imapclient.Mailbox) []string {
	s.boxes, s.ours = nil, nil
	listed, used := make(map[string]bool), make(map[string]bool)
	for _, m := range list {
		if m.Has(`\Noselect`) || m.Has(`\NonExistent`) || listed[m.Name] {
			continue
		}
		name := ourName(m)
		for used[name] {
			name += "_"
		}
		listed[m.Name], used[name] = true, true
		s.boxes, s.ours = append(s.boxes, m), append(s.ours, name)
	}
	return slices.Clone(s.ours)
}

// theirs is the name on the server of a mailbox that take has named.
func (s *IMAP) theirs(name string) string {
	if i := slices.Index(s.ours, name); i >= 0 {
		return s.boxes[i].Name
	}
	return name
}

func ourName(m imapclient.Mailbox) string {
	switch m.Delimiter {
	case '/':
		return m.Name
	case 0:
		return strings.ReplaceAll(m.Name, "/", "_")
	}
	return strings.ReplaceAll(strings.ReplaceAll(m.Name, "/", "_"), string(m.Delimiter), "/")
}

// Messages fetches messages while they come.
func (s *IMAP) Messages(ctx context.Context, name string, known func(string) bool, count func(int)) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		if err := s.messages(ctx, name, known, count, yield); err != nil && !errors.Is(err, errStop) {
			yield(Message{}, err)
		}
	}
}

var errStop = errors.New("no more messages are wanted")

func (s *IMAP) messages(ctx context.Context, name string, known func(string) bool, count func(int), yield func(Message, error) bool) error {
	st, err := s.Client.Select(s.theirs(name), true)
	if err != nil {
		return err
	}
	list, err := s.Client.Messages()
	if err != nil {
		return err
	}
	count(len(list))
	byUID := make(map[uint32]*imapclient.Message)
	var uids []uint32
	for i, m := range list {
		if byUID[m.UID] != nil || known(fmt.Sprintf("%d.%d", st.Validity, m.UID)) {
			continue
		}
		byUID[m.UID] = &list[i]
		uids = append(uids, m.UID)
	}
	return s.Client.Fetch(uids, func(uid uint32, body io.Reader, size int64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		m := byUID[uid]
		msg := Message{Key: fmt.Sprintf("%d.%d", st.Validity, uid), Date: m.Date, Size: size, Body: body}
		msg.Flags, msg.Keywords = fromIMAP(m.Flags)
		if !yield(msg, nil) {
			return errStop
		}
		return nil
	})
}

// fromIMAP splits IMAP flags. \Recent is nobody's, and what is no atom is no keyword.
func fromIMAP(list []string) (flags maildir.Flags, words []string) {
	for _, f := range list {
		switch strings.ToLower(f) {
		case `\seen`:
			flags |= maildir.Seen
		case `\answered`:
			flags |= maildir.Replied
		case `\flagged`:
			flags |= maildir.Flagged
		case `\deleted`:
			flags |= maildir.Trashed
		case `\draft`:
			flags |= maildir.Draft
		case "$forwarded":
			flags |= maildir.Passed
			words = append(words, f)
		default:
			if imapwire.ValidKeyword(f) {
				words = append(words, f)
			}
		}
	}
	return flags, words
}

// toIMAP is the way back.
func toIMAP(flags maildir.Flags, words []string) (list []string) {
	for _, f := range []struct {
		bit  maildir.Flags
		name string
	}{{maildir.Replied, `\Answered`}, {maildir.Trashed, `\Deleted`}, {maildir.Draft, `\Draft`}, {maildir.Flagged, `\Flagged`}, {maildir.Seen, `\Seen`}} {
		if flags&f.bit != 0 {
			list = append(list, f.name)
		}
	}
	for _, w := range words { // other programs may have made some that are no atoms
		if imapwire.ValidKeyword(w) {
			list = append(list, w)
		}
	}
	return list
}
