package mailbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"pennypost/internal/maildir"
)

// Reindex makes the index of a folder anew, from file names and uidlist alone, and removes the
// cache. UIDs stay; MODSEQ goes on above all that was ever told.
func (s *Store) Reindex(ctx context.Context, name string) (err error) {
	m, err := s.Mailbox(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.enter(ctx); err != nil {
		return err
	}
	defer m.leave()
	unlock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.catchUp(true); err != nil {
		return err
	}
	if m.memory {
		return fmt.Errorf("mailbox %s: %w: it is left to the program that knows it", m.name, errNewer)
	}
	cache := filepath.Join(m.indexAt, cacheName)
	if err := m.fs().Remove(cache); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	m.dropIndex()
	m.suspect = true
	return (&writer{m: m}).mend(ctx)
}

// RaiseModSeq has the MODSEQs of a folder go on above n, which another server has told clients.
func (s *Store) RaiseModSeq(ctx context.Context, name string, n uint64) (err error) {
	m, err := s.Mailbox(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	return m.write(ctx, func(w *writer) error {
		if n < w.st.modseq {
			return nil
		}
		if n >= 1<<62 { // RFC 7162 §7 ends MODSEQs at 2^63
			return fmt.Errorf("mailbox %s: MODSEQ %d leaves no room for more", m.name, n)
		}
		m.told = max(m.told, n)
		m.suspect = true // as if the index had lost them
		return w.mend(ctx)
	})
}

// SpecialUse are the special uses of a folder (RFC 6154), such as \Sent.
func (s *Store) SpecialUse(name string) ([]string, error) {
	dir, err := s.tree.ControlDir(canonical(name))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrName, err)
	}
	meta, err := maildir.ReadMeta(s.fs, dir)
	if err != nil {
		return nil, fmt.Errorf("mailbox %s: %w", name, err)
	}
	return meta.SpecialUse, nil
}

// SetSpecialUse replaces them.
func (s *Store) SetSpecialUse(ctx context.Context, name string, use []string) error {
	return s.editMeta(ctx, name, func(meta *maildir.Meta) { meta.SpecialUse = use })
}

// editMeta changes the pennypost-meta of a folder.
func (s *Store) editMeta(ctx context.Context, name string, change func(*maildir.Meta)) (err error) {
	m, err := s.Mailbox(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	lock, err := m.lockList(ctx)
	if err != nil {
		return err
	}
	defer m.unlockList(lock)
	meta, err := maildir.ReadMeta(s.fs, m.control)
	if err != nil {
		return fmt.Errorf("mailbox %s: %w", name, err)
	}
	change(meta)
	return maildir.WriteMeta(s.fs, m.control, meta)
}
