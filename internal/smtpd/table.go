package smtpd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
	"pennypost/internal/sasl"
)

// Table is a file with one user a line, "user: item, item", read again when it changes. It is
// first read when it is first needed, so that a broken one ends no daemon. It may be used
// concurrently.
type Table struct {
	path  string
	first string // domain that completes names
	clean func(item string) (string, error)

	mu     sync.Mutex
	looked time.Time
	stamp  os.FileInfo
	rows   []row
	err    error
}

type row struct {
	user  string // an address, lower case
	items []string
}

// NewSenders is the table of addresses that users may send as.
func NewSenders(path, firstDomain string) *Table {
	return &Table{path: path, first: firstDomain, clean: cleanSender}
}

// NewCertificates is the table that tells whose a certificate is.
func NewCertificates(path, firstDomain string) *Table {
	return &Table{path: path, first: firstDomain, clean: cleanCertificate}
}

// cleanSender takes an address, "@domain", "@.domain" for what is below it, or "*".
func cleanSender(s string) (string, error) {
	if s == "*" {
		return s, nil
	}
	if d, ok := strings.CutPrefix(s, "@"); ok {
		return "@" + envelope.FoldDomain(d), envelope.CheckDomain(strings.TrimPrefix(d, "."))
	}
	a, err := envelope.ParseAddress(s)
	return fold(a), err
}

// cleanCertificate takes "sha256:" and the fingerprint in hex, with colons or without, or "cn:"
// and the common name.
func cleanCertificate(s string) (string, error) {
	if name, ok := strings.CutPrefix(s, "cn:"); ok && name != "" {
		return s, nil
	}
	digits, ok := strings.CutPrefix(s, "sha256:")
	digits = strings.ToLower(strings.ReplaceAll(digits, ":", ""))
	if b, err := hex.DecodeString(digits); !ok || err != nil || len(b) != 32 {
		return "", errors.New("neither sha256: with a fingerprint nor cn: with a name")
	}
	return "sha256:" + digits, nil
}

// fold gives the form in which addresses are compared.
func fold(a envelope.Address) string {
	a.Local, a.Domain = strings.ToLower(a.Local), envelope.FoldDomain(a.Domain)
	return a.String()
}

// get returns the rows, looking at the file once a second.
func (t *Table) get() ([]row, error) {
	if t == nil {
		return nil, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if d := now.Sub(t.looked); !t.looked.IsZero() && d >= 0 && d < time.Second {
		return t.rows, t.err
	}
	t.looked = now
	fi, err := os.Stat(t.path)
	if err == nil && t.stamp != nil && t.err == nil && os.SameFile(fi, t.stamp) && fi.Size() == t.stamp.Size() && fi.ModTime().Equal(t.stamp.ModTime()) {
		return t.rows, nil
	}
	if err == nil {
		// Who can write it can send as anybody.
		err = accounts.CheckSafe(t.path)
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(t.path)
	}
	if err == nil {
		t.rows, err = t.parse(string(b))
	}
	t.stamp, t.err = fi, err
	return t.rows, err
}

// Check tells whether the file can be used.
func (t *Table) Check() error {
	_, err := t.get()
	return err
}

func (t *Table) parse(text string) ([]row, error) {
	var rows []row
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		// A colon may stand in a name and in an item; the one that parts them has a space behind it.
		name, list, ok := strings.Cut(line, ": ")
		if !ok {
			return nil, fmt.Errorf("%s:%d: want \"user: item, item\"", t.path, i+1)
		}
		user, err := envelope.ParseLocal(strings.TrimSpace(name), t.first)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", t.path, i+1, err)
		}
		r := row{user: fold(user)}
		for item := range strings.SplitSeq(list, ",") {
			item = strings.TrimSpace(item)
			clean, err := t.clean(item)
			if err != nil {
				return nil, fmt.Errorf("%s:%d: %q: %w", t.path, i+1, item, err)
			}
			r.items = append(r.items, clean)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// having returns the users with an item that fits.
func (t *Table) having(fits func(item string) bool) (users []string, err error) {
	rows, err := t.get()
	for _, r := range rows {
		if slices.ContainsFunc(r.items, fits) && !slices.Contains(users, r.user) {
			users = append(users, r.user)
		}
	}
	return users, err
}

// senderListed tells whether the table of senders lets the user send as from, with or without
// a subaddress where from is one of ours.
func (s *session) senderListed(ctx context.Context, from envelope.Address) (bool, error) {
	t := s.o.Auth.Senders
	if t == nil {
		return false, nil
	}
	user := s.user
	if u, err := envelope.ParseLocal(user, t.first); err == nil {
		user = fold(u) // the login of a local user gets the first domain
	}
	exact, base := fold(from), fold(from)
	if s.o.Accounts.IsLocal(from.Domain) {
		r, err := s.o.Accounts.Lookup(ctx, from)
		if err != nil {
			return false, err
		}
		if !r.Address.IsNull() {
			base = fold(r.Address)
		}
	}
	domain := envelope.FoldDomain(from.Domain)
	users, err := t.having(func(item string) bool {
		below, isBelow := strings.CutPrefix(item, "@.")
		return item == "*" || item == exact || item == base || item == "@"+domain ||
			isBelow && strings.HasSuffix(domain, "."+below)
	})
	return slices.Contains(users, user), err
}

func isRefused(err error) bool { return errors.Is(err, sasl.ErrRefused) }
