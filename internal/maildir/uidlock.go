package maildir

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pennypost/internal/durable"
)

// ErrLockLost is returned when somebody took the lock of a uidlist for abandoned and removed it.
var ErrLockLost = errors.New("the lock of the uidlist was taken away")

const (
	// lockStale is how long a lock whose holder nobody can ask about is respected. Dovecot's time.
	lockStale = 120 * time.Second
	// lockLook is how long such a lock must stay the same before our eyes even when its time is
	// long past: the clock that stamped it may be another host's.
	lockLook = 2 * time.Second
	// lockTouch is the age at which Touch says that the holder is alive.
	lockTouch = 10 * time.Second
	lockPause = 50 * time.Millisecond
)

// LockOptions says who takes the lock of a uidlist. The zero value works.
type LockOptions struct {
	Host string           // as Dovecot on this host writes it: gethostname(3), the default
	Now  func() time.Time // default time.Now
}

func (o LockOptions) filled() LockOptions {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Host == "" {
		o.Host, _ = os.Hostname() // without a name nobody can be asked whether its process lives
	}
	return o
}

// UIDLock is dovecot-uidlist.lock, which excludes other writers of the uidlist and the keywords,
// Dovecot's among them, on every host that sees the folder. It is for one goroutine.
type UIDLock struct {
	fsys    durable.FS
	path    string
	f       durable.File
	info    fs.FileInfo
	content []byte
	now     func() time.Time
	touched time.Time
}

// LockUIDList takes the lock in dir, where the uidlist is, and waits for it until ctx ends. A
// lock whose holder is dead is overridden.
func LockUIDList(ctx context.Context, fsys durable.FS, dir string, o LockOptions) (*UIDLock, error) {
	o = o.filled()
	l := &UIDLock{
		fsys: fsys, path: filepath.Join(dir, UIDListName+".lock"), now: o.Now,
		content: []byte(strconv.Itoa(os.Getpid()) + ":" + o.Host),
	}
	var seen lockSight
	pause := time.Millisecond
	for {
		err := l.try()
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("lock uidlist: %w", err)
		}
		if dead := l.look(&seen, o); dead {
			if err := l.override(seen); err != nil {
				return nil, fmt.Errorf("override the lock of a uidlist: %w", err)
			}
			seen = lockSight{}
			continue
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("lock uidlist: %s is held by %q: %w", l.path, seen.holder, ctx.Err())
		case <-t.C:
		}
		pause = min(2*pause, lockPause)
	}
}

// try makes the lock file. It gets its name when its content is there: a process killed between
// the two would leave a lock whose holder nobody can ask about.
func (l *UIDLock) try() error {
	if _, err := l.fsys.Lstat(l.path); err == nil {
		return fs.ErrExist
	}
	tmp := l.path + "." + strconv.Itoa(os.Getpid()) + "." + strings.ToLower(rand.Text())[:8]
	f, err := l.fsys.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(l.content)
	var info fs.FileInfo
	if err == nil {
		info, err = f.Stat()
	}
	if err == nil {
		err = l.fsys.RenameNew(tmp, l.path)
	}
	if err != nil {
		// ErrExist stays recognisable; what could not be removed harms nobody.
		_ = l.fsys.Remove(tmp)
		return errors.Join(err, f.Close())
	}
	l.f, l.info, l.touched = f, info, l.now()
	return nil
}

// lockSight is somebody else's lock as it was seen.
type lockSight struct {
	info   fs.FileInfo
	holder string
	since  time.Time // when it was seen like this first
}

func (s *lockSight) same(info fs.FileInfo) bool {
	return s.info != nil && durable.SameFile(s.info, info) && s.info.ModTime().Equal(info.ModTime())
}

// look tells whether the lock may be overridden.
func (l *UIDLock) look(seen *lockSight, o LockOptions) bool {
	info, err := l.fsys.Lstat(l.path)
	if err != nil {
		return false // gone, or nothing can be said
	}
	now := o.Now()
	if !seen.same(info) {
		*seen = lockSight{info: info, since: now}
	}
	if seen.holder == "" { // it may be written in the tick in which the file was made
		seen.holder = readHolder(l.fsys, l.path)
	}
	if pid, host, ok := strings.Cut(seen.holder, ":"); ok && o.Host != "" && host == o.Host {
		if n, err := strconv.Atoi(pid); err == nil && n > 0 && syscall.Kill(n, 0) == syscall.ESRCH {
			return true
		}
	}
	watched := now.Sub(seen.since)
	if info.Size() == 0 && seen.holder == "" && watched >= lockLook {
		return true // killed before it could say who it is, which takes no time
	}
	return watched >= lockStale || watched >= lockLook && now.Sub(info.ModTime()) >= lockStale
}

// readHolder reads who holds a lock; "" when it cannot be read or is not written yet.
func readHolder(fsys durable.FS, path string) string {
	f, err := fsys.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 512))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// override removes a lock that was judged dead, and only that one: by a rename, so that a lock
// which somebody faster put in its place can be put back.
func (l *UIDLock) override(dead lockSight) error {
	aside := l.path + "." + strconv.Itoa(os.Getpid()) + "." + strconv.FormatInt(l.now().UnixNano(), 36)
	err := l.fsys.Rename(l.path, aside)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := l.fsys.Lstat(aside)
	if err == nil && !dead.same(info) {
		err = l.fsys.RenameNew(aside, l.path)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	if rerr := l.fsys.Remove(aside); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil // two have taken the place of the dead one; the one put aside finds out in Held
	}
	return err
}

// Held returns ErrLockLost when the lock is not ours any more. Ask right before a rename that
// rests on it.
func (l *UIDLock) Held() error {
	info, err := l.fsys.Lstat(l.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !durable.SameFile(info, l.info) {
		return ErrLockLost
	}
	return err
}

// Touch says that the holder is alive; call it now and then in long work. It costs nothing when
// called too often.
func (l *UIDLock) Touch() error {
	now := l.now()
	if now.Sub(l.touched) < lockTouch {
		return nil
	}
	l.touched = now
	_, err := l.f.WriteAt(l.content, 0)
	return err
}

// Unlock gives the lock back. ErrLockLost says that somebody took it away before.
func (l *UIDLock) Unlock() error {
	err := l.Held()
	if err == nil {
		err = l.fsys.Remove(l.path)
	}
	return errors.Join(err, l.f.Close())
}

// StaleLock tells whether the lock of the uidlist in dir was left behind: its holder has ended,
// or nobody has touched it for long.
func StaleLock(fsys durable.FS, dir string, o LockOptions) bool {
	o = o.filled()
	l := &UIDLock{fsys: fsys, path: filepath.Join(dir, UIDListName+".lock")}
	info, err := fsys.Lstat(l.path)
	if err != nil {
		return false
	}
	return l.look(&lockSight{}, o) || o.Now().Sub(info.ModTime()) >= lockStale
}
