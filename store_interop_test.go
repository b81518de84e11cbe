package house_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
	"pennypost/internal/mailtest"
)

// swap is a Maildir, dir/md, that Dovecot and we take from each other.
type swap struct {
	t    *testing.T
	dir  string
	conf []string // doveadm and where its configuration is
}

func newSwap(t *testing.T) *swap {
	t.Helper()
	s := &swap{t: t, dir: t.TempDir()}
	for _, d := range []string{"run", "local"} {
		s.ok(os.Mkdir(filepath.Join(s.dir, d), 0o755))
	}
	s.conf = mailtest.DovecotCommand(t, s.dir)[:3]
	return s
}

func (s *swap) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *swap) md() string { return filepath.Join(s.dir, "md") }

// nobodys gives everything to the user whom Dovecot serves, when we are root.
func (s *swap) nobodys() {
	s.t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	s.ok(filepath.WalkDir(s.dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, mailtest.Nobody, mailtest.Nobody)
		}
		return err
	}))
}

// run runs a program as that user.
func (s *swap) run(stdin string, args ...string) string {
	s.t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "HOME="+s.dir, "USER=nobody")
	cmd.Stdin = strings.NewReader(stdin)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: mailtest.Nobody, Gid: mailtest.Nobody}}
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("%q: %v\n%s%s", args, err, out, &stderr)
	}
	return string(out)
}

func (s *swap) doveadm(stdin string, args ...string) string {
	s.t.Helper()
	return s.run(stdin, append(slices.Clone(s.conf), args...)...)
}

// dump is what an IMAP client sees: for each mailbox UIDVALIDITY, and for each message UID,
// flags and keywords.
type dump map[string]string

// dovecotDump asks Dovecot.
func (s *swap) dovecotDump() dump {
	s.t.Helper()
	d := dump{}
	for line := range strings.Lines(s.doveadm("", "-f", "tab", "mailbox", "status", "uidvalidity", "*")) {
		name, v, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if name != "mailbox" {
			d[name] = "V" + v
		}
	}
	for line := range strings.Lines(s.doveadm("", "-f", "tab", "fetch", "mailbox uid flags", "all")) {
		f := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if f[0] != "mailbox" {
			d[f[0]+"/"+f[1]] = flagsOf(f[2])
		}
	}
	return d
}

// flagsOf sorts flags and leaves out \Recent, which is a session's.
func flagsOf(s string) string {
	f := slices.DeleteFunc(strings.Fields(s), func(f string) bool { return f == `\Recent` })
	slices.Sort(f)
	return strings.Join(f, " ")
}

// open runs f on our view of the account.
func (s *swap) open(f func(context.Context, *mailbox.Store)) {
	s.t.Helper()
	st, err := mailbox.Open(s.md(), mailbox.Options{Courier: true})
	s.ok(err)
	f(context.Background(), st)
	s.ok(st.Close())
	s.nobodys()
}

func (s *swap) view(ctx context.Context, st *mailbox.Store, name string, f func(*mailbox.Mailbox, *mailbox.View)) {
	s.t.Helper()
	m, err := st.Mailbox(ctx, name)
	s.ok(err)
	v, err := m.Select(ctx, false)
	s.ok(err)
	f(m, v)
	s.ok(errors.Join(v.Close(), m.Close()))
}

// ourDump asks our store.
func (s *swap) ourDump() dump {
	s.t.Helper()
	d := dump{}
	names := []string{`\Draft`, `\Flagged`, "", `\Answered`, `\Seen`, `\Deleted`}
	s.open(func(ctx context.Context, st *mailbox.Store) {
		folders, err := st.List(ctx)
		s.ok(err)
		for _, f := range folders {
			if !f.Exists {
				continue
			}
			s.view(ctx, st, f.Name, func(_ *mailbox.Mailbox, v *mailbox.View) {
				d[f.Name] = fmt.Sprintf("V%d", v.UIDValidity())
				for _, m := range v.All(1, v.Len()) {
					var flags []string
					for i, n := range names {
						if m.Flags&(1<<i) != 0 && n != "" {
							flags = append(flags, n)
						}
					}
					for i, k := range v.Keywords() {
						if m.Keywords&(1<<i) != 0 {
							flags = append(flags, k)
						}
					}
					d[f.Name+"/"+strconv.Itoa(int(m.UID))] = flagsOf(strings.Join(flags, " "))
				}
			})
		}
	})
	return d
}

