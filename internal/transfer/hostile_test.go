package transfer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pennypost/internal/durable"
	"pennypost/internal/imapclient"
	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
)

// A copy is not made in somebody's Maildir, and --prune takes nothing that no export has put
// there.
func TestPruneForeign(t *testing.T) {
	dir := t.TempDir()
	s := store(t, dir+"/md", nil)
	if err := Import(ctx, s, dir+"/memory", newFake(2), Options{}); err != nil {
		t.Fatal(err)
	}
	foreign := dir + "/bob/cur/1000000000.M1P1.bob:2,S"
	write(t, foreign, "Subject: bob's\n\n")
	to := maildir.Tree{Root: dir + "/bob"}
	if err := ToMaildir(ctx, s, to, Options{Prune: true}); !errors.Is(err, ErrOccupied) {
		t.Errorf("into somebody's Maildir: %v", err)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
	// Mail that came into the copy later has a line of nobody.
	to.Root = dir + "/copy"
	if err := ToMaildir(ctx, s, to, Options{}); err != nil {
		t.Fatal(err)
	}
	foreign = dir + "/copy/new/1000000000.M1P1.bob"
	write(t, foreign, "Subject: bob's\n\n")
	var results []Result
	if err := ToMaildir(ctx, s, to, Options{Prune: true, Report: inbox(&results)}); err != nil || results[0].Removed != 0 {
		t.Errorf("%+v %v", results, err)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// Two files that make one mailbox name are both read.
func TestMboxSameName(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/in/Sent", from+"Subject: a\n\n\n")
	write(t, dir+"/in/Sent.mbox", from+"Subject: b\n\n\n")
	write(t, dir+"/in/Sent.sbd/x", from+"Subject: c\n\n\n")
	src, err := OpenMbox(dir + "/in")
	if err != nil {
		t.Fatal(err)
	}
	s := store(t, dir+"/md", nil)
	if err := Import(ctx, s, dir+"/memory", src, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := subjects(t, s, "Sent"); len(got) != 2 {
		t.Errorf("%q", got)
	}
}

// An export that was killed leaves half a message, which the next run takes back.
func TestMboxTorn(t *testing.T) {
	dir := t.TempDir()
	s := store(t, dir+"/md", nil)
	big := strings.Repeat("0123456789abcde\n", 16<<10)
	src := &fake{boxes: map[string][]string{"INBOX": {"Subject: 0\n\n" + big, "Subject: 1\n\n" + big, "Subject: 2\n\n" + big}}}
	if err := Import(ctx, s, dir+"/memory", src, Options{}); err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{10, 300, 256<<10 + 100, 512<<10 + 500} {
		out := fmt.Sprintf("%s/%d/out", dir, cut)
		killed := &killFS{after: cut}
		if err := ToMbox(ctx, s, out, Options{FS: killed}); err == nil {
			t.Fatal("not killed")
		}
		for range 2 {
			if err := ToMbox(ctx, s, out, Options{}); err != nil {
				t.Fatal(err)
			}
		}
		in, err := OpenMbox(out)
		if err != nil {
			t.Fatal(err)
		}
		n := store(t, filepath.Dir(out)+"/md", nil)
		if err := Import(ctx, n, filepath.Dir(out)+"/memory", in, Options{}); err != nil {
			t.Fatal(err)
		}
		a, b := subjects(t, s, "INBOX"), subjects(t, n, "INBOX")
		if len(a) != len(b) {
			t.Errorf("cut at %d: %d messages, want %d", cut, len(b), len(a))
		}
		if boxes, err := in.Mailboxes(ctx); err != nil || !slices.Equal(boxes, []string{"INBOX"}) {
			t.Errorf("%q %v", boxes, err)
		}
	}
}

// Names of a server that become one name stay two mailboxes.
func TestIMAPNames(t *testing.T) {
	s := IMAP{}
	names := s.take([]imapclient.Mailbox{
		{Name: "a/b", Delimiter: '.'}, {Name: "a_b", Delimiter: '.'}, {Name: "a.b", Delimiter: '.'}, {Name: "a_b", Delimiter: '.'}, {Name: "x", Flags: []string{`\Noselect`}},
	})
	if !slices.Equal(names, []string{"a_b", "a_b_", "a/b"}) {
		t.Errorf("%q", names)
	}
	for name, want := range map[string]string{"a_b": "a/b", "a_b_": "a_b", "a/b": "a.b"} {
		if got := s.theirs(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// What is no keyword to IMAP does not get into a command.
func TestToIMAP(t *testing.T) {
	if got := toIMAP(maildir.Seen, []string{"$ok", "x)", "y{5+}", "ö"}); !slices.Equal(got, []string{`\Seen`, "$ok"}) {
		t.Errorf("%q", got)
	}
}

// A pipe or directory among messages is passed over.
func TestMaildirPipe(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/in/cur/1000000000.M1P1.h:2,S", "Subject: a\n\n")
	if err := syscall.Mkfifo(dir+"/in/cur/1000000001.M1P1.h:2,S", 0o600); err != nil {
		t.Skip(err)
	}
	if err := os.MkdirAll(dir+"/in/new/1000000002.M1P1.h", 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/in/dovecot-uidlist", "3 V7 N9\n")
	s := store(t, dir+"/md", nil)
	if err := Import(ctx, s, dir+"/memory", &Maildir{Tree: maildir.Tree{Root: dir + "/in"}}, Options{}); err != nil {
		t.Error(err)
	}
	n := store(t, dir+"/new", nil)
	if err := Restore(ctx, n, maildir.Tree{Root: dir + "/new"}, maildir.Tree{Root: dir + "/in"}, Options{}); err != nil {
		t.Error(err)
	}
	for _, a := range []*mailbox.Store{s, n} {
		if got := subjects(t, a, "INBOX"); len(got) != 1 {
			t.Errorf("%q", got)
		}
	}
}

// UIDs that were told since the copy was made are not used again.
func TestRestoreNext(t *testing.T) {
	dir := t.TempDir()
	s := store(t, dir+"/md", nil)
	if err := Import(ctx, s, dir+"/memory", newFake(3), Options{}); err != nil {
		t.Fatal(err)
	}
	to := maildir.Tree{Root: dir + "/copy"}
	if err := ToMaildir(ctx, s, to, Options{}); err != nil {
		t.Fatal(err)
	}
	change(t, s, func(v *mailbox.View) error {
		_, err := v.Mailbox().Append(ctx, mailbox.Item{Message: strings.NewReader("Subject: late\n\n")})
		if _, err2 := v.Sync(ctx); err2 != nil {
			return err2
		}
		_, err3 := v.Expunge(ctx, []uint32{1, 2, 3, 4})
		return errors.Join(err, err3)
	})
	if err := Restore(ctx, s, maildir.Tree{Root: dir + "/md"}, to, Options{}); err != nil {
		t.Fatal(err)
	}
	st, err := s.Status(ctx, "INBOX")
	if err != nil || st.Messages != 3 || st.UIDNext != 5 {
		t.Errorf("%+v %v", st, err)
	}
}

// A source whose names lead out of the tree is refused, and nothing is written there.
func TestNamesThatEscape(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"..", "../x", "a/../../x", "/etc/x", "a//b", "", "a/", "x\x00y"} {
		s := store(t, dir+"/in/md", nil)
		src := &fake{boxes: map[string][]string{name: {"Subject: x\n\n"}}}
		if err := Import(ctx, s, dir+"/memory", src, Options{}); err == nil {
			t.Errorf("%q was taken", name)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(dir + "/in"); err != nil || len(entries) != 1 {
		t.Errorf("%v %v", entries, err)
	}
}

// A header without end is no reason to stop: what is too much of it is body.
func TestMboxHugeHeader(t *testing.T) {
	huge := strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\n", 5000)
	list, _, err := texts(from + huge + "\nx\n\n" + from + "C: d\n\n")
	if err != nil || len(list) != 2 || list[0] != "|"+huge+"\nx\n" || list[1] != "|C: d\n\n" {
		t.Errorf("%d messages, %v", len(list), err)
	}
}

func TestMboxManyEmptyLines(t *testing.T) {
	gap := strings.Repeat("\n", 3000)
	list, _, err := texts(from + "Content-Length: 2\nA: b\n\nx\n" + gap + from + "C: d\n\n")
	if err != nil || len(list) != 2 {
		t.Errorf("%d messages, %v", len(list), err)
	}
	if list, _, err = texts(from + "Content-Length: 2\nA: b\n\nx\n" + gap); err != nil || len(list) != 1 {
		t.Errorf("%d messages, %v", len(list), err)
	}
}

// killFS does nothing any more once so many octets of an mbox have been written.
type killFS struct {
	durable.OS
	after int
}

var errKilled = errors.New("killed")

func (k *killFS) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	if k.after <= 0 {
		return nil, errKilled
	}
	f, err := k.OS.OpenFile(name, flag, perm)
	if err != nil || !strings.HasSuffix(name, ".mbox") {
		return f, err
	}
	return &killFile{f, k}, nil
}

func (k *killFS) Remove(name string) error {
	if k.after <= 0 {
		return errKilled
	}
	return k.OS.Remove(name)
}

type killFile struct {
	durable.File
	k *killFS
}

func (f *killFile) Write(p []byte) (int, error) {
	n := min(len(p), f.k.after)
	f.k.after -= n
	n, err := f.File.Write(p[:n])
	if n < len(p) && err == nil {
		err = errKilled
	}
	return n, err
}

func (f *killFile) Truncate(size int64) error {
	if f.k.after <= 0 {
		return errKilled
	}
	return f.File.Truncate(size)
}
