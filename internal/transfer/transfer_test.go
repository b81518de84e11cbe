package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/imapclient"
	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
	"pennypost/internal/mailtest"
)

var ctx = context.Background()

// fake is a Source of messages in memory that breaks after some.
type fake struct {
	boxes map[string][]string
	after int // messages until the error; 0: never
	sent  int
}

var errFake = errors.New("the source breaks")

func (f *fake) ID() string   { return "fake" }
func (f *fake) Close() error { return nil }

func (f *fake) Mailboxes(context.Context) (names []string, err error) {
	for n := range f.boxes {
		names = append(names, n)
	}
	slices.Sort(names)
	return names, nil
}

func (f *fake) Messages(_ context.Context, name string, known func(string) bool, count func(int)) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		count(len(f.boxes[name]))
		for i, text := range f.boxes[name] {
			key := fmt.Sprint(i)
			if known(key) {
				continue
			}
			if f.sent++; f.after > 0 && f.sent > f.after {
				yield(Message{}, errFake)
				return
			}
			m := Message{Key: key, Flags: maildir.Seen, Keywords: []string{"$K"}, Date: time.Unix(1_000_000_000+int64(i), 0), Size: -1, Body: strings.NewReader(text)}
			if !yield(m, nil) {
				return
			}
		}
	}
}

func newFake(n int) *fake {
	f := &fake{boxes: map[string][]string{"INBOX": nil, "Old/2020": {"Subject: old\n\nold\n"}}}
	for i := range n {
		f.boxes["INBOX"] = append(f.boxes["INBOX"], fmt.Sprintf("Subject: %d\n\nbody %d\n", i, i))
	}
	return f
}

