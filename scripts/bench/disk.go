package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// probe is what the disk can do right now: files of 4 KiB created, written, synced, renamed,
// with a sync of the directory, operations a second with so many writers in one directory.
func (b *bench) probe(writers int) (float64, error) {
	dir := filepath.Join(b.dir, "probe")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "tmp"), 0o755), os.MkdirAll(filepath.Join(dir, "new"), 0o755)); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	each := max(20, b.n(600)/writers)
	if writers == 1 {
		each = b.n(200)
	}
	errs := make([]error, writers)
	var wg sync.WaitGroup
	begin := time.Now()
	for w := range writers {
		wg.Go(func() { errs[w] = probeWriter(dir, w, each) })
	}
	wg.Wait()
	secs := time.Since(begin).Seconds()
	return float64(writers*each) / secs, errors.Join(errs...)
}

func probeWriter(dir string, w, n int) error {
	d, err := os.Open(filepath.Join(dir, "new"))
	if err != nil {
		return err
	}
	defer d.Close()
	block := make([]byte, 4096)
	for i := range n {
		name := fmt.Sprintf("%d.%d", w, i)
		f, err := os.Create(filepath.Join(dir, "tmp", name))
		if err != nil {
			return err
		}
		_, err = f.Write(block)
		if err == nil {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(dir, "tmp", name), filepath.Join(dir, "new", name)); err != nil {
			return err
		}
		if err := d.Sync(); err != nil {
			return err
		}
	}
	return nil
}
