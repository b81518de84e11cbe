package mailbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// Store is one account's mail. It may be used by any number of goroutines.
type Store struct {
	o     Options
	root  string
	tree  *maildir.Tree
	fs    durable.FS
	now   func() time.Time
	log   *slog.Logger
	boot  uint64
	namer *maildir.Namer
	bufs  sync.Pool

	watcher *Watcher
	watches bool // the watcher is the store's own

	mu   sync.Mutex
	open map[string]*Mailbox
}

// Open prepares an account. Nothing is read beyond a look whether it is there.
func Open(root string, o Options) (*Store, error) {
	if o.FS == nil {
		o.FS = durable.OS{}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Boot == 0 {
		o.Boot = bootID()
	}
	s := &Store{
		o: o, root: root, fs: o.FS, now: o.Now, log: o.Log, boot: o.Boot,
		namer: maildir.NewNamer(o.Host, o.Now), open: map[string]*Mailbox{},
		tree: &maildir.Tree{Root: root, UTF8: o.UTF8, Control: o.Control, Index: o.Index, Escape: o.Escape},
	}
	if s.watcher = o.Watcher; s.watcher == nil {
		s.watcher = &Watcher{boxes: map[*Mailbox][]int{}, byDir: map[int]map[*Mailbox]bool{}}
		s.watches = true
	}
	s.bufs.New = func() any { b := make([]byte, copyBuffer); return &b }
	if o.FSLayout {
		s.tree.Layout = maildir.LayoutFS
	}
	_, err := s.fs.Lstat(filepath.Join(root, "cur"))
	if err == nil && o.Create { // the machine may have stopped while it was made
		_, err = s.fs.Lstat(filepath.Join(root, "new"))
	}
	if errors.Is(err, fs.ErrNotExist) && o.Create {
		err = maildir.Create(s.fs, root)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", root, maildir.ErrNotMaildir)
	}
	if err != nil {
		return nil, fmt.Errorf("open mail store: %w", err)
	}
	return s, nil
}

// Close gives up what the Store keeps open. No Mailbox or View may be in use.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	if s.watches {
		errs = append(errs, s.watcher.Close())
	}
	for name, m := range s.open {
		delete(s.open, name)
		errs = append(errs, m.shut())
	}
	return errors.Join(errs...)
}

// keep is how many mailboxes that nobody uses stay in memory.
const keep = 8

// Mailbox opens a folder; Close it after use. All openings in one process share its state.
func (s *Store) Mailbox(ctx context.Context, name string) (*Mailbox, error) {
	name = canonical(name)
	dir, err := s.tree.Dir(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrName, err)
	}
	control, err := s.tree.ControlDir(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrName, err)
	}
	index, err := s.tree.IndexDir(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrName, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.open[name]; m != nil {
		m.refs++
		return m, nil
	}
	if _, err := s.fs.Lstat(filepath.Join(dir, "cur")); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrNotFound
		}
		return nil, fmt.Errorf("mailbox %s: %w", name, err)
	}
	m := &Mailbox{store: s, name: name, dir: dir, control: control, indexAt: index, refs: 1, sem: make(chan struct{}, 1)}
	s.open[name] = m
	return m, nil
}

// Close gives the folder back.
func (m *Mailbox) Close() error {
	s := m.store
	s.mu.Lock()
	defer s.mu.Unlock()
	m.refs--
	if m.refs > 0 {
		return nil
	}
	idle := 0
	for _, o := range s.open {
		if o.refs == 0 {
			idle++
		}
	}
	if idle <= keep && s.open[m.name] == m {
		return nil
	}
	if s.open[m.name] == m {
		delete(s.open, m.name)
	}
	return m.shut()
}

// shut closes what a mailbox keeps open. Views may have names to read from the index yet: the
// collector closes that.
func (m *Mailbox) shut() error {
	if m.lockFile == nil {
		return nil
	}
	err := m.lockFile.Close()
	m.lockFile = nil
	return err
}

// Name is the folder's name.
func (m *Mailbox) Name() string { return m.name }

func newGUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
