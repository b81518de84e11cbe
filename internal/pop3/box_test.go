package pop3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/mailbox"
	"pennypost/internal/mailtest"
)

// account is a Maildir with its store.
type account struct {
	dir   string
	store *mailbox.Store
	o     BoxOptions
}

// newAccount makes one below dir on fsys, with three messages in new/.
func newAccount(t testing.TB, dir string, fsys durable.FS) *account {
	t.Helper()
	for _, d := range []string{"", "new", "cur", "tmp"} {
		if err := fsys.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		put(t, fsys, filepath.Join(dir, "new"), i+1)
	}
	for _, d := range []string{filepath.Join(dir, "new"), dir, filepath.Dir(dir), "/"} {
		if err := durable.SyncDirOn(fsys, d); err != nil {
			t.Fatal(err)
		}
	}
	return openAccount(t, dir, fsys, 1)
}

// openAccount opens it in one of the lives of the machine.
func openAccount(t testing.TB, dir string, fsys durable.FS, boot uint64) *account {
	t.Helper()
	s, err := mailbox.Open(dir, mailbox.Options{FS: fsys, Host: "h", Boot: boot})
	if err != nil {
		t.Fatal(err)
	}
	return &account{dir: dir, store: s, o: BoxOptions{Dir: dir}}
}

func text(n int) string { return fmt.Sprintf("Subject: %d\n\nbody\n", n) }

// put delivers message n, with its sizes in the name.
func put(t testing.TB, fsys durable.FS, dir string, n int) {
	t.Helper()
	m := text(n)
	name := fmt.Sprintf("%d.M%dP1.host,S=%d,W=%d", 1_700_000_000+n, n, len(m), len(m)+3)
	f, err := fsys.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err == nil {
		_, err = f.Write([]byte(m))
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (a *account) open(ctx context.Context, _ string) (Maildrop, error) {
	m, err := a.store.Mailbox(ctx, "INBOX")
	if err != nil {
		return nil, err
	}
	return OpenBox(ctx, m, a.o)
}

// server serves a.
func (a *account) server(t testing.TB) *Server {
	s, _ := testServer(t, newDrop(t))
	s.Open = a.open
	return s
}

// session runs a whole session and returns what the client heard.
func (a *account) session(t testing.TB, text string) string {
	t.Helper()
	c, _ := connect(t, t.Context(), a.server(t), stdio)
	return converse(t, c, tokenLogin+text)
}

// TestMaildir is a session over a real Maildir: nothing new is seen in it, what others remove is
// gone, what was fetched is marked, what was marked with DELE is removed, and the ids stay.
func TestMaildir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "md")
	a := newAccount(t, dir, durable.OS{})
	c, _ := connect(t, t.Context(), a.server(t), stdio)
	script := `
C: AUTH XOAUTH2 dXNlcj1hbGljZUBleGFtcGxlLnRlc3QBYXV0aD1CZWFyZXIgdDBrZW4BAQ==
S* +OK welcome, 3 messages (60 octets)
C: RETR 1
S: +OK 20 octets
S: Subject: 1
S: 
S: body
S: .
`
	mailtest.Dialogue(t, "first", []byte(script), func() net.Conn { return keepOpen{c} })
	put(t, durable.OS{}, filepath.Join(dir, "new"), 4)
	gone, err := filepath.Glob(filepath.Join(dir, "cur", "1700000002.*"))
	if err != nil || len(gone) != 1 {
		t.Fatalf("message 2 is not in cur: %v %v", gone, err)
	}
	if err := os.Remove(gone[0]); err != nil {
		t.Fatal(err)
	}
	rest := converse(t, c, "STAT\r\nUIDL\r\nRETR 2\r\nDELE 2\r\nDELE 3\r\nQUIT\r\n")
	if !strings.HasPrefix(rest, "+OK 3 60\r\n+OK 3 messages\r\n1 00000001") || !strings.Contains(rest, "-ERR message is gone") || !strings.HasSuffix(rest, "+OK bye, 1 messages left\r\n") {
		t.Errorf("%q", rest)
	}
	again := a.session(t, "STAT\r\nUIDL\r\nQUIT\r\n")
	if !strings.Contains(again, "+OK 2 40\r\n") || !strings.Contains(again, "\r\n1 00000001") || !strings.Contains(again, "\r\n2 00000004") {
		t.Errorf("%q", again)
	}
	if seen, err := filepath.Glob(filepath.Join(dir, "cur", "*:2,S")); err != nil || len(seen) != 1 || !strings.Contains(seen[0], "1700000001.") {
		t.Errorf("read: %v %v", seen, err)
	}
}

// keepOpen outlives a script.
type keepOpen struct{ net.Conn }

func (keepOpen) Close() error { return nil }

