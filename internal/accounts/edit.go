package accounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"pennypost/internal/durable"
	"pennypost/internal/envelope"
)

// ErrExists and ErrNoUser are wrapped by edits that find, or do not find, what they need.
var (
	ErrExists = errors.New("exists already")
	ErrNoUser = errors.New("no such user")
)

// Edit is one change of a users or secrets file: all lines but those of the address stay as
// they are, comments and order included.
type Edit struct {
	Path  string
	Perm  fs.FileMode // of a file that does not exist yet
	First string      // domain of names without one
	Addr  envelope.Address
	// Change is called for each line of the address, and once without one when there is none.
	// What it returns may be several lines.
	Change func(line string, found bool) (newLine string, keep bool, err error)
	End    func() error // called after the last line, where set
	DryRun bool
}

// Run makes the change: under a lock, and so that readers find the old file or the new one.
// It returns whether anything changes.
func (e Edit) Run() (changed bool, err error) {
	if !e.isOurs(e.parser(), e.Addr.String()+":") {
		return false, fmt.Errorf("%w: %s cannot stand in a file of accounts", envelope.ErrAddress, e.Addr)
	}
	path := e.Path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // the file is replaced, not the link to it
	}
	if !e.DryRun {
		l, lerr := durable.Lock(path+".lock", false)
		if lerr != nil {
			return false, fmt.Errorf("lock %s: %w", path, lerr)
		}
		defer func() { err = errors.Join(err, l.Close()) }()
	}
	old, err := os.ReadFile(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return false, err
	}
	data, err := e.apply(string(old))
	if err != nil || data == string(old) || e.DryRun {
		return data != string(old), err
	}
	return true, replaceFile(path, data, e.Perm, !missing)
}

