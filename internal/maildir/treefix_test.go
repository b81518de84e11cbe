package maildir

import (
	"path/filepath"
	"testing"

	"pennypost/internal/durable"
)

func TestTreeRepair(t *testing.T) {
	for _, c := range []struct {
		tree          Tree
		rel, from, to string
		there         []string
	}{
		{Tree{}, ".Größe", ".Größe", ".Gr&APYA3w-e", nil},
		{Tree{}, ".Größe", ".Größe", ".Gr&APYA3w-e-2", []string{".Gr&APYA3w-e"}},
		{Tree{}, ".a..b", ".a..b", ".a._.b", nil},
		{Tree{}, ".a.", ".a.", ".a._", nil},
		{Tree{}, ".inbox", ".inbox", ".inbox-2", nil},
		{Tree{}, ".Tom & Jerry", ".Tom & Jerry", ".Tom &- Jerry", nil},
		{Tree{}, ".x\xff\n", ".x\xff\n", ".x__", nil},
		{Tree{}, ".&AC4-", ".&AC4-", ".&-AC4-", nil},
		{Tree{UTF8: true}, ".x\xff", ".x\xff", ".x_", nil},
		{Tree{Layout: LayoutFS}, "a/Größe/b", "a/Größe", "a/Gr&APYA3w-e", nil},
		{Tree{Layout: LayoutFS}, "dovecot-x/y", "dovecot-x", "_dovecot-x", nil},
	} {
		c.tree.Root = t.TempDir()
		for _, d := range c.there {
			mkdirs(t, filepath.Join(c.tree.Root, d))
		}
		from, to, ok := c.tree.Repair(durable.OS{}, c.rel)
		if !ok || from != c.from || to != c.to {
			t.Errorf("%q: %q %q %v", c.rel, from, to, ok)
		}
		if _, good := c.tree.Name(to); !good {
			t.Errorf("%q is no better than %q", to, c.rel)
		}
	}
}
