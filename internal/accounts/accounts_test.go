package accounts

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pennypost/internal/envelope"
)

// put writes a file below a private directory and returns its path.
func put(t *testing.T, dir, name, data string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// replace puts a new version in place the way mpasswd does.
func replace(t *testing.T, path, data string) {
	t.Helper()
	put(t, filepath.Dir(path), "new", data)
	if err := os.Rename(filepath.Join(filepath.Dir(path), "new"), path); err != nil {
		t.Fatal(err)
	}
}

const users = `# people
ann@a.test::::::
Bob:::::/home/bob:
carl@b.test::1000:100::/srv/carl::userdb_mail=maildir:~/Mail:LAYOUT=fs userdb_quota_rule=*:storage=1G
hal@b.test:::::::mail=x
info@b.test::::::
strange@a.test::x:::::
`

const aliases = `
# the usual
postmaster: ann
staff:	ann, bob,
	"dora@far.test",
# in between
	\carl@b.test
"quoted name": ann
info: ann
sales@b.test: ann
@b.test: ann@a.test
prog: "|/bin/prog -x \"a b\", c", |other
file: /var/mail/x, /var/mail/y/
list: :include:LIST
owner-list: ann
bad: not an address
empty:
sub+det: bob
`

func fixture(t *testing.T) (*Accounts, string) {
	t.Helper()
	dir := t.TempDir()
	list := put(t, dir, "list", "# members\nann\nEve <eve@far.test>, dora@far.test\n|evil\n")
	a, err := Open(Options{
		Domains: []string{"A.test", "b.test", "c.test"}, Maildirs: "/mail/%d/%u", Subaddress: "+-",
		Users:   put(t, dir, "users", users),
		Secrets: put(t, dir, "secrets", "ann@a.test:{PLAIN}sesame\nbob:{SHA256}K7gNU3sdo+OL0wNhqoVWhr3g6s1xYv72ol/pe/Unols=\nno@a.test:\nout@a.test:{PLAIN}x::::::nologin\nnet@a.test:{PLAIN}x::::::allow_nets=10.0.0.0/8\nodd@a.test:{DES}x\n"),
		Aliases: []string{put(t, dir, "aliases", strings.ReplaceAll(aliases, "LIST", list))},
		Passwd:  put(t, dir, "passwd", "root:x:0:0:root:/root:/bin/sh\nSys:x:1001:100::/home/Sys:/bin/sh\n+::::::\n"),
		System:  true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return a, dir
}

// show prints a result in one line for the tables.
func show(r Result, err error) string {
	var e *Error
	if errors.As(err, &e) {
		return "error " + e.Status.Code
	}
	s := []string{"not-local", "none", "mailbox", "alias"}[r.Kind]
	if r.Detail != "" {
		s += " +" + r.Detail
	}
	if r.Mailbox != nil {
		s += " " + r.Mailbox.Address + " " + r.Mailbox.Maildir
	}
	if r.Alias != nil {
		for _, t := range r.Alias.Targets {
			if t.Kind == ToError {
				s += " ERROR"
				continue
			}
			s += " " + t.String()
		}
	}
	return s
}

func TestLookup(t *testing.T) {
	a, dir := fixture(t)
	for _, c := range []struct{ addr, want string }{
		{"ann@a.test", "mailbox ann@a.test /mail/a.test/ann"},
		{"ANN@A.Test", "mailbox ann@a.test /mail/a.test/ann"},
		{"ann+x+y@a.test", "mailbox +x+y ann@a.test /mail/a.test/ann"},
		{"ann-x@a.test", "mailbox +x ann@a.test /mail/a.test/ann"},
		{"+ann@a.test", "none"},
		{"bob", "mailbox bob@a.test /mail/a.test/bob"},
		{"bob@b.test", "alias ann@a.test"}, // users of the first domain are not users of the others
		{"bob@c.test", "none"},
		{"carl@b.test", "mailbox carl@b.test /srv/carl/Mail"},
		{"hal@b.test", "error 4.3.5"}, // mail=x is no path
		{"strange@a.test", "error 4.3.5"},
		{"nobody@a.test", "none"},
		{"nobody@far.test", "not-local"},
		{"postmaster@a.test", "alias ann"},
		{"postmaster@c.test", "alias ann"},
		{"Sys@a.test", "mailbox sys@a.test /home/Sys/Maildir"},
		{"root+x@a.test", "mailbox +x root@a.test /root/Maildir"},
		{"Sys@b.test", "alias ann@a.test"},
		{"staff@a.test", `alias ann bob dora@far.test \carl@b.test`},
		{"staff@c.test", `alias ann bob dora@far.test \carl@b.test`},
		{`"quoted name"@a.test`, "alias ann"},
		{"info@a.test", "alias ann"},
		{"info@b.test", "mailbox info@b.test /mail/b.test/info"}, // a user there goes before a bare alias
		{"sales@a.test", "none"},
		{"sales@b.test", "alias ann"},
		{"anything@b.test", "alias ann@a.test"},
		{"prog@a.test", `alias "|/bin/prog -x \"a b\", c" |other`},
		{"file@a.test", "alias /var/mail/x /var/mail/y/"},
		{"list@a.test", `alias ":include:` + dir + `/list"`},
		{"bad@a.test", "alias ERROR"},
		{"empty@a.test", "alias ERROR"},
		{"sub+det@a.test", "alias bob"},
	} {
		addr, err := envelope.ParseLocal(c.addr, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := show(a.Lookup(context.Background(), addr)); got != c.want {
			t.Errorf("%s: %s\n\twant %s", c.addr, got, c.want)
		}
	}
	r, err := a.LookupUser(context.Background(), envelope.Address{Local: "info", Domain: "a.test"})
	if err != nil || r.Kind != NoSuchUser {
		t.Errorf("LookupUser sees aliases: %v %v", r, err)
	}
	if o, ok, err := a.Owner(envelope.Address{Local: "LIST", Domain: "a.test"}); !ok || err != nil || o.String() != "owner-list@a.test" {
		t.Errorf("owner: %v %v %v", o, ok, err)
	}
	ts, err := a.Include(filepath.Join(dir, "list"))
	if err != nil || len(ts) != 4 || ts[1].String() != "eve@far.test" || ts[3].Kind != ToError {
		t.Errorf("include: %v %v", ts, err)
	}
}

// A miss means nothing while a source cannot be read or has a line that names nobody.
func TestMissIsNoNoSuchUser(t *testing.T) {
	for name, breakIt := range map[string]func(t *testing.T, dir string){
		"users gone":     func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "users")) },
		"users dir":      func(t *testing.T, dir string) { os.Remove(dir + "/users"); os.Mkdir(dir+"/users", 0o755) },
		"aliases gone":   func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "aliases")) },
		"passwd gone":    func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "passwd")) },
		"users line":     func(t *testing.T, dir string) { replace(t, dir+"/users", "a b c\nann@a.test:\n") },
		"aliases line":   func(t *testing.T, dir string) { replace(t, dir+"/aliases", "root ann@a.test\n") },
		"users writable": func(t *testing.T, dir string) { os.Chmod(dir+"/users", 0o666) },
		"directory open": func(t *testing.T, dir string) { os.Chmod(dir, 0o777) },
	} {
		t.Run(name, func(t *testing.T) {
			a, dir := fixture(t)
			breakIt(t, dir)
			if got := show(a.Lookup(context.Background(), envelope.Address{Local: "nobody", Domain: "a.test"})); !strings.HasPrefix(got, "error 4.3.") {
				t.Errorf("%s", got)
			}
		})
	}
}

