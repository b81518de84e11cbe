package transfer

import (
	"os"
	"slices"
	"testing"

	"pennypost/internal/maildir"
)

// A message that cannot be read is named, and its copy from before is not removed.
func TestExportUnreadable(t *testing.T) {
	dir := t.TempDir()
	const name = "/cur/1000000002.M1P1.h:2,"
	write(t, dir+"/md/cur/1000000001.M1P1.h:2,", "Subject: 1\n\n")
	write(t, dir+"/copy/cur/1000000002.M1P1.h:2,", "Subject: 2\n\n")
	write(t, dir+"/copy/"+maildir.UIDListName, "3 V7 N3 G0123456789abcdef0123456789abcdef\n2 :1000000002.M1P1.h\n")
	write(t, dir+"/md/"+maildir.UIDListName, "3 V7 N3 G0123456789abcdef0123456789abcdef\n1 :1000000001.M1P1.h\n2 :1000000002.M1P1.h\n")
	if err := os.Symlink("1000000002.M1P1.h:2,", dir+"/md"+name); err != nil {
		t.Fatal(err)
	}
	var results []Result
	o := Options{Prune: true, Report: inbox(&results)}
	if err := ToMaildir(ctx, store(t, dir+"/md", nil), maildir.Tree{Root: dir + "/copy"}, o); err != nil {
		t.Fatal(err)
	}
	if r := results[0]; r.New != 1 || r.Removed != 0 || !slices.Equal(r.Lost, []string{"message with UID 2, which cannot be read"}) {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(dir + "/copy" + name); err != nil {
		t.Error(err)
	}
}
