package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/mailtest"
)

// fetcher is somebody else's program that leaves mail on the server and fetches what is new.
// In its files and words, {P} stands for the port of POP3 over TLS, {D} for a directory of its
// own, {O} for the directory that gets a file for each message fetched.
type fetcher struct {
	program string
	files   map[string]string // by name below {D}
	args    []string
}

// keep writes standard input to a new file in a directory.
const keep = `#!/bin/sh
cat >"$(mktemp {O}/XXXXXXXX)"
`

const poplib = `
import os, poplib, ssl, sys
poplib._MAXLINE = 1 << 20
c = ssl.create_default_context(); c.check_hostname = False; c.verify_mode = ssl.CERT_NONE
s = poplib.POP3_SSL("127.0.0.1", {P}, context=c, timeout=20)
s.user("alice@example.test"); s.pass_("secret")
caps = s.capa()
assert {"TOP", "UIDL", "PIPELINING"} <= set(caps), caps
n, size = s.stat()
sizes = [int(l.split()[1]) for l in s.list()[1]]
assert len(sizes) == n and sum(sizes) == size, (n, size, sizes)
seen = "{D}/seen"
old = open(seen).read().split() if os.path.exists(seen) else []
for line in s.uidl()[1]:
    i, uid = line.decode().split()
    if uid in old: continue
    resp, lines, octets = s.retr(int(i))
    assert sum(len(l) + 2 for l in lines) == sizes[int(i) - 1], (i, sizes)
    assert s.top(int(i), 1)[1][:2] == lines[:2]
    open("{O}/" + uid, "wb").write(b"\n".join(lines) + b"\n")
    open(seen, "a").write(uid + "\n")
s.noop(); s.rset(); s.quit()
`

const getmailrc = `
[retriever]
type = SimplePOP3SSLRetriever
server = 127.0.0.1
port = {P}
username = alice@example.test
password = secret
ssl_cert_hostname = localhost
[destination]
type = MDA_external
path = {D}/keep
unixfrom = False
allow_root_commands = True
[options]
delete = False
read_all = False
delivered_to = False
received = False
`

const fetchmailrc = `poll srv via 127.0.0.1 service {P} protocol pop3 uidl auth password
 user "alice@example.test" password "secret" ssl no sslcertck keep norewrite no mimedecode mda "{D}/keep"
`

func fetchers() []fetcher {
	return []fetcher{
		{"fetchmail", map[string]string{"keep": keep, "rc": fetchmailrc}, []string{"-s", "-f", "{D}/rc", "-i", "{D}/ids", "--pidfile", "{D}/pid"}},
		{"getmail", map[string]string{"keep": keep, "rc": getmailrc}, []string{"-q", "--getmaildir={D}", "--rcfile={D}/rc"}},
		{"mpop", map[string]string{"keep": keep}, []string{
			"--host=127.0.0.1", "--port={P}", "--tls=on", "--tls-starttls=off", "--tls-certcheck=off", "--auth=plain", "--user=alice@example.test",
			"--passwordeval=echo secret", "--keep=on", "--uidls-file={D}/uidls", "--delivery=mda,{D}/keep", "--received-header=off", "-q",
		}},
		{"python3", map[string]string{"get.py": poplib}, []string{"{D}/get.py"}},
	}
}