func (s *swap) same(when string, got, want dump) {
	s.t.Helper()
	for k := range want {
		if g, ok := got[k]; !ok || g != want[k] {
			s.t.Errorf("%s: %s is %q, was %q", when, k, g, want[k])
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			s.t.Errorf("%s: %s (%q) was not there", when, k, got[k])
		}
	}
}

// mbsync fetches with a client that keeps UIDs, and returns the messages that it has by now.
func (s *swap) mbsync() []string {
	s.t.Helper()
	if _, err := exec.LookPath("mbsync"); err != nil {
		s.t.Log("mbsync is not installed")
		return nil
	}
	rc := filepath.Join(s.dir, "mbsyncrc")
	s.ok(os.WriteFile(rc, fmt.Appendf(nil, `IMAPStore far
Tunnel "%s exec imap"

MaildirStore near
Path %s/local/
Inbox %s/local/INBOX
SubFolders Verbatim

Channel all
Far :far:
Near :near:
Patterns *
Create Near
Expunge Near
Sync All
SyncState *
`, strings.Join(s.conf, " "), s.dir, s.dir), 0o644))
	s.nobodys()
	s.run("", "mbsync", "-c", rc, "-a")
	var got []string
	s.ok(filepath.WalkDir(filepath.Join(s.dir, "local"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ",U=") {
			base, _, _ := strings.Cut(filepath.Base(path), ":")
			got = append(got, base)
		}
		return err
	}))
	slices.Sort(got)
	return got
}

var uidlLine = regexp.MustCompile(`(?m)^(\d+) (\S+)\r?$`)

// dovecotUIDL is what POP3 clients see.
func (s *swap) dovecotUIDL() (ids []string) {
	s.t.Helper()
	if _, err := os.Stat("/usr/lib/dovecot/pop3"); err != nil {
		s.t.Log("Dovecot's POP3 server is not installed")
		return nil
	}
	out := s.doveadm("UIDL\r\nQUIT\r\n", "exec", "pop3")
	for _, m := range uidlLine.FindAllStringSubmatch(out, -1) {
		ids = append(ids, m[2])
	}
	return ids
}

func (s *swap) ourUIDL() (ids []string) {
	s.t.Helper()
	s.open(func(ctx context.Context, st *mailbox.Store) {
		s.view(ctx, st, maildir.Inbox, func(_ *mailbox.Mailbox, v *mailbox.View) {
			list, err := v.POP3(ctx)
			s.ok(err)
			for _, e := range list {
				id := e.Key
				if id == "" {
					id = fmt.Sprintf("%08x%08x", e.UID, v.UIDValidity())
				}
				ids = append(ids, id)
			}
		})
	})
	return ids
}

// mstore runs our tool as root runs it.
func (s *swap) mstore(args ...string) string {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(tools.Dir(s.t), "mstore"), append(args, "--maildir", s.md())...)
	cmd.Env = append(os.Environ(), "HOME="+s.dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("mstore %q: %v\n%s%s", args, err, out, &stderr)
	}
	return string(out)
}