// TestForeignIDs: ids and their order are those that another server has left.
func TestForeignIDs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "md")
	a := newAccount(t, dir, durable.OS{})
	list := "3 V1500000000 N20 G0123456789abcdef0123456789abcdef\n" +
		"7 O3 PUID30-99 :1700000001.M1P1.host,S=17,W=20\n" +
		"9 O1 PUID10-99 W20 :1700000002.M2P1.host,S=17,W=20:2,\n" +
		"12 :1700000003.M3P1.host,S=17,W=20\n"
	if err := os.WriteFile(filepath.Join(dir, "dovecot-uidlist"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	put(t, durable.OS{}, filepath.Join(dir, "new"), 4)
	got := a.session(t, "UIDL\r\nTOP 1 0\r\nQUIT\r\n")
	want := "+OK 4 messages\r\n1 UID10-99\r\n2 UID30-99\r\n3 0000000c59682f00\r\n4 0000001459682f00\r\n.\r\n+OK top of message\r\nSubject: 2\r\n"
	if !strings.Contains(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestWrongSize: a size in a name that is wrong is told once, and never after the message was read.
func TestWrongSize(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "md")
	a := newAccount(t, dir, durable.OS{})
	lie := filepath.Join(dir, "cur", "1600000000.M1P1.host,S=5,W=7:2,")
	if err := os.WriteFile(lie, []byte(text(9)), 0o600); err != nil {
		t.Fatal(err)
	}
	got := a.session(t, "LIST 1\r\nRETR 1\r\nLIST 1\r\nSTAT\r\nQUIT\r\n")
	if !strings.Contains(got, "+OK 1 7\r\n") || !strings.Contains(got, ".\r\n+OK 1 20\r\n+OK 4 80\r\n") {
		t.Errorf("%q", got)
	}
	if got := a.session(t, "LIST 1\r\nSTAT\r\nQUIT\r\n"); !strings.Contains(got, "+OK 1 20\r\n+OK 4 80\r\n") {
		t.Errorf("later: %q", got)
	}
}

// TestLoginDelay: a user who comes back too early is told, and gets in later.
func TestLoginDelay(t *testing.T) {
	a := newAccount(t, filepath.Join(t.TempDir(), "md"), durable.OS{})
	a.o.Delay = time.Hour
	if got := a.session(t, "QUIT\r\n"); !strings.Contains(got, "+OK welcome") {
		t.Fatalf("%q", got)
	}
	if got := a.session(t, "QUIT\r\n"); !strings.Contains(got, "-ERR [LOGIN-DELAY] ") {
		t.Errorf("%q", got)
	}
	for _, at := range []time.Duration{-time.Hour - time.Second, 10 * time.Hour} { // long ago, and by a clock set wrong
		when := time.Now().Add(at)
		if err := os.Chtimes(filepath.Join(a.dir, loginFile), when, when); err != nil {
			t.Fatal(err)
		}
		if got := a.session(t, "QUIT\r\n"); !strings.Contains(got, "+OK welcome") {
			t.Errorf("last login %v ago: %q", -at, got)
		}
	}
}

// TestLock: the lock holds between processes, as two stores of one process stand for, for as long
// as the session, and a login waits a moment for the one before it.
func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "md")
	a := newAccount(t, dir, durable.OS{})
	b := openAccount(t, dir, durable.OS{}, 1)
	first, err := a.open(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if _, err := b.open(t.Context(), ""); !errors.Is(err, mailbox.ErrInUse) || time.Since(begin) < lockWait {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
	end := time.AfterFunc(100*time.Millisecond, func() { _ = first.Close() })
	defer end.Stop()
	second, err := b.open(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

// TestCrash: the machine stops after each operation of a session that removes a message, and what
// was not synced is lost in many ways. If QUIT was answered the message is gone; the others are
// there once and whole, whatever happened.
func TestCrash(t *testing.T) {
	for stop := 0; ; stop++ {
		fsys := mailtest.NewCrashFS()
		if err := fsys.Mkdir("/mail", 0o700); err != nil {
			t.Fatal(err)
		}
		a := newAccount(t, "/mail/md", fsys)
		before := fsys.Ops()
		fsys.StopAfter(stop)
		got := a.session(t, "RETR 1\r\nDELE 2\r\nQUIT\r\n")
		answered := strings.HasSuffix(got, "+OK bye, 2 messages left\r\n")
		for seed := range uint64(4) {
			left := survivors(t, fsys.Reboot(rand.New(rand.NewPCG(seed, uint64(stop)))))
			if !slices.Equal(left, []string{text(1), text(3)}) && (answered || !slices.Equal(left, []string{text(1), text(2), text(3)})) {
				t.Fatalf("stopped after operation %d, cut %d: heard %q, left %q", stop, seed, got, left)
			}
		}
		if answered && fsys.Ops()-before < stop {
			if stop < 10 {
				t.Fatalf("only %d operations: the file system is not used", stop)
			}
			return
		}
	}
}

// survivors are the messages that a later session finds, in their order.
func survivors(t *testing.T, fsys durable.FS) (left []string) {
	t.Helper()
	// Its holder is dead, as a test that goes on cannot show.
	if err := fsys.Remove("/mail/md/dovecot-uidlist.lock"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	a := openAccount(t, "/mail/md", fsys, 2)
	d, err := a.open(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		b, err := d.Open(t.Context(), m.UID)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(b)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, string(data))
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(left)
	return left
}