func TestReload(t *testing.T) {
	a, dir := fixture(t)
	look := func(l string) string {
		return show(a.Lookup(context.Background(), envelope.Address{Local: l, Domain: "a.test"}))
	}
	if got := look("new"); got != "none" {
		t.Fatal(got)
	}
	replace(t, dir+"/users", users+"new@a.test:\n")
	if got := look("new"); got != "mailbox new@a.test /mail/a.test/new" {
		t.Errorf("a new user is not seen at once: %s", got)
	}
	// Changed in place: an editor may be half through. The old version counts for a second,
	// a miss is a deferral, and then the new version counts.
	put(t, dir, "users", "")
	if got := look("ann"); got != "mailbox ann@a.test /mail/a.test/ann" {
		t.Errorf("a truncated file took ann away: %s", got)
	}
	if got := look("newer"); got != "error 4.3.0" {
		t.Errorf("a miss while the file is edited: %s", got)
	}
	old := time.Now().Add(-time.Hour)
	put(t, dir, "users", "newer@a.test:\n")
	os.Chtimes(dir+"/users", old, old)
	if got := look("newer"); got != "mailbox newer@a.test /mail/a.test/newer" {
		t.Errorf("after the edit: %s", got)
	}
}

func TestPostmaster(t *testing.T) {
	dir := t.TempDir()
	u := put(t, dir, "users", "ann@a.test:\nbo@b.test:\n")
	empty := put(t, dir, "none", "")
	pw := put(t, dir, "passwd", "root:x:0:0::/root:/bin/sh\n")
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Users: u}, "alias bo@b.test"},
		{Options{Users: u, Postmaster: "postmaster@a.test"}, "alias postmaster@a.test"},
		{Options{Users: u, Postmaster: "postmaster@b.test"}, "alias bo@b.test"},
		{Options{Users: u, Postmaster: "op@far.test"}, "alias op@far.test"},
		{Options{Users: empty, System: true, Passwd: pw}, "alias root@a.test"},
		{Options{Users: empty}, "none"},
		{Options{Users: empty, CatchAll: "x@far.test"}, "alias x@far.test"},
	} {
		c.o.Domains, c.o.Maildirs = []string{"a.test", "b.test"}, "/m/%u"
		a, err := Open(c.o)
		if err != nil {
			t.Fatal(err)
		}
		if got := show(a.Lookup(context.Background(), envelope.Address{Local: "Postmaster", Domain: "b.test"})); got != c.want {
			t.Errorf("%+v: %s, want %s", c.o, got, c.want)
		}
	}
}

