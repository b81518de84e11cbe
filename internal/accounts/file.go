package accounts

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// maxFile bounds an accounts file: a hundred thousand users are about 10 MB.
const maxFile = 256 << 20

// settle is how long a file changed in place is left alone: an editor that truncates and
// writes would otherwise make users vanish for a moment.
const settle = time.Second

// file is one parsed file, read again when it changed. Its contents count as long as the
// file can be read; a file that cannot be read or parsed is an error, never an empty one.
type file[T any] struct {
	path     string
	optional bool // never seen, it may be missing
	parse    func(path, data string, owner uint32) (T, error)

	mu     sync.Mutex
	looked time.Time
	stamp  stamp
	loaded bool
	val    T
	err    error
}

// stamp tells versions of a file apart. ctime is in it because mtime can be set back.
type stamp struct {
	dev, ino   uint64
	size       int64
	mtim, ctim syscall.Timespec
	mode, uid  uint32
}

func newFile[T any](path string, parse func(path, data string, owner uint32) (T, error)) *file[T] {
	return &file[T]{path: path, parse: parse}
}

// get returns the parsed file; the zero T when no path is configured. The file is looked at
// once a second, and at every call with fresh.
func (f *file[T]) get(fresh bool) (T, error) {
	var zero T
	if f == nil || f.path == "" {
		return zero, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if f.loaded && !fresh && now.Sub(f.looked) < time.Second {
		return f.val, f.err
	}
	f.looked = now
	st, err := statStamp(f.path)
	if f.optional && !f.loaded && errors.Is(err, fs.ErrNotExist) {
		return zero, nil
	}
	if err != nil {
		// Not remembered: the next question asks again.
		f.loaded = false
		return zero, readError(err)
	}
	if f.loaded && st == f.stamp {
		return f.val, f.err
	}
	if f.loaded && f.err == nil && st.ino == f.stamp.ino && st.dev == f.stamp.dev &&
		now.Sub(time.Unix(st.mtim.Unix())).Abs() < settle {
		if fresh { // the caller is about to say "no such user"
			return zero, tempError("4.3.0", fmt.Errorf("%s: it is being edited", f.path))
		}
		return f.val, nil
	}
	f.val, f.stamp, f.err = f.read()
	f.optional = false // what was there once must not vanish without a word
	f.loaded = f.err == nil || f.stamp != (stamp{})
	return f.val, f.err
}

func (f *file[T]) read() (val T, st stamp, err error) {
	if err := CheckSafe(f.path); err != nil {
		if errors.Is(err, ErrUnsafe) {
			return val, st, tempError("4.3.5", err)
		}
		return val, st, readError(err)
	}
	fd, err := os.OpenFile(f.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return val, st, readError(err)
	}
	defer fd.Close()
	if st, err = fileStamp(fd); err != nil {
		return val, stamp{}, readError(err)
	}
	b, err := io.ReadAll(io.LimitReader(fd, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: over %d MiB", f.path, maxFile>>20)
	}
	if err != nil {
		return val, stamp{}, readError(err)
	}
	if val, err = f.parse(f.path, string(b), st.uid); err != nil {
		return val, st, tempError("4.3.5", err)
	}
	return val, st, nil
}

// readError: a missing file or right is an admin's mistake, the rest is the system's.
func readError(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return tempError("4.3.5", err)
	}
	return tempError("4.3.0", err)
}

func statStamp(path string) (stamp, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return stamp{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return stampOf(&st), nil
}

func fileStamp(f *os.File) (stamp, error) {
	fi, err := f.Stat()
	if err != nil {
		return stamp{}, err
	}
	if !fi.Mode().IsRegular() {
		return stamp{}, fmt.Errorf("%s: not a regular file", f.Name())
	}
	return stampOf(fi.Sys().(*syscall.Stat_t)), nil
}

// ErrUnsafe is wrapped by CheckSafe when somebody else could have written a file.
var ErrUnsafe = errors.New("writable by others")

// CheckSafe tells whether others than owner and group can change path or put another file in
// its place: the file or a directory on the way to it is writable by all. A directory with the
// sticky bit (/tmp) protects the names of others and is no harm.
func CheckSafe(path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return err
	}
	fi, err := os.Stat(real)
	if err != nil {
		return err
	}
	if fi.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("%s: %w (chmod o-w it)", real, ErrUnsafe)
	}
	for _, p := range []string{abs, real} {
		for p != "/" && p != "." {
			p = filepath.Dir(p)
			fi, err := os.Stat(p)
			if err != nil {
				return err
			}
			if fi.Mode().Perm()&0o002 != 0 && fi.Mode()&fs.ModeSticky == 0 {
				return fmt.Errorf("%s: its directory %s is %w (chmod o-w it)", path, p, ErrUnsafe)
			}
		}
		if abs == real {
			break
		}
	}
	return nil
}
