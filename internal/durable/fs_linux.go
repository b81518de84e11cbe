package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Magic numbers of statfs(2) for the file systems whose journal commits a new file's name
// together with the file. ext2 and ext3 share ext4's number; the kernel's ext4 driver serves
// all three, and an ext2 without a journal is no place for a spool whatever is synced.
const (
	magicExt4  = 0xef53
	magicXFS   = 0x58465342
	magicBtrfs = 0x9123683e
	magicF2FS  = 0xf2f52010
	magicTmpfs = 0x01021994
)

func statfs(name string) (Space, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(name, &st)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return Space{}, &fs.PathError{Op: "statfs", Path: name, Err: err}
		}
	}
	s := Space{Bytes: int64(st.Bavail) * int64(st.Bsize), Inodes: int64(st.Ffree)}
	if st.Files == 0 { // btrfs makes inodes as it goes
		s.Inodes = -1
	}
	switch uint32(st.Type) {
	case magicExt4:
		s.Type, s.NamesWithFile = "ext4", true
	case magicXFS:
		s.Type, s.NamesWithFile = "xfs", true
	case magicBtrfs:
		s.Type, s.NamesWithFile = "btrfs", true
	case magicF2FS:
		s.Type, s.NamesWithFile = "f2fs", true
	case magicTmpfs: // survives nothing, so nothing is lost by not syncing it
		s.Type, s.NamesWithFile = "tmpfs", true
	default:
		s.Type = "0x" + strconv.FormatUint(uint64(uint32(st.Type)), 16)
	}
	return s, nil
}

// FastCommit tells whether path is on an ext4 with fast commits, and whether /proc says
// anything about that. With them the name of a new file may be lost although the file was
// synced (the power-cut harness shows it with ten writers at once).
func FastCommit(path string) (on, known bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return false, false
	}
	block := "/sys/dev/block/" + strconv.Itoa(int(unix.Major(st.Dev))) + ":" + strconv.Itoa(int(unix.Minor(st.Dev)))
	dev, err := os.Readlink(block)
	if err != nil {
		return false, false
	}
	b, err := os.ReadFile("/proc/fs/ext4/" + filepath.Base(dev) + "/options")
	if err != nil {
		return false, false
	}
	for line := range strings.Lines(string(b)) {
		// Kernels up to 6.18 at least show the feature by the first name.
		if l := strings.TrimSpace(line); l == "fc_debug_force" || l == "fast_commit" {
			return true, true
		}
	}
	return false, true
}

// writeOutFile starts the writing of what the file has in memory and waits for its end. The
// pages of ext4 and xfs are clean only when the file's size and extents are in the journal's
// current transaction, or an older one.
func writeOutFile(f File) error {
	o, ok := f.(*os.File)
	if !ok {
		return syncFile(f)
	}
	for {
		err := unix.SyncFileRange(int(o.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &fs.PathError{Op: "sync_file_range", Path: f.Name(), Err: err}
		}
	}
}

func renameNew(oldname, newname string) error {
	err := unix.Renameat2(unix.AT_FDCWD, oldname, unix.AT_FDCWD, newname, unix.RENAME_NOREPLACE)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return renameNewSlow(oldname, newname)
	}
	return &os.LinkError{Op: "rename", Old: oldname, New: newname, Err: err}
}

// lockFile takes an OFD lock: it belongs to the open file, not to the process, so that two
// opens in one process exclude each other and closing another descriptor does not drop it.
func lockFile(fd uintptr, shared, try bool) error {
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if shared {
		l.Type = unix.F_RDLCK
	}
	cmd := unix.F_OFD_SETLKW
	if try {
		cmd = unix.F_OFD_SETLK
	}
	for {
		err := unix.FcntlFlock(fd, cmd, &l)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return ErrLocked
		}
		return err
	}
}

func unlockFile(fd uintptr) error {
	return unix.FcntlFlock(fd, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})
}
