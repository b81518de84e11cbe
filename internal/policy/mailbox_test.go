package policy

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestQuota(t *testing.T) {
	for _, c := range []struct {
		name, file, rule string
		size             int64
		want             Action
	}{
		{"room", "1000S\n500 1\n", "", 100, Pass},
		{"full", "1000S\n1000 1\n", "", 0, Defer},
		{"too little room", "1000S\n500 1\n", "", 501, Defer},
		{"just enough", "1000S\n500 1\n", "", 500, Pass},
		{"messages", "10C\n500 10\n", "", 0, Defer},
		{"the account decides", "1000S\n1000 1\n", "*:bytes=2000", 100, Pass},
		{"the account decides otherwise", "1000S\n500 1\n", "*:bytes=400", 0, Defer},
		{"a rule that cannot be read", "1000S\n500 1\n", "*:bytes=many", 0, Pass},
		{"no limit", "\n500 1\n", "", 0, Pass},
		{"nothing counted", "", "*:bytes=1", 100, Pass},
		{"broken", "what\n", "*:bytes=1", 100, Pass},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if c.file != "" {
				if err := os.WriteFile(filepath.Join(dir, "maildirsize"), []byte(c.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s := newSite(t)
			s.o.Quota = true
			fields := map[string]string{"userdb_quota_rule": c.rule}
			r := New(s.o).Quota(dir, fields, c.size)
			if r.Action != c.want || r.Refuses() && (r.Code != 452 || r.DSN != "4.2.2") {
				t.Errorf("%+v", r)
			}
			s.o.Quota = false
			if r := New(s.o).Quota(dir, fields, c.size); r.Refuses() {
				t.Errorf("switched off: %+v", r)
			}
		})
	}
}

// A user may put anything into the mailbox; what cannot be read holds nobody up.
func TestQuotaOfNoFile(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"a pipe":           func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"a directory":      func(p string) error { return os.Mkdir(p, 0o700) },
		"a device":         func(p string) error { return os.Symlink("/dev/zero", p) },
		"a link to itself": func(p string) error { return os.Symlink("maildirsize", p) },
	} {
		dir := t.TempDir()
		if err := put(filepath.Join(dir, "maildirsize")); err != nil {
			t.Fatal(err)
		}
		s := newSite(t)
		s.o.Quota = true
		done := make(chan Verdict, 1)
		go func() { done <- New(s.o).Quota(dir, nil, 0) }()
		select {
		case r := <-done:
			if r.Refuses() {
				t.Errorf("%s: %+v", name, r)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: no verdict", name)
		}
	}
}

func TestRelayRecipient(t *testing.T) {
	s := newSite(t)
	if r := New(s.o).RelayRecipient(addr(t, "any@far.test")); r.Refuses() {
		t.Errorf("without a list: %+v", r)
	}
	file := filepath.Join(t.TempDir(), "recipients")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.o.RelayFile = file
	p := New(s.o)
	check := func(to string, code int) {
		t.Helper()
		if r := p.RelayRecipient(addr(t, to)); r.Code != code {
			t.Errorf("%s: %+v, want %d", to, r, code)
		}
	}
	check("ann@far.test", 451)
	write("# who is there\nAnn@Far.test\nbob@far.test\tx\n\n\"a b\"@far.test\n@all.test OK\n")
	check("ann@far.test", 0)
	check("ANN@FAR.test", 0)
	check("bob@far.test", 0)
	check(`"a b"@far.test`, 0)
	check("carl@far.test", 550)
	check("any@all.test", 0)
	check("any@other.test", 550)
	write("carl@far.test\n")
	check("carl@far.test", 0)
	check("ann@far.test", 550)
	write("what is this\n") // a list that is broken says nothing about who is missing in it
	if err := os.Chtimes(file, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	check("carl@far.test", 451)
}

func FuzzRecipients(f *testing.F) {
	f.Add("# x\nann@far.test\n@all.test OK\n\"a b\"@far.test\n continued\n")
	f.Fuzz(func(t *testing.T, text string) {
		known, err := readRecipients(strings.NewReader(text))
		for k := range known {
			if !strings.Contains(k, "@") {
				t.Errorf("%q: %q %v", text, k, err)
			}
		}
	})
}
