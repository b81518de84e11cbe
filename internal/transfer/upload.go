package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"pennypost/internal/imapclient"
	"pennypost/internal/mailbox"
	"pennypost/internal/message"
)

// ToIMAP copies the account s to a server. memory is the file that remembers what has been
// copied; when a run is cut off, at most the message that was under way comes again.
func ToIMAP(ctx context.Context, s *mailbox.Store, memory string, to *IMAP, o Options) error {
	names, err := existing(ctx, s)
	if err != nil {
		return err
	}
	if names, err = o.choose(names); err != nil {
		return err
	}
	if _, err := to.Mailboxes(ctx); err != nil {
		return err
	}
	m, err := openMemory(o.fs(), memory, o.DryRun)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err = o.upload(ctx, s, m, to, name); err != nil {
			err = fmt.Errorf("%s: %w", name, err)
			break
		}
	}
	return errors.Join(err, m.close())
}

func (o *Options) upload(ctx context.Context, s *mailbox.Store, m *memory, to *IMAP, name string) (err error) {
	v, done, err := view(ctx, s, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	theirs := to.name(o.target(name))
	res := Result{From: name, To: theirs}
	if !o.DryRun && !strings.EqualFold(theirs, "INBOX") {
		if err := to.Client.Create(theirs); err != nil {
			return err
		}
	}
	known := func(key string) bool {
		k := m.has(hash(to.ID(), name, key))
		if k {
			res.Known++
		}
		return k
	}
	total := 0
	var failed error
	_, err = each(ctx, v, known, func(n int) { total = n }, func(msg Message, e error) bool {
		if failed = e; failed != nil {
			return false
		}
		o.progress(name, res.Known+res.New+1, total)
		if !o.DryRun {
			if failed = to.append(theirs, msg); failed == nil {
				failed = m.add([]string{hash(to.ID(), name, msg.Key)})
			}
		}
		if failed == nil {
			res.New++
		}
		return failed == nil
	})
	if err = errors.Join(failed, err); err == nil {
		o.report(res)
	}
	return err
}

// name is ours as the server writes it.
func (s *IMAP) name(ours string) string {
	sep := byte('/')
	for _, m := range s.boxes {
		if m.Delimiter != 0 {
			sep = m.Delimiter
			break
		}
	}
	if sep == '/' {
		return ours
	}
	return strings.ReplaceAll(strings.ReplaceAll(ours, string(sep), "_"), "/", string(sep))
}

func (s *IMAP) append(name string, msg Message) error {
	body, ok := msg.Body.(*io.SectionReader)
	if !ok {
		return errors.New("not a stored message")
	}
	w := message.NewWire(body, 0, body.Size(), msg.Size)
	_, err := s.Client.Append(name, toIMAP(msg.Flags, msg.Keywords), msg.Date, msg.Size, w)
	var refused *imapclient.Error
	if errors.As(err, &refused) && len(msg.Keywords) > 0 {
		// A server without keywords of its users' own: the flags alone.
		w.Reset(body, 0, body.Size(), msg.Size)
		_, err = s.Client.Append(name, toIMAP(msg.Flags, nil), msg.Date, msg.Size, w)
	}
	return err
}
