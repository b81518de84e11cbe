package mailbox

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pennypost/internal/durable"
)

// apart is a file system on which the directory away, below the root, is another device.
type apart struct {
	durable.OS
	away string
}

func (a apart) Rename(from, to string) error {
	if strings.HasPrefix(from, a.away) != strings.HasPrefix(to, a.away) {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.EXDEV}
	}
	return a.OS.Rename(from, to)
}

// A folder that is deleted and made again has a higher UIDVALIDITY, wherever its control files
// and its index are, and also when the machine stopped between its messages and these.
func TestFolderMadeAgain(t *testing.T) {
	t.Parallel()
	for _, plain := range []bool{false, true} {
		for _, cut := range []bool{false, true} {
			b := newBed(t)
			away := t.TempDir()
			b.o.Control, b.o.Index = filepath.Join(away, "control"), filepath.Join(away, "index")
			b.o.FS, b.o.FSLayout = apart{away: away}, plain
			for _, d := range []string{b.o.Control, b.o.Index} {
				b.must(os.MkdirAll(d, 0o700))
			}
			s := b.store()
			b.must(s.Create(t.Context(), "A"))
			b.must(s.Create(t.Context(), "A/B"))
			m := b.mailbox(s, "A")
			b.append(m, "one", 0, "k")
			b.append(b.mailbox(s, "A/B"), "below", 0)
			was, err := s.Status(t.Context(), "A")
			b.must(err)
			if cut {
				b.must(os.RemoveAll(filepath.Join(m.dir, "cur")))
			} else {
				b.must(s.Delete(t.Context(), "A"))
				for _, d := range []string{m.control, m.indexAt} {
					_ = filepath.WalkDir(d, func(p string, e fs.DirEntry, err error) error {
						if err == nil && !e.IsDir() && filepath.Dir(p) == d {
							t.Errorf("%v: %s stays", plain, p)
						}
						return nil
					})
				}
			}
			s = b.store()
			b.must(s.Create(t.Context(), "A"))
			is, err := s.Status(t.Context(), "A")
			b.must(err)
			if is.UIDValidity <= was.UIDValidity || is.Messages != 0 {
				t.Errorf("plain %v, cut %v: UIDVALIDITY %d after %d, %d messages", plain, cut, is.UIDValidity, was.UIDValidity, is.Messages)
			}
			if v := b.view(s, "A/B", false); v.Len() != 1 || v.At(1).UID != 1 {
				t.Errorf("plain %v, cut %v: the folder below has %d messages", plain, cut, v.Len())
			}
		}
	}
}
