// Package durable makes files and names survive a power cut. It is the only place that calls
// Sync, Link and Rename: a promise ("250", exit 0) that rests on one of its functions holds
// when the function has returned nil.
//
// A failed fsync is final. The kernel reports a lost write once and then forgets it, so that
// a second fsync of the same file succeeds without the bytes being there; callers give the
// file up and answer with a deferral.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// ErrLocked is returned by Lock and TryLock when another open file holds the lock.
var ErrLocked = errors.New("locked by another process")

// SyncDir puts the names in dir on stable storage.
func SyncDir(dir string) error { return SyncDirOn(OS{}, dir) }

// SyncDirOn is SyncDir on another file system.
func SyncDirOn(fsys FS, dir string) error {
	f, err := fsys.OpenFile(dir, os.O_RDONLY|openDirectory, 0)
	if err != nil {
		return err
	}
	return errors.Join(syncDirFile(f), f.Close())
}

// Dir is a directory held open for syncing. It may be used concurrently.
type Dir struct {
	f      File
	names  func() bool // a sync of a file in it is one of the file's newest name; asked at the first Commit
	run    sync.Mutex  // held during an fsync
	mu     sync.Mutex  // guards what follows
	next   *round
	coming int       // Commits that have yet to ask for their fsync
	met    time.Time // when two Commits were last under way at once
}

// round is one fsync shared by all who asked for it before it began.
type round struct {
	done chan struct{}
	err  error
	want int           // Commits the round waits for; under Dir.mu
	full chan struct{} // closed when they are there
}

// company is how long a round waits for Commits whose files are being synced already. They
// mostly end together, as the journal commits them together, and each one that misses the
// round costs one more commit for all.
const company = 2 * time.Millisecond

// lately is how long a Dir remembers that there was company: more is on its way.
const lately = 50 * company

// OpenDir opens a directory for syncing.
func OpenDir(path string) (*Dir, error) { return OpenDirOn(OS{}, path) }

// OpenDirOn is OpenDir on another file system.
func OpenDirOn(fsys FS, path string) (*Dir, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY|openDirectory, 0)
	if err != nil {
		return nil, err
	}
	return &Dir{f: f, names: sync.OnceValue(func() bool { return NamesWithFile(fsys, path) })}, nil
}

// Sync puts all names that were made in the directory before the call on stable storage.
// Concurrent callers share one fsync: whoever arrives while one runs waits for the next,
// because the running one may have passed over their name already.
func (d *Dir) Sync() error { return d.sync(0) }

// Commit puts a file and its name in the directory on stable storage; name gives the file its
// name (nil: it has one), and is called when the name may be durable without anything else
// being lost: the bytes are on their way before it. After an error of name nothing more is
// synced.
//
// It syncs the file, and after name the directory, together with other Commits under way. Where
// the file system commits a name with its file (NamesWithFile), the file's sync is enough for a
// file that has its name; one that gets it is written out, named and synced if no other Commit
// is or lately was under way, and one flush of the device then does for both. With company the
// directory's sync, shared by all, is cheaper than writing each file out and waiting twice.
func (d *Dir) Commit(f File, name func() error) error {
	if name == nil && d.names() {
		return syncFile(f)
	}
	d.mu.Lock()
	d.coming++
	if d.coming > 1 || d.next != nil {
		d.met = time.Now()
	}
	alone := time.Since(d.met) > lately
	d.mu.Unlock()
	var err error
	if alone && d.names() {
		err = commitAlone(f, name)
	} else {
		alone = false
		err = syncFile(f)
		if err == nil && name != nil {
			err = name()
		}
	}
	if err != nil || alone {
		d.mu.Lock()
		d.coming--
		d.next.arrived()
		d.mu.Unlock()
		return err
	}
	return d.sync(1)
}

// commitAlone makes a file and its new name durable by one sync. The bytes are written out
// before the name is made: a journal that commits the name flushes the device first, so that
// no power cut leaves the name of a file whose bytes are missing.
func commitAlone(f File, name func() error) error {
	if err := writeOut(f); err != nil {
		return err
	}
	if err := name(); err != nil {
		return err
	}
	return syncFile(f)
}

// sync asks for an fsync as one of the Commits that are awaited, or (0) as somebody else.
func (d *Dir) sync(commits int) error {
	d.mu.Lock()
	d.coming -= commits
	r := d.next
	if r != nil {
		if commits > 0 {
			r.arrived()
		}
		d.mu.Unlock()
		<-r.done
		return r.err
	}
	r = &round{done: make(chan struct{}), want: d.coming, full: make(chan struct{})}
	d.next = r
	alone := r.want == 0
	d.mu.Unlock()
	if !alone {
		t := time.NewTimer(company)
		select {
		case <-r.full:
		case <-t.C:
		}
		t.Stop()
	}
	d.run.Lock()
	d.mu.Lock()
	d.next = nil // callers from here on belong to the next round
	d.mu.Unlock()
	r.err = syncDirFile(d.f)
	d.run.Unlock()
	close(r.done)
	return r.err
}

// arrived counts one Commit that the round need not wait for any more. Dir.mu is held.
func (r *round) arrived() {
	if r == nil || r.want == 0 {
		return
	}
	if r.want--; r.want == 0 {
		close(r.full)
	}
}

// Close closes the directory. No Sync may be running.
func (d *Dir) Close() error { return d.f.Close() }

// Sync puts the bytes of an open file on stable storage. After an error the file must be
// given up.
func Sync(f File) error { return syncFile(f) }

