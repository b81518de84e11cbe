package accounts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"pennypost/internal/envelope"
)

// Answers of getent are kept for a short time: a flood of RCPTs must not fork for each.
const (
	getentKeep    = 10 * time.Second
	getentMax     = 1024
	getentTimeout = 10 * time.Second
)

// SystemUser is one line of passwd(5).
type SystemUser struct {
	Name     string
	UID, GID int
	Home     string
}

type systemUsers struct {
	passwd *file[*passwdTable]
	group  *file[map[string][]int]
	getent string

	mu    sync.Mutex
	kept  map[string]getentAnswer
	forks chan struct{}
}

type getentAnswer struct {
	user *SystemUser
	at   time.Time
}

func newSystemUsers(o Options) *systemUsers {
	return &systemUsers{
		passwd: newFile(o.Passwd, parsePasswd),
		group:  newFile(o.Group, parseGroup),
		getent: o.Getent,
		kept:   map[string]getentAnswer{},
		forks:  make(chan struct{}, 4),
	}
}

// passwdTable is a parsed passwd(5). The first line of a name or number counts, as in the
// system's own look-ups.
type passwdTable struct {
	byName map[string]*SystemUser
	byID   map[int]*SystemUser
}

func parsePasswd(_, data string, _ uint32) (*passwdTable, error) {
	t := &passwdTable{byName: map[string]*SystemUser{}, byID: map[int]*SystemUser{}}
	eachLine(data, func(_ int, line string) {
		u := parsePasswdLine(line)
		if u == nil || t.byName[u.Name] != nil {
			return
		}
		t.byName[u.Name] = u
		if t.byID[u.UID] == nil {
			t.byID[u.UID] = u
		}
	})
	return t, nil
}

// parsePasswdLine returns nil for lines that are no user, such as NIS's "+::::::".
func parsePasswdLine(line string) *SystemUser {
	f := strings.Split(line, ":")
	if len(f) < 7 || f[0] == "" || f[0][0] == '+' || f[0][0] == '-' {
		return nil
	}
	uid, e1 := strconv.ParseUint(f[2], 10, 31)
	gid, e2 := strconv.ParseUint(f[3], 10, 31)
	if e1 != nil || e2 != nil {
		return nil
	}
	return &SystemUser{Name: f[0], UID: int(uid), GID: int(gid), Home: f[5]}
}

// SystemUser returns the system's user of that name, nil when there is none.
func (a *Accounts) SystemUser(ctx context.Context, name string) (*SystemUser, error) {
	u, err := a.system.find(ctx, name, false)
	return u, tempOrNil(err)
}

// SystemUserByID returns the user with that uid, nil when there is none.
func (a *Accounts) SystemUserByID(ctx context.Context, uid int) (*SystemUser, error) {
	t, err := a.system.passwd.get(false)
	if err != nil {
		return nil, tempOrNil(err)
	}
	var found *SystemUser
	if t != nil {
		found = t.byID[uid]
	}
	if found != nil || a.system.getent == "" {
		return found, nil
	}
	u, err := a.system.ask(ctx, strconv.Itoa(uid), func(u *SystemUser) bool { return u.UID == uid })
	return u, tempOrNil(err)
}

func (s *systemUsers) find(ctx context.Context, name string, fresh bool) (*SystemUser, error) {
	t, err := s.passwd.get(fresh)
	if err != nil {
		return nil, err
	}
	var u *SystemUser
	if t != nil {
		u = t.byName[name]
	}
	if u != nil || s.getent == "" || !askable(name) {
		return u, nil
	}
	s.mu.Lock()
	k, ok := s.kept[name]
	s.mu.Unlock()
	if ok && time.Since(k.at) < getentKeep {
		return k.user, nil
	}
	select {
	case s.forks <- struct{}{}:
		defer func() { <-s.forks }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	// A number asked for as a name would be taken for a uid: the answer must bear the name.
	u, err = s.ask(ctx, name, func(u *SystemUser) bool { return u.Name == name })
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if len(s.kept) >= getentMax {
		clear(s.kept)
	}
	s.kept[name] = getentAnswer{u, time.Now()}
	s.mu.Unlock()
	return u, nil
}

// askable keeps names away from getent that could be an option or more than one field.
func askable(name string) bool {
	return name != "" && name[0] != '-' && name[0] != '+' && !strings.ContainsAny(name, ":/ \t\n\x00")
}

// ask runs getent passwd KEY. Status 2 is "no such user"; any other failure is not an answer.
func (s *systemUsers) ask(ctx context.Context, key string, want func(*SystemUser) bool) (*SystemUser, error) {
	ctx, cancel := context.WithTimeout(ctx, getentTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.getent, "passwd", key)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s passwd %s: %w", s.getent, key, err)
	}
	line, _, _ := bytes.Cut(out, []byte("\n"))
	u := parsePasswdLine(string(line))
	if u == nil {
		return nil, fmt.Errorf("%s passwd %s: cannot read its answer %.80q", s.getent, key, line)
	}
	if !want(u) {
		return nil, nil
	}
	return u, nil
}

// mailbox is the place for mail of a system user: ~/Maildir.
func (u *SystemUser) mailbox(addr envelope.Address) *Mailbox {
	if u == nil {
		return nil
	}
	return &Mailbox{
		Address: addr.String(), User: u.Name, Home: u.Home, Maildir: strings.TrimSuffix(u.Home, "/") + "/Maildir",
		UID: u.UID, GID: u.GID, System: true,
	}
}
