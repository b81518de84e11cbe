package deliver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/durable"
	"pennypost/internal/envelope"
	"pennypost/internal/maildir"
	"pennypost/internal/worker"
)

// world is a small host: users, aliases, system users with homes, one message.
type world struct {
	t    *testing.T
	dir  string
	o    Options
	acc  accounts.Options
	body string
}

const aliasFile = `
info: ann
staff: ann, bob, far@far.test
both: ann, bob
ann2: ann3
ann3: ann4
ann4: ann
loop1: loop2
loop2: loop1
self: self
carl: carl, Carl@a.test, carl@far.test
list: ann, bob
owner-list: boss@far.test
nested: both, staff, ann
inc: :include:DIR/members
incprog: :include:DIR/evil
incgone: :include:DIR/gone
broken: ann, not an address
gone: \nobody
onward: @far.test
dead: nobody
far: x@far.test
prog: "|cat >DIR/out; echo $SENDER $RECIPIENT $EXTENSION $DOMAIN $USER >>DIR/out"
progs: "|exit 0", "|exit 67", x@far.test
busy: "|echo come back; exit 75"
file: DIR/mbox
fmd: DIR/box/
`

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), body: "Subject: x\n\nhello\n"}
	uid := os.Geteuid()
	w.put("members", "ann\nbob@a.test, far@far.test\n")
	w.put("evil", "ann\n|/bin/false\n")
	w.put("aliases", strings.ReplaceAll(aliasFile, "DIR", w.dir))
	w.put("users", "ann@a.test:\nbob@a.test:\ncarl@a.test:\nann@b.test:\n")
	w.put("passwd", fmt.Sprintf("sys:x:%d:%d::%s/home/sys:/bin/sh\nhomeless:x:%d:1::%s/home/none:/bin/sh\nother:x:%d:1::%s/home/sys:/bin/sh\n",
		uid, os.Getegid(), w.dir, uid, w.dir, uid+54321, w.dir))
	if err := os.MkdirAll(filepath.Join(w.dir, "home/sys"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.acc = accounts.Options{
		Domains: []string{"a.test", "b.test"}, Maildirs: w.dir + "/mail/%d/%u", Subaddress: "+",
		Users: w.dir + "/users", Aliases: []string{w.dir + "/aliases"}, System: true, Passwd: w.dir + "/passwd",
	}
	w.o = Options{
		Maildirs: maildir.NewSet(maildir.Options{Create: true, FS: noSync{}}), Forward: true, Create: true, UID: uid,
		PipeTimeout: 10 * time.Second, PipeUser: "sys", Now: func() time.Time { return time.Unix(1700000000, 0) },
	}
	return w
}

// noSync is the file system without its syncs: what is tested here does not rest on them, and
// a busy disk would take its time.
type noSync struct{ durable.OS }

type noSyncFile struct{ durable.File }

func (noSyncFile) Sync() error { return nil }

func (n noSync) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := n.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return noSyncFile{f}, nil
}

