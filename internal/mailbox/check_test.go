package mailbox

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// account is a Maildir with five messages in the inbox and one in a folder, opened once.
type account struct {
	t    *testing.T
	root string
	uids map[string]uint32 // by what the body says
	high uint64            // HIGHESTMODSEQ of the inbox at the last open
}

func (a *account) path(rel string) string { return filepath.Join(a.root, rel) }

func (a *account) write(rel, text string) {
	a.t.Helper()
	if err := os.WriteFile(a.path(rel), []byte(text), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *account) read(rel string) string {
	a.t.Helper()
	b, err := os.ReadFile(a.path(rel))
	if err != nil {
		a.t.Fatal(err)
	}
	return string(b)
}

func (a *account) ok(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

func (a *account) store() *Store {
	a.t.Helper()
	s, err := Open(a.root, Options{})
	a.ok(err)
	return s
}

// name is the file of the message whose base name begins with the digits.
func (a *account) name(rel, begin string) string {
	a.t.Helper()
	hits, err := filepath.Glob(a.path(rel) + "/" + begin + "*")
	if err != nil || len(hits) != 1 {
		a.t.Fatalf("%s/%s: %v %v", rel, begin, hits, err)
	}
	return rel + "/" + filepath.Base(hits[0])
}

func newAccount(t *testing.T) *account {
	t.Helper()
	a := &account{t: t, root: t.TempDir()}
	for _, d := range []string{".", ".Sent"} {
		for _, sub := range []string{"tmp", "new", "cur"} {
			a.ok(os.MkdirAll(a.path(d+"/"+sub), 0o700))
		}
	}
	a.write(".Sent/"+maildir.FolderFile, "")
	for i := range 5 {
		text := fmt.Sprintf("Subject: %d\n\nbody\n", i+1)
		a.write(fmt.Sprintf("cur/100000000%d.M1P1.h,S=%d,W=%d:2,Sa", i+1, len(text), len(text)+3), text)
	}
	a.write(".Sent/cur/1000000009.M1P1.h:2,S", "Subject: 9\n\nbody\n")
	a.write(maildir.KeywordsName, "0 $Label\n")
	a.age()
	a.uids = a.open()
	a.age()
	return a
}

// age makes directories and files so old that their times can be believed.
func (a *account) age() {
	a.t.Helper()
	old := time.Now().Add(-time.Hour)
	a.ok(filepath.WalkDir(a.root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, old, old)
	}))
}

// open reads all messages through the store.
func (a *account) open() map[string]uint32 {
	a.t.Helper()
	s := a.store()
	ctx := context.Background()
	got := map[string]uint32{}
	folders, _, err := s.tree.List(s.fs)
	a.ok(err)
	for _, f := range folders {
		m, err := s.Mailbox(ctx, f.Name)
		a.ok(err)
		v, err := m.Select(ctx, true)
		a.ok(err)
		for row, err := range v.Cached(ctx, []Range{{1, 1<<32 - 1}}, Envelope) {
			a.ok(err)
			if len(row.Envelope) == 0 {
				a.t.Errorf("message %d has no envelope", row.UID)
			}
		}
		for _, msg := range v.All(1, v.Len()) {
			b, err := v.Open(ctx, msg.UID)
			if err != nil {
				got[fmt.Sprintf("unreadable %s %d", f.Name, msg.UID)] = msg.UID
				continue
			}
			text, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size))
			a.ok(errors.Join(err, b.Close()))
			got[f.Name+" "+string(text)] = msg.UID
		}
		if f.Name == maildir.Inbox {
			if v.HighestModSeq() < a.high {
				a.t.Errorf("HIGHESTMODSEQ %d went back to %d", a.high, v.HighestModSeq())
			}
			a.high = v.HighestModSeq()
		}
		a.ok(errors.Join(v.Close(), m.Close()))
	}
	a.ok(s.Close())
	return got
}

func (a *account) check(o CheckOptions) (kinds []string, repaired bool) {
	a.t.Helper()
	s := a.store()
	repaired = true
	o.Report = func(f Finding) {
		kinds = append(kinds, f.Kind)
		repaired = repaired && f.Repaired
		if f.Path == "" || f.What == "" || f.Remedy == "" {
			a.t.Errorf("%+v says too little", f)
		}
		a.t.Logf("%+v", f)
	}
	a.ok(s.Check(context.Background(), o))
	a.ok(s.Close())
	slices.Sort(kinds)
	return slices.Compact(kinds), repaired
}

