package deliver

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/maildir"
)

// TestMain lets the test binary stand in for mdeliver when it is started as another user.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 || os.Args[1] != "--raw" {
		os.Exit(m.Run())
	}
	fs := flag.NewFlagSet("mdeliver", flag.ExitOnError)
	fs.Bool("raw", false, "")
	from, path, create := fs.String("f", "", ""), fs.String("maildir", "", ""), fs.Bool("create", false, "")
	if err := fs.Parse(os.Args[1:]); err != nil {
		os.Exit(envelope.ExUsage)
	}
	set := maildir.NewSet(maildir.Options{Create: *create})
	if _, err := Direct(context.Background(), set, *path, false, nil, *from, time.Now(), os.Stdin); err != nil {
		os.Exit(StatusOf(err).ToExit())
	}
	os.Exit(0)
}

// nobody is a uid without rights; it needs no entry anywhere.
const nobody = 65534

// As root, programs and files of root's aliases are used as pipe_user, those of a forward file
// as its user, and never as root.
func TestProgramAsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to switch users")
	}
	w := newWorld(t)
	open := filepath.Join(w.dir, "open")
	home := filepath.Join(w.dir, "home/joe")
	for _, d := range []string{open, home} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errorsOf(os.Chmod(open, 0o1777), os.Chown(home, nobody, nobody), os.Chmod(w.dir+"/home", 0o755), os.Chmod(w.dir, 0o755), os.Chmod(filepath.Dir(w.dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	w.put("passwd", "pp-pipe:x:65533:65533::/:/bin/sh\njoe:x:65534:65534::"+home+":/bin/sh\nroot:x:0:0::"+w.dir+"/home/sys:/bin/sh\n")
	w.put("aliases", `prog: "|(cat; id -u; id -G) >`+open+`/$USER"`+"\n")
	w.put("home/joe/.forward", `"|(cat; id -u; id -G) >`+open+`/$USER"`+"\n")
	w.put("home/sys/.forward", "|/bin/true\n")
	if err := os.Chown(w.dir+"/home/joe/.forward", nobody, nobody); err != nil {
		t.Fatal(err)
	}
	w.o.PipeUser = "pp-pipe"
	w.o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	for addr, want := range map[string]string{"prog@a.test": "65533\n65533\n", "joe@a.test": "65534\n65534\n"} {
		if r := w.send(envelope.EOLLF, envelope.Recipient{Addr: addr})[0]; r.Verdict != envelope.Delivered {
			t.Errorf("%s: %+v", addr, r)
			continue
		}
		name := map[string]string{"prog@a.test": "pp-pipe", "joe@a.test": "joe"}[addr]
		b, err := os.ReadFile(filepath.Join(open, name))
		if err != nil || !strings.HasSuffix(string(b), "hello\n"+want) {
			t.Errorf("%s: %q %v", addr, b, err)
		}
	}
	if got := w.to("root@a.test"); got != "deferred 4.3.5" {
		t.Errorf("a program ran as root: %s", got)
	}
	w.o.PipeUser = "no-such-user"
	if got := w.to("prog@a.test"); got != "deferred 4.3.5" {
		t.Errorf("without pipe_user: %s", got)
	}
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// As root, a system user's Maildir is written by a process of that user.
func TestMailboxOfUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to switch users")
	}
	w := newWorld(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	self := filepath.Join(w.dir, "mdeliver") // where that user may read it
	if err := os.WriteFile(self, b, 0o755); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(w.dir, "home/joe")
	if err := errorsOf(os.MkdirAll(home, 0o755), os.Chown(home, nobody, nobody), os.Chmod(w.dir+"/home", 0o755),
		os.Chmod(w.dir, 0o755), os.Chmod(filepath.Dir(w.dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	w.put("passwd", "joe:x:65534:65534::"+home+":/bin/sh\n")
	w.o.Self = self
	if got := w.to("joe@a.test"); got != "delivered 2.0.0" {
		t.Fatal(got)
	}
	m := w.mail("home/joe/Maildir")
	if len(m) != 1 || m[0] != "Return-Path: <s@s.test>\nDelivered-To: joe@a.test\n"+w.body {
		t.Errorf("%q", m)
	}
	names, _ := filepath.Glob(home + "/Maildir/new/*")
	for _, p := range append(names, home+"/Maildir", home+"/Maildir/cur") {
		fi, err := os.Stat(p)
		if err != nil || fi.Sys().(*syscall.Stat_t).Uid != nobody || fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v %v", p, fi, err)
		}
	}
	// What that user may not write is deferred, and not written by root instead.
	if err := os.Chown(home+"/Maildir/tmp", 0, 0); err != nil {
		t.Fatal(err)
	}
	if got := w.to("joe@a.test"); got != "deferred 4.3.0" || len(w.mail("home/joe/Maildir")) != 1 {
		t.Error(got)
	}
}

// As root, the mail of virtual users is written by the user of all of them.
func TestMailboxOfVirtualUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to switch users")
	}
	w := newWorld(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	self, boxes := filepath.Join(w.dir, "mdeliver"), filepath.Join(w.dir, "boxes")
	if err := errorsOf(os.WriteFile(self, b, 0o755), os.MkdirAll(boxes, 0o700), os.Chown(boxes, nobody, nobody),
		os.Chmod(w.dir, 0o755), os.Chmod(filepath.Dir(w.dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	w.put("passwd", "store:x:65534:65534::"+boxes+":/bin/sh\n")
	w.acc.Maildirs = boxes + "/%u"
	w.o.Self, w.o.User = self, "store"
	if got := w.to("ann@a.test"); got != "delivered 2.0.0" {
		t.Fatal(got)
	}
	names, _ := filepath.Glob(boxes + "/ann/new/*")
	if len(names) != 1 {
		t.Fatal(names)
	}
	for _, p := range append(names, boxes+"/ann", boxes+"/ann/cur") {
		fi, err := os.Stat(p)
		if err != nil || fi.Sys().(*syscall.Stat_t).Uid != nobody {
			t.Errorf("%s: %v %v", p, fi, err)
		}
	}
	w.o.User = "missing"
	if got := w.to("ann@a.test"); got != "deferred 4.3.5" {
		t.Errorf("without that user: %s", got)
	}
	// Without a name for that user root writes nothing where somebody else could have put a link:
	// what would be the owner's to do is done as the owner.
	w.o.User = ""
	secret := filepath.Join(w.dir, "root")
	if err := errorsOf(os.MkdirAll(secret+"/tmp", 0o700), os.Mkdir(secret+"/new", 0o700), os.Mkdir(secret+"/cur", 0o700),
		os.Symlink(secret, boxes+"/eve"), os.Lchown(boxes+"/eve", nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	w.put("users", "ann@a.test::::::\neve@a.test::::::\n")
	if got := w.to("eve@a.test"); !strings.HasPrefix(got, "deferred 4.") {
		t.Errorf("through a link: %s", got)
	}
	if names, _ := filepath.Glob(secret + "/new/*"); len(names) != 0 {
		t.Errorf("root has written %s", names)
	}
	if got := w.to("ann@a.test"); got != "delivered 2.0.0" {
		t.Errorf("as the owner: %s", got)
	}
	names, _ = filepath.Glob(boxes + "/ann/new/*")
	for _, p := range names {
		if fi, err := os.Stat(p); err != nil || fi.Sys().(*syscall.Stat_t).Uid != nobody {
			t.Errorf("%s: %v %v", p, fi, err)
		}
	}
	if len(names) != 2 {
		t.Error(names)
	}
}

// A full file system, and one that is read-only, defer.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a tmpfs")
	}
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	w := newWorld(t)
	w.acc.Maildirs = dir + "/%u"
	w.body = "Subject: x\n\n" + strings.Repeat("x\n", 50000)
	if got := w.to("ann@a.test"); got != "deferred 4.3.1" {
		t.Errorf("full: %s", got)
	}
	for _, sub := range []string{"tmp", "new"} {
		if l, _ := os.ReadDir(filepath.Join(dir, "ann", sub)); len(l) != 0 {
			t.Errorf("left in %s: %v", sub, l)
		}
	}
	w.body = "Subject: x\n\nsmall\n"
	if got := w.to("ann@a.test"); got != "delivered 2.0.0" {
		t.Errorf("room again: %s", got)
	}
	if err := syscall.Mount("none", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Skipf("cannot be made read-only: %v", err)
	}
	if got := w.to("ann@a.test"); got != "deferred 4.2.0" {
		t.Errorf("read-only: %s", got)
	}
	// An mbox that does not fit is cut back to what it was.
	if err := syscall.Mount("none", dir, "", syscall.MS_REMOUNT, "size=64k"); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(dir, "box")
	if err := os.WriteFile(p, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := appendMbox(t.Context(), p, "a@b", time.Unix(0, 0), nil, strings.NewReader(strings.Repeat("x\n", 50000)))
	if statusOf(err) != envelope.Defer("4.3.1", "no space left on the mail store") {
		t.Errorf("mbox: %v", err)
	}
	if b, _ := os.ReadFile(p); string(b) != "before\n" {
		t.Errorf("%.100q", b)
	}
}
