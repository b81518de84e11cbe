package mailbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// Quota is accounted as Maildir++ has it: every change of what the account holds is a line of
// maildirsize, and whoever finds that file unbelievable counts anew. The file is kept when there
// is a limit, or when somebody else has begun to keep it.

func (s *Store) sizePath() string { return filepath.Join(s.root, maildir.SizeName) }

func (s *Store) limit() maildir.Quota {
	return maildir.Quota{Octets: s.o.Limits.Octets, Messages: s.o.Limits.Messages}
}

// counts tells whether changes are written down.
func (s *Store) counts() bool {
	if s.o.Limits != (Limits{}) {
		return true
	}
	_, err := s.fs.Lstat(s.sizePath())
	return err == nil
}

// account writes a change down. Failing is ignored: the file is a cache that its readers recount,
// and the messages are there, or gone.
func (s *Store) account(change Limits) {
	if change == (Limits{}) {
		return
	}
	f, err := s.fs.OpenFile(s.sizePath(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return
	}
	_, _ = f.Write(maildir.AppendSizeLine(nil, maildir.Quota{Octets: change.Octets, Messages: change.Messages}))
	_ = f.Close()
}

// room returns ErrQuota when the account cannot hold that much more.
func (s *Store) room(ctx context.Context, more Limits) error {
	if s.o.Limits == (Limits{}) {
		return nil
	}
	used, _, err := s.Usage(ctx)
	if err != nil {
		return err
	}
	q := maildir.Quota{Octets: used.Octets + more.Octets, Messages: used.Messages + more.Messages}
	if s.limit().Exceeds(q) {
		return ErrQuota
	}
	return nil
}

// Usage is what the account holds, and its limits.
func (s *Store) Usage(ctx context.Context) (used, limit Limits, err error) {
	limit = s.o.Limits
	size, modified, err := s.readSize()
	if err == nil && (limit == (Limits{}) || !size.Recount(s.limit(), modified, s.now())) {
		return Limits{size.Used.Octets, size.Used.Messages}, limit, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("maildirsize is counted anew", "err", err)
	}
	used, err = s.Recount(ctx)
	return used, limit, err
}

func (s *Store) readSize() (size maildir.Size, modified time.Time, err error) {
	f, err := s.fs.OpenFile(s.sizePath(), os.O_RDONLY, 0)
	if err != nil {
		return size, modified, err
	}
	i, err := f.Stat()
	if err == nil {
		modified = i.ModTime()
		size, err = maildir.ReadMaildirSize(f)
	}
	return size, modified, errors.Join(err, f.Close())
}

// Recount counts the account anew and replaces maildirsize, if nothing changes meanwhile.
func (s *Store) Recount(ctx context.Context) (used Limits, err error) {
	folders, _, err := s.tree.List(s.fs)
	if err != nil {
		return used, fmt.Errorf("count mail: %w", err)
	}
	before := map[string]stamp{}
	buf := make([]byte, 64<<10)
	for _, f := range folders {
		if !f.Selectable {
			continue
		}
		for _, sub := range []string{"new", "cur"} {
			if err := ctx.Err(); err != nil {
				return used, err
			}
			dir := filepath.Join(f.Path, sub)
			if i, err := s.fs.Lstat(dir); err == nil {
				before[dir] = stampOf(i)
			}
			if err := s.countDir(dir, buf, &used); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return used, fmt.Errorf("count mail: %w", err)
			}
		}
	}
	if s.o.Limits == (Limits{}) && !s.counts() {
		return used, nil
	}
	for dir, was := range before {
		if i, err := s.fs.Lstat(dir); err != nil || stampOf(i) != was {
			return used, nil // right enough for now, and wrong in the file
		}
	}
	limit := s.limit()
	if limit == (maildir.Quota{}) {
		if was, _, err := s.readSize(); err == nil {
			limit = was.Limit // Courier knows no other place for it
		}
	}
	b := maildir.AppendMaildirSize(nil, limit, maildir.Quota{Octets: used.Octets, Messages: used.Messages})
	tmp := filepath.Join(s.root, "tmp", s.namer.Base())
	err = durable.WriteFileOn(s.fs, tmp, b, 0o600)
	if err == nil {
		err = s.fs.Rename(tmp, s.sizePath())
	}
	if err != nil {
		return used, fmt.Errorf("write maildirsize: %w", err)
	}
	return used, nil
}

func (s *Store) countDir(dir string, buf []byte, used *Limits) error {
	f, err := s.fs.OpenFile(dir, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	err = eachName(f, buf, func(name []byte) {
		if !maildir.ValidName(string(name)) {
			return
		}
		base := name
		if i := bytes.IndexByte(name, ':'); i >= 0 {
			base = name[:i]
		}
		used.Messages++
		if n, _, ok, _ := (maildir.Name{Base: string(base)}).Sizes(); ok {
			used.Octets += n
		} else if i, err := s.fs.Lstat(filepath.Join(dir, string(name))); err == nil {
			used.Octets += i.Size()
		}
	})
	return errors.Join(err, f.Close())
}
