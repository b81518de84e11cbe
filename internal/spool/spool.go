package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pennypost/internal/durable"
)

var (
	// ErrNoSpool says that there is no spool at the directory given.
	ErrNoSpool = errors.New("no spool here")
	// ErrFull says that accepting a message would eat into the reserve of free space.
	ErrFull = errors.New("not enough free space")
	// ErrExists says that a message with the given id is in the spool, complete and durable.
	ErrExists = errors.New("a message with this id is in the spool")
	// ErrLocked says that another scheduler serves the spool.
	ErrLocked = durable.ErrLocked
	// ErrBusy says that the writer of a message has not finished.
	ErrBusy = errors.New("still being written")
)

// Names below the spool directory.
const (
	dirIncoming = "incoming"
	dirQueue    = "queue"
	dirLog      = "log"
	dirHistory  = "history"
	dirCorrupt  = "corrupt"

	fileLock     = "lock"
	fileWake     = "wake"
	fileControl  = "control"
	fileDue      = "due"
	fileSnapshot = "snapshot"
	fileJournal  = "journal"
	fileFormat   = "format"
)

// formatLine is what the file "format" holds.
const formatLine = "pennypost-spool 1\n"

// Options say how a spool is used. The zero value is usable.
type Options struct {
	Now        func() time.Time // nil: time.Now
	FreeSpace  int64            // octets that Create leaves free on the file system
	FreeInodes int64
	// Trusted tells of a submitter, neither root nor ourselves, whether his word about a message's
	// origin counts; nil: nobody's does.
	Trusted func(uid uint32) bool
	FS      durable.FS // nil: the operating system's
}

// Spool is the submitter's view of a spool. It may be used concurrently.
type Spool struct {
	dir    string
	o      Options
	fsys   durable.FS
	in     *durable.Dir // nil: a submitter who may not open incoming/
	shared bool         // incoming/ is written by a group
	euid   uint32
	wake   waker
	lastMS atomic.Int64
	bufs   sync.Pool
	// change is held while a name is made in incoming/. The kernel lets one do that at a time
	// anyway; threads that wait for it there spin.
	change sync.Mutex
}

// Init makes the directories of a spool for one user. It is idempotent.
func Init(dir string) error { return InitOn(durable.OS{}, dir, -1) }

// InitGroup makes the directories of a spool into which the members of a group may put
// messages; only the owner sees them.
func InitGroup(dir string, gid int) error { return InitOn(durable.OS{}, dir, gid) }

// InitOn is InitGroup on another file system; gid -1 means one user.
func InitOn(fsys durable.FS, dir string, gid int) error {
	top, in := fs.FileMode(0o700), fs.FileMode(0o700)
	if gid >= 0 {
		// The set-group-ID bit hands the group on to the sockets and message files made inside.
		top, in = 0o711|fs.ModeSetgid, 0o730|fs.ModeSetgid|fs.ModeSticky
	}
	for _, d := range []struct {
		name string
		mode fs.FileMode
	}{
		{"", top}, {dirIncoming, in}, {dirQueue, 0o700}, {dirLog, 0o700}, {dirHistory, 0o750}, {dirCorrupt, 0o700},
	} {
		path := filepath.Join(dir, d.name)
		if err := durable.MkdirAllOn(fsys, path, 0o700); err != nil {
			return err
		}
		if err := setMode(fsys, path, d.mode, gid); err != nil {
			return err
		}
	}
	path := filepath.Join(dir, fileFormat)
	if _, err := fsys.Lstat(path); err == nil {
		return nil
	}
	return durable.WriteFileOn(fsys, path, []byte(formatLine), 0o644)
}

// setMode gives a directory its group and bits when they differ.
func setMode(fsys durable.FS, path string, mode fs.FileMode, gid int) error {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && gid >= 0 && int(st.Gid) != gid {
		if err := os.Chown(path, -1, gid); err != nil {
			return err
		}
	} else if info.Mode()&(fs.ModePerm|fs.ModeSetgid|fs.ModeSticky) == mode {
		return nil
	}
	return f.Chmod(mode)
}

// Open opens a spool for handing in messages.
func Open(dir string, o Options) (*Spool, error) {
	s := &Spool{dir: dir, o: o, fsys: o.FS, euid: uint32(os.Geteuid())}
	if s.fsys == nil {
		s.fsys = durable.OS{}
	}
	if s.o.Now == nil {
		s.o.Now = time.Now
	}
	s.wake.dir = dir
	s.bufs.New = func() any { return new([]byte) }
	in := filepath.Join(dir, dirIncoming)
	var err error
	s.in, err = durable.OpenDirOn(s.fsys, in)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: %w (mqueue init makes one)", dir, ErrNoSpool)
	case errors.Is(err, fs.ErrPermission):
		if err := s.openBlind(in); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	info, err := s.fsys.Lstat(in)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.shared = info.Mode()&0o020 != 0
	return s, nil
}

// openBlind accepts a directory that we may write to but not open, and so not sync: the file
// system must commit a new file's name when the file is synced.
func (s *Spool) openBlind(in string) error {
	space, err := s.fsys.Free(in)
	if err != nil {
		return err
	}
	kind := space.Type
	if kind == "ext4" {
		if on, _ := durable.FastCommit(in); on {
			kind, space.NamesWithFile = "ext4 with fast_commit", false
		}
	}
	if !space.NamesWithFile {
		return fmt.Errorf("%s: this user may not open the directory, and on %s a name is only safe after syncing it: "+
			"put the spool on ext4 (without fast_commit), xfs, btrfs or f2fs, or hand in through the submission socket", in, kind)
	}
	return nil
}

// Dir is the spool's directory.
func (s *Spool) Dir() string { return s.dir }

// Close releases what Open took. No Writer may be in use.
func (s *Spool) Close() error {
	err := s.wake.close()
	if s.in != nil {
		err = errors.Join(err, s.in.Close())
	}
	return err
}

// syncIncoming makes the names in incoming/ durable. A submitter who may not open the
// directory has done so by syncing the file (openBlind).
func (s *Spool) syncIncoming() error {
	if s.in == nil {
		return nil
	}
	return s.in.Sync()
}

// commit makes a finished file of incoming/ and its name durable: by the sync of the file, and
// where that is not enough for the name, one of the directory.
func (s *Spool) commit(f durable.File) error {
	if s.in == nil {
		return durable.Sync(f)
	}
	return s.in.Commit(f, nil)
}

// newID makes an id that sorts behind all that this process made, also when the clock has
// been set back.
func (s *Spool) newID(now time.Time) string {
	ms := now.UnixMilli()
	for {
		last := s.lastMS.Load()
		if ms < last {
			return NewID(time.UnixMilli(last))
		}
		if ms == last || s.lastMS.CompareAndSwap(last, ms) {
			return NewID(now)
		}
	}
}

func (s *Spool) path(dir, name string) string { return filepath.Join(s.dir, dir, name) }
