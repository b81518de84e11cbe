package spool

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// unfinishedAge is how long an unfinished file is left alone although nobody holds its lock: it
// covers a writer between making its file and locking it.
const unfinishedAge = time.Hour

// Aside tells of a file that Clean moved to corrupt/.
type Aside struct {
	ID  string
	Why string
}

// Clean takes away what crashes leave: unfinished files of incoming/ whose writer is dead go to
// corrupt/, attempt logs without a message are removed. The scheduler calls it at its start
// and then every hour or so.
func (q *Queue) Clean() ([]Aside, error) {
	var aside []Aside
	for id, err := range q.Incoming() {
		if err != nil {
			return aside, err
		}
		why, err := q.dead(id)
		if err != nil {
			return aside, err
		}
		if why == "" {
			continue
		}
		if err := q.SetAside(id, why); err != nil {
			return aside, err
		}
		aside = append(aside, Aside{ID: id, Why: why})
	}
	return aside, q.cleanLogs()
}

// dead tells why the file of incoming/ is to be set aside, or "".
func (q *Queue) dead(id string) (why string, err error) {
	m, err := q.open(dirIncoming, id)
	if err == nil {
		return "", m.Close()
	}
	if !errors.Is(err, ErrUnfinished) {
		return "", nil // Take meets the same error and its caller decides
	}
	info, err := q.s.fsys.Lstat(q.s.path(dirIncoming, id))
	if err != nil {
		return "", ignoreMissing(err)
	}
	// Not Options.Now: file times are the kernel's, whatever clock the queue is run by.
	if time.Since(info.ModTime()) < unfinishedAge {
		return "", nil
	}
	return "unfinished, and its writer is gone", nil
}

// cleanLogs removes attempt logs whose message is gone: the last step of Remove, made up for.
func (q *Queue) cleanLogs() error {
	f, err := q.s.fsys.OpenFile(filepath.Join(q.s.dir, dirLog), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(4096)
		for _, id := range names {
			if !ValidID(id) {
				continue
			}
			if err := q.cleanLog(id); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (q *Queue) cleanLog(id string) error {
	// In this order: messages move from incoming/ to queue/ only.
	for _, dir := range []string{dirIncoming, dirQueue} {
		_, err := q.s.fsys.Lstat(q.s.path(dir, id))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return ignoreMissing(q.s.fsys.Remove(q.s.path(dirLog, id)))
}
