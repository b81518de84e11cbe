package deliver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
)

// maxForward bounds a forward file.
const maxForward = 64 << 10

// identity is a user as whom something is done.
type identity struct {
	name     string
	uid, gid int
	home     string
}

// aliasIdentity says who runs the programs and writes the files that an alias names: pipe_user
// for root's files, else the file's owner. Without such a right the second result says why.
func (d *Deliverer) aliasIdentity(ctx context.Context, al *accounts.Alias) (as *identity, refuse, err error) {
	if !hasLocal(al.Targets) {
		return nil, deferral("4.3.5", "programs and files are not allowed here"), nil
	}
	var u *accounts.SystemUser
	switch {
	case al.File == "":
		return nil, deferral("4.3.5", "programs and files are not allowed here"), nil
	case al.UID != 0:
		u, err = d.o.Accounts.SystemUserByID(ctx, int(al.UID))
	case d.o.PipeUser != "":
		u, err = d.o.Accounts.SystemUser(ctx, d.o.PipeUser)
	}
	if err != nil {
		return nil, nil, err
	}
	if u == nil {
		return nil, deferral("4.3.5", "there is no user to run programs of aliases"), nil
	}
	as = &identity{name: u.Name, uid: u.UID, gid: u.GID, home: u.Home}
	if err := d.mayBecome(as); err != nil {
		return nil, err, nil
	}
	return as, nil, nil
}

// hasLocal tells whether targets hold something that needs an identity; only then is it
// looked for. An include holds no programs.
func hasLocal(ts []accounts.Target) bool {
	for _, t := range ts {
		if t.Kind == accounts.ToProgram || t.Kind == accounts.ToFile {
			return true
		}
	}
	return false
}

// mayBecome tells whether something may run as that user: never as root, never as a user that
// owns mail or a part of this system, and only when we are root or that very user.
func (d *Deliverer) mayBecome(as *identity) error {
	switch {
	case as.uid == 0, as.name == "vmail", strings.HasPrefix(as.name, "pp-") && as.name != d.o.PipeUser:
		return deferral("4.3.5", "programs and files are not used with the rights of "+as.name)
	case d.o.UID != 0 && d.o.UID != as.uid:
		return deferral("4.3.5", "delivery has no right to run programs or write files as another user")
	}
	return nil
}

// firstOwner is the first user but root who owns something on the way to path, nil when root owns
// it all. Whatever is below is in that user's hands, symbolic links too: root must not follow them.
func firstOwner(path string) (*identity, error) {
	for end, p := 0, "/"; ; {
		fi, err := os.Lstat(p)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil // the rest is made by us, in directories of root
		}
		if err != nil {
			return nil, err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return nil, fmt.Errorf("%s: its owner is not known", p)
		}
		if st.Uid != 0 {
			return &identity{name: strconv.Itoa(int(st.Uid)), uid: int(st.Uid), gid: int(st.Gid), home: "/"}, nil
		}
		if end == len(path) {
			return nil, nil
		}
		next := strings.IndexByte(path[end+1:], '/')
		if end += 1 + next; next < 0 {
			end = len(path)
		}
		p = path[:end]
	}
}

// readForward returns the targets in a system user's ~/.forward, none when there is no such file.
func (d *Deliverer) readForward(m *accounts.Mailbox) ([]accounts.Target, error) {
	if m.Home == "" {
		return nil, nil
	}
	p := filepath.Join(m.Home, ".forward")
	// No symbolic link: root would read files for the user that the user may not read.
	f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	bad := func(code string, err error) ([]accounts.Target, error) {
		return nil, &Error{envelope.Defer(code, "the user's forward file cannot be used"), err}
	}
	if err != nil {
		return bad("4.3.0", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return bad("4.3.0", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !fi.Mode().IsRegular() || !ok:
		return bad("4.3.5", fmt.Errorf("%s: not a regular file", p))
	case int(st.Uid) != m.UID && (st.Uid != 0 || st.Nlink != 1):
		return bad("4.3.5", fmt.Errorf("%s: does not belong to %s", p, m.User))
	case fi.Size() > maxForward:
		return bad("4.3.5", fmt.Errorf("%s: over %d octets", p, maxForward))
	}
	if err := accounts.CheckSafe(p); err != nil {
		return bad("4.3.5", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxForward+1))
	if err != nil || len(b) > maxForward {
		return bad("4.3.0", errors.Join(err, fmt.Errorf("%s: cannot be read as a whole", p)))
	}
	ts := accounts.ParseForward(string(b))
	if hasLocal(ts) {
		if err := d.mayBecome(&identity{name: m.User, uid: m.UID}); err != nil {
			return nil, err
		}
	}
	return ts, nil
}
