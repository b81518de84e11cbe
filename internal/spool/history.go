package spool

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"pennypost/internal/durable"
)

// history appends one line per finished message to the file of the day.
type history struct {
	s   *Spool
	mu  sync.Mutex
	day string
	f   durable.File
}

const historySuffix = ".jsonl"

// History adds one line to today's history file; v is encoded as JSON. The line is written by
// one write and not synced: it tells people what was, no promise rests on it.
func (q *Queue) History(v any) error {
	line, err := jsonLine(v)
	if err != nil {
		return err
	}
	return q.hist.append(line)
}

func (h *history) append(line []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	day := h.s.o.Now().UTC().Format(time.DateOnly)
	if day != h.day || h.f == nil {
		if err := h.closeLocked(); err != nil {
			return err
		}
		f, err := h.s.fsys.OpenFile(h.s.path(dirHistory, day+historySuffix), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
		if err != nil {
			return err
		}
		h.f, h.day = f, day
	}
	_, err := h.f.Write(line)
	return err
}

func (h *history) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closeLocked()
}

func (h *history) closeLocked() error {
	if h.f == nil {
		return nil
	}
	err := h.f.Close()
	h.f = nil
	return err
}

// SweepHistory removes history files older than keep.
func (q *Queue) SweepHistory(keep time.Duration) error {
	oldest := q.s.o.Now().UTC().Add(-keep).Format(time.DateOnly)
	days, err := q.HistoryDays()
	for _, day := range days {
		if day < oldest {
			err = errors.Join(err, ignoreMissing(q.s.fsys.Remove(q.s.path(dirHistory, day+historySuffix))))
		}
	}
	return err
}

// HistoryDays lists the days (2006-01-02) that have a history file.
func (v *View) HistoryDays() ([]string, error) {
	f, err := v.s.fsys.OpenFile(filepath.Join(v.s.dir, dirHistory), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	var days []string
	for _, n := range names {
		day, ok := strings.CutSuffix(n, historySuffix)
		if _, e := time.Parse(time.DateOnly, day); ok && e == nil {
			days = append(days, day)
		}
	}
	return days, err
}

// OpenHistory opens the history of a day for reading.
func (v *View) OpenHistory(day string) (io.ReadCloser, error) {
	if _, err := time.Parse(time.DateOnly, day); err != nil {
		return nil, err
	}
	return v.s.fsys.OpenFile(v.s.path(dirHistory, day+historySuffix), os.O_RDONLY, 0)
}
