package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"pennypost/internal/config"
	"pennypost/internal/durable"
	"pennypost/internal/spool"
)

// spool looks at the spool's directories, their rights, and the room there is.
func (k *checker) spool(cfg *config.Config) {
	thing := "spool " + cfg.Spool
	s, err := spool.Open(cfg.Spool, spool.Options{})
	switch {
	case errors.Is(err, spool.ErrNoSpool):
		k.fail(thing, "there is no spool", "mqueue init makes one")
		return
	case errors.Is(err, fs.ErrPermission):
		k.warn(thing, "this user may not hand in mail directly; the submission socket is used", "")
		return
	case err != nil:
		k.fail(thing, err.Error(), "make its directories as mspool(5) says; mqueue init does it")
		return
	}
	if err := s.Close(); err != nil {
		k.fail(thing, err.Error(), "look at the disk")
	}
	if k.spoolRights(cfg.Spool) {
		k.ok(thing, "directories and rights")
	}
	k.space(cfg)
	k.running(cfg)
	if _, err := user.LookupGroup(cfg.AdminGroup); err != nil && cfg.Mode == config.System {
		k.warn("admin_group "+cfg.AdminGroup, "no such group: only the spool's owner and root may change mail of others", "groupadd "+cfg.AdminGroup)
	}
}

// spoolRights compares each directory with what mspool(5) asks for.
func (k *checker) spoolRights(dir string) bool {
	good := true
	for _, d := range []struct {
		name      string
		forbidden fs.FileMode
	}{{"incoming", 0o007}, {"queue", 0o077}, {"log", 0o077}, {"history", 0o027}, {"corrupt", 0o077}} {
		path := filepath.Join(dir, d.name)
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrPermission):
			continue // a submitter; the owner sees more
		case err != nil:
			k.fail("spool "+path, cause(err), "mqueue init makes it")
		case !info.IsDir():
			k.fail("spool "+path, "is no directory", "move it away and run mqueue init")
		case info.Mode().Perm()&d.forbidden != 0:
			k.fail("spool "+path, fmt.Sprintf("others have rights they must not have (mode %04o)", info.Mode().Perm()), fmt.Sprintf("chmod %s %s", without(d.forbidden), path))
		case d.name == "incoming" && info.Mode().Perm()&0o040 != 0:
			k.fail("spool "+path, "its group can list it, and so read mail of others", "chmod g-r "+path)
		case d.name == "incoming" && info.Mode().Perm()&0o020 != 0 && info.Mode()&fs.ModeSticky == 0:
			k.fail("spool "+path, "its group can remove mail of others", "chmod +t "+path)
		default:
			continue
		}
		good = false
	}
	return good
}

// without writes bits as chmod takes them away.
func without(bits fs.FileMode) string {
	switch bits {
	case 0o007:
		return "o-rwx"
	case 0o027:
		return "g-w,o-rwx"
	}
	return "go-rwx"
}

func (k *checker) space(cfg *config.Config) {
	free, err := durable.OS{}.Free(cfg.Spool)
	switch {
	case err != nil:
		k.warn("free space", err.Error(), "")
	case free.Bytes < cfg.Limits.FreeSpace:
		k.fail("free space", fmt.Sprintf("%d octets are left, limits.free_space keeps %d: mail is refused", free.Bytes, cfg.Limits.FreeSpace), "free some")
	case free.Bytes < 4*cfg.Limits.FreeSpace:
		k.warn("free space", fmt.Sprintf("%d octets are left, mail is refused below %d", free.Bytes, cfg.Limits.FreeSpace), "free some")
	case free.Inodes >= 0 && free.Inodes < cfg.Limits.FreeInodes:
		k.fail("free inodes", fmt.Sprintf("%d are left, limits.free_inodes keeps %d: mail is refused", free.Inodes, cfg.Limits.FreeInodes), "remove small files")
	default:
		k.ok("free space", fmt.Sprintf("%d MiB", free.Bytes>>20))
	}
}

// running tells whether somebody schedules.
func (k *checker) running(cfg *config.Config) {
	path := filepath.Join(cfg.Spool, "lock")
	if _, err := os.Stat(path); err == nil {
		l, err := durable.Lock(path, true)
		if err != nil {
			k.ok("mqueue", "is running")
			return
		}
		if err := l.Close(); err != nil {
			k.warn("mqueue", err.Error(), "")
		}
	}
	k.warn("mqueue", "is not running", "start \"mqueue run\", or run \"mqueue run --once\" from a timer")
}

// maildirs looks at the part of the template above its first variable.
func (k *checker) maildirs(cfg *config.Config) {
	base, _, _ := strings.Cut(cfg.Maildirs, "%")
	base = filepath.Dir(base + "x")
	info, err := os.Stat(base)
	switch {
	case errors.Is(err, fs.ErrNotExist) && cfg.Deliver.Create:
		k.warn("maildirs "+base, "does not exist yet", "mkdir it for the user who runs mdeliver, or leave it to the first delivery")
	case err != nil:
		k.fail("maildirs "+base, cause(err), "mkdir it for the user who runs mdeliver")
	case !info.IsDir():
		k.fail("maildirs "+base, "is no directory", "correct maildirs")
	case info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0:
		k.fail("maildirs "+base, "can be written by everybody", "chmod o-w "+base)
	default:
		k.ok("maildirs", base)
	}
}