func TestSecret(t *testing.T) {
	a, dir := fixture(t)
	for _, c := range []struct {
		login, address string
		known, refused bool
	}{
		{"ann@a.test", "ann@a.test", true, false}, {"ANN", "ann@a.test", true, false}, {"bob", "bob@a.test", true, false},
		{"ann+x", "ann+x@a.test", false, false}, {"out", "out@a.test", false, false}, {"ann@b.test", "ann@b.test", false, false},
		{"", "", false, false}, {"a b", "", false, false}, {"net", "net@a.test", true, true},
	} {
		s, known, err := a.Secret(c.login)
		if err != nil || s.Address != c.address || known != c.known || (s.Refused != nil) != c.refused || s.Hash == "" {
			t.Errorf("%q: %+v %v %v", c.login, s, known, err)
		}
	}
	nobody, _, _ := a.Secret("nobody")
	if ann, _, _ := a.Secret(a.secrets.val.order[0]); nobody.Hash != ann.Hash {
		t.Errorf("nobody costs %s, the first user %s", nobody.Hash, ann.Hash)
	}
	if err := os.Remove(dir + "/secrets"); err != nil {
		t.Fatal(err)
	}
	var e *Error
	if _, known, err := a.Secret("ann"); known || !errors.As(err, &e) {
		t.Errorf("a missing secrets file is an answer: %v", err)
	}
}

// An address has one hash and one record for each mechanism: the first of each. A line that shuts
// the account shuts all of it, before or after.
func TestSeveralRecords(t *testing.T) {
	p := put(t, t.TempDir(), "secrets", `ann@a.test:{SCRAM-SHA-256}k1
ann@a.test:{PLAIN}one
Ann@a.test:{PLAIN}two
ann@a.test:{scram-sha-256}k2
ann@a.test:{SCRAM-SHA-1}k3
bob@a.test:{PLAIN}x
bob@a.test:{SCRAM-SHA-256}k::::::nologin
carl@a.test:{PLAIN}x::::::nologin
carl@a.test:{SCRAM-SHA-256}k
`)
	a, err := Open(Options{Domains: []string{"a.test"}, Secrets: p})
	if err != nil {
		t.Fatal(err)
	}
	s, known, err := a.Secret("ann")
	if err != nil || !known || s.Hash != "{PLAIN}one" || len(s.SCRAM) != 2 || s.SCRAM["SCRAM-SHA-256"] != "k1" || s.SCRAM["SCRAM-SHA-1"] != "k3" {
		t.Errorf("%+v %v %v", s, known, err)
	}
	for _, login := range []string{"bob", "carl"} {
		if s, known, err := a.Secret(login); known || err != nil {
			t.Errorf("%s: %+v %v", login, s, err)
		}
	}
	if m, plain, err := a.SCRAM(); err != nil || !plain || strings.Join(m, " ") != "SCRAM-SHA-1 SCRAM-SHA-256" {
		t.Errorf("%q %v %v", m, plain, err)
	}
}

func TestGetent(t *testing.T) {
	dir := t.TempDir()
	script := func(body string) string {
		p := put(t, dir, "getent", "#!/bin/sh\n"+body)
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, c := range []struct{ body, want string }{
		{`echo "$2:x:1000:100::/home/$2:/bin/sh"`, "mailbox eve@a.test /home/eve/Maildir"},
		{`echo "other:x:1000:100::/home/$2:/bin/sh"`, "none"}, // asked for a number, answered a name
		{"exit 2", "none"},
		{"exit 1", "error 4.3.0"},
		{"echo garbage", "error 4.3.0"},
		{"kill -9 $$", "error 4.3.0"},
	} {
		a, err := Open(Options{Domains: []string{"a.test"}, System: true, Passwd: put(t, dir, "passwd", ""), Getent: script(c.body)})
		if err != nil {
			t.Fatal(err)
		}
		if got := show(a.Lookup(context.Background(), envelope.Address{Local: "eve", Domain: "a.test"})); got != c.want {
			t.Errorf("%s: %s, want %s", c.body, got, c.want)
		}
	}
}

// What plainKey passes, the parser would have left as it is; what it does not, it changes or
// refuses, or is rare.
func TestPlainKey(t *testing.T) {
	a := &Accounts{o: Options{Domains: []string{"a.test"}}}
	for name, want := range map[string]bool{
		"ann@a.test": true, "a.n-n_1@a.test": true, "x@1.y": true,
		"Ann@a.test": false, "ann": false, "ann@": false, "@a.test": false, "a..n@a.test": false, ".a@a.test": false, "a.@a.test": false,
		"a@a..test": false, "a@a.test.": false, "a@b@c": false, "a+b@a.test": false, " a@a.test": false, "": false,
		strings.Repeat("a", 65) + "@a.test": false, "a@" + strings.Repeat("a", 64): false,
	} {
		_, plain := plainKey(name)
		if plain != want {
			t.Errorf("%q: %v", name, plain)
		}
		if addr, err := a.parseKey(name); plain && (err != nil || addr.String() != name) {
			t.Errorf("%q is %q, %v", name, addr, err)
		}
	}
}