// apply returns the file with the change made.
func (e Edit) apply(data string) (string, error) {
	p := e.parser()
	var b strings.Builder
	found := false
	for rest := data; rest != ""; {
		line, after, ended := strings.Cut(rest, "\n")
		rest = after
		if e.isOurs(p, line) {
			found = true
			n, keep, err := e.Change(line, true)
			if err != nil {
				return "", err
			}
			if !keep {
				continue
			}
			line = n
		}
		b.WriteString(line)
		if ended || rest == "" {
			b.WriteByte('\n')
		}
	}
	if !found {
		n, keep, err := e.Change("", false)
		if err != nil {
			return "", err
		}
		if keep {
			b.WriteString(n + "\n")
		}
	}
	if e.End != nil {
		if err := e.End(); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

// parser reads names as look-ups do.
func (e Edit) parser() *Accounts { return &Accounts{o: Options{Domains: []string{e.First}}} }

// isOurs tells whether a line is one of the address: a colon in the name, or a hash before it,
// makes it another's or nobody's.
func (e Edit) isOurs(p *Accounts, line string) bool {
	if s := trim(line); s == "" || s[0] == '#' {
		return false
	}
	name, _, _ := strings.Cut(line, ":")
	a, err := p.parseKey(name)
	return err == nil && a == e.Addr
}

// replaceFile puts a new version of path in its place with the owner and rights of the old one.
func replaceFile(path, data string, perm fs.FileMode, exists bool) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) { // left by a crash; we hold the lock
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	uid, gid := -1, -1
	if exists {
		fi, err := os.Stat(path)
		if err != nil {
			return errors.Join(err, f.Close(), os.Remove(tmp))
		}
		perm = fi.Mode().Perm()
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(st.Uid), int(st.Gid)
		}
	}
	if err = f.Chown(uid, gid); err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		_, err = f.WriteString(data)
	}
	if err == nil {
		err = durable.Sync(f)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = durable.RenameSync(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// Key is the address in the form in which account files are searched: lower case.
func (a *Accounts) Key(addr envelope.Address) envelope.Address { return a.fold(addr) }

// AddUser makes the users line of addr. extra is its eighth field.
func AddUser(path, first string, addr envelope.Address, home, extra string, dry bool) error {
	_, err := Edit{Path: path, Perm: 0o644, First: first, Addr: addr, DryRun: dry, Change: func(_ string, found bool) (string, bool, error) {
		if found {
			return "", false, fmt.Errorf("%s: %w in %s", addr, ErrExists, path)
		}
		if strings.ContainsAny(home+extra, ":\n\x00") {
			return "", false, errors.New("a field cannot hold a colon or a line end")
		}
		return addr.String() + ":::::" + home + "::" + extra, true, nil
	}}.Run()
	return err
}

// SetSecret stores the records of a new password for addr, the hash first, in place of all the
// old ones. With add there must be none yet, else there must be one. In a file that is users and
// secrets in one, the other fields stay.
func SetSecret(path, first string, addr envelope.Address, records []string, add, dry bool) error {
	had, set := false, false
	change := func(line string, found bool) (string, bool, error) {
		name, rest, _ := strings.Cut(line, ":")
		old, fields, more := strings.Cut(rest, ":")
		if trim(old) != "" {
			had = true
			if add {
				return "", false, fmt.Errorf("%s: a password %w in %s", addr, ErrExists, path)
			}
		}
		if set { // further lines of the address: their records are of the old password
			return name + "::" + fields, more, nil
		}
		set = true
		if !found {
			name = addr.String()
		}
		first := name + ":" + records[0]
		if more {
			first += ":" + fields
		}
		for _, r := range records[1:] {
			first += "\n" + addr.String() + ":" + r
		}
		return first, true, nil
	}
	_, err := Edit{Path: path, Perm: 0o600, First: first, Addr: addr, DryRun: dry, Change: change, End: func() error {
		if !add && !had {
			return fmt.Errorf("%s: %w with a password in %s", addr, ErrNoUser, path)
		}
		return nil
	}}.Run()
	return err
}

// Remove takes the lines of addr out of a users or secrets file, and tells whether it was there.
func Remove(path, first string, addr envelope.Address, dry bool) (bool, error) {
	return Edit{Path: path, Perm: 0o600, First: first, Addr: addr, DryRun: dry, Change: func(line string, _ bool) (string, bool, error) {
		return line, false, nil
	}}.Run()
}

// Mailboxes calls fn for each account of the users file, in its order; err says why one cannot
// be used. Unlike List it needs no right to read secrets.
func (a *Accounts) Mailboxes(fn func(address string, err error) error) error {
	users, err := a.users.get(true)
	if err != nil || users == nil {
		return err
	}
	for _, key := range users.order {
		addr, err := envelope.ParseAddress(key)
		if err == nil {
			_, err = users.find(addr, a.o.Maildirs)
		}
		if err := fn(key, err); err != nil {
			return err
		}
	}
	return nil
}

// Listed is one account of the users and secrets files.
type Listed struct {
	Address  string `json:"user"`
	Mailbox  string `json:"mailbox,omitempty"` // "" for an account that can only log in
	Password bool   `json:"password"`
	Err      string `json:"err,omitempty"` // why the account cannot be used
}

// List calls fn for each account: those of the users file in its order, then those that only
// the secrets file has.
func (a *Accounts) List(fn func(Listed) error) error {
	users, err := a.users.get(true)
	if err != nil {
		return err
	}
	secrets, err := a.secrets.get(true)
	if err != nil {
		return err
	}
	if users != nil {
		for _, key := range users.order {
			addr, err := envelope.ParseAddress(key)
			if err != nil {
				return err
			}
			l := Listed{Address: key}
			if m, err := users.find(addr, a.o.Maildirs); err != nil {
				l.Err = err.Error()
			} else {
				l.Mailbox = m.Maildir
			}
			_, l.Password = secrets.find(key)
			if err := fn(l); err != nil {
				return err
			}
		}
	}
	if secrets == nil {
		return nil
	}
	for _, key := range secrets.order {
		if users != nil && users.lines[key] != "" {
			continue
		}
		if err := fn(Listed{Address: key, Password: true}); err != nil {
			return err
		}
	}
	return nil
}