// TestStoreSwap takes a Maildir from Dovecot to us and back. Nobody fetches a message again, no
// flag, keyword, UID or UIDL changes, and MODSEQ never goes back.
func TestStoreSwap(t *testing.T) {
	t.Parallel()
	s := newSwap(t)
	s.doveadm("", "mailbox", "create", "-s", "Sent", "Work/Größe", "Tom & Jerry")
	for i := range 6 {
		s.doveadm(fmt.Sprintf("Subject: %d\nMessage-ID: <%d@x>\n\nbody\n", i, i), "save", "-m", "INBOX")
	}
	s.doveadm("Subject: sent\n\nbody\n", "save", "-m", "Work/Größe")
	s.doveadm("", "flags", "add", `\Seen $Label1 Work`, "mailbox", "INBOX", "uid", "1:2")
	s.doveadm("", "flags", "add", `\Flagged \Answered later`, "mailbox", "INBOX", "uid", "4")
	s.doveadm("", "expunge", "mailbox", "INBOX", "uid", "3")
	s.doveadm("", "copy", "Sent", "mailbox", "INBOX", "uid", "2")
	before, ids, fetched := s.dovecotDump(), s.dovecotUIDL(), s.mbsync()
	if len(before) != 11 || ids != nil && len(ids) != 5 || fetched != nil && len(fetched) != 7 {
		t.Fatalf("Dovecot: %v %v %v", before, ids, fetched)
	}
	told, ok := lastNumber(s.doveadm("", "-f", "tab", "mailbox", "status", "highestmodseq", "INBOX"))
	if !ok || told == 0 {
		t.Fatal("Dovecot tells no MODSEQ")
	}

	plan := s.mstore("convert", "-n", "--doveadm", "")
	if !strings.Contains(plan, " dovecot 5 5 0 ") {
		t.Errorf("plan: %s", plan)
	}
	ask := filepath.Join(s.dir, "doveadm")
	s.ok(os.WriteFile(ask, fmt.Appendf(nil, "#!/bin/sh\nexec %s \"$@\"\n", strings.Join(s.conf, " ")), 0o755))
	if out := s.mstore("convert", "--doveadm", ask); strings.Contains(out, "note ") {
		t.Errorf("convert: %s", out)
	}
	s.nobodys()
	s.same("taken over", s.ourDump(), before)
	if ids != nil && !slices.Equal(s.ourUIDL(), ids) {
		t.Errorf("UIDLs: %v, were %v", s.ourUIDL(), ids)
	}
	if out := s.mstore("check", "--read"); out != "" {
		t.Errorf("check: %s", out)
	}

	// We serve it for a while.
	s.open(func(ctx context.Context, st *mailbox.Store) {
		s.view(ctx, st, maildir.Inbox, func(m *mailbox.Mailbox, v *mailbox.View) {
			_, err := v.Store(ctx, []uint32{5}, mailbox.FlagChange{Op: mailbox.Add, Flags: maildir.Seen, Keywords: []string{"ours"}})
			s.ok(err)
			_, err = m.Append(ctx, mailbox.Item{Message: strings.NewReader("Subject: new\r\n\r\nbody\r\n"), Flags: maildir.Flagged, Internal: time.Unix(1e9, 0)})
			s.ok(err)
			_, err = v.Expunge(ctx, []uint32{6})
			s.ok(err)
		})
	})
	want := s.ourDump()
	if want["INBOX/5"] != `\Seen ours` || want["INBOX/7"] != `\Flagged` || want["INBOX/6"] != "" {
		t.Errorf("ours: %v", want)
	}

	// Back to Dovecot, with what convert --back says.
	highest := uint64(0)
	for line := range strings.Lines(s.mstore("convert", "--back")) {
		f := strings.Fields(line)
		if f[0] != "doveadm" {
			continue
		}
		s.run("", "sh", "-c", strings.Join(append(slices.Clone(s.conf), f[1:]...), " "))
		if n, err := strconv.ParseUint(f[4], 10, 64); err == nil && f[5] == "INBOX" {
			highest = n
		}
	}
	s.same("given back", s.dovecotDump(), want)
	after := s.doveadm("", "-f", "tab", "mailbox", "status", "highestmodseq", "INBOX")
	if n, ok := lastNumber(after); !ok || n < highest || highest <= told {
		t.Errorf("HIGHESTMODSEQ: Dovecot %d, ours was %d, Dovecot's before %d", n, highest, told)
	}
	if ids != nil {
		want := append(slices.Clone(ids[:4]), fmt.Sprintf("%08x%s", 7, ids[0][8:]))
		if got := s.dovecotUIDL(); !slices.Equal(got, want) {
			t.Errorf("UIDLs: %v, want %v", got, want)
		}
	}
	if fetched != nil {
		again := s.mbsync()
		old := slices.DeleteFunc(slices.Clone(again), func(n string) bool { return !slices.Contains(fetched, n) })
		if len(again) != 7 || len(old) != 6 {
			t.Errorf("mbsync has fetched again: %v, before %v", again, fetched)
		}
	}
	if out := s.mstore("check", "--read"); out != "" {
		t.Errorf("check: %s", out)
	}
}

// lastNumber is the number at the end of a table.
func lastNumber(table string) (uint64, bool) {
	f := strings.Fields(table)
	if len(f) == 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(f[len(f)-1], 10, 64)
	return n, err == nil
}

