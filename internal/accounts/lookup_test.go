package accounts

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pennypost/internal/envelope"
)

// answerer serves a look-up socket with fixed answers and counts the questions.
func answerer(t *testing.T, answers map[string]string) (path string, asked *atomic.Int64) {
	t.Helper()
	path, asked = filepath.Join(t.TempDir(), "lookup"), new(atomic.Int64)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var q struct{ Op, Address string }
			line, err := bufio.NewReader(c).ReadBytes('\n')
			if err == nil && json.Unmarshal(line, &q) == nil && q.Op == "lookup" {
				asked.Add(1)
				// A client that hangs up early is the test's own affair.
				_, _ = c.Write([]byte(answers[q.Address]))
			}
			c.Close()
		}
	}()
	return path, asked
}

func TestLookupSocket(t *testing.T) {
	path, asked := answerer(t, map[string]string{
		"ann@a.test":   `{"found":true}` + "\n",
		"bob@a.test":   `{"found":true,"home":"/srv/bob","uid":1000,"gid":100,"extra":{"userdb_mail":"maildir:~/Mail","userdb_quota_rule":"*:storage=1G"}}` + "\n",
		"carl@a.test":  `{"found":false}` + "\n",
		"error@a.test": `{"error":"database is down"}` + "\n",
		"empty@a.test": "{}\n",
		"torn@a.test":  `{"found":fal`,
		"noise@a.test": "550 no such user\n",
		"long@a.test":  `{"found":false,"x":"` + strings.Repeat("x", lookupLine) + `"}` + "\n",
		"home@a.test":  `{"found":true,"home":"srv"}` + "\n",
		"uid@a.test":   `{"found":true,"uid":-5}` + "\n",
	})
	a, err := Open(Options{Domains: []string{"a.test"}, Maildirs: "/mail/%d/%u", Subaddress: "+", Lookup: path})
	if err != nil {
		t.Fatal(err)
	}
	look := func(local string) (Result, error) {
		return a.Lookup(context.Background(), envelope.Address{Local: local, Domain: "a.test"})
	}
	for _, c := range []struct {
		local, maildir, code string
		kind                 Kind
	}{
		{"ann", "/mail/a.test/ann", "", IsMailbox},
		{"bob", "/srv/bob/Mail", "", IsMailbox},
		{"carl", "", "", NoSuchUser},
		{"error", "", "4.3.0", 0},
		{"empty", "", "4.3.0", 0},
		{"torn", "", "4.3.0", 0},
		{"noise", "", "4.3.0", 0},
		{"long", "", "4.3.0", 0},
		{"home", "", "4.3.5", 0},
		{"uid", "", "4.3.5", 0},
	} {
		r, err := look(c.local)
		var e *Error
		switch {
		case c.code != "":
			if !errors.As(err, &e) || e.Status.Code != c.code {
				t.Errorf("%s: %v, want a deferral %s", c.local, err, c.code)
			}
		case err != nil || r.Kind != c.kind:
			t.Errorf("%s: %+v %v", c.local, r, err)
		case r.Kind == IsMailbox && r.Mailbox.Maildir != c.maildir:
			t.Errorf("%s: Maildir %s", c.local, r.Mailbox.Maildir)
		}
	}
	if r, err := look("bob"); err != nil || r.Mailbox.UID != 1000 || r.Mailbox.GID != 100 || r.Mailbox.Extra["userdb_quota_rule"] == "" {
		t.Errorf("bob: %+v %v", r.Mailbox, err)
	}
	n := asked.Load()
	for range 10 {
		if _, err := look("ann"); err != nil {
			t.Error(err)
		}
	}
	if asked.Load() != n {
		t.Errorf("%d more questions for the same answer", asked.Load()-n)
	}
	a.remote.now = func() time.Time { return time.Now().Add(time.Minute) }
	if _, err := look("ann"); err != nil || asked.Load() != n+1 {
		t.Errorf("an old answer was kept: %v, %d more questions", err, asked.Load()-n)
	}
	// A socket nobody serves is no answer.
	a.remote = newLookups(path + ".gone")
	if _, err := look("ann"); err == nil {
		t.Error("nobody served the socket, and there was an answer")
	}
}

// Property: an answer is taken only when it says yes, and its Maildir is absolute.
func FuzzLookup(f *testing.F) {
	for _, s := range []string{`{"found":true,"home":"/h","uid":5,"extra":{"mail":"maildir:~/M"}}`, `{"found":false}`, `{"found":null}`, "[]"} {
		f.Add([]byte(s))
	}
	addr := envelope.Address{Local: "ann", Domain: "a.test"}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseLookup(b)
		if err != nil || a == nil {
			return
		}
		if !*a.Found {
			t.Fatalf("%q", b)
		}
		if m, err := a.mailbox(addr, "/mail/%d/%u"); err == nil && (m.Maildir == "" || m.Maildir[0] != '/' || m.UID < -1 || strings.Contains(m.Maildir, "\x00")) {
			t.Fatalf("%q gives %+v", b, m)
		}
	})
}
