package mailbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pennypost/internal/maildir"
)

// A name that has no room for flags does not keep the others from theirs.
func TestStoreLongNames(t *testing.T) {
	b := newBed(t)
	for i, n := range []int{20, 252, 250, 30} { // ":2," and no letter; two letters; the rest has room
		name := fmt.Sprintf("100000000%d.%s", i, strings.Repeat("x", n-11))
		b.must(os.MkdirAll(filepath.Join(b.root, "cur"), 0o700))
		b.must(os.WriteFile(filepath.Join(b.root, "cur", name+":2,"), []byte("m"), 0o600))
	}
	for _, d := range []string{"new", "tmp"} {
		b.must(os.MkdirAll(filepath.Join(b.root, d), 0o700))
	}
	v := b.view(b.store(), "INBOX", false)
	out, err := v.Store(t.Context(), []uint32{1, 2, 3, 4}, FlagChange{Op: Add, Flags: maildir.Seen | maildir.Flagged, Keywords: []string{"k"}})
	b.must(err)
	want(t, "changed", out.Changed, []uint32{1, 3, 4})
	want(t, "no room", out.NoRoom, []uint32{2})
	want(t, "no room for keywords", out.NoKeywords, []uint32{3})
	want(t, "expunged", len(out.Expunged), 0)
	b.sync(v)
	want(t, "flags", show(v), "1:FS+k 2: 3:FS 4:FS+k")
	out, err = v.Store(t.Context(), []uint32{3}, FlagChange{Op: Add, Keywords: []string{"k"}})
	b.must(err)
	want(t, "changed", len(out.Changed), 0)
	want(t, "no room for keywords", out.NoKeywords, []uint32{3})
}
