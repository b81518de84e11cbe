package accounts

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"pennypost/internal/envelope"
)

// userTable is a parsed users file: key → line. Lines are taken apart when asked for.
type userTable struct {
	lines   map[string]string
	order   []string          // keys as they stand in the file
	firstOf map[string]string // domain → first user's key
	broken  error             // a line that names nobody; then a miss is no "no such user"
}

// parseUsers reads user:password:uid:gid:gecos:home:shell:extra, as Dovecot's passwd-file.
func (a *Accounts) parseUsers(path, data string, _ uint32) (*userTable, error) {
	t := &userTable{lines: make(map[string]string, strings.Count(data, "\n")+1), firstOf: map[string]string{}}
	eachLine(data, func(n int, line string) {
		key, _, _ := strings.Cut(line, ":")
		domain, plain := plainKey(key)
		if !plain {
			addr, err := a.parseKey(key)
			if err != nil {
				if t.broken == nil {
					t.broken = fmt.Errorf("%s:%d: %w", path, n, err)
				}
				return
			}
			key, domain = addr.String(), addr.Domain
		}
		if _, ok := t.lines[key]; ok {
			return // the first line of a name counts
		}
		t.lines[key] = line
		t.order = append(t.order, key)
		if t.firstOf[domain] == "" {
			t.firstOf[domain] = key
		}
	})
	return t, nil
}

// plainKey tells whether name is in the form of a key as it stands, as nearly all lines of a
// large file are, and returns its domain: words of small letters, digits, - and _ joined by
// single dots, on both sides of one @.
func plainKey(name string) (domain string, ok bool) {
	at, word := -1, 0
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_':
			word++
		case c == '.' && word > 0:
			word = 0
		case c == '@' && word > 0 && at < 0:
			at, word = i, 0
		default:
			return "", false
		}
		if word > 63 {
			return "", false
		}
	}
	if at < 0 || word == 0 || at > envelope.MaxLocal || len(name) > envelope.MaxAddress {
		return "", false
	}
	return name[at+1:], true
}

// parseKey reads the name at the start of a line of users or secrets.
func (a *Accounts) parseKey(name string) (envelope.Address, error) {
	addr, err := envelope.ParseLocal(trim(name), a.first())
	if err != nil {
		return addr, err
	}
	// Not a.fold: the file may name domains that are not local, and they are matched all the same.
	return envelope.Address{Local: strings.ToLower(addr.Local), Domain: foldDomain(addr.Domain)}, nil
}

// trim takes white space off both ends. Only ASCII's: other spaces may be part of an address.
func trim(s string) string { return strings.Trim(s, " \t\r\n\v\f") }

// eachLine calls fn for each line that is neither blank nor a comment, with its number.
func eachLine(data string, fn func(n int, line string)) {
	for n := 1; data != ""; n++ {
		var line string
		line, data, _ = strings.Cut(data, "\n")
		line = strings.TrimSuffix(line, "\r")
		if s := trim(line); s == "" || s[0] == '#' {
			continue
		}
		fn(n, line)
	}
}

// find returns the mailbox of addr, nil when the file does not have it.
func (t *userTable) find(addr envelope.Address, template string) (*Mailbox, error) {
	line, ok := t.lines[addr.String()]
	if !ok {
		return nil, nil
	}
	m, err := parseUser(addr, line)
	if err == nil && m.Maildir == "" {
		m.Maildir, err = expandMaildir(template, addr, m.Home)
	}
	if err != nil {
		return nil, tempError("4.3.5", fmt.Errorf("users file: %s: %w", addr, err))
	}
	return m, nil
}

func (t *userTable) postmaster(domain string) string {
	if t == nil {
		return ""
	}
	if u := t.firstOf[domain]; u != "" {
		return u
	}
	if len(t.order) > 0 {
		return t.order[0]
	}
	return ""
}

