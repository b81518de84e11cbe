// Package accounts answers who an address is: a mailbox, an alias, nobody, or, when a file or
// program could not be asked, not known at the moment. It hides the files of maccounts(5) and
// aliases(5), the system's users, and when they are read again. A failed look-up is never
// "no such user".
package accounts

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"pennypost/internal/envelope"
)

// Options says where the answers are. The zero value knows no domain.
type Options struct {
	Domains    []string // local domains; bare names belong to the first
	Postmaster string   // who reads postmaster@ of a domain that has neither such a user nor alias
	Maildirs   string   // template of a virtual user's Maildir: %d domain, %u local-part, %h home
	Users      string   // file; "" = none
	UsersMay   bool     // Users is a default that need not exist
	Secrets    string   // file; "" = none
	Aliases    []string // files, the first that has a key wins
	System     bool     // users of Passwd and Getent are users of the first domain
	Passwd     string   // file of system users: /etc/passwd
	Getent     string   // program asked for system users not in Passwd; "" = none
	Group      string   // file of their groups: /etc/group; "" = only the one in Passwd
	Lookup     string   // UNIX socket asked about users that none of the above has; "" = none
	Subaddress string   // separators of local-part and detail: "+"
	CatchAll   string   // address that takes unknown recipients of local domains
}

// Kind says what an address is.
type Kind int

// The kinds of a Result.
const (
	NotLocal   Kind = iota // the domain is not ours
	NoSuchUser             // the domain is ours and has no such address
	IsMailbox
	IsAlias
)

// Result is the answer about one address.
type Result struct {
	Kind    Kind
	Address envelope.Address // as looked up: folded to lower case, completed with the first domain, without detail
	Detail  string           // subaddress detail, RFC 5233: "lists" of ann+lists@x.test
	Full    envelope.Address // Address with its detail and separator
	Mailbox *Mailbox         // when IsMailbox
	Alias   *Alias           // when IsAlias
}

// Mailbox is one user with a place for mail. Its UID and GID are -1 when the account names
// none: then the store belongs to whoever runs.
type Mailbox struct {
	Address string // local-part@domain, lower case
	User    string // system user's name, or the local-part
	Home    string // "" when the account names none
	Maildir string
	UID     int
	GID     int
	System  bool              // one of /etc/passwd or getent
	Extra   map[string]string // extra fields such as userdb_quota_rule
}

