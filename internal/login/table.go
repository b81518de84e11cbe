package login

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
)

// Table is a file with one user a line, "user: item, item", read again when it changes. It is
// first read when it is first needed, so that a broken one ends no daemon. It may be used
// concurrently; nil is an empty one.
type Table struct {
	path  string
	first string // domain that completes names
	clean func(item string) (string, error)

	mu     sync.Mutex
	looked time.Time
	stamp  os.FileInfo
	rows   []Row
	err    error
}

// Row is one line of a Table.
type Row struct {
	User  string // an address, lower case
	Items []string
}

// NewTable is the table in a file. clean brings an item into its one form, or refuses it.
func NewTable(path, firstDomain string, clean func(item string) (string, error)) *Table {
	return &Table{path: path, first: firstDomain, clean: clean}
}

// Rows returns the lines, looking at the file once a second.
func (t *Table) Rows() ([]Row, error) {
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
		// Who can write it can be anybody.
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
	_, err := t.Rows()
	return err
}

func (t *Table) parse(text string) ([]Row, error) {
	var rows []Row
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
		user.Local, user.Domain = strings.ToLower(user.Local), envelope.FoldDomain(user.Domain)
		r := Row{User: user.String()}
		for item := range strings.SplitSeq(list, ",") {
			item = strings.TrimSpace(item)
			clean, err := t.clean(item)
			if err != nil {
				return nil, fmt.Errorf("%s:%d: %q: %w", t.path, i+1, item, err)
			}
			r.Items = append(r.Items, clean)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// Having returns the users with an item that fits.
func (t *Table) Having(fits func(item string) bool) (users []string, err error) {
	rows, err := t.Rows()
	for _, r := range rows {
		if slices.ContainsFunc(r.Items, fits) && !slices.Contains(users, r.User) {
			users = append(users, r.User)
		}
	}
	return users, err
}