// parseUser takes one users line apart.
func parseUser(addr envelope.Address, line string) (*Mailbox, error) {
	f := strings.SplitN(line, ":", 8)
	for len(f) < 8 {
		f = append(f, "")
	}
	m := &Mailbox{Address: addr.String(), User: addr.Local, Home: f[5], UID: -1, GID: -1}
	for i, p := range []*int{&m.UID, &m.GID} {
		if s := f[2+i]; s != "" {
			n, err := strconv.ParseUint(s, 10, 31)
			if err != nil {
				return nil, fmt.Errorf("%q is no uid or gid number", s)
			}
			*p = int(n)
		}
	}
	if m.Home != "" && m.Home[0] != '/' {
		return nil, fmt.Errorf("home %q is not an absolute path", m.Home)
	}
	for kv := range strings.FieldsSeq(f[7]) {
		if m.Extra == nil {
			m.Extra = map[string]string{}
		}
		k, v, _ := strings.Cut(kv, "=")
		m.Extra[k] = v
	}
	return m, m.place(addr)
}

// place finds the Maildir that the extra fields of an account name, if they do.
func (m *Mailbox) place(addr envelope.Address) error {
	mail := m.Extra["userdb_mail"]
	if mail == "" {
		mail = m.Extra["mail"]
	}
	if mail == "" {
		return nil
	}
	// Dovecot's mail location: maildir:PATH[:OPTION=VALUE...], PATH with ~ for home.
	p := strings.TrimPrefix(mail, "maildir:")
	p, _, _ = strings.Cut(p, ":")
	if p == "~" || strings.HasPrefix(p, "~/") {
		if m.Home == "" {
			return errors.New("mail starts with ~ but no home is given")
		}
		p = m.Home + p[1:]
	}
	if strings.Contains(p, "%") {
		var err error
		if p, err = expandMaildir(p, addr, m.Home); err != nil {
			return err
		}
	}
	if p == "" || p[0] != '/' {
		return fmt.Errorf("mail %q is no maildir: with an absolute path", mail)
	}
	m.Maildir = p
	return nil
}

// Expand fills %u (local-part), %d (domain), %h (home) and %% into a template, for further
// directories of the account.
func (m *Mailbox) Expand(template string) (string, error) {
	i := strings.LastIndexByte(m.Address, '@')
	if i < 0 {
		return "", fmt.Errorf("account %q has no domain", m.Address)
	}
	return expandMaildir(template, envelope.Address{Local: m.Address[:i], Domain: m.Address[i+1:]}, m.Home)
}

// expandMaildir fills %u (local-part), %d (domain), %h (home) and %% into template.
func expandMaildir(template string, addr envelope.Address, home string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(template); i++ {
		if template[i] != '%' {
			b.WriteByte(template[i])
			continue
		}
		i++
		c := byte(0)
		if i < len(template) {
			c = template[i]
		}
		part := ""
		switch c {
		case 'u', 'n':
			part = addr.Local
		case 'd':
			part = addr.Domain
		case 'h':
			if home == "" {
				return "", errors.New("the Maildir template has %h but the account has no home")
			}
			b.WriteString(home)
			continue
		case '%':
			b.WriteByte('%')
			continue
		default:
			return "", fmt.Errorf("template %q of Maildirs: only %%u %%d %%h and %%%% are known", template)
		}
		// The part is one path element, whatever a name holds.
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "/\x00") {
			return "", fmt.Errorf("%q cannot be part of a path", part)
		}
		b.WriteString(part)
	}
	if b.Len() == 0 {
		return "", errors.New("no Maildir: the template is empty")
	}
	return b.String(), nil
}

// Secret is what is stored to check one account's password by.
type Secret struct {
	Address string            // the account
	Hash    string            // {SCHEME}hash, or without {SCHEME} a crypt(3) hash; "" when there are SCRAM records only
	SCRAM   map[string]string // mechanism (SCRAM-SHA-256) → what stands after its {SCHEME}
	Refused error             // set when the line asks for something we cannot do
}

// secretTable is a parsed secrets file.
type secretTable struct {
	byKey map[string]*Secret
	order []string
	dummy *Secret
	scram map[string]bool // mechanisms that some account has a record of
	plain bool            // some account's password is stored as it is: every mechanism can use it
}

// dummySecret costs what a new password costs and matches none (its key is random).
const dummySecret = "{ARGON2ID}$argon2id$v=19$m=19456,t=2,p=1$cGVubnlwb3N0ZHVtbXk$7fBz0vG8Rr3yYmUuX0m2d5nqkP1hYl0mJwT4cQe9ZgA"

// scramOf takes the mechanism off a SCRAM record: "{SCRAM-SHA-256}4096,salt,key,key".
func scramOf(stored string) (mechanism, record string, ok bool) {
	if len(stored) < 7 || !strings.EqualFold(stored[:7], "{SCRAM-") {
		return "", "", false
	}
	mechanism, record, ok = strings.Cut(stored[1:], "}")
	return strings.ToUpper(mechanism), record, ok
}

