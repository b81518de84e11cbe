package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"

	"pennypost/internal/durable"
)

// Journal records what becomes of entries since the last snapshot, one write a call. It is
// used by one goroutine.
type Journal struct {
	q   *Queue
	gen uint64
	f   durable.File
	at  int64
	n   int
	buf []byte
}

// Load is Entries for the scheduler, who goes on with the journal. After a start that had to
// open many files (LoadStats.Opened) call Compact.
func (q *Queue) Load(fn func(Entry) error) (*Journal, LoadStats, error) {
	l, err := q.s.newLoader(fn)
	if err != nil {
		return nil, LoadStats{}, err
	}
	if err := l.run(); err != nil {
		return nil, l.stats, err
	}
	j := &Journal{q: q, gen: l.gen, n: len(l.journal)}
	return j, l.stats, j.open()
}

// open goes on with the journal of our generation behind its last good line, or begins one.
func (j *Journal) open() error {
	f, err := j.q.s.fsys.OpenFile(filepath.Join(j.q.s.dir, fileJournal), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	j.f = f
	if gen, seq, err := lines(f, journalWord); err == nil && gen == j.gen {
		j.at = int64(len(journalWord)+len(strconv.FormatUint(gen, 10))) + 1
		for e, drop := range seq {
			if j.buf, err = appendLine(j.buf[:0], &e, drop); err != nil {
				break
			}
			j.at += int64(len(j.buf))
		}
		return f.Truncate(j.at)
	}
	return j.begin()
}

// begin empties the file and writes the first line.
func (j *Journal) begin() error {
	j.n = 0
	if err := j.f.Truncate(0); err != nil {
		return err
	}
	line := journalWord + strconv.FormatUint(j.gen, 10) + "\n"
	j.at = int64(len(line))
	_, err := j.f.WriteAt([]byte(line), 0)
	return err
}

// Put records new or changed entries. A message that is done at its first attempt need not be
// recorded at all: a file without an entry is opened at the next start.
func (j *Journal) Put(entries ...Entry) error { return j.write(entries, false) }

// Drop records that messages left.
func (j *Journal) Drop(ids ...string) error {
	entries := make([]Entry, len(ids))
	for i, id := range ids {
		entries[i].ID = id
	}
	return j.write(entries, true)
}

func (j *Journal) write(entries []Entry, drop bool) error {
	j.buf = j.buf[:0]
	var err error
	for i := range entries {
		if j.buf, err = appendLine(j.buf, &entries[i], drop); err != nil {
			return err
		}
	}
	if _, err := j.f.WriteAt(j.buf, j.at); err != nil {
		return err
	}
	j.at += int64(len(j.buf))
	j.n += len(entries)
	return nil
}

// Len is the number of changes since the snapshot: compact when it passes the number of
// entries, so that the journal never costs more than the snapshot saves.
func (j *Journal) Len() int { return j.n }

// Compact writes a new snapshot of all entries, which must come in the order of their ids, and
// begins an empty journal. A crash on the way leaves the old pair, or the new snapshot beside
// a journal of another generation, which readers ignore.
func (j *Journal) Compact(entries iter.Seq[Entry]) error {
	gen := max(j.gen+1, uint64(j.q.s.o.Now().UnixNano()))
	err := j.q.s.replace(fileSnapshot, func(f durable.File) error {
		b := append([]byte(snapshotWord), strconv.FormatUint(gen, 10)...)
		b = append(b, '\n')
		last := ""
		for e := range entries {
			if e.ID <= last {
				return fmt.Errorf("spool: snapshot: %s after %s", e.ID, last)
			}
			last = e.ID
			var err error
			if b, err = appendLine(b, &e, false); err != nil {
				return err
			}
			if len(b) >= bufferSize {
				if _, err := f.Write(b); err != nil {
					return err
				}
				b = b[:0]
			}
		}
		_, err := f.Write(b)
		return err
	})
	if err != nil {
		return err
	}
	j.gen = gen
	return j.begin()
}

// Close ends the journal.
func (j *Journal) Close() error { return j.f.Close() }

// Forget removes snapshot and journal; the next start opens all message files.
func (q *Queue) Forget() error {
	var err error
	for _, name := range []string{fileSnapshot, fileJournal} {
		if e := q.s.fsys.Remove(filepath.Join(q.s.dir, name)); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}