func (w *world) put(name, data string) string {
	w.t.Helper()
	p := filepath.Join(w.dir, name)
	if err := os.WriteFile(p, []byte(data), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// send delivers the message and returns the report's results.
func (w *world) send(eol string, to ...envelope.Recipient) []worker.Result {
	w.t.Helper()
	acc, err := accounts.Open(w.acc)
	if err != nil {
		w.t.Fatal(err)
	}
	o := w.o
	o.Accounts = acc
	// The message stands in the middle of the file, as in a spool file.
	f, err := os.Open(w.put("spooled", "line 1\n{}\n"+w.body+"behind it"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	req := &worker.Request{Seq: 7, ID: "q", Attempt: 1, From: "s@s.test", To: to, Offset: 10, Size: int64(len(w.body)), EOL: eol}
	rep := New(o).Handle(context.Background(), req, f)
	if rep.Seq != 7 || rep.ID != "q" || len(rep.Results) != len(to) {
		w.t.Fatalf("report %+v", rep)
	}
	return rep.Results
}

// to is send for one address, its result in one line.
func (w *world) to(addr string) string {
	w.t.Helper()
	r := w.send(envelope.EOLLF, envelope.Recipient{Addr: addr})[0]
	s := string(r.Verdict) + " " + r.Code
	if r.Expand != nil {
		s += " <" + r.Expand.From + ">"
		for _, x := range r.Expand.To {
			s += " " + x.Addr
		}
	}
	return s
}

// mail returns the messages in the Maildir of local@domain.
func (w *world) mail(path string) []string {
	w.t.Helper()
	names, err := filepath.Glob(filepath.Join(w.dir, path, "new", "*"))
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, string(b))
	}
	return all
}

func TestPlans(t *testing.T) {
	for _, c := range []struct{ addr, want, boxes string }{
		{"ann@a.test", "delivered 2.0.0", "a.test/ann"},
		{"ANN+Tag@A.TEST", "delivered 2.0.0", "a.test/ann"},
		{"info@a.test", "delivered 2.0.0", "a.test/ann"},
		{"ann2@a.test", "delivered 2.0.0", "a.test/ann"},
		{"ann@b.test", "delivered 2.0.0", "b.test/ann"},
		{"nobody@a.test", "failed 5.1.1", ""},
		{"dead@a.test", "failed 5.1.1", ""},
		{"gone@a.test", "failed 5.1.1", ""},
		{"x@far.test", "deferred 4.3.5", ""},
		{"staff@a.test", "expanded 2.0.0 <s@s.test> ann@a.test bob@a.test far@far.test", ""},
		{"both@b.test", "expanded 2.0.0 <s@s.test> ann@a.test bob@a.test", ""},
		{"loop1@a.test", "failed 5.4.6", ""},
		{"self@a.test", "failed 5.4.6", ""},
		{"carl@a.test", "expanded 2.0.0 <s@s.test> carl@far.test", "a.test/carl"},
		{"list@a.test", "expanded 2.0.0 <owner-list@a.test> ann@a.test bob@a.test", ""},
		{"nested@a.test", "expanded 2.0.0 <s@s.test> ann@a.test bob@a.test far@far.test", ""},
		{"inc@a.test", "expanded 2.0.0 <s@s.test> ann@a.test bob@a.test far@far.test", ""},
		{"incprog@a.test", "deferred 4.3.5", ""},
		{"incgone@a.test", "deferred 4.3.5", ""},
		{"broken@a.test", "deferred 4.3.5", ""},
		{"onward+x@a.test", "expanded 2.0.0 <s@s.test> onward+x@far.test", ""},
		{"far@a.test", "expanded 2.0.0 <s@s.test> x@far.test", ""},
		{"sys@a.test", "delivered 2.0.0", ""},
		{"homeless@a.test", "deferred 4.2.1", ""},
		{"not an address", "failed 5.1.3", ""},
	} {
		w := newWorld(t)
		got := w.to(c.addr)
		if got != c.want {
			t.Errorf("%s: %s\n\twant %s", c.addr, got, c.want)
		}
		if c.boxes != "" && len(w.mail("mail/"+c.boxes)) != 1 {
			t.Errorf("%s: not in %s", c.addr, c.boxes)
		}
	}
}

func TestStoredForm(t *testing.T) {
	w := newWorld(t)
	w.send(envelope.EOLLF, envelope.Recipient{Addr: "Ann+Lists@A.test", Orig: "info@old.test"}, envelope.Recipient{Addr: "ann@b.test"})
	if m := w.mail("mail/a.test/ann"); len(m) != 1 || m[0] != "Return-Path: <s@s.test>\nDelivered-To: ann+lists@a.test\nX-Original-To: info@old.test\nSubject: x\n\nhello\n" {
		t.Errorf("%q", m)
	}
	if m := w.mail("mail/b.test/ann"); len(m) != 1 || m[0] != "Return-Path: <s@s.test>\nDelivered-To: ann@b.test\nSubject: x\n\nhello\n" {
		t.Errorf("%q", m)
	}
}

// An envelope cannot put lines into the header.
func TestInjection(t *testing.T) {
	w := newWorld(t)
	r := w.send(envelope.EOLLF, envelope.Recipient{Addr: "ann@a.test", Orig: "x@y\nBcc: z"}, envelope.Recipient{Addr: "ann@a.test\nX: y"})
	if r[0].Code != "5.1.7" || r[1].Code != "5.1.3" || len(w.mail("mail/a.test/ann")) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestWire(t *testing.T) {
	big := strings.Repeat("line of text\r\n", 10000)
	for body, want := range map[string]string{
		"A: b\r\n\r\nx\r\n":         "A: b\n\nx\n",
		"A: b\r\n\r\n" + big:        "A: b\n\n" + strings.ReplaceAll(big, "\r", ""),
		"A: b\r\n\r\nbin\x00\r\n":   "",
		"A: b\r\n\r\nbare\nlf\r\n":  "",
		"A: b\r\n\r\nbare\rcr\r\n":  "",
		"A: b\r\n\r\nno end":        "",
		"A: b\r\n\r\n" + big + "\r": "",
	} {
		w := newWorld(t)
		w.body = body
		w.send(envelope.EOLWire, envelope.Recipient{Addr: "ann@a.test"})
		if want == "" {
			want = body
		}
		if m := w.mail("mail/a.test/ann"); len(m) != 1 || !strings.HasSuffix(m[0], "Delivered-To: ann@a.test\n"+want) {
			t.Errorf("%.40q (%d octets) not stored as wanted", body, len(body))
		}
	}
}

func TestLoopCheck(t *testing.T) {
	for header, want := range map[string]string{
		"Delivered-To: ANN@a.test\n":                                      "failed 5.4.6",
		"Delivered-To: bob@a.test\ndelivered-to:ann@a.test\r\nTo: x\n":    "failed 5.4.6",
		"Delivered-To: ann+x@a.test\n":                                    "delivered 2.0.0",
		"X: y\n\nDelivered-To: ann@a.test\n":                              "delivered 2.0.0",
		strings.Repeat("X: y\n", 20000) + "Delivered-To: ann@a.test\n":    "failed 5.4.6",
		"X-Delivered-To: ann@a.test\nSubject: Delivered-To: ann@a.test\n": "delivered 2.0.0",
	} {
		w := newWorld(t)
		w.body = header + w.body
		if got := w.to("ann@a.test"); got != want {
			t.Errorf("%.60q: %s, want %s", header, got, want)
		}
	}
	// An alias in a circle over two hosts: the child carries what was passed.
	w := newWorld(t)
	r := w.send(envelope.EOLLF, envelope.Recipient{Addr: "far@a.test"})[0]
	w.body = r.Expand.Prepend + w.body
	if got := w.to("far@a.test"); got != "failed 5.4.6" {
		t.Errorf("the circle goes on: %s (prepend %q)", got, r.Expand.Prepend)
	}
}

func TestDSNParameters(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		addr   string
		notify []string
		want   string
	}{
		{"far@a.test", []string{"SUCCESS", "FAILURE"}, "[SUCCESS FAILURE] rfc822;o@o"},
		{"onward@a.test", nil, "[] rfc822;o@o"},
		{"staff@a.test", []string{"SUCCESS", "FAILURE"}, "[FAILURE] rfc822;o@o"},
		{"staff@a.test", []string{"SUCCESS"}, "[NEVER] rfc822;o@o"},
		{"list@a.test", []string{"SUCCESS"}, "[] "},
	} {
		r := w.send(envelope.EOLLF, envelope.Recipient{Addr: c.addr, Notify: c.notify, ORcpt: "rfc822;o@o"})[0]
		x := r.Expand.To[0]
		if one := strings.Contains(c.want, "SUCCESS") || c.notify == nil; r.DSN != one {
			t.Errorf("%s: NOTIFY taken over: %v, want %v", c.addr, r.DSN, one)
		}
		if got := fmt.Sprintf("%v %s", x.Notify, x.ORcpt); got != c.want || x.Orig != c.addr {
			t.Errorf("%s %v: %s orig %s, want %s", c.addr, c.notify, got, x.Orig, c.want)
		}
	}
}

func TestForwardFile(t *testing.T) {
	for _, c := range []struct{ forward, want, boxes string }{
		{"far@far.test\n", "expanded 2.0.0 <s@s.test> far@far.test", ""},
		{"# nothing\n", "delivered 2.0.0", "home/sys/Maildir"},
		{"\\sys, far@far.test\n", "expanded 2.0.0 <s@s.test> far@far.test", "home/sys/Maildir"},
		{"sys\nfar@far.test\n", "expanded 2.0.0 <s@s.test> far@far.test", "home/sys/Maildir"},
		{"sys+mine@a.test", "delivered 2.0.0", "home/sys/Maildir"},
		{"ann", "delivered 2.0.0", "mail/a.test/ann"},
		{"not an address", "deferred 4.3.5", ""},
		{":include:/etc/passwd", "deferred 4.3.5", ""},
	} {
		w := newWorld(t)
		w.put("home/sys/.forward", c.forward)
		if got := w.to("sys@a.test"); got != c.want {
			t.Errorf("%q: %s, want %s", c.forward, got, c.want)
		}
		if c.boxes != "" && len(w.mail(c.boxes)) != 1 {
			t.Errorf("%q: not in %s", c.forward, c.boxes)
		}
	}
	for name, spoil := range map[string]func(w *world, p string){
		"writable by others":        func(_ *world, p string) { os.Chmod(p, 0o666) },
		"in an open directory":      func(w *world, _ string) { os.Chmod(w.dir+"/home/sys", 0o777) },
		"a link":                    func(_ *world, p string) { os.Rename(p, p+"2"); os.Symlink(p+"2", p) },
		"a fifo":                    func(_ *world, p string) { os.Remove(p); syscall.Mkfifo(p, 0o600) },
		"too large":                 func(w *world, _ string) { w.put("home/sys/.forward", strings.Repeat("#\n", maxForward)) },
		"of another user's account": func(w *world, _ string) { w.o.UID = 0; w.acc.Aliases = nil },
	} {
		w := newWorld(t)
		p := w.put("home/sys/.forward", "far@far.test\n")
		addr := "sys@a.test"
		spoil(w, p)
		if name == "of another user's account" {
			addr = "other@a.test" // whose home this is, but not whose file
			if os.Geteuid() == 0 {
				os.Chown(p, 12345, -1)
			}
		}
		if got := w.to(addr); !strings.HasPrefix(got, "deferred 4.3.") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// asSelf makes programs of aliases run as the user who runs the test, which is not possible
// when that is root: then they need another user.
func asSelf(t *testing.T, w *world) {
	t.Helper()
	if os.Geteuid() == 0 {
		t.Skip("programs never run as root; TestProgramAsUser covers root")
	}
}

func TestProgram(t *testing.T) {
	w := newWorld(t)
	asSelf(t, w)
	if got := w.to("prog+ext@a.test"); got != "delivered 2.0.0" {
		t.Fatal(got)
	}
	b, err := os.ReadFile(w.dir + "/out")
	want := "Return-Path: <s@s.test>\nDelivered-To: prog+ext@a.test\n" + w.body + "s@s.test prog+ext@a.test ext a.test sys\n"
	if err != nil || string(b) != want {
		t.Errorf("%q %v", b, err)
	}
	r := w.send(envelope.EOLLF, envelope.Recipient{Addr: "busy@a.test"})[0]
	if r.Verdict != envelope.Deferred || !strings.HasSuffix(r.Reply, "come back") {
		t.Errorf("%+v", r)
	}
	// One of several targets fails for good: the others are served all the same.
	r = w.send(envelope.EOLLF, envelope.Recipient{Addr: "progs@a.test"})[0]
	if r.Verdict != envelope.Failed || r.Code != "5.1.1" || r.Expand == nil || r.Expand.To[0].Addr != "x@far.test" {
		t.Errorf("%+v", r)
	}
	if got := w.to("file@a.test"); got != "delivered 2.0.0" {
		t.Error(got)
	}
	if got := w.to("fmd@a.test"); got != "delivered 2.0.0" || len(w.mail("box")) != 1 {
		t.Error(got, w.mail("box"))
	}
}

func TestRights(t *testing.T) {
	w := newWorld(t)
	w.o.UID = os.Geteuid() + 1 // somebody else, and not root
	for _, a := range []string{"prog@a.test", "file@a.test", "sys@a.test"} {
		if got := w.to(a); got != "deferred 4.3.5" {
			t.Errorf("%s without the right: %s", a, got)
		}
	}
	d := New(Options{UID: 0, PipeUser: "pp-pipe"})
	for name, ok := range map[string]bool{"pp-pipe": true, "pp-queue": false, "vmail": false, "ann": true} {
		if err := d.mayBecome(&identity{name: name, uid: 1000}); (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if d.mayBecome(&identity{name: "toor", uid: 0}) == nil {
		t.Error("a program may run as root")
	}
}

func TestStatusOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{syscall.ENOSPC, "4.3.1"}, {syscall.EDQUOT, "4.2.2"}, {syscall.EACCES, "4.2.0"}, {syscall.EPERM, "4.2.0"},
		{syscall.EROFS, "4.2.0"}, {syscall.EIO, "4.3.0"}, {errors.New("?"), "4.3.0"}, {maildir.ErrNotMaildir, "4.2.1"},
		{context.Canceled, "4.3.0"}, {errShort, "4.3.0"}, {syscall.EMFILE, "4.3.0"}, {syscall.EFBIG, "4.3.1"},
	} {
		st := statusOf(fmt.Errorf("deep: %w", &os.PathError{Op: "x", Path: "/secret/path", Err: c.err}))
		if st.Verdict != envelope.Deferred || st.Code != c.want || strings.Contains(st.Reply, "secret") {
			t.Errorf("%v: %+v, want %s", c.err, st, c.want)
		}
	}
}

func TestShortFileIsNoShortMessage(t *testing.T) {
	for _, size := range []int64{100, inMemory + 100} {
		w := newWorld(t)
		acc, err := accounts.Open(w.acc)
		if err != nil {
			t.Fatal(err)
		}
		w.o.Accounts = acc
		f, err := os.Open(w.put("short", strings.Repeat("x\n", 20)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		rep := New(w.o).Handle(context.Background(), &worker.Request{To: []envelope.Recipient{{Addr: "ann@a.test"}}, Size: size}, f)
		if r := rep.Results[0]; r.Verdict != envelope.Deferred || len(w.mail("mail/a.test/ann")) != 0 {
			t.Errorf("size %d: %+v", size, r)
		}
	}
}

func TestManyRecipients(t *testing.T) {
	w := newWorld(t)
	var users strings.Builder
	var to []envelope.Recipient
	for i := range 50 {
		fmt.Fprintf(&users, "u%d@a.test:\n", i)
		to = append(to, envelope.Recipient{Addr: fmt.Sprintf("u%d@a.test", i)})
	}
	w.put("users", users.String())
	for i, r := range w.send(envelope.EOLLF, to...) {
		if r.Verdict != envelope.Delivered || r.To != to[i].Addr || len(w.mail(fmt.Sprintf("mail/a.test/u%d", i))) != 1 {
			t.Errorf("%+v", r)
		}
	}
}

func TestDryRun(t *testing.T) {
	w := newWorld(t)
	w.o.Plan = true
	r := w.send(envelope.EOLLF, envelope.Recipient{Addr: "staff@a.test"}, envelope.Recipient{Addr: "ann@a.test"})
	if !strings.Contains(r[0].Reply, "would go to") || !strings.Contains(r[0].Reply, "far@far.test") || r[1].Mailbox != w.dir+"/mail/a.test/ann" {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(w.dir + "/mail"); err == nil {
		t.Error("a dry run delivered")
	}
}

func TestMbox(t *testing.T) {
	w := newWorld(t)
	p := filepath.Join(w.dir, "box")
	add := func(from, body string) error {
		return appendMbox(context.Background(), p, from, time.Unix(0, 0), []byte("H: x\n"), strings.NewReader(body))
	}
	long := strings.Repeat("y", 70000)
	for _, err := range []error{add("a@b", "\nFrom here\n>From there\nnot From\n"), add("", long+"From \nFrom x"), add(`"a b"@c`, "")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := "From a@b Thu Jan  1 00:00:00 1970\nH: x\n\n>From here\n>>From there\nnot From\n\n" +
		"From MAILER-DAEMON Thu Jan  1 00:00:00 1970\nH: x\n" + long + "From \n>From x\n\n" +
		"From MAILER-DAEMON Thu Jan  1 00:00:00 1970\nH: x\n\n"
	if b, _ := os.ReadFile(p); string(b) != want {
		t.Errorf("%.300q", b)
	}
	// A message that cannot be read to its end leaves the file as it was.
	err := appendMbox(context.Background(), p, "a@b", time.Unix(0, 0), nil, &exact{r: strings.NewReader("half"), left: 10})
	if b, _ := os.ReadFile(p); !errors.Is(err, errShort) || string(b) != want {
		t.Errorf("%v", err)
	}
	if l, _ := filepath.Glob(w.dir + "/*.lock"); len(l) != 0 {
		t.Errorf("left %v", l)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	w.put("box.lock", "")
	if err := appendMbox(ctx, p, "a@b", time.Unix(0, 0), nil, strings.NewReader("x")); statusOf(err).Code != "4.2.0" {
		t.Errorf("locked: %v", err)
	}
}

func TestPipeTimeout(t *testing.T) {
	w := newWorld(t)
	w.o.PipeTimeout = 50 * time.Millisecond
	d := New(w.o)
	start := time.Now()
	j := &job{req: &worker.Request{}, msg: &message{src: strings.NewReader(""), size: 0}}
	as := &identity{name: "x", uid: w.o.UID, home: "/"}
	_, err := d.toProgram(context.Background(), j, &plan{}, leaf{text: "sleep 60 & sleep 60", as: as}, nil)
	if statusOf(err).Code != "4.3.0" || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	for text, want := range map[string]string{
		"exit 64": "4.3.5", "exit 65": "5.6.0", "exit 69": "5.3.0", "exit 77": "5.7.1", "exit 99": "4.3.0", "kill -9 $$": "4.3.0", "/no/such": "4.3.0", "": "",
	} {
		w.o.PipeTimeout = time.Minute
		_, err := New(w.o).toProgram(context.Background(), j, &plan{}, leaf{text: text, as: as}, nil)
		if code := ""; err != nil {
			code = statusOf(err).Code
			if code != want {
				t.Errorf("%s: %v", text, err)
			}
		} else if want != "" {
			t.Errorf("%s: no error", text)
		}
	}
	// A program that does not read its input has decided without it.
	j.msg = &message{src: strings.NewReader(strings.Repeat("x", 1<<20)), size: 1 << 20}
	if _, err := New(w.o).toProgram(context.Background(), j, &plan{}, leaf{text: "exit 0", as: as}, nil); err != nil {
		t.Error(err)
	}
}

// Property: the scan for Delivered-To never reads beyond the header, and finds what a slow
// model finds.
func FuzzHeader(f *testing.F) {
	for _, s := range []string{"Delivered-To: a@b\n\nDelivered-To: c@d\n", "delivered-to:x\r\n\r\n", "\n", "Delivered-To:", "x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var want []string
		for _, l := range strings.Split(string(b), "\n") {
			l = strings.TrimSuffix(l, "\r")
			if l == "" {
				break
			}
			if len(l) > 13 && strings.EqualFold(l[:13], "Delivered-To:") {
				want = append(want, strings.TrimSpace(l[13:]))
			}
		}
		if got := deliveredTo(b); !slices.Equal(got, want) {
			t.Fatalf("%q: %q, want %q", b, got, want)
		}
	})
}
