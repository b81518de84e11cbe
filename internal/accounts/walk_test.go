package accounts

import (
	"fmt"
	"strings"
	"testing"
)

func TestAliasFaults(t *testing.T) {
	dir := t.TempDir()
	list := put(t, dir, "list", "eve@far.test\nround\n")
	users := put(t, dir, "users", "ann@x.test::::::\n")
	aliases := put(t, dir, "aliases", fmt.Sprintf(`ann: ann, bob@far.test
one: two
two: three@x.test, bob@far.test
three: one
self: self
good: :include:%s
round: good
lost: ann, :include:%s/none
far: one@far.test
`, list, dir))
	a, err := Open(Options{Domains: []string{"x.test"}, Users: users, Aliases: []string{aliases}, Maildirs: dir + "/%u"})
	if err != nil {
		t.Fatal(err)
	}
	faults, err := a.AliasFaults(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range faults {
		got = append(got, f.Alias+": "+f.What)
	}
	want := []string{
		"good: leads back to itself (good -> round -> good): its mail is returned",
		"lost: :include:" + dir + "/none cannot be read: its mail is deferred",
		"one: leads back to itself (one -> two -> three -> one): its mail is returned",
		"self: leads back to itself (self -> self): its mail is returned",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
