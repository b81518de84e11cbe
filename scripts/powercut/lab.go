package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// lab holds the FUSE mount and everything that has to be undone at the end.
type lab struct {
	dir   string // work directory
	root  *fs.Inode
	srv   *fuse.Server
	disks int
	undo  []func() error
}

// needs tells what this machine lacks, or "".
func needs() string {
	if os.Geteuid() != 0 {
		return "not root"
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return err.Error()
	}
	if err := f.Close(); err != nil {
		return err.Error()
	}
	for _, tool := range []string{"losetup", "mount", "umount", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			return tool + " is not installed"
		}
	}
	if out, err := exec.Command("losetup", "-f").CombinedOutput(); err != nil {
		return "no loop device: " + strings.TrimSpace(string(out))
	}
	return ""
}

func newLab() (*lab, error) {
	dir, err := os.MkdirTemp("", "powercut-")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir}
	l.later(func() error { return os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil { // writers of another uid pass through
		return l, err
	}
	fusedir := filepath.Join(dir, "fuse")
	if err := os.Mkdir(fusedir, 0o700); err != nil {
		return l, err
	}
	root := &fs.Inode{}
	l.root = root
	zero := time.Duration(0)
	l.srv, err = fs.Mount(fusedir, root, &fs.Options{
		AttrTimeout: &zero, EntryTimeout: &zero,
		MountOptions: fuse.MountOptions{MaxWrite: 1 << 20, DirectMount: true, FsName: "powercut"},
	})
	if err != nil {
		return l, fmt.Errorf("FUSE: %w", err)
	}
	l.later(l.srv.Unmount)
	return l, nil
}

func (l *lab) later(f func() error) { l.undo = append(l.undo, f) }

// back undoes everything that later was told of since mark, newest first.
func (l *lab) back(mark int) error {
	var err error
	for len(l.undo) > mark {
		f := l.undo[len(l.undo)-1]
		l.undo = l.undo[:len(l.undo)-1]
		err = errors.Join(err, f())
	}
	return err
}

// attach serves an image and puts a loop device on it.
func (l *lab) attach(img *image) (*disk, string, error) {
	l.disks++
	name := "disk" + strconv.Itoa(l.disks)
	d := &disk{img: img}
	l.root.AddChild(name, l.root.NewPersistentInode(context.Background(), d, fs.StableAttr{Ino: uint64(l.disks) + 1}), false)
	l.later(func() error { _, _ = l.root.RmChild(name); return nil })
	dev, err := sh("losetup", "-f", "--show", filepath.Join(l.dir, "fuse", name))
	if err != nil {
		return nil, "", err
	}
	l.later(func() error { _, err := sh("losetup", "-d", dev); return err })
	return d, dev, nil
}

// mount mounts a device at a new directory.
func (l *lab) mount(dev, options string) (string, error) {
	dir, err := os.MkdirTemp(l.dir, "m")
	if err != nil {
		return "", err
	}
	args := []string{dev, dir}
	if options != "" {
		args = append([]string{"-o", options}, args...)
	}
	if _, err := sh("mount", args...); err != nil {
		return "", errors.Join(err, os.Remove(dir))
	}
	l.later(func() error {
		_, err := sh("umount", dir)
		if err != nil { // a writer that outlived its kill for a moment
			_, err = sh("umount", "-l", dir)
		}
		return errors.Join(err, os.Remove(dir))
	})
	return dir, nil
}

func sh(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out)), nil
}
