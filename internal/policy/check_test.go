package policy

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pennypost/internal/mailtest"
	"pennypost/internal/resolve"
)

func TestCheckState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "policy")
	check := func(want string) {
		t.Helper()
		err := CheckState(dir)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	check("")
	if err := bump(&table{path: filepath.Join(dir, "rates"), buckets: 1}, "a"); err != nil {
		t.Fatal(err)
	}
	check("")
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	check("can be written by others")
	if err := os.WriteFile(filepath.Join(dir, "greylist"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("not a state file")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check("not a directory")
}

func TestCheckZone(t *testing.T) {
	d := mailtest.StartDNS(t, `
2.0.0.127.good.test. A 127.0.0.2
empty.test. NS x.test.
*.all.test. A 127.0.0.2
*.parked.test. A 203.0.113.1
;! servfail 2.0.0.127.broken.test
`)
	dns := resolve.New(resolve.Options{Servers: []string{d.Addr()}, Timeout: 5 * time.Second, Rounds: 1})
	for zone, want := range map[string]string{
		"good.test": "", "empty.test": "does not list 127.0.0.2", "all.test": "lists everything",
		"parked.test": "which no list does", "broken.test": "no answer",
	} {
		err := Zone{Name: zone}.Check(context.Background(), dns)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", zone, err, want)
		}
	}
}

func TestCheckRecipients(t *testing.T) {
	path := filepath.Join(t.TempDir(), "recipients")
	if _, err := CheckRecipients(path); err == nil {
		t.Error("a missing file is right")
	}
	for text, want := range map[string]int{"a@b.test\n@c.test\n": 2, "what\n": -1} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err := CheckRecipients(path); (err != nil) != (want < 0) || err == nil && n != want {
			t.Errorf("%q: %d %v", text, n, err)
		}
	}
}
