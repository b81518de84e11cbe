package policy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
	"pennypost/internal/maildir"
	"pennypost/internal/resolve"
)

// temporary tells whether a look-up may succeed later.
func temporary(err error) bool {
	var e *resolve.Error
	if errors.As(err, &e) {
		return e.Status.Verdict == envelope.Deferred
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// Limits are what a mailbox may hold; 0 is no limit.
type Limits = maildir.Quota

// Quota judges whether a mailbox takes size octets more; size is 0 where the client does not say.
// fields are the extra fields of the account. What the mailbox holds is read from its maildirsize
// and not counted: where that file is missing, or not ours to read, nothing is said.
func (p *Policy) Quota(box string, fields map[string]string, size int64) Verdict {
	const name = "quota"
	if !p.o.Quota || box == "" {
		return pass(name, "quotas are not looked at")
	}
	limit, err := accountLimits(fields)
	if err != nil {
		p.o.Log.Error("quota of an account cannot be read", "mailbox", box, "err", err)
	}
	f, err := openFile(filepath.Join(box, maildir.SizeName))
	if errors.Is(err, fs.ErrNotExist) {
		return pass(name, "the mailbox does not count what it holds")
	}
	if err != nil {
		return pass(name, "what the mailbox holds cannot be read: %v", err)
	}
	defer f.Close()
	has, err := maildir.ReadMaildirSize(f)
	if err != nil {
		return pass(name, "what the mailbox holds cannot be read: %v", err)
	}
	if limit == (Limits{}) {
		limit = has.Limit
	}
	used := has.Used
	full := func(what string, used, limit int64) Verdict {
		return Verdict{
			Check: name, Action: Defer, Why: fmt.Sprintf("the mailbox holds %d of %d %s", used, limit, what),
			Code: 452, DSN: "4.2.2", Reply: "mailbox is full",
		}
	}
	switch {
	case limit.Octets > 0 && (used.Octets >= limit.Octets || size > limit.Octets-used.Octets):
		return full("octets", used.Octets, limit.Octets)
	case limit.Messages > 0 && used.Messages >= limit.Messages:
		return full("messages", used.Messages, limit.Messages)
	case limit == (Limits{}):
		return pass(name, "the mailbox has no limit")
	}
	return pass(name, "the mailbox has room")
}

// accountLimits are the limits that an account's extra fields name.
func accountLimits(fields map[string]string) (l Limits, err error) {
	l.Octets, l.Messages, err = accounts.Quota(fields)
	return l, err
}

// openFile opens what a user has put there. Opening a pipe would wait for somebody to write.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("it is no file")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// recipientFile is the list of the addresses that exist behind us, read again when it changes.
type recipientFile struct {
	path string

	mu    sync.Mutex
	mtime time.Time
	size  int64
	ino   os.FileInfo
	known map[string]bool // "local@domain", or "@domain" for all of it
}

// RelayRecipient judges a recipient in a domain that this host is a backup MX for. Taking mail
// for addresses that do not exist there would make us send bounces to strangers.
func (p *Policy) RelayRecipient(to envelope.Address) Verdict {
	const name = "relay-recipient"
	if p.o.RelayFile == "" {
		return pass(name, "there is no list of recipients")
	}
	known, err := p.relay.has(to)
	switch {
	case err != nil:
		return Verdict{
			Check: name, Action: Defer, Why: "the list of recipients cannot be read", Err: err,
			Code: 451, DSN: "4.3.0", Reply: "cannot look up the address right now, try again later",
		}
	case !known:
		return Verdict{
			Check: name, Action: Reject, Why: to.String() + " is not in " + p.o.RelayFile,
			Code: 550, DSN: "5.1.1", Reply: "no such user: " + to.String(),
		}
	}
	return pass(name, "%s is in %s", to, p.o.RelayFile)
}

func (r *recipientFile) has(to envelope.Address) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fi, err := os.Stat(r.path)
	if err != nil {
		return false, err
	}
	if r.known == nil || !fi.ModTime().Equal(r.mtime) || fi.Size() != r.size || !os.SameFile(fi, r.ino) {
		f, err := os.Open(r.path)
		if err != nil {
			return false, err
		}
		known, err := readRecipients(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return false, fmt.Errorf("%s: %w", r.path, err)
		}
		r.known, r.mtime, r.size, r.ino = known, fi.ModTime(), fi.Size(), fi
	}
	domain := "@" + envelope.FoldDomain(to.Domain)
	return r.known[strings.ToLower(to.Local)+domain] || r.known[domain], nil
}

// readRecipients reads one address a line; the rest of a line, behind a blank or a colon, is
// passed over, so that a table of Postfix serves as it is.
func readRecipients(r io.Reader) (map[string]bool, error) {
	known := map[string]bool{}
	s := bufio.NewScanner(r)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' || s.Text()[0] == ' ' || s.Text()[0] == '\t' {
			continue
		}
		name := line
		if i := strings.IndexAny(name, " \t:"); i >= 0 && name[0] != '"' {
			name = name[:i]
		}
		if d, ok := strings.CutPrefix(name, "@"); ok && envelope.CheckDomain(envelope.FoldDomain(d)) == nil {
			known["@"+envelope.FoldDomain(d)] = true
			continue
		}
		a, err := envelope.ParseAddress(name)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		known[strings.ToLower(a.Local)+"@"+envelope.FoldDomain(a.Domain)] = true
	}
	return known, s.Err()
}