// fetch runs the program and returns how many messages it has fetched by now, in all its runs.
func (f fetcher) fetch(t *testing.T, home, port string) (got []string) {
	t.Helper()
	out := filepath.Join(home, "out")
	if err := os.MkdirAll(out, 0o700); err != nil {
		t.Fatal(err)
	}
	words := strings.NewReplacer("{P}", port, "{D}", home, "{O}", out)
	for name, text := range f.files {
		if err := os.WriteFile(filepath.Join(home, name), []byte(words.Replace(text)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	args := make([]string, len(f.args))
	for i, a := range f.args {
		args[i] = words.Replace(a)
	}
	cmd := exec.Command(f.program, args...)
	cmd.Env = append(os.Environ(), "HOME="+home, "FETCHMAILHOME="+home)
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	// fetchmail's status is 1 when there was nothing new.
	if err != nil && !(f.program == "fetchmail" && errors.As(err, &exit) && exit.ExitCode() == 1) {
		t.Fatalf("%s: %v\n%s", f.program, err, text)
	}
	files, err := filepath.Glob(filepath.Join(out, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, plain(string(b)))
	}
	slices.Sort(got)
	return got
}

var ownFields = regexp.MustCompile(`(?m)^(Received|X-getmail[^:]*|Return-Path|Delivered-To): .*\n([ \t].*\n)*`)

// plain takes away what fetching programs put in front of a message, and their line ends.
func plain(s string) string {
	return ownFields.ReplaceAllString(strings.ReplaceAll(s, "\r\n", "\n"), "")
}

func letter(n int) string {
	return fmt.Sprintf("From: a@far.test\nTo: alice@example.test\nSubject: letter %d\nMessage-ID: <%d@far.test>\n\n.dot\n..dots\n%s\nFrom here\n", n, n, strings.Repeat("x", 100*n))
}

func letters(n int) (all []string) {
	for i := range n {
		all = append(all, letter(i+1))
	}
	slices.Sort(all)
	return all
}

// TestFetchers has other people's programs leave mail on the server.
func TestFetchers(t *testing.T) {
	for _, f := range fetchers() {
		t.Run(f.program, func(t *testing.T) {
			t.Parallel()
			need(t, f.program)
			s := newSite(t, "")
			s.deliver(t, letter(1), letter(2), letter(3))
			at, _ := s.serve(t)
			_, port, err := net.SplitHostPort(at["pop3s"])
			if err != nil {
				t.Fatal(err)
			}
			home := t.TempDir()
			if got := f.fetch(t, home, port); !slices.Equal(got, letters(3)) {
				t.Errorf("%d messages: %q", len(got), got)
			}
			s.deliver(t, letter(4))
			if got := f.fetch(t, home, port); !slices.Equal(got, letters(4)) {
				t.Errorf("after one more: %d messages: %q", len(got), got)
			}
		})
	}
}

// TestCurl fetches, lists and deletes by each way to log in that curl knows.
func TestCurl(t *testing.T) {
	t.Parallel()
	curl := need(t, "curl")
	s := newSite(t, "accounts.token_command = [\"/bin/sh\", \"-c\", \"read t; if [ \\\"$t\\\" = t0ken ]; then echo alice@example.test; else exit 77; fi\"]\n")
	s.deliver(t, letter(1), letter(2))
	at, _ := s.serve(t)
	ca := filepath.Join(s.dir, "cert.pem")
	for _, c := range []struct {
		name string
		args []string
		want string // "": refused
	}{
		{"list over TLS", []string{"pop3s://" + at["pop3s"] + "/", "-u", "alice:secret"}, "1 "},
		{"list after STLS", []string{"--ssl-reqd", "pop3://" + at["pop3"] + "/", "-u", "alice@example.test:secret"}, "2 "},
		{"fetch", []string{"pop3s://" + at["pop3s"] + "/1", "-u", "alice:secret", "--login-options", "AUTH=PLAIN"}, "Subject: letter 1\r\n"},
		{"AUTH LOGIN", []string{"pop3s://" + at["pop3s"] + "/2", "-u", "alice:secret", "--login-options", "AUTH=LOGIN"}, "\r\n.dot\r\n..dots\r\n"},
		{"AUTH OAUTHBEARER", []string{"pop3s://" + at["pop3s"] + "/1", "-u", "alice@example.test:", "--oauth2-bearer", "t0ken", "--login-options", "AUTH=OAUTHBEARER"}, "Subject: letter 1\r\n"},
		{"wrong token", []string{"pop3s://" + at["pop3s"] + "/1", "-u", "alice@example.test:", "--oauth2-bearer", "other", "--login-options", "AUTH=OAUTHBEARER"}, ""},
		{"wrong password", []string{"pop3s://" + at["pop3s"] + "/1", "-u", "alice:Secret"}, ""},
		{"no TLS", []string{"pop3://" + at["pop3"] + "/1", "-u", "alice:secret"}, ""},
		{"unique-ids", []string{"pop3s://" + at["pop3s"] + "/", "-u", "alice:secret", "-X", "UIDL"}, "1 0000000"},
		{"top", []string{"pop3s://" + at["pop3s"] + "/", "-u", "alice:secret", "-X", "TOP 1 0"}, "Subject: letter 1\r\n"},
		{"delete", []string{"pop3s://" + at["pop3s"] + "/1", "-u", "alice:secret", "-X", "DELE", "-l"}, "-"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := exec.Command(curl, append([]string{"-sS", "-m", "20", "--cacert", ca}, c.args...)...).CombinedOutput()
			if (err == nil) != (c.want != "") {
				t.Fatalf("%v: %s", err, out)
			}
			if c.want != "" && c.want != "-" && !strings.Contains(string(out), c.want) {
				t.Errorf("%q", out)
			}
		})
	}
	if f := s.files(t); len(f) != 1 {
		t.Errorf("after DELE: %v", f)
	}
	if log := s.log(t); strings.Contains(log, "Secret") {
		t.Errorf("log: %s", log)
	}
}

// asNobody gives the site to the user whom Dovecot serves, and the program with it.
func (s *site) asNobody(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err == nil {
		err = errors.Join(os.Remove(s.bin), os.WriteFile(s.bin, b, 0o755))
	}
	if err == nil {
		err = filepath.WalkDir(s.dir, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Chown(path, mailtest.Nobody, mailtest.Nobody))
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestSwitch takes a Maildir from Dovecot to mpop3d and back, on one port: no program that leaves
// mail on the server fetches a message twice, and no unique-id changes.
func TestSwitch(t *testing.T) {
	t.Parallel()
	if why := mailtest.DovecotMissing(); why != "" {
		t.Skip(why)
	}
	s := newSite(t, "")
	s.deliver(t, letter(1), letter(2), letter(3))
	s.asNobody(t)
	addr := freePort(t)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	dovecot := func() (stop func()) {
		dir := filepath.Join(s.dir, "dovecot")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		d, err := mailtest.StartDovecot(mailtest.DovecotOptions{Dir: dir, Maildir: s.maildir(), More: fmt.Sprintf(
			"ssl = yes\nssl_cert = <%[1]s/cert.pem\nssl_key = <%[1]s/key.pem\nservice pop3-login {\n inet_listener pop3s {\n  port = %[2]s\n  ssl = yes\n }\n}\n", s.dir, port)})
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := d.Stop(); err != nil {
				t.Error(err)
			}
		}
	}
	ours := func() (stop func()) {
		cmd := s.command("--listen", addr+"=pop3s")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: mailtest.Nobody, Gid: mailtest.Nobody}}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if !mailtest.Wait(10*time.Second, func() bool {
			c, err := net.Dial("tcp", addr)
			return err == nil && c.Close() == nil
		}) {
			t.Fatal("mpop3d does not listen")
		}
		return func() {
			if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
				t.Error(err)
			}
		}
	}
	homes := map[string]string{}
	var ids []string // by number, as they were first told
	next := 3
	for phase, serve := range []func() func(){dovecot, ours, dovecot, ours}[:switches] {
		stop := serve()
		for _, f := range fetchers() {
			if !slow && (f.program == "getmail" || f.program == "python3") {
				continue // half a second each to start
			}
			if _, err := exec.LookPath(f.program); err != nil {
				t.Logf("skipped: %s is not installed", f.program)
				continue
			}
			if homes[f.program] == "" {
				homes[f.program] = t.TempDir()
			}
			if got := f.fetch(t, homes[f.program], port); !slices.Equal(got, letters(next)) {
				t.Errorf("phase %d: %s has fetched %d messages, want %d", phase, f.program, len(got), next)
			}
		}
		told := uidl(t, addr)
		if len(told) != next || !slices.Equal(told[:len(ids)], ids) {
			t.Errorf("phase %d: ids %q, before %q", phase, told, ids)
		}
		ids = told
		next++
		s.deliver(t, letter(next))
		s.chown(t)
		if phase%2 == 0 { // one that has come and is seen before the switch
			if told = uidl(t, addr); len(told) != next {
				t.Errorf("phase %d: ids %q", phase, told)
			}
			ids = told
		}
		stop()
	}
}