// tree is all files with their contents, to see that nothing was written.
func (a *account) tree() map[string]string {
	a.t.Helper()
	all := map[string]string{}
	a.ok(filepath.WalkDir(a.root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var b []byte
			b, err = os.ReadFile(path)
			all[path] = string(b)
		}
		return err
	}))
	return all
}

type damage struct {
	name   string
	inject func(*account)
	want   []string
	read   bool
	repair bool // otherwise nothing can be done
	uids   bool // the UIDs stay what they were
}

func damages() []damage {
	const list, index = maildir.UIDListName, indexName
	replace := func(rel, old, text string) func(*account) {
		return func(a *account) {
			s := a.read(rel)
			if !strings.Contains(s, old) {
				a.t.Fatalf("%s has no %q: %q", rel, old, s)
			}
			a.write(rel, strings.Replace(s, old, text, 1))
		}
	}
	return []damage{
		{"nothing", func(*account) {}, nil, true, true, true},
		{"new/ is missing", func(a *account) { a.ok(os.Remove(a.path("new"))) }, []string{"no-directory"}, false, true, true},
		{"a folder without its mark", func(a *account) { a.ok(os.Remove(a.path(".Sent/maildirfolder"))) }, []string{"no-mark"}, false, true, true},
		{"a folder without cur/", func(a *account) { a.ok(os.Mkdir(a.path(".Old"), 0o700)); a.ok(os.Mkdir(a.path(".Old/new"), 0o700)) }, []string{"no-cur"}, false, true, true},
		{"a folder with a name in UTF-8", func(a *account) { a.ok(durable.Rename(a.path(".Sent"), a.path(".Größe"))) }, []string{"folder-name"}, false, true, false},
		{"a directory among the messages", func(a *account) { a.ok(os.Mkdir(a.path("cur/1000000008.x:2,"), 0o700)) }, []string{"not-a-file"}, false, true, true},
		{"a pipe among the messages", func(a *account) { a.ok(syscall.Mkfifo(a.path("cur/1000000008.x:2,"), 0o600)) }, []string{"not-a-file"}, false, true, true},
		{"a name with a line end", func(a *account) { a.write("cur/1000000008.x\ny:2,S", "Subject: 8\n\n") }, []string{"file-name"}, false, true, false},
		{"a name without info", func(a *account) { a.write("cur/1000000008.x", "Subject: 8\n\n") }, []string{"no-info"}, false, true, false},
		{"an empty message", func(a *account) { a.write("cur/1000000008.x:2,", "") }, []string{"empty"}, false, false, false},
		{"a second name of a file", func(a *account) {
			f := a.name("cur", "1000000001")
			a.ok(os.Link(a.path(f), a.path(strings.Replace(f, ":2,Sa", ":2,", 1))))
		}, []string{"double-name"}, false, true, true},
		{"two files of one base name", func(a *account) {
			f := a.name("cur", "1000000001")
			a.write(strings.Replace(strings.Replace(f, "cur/", "new/", 1), ":2,Sa", "", 1), "Subject: other\n\n")
		}, []string{"double-name", "size"}, false, true, false},
		{"a size in a name that is wrong", func(a *account) {
			f := a.name("cur", "1000000002")
			a.write(f, a.read(f)+"more\n")
			a.uids = nil
		}, []string{"size"}, false, true, false},
		{"a wire size that is wrong", func(a *account) {
			f := a.name("cur", "1000000002")
			a.write(f, "Subject: 2\n\n\n\ndy\n") // as long, with more lines
			a.uids = nil
		}, []string{"size"}, true, true, false},
		{"the list of UIDs is gone", func(a *account) { a.ok(os.Remove(a.path(list))) }, []string{"uidlist-missing"}, false, true, true},
		{"list and index are gone", func(a *account) { a.ok(os.Remove(a.path(list))); a.ok(os.Remove(a.path(index))) }, nil, false, true, false},
		{"the first line is gone", func(a *account) { _, rest, _ := strings.Cut(a.read(list), "\n"); a.write(list, rest) }, []string{"uidlist-header"}, false, true, true},
		{"the first line is something else", replace(list, "3 V", "hello "), []string{"uidlist-header"}, false, true, true},
		{"the list is all NUL", func(a *account) { a.write(list, strings.Repeat("\x00", len(a.read(list)))) }, []string{"uidlist-header"}, false, true, true},
		{"a torn line at the end", func(a *account) { a.write(list, a.read(list)+"6 :10000") }, []string{"uidlist-tail"}, false, true, true},
		{"NULs at the end", func(a *account) { a.write(list, a.read(list)+"\x00\x00") }, []string{"uidlist-tail"}, false, true, true},
		{"a line that is garbage", replace(list, "\n3 :", "\n\x00\x00\x00"), []string{"uidlist-line"}, false, true, true},
		{"UIDs out of order", replace(list, "\n3 :", "\n1 :"), []string{"uidlist-line"}, false, true, true},
		{"a message with two UIDs", func(a *account) {
			a.write(list, a.read(list)+"9 :"+strings.TrimSuffix(filepath.Base(a.name("cur", "1000000001")), ":2,Sa")+"\n")
		}, []string{"uidlist-double"}, false, true, false},
		{"an old copy of the list", func(a *account) {
			s := a.read(list)
			i := strings.Index(s, "Xmodseq=")
			a.write(list, s[:i]+"Xmodseq=1"+s[i+strings.IndexAny(s[i:], " \n"):])
		}, []string{"modseq-ceiling"}, false, true, true},
		{"no room for UIDs", func(a *account) {
			a.write(list, a.read(list)+"4294967290 :gone\n")
		}, []string{"uids-used-up"}, false, false, true},
		{"a list of a later version", func(a *account) { a.write(list, "4 V1 N1\n") }, []string{"uidlist-newer"}, false, false, false},
		{"a keyword line that is garbage", func(a *account) { a.write(maildir.KeywordsName, "0 $Label\nhello\n") }, []string{"keywords-line"}, false, true, true},
		{"a letter without keyword", func(a *account) { a.ok(os.Remove(a.path(maildir.KeywordsName))) }, []string{"keyword-letter"}, false, true, true},
		{"a lock of the dead", func(a *account) { a.write(list+".lock", "1:elsewhere"); a.age() }, []string{"stale-lock"}, false, true, true},
		{"a broken pennypost-meta", func(a *account) { a.write(maildir.MetaName, "hello\n") }, []string{"meta"}, false, true, true},
		{"a line of pennypost-meta", func(a *account) { a.write(maildir.MetaName, "pennypost-meta 1\nacl x\nspecial-use \"\\\\Sent\"\n") }, []string{"meta"}, false, true, true},
		{"a pennypost-meta of a later version", func(a *account) { a.write(maildir.MetaName, "pennypost-meta 2\n") }, []string{"meta-newer"}, false, false, true},
		{"the index is garbage", func(a *account) { a.write(index, "hello") }, []string{"index"}, false, true, true},
		{"a flipped bit in the index", func(a *account) {
			b := []byte(a.read(index))
			b[len(b)/2] ^= 4
			a.write(index, string(b))
		}, []string{"index"}, false, true, true},
		{"the index is cut", func(a *account) { s := a.read(index); a.write(index, s[:len(s)/2]) }, []string{"index"}, false, true, true},
		{"the index has a tail", func(a *account) { a.write(index, a.read(index)+"tail") }, []string{"index-tail"}, false, true, true},
		{"an index of a later version", func(a *account) { b := []byte(a.read(index)); b[8] = 9; a.write(index, string(b)) }, []string{"index-newer"}, false, false, true},
		{"the cache is garbage", func(a *account) { a.write(cacheName, "hello") }, []string{"cache"}, false, true, true},
		{"a flipped bit in the cache", func(a *account) {
			b := []byte(a.read(cacheName))
			b[len(b)*2/3] ^= 4
			a.write(cacheName, string(b))
		}, []string{"cache"}, false, true, true},
		{"the cache is cut", func(a *account) { s := a.read(cacheName); a.write(cacheName, s[:len(s)-3]) }, []string{"cache"}, false, true, true},
		{"the counter of UIDVALIDITYs is behind", func(a *account) {
			for _, f := range []string{"dovecot-uidvalidity", a.name(".", "dovecot-uidvalidity.")} {
				a.ok(os.Remove(a.path(f)))
			}
			a.write("dovecot-uidvalidity.00000005", "")
		}, []string{"uidvalidity-counter"}, false, true, true},
		{"a maildirsize that is wrong", func(a *account) { a.write(maildir.SizeName, "0S\n5 1\n") }, []string{"maildirsize"}, false, true, true},
		{"a maildirsize that is garbage", func(a *account) { a.write(maildir.SizeName, "hello\n") }, []string{"maildirsize"}, false, true, true},
		{"a maildirsize that is right", func(a *account) { a.write(maildir.SizeName, "0S\n102 6\n") }, nil, false, true, true},
		{"a subscription that is no name", func(a *account) { a.write(maildir.SubscriptionsName, "V\t2\n\na&b\nSent\n") }, []string{"subscription"}, false, false, true},
	}
}

