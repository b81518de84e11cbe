package transfer

import (
	"errors"
	"os"
	"testing"

	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
	"pennypost/internal/mailtest"
)

// An import whose process is killed after any of its operations, with the machine going on, brings
// every message once when it is done again. What a power cut takes away is there after a kill: the
// new file of a message that has no line in the uidlist yet.
func TestImportKilled(t *testing.T) {
	src := newFake(3)
	run := func(fsys *mailtest.CrashFS) error {
		s, err := mailbox.Open("/md", mailbox.Options{Create: true, FS: fsys, Boot: 1})
		if err != nil {
			return err
		}
		src.sent = 0
		return errors.Join(Import(ctx, s, "/md/"+MemoryName, src, Options{FS: fsys}), s.Close())
	}
	whole := mailtest.NewCrashFS()
	if err := run(whole); err != nil {
		t.Fatal(err)
	}
	for stop := 1; stop < whole.Ops(); stop++ {
		fsys := mailtest.NewCrashFS()
		fsys.StopAfter(stop)
		if err := run(fsys); err == nil {
			t.Fatalf("stop %d of %d: nothing was noticed", stop, whole.Ops())
		}
		fsys = fsys.Reboot(nil)
		for _, dir := range []string{"/md", "/md/.Old.2020"} { // its holder lives on in this test
			if err := fsys.Remove(dir + "/" + maildir.UIDListName + ".lock"); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
		if err := run(fsys); err != nil {
			t.Fatalf("stop %d of %d, again: %v", stop, whole.Ops(), err)
		}
		s := store(t, "/md", fsys)
		if in, old := subjects(t, s, "INBOX"), subjects(t, s, "Old/2020"); len(in) != 3 || len(old) != 1 {
			t.Fatalf("stop %d of %d: %q %q", stop, whole.Ops(), in, old)
		}
	}
}