func store(t testing.TB, dir string, fsys durable.FS) *mailbox.Store {
	t.Helper()
	s, err := mailbox.Open(dir, mailbox.Options{Create: true, FS: fsys})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// subjects are "uid flags keywords date subject" of a mailbox.
func subjects(t testing.TB, s *mailbox.Store, name string) (list []string) {
	t.Helper()
	v, done, err := view(ctx, s, name)
	if err != nil {
		t.Fatal(err)
	}
	more, err := each(ctx, v, func(string) bool { return false }, func(int) {}, func(m Message, _ error) bool {
		b, err := io.ReadAll(m.Body)
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(string(b), "\n")
		list = append(list, fmt.Sprintf("%s %s %s %d %s", m.Key, status(m.Flags, ^maildir.Flags(0)), strings.Join(m.Keywords, ","), m.Date.Unix(), first))
		return true
	})
	if err := errors.Join(err, done()); err != nil || !more {
		t.Fatal(err)
	}
	return list
}

func TestImport(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := store(t, dir+"/md", nil)
	var results []Result
	o := Options{Report: func(r Result) { results = append(results, r) }}
	src := newFake(420)
	// It breaks twice and is taken up again; what a batch has not finished comes again.
	for _, after := range []int{300, 100, 0} {
		src.after, src.sent = after, 0
		err := Import(ctx, s, dir+"/memory", src, o)
		if (err != nil) != (after > 0) || err != nil && !errors.Is(err, errFake) {
			t.Fatal(err)
		}
	}
	got := subjects(t, s, "INBOX")
	if len(got) != 420 {
		t.Fatalf("%d messages", len(got))
	}
	for i, g := range got {
		if !strings.HasSuffix(g, fmt.Sprintf(" R $K %d Subject: %d", 1_000_000_000+i, i)) {
			t.Fatalf("message %d: %s", i, g)
		}
	}
	if got := subjects(t, s, "Old/2020"); len(got) != 1 {
		t.Errorf("%q", got)
	}
	last := results[len(results)-2]
	if last.From != "INBOX" || last.New+last.Known != 420 || last.Known < 256 {
		t.Errorf("%+v", last)
	}
	// A message that was removed here does not come again, even without the memory of others.
	m, err := s.Mailbox(ctx, "INBOX")
	if err != nil {
		t.Fatal(err)
	}
	v, err := m.Select(ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Expunge(ctx, []uint32{5}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(v.Close(), m.Close()); err != nil {
		t.Fatal(err)
	}
	results = nil
	src.sent = 0
	if err := Import(ctx, s, dir+"/memory", src, o); err != nil || results[0].New != 0 || results[0].Known != 420 || src.sent != 0 {
		t.Errorf("%+v %v, %d read", results, err, src.sent)
	}
	// Without the file the EMAILIDs say what is here: one message comes again.
	if err := os.Remove(dir + "/memory"); err != nil {
		t.Fatal(err)
	}
	results = nil
	if err := Import(ctx, s, dir+"/memory", src, o); err != nil || results[0].New != 1 {
		t.Errorf("%+v %v", results, err)
	}
	// Elsewhere, one mailbox, and nothing really.
	dry := o
	dry.DryRun, dry.Into, dry.Mailboxes = true, "Copy", []string{"INBOX"}
	results = nil
	if err := Import(ctx, s, dir+"/none", src, dry); err != nil || len(results) != 1 || results[0].New != 1 && results[0].New != 420 {
		t.Errorf("%+v %v", results, err)
	}
	if _, err := os.Stat(dir + "/none"); err == nil {
		t.Error("a dry run has written")
	}
	dry.Mailboxes = []string{"nowhere"}
	if err := Import(ctx, s, dir+"/none", src, dry); !errors.Is(err, mailbox.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// A memory that is torn or of a later release.
func TestMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m")
	id := hash("a", "b", "c")
	for text, want := range map[string]bool{
		"":                                false,
		"pennyp":                          false,
		memoryHead + id + "\n":            true,
		memoryHead + id + "\n" + id[:7]:   true,
		memoryHead + "junk\n" + id + "\n": true,
		memoryHead + id[:31]:              false,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := openMemory(durable.OS{}, path, false)
		if err != nil || m.has(id) != want {
			t.Errorf("%q: %v", text, err)
			continue
		}
		other := hash("x", "y", "z")
		if err := errors.Join(m.add([]string{other}), m.close()); err != nil {
			t.Fatal(err)
		}
		if m, err = openMemory(durable.OS{}, path, true); err != nil || m.has(id) != want || !m.has(other) {
			t.Errorf("%q and one more: %v", text, err)
		}
	}
	if err := os.WriteFile(path, []byte("pennypost-import 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openMemory(durable.OS{}, path, false); err == nil {
		t.Error("a later format is read")
	}
}

// change does something to messages of the INBOX by UID.
func change(t testing.TB, s *mailbox.Store, f func(v *mailbox.View) error) {
	t.Helper()
	m, err := s.Mailbox(ctx, "INBOX")
	if err != nil {
		t.Fatal(err)
	}
	v, err := m.Select(ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f(v), v.Close(), m.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestMaildirAndBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := store(t, dir+"/md", nil)
	if err := Import(ctx, s, dir+"/memory", newFake(20), Options{}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.SetSpecialUse(ctx, "Old/2020", []string{`\Archive`}), s.Subscribe(ctx, "Not/there", true)); err != nil {
		t.Fatal(err)
	}
	change(t, s, func(v *mailbox.View) error {
		_, err := v.Expunge(ctx, []uint32{3, 20})
		return errors.Join(err, v.SetPOP3Keys(ctx, map[uint32]string{7: "UIDL7"}))
	})
	copyTo := maildir.Tree{Root: dir + "/copy"}
	var results []Result
	o := Options{Report: func(r Result) { results = append(results, r) }}
	if err := ToMaildir(ctx, s, copyTo, o); err != nil || results[0].New != 18 {
		t.Fatalf("%+v %v", results, err)
	}
	// A second time, after changes: only they are copied.
	change(t, s, func(v *mailbox.View) error {
		_, err := v.Store(ctx, []uint32{4}, mailbox.FlagChange{Op: mailbox.Add, Flags: maildir.Flagged, Keywords: []string{"$New"}})
		_, err2 := v.Expunge(ctx, []uint32{5})
		_, err3 := v.Mailbox().Append(ctx, mailbox.Item{Message: strings.NewReader("Subject: late\n\n")})
		return errors.Join(err, err2, err3)
	})
	results = nil
	if err := ToMaildir(ctx, s, copyTo, o); err != nil || results[0].New != 1 || results[0].Changed != 1 || results[0].Known != 16 || results[0].Removed != 0 {
		t.Fatalf("%+v %v", results, err)
	}
	o.Prune = true
	results = nil
	if err := ToMaildir(ctx, s, copyTo, o); err != nil || results[0].New+results[0].Changed != 0 || results[0].Removed != 1 {
		t.Fatalf("%+v %v", results, err)
	}
	// Back into an empty account, all is as it was; and once more, as after an interruption.
	for i := range 2 {
		n := store(t, dir+"/new", nil)
		results = nil
		if err := Restore(ctx, n, maildir.Tree{Root: dir + "/new"}, copyTo, o); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"INBOX", "Old/2020"} {
			want, got := subjects(t, s, name), subjects(t, n, name)
			if !slices.Equal(got, want) {
				t.Errorf("%s, run %d\n got %q\nwant %q", name, i, got, want)
			}
			a, err := s.Status(ctx, name)
			b, err2 := n.Status(ctx, name)
			if err != nil || err2 != nil || a.UIDNext != b.UIDNext || a.UIDValidity != b.UIDValidity || b.HighestModSeq < a.HighestModSeq || a.ID != b.ID {
				t.Errorf("%s: %+v %+v %v %v", name, a, b, err, err2)
			}
		}
		if use, err := n.SpecialUse("Old/2020"); err != nil || !slices.Equal(use, []string{`\Archive`}) {
			t.Errorf("%q %v", use, err)
		}
		change(t, n, func(v *mailbox.View) error {
			list, err := v.POP3(ctx)
			if !slices.ContainsFunc(list, func(e mailbox.POP3Entry) bool { return e.UID == 7 && e.Key == "UIDL7" }) {
				t.Error("the POP3 key is lost")
			}
			return err
		})
		if err := n.Check(ctx, mailbox.CheckOptions{Read: true, Report: func(f mailbox.Finding) { t.Errorf("check: %+v", f) }}); err != nil {
			t.Error(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// Not into one that has other mail, and not from one that has no UIDs.
	n := store(t, dir+"/full", nil)
	change(t, n, func(v *mailbox.View) error {
		_, err := v.Mailbox().Append(ctx, mailbox.Item{Message: strings.NewReader("Subject: mine\n\n")})
		return err
	})
	if err := Restore(ctx, n, maildir.Tree{Root: dir + "/full"}, copyTo, Options{}); err == nil {
		t.Error("restored over other mail")
	}
	// And a copy of one mailbox is not made into that of another.
	if err := ToMaildir(ctx, n, copyTo, Options{}); err == nil {
		t.Error("exported over another account's copy")
	}
}

func TestMboxAndBack(t *testing.T) {
	dir := t.TempDir()
	s := store(t, dir+"/md", nil)
	if err := Import(ctx, s, dir+"/memory", newFake(5), Options{}); err != nil {
		t.Fatal(err)
	}
	for run := range 2 {
		var results []Result
		if err := ToMbox(ctx, s, dir+"/out", Options{Report: func(r Result) { results = append(results, r) }}); err != nil {
			t.Fatal(err)
		}
		if want := []int{5, 1}[run]; results[0].New != want {
			t.Errorf("run %d: %+v", run, results)
		}
		change(t, s, func(v *mailbox.View) error {
			_, err := v.Mailbox().Append(ctx, mailbox.Item{Message: strings.NewReader("Subject: late\n\n"), Internal: time.Unix(1_000_000_009, 0)})
			return err
		})
	}
	src, err := OpenMbox(dir + "/out")
	if err != nil {
		t.Fatal(err)
	}
	n := store(t, dir+"/new", nil)
	for range 2 {
		if err := Import(ctx, n, dir+"/memory2", src, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	strip := func(list []string) []string {
		for i, l := range list {
			_, list[i], _ = strings.Cut(l, " ")
		}
		return list
	}
	want := strip(subjects(t, s, "INBOX"))
	want = want[:len(want)-1] // the last one came after the export
	if got := strip(subjects(t, n, "INBOX")); !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
	if err := os.WriteFile(dir+"/out/INBOX.mbox", []byte(from+"\nx\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ToMbox(ctx, n, dir+"/out", Options{}); err == nil {
		t.Error("exported into somebody's mbox")
	}
}

func TestAccounts(t *testing.T) {
	dir := t.TempDir()
	a, b := store(t, dir+"/a", nil), store(t, dir+"/b", nil)
	if err := Import(ctx, a, dir+"/memory", newFake(10), Options{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Import(ctx, b, dir+"/memory2", &Account{Store: a, Name: "a@x"}, Options{Into: "from a"}); err != nil {
			t.Fatal(err)
		}
	}
	if got := subjects(t, b, "from a"); len(got) != 10 || !strings.HasSuffix(got[9], " R $K 1000000009 Subject: 9") {
		t.Errorf("%q", got)
	}
	if got := subjects(t, b, "from a/Old/2020"); len(got) != 1 {
		t.Errorf("%q", got)
	}
	// A Maildir is read as it lies, and nothing is written there.
	c := store(t, dir+"/c", nil)
	if err := Import(ctx, c, dir+"/memory3", &Maildir{Tree: maildir.Tree{Root: dir + "/a"}}, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := subjects(t, c, "INBOX"); len(got) != 10 || !strings.HasSuffix(got[9], " R $K 1000000009 Subject: 9") {
		t.Errorf("%q", got)
	}
}

// While others deliver, flag and expunge, an export is of one moment for each mailbox, and
// the last one, when all is quiet, is exact.
func TestInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := store(t, dir+"/md", nil)
	if err := Import(ctx, s, dir+"/memory", newFake(100), Options{}); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan bool), make(chan error, 1)
	go func() {
		rnd := rand.New(rand.NewPCG(1, 2))
		done <- func() error {
			other, err := mailbox.Open(dir+"/md", mailbox.Options{})
			if err != nil {
				return err
			}
			defer other.Close()
			m, err := other.Mailbox(ctx, "INBOX")
			if err != nil {
				return err
			}
			defer m.Close()
			v, err := m.Select(ctx, false)
			if err != nil {
				return err
			}
			defer v.Close()
			for {
				select {
				case <-stop:
					return nil
				default:
				}
				if _, err := v.Sync(ctx); err != nil {
					return err
				}
				uid := v.At(1 + rnd.IntN(v.Len())).UID
				switch rnd.IntN(4) {
				case 0:
					_, err = v.Expunge(ctx, []uint32{uid})
				case 1:
					_, err = m.Append(ctx, mailbox.Item{Message: strings.NewReader("Subject: new\n\n")})
				default:
					_, err = v.Store(ctx, []uint32{uid}, mailbox.FlagChange{Op: mailbox.Set, Flags: maildir.Flags(rnd.IntN(64))})
				}
				if err != nil {
					return err
				}
			}
		}()
	}()
	to := maildir.Tree{Root: dir + "/copy"}
	for range 5 {
		if err := ToMaildir(ctx, s, to, Options{Prune: true}); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := ToMaildir(ctx, s, to, Options{Prune: true}); err != nil {
		t.Fatal(err)
	}
	n := store(t, dir+"/new", nil)
	if err := Restore(ctx, n, maildir.Tree{Root: dir + "/new"}, to, Options{}); err != nil {
		t.Fatal(err)
	}
	if got, want := subjects(t, n, "INBOX"), subjects(t, s, "INBOX"); !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
}

// inbox collects what is said of the INBOX.
func inbox(to *[]Result) func(Result) {
	return func(r Result) {
		if r.From == "INBOX" {
			*to = append(*to, r)
		}
	}
}

func client(t *testing.T, dir string) *imapclient.Client {
	t.Helper()
	c, err := imapclient.Over(ctx, mailtest.Dovecot(t, dir), imapclient.Options{Security: imapclient.Plain})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// To a Dovecot and back, and a Dovecot on the copy in a Maildir.
func TestDovecot(t *testing.T) {
	t.Parallel()
	if why := mailtest.DovecotMissing(); why != "" {
		t.Skip(why)
	}
	dir := t.TempDir()
	s := store(t, dir+"/md", nil)
	if err := Import(ctx, s, dir+"/memory", newFake(60), Options{}); err != nil {
		t.Fatal(err)
	}
	far, err := os.MkdirTemp("", "transfer") // Dovecot must be able to get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(far) })
	for i, want := range []int{60, 0} {
		var results []Result
		to := &IMAP{Client: client(t, far), Name: "nobody@dovecot"}
		if err := ToIMAP(ctx, s, dir+"/up", to, Options{Report: inbox(&results)}); err != nil || results[0].New != want {
			t.Fatalf("run %d: %+v %v", i, results, err)
		}
		if err := to.Close(); err != nil {
			t.Error(err)
		}
	}
	n := store(t, dir+"/new", nil)
	for i, want := range []int{60, 0} {
		var results []Result
		src := &IMAP{Client: client(t, far), Name: "nobody@dovecot"}
		if err := Import(ctx, n, dir+"/memory2", src, Options{Report: inbox(&results)}); err != nil || results[0].New != want {
			t.Fatalf("run %d: %+v %v", i, results, err)
		}
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"INBOX", "Old/2020"} {
		a, b := subjects(t, s, name), subjects(t, n, name)
		if len(a) != len(b) {
			t.Fatalf("%s: %d and %d", name, len(a), len(b))
		}
		for i := range a {
			_, x, _ := strings.Cut(a[i], " ")
			if _, y, _ := strings.Cut(b[i], " "); x != y {
				t.Errorf("%s: %q, was %q", name, y, x)
			}
		}
	}
	// The copy in a Maildir, served by Dovecot: the same UIDs.
	served, err := os.MkdirTemp("", "transfer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(served) })
	change(t, s, func(v *mailbox.View) error { _, err := v.Expunge(ctx, []uint32{2, 60}); return err })
	if err := ToMaildir(ctx, s, maildir.Tree{Root: served + "/md"}, Options{}); err != nil {
		t.Fatal(err)
	}
	c := client(t, served)
	st, err := c.Select("INBOX", true)
	if err != nil || st.Exists != 58 || st.Next != 61 {
		t.Errorf("%+v %v", st, err)
	}
	list, err := c.Messages()
	if err != nil || len(list) != 58 || list[1].UID != 3 || !slices.Contains(list[1].Flags, "$K") || list[1].Date.Unix() != 1_000_000_002 {
		t.Errorf("%d messages: %v", len(list), err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// The power goes after any operation; the import is run again, and each message is there
// once. What an import that has returned has told is there after a power cut at once.
func TestCrash(t *testing.T) {
	t.Parallel()
	src := newFake(6)
	run := func(fsys *mailtest.CrashFS) error {
		s, err := mailbox.Open("/md", mailbox.Options{Create: true, FS: fsys, Boot: 1})
		if err != nil {
			return err
		}
		src.sent = 0
		err = Import(ctx, s, "/md/"+MemoryName, src, Options{FS: fsys})
		if err == nil {
			err = ToMaildir(ctx, s, maildir.Tree{Root: "/copy"}, Options{FS: fsys})
		}
		return errors.Join(err, s.Close())
	}
	whole := mailtest.NewCrashFS()
	if err := run(whole); err != nil {
		t.Fatal(err)
	}
	total := whole.Ops()
	for stop := 1; stop <= total; stop++ {
		if stop > 130 && stop%5 > 0 && stop < total { // every step up to the end of the first batch
			continue
		}
		fsys := mailtest.NewCrashFS()
		fsys.StopAfter(stop)
		if err := run(fsys); err == nil && stop < total {
			t.Fatalf("stop %d of %d: nothing was noticed", stop, total)
		}
		fsys = fsys.Reboot(rand.New(rand.NewPCG(uint64(stop), 1)))
		// The holder of a lock lives on in this test; internal/maildir has the case of a dead one.
		for _, dir := range []string{"/md", "/md/.Old.2020", "/copy", "/copy/.Old.2020"} {
			if err := fsys.Remove(dir + "/" + maildir.UIDListName + ".lock"); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
		if stop < total {
			if err := run(fsys); err != nil {
				t.Fatalf("stop %d of %d, again: %v", stop, total, err)
			}
			fsys = fsys.Reboot(nil)
		}
		s, err := mailbox.Open("/md", mailbox.Options{FS: fsys, Boot: 2})
		if err != nil {
			t.Fatal(err)
		}
		if got := subjects(t, s, "INBOX"); len(got) != 6 || !strings.HasSuffix(got[5], "Subject: 5") {
			t.Fatalf("stop %d of %d: %q", stop, total, got)
		}
		c, err := mailbox.Open("/copy", mailbox.Options{FS: fsys, Boot: 2})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := subjects(t, c, "INBOX"), subjects(t, s, "INBOX"); !slices.Equal(got, want) {
			t.Fatalf("stop %d of %d: the copy has\n%q, want\n%q", stop, total, got, want)
		}
		if err := errors.Join(s.Close(), c.Close()); err != nil {
			t.Fatal(err)
		}
	}
}