// parseSecrets reads address:{SCHEME}hash, and the passwd-file of Dovecot with its further
// fields. An address may have a line for its hash and one for each SCRAM mechanism; of several
// of one kind the first counts, so that a forgotten line below lets nobody in.
func (a *Accounts) parseSecrets(_, data string, _ uint32) (*secretTable, error) {
	n := strings.Count(data, "\n") + 1
	t := &secretTable{byKey: make(map[string]*Secret, n), scram: map[string]bool{}}
	locked := map[string]bool{}
	eachLine(data, func(_ int, line string) {
		f := strings.SplitN(line, ":", 8)
		addr, err := a.parseKey(f[0])
		if err != nil || len(f) < 2 || trim(f[1]) == "" {
			return // nobody, or a user without a password: cannot log in
		}
		key := addr.String()
		if locked[key] {
			return
		}
		s := t.byKey[key]
		if s == nil {
			s = &Secret{Address: key}
		}
		if len(f) == 8 && t.extra(s, f[7]) {
			locked[key] = true
			if t.byKey[key] != nil {
				delete(t.byKey, key)
				t.order = slices.DeleteFunc(t.order, func(k string) bool { return k == key })
			}
			return
		}
		t.add(s, trim(f[1]))
	})
	if len(t.order) > 0 { // an unknown login costs what most known ones cost
		t.dummy = t.byKey[t.order[0]]
	}
	return t, nil
}

// extra reads the eighth field of a line; locked means that nobody may log in.
func (t *secretTable) extra(s *Secret, field string) (locked bool) {
	for kv := range strings.FieldsSeq(field) {
		switch k, _, _ := strings.Cut(kv, "="); k {
		case "nologin":
			return true
		case "nopassword", "allow_nets":
			s.Refused = fmt.Errorf("the extra field %s is not supported", k)
		}
	}
	return false
}

func (t *secretTable) add(s *Secret, stored string) {
	if t.byKey[s.Address] == nil {
		t.byKey[s.Address] = s
		t.order = append(t.order, s.Address)
	}
	if mech, record, ok := scramOf(stored); ok {
		if s.SCRAM == nil {
			s.SCRAM = map[string]string{}
		}
		if _, ok := s.SCRAM[mech]; !ok {
			s.SCRAM[mech] = record
			t.scram[mech] = true
		}
		return
	}
	if s.Hash == "" {
		s.Hash = stored
		scheme, _, _ := strings.Cut(strings.ToUpper(stored), "}")
		t.plain = t.plain || scheme == "{PLAIN" || scheme == "{CLEARTEXT" || scheme == "{CLEAR"
	}
}

// find returns the secret of key, or one of the same cost and false.
func (t *secretTable) find(key string) (Secret, bool) {
	if t != nil {
		if s := t.byKey[key]; s != nil {
			return *s, true
		}
		if t.dummy != nil {
			d := *t.dummy
			d.Address, d.Refused = key, nil
			return d, false
		}
	}
	return Secret{Address: key, Hash: dummySecret}, false
}

// Secret returns what is stored for login, a full address or a bare local-part of the first
// domain. For a login nobody has, it returns an account's secret that costs as much to check,
// and false. An error means that the answer is not known; it wraps *Error.
func (a *Accounts) Secret(login string) (s Secret, known bool, err error) {
	addr, perr := envelope.ParseLocal(login, a.first())
	t, err := a.secrets.get(true)
	if err != nil {
		return Secret{}, false, fmt.Errorf("check a password: %w", tempError("4.3.0", err))
	}
	if perr != nil { // a login that is no address is nobody's
		s, _ = t.find("")
		return s, false, nil
	}
	s, known = t.find(a.fold(addr).String())
	return s, known, nil
}

// SCRAM tells for which SCRAM mechanisms some account has a record, and whether some account
// has a password that is stored as it is.
func (a *Accounts) SCRAM() (mechanisms []string, plain bool, err error) {
	t, err := a.secrets.get(false)
	if err != nil || t == nil {
		return nil, false, tempOrNil(err)
	}
	return slices.Sorted(maps.Keys(t.scram)), t.plain, nil
}
