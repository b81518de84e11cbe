package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"pennypost/internal/durable"
)

const measureTime = 2 * time.Second

// way is one way of making a new file durable.
type way struct {
	name string
	put  func(dir string, d *durable.Dir, n int64) error
}

var payload = bytes.Repeat([]byte("measure\n"), 512)

// ways: what a spool entry or a Maildir message could cost. "direct, file only" is what a
// submitter does who may not open the directory.
var ways = []way{
	{"direct create, file sync, directory sync", func(dir string, d *durable.Dir, n int64) error {
		return errors.Join(create(name(dir, "new", n)), d.Sync())
	}},
	{"direct create, file sync only", func(dir string, _ *durable.Dir, n int64) error {
		return create(name(dir, "new", n))
	}},
	{"tmp, file sync, rename, directory sync", func(dir string, d *durable.Dir, n int64) error {
		return errors.Join(create(name(dir, "tmp", n)), durable.Rename(name(dir, "tmp", n), name(dir, "new", n)), d.Sync())
	}},
	{"tmp, file sync, link, unlink, directory sync", func(dir string, d *durable.Dir, n int64) error {
		return errors.Join(create(name(dir, "tmp", n)), durable.Link(name(dir, "tmp", n), name(dir, "new", n)), os.Remove(name(dir, "tmp", n)), d.Sync())
	}},
}

func name(dir, sub string, n int64) string { return fmt.Sprintf("%s/%s/%d", dir, sub, n) }

func create(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(payload); err == nil {
		err = durable.Sync(f)
	}
	return errors.Join(err, f.Close())
}

// measure times the ways on images in a file of the real disk, and counts their flushes on
// the recording disk.
func measure(ctx context.Context) (err error) {
	l, err := newLab()
	if l != nil {
		defer func() { err = errors.Join(err, l.back(0)) }()
	}
	if err != nil {
		return err
	}
	fmt.Println("file system, writers: files/s on the real disk, flushes/file")
	for _, fs := range []string{"ext4", "xfs"} {
		for _, writers := range []int{1, 10} {
			for _, w := range ways {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				rate, _, err := l.timed(fs, writers, w, l.realDisk)
				if err != nil {
					return err
				}
				_, flushes, err := l.timed(fs, writers, w, l.format)
				if err != nil {
					return err
				}
				fmt.Printf("%-4s %2d  %6.0f  %5.2f  %s\n", fs, writers, rate, flushes, w.name)
			}
		}
	}
	return nil
}

// realDisk is format on a file of the machine's disk.
func (l *lab) realDisk(fs string) (*disk, string, error) {
	f, err := os.CreateTemp(l.dir, "img")
	if err != nil {
		return nil, "", err
	}
	l.later(func() error { return os.Remove(f.Name()) })
	// Filled, so that the rate is not that of the host's block allocation.
	for range 320 {
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			return nil, "", errors.Join(err, f.Close())
		}
	}
	if err := errors.Join(durable.Sync(f), f.Close()); err != nil {
		return nil, "", err
	}
	dev, err := sh("losetup", "--direct-io=on", "-f", "--show", f.Name())
	if err != nil {
		return nil, "", err
	}
	l.later(func() error { _, err := sh("losetup", "-d", dev); return err })
	force := map[string]string{"ext4": "-F", "xfs": "-f"}[fs]
	_, err = sh("mkfs."+fs, "-q", force, dev)
	return &disk{}, dev, err
}

func (l *lab) timed(fs string, writers int, w way, format func(fs string) (*disk, string, error)) (rate, perFile float64, err error) {
	mark := len(l.undo)
	defer func() { err = errors.Join(err, l.back(mark)) }()
	d, dev, err := format(fs)
	if err != nil {
		return 0, 0, err
	}
	m, err := l.mount(dev, "")
	if err != nil {
		return 0, 0, err
	}
	dir := filepath.Join(m, "d")
	if err := prepareMaildir(nil, dir); err != nil {
		return 0, 0, err
	}
	if _, err := sh("sync", "-f", m); err != nil {
		return 0, 0, err
	}
	if d.img != nil {
		d.record()
	}
	n, took, err := race(dir, writers, w)
	return float64(n) / took.Seconds(), float64(flushes(d.stop())) / float64(max(n, 1)), err
}

func race(dir string, writers int, w way) (n int64, took time.Duration, err error) {
	d, err := durable.OpenDir(filepath.Join(dir, "new"))
	if err != nil {
		return 0, 0, err
	}
	var count atomic.Int64
	errs := make([]error, writers)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for errs[i] == nil && time.Since(start) < measureTime {
				errs[i] = w.put(dir, d, count.Add(1))
			}
		})
	}
	wg.Wait()
	took = time.Since(start)
	return count.Load(), took, errors.Join(append(errs, d.Close())...)
}