// chown gives new messages to the user whom Dovecot serves.
func (s *site) chown(t *testing.T) {
	t.Helper()
	for _, f := range s.files(t) {
		if err := os.Chown(f, mailtest.Nobody, mailtest.Nobody); err != nil {
			t.Fatal(err)
		}
	}
}

// uidl is what UIDL tells, by number.
func uidl(t *testing.T, addr string) (ids []string) {
	t.Helper()
	c := dial(t, addr)
	defer c.Close()
	tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	if _, err := io.WriteString(tc, "USER alice@example.test\r\nPASS secret\r\nUIDL\r\nQUIT\r\n"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(tc)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\r\n") {
		n, id, ok := strings.Cut(line, " ")
		if ok && n == fmt.Sprint(len(ids)+1) {
			ids = append(ids, id)
		}
	}
	return ids
}

// TestSharedWithDovecot: both serve one Maildir at the same time. What one removes the other has
// not; what was fetched here is read there.
func TestSharedWithDovecot(t *testing.T) {
	t.Parallel()
	if why := mailtest.DovecotMissing(); why != "" {
		t.Skip(why)
	}
	s := newSite(t, "")
	s.deliver(t, letter(1), letter(2), letter(3))
	s.asNobody(t)
	dir := filepath.Join(s.dir, "dovecot")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := mailtest.StartDovecot(mailtest.DovecotOptions{Dir: dir, Maildir: s.maildir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	}()
	addr := freePort(t)
	cmd := s.command("--listen", addr+"=pop3s")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: mailtest.Nobody, Gid: mailtest.Nobody}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(cmd.Process.Kill(), cmd.Wait()) }() // the test is over
	c := dial(t, addr)
	defer c.Close()
	ours := newTalker(t, tls.Client(c, &tls.Config{InsecureSkipVerify: true}))
	ours.say("USER alice", "+OK")
	ours.say("PASS secret", "+OK welcome, 3 messages")
	ic, err := net.Dial("tcp", d.IMAP)
	if err != nil {
		t.Fatal(err)
	}
	defer ic.Close()
	imap := newTalker(t, ic)
	imap.until("a login alice@example.test secret", "a OK")
	imap.until("b select inbox", "b OK")
	imap.until("c store 2 +flags (\\Deleted)", "c OK")
	imap.until("d expunge", "d OK")
	ours.say("RETR 2", "-ERR message is gone")
	ours.until("RETR 1", ".")
	ours.say("DELE 2", "+OK")
	ours.say("DELE 3", "+OK")
	ours.say("QUIT", "+OK bye, 1 messages left")
	var got string
	if !mailtest.Wait(15*time.Second, func() bool {
		imap.until("e noop", "e OK")
		got = imap.until("f fetch 1:* (uid flags)", "f OK")
		return strings.Count(got, " FETCH (") == 1 && strings.Contains(got, "UID 1 FLAGS (\\Seen)")
	}) {
		t.Errorf("Dovecot sees %q", got)
	}
}