// courier runs Courier's imapd or courierpop3d on the Maildir. COURIER_ROOT names a directory in
// which its packages were unpacked, where they cannot be installed.
func (s *swap) courier(program, input string) string {
	s.t.Helper()
	root := os.Getenv("COURIER_ROOT")
	path := filepath.Join("/", root, program)
	if _, err := os.Stat(path); err != nil {
		s.t.Skip("Courier is not installed, nor unpacked in the directory that COURIER_ROOT names")
	}
	s.nobodys()
	lib := filepath.Join("/", root, "usr/lib")
	return s.run(input, "env", "LD_LIBRARY_PATH="+lib+":"+lib+"/x86_64-linux-gnu:"+lib+"/courier-authlib", "AUTHENTICATED=u", "MAILDIR="+s.md(), "IMAP_KEYWORDS=1",
		"IMAP_CAPABILITY=IMAP4rev1 UIDPLUS", "IMAP_USELOCKS=1", "TCPREMOTEIP=127.0.0.1",
		path, s.md())
}

// TestStoreFromCourier takes a Maildir over that Courier has served.
func TestStoreFromCourier(t *testing.T) {
	t.Parallel()
	s := newSwap(t)
	s.ok(os.Mkdir(s.md(), 0o700))
	for _, sub := range []string{"tmp", "cur", "new"} {
		s.ok(os.Mkdir(filepath.Join(s.md(), sub), 0o700))
	}
	for i := range 4 {
		s.ok(os.WriteFile(filepath.Join(s.md(), "new", fmt.Sprintf("100000000%d.M1P1.host", i)), fmt.Appendf(nil, "Subject: %d\n\nbody\n", i), 0o600))
	}
	s.courier("usr/bin/imapd", "1 CREATE INBOX.Sent\n2 CREATE INBOX.Gr&APYA3w-e\n3 SUBSCRIBE INBOX.Gr&APYA3w-e\n4 SELECT INBOX\n"+
		"5 STORE 2 +FLAGS (\\Deleted)\n6 EXPUNGE\n7 STORE 1 +FLAGS (\\Seen $Label1 foo)\n8 STORE 2 +FLAGS (Bar foo)\n9 COPY 1 INBOX.Gr&APYA3w-e\n10 LOGOUT\n")
	imap := s.courier("usr/bin/imapd", "1 EXAMINE INBOX\n2 FETCH 1:* (UID FLAGS)\n3 EXAMINE INBOX.Gr&APYA3w-e\n4 FETCH 1:* (UID FLAGS)\n5 LOGOUT\n")
	pop := s.courier("usr/lib/courier/courier/courierpop3d", "UIDL\r\nQUIT\r\n")
	want := dump{}
	box := "INBOX"
	for line := range strings.Lines(imap) {
		if strings.HasPrefix(line, "2 OK") {
			box = "Größe"
		}
		if m := regexp.MustCompile(`UIDVALIDITY (\d+)`).FindStringSubmatch(line); m != nil {
			want[box] = "V" + m[1]
		}
		if m := regexp.MustCompile(`FETCH \(UID (\d+) FLAGS \((.*?)\)`).FindStringSubmatch(line); m != nil {
			want[box+"/"+m[1]] = flagsOf(m[2])
		}
	}
	var ids []string
	for _, m := range uidlLine.FindAllStringSubmatch(pop, -1) {
		ids = append(ids, m[2])
	}
	if len(want) != 6 || len(ids) != 3 {
		t.Fatalf("Courier: %v %v\n%s%s", want, ids, imap, pop)
	}
	s.mstore("convert")
	s.nobodys()
	got := s.ourDump()
	delete(got, "Sent") // Courier was not asked about it
	s.same("taken over", got, want)
	if !slices.Equal(s.ourUIDL(), ids) {
		t.Errorf("UIDLs: %v, were %v", s.ourUIDL(), ids)
	}
	if out := s.mstore("check", "--read"); out != "" {
		t.Errorf("check: %s", out)
	}
	var subscribed struct{ Subscribed bool }
	for line := range strings.Lines(s.mstore("list", "--json")) {
		if strings.Contains(line, "Größe") {
			s.ok(json.Unmarshal([]byte(line), &subscribed))
		}
	}
	if !subscribed.Subscribed {
		t.Error("the subscription is lost")
	}
}
