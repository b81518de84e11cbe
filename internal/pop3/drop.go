package pop3

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
)

// ErrSoon says that the user has logged in a moment ago, RFC 2449 §6.5.
var ErrSoon = errors.New("last login was too short a time ago")

const (
	// lockWait is how long a login waits for the session before it, which may be about to end:
	// a client that has lost its connection comes back at once.
	lockWait = 2 * time.Second
	lockLook = 20 * time.Millisecond

	// loginFile stands in the Maildir; its time is that of the last login.
	loginFile = "pennypost-pop3"
)

// BoxOptions say how a maildrop is opened.
type BoxOptions struct {
	Dir   string        // of the Maildir
	Delay time.Duration // least time between two logins; 0: none
}

// box is a maildrop in a mailbox.
type box struct {
	m      *mailbox.Mailbox
	v      *mailbox.View
	unlock func() error
}

// OpenBox makes m a locked Maildrop; closing that closes m. The error is mailbox.ErrInUse when
// another session has it, ErrSoon when it is too early.
func OpenBox(ctx context.Context, m *mailbox.Mailbox, o BoxOptions) (Maildrop, error) {
	unlock, err := lock(ctx, m)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	b := &box{m: m, unlock: unlock}
	if err = o.due(); err == nil {
		b.v, err = m.Select(ctx, false)
	}
	if err == nil {
		err = o.stamp()
	}
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func lock(ctx context.Context, m *mailbox.Mailbox) (unlock func() error, err error) {
	for end := time.Now().Add(lockWait); ; {
		unlock, err = m.LockMaildrop(ctx)
		if !errors.Is(err, mailbox.ErrInUse) || time.Now().After(end) {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(lockLook):
		}
	}
}

// due tells whether the user may come again. A time in the future says nothing.
func (o BoxOptions) due() error {
	if o.Delay <= 0 {
		return nil
	}
	fi, err := os.Stat(filepath.Join(o.Dir, loginFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	if past := time.Since(fi.ModTime()); past >= 0 && past < o.Delay {
		return ErrSoon
	}
	return nil
}

func (o BoxOptions) stamp() error {
	if o.Delay <= 0 {
		return nil
	}
	path := filepath.Join(o.Dir, loginFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	now := time.Now()
	return errors.Join(f.Close(), os.Chtimes(path, now, now))
}

// List implements Maildrop.
func (b *box) List(ctx context.Context) ([]mailbox.POP3Entry, uint32, error) {
	list, err := b.v.POP3(ctx)
	return list, b.v.UIDValidity(), err
}

// Open implements Maildrop.
func (b *box) Open(ctx context.Context, uid uint32) (*mailbox.Body, error) { return b.v.Open(ctx, uid) }

// Remove implements Maildrop. What somebody else has removed is removed.
func (b *box) Remove(ctx context.Context, uids []uint32) error {
	_, err := b.v.Expunge(ctx, uids)
	if errors.Is(err, mailbox.ErrExpunged) {
		return nil
	}
	return err
}

// Fetched implements Maildrop.
func (b *box) Fetched(ctx context.Context, seen []uint32, sizes map[uint32]int64) error {
	var err error
	if len(seen) > 0 {
		_, err = b.v.Store(ctx, seen, mailbox.FlagChange{Op: mailbox.Add, Flags: maildir.Seen})
	}
	if len(sizes) > 0 {
		err = errors.Join(err, b.v.Correct(ctx, sizes))
	}
	return err
}

// Close implements Maildrop.
func (b *box) Close() error {
	var err error
	if b.v != nil {
		err = b.v.Close()
	}
	return errors.Join(err, b.unlock(), b.m.Close())
}