func TestCheckDamage(t *testing.T) {
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			a := newAccount(t)
			d.inject(a)
			before := a.tree()
			if kinds, _ := a.check(CheckOptions{Read: d.read}); !slices.Equal(kinds, d.want) {
				t.Fatalf("found %q, want %q", kinds, d.want)
			}
			if after := a.tree(); !reflect.DeepEqual(before, after) {
				t.Errorf("looking has changed something: %v", differing(before, after))
			}
			kinds, repaired := a.check(CheckOptions{Read: d.read, Repair: true})
			if !slices.Equal(kinds, d.want) || repaired != d.repair && len(d.want) > 0 {
				t.Errorf("repairing: %q %v", kinds, repaired)
			}
			if d.repair {
				if kinds, _ := a.check(CheckOptions{Read: true}); len(kinds) > 0 {
					t.Errorf("after the repair: %q", kinds)
				}
			}
			lost(t, before, a.tree())
			if slices.Contains(d.want, "uidlist-newer") {
				return // which keeps everybody out
			}
			if got := a.open(); d.uids && !reflect.DeepEqual(got, a.uids) {
				t.Errorf("UIDs: %v, before %v", got, a.uids)
			}
		})
	}
}

func differing(a, b map[string]string) (paths []string) {
	for p := range maps.Keys(a) {
		if a[p] != b[p] {
			paths = append(paths, p)
		}
	}
	for p := range maps.Keys(b) {
		if _, ok := a[p]; !ok {
			paths = append(paths, p)
		}
	}
	return paths
}

