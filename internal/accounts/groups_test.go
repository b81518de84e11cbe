package accounts

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Groups of a user are those of the file and those getent knows, without root's; where getent
// fails there are fewer.
func TestGroups(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	group := write("group", "root:x:0:ann\nwheel:x:10:bob, ann\n+nis::20:ann\nbroken\nstaff:x:x:ann\nclub:x:30:ann,ann\nown:x:1001:ann\nhuge:x:99999999999:ann\n")
	getent := write("getent", `#!/bin/sh
case "$1 $2" in
"initgroups ann") echo "ann    40 10 x -5 0" ;;
"initgroups bob") echo "ann    50" ;;
*) echo ann 60; exit 1 ;;
esac
`)
	for _, c := range []struct {
		name, getent string
		want         []int
	}{
		{"ann", "", []int{1001, 10, 30}},
		{"ann", getent, []int{1001, 10, 30, 40}},
		{"bob", getent, []int{1001, 10}}, // the answer is for another
		{"carol", getent, []int{1001}},
		{"-x", getent, []int{1001}},
		{"ann", filepath.Join(dir, "missing"), []int{1001, 10, 30}},
	} {
		a, err := Open(Options{Domains: []string{"a.test"}, System: true, Group: group, Getent: c.getent})
		if err != nil {
			t.Fatal(err)
		}
		got, err := a.Groups(t.Context(), c.name, 1001)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s, %q: %v %v, want %v", c.name, c.getent, got, err, c.want)
		}
	}
	a, err := Open(Options{Domains: []string{"a.test"}, Group: filepath.Join(dir, "missing")})
	if err != nil {
		t.Fatal(err)
	}
	if g, err := a.Groups(t.Context(), "ann", 1); err == nil {
		t.Errorf("without the file: %v", g)
	}
}
