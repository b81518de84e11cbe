package maildir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"pennypost/internal/durable"
)

// UIDValidityName is the file with the last UIDVALIDITY that a folder of the account got. Beside
// it lies an empty file with the same value in its name, whose rename decides between two who
// want the next one: Dovecot and we. Ours exclude each other by a lock besides.
const UIDValidityName = "dovecot-uidvalidity"

// uidValidityLock is a file of its own, whose name cannot be taken for a mark.
const uidValidityLock = "pennypost-uidvalidity.lock"

// NextUIDValidity gives out a UIDVALIDITY that no folder of the account ever had. root is the
// control root of the tree.
func NextUIDValidity(fsys durable.FS, root string, now time.Time) (uint32, error) {
	unlock, err := lockUIDValidity(fsys, root)
	if err != nil {
		return 0, fmt.Errorf("next UIDVALIDITY: %w", err)
	}
	v, err := nextUIDValidity(fsys, root, now)
	return v, errors.Join(err, unlock())
}

// lockUIDValidity excludes other processes of ours until unlock. The mark alone does not: who
// found none, because it was being renamed or was not there yet, makes the first one again
// after others have gone on from it.
func lockUIDValidity(fsys durable.FS, root string) (unlock func() error, err error) {
	f, err := fsys.OpenFile(filepath.Join(root, uidValidityLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := durable.WaitLock(f, false); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil // the file stays: a lock on a removed one excludes nobody
}

// nextUIDValidity is NextUIDValidity under the lock; only Dovecot may be at work beside it.
func nextUIDValidity(fsys durable.FS, root string, now time.Time) (uint32, error) {
	const tries = 100
	for range tries {
		last, marks, err := lastUIDValidity(fsys, root)
		if err != nil {
			return 0, fmt.Errorf("next UIDVALIDITY: %w", err)
		}
		next, err := after(last, now)
		if err != nil {
			return 0, err
		}
		if marks == 0 {
			err = firstMark(fsys, root, next)
		} else {
			err = fsys.Rename(markName(root, last), markName(root, next))
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) {
			continue // somebody was faster
		}
		if err == nil {
			err = writeUIDValidity(fsys, root, next)
		}
		if err != nil {
			return 0, fmt.Errorf("next UIDVALIDITY: %w", err)
		}
		return next, nil
	}
	return 0, errors.New("next UIDVALIDITY: others take it all the time")
}

// after is the UIDVALIDITY after last. The clock starts the sequence, so that an account made
// anew under an old name does not repeat it.
func after(last uint32, now time.Time) (uint32, error) {
	if last == 0 {
		return uint32(min(max(now.Unix(), 1), math.MaxInt32)), nil
	}
	if last >= math.MaxUint32-1 {
		return 0, errors.New("no UIDVALIDITY is left")
	}
	return last + 1, nil
}

func markName(root string, v uint32) string {
	return filepath.Join(root, fmt.Sprintf("%s.%08x", UIDValidityName, v))
}

func firstMark(fsys durable.FS, root string, v uint32) error {
	f, err := fsys.OpenFile(markName(root, v), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	return f.Close()
}

// writeUIDValidity replaces the file, under the lock. A lower value of Dovecot's that comes last
// does no harm beside the mark.
func writeUIDValidity(fsys durable.FS, root string, v uint32) error {
	path := filepath.Join(root, UIDValidityName)
	tmp := fmt.Sprintf("%s.new.%08x", path, v)
	f, err := fsys.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(fmt.Appendf(nil, "%08x", v))
	if err == nil {
		err = durable.Sync(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, fsys.Remove(tmp))
	}
	return durable.RenameSyncOn(fsys, tmp, path) // syncs the name of the mark, too
}

// lastUIDValidity is the highest value that the file and the marks tell, and how many marks
// have it. Without a mark for the highest value one is made by whoever gives out the next.
func lastUIDValidity(fsys durable.FS, root string) (last uint32, marks int, err error) {
	last, marks, err = highestMark(fsys, root)
	if err == nil && marks == 0 { // a directory read while the mark is renamed may not show it
		last, marks, err = highestMark(fsys, root)
	}
	if err != nil {
		return 0, 0, err
	}
	f, err := fsys.OpenFile(filepath.Join(root, UIDValidityName), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return last, marks, nil
	}
	if err != nil {
		return 0, 0, err
	}
	b, err := io.ReadAll(io.LimitReader(f, 64))
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, 0, err
	}
	if v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 16, 32); err == nil && uint32(v) > last {
		last, marks = uint32(v), 0
	}
	return last, marks, nil
}

func highestMark(fsys durable.FS, root string) (last uint32, marks int, err error) {
	names, err := readDir(fsys, root)
	if err != nil {
		return 0, 0, err
	}
	for _, n := range names {
		digits, ok := strings.CutPrefix(n, UIDValidityName+".")
		if !ok || !isHex(digits, 8) {
			continue
		}
		v, err := strconv.ParseUint(digits, 16, 32)
		if err != nil {
			continue
		}
		if marks == 0 || uint32(v) > last {
			last = uint32(v)
		}
		marks++
	}
	return last, marks, nil
}

// LastUIDValidity is the last UIDVALIDITY that NextUIDValidity, or Dovecot, has given out; 0 when
// there was none yet.
func LastUIDValidity(fsys durable.FS, root string) (uint32, error) {
	last, _, err := lastUIDValidity(fsys, root)
	return last, err
}

// RaiseUIDValidity has NextUIDValidity go on above v.
func RaiseUIDValidity(fsys durable.FS, root string, v uint32) error {
	unlock, err := lockUIDValidity(fsys, root)
	if err != nil {
		return err
	}
	return errors.Join(raiseUIDValidity(fsys, root, v), unlock())
}

func raiseUIDValidity(fsys durable.FS, root string, v uint32) error {
	last, marks, err := lastUIDValidity(fsys, root)
	if err != nil || last >= v && marks > 0 {
		return err
	}
	v = max(v, last)
	if err := firstMark(fsys, root, v); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return writeUIDValidity(fsys, root, v)
}

// ReadValidity reads the UIDVALIDITY of the folder whose uidlist is in dir; 0 when there is none
// that can be read.
func ReadValidity(fsys durable.FS, dir string) (uint32, error) {
	f, err := fsys.OpenFile(filepath.Join(dir, UIDListName), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxUIDLine))
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	l := new(UIDList)
	if err := l.Parse(line+"\n", nil); err != nil {
		return 0, nil // of a later version: not ours to judge
	}
	return l.Validity, nil
}
