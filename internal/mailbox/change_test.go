package mailbox

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pennypost/internal/maildir"
)

// TestRenamedMeanwhile renames a file between our look at the folder and our own rename: what the
// other program has done stays, beside what we do.
func TestRenamedMeanwhile(t *testing.T) {
	t.Parallel()
	const all = maildir.Draft | maildir.Flagged | maildir.Replied | maildir.Seen
	for _, c := range []struct {
		name        string
		was         maildir.Flags
		theirs      string // what they make of it, below the Maildir, with % for the base name
		ch          FlagChange
		want        string
		wantRemoved bool
	}{
		{"they add", maildir.Seen, "cur/%:2,DRSb", FlagChange{Op: Add, Flags: maildir.Flagged}, "%:2,DFRSb", false},
		{"they add the same", 0, "cur/%:2,F", FlagChange{Op: Add, Flags: maildir.Flagged}, "%:2,F", false},
		{"they remove", all, "cur/%:2,S", FlagChange{Op: Add, Flags: maildir.Trashed}, "%:2,ST", false},
		{"they add, we remove", maildir.Seen, "cur/%:2,DRS", FlagChange{Op: Remove, Flags: maildir.Seen}, "%:2,DR", false},
		{"we set all", maildir.Seen, "cur/%:2,DPRSb", FlagChange{Op: Set, Flags: maildir.Flagged}, "%:2,FP", false},
		{"back to new/", maildir.Seen, "new/%:2,F", FlagChange{Op: Add, Flags: maildir.Draft}, "%:2,DF", false},
		{"letters nobody knows", maildir.Seen, "cur/%:2,DSXz,more", FlagChange{Op: Add, Flags: maildir.Flagged}, "%:2,DFSXz,more", false},
		{"they expunge", maildir.Seen, "", FlagChange{Op: Add, Flags: maildir.Flagged}, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			v := b.view(b.store(), "INBOX", false)
			uid := b.append(v.m, "Subject: x\n\nx\n", c.was)
			var done []uint32
			b.must(v.m.write(t.Context(), func(w *writer) error {
				e := w.st.edit()
				todo := w.plan([]uint32{uid}, c.ch, 0, &Stored{})
				d, err := w.openFolder()
				if err != nil {
					return err
				}
				defer d.close()
				old := b.files("cur")[0]
				base := maildir.ParseName(old).Base
				path := func(s string) string { return filepath.Join(b.root, strings.ReplaceAll(s, "%", base)) }
				if c.theirs == "" {
					b.must(os.Remove(path("cur/" + old)))
				} else {
					b.must(os.Rename(path("cur/"+old), path(c.theirs)))
				}
				if done, err = d.rename(t.Context(), e, todo); err != nil {
					return err
				}
				if got, want := b.files("cur"), strings.ReplaceAll(c.want, "%", base); c.want != "" && !slices.Equal(got, []string{want}) {
					t.Errorf("cur/ has %q, want %q", got, want)
				}
				return d.finish(e)
			}))
			if removed := len(done) == 0; removed != c.wantRemoved {
				t.Errorf("changed: %v", done)
			}
		})
	}
}