// talker speaks a line protocol.
type talker struct {
	t *testing.T
	c net.Conn
	r *lines
}

func newTalker(t *testing.T, c net.Conn) *talker {
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	k := &talker{t, c, &lines{c: c}}
	k.r.next(t)
	return k
}

// say wants the next line to begin with want.
func (k *talker) say(text, want string) {
	k.t.Helper()
	if _, err := io.WriteString(k.c, text+"\r\n"); err != nil {
		k.t.Fatal(err)
	}
	if got := k.r.next(k.t); !strings.HasPrefix(got, want) {
		k.t.Fatalf("%s: %q, want %q", text, got, want)
	}
}

// until reads up to a line that begins with end, and returns what was before.
func (k *talker) until(text, end string) string {
	k.t.Helper()
	if _, err := io.WriteString(k.c, text+"\r\n"); err != nil {
		k.t.Fatal(err)
	}
	var b strings.Builder
	for {
		l := k.r.next(k.t)
		if strings.HasPrefix(l, end) && (end != "." || l == ".\r\n") {
			return b.String() + l
		}
		b.WriteString(l)
	}
}

type lines struct {
	c   net.Conn
	buf []byte
}

func (l *lines) next(t *testing.T) string {
	t.Helper()
	for {
		if i := strings.IndexByte(string(l.buf), '\n'); i >= 0 {
			line := string(l.buf[:i+1])
			l.buf = l.buf[i+1:]
			return line
		}
		b := make([]byte, 4096)
		n, err := l.c.Read(b)
		if n == 0 && err != nil {
			t.Fatalf("%v after %q", err, l.buf)
		}
		l.buf = append(l.buf, b[:n]...)
	}
}

// TestMutt reads a mailbox where it is: its index comes by TOP, its messages by RETR.
func TestMutt(t *testing.T) {
	t.Parallel()
	mutt, script := need(t, "mutt"), need(t, "script") // which makes it a terminal
	s := newSite(t, "")
	s.deliver(t, letter(1), letter(2), letter(3))
	at, _ := s.serve(t)
	rc, out := filepath.Join(s.dir, "muttrc"), filepath.Join(s.dir, "out")
	text := fmt.Sprintf(`set certificate_file=%s/cert.pem ssl_verify_host=no ssl_usesystemcerts=no
set pop_user="alice@example.test" pop_pass=secret pop_authenticators="plain:user" pop_delete=no
set confirmappend=no confirmcreate=no sleep_time=0 delete=yes move=no quit=yes wait_key=no folder=%[1]s
push "<tag-pattern>~A<enter><tag-prefix><copy-message>%s<enter><quit>"
`, s.dir, out)
	if err := os.WriteFile(rc, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(script, "-qec", mutt+" -n -F "+rc+" -f pops://"+at["pop3s"]+"/", "/dev/null")
	cmd.Env = append(os.Environ(), "HOME="+s.dir, "TERM=xterm")
	stop := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() }) // it may have ended
	defer stop.Stop()
	said, err := cmd.CombinedOutput()
	got, rerr := os.ReadFile(out)
	if err != nil || rerr != nil || strings.Count(string(got), "\nSubject: letter ") != 3 || strings.Count(string(got), "\n..dots\n") != 3 {
		t.Errorf("%v %v\n%s\n%s", err, rerr, got, said)
	}
	if log := s.log(t); !strings.Contains(log, "messages=3 retr=3 top=3 dele=0") {
		t.Errorf("log: %s", log)
	}
}
