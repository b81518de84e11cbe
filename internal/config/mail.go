package config

import (
	"strings"
	"time"
)

// Store is how the Maildirs of all accounts are kept, and what another server left in them.
type Store struct {
	Layout  string `toml:"layout"`  // maildir++ (default) | fs
	UTF8    bool   `toml:"utf8"`    // names of folders are UTF-8 on disk, not modified UTF-7
	Control string `toml:"control"` // template of where dovecot-uidlist and -keywords are; "" = in the folders
	Index   string `toml:"index"`   // template of where the index and the cache are; "" = in the folders
	Escape  string `toml:"escape"`  // one character that starts two hex digits in names on disk; "" = none
	Courier bool   `toml:"courier"` // take over Courier's files where Dovecot's are missing; default true

	Folders []string `toml:"folders"` // made by "mstore create": names, with their special use behind "="
}

// POP3 is mpop3d's.
type POP3 struct {
	MaxSessions int        `toml:"max_sessions"` // in one process; default 10000
	PerClient   int        `toml:"per_client"`   // of one address or IPv6 /64 in one process; default 100, 0 = no limit
	Idle        Duration   `toml:"idle"`         // a socket-activated process ends after this without a client; default 30s
	Timeout     Duration   `toml:"timeout"`      // a client's silence; default 10m (RFC 1939 §3)
	Errors      int        `toml:"errors"`       // bad commands and wrong passwords before the end; default 10
	UIDL        string     `toml:"uidl"`         // form of unique-ids; default Dovecot's
	Expire      int        `toml:"expire"`       // days mail may stay; -1 (default) for good, 0 not once it was fetched
	LoginDelay  Duration   `toml:"login_delay"`  // between two logins of a user; default 0
	Seen        bool       `toml:"seen"`         // fetching a message marks it as read; default true
	ClearFrom   []string   `toml:"clear_from"`   // networks whose clients may log in without TLS; default none
	ProxyFrom   []string   `toml:"proxy_from"`   // networks of proxies that send the PROXY protocol; default none
	Listen      []Listener `toml:"listen"`       // used by "mpop3d --listen config"
}

// defaultMail fills in both.
func (c *Config) defaultMail() {
	c.Store = Store{
		Layout: "maildir++", Courier: true,
		Folders: []string{"Drafts=drafts", "Sent=sent", "Junk=junk", "Trash=trash", "Archive=archive"},
	}
	c.POP3 = POP3{
		MaxSessions: 10000, PerClient: 100, Idle: Duration(30 * time.Second), Timeout: Duration(10 * time.Minute), Errors: 10,
		UIDL: "%08Xu%08Xv", Expire: -1, Seen: true,
	}
}

// checkMail looks at [store] and [pop3].
func (c *Config) checkMail(k *checker) {
	k.oneOf("store.layout", 0, c.Store.Layout, "maildir++", "fs")
	for key, t := range map[string]string{"store.control": c.Store.Control, "store.index": c.Store.Index} {
		// All users in one directory would take each other's files for their own.
		if t != "" && !strings.Contains(t, "%h") && !strings.Contains(t, "%u") {
			k.bad(key, 0, "%q: a template with %%d and %%u, or %%h, is one directory for each user", t)
		}
	}
	if e := c.Store.Escape; len(e) > 1 || e != "" && (e[0] <= ' ' || e[0] >= 0x7f || strings.Contains("./&~", e) || isAlnum(e[0])) {
		k.bad("store.escape", 0, "%q: one ASCII character that no name needs, such as \\", e)
	}
	for i, f := range c.Store.Folders {
		// RFC 6154 §2 names the uses, RFC 8457 §3 the last one.
		if name, use, ok := strings.Cut(f, "="); name == "" {
			k.bad("store.folders", i, "%q has no name", f)
		} else if ok {
			k.oneOf("store.folders", i, use, "all", "archive", "drafts", "flagged", "junk", "sent", "trash", "important")
		}
	}
	p := c.POP3
	k.atLeast("pop3.max_sessions", int64(p.MaxSessions), 1)
	k.atLeast("pop3.per_client", int64(p.PerClient), 0)
	k.atLeast("pop3.errors", int64(p.Errors), 1)
	if p.Timeout < Duration(10*time.Minute) {
		k.bad("pop3.timeout", 0, "%s is too short: clients may be silent for 10m (RFC 1939)", p.Timeout)
	}
	k.atLeast("pop3.expire", int64(p.Expire), -1)
	if p.LoginDelay < 0 || p.LoginDelay > Duration(24*time.Hour) {
		k.bad("pop3.login_delay", 0, "%s: at most 1d", p.LoginDelay)
	}
	if p.UIDL == "" {
		k.bad("pop3.uidl", 0, "empty: every message needs an id; leave the key out for Dovecot's form")
	}
	k.networks("pop3.clear_from", p.ClearFrom)
	k.networks("pop3.proxy_from", p.ProxyFrom)
	k.listeners("pop3.listen", p.Listen, "pop3", "pop3s")
}

// listeners looks at the sockets of one daemon.
func (k *checker) listeners(key string, ls []Listener, roles ...string) {
	for i, l := range ls {
		k.oneOf(key+".role", i, l.Role, roles...)
		if l.Addr == "" {
			k.bad(key+".addr", i, "missing")
		} else if !strings.HasPrefix(l.Addr, "/") {
			if err := hostPort(l.Addr, -1); err != nil {
				k.bad(key+".addr", i, "%v", err)
			}
		}
	}
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}