// lost looks for messages whose text is nowhere any more.
func lost(t *testing.T, before, after map[string]string) {
	t.Helper()
	texts := map[string]bool{}
	for p, text := range after {
		if d := filepath.Base(filepath.Dir(p)); d == "cur" || d == "new" {
			texts[text] = true
		}
	}
	for p, text := range before {
		if d := filepath.Base(filepath.Dir(p)); (d == "cur" || d == "new") && !texts[text] {
			t.Errorf("lost: %s", p)
		}
	}
}

// A size that was put right stays so when the index is made anew, and after another server has
// not touched the list.
func TestCheckSizeStays(t *testing.T) {
	a := newAccount(t)
	f := a.name("cur", "1000000002")
	a.write(f, a.read(f)+"more\n")
	a.check(CheckOptions{Repair: true})
	a.ok(os.Remove(a.path(indexName)))
	s := a.store()
	m, err := s.Mailbox(context.Background(), "INBOX")
	a.ok(err)
	v, err := m.Select(context.Background(), true)
	a.ok(err)
	want := int64(len(a.read(f)) + bytes.Count([]byte(a.read(f)), []byte("\n")))
	if got := v.At(2); got.UID != 2 || got.Size != want {
		t.Errorf("%+v, want size %d", got, want)
	}
	a.ok(errors.Join(v.Close(), m.Close(), s.Close()))
}

func TestCheckOneMailbox(t *testing.T) {
	a := newAccount(t)
	a.ok(os.Remove(a.path(".Sent/maildirfolder")))
	a.ok(os.Remove(a.path("new")))
	if kinds, _ := a.check(CheckOptions{Mailboxes: []string{"Sent"}}); !slices.Equal(kinds, []string{"no-mark"}) {
		t.Errorf("%q", kinds)
	}
	s := a.store()
	err := s.Check(context.Background(), CheckOptions{Mailboxes: []string{"Nowhere"}, Report: func(Finding) {}})
	if !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	a.ok(s.Close())
}

// While others flag and deliver, nothing is taken for damage.
func TestCheckBusy(t *testing.T) {
	a := newAccount(t)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		flags := []string{":2,", ":2,S", ":2,FS", ":2,a"}
		names := map[string]string{}
		for i := range 50 {
			base := fmt.Sprintf("11000000%02d.M1P1.h", i)
			names[base] = a.path("cur/" + base + flags[0])
			tmp := a.path("tmp/" + base)
			if err := cmp.Or(os.WriteFile(tmp, []byte("Subject: x\n\n"), 0o600), durable.Rename(tmp, names[base])); err != nil {
				done <- err
				return
			}
		}
		for n := 0; ; n++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			base := fmt.Sprintf("11000000%02d.M1P1.h", n%50)
			to := a.path("cur/" + base + flags[n/50%4])
			if err := durable.Rename(names[base], to); err != nil {
				done <- err
				return
			}
			names[base] = to
		}
	}()
	for n := range 10 {
		if kinds, _ := a.check(CheckOptions{Repair: n%2 == 1}); len(kinds) > 0 {
			t.Errorf("found %q", kinds)
		}
	}
	close(stop)
	a.ok(<-done)
}