// Error is a look-up that failed for now. Status is the deferral to answer with.
type Error struct {
	Status envelope.Status
	Err    error
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// tempError makes err a deferral. code 4.3.5 is a fault of the configuration, 4.3.0 of the system.
func tempError(code string, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	// The reply goes to remote sides: no local path in it.
	reply := "account look-up failed for now"
	if code == "4.3.5" {
		reply = "account files need the postmaster's attention"
	}
	return &Error{Status: envelope.Defer(code, reply), Err: err}
}

// Accounts answers look-ups. It may be used by many goroutines at once.
type Accounts struct {
	o       Options
	domains map[string]bool
	users   *file[*userTable]
	secrets *file[*secretTable]
	aliases []*file[*aliasTable]
	system  *systemUsers
	remote  *lookups

	mu       sync.Mutex
	includes map[string]*file[[]Target]
}

// Open prepares look-ups. No file is read before the first question, so that a broken file is
// a deferral and not the end of a daemon.
func Open(o Options) (*Accounts, error) {
	a := &Accounts{o: o, domains: map[string]bool{}, includes: map[string]*file[[]Target]{}}
	for _, d := range o.Domains {
		if _, ok := envelope.ParseLiteral(d); !ok {
			if err := envelope.CheckDomain(envelope.FoldDomain(d)); err != nil {
				return nil, fmt.Errorf("local domain: %w", err)
			}
		}
		a.domains[foldDomain(d)] = true
	}
	for _, s := range []string{o.CatchAll, o.Postmaster} {
		if s == "" {
			continue
		}
		if _, err := envelope.ParseLocal(s, "x"); err != nil {
			return nil, fmt.Errorf("catch-all or postmaster: %w", err)
		}
	}
	a.users = newFile(o.Users, a.parseUsers)
	a.users.optional = o.UsersMay
	a.secrets = newFile(o.Secrets, a.parseSecrets)
	for _, p := range o.Aliases {
		a.aliases = append(a.aliases, newFile(p, parseAliasFile))
	}
	a.system = newSystemUsers(o)
	a.remote = newLookups(o.Lookup)
	return a, nil
}

// foldDomain puts a domain into the form compared. Letters beyond ASCII are folded as Unicode
// does; U-labels and A-labels of one name stay different strings (maccounts(5) says to list both).
func foldDomain(d string) string { return strings.ToLower(envelope.FoldDomain(d)) }

// IsLocal tells whether domain is one of ours.
func (a *Accounts) IsLocal(domain string) bool { return a.domains[foldDomain(domain)] }

// first is the domain of bare names.
func (a *Accounts) first() string {
	if len(a.o.Domains) == 0 {
		return ""
	}
	return foldDomain(a.o.Domains[0])
}

// fold gives the form in which addresses of local domains are compared: all lower case.
func (a *Accounts) fold(addr envelope.Address) envelope.Address {
	if addr.Domain == "" {
		addr.Domain = a.first()
	}
	d := foldDomain(addr.Domain)
	if !a.domains[d] {
		return addr
	}
	return envelope.Address{Local: strings.ToLower(addr.Local), Domain: d}
}

// Lookup says what addr is. A domain left out is the first. An error is always temporary and
// wraps *Error.
func (a *Accounts) Lookup(ctx context.Context, addr envelope.Address) (Result, error) {
	r, err := a.lookup(ctx, addr, true)
	if err != nil {
		return Result{}, fmt.Errorf("look up %s: %w", addr, tempError("4.3.0", err))
	}
	return r, nil
}

// LookupUser is Lookup without aliases, catch-all and postmaster: the mailbox of just that
// user, which a leading backslash asks for.
func (a *Accounts) LookupUser(ctx context.Context, addr envelope.Address) (Result, error) {
	r, err := a.lookup(ctx, addr, false)
	if err != nil {
		return Result{}, fmt.Errorf("look up %s: %w", addr, tempError("4.3.0", err))
	}
	return r, nil
}

func (a *Accounts) lookup(ctx context.Context, addr envelope.Address, aliases bool) (Result, error) {
	exact := addr.Local
	addr = a.fold(addr)
	if !a.domains[addr.Domain] {
		return Result{Kind: NotLocal, Address: addr, Full: addr}, nil
	}
	r, err := a.ask(ctx, addr, exact, aliases, false)
	if err == nil && r.Kind == NoSuchUser {
		// A user made within the last second is not bounced: look at the files again.
		r, err = a.ask(ctx, addr, exact, aliases, true)
	}
	if err == nil && r.Kind == NoSuchUser {
		err = a.broken()
	}
	return r, err
}

// broken is why a miss cannot be believed: a line that names nobody may have been meant for
// the address asked for.
func (a *Accounts) broken() error {
	if t, err := a.users.get(false); err != nil {
		return err
	} else if t != nil && t.broken != nil {
		return tempError("4.3.5", t.broken)
	}
	for _, f := range a.aliases {
		if t, err := f.get(false); err != nil {
			return err
		} else if t != nil && t.broken != nil {
			return tempError("4.3.5", t.broken)
		}
	}
	return nil
}

// ask goes through the sources in the order maccounts(5) documents. fresh looks whether the
// files changed even if that was done within the second.
func (a *Accounts) ask(ctx context.Context, addr envelope.Address, exact string, aliases, fresh bool) (Result, error) {
	base, detail := a.cut(addr.Local)
	for i, local := range []string{addr.Local, base} {
		if i == 1 && (local == "" || base == addr.Local) {
			break
		}
		r := Result{Address: envelope.Address{Local: local, Domain: addr.Domain}, Full: addr}
		if i == 1 {
			r.Detail = detail
			exact, _ = a.cut(exact)
		}
		found, err := a.one(ctx, &r, exact, aliases, fresh)
		if found || err != nil {
			return r, err
		}
	}
	r := Result{Kind: NoSuchUser, Address: addr, Full: addr}
	if !aliases {
		return r, nil
	}
	if al, err := a.findAlias("@"+addr.Domain, fresh); al != nil || err != nil {
		r.Kind, r.Alias = IsAlias, al
		return r, err
	}
	if addr.Local == "postmaster" {
		// RFC 5321 §4.5.1: mail for postmaster is taken, whatever the configuration leaves out.
		if err := a.postmaster(ctx, &r, fresh); err != nil || r.Kind != NoSuchUser {
			return r, err
		}
	}
	if a.o.CatchAll != "" {
		t := parseTarget(a.o.CatchAll)
		r.Kind, r.Alias = IsAlias, &Alias{Name: "catch-all", Targets: []Target{t}}
	}
	return r, nil
}

// cut takes the detail off a local-part at the first separator. A separator at the front or
// end is part of the name.
func (a *Accounts) cut(local string) (base, detail string) {
	if i := strings.IndexAny(local, a.o.Subaddress); i > 0 && a.o.Subaddress != "" {
		return local[:i], local[i+1:]
	}
	return local, ""
}

// one looks for exactly one name, aliases before users; in other domains than the first a
// user of that address goes before an alias that names no domain.
func (a *Accounts) one(ctx context.Context, r *Result, exact string, aliases, fresh bool) (bool, error) {
	isAlias := func(key string) (bool, error) {
		al, err := a.findAlias(key, fresh)
		if al != nil {
			r.Kind, r.Alias = IsAlias, al
		}
		return al != nil, err
	}
	addr, local := r.Address.String(), r.Address.Local
	if aliases {
		if ok, err := isAlias(addr); ok || err != nil {
			return ok, err
		}
		if r.Address.Domain == a.first() {
			if ok, err := isAlias(local); ok || err != nil {
				return ok, err
			}
		}
	}
	m, err := a.mailbox(ctx, r.Address, exact, fresh)
	if m != nil {
		r.Kind, r.Mailbox = IsMailbox, m
	}
	if m != nil || err != nil || !aliases || r.Address.Domain == a.first() {
		return m != nil, err
	}
	return isAlias(local)
}

func (a *Accounts) mailbox(ctx context.Context, addr envelope.Address, exact string, fresh bool) (*Mailbox, error) {
	t, err := a.users.get(fresh)
	if err != nil {
		return nil, err
	}
	if t != nil {
		if m, err := t.find(addr, a.o.Maildirs); m != nil || err != nil {
			return m, err
		}
	}
	if a.o.System && addr.Domain == a.first() {
		// System user names may hold upper case; the exact one goes first.
		for _, name := range []string{exact, addr.Local} {
			if u, err := a.system.find(ctx, name, fresh); err != nil || u != nil {
				return u.mailbox(addr), err
			}
			if exact == addr.Local {
				break
			}
		}
	}
	return a.remote.find(ctx, addr, a.o.Maildirs)
}

func (a *Accounts) findAlias(key string, fresh bool) (*Alias, error) {
	for _, f := range a.aliases {
		t, err := f.get(fresh)
		if err != nil {
			return nil, err
		}
		if t != nil {
			if al := t.byKey[key]; al != nil {
				return al, nil
			}
		}
	}
	return nil, nil
}

// Owner returns the address that takes errors of the alias name, when an alias "owner-name"
// exists: the convention for lists kept in aliases(5).
func (a *Accounts) Owner(addr envelope.Address) (envelope.Address, bool, error) {
	addr = a.fold(addr)
	o := envelope.Address{Local: "owner-" + addr.Local, Domain: addr.Domain}
	for _, key := range []string{o.String(), o.Local} {
		al, err := a.findAlias(key, false)
		if err != nil || al != nil {
			return o, al != nil, tempOrNil(err)
		}
	}
	return o, false, nil
}

func tempOrNil(err error) error {
	if err == nil {
		return nil
	}
	return tempError("4.3.0", err)
}

// postmaster stands in for a missing postmaster: the configured address, else the first user
// of the domain, else the first user of all, else root.
func (a *Accounts) postmaster(ctx context.Context, r *Result, fresh bool) error {
	to := ""
	if p, err := envelope.ParseLocal(a.o.Postmaster, a.first()); a.o.Postmaster != "" && err == nil {
		if p = a.fold(p); p != r.Address {
			to = p.String()
		}
		if a.domains[p.Domain] && p.Local == "postmaster" {
			to = "" // points at a name that this very function would have to find
			if p.Domain != r.Address.Domain {
				to = p.String()
			}
		}
	}
	if to == "" {
		t, err := a.users.get(fresh)
		if err != nil {
			return err
		}
		to = t.postmaster(r.Address.Domain)
	}
	if to == "" && a.o.System {
		if u, err := a.system.find(ctx, "root", fresh); err != nil {
			return err
		} else if u != nil {
			to = envelope.Address{Local: "root", Domain: a.first()}.String()
		}
	}
	if to != "" {
		r.Kind, r.Alias = IsAlias, &Alias{Name: "postmaster", Targets: []Target{parseTarget(to)}}
	}
	return nil
}
