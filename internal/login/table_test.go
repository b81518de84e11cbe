package login

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTable: a table is read when it changes, and a broken or unsafe one is an error and no
// empty table.
func TestTable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "certificates")
	table := NewCertificates(path, "home.test")
	for _, c := range []struct {
		text, want string
		mode       os.FileMode
	}{
		{"# whose\n\nAnn: cn:Ann A., cn:Ann: B\nbob@far.test: cn:Bob\n", "ann@home.test [cn:Ann A. cn:Ann: B] bob@far.test [cn:Bob]", 0o600},
		{"ann cn:Ann\n", "", 0o600},
		{"ann: Ann\n", "", 0o600},
		{"ann: sha256:00\n", "", 0o600},
		{"@: cn:Ann\n", "", 0o600},
		{"ann: cn:Ann\n", "ann@home.test [cn:Ann]", 0o600},
		{"bob: cn:Bob\n", "", 0o666},
		{"", "", 0o600},
	} {
		if err := errors.Join(os.WriteFile(path+".new", []byte(c.text), 0o600), os.Chmod(path+".new", c.mode), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
		table.mu.Lock()
		table.looked = time.Time{}
		table.mu.Unlock()
		rows, err := table.Rows()
		var got []string
		for _, r := range rows {
			got = append(got, r.User+" ["+strings.Join(r.Items, " ")+"]")
		}
		if err == nil && strings.Join(got, " ") != c.want || (err == nil) != (c.want != "" || c.text == "") || (table.Check() == nil) != (err == nil) {
			t.Errorf("%q: %q %v", c.text, got, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	table.mu.Lock()
	table.looked = time.Time{}
	table.mu.Unlock()
	if _, err := table.Having(func(string) bool { return true }); err == nil {
		t.Error("a table that is gone")
	}
	var none *Table
	if u, err := none.Having(func(string) bool { return true }); len(u) > 0 || err != nil {
		t.Errorf("no table: %q %v", u, err)
	}
}

func FuzzTable(f *testing.F) {
	f.Add("ann: cn:Boss\n# x\n")
	f.Add("ann@x.test: sha256:" + strings.Repeat("ab:", 31) + "ab, cn:Ann\n")
	f.Fuzz(func(t *testing.T, text string) {
		table := NewCertificates("x", "home.test")
		rows, err := table.parse(text)
		if err != nil {
			return
		}
		var b strings.Builder
		for _, r := range rows {
			if r.User == "" || len(r.Items) == 0 {
				t.Fatalf("%q: row %+v", text, r)
			}
			b.WriteString(r.User + ": " + strings.Join(r.Items, ", ") + "\n")
		}
		again, err := table.parse(b.String())
		if err != nil || len(again) != len(rows) {
			t.Fatalf("%q: printed as %q it is %v (%v)", text, b.String(), again, err)
		}
	})
}