// Publish copies r to tmp and gives it the name dst, which must not exist. When it returns
// nil, bytes and name are on stable storage.
func Publish(tmp, dst string, r io.Reader) error { return PublishOn(OS{}, tmp, dst, r) }

// PublishOn is Publish on another file system.
func PublishOn(fsys FS, tmp, dst string, r io.Reader) error {
	f, err := fsys.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	// Ignored: dst holds the message by then, and the sweeper takes old tmp names.
	// Failing here would make the sender retry a message that is already queued.
	defer func() { _ = fsys.Remove(tmp) }()
	_, err = io.Copy(f, r)
	if err == nil {
		err = syncFile(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := LinkOn(fsys, tmp, dst); err != nil { // Rename would replace a colliding name
		return err
	}
	return SyncDirOn(fsys, filepath.Dir(dst))
}

// Link gives oldname a second name, which must not exist. The name is durable after a sync
// of its directory.
func Link(oldname, newname string) error { return LinkOn(OS{}, oldname, newname) }

// LinkOn is Link on another file system.
func LinkOn(fsys FS, oldname, newname string) error {
	err := fsys.Link(oldname, newname)
	if err == nil {
		return nil
	}
	// Over NFS the answer to a successful link may be lost and the repeated call then says
	// that the name exists. Two links on a file that only we know say that it was ours.
	if a, e := fsys.Lstat(oldname); e == nil && nlink(a) == 2 {
		if b, e := fsys.Lstat(newname); e == nil && sameFile(a, b) {
			return nil
		}
	}
	return err
}

// Rename renames, replacing newname. The change is durable after a sync of both directories.
func Rename(oldname, newname string) error { return os.Rename(oldname, newname) }

// RenameNew renames and fails with fs.ErrExist when newname is there already.
func RenameNew(oldname, newname string) error { return renameNew(oldname, newname) }

// RenameSync renames, replacing newname, and makes the change durable: the new name first,
// then the absence of the old one.
func RenameSync(oldname, newname string) error { return RenameSyncOn(OS{}, oldname, newname) }

// RenameSyncOn is RenameSync on another file system.
func RenameSyncOn(fsys FS, oldname, newname string) error {
	if err := fsys.Rename(oldname, newname); err != nil {
		return err
	}
	to, from := filepath.Dir(newname), filepath.Dir(oldname)
	if err := SyncDirOn(fsys, to); err != nil || from == to {
		return err
	}
	return SyncDirOn(fsys, from)
}

// WriteFile replaces the file at path by data, or makes it: whoever opens path finds the old
// bytes or the new ones, also after a power cut, and the new ones once WriteFile has returned
// nil. Two writers of one path must exclude each other by a lock.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return WriteFileOn(OS{}, path, data, perm)
}

// WriteFileOn is WriteFile on another file system.
func WriteFileOn(fsys FS, path string, data []byte, perm fs.FileMode) error {
	tmp := path + ".new"
	f, err := fsys.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = syncFile(f)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = fsys.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, fsys.Remove(tmp))
	}
	return SyncDirOn(fsys, filepath.Dir(path))
}

// MkdirAll makes a directory and its missing parents and syncs the parent of each one made.
func MkdirAll(path string, perm fs.FileMode) error { return MkdirAllOn(OS{}, path, perm) }

// MkdirAllOn is MkdirAll on another file system.
func MkdirAllOn(fsys FS, path string, perm fs.FileMode) error {
	err := fsys.Mkdir(path, perm)
	parent := filepath.Dir(path)
	switch {
	case errors.Is(err, fs.ErrExist):
		info, err := fsys.Lstat(path)
		if err == nil && !info.IsDir() && info.Mode()&fs.ModeSymlink == 0 {
			return &fs.PathError{Op: "mkdir", Path: path, Err: errors.New("exists and is not a directory")}
		}
		return err
	case errors.Is(err, fs.ErrNotExist) && parent != path:
		if err := MkdirAllOn(fsys, parent, perm); err != nil {
			return err
		}
		err = fsys.Mkdir(path, perm)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case err != nil:
		return err
	}
	return SyncDirOn(fsys, parent)
}

// FileLock is a lock held on a file of its own.
type FileLock struct{ f *os.File }

// Lock makes the file at path if needed and locks it against other opens, in this process or
// another. With try it returns ErrLocked instead of waiting. The kernel drops the lock with
// the process; the file stays, since removing it would let two holders in.
func Lock(path string, try bool) (*FileLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockFile(f.Fd(), false, try); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return &FileLock{f: f}, nil
}

// File is the locked file, for a holder who writes his name into it.
func (l *FileLock) File() *os.File { return l.f }

// Close releases the lock.
func (l *FileLock) Close() error { return l.f.Close() }

// TryLock locks an open file until it is closed; shared asks for a reader's lock. It returns
// ErrLocked when another open file has a lock that excludes it. A file that is not the
// operating system's has no locks.
func TryLock(f File, shared bool) error { return lockOpen(f, shared, true) }

// WaitLock is TryLock that waits.
func WaitLock(f File, shared bool) error { return lockOpen(f, shared, false) }

func lockOpen(f File, shared, try bool) error {
	o, ok := f.(interface{ Fd() uintptr })
	if !ok {
		return nil
	}
	return lockFile(o.Fd(), shared, try)
}

// Unlock drops the lock of an open file before it is closed.
func Unlock(f File) error {
	o, ok := f.(interface{ Fd() uintptr })
	if !ok {
		return nil
	}
	return unlockFile(o.Fd())
}
