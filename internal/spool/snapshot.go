package spool

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Entry is what the scheduler keeps in memory about a message, and what listing the queue
// needs without opening it. It is a hint: the message file and its attempt log are the truth,
// read again before any work.
type Entry struct {
	ID       string
	From     string // reverse-path
	To       string // the first recipient left
	Hop      string // the scheduler's word for the next hop; "" when it has none yet
	Due      time.Time
	Size     int64
	Left     int // recipients left
	Attempts int
	Hold     bool
	Routed   bool // an admin named the next hop: the route table does not count
	Timed    bool // the sender asked for a deadline or a priority: the envelope says which
}

// NewEntry sums up a message and its state.
func NewEntry(m *Message, st *State) Entry {
	e := Entry{
		ID: m.ID, From: m.Env.From, Due: st.Due, Size: m.Size,
		Left: len(st.Left), Attempts: st.Attempts, Hold: st.Hold, Routed: st.Route != "",
		Timed: m.Env.DeliverBy != nil || m.Env.Priority != 0,
	}
	if len(st.Left) > 0 {
		e.To = st.Left[0].Addr
	}
	return e
}

// The snapshot and the journal are lines of text. The first names the format, its version and
// a generation; a journal counts only beside the snapshot of its generation. Each further
// line is a CRC-32C in eight hex digits, a space, and the checked part:
//
//   - TAB id TAB due TAB left TAB attempts TAB flags TAB size TAB hop TAB from TAB to
//   - TAB id
//
// Both are caches: nothing is synced, and at the first damaged line a reader goes on with the
// message files instead.
const (
	snapshotWord = "pennypost-snapshot 1 "
	journalWord  = "pennypost-journal 1 "
	maxLine      = 4 << 10
)

// appendLine encodes an entry, or with drop its end.
func appendLine(b []byte, e *Entry, drop bool) ([]byte, error) {
	start := len(b)
	b = append(b, "00000000 "...)
	if drop {
		b = append(append(b, "-\t"...), e.ID...)
	} else {
		due := int64(0)
		if !e.Due.IsZero() {
			due = e.Due.UnixMilli()
		}
		flags := ""
		if e.Hold {
			flags = "h"
		}
		if e.Routed {
			flags += "r"
		}
		if e.Timed {
			flags += "t"
		}
		if flags == "" {
			flags = "-"
		}
		b = append(append(b, "+\t"...), e.ID...)
		b = strconv.AppendInt(append(b, '\t'), due, 10)
		b = strconv.AppendInt(append(b, '\t'), int64(e.Left), 10)
		b = strconv.AppendInt(append(b, '\t'), int64(e.Attempts), 10)
		b = append(append(b, '\t'), flags...)
		b = strconv.AppendInt(append(b, '\t'), e.Size, 10)
		for _, s := range []string{e.Hop, e.From, e.To} {
			b = append(append(b, '\t'), s...)
		}
	}
	for _, c := range b[start+9:] {
		if c < ' ' && c != '\t' || c == 0x7f {
			return b[:start], fmt.Errorf("spool %s: control character in an entry", e.ID)
		}
	}
	if len(b)-start >= maxLine || !ValidID(e.ID) || !drop && strings.Count(string(b[start:]), "\t") != 9 {
		return b[:start], fmt.Errorf("spool %s: entry cannot be written down", e.ID)
	}
	putHex(b[start:start+8], checksum(0, b[start+9:]))
	return append(b, '\n'), nil
}

func putHex(b []byte, v uint32) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = "0123456789abcdef"[v&15]
		v >>= 4
	}
}

// parseLine reads one line without its LF. All strings of the entry share one allocation.
func parseLine(line []byte) (e Entry, drop bool, err error) {
	if len(line) < 11 || line[8] != ' ' {
		return e, false, ErrCorrupt
	}
	var sum [8]byte
	putHex(sum[:], checksum(0, line[9:]))
	if string(sum[:]) != string(line[:8]) {
		return e, false, ErrCorrupt
	}
	var f [10]string
	n := 0
	rest := string(line[9:])
	for more := true; more; n++ {
		if n == len(f) {
			return e, false, ErrCorrupt
		}
		f[n], rest, more = strings.Cut(rest, "\t")
	}
	e.ID = f[1]
	if !ValidID(e.ID) {
		return e, false, ErrCorrupt
	}
	if f[0] == "-" && n == 2 {
		return e, true, nil
	}
	if f[0] != "+" || n != len(f) {
		return e, false, ErrCorrupt
	}
	due, err1 := strconv.ParseInt(f[2], 10, 64)
	left, err2 := strconv.ParseUint(f[3], 10, 31)
	attempts, err3 := strconv.ParseUint(f[4], 10, 31)
	size, err4 := strconv.ParseInt(f[6], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil || size < 0 {
		return e, false, ErrCorrupt
	}
	if due != 0 {
		e.Due = time.UnixMilli(due).UTC()
	}
	e.Left, e.Attempts, e.Size = int(left), int(attempts), size
	e.Hold, e.Routed, e.Timed = strings.Contains(f[5], "h"), strings.Contains(f[5], "r"), strings.Contains(f[5], "t")
	e.Hop, e.From, e.To = f[7], f[8], f[9]
	return e, false, nil
}

// lines reads the entries of a snapshot or journal. It ends at the first line that is damaged
// or torn.
func lines(r io.Reader, word string) (gen uint64, seq iter.Seq2[Entry, bool], err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	first, err := readLine(br, maxLine)
	if err != nil {
		return 0, nil, err
	}
	num, ok := strings.CutPrefix(string(first), word)
	if !ok {
		return 0, nil, fmt.Errorf("%w: first line %q", ErrCorrupt, first)
	}
	if gen, err = strconv.ParseUint(num, 10, 64); err != nil {
		return 0, nil, fmt.Errorf("%w: generation %q", ErrCorrupt, num)
	}
	return gen, func(yield func(Entry, bool) bool) {
		for {
			line, err := readLine(br, maxLine)
			if err != nil {
				return
			}
			e, drop, err := parseLine(line)
			if err != nil || !yield(e, drop) {
				return
			}
		}
	}, nil
}

// LoadStats says where the entries came from.
type LoadStats struct {
	Snapshot int // from the snapshot or the journal
	Opened   int // message files that had to be opened
	Bad      []BadEntry
}

// BadEntry is a file of queue/ that cannot be used.
type BadEntry struct {
	ID  string
	Err error
}

// Entries calls fn for each message of queue/, in the order of the ids. Entries come from the
// snapshot and the journal, verified against the directory: an entry without a file is
// dropped, a file without an entry is opened.
func (v *View) Entries(fn func(Entry) error) (LoadStats, error) {
	l, err := v.s.newLoader(fn)
	if err != nil {
		return LoadStats{}, err
	}
	err = l.run()
	return l.stats, err
}

type compactID [idLen]byte

// loader merges three sources that are all in the order of ids: the directory's names, the
// snapshot, and (by look-up) the journal.
type loader struct {
	s       *Spool
	fn      func(Entry) error
	names   []compactID
	journal map[compactID]journaled
	gen     uint64
	stats   LoadStats
}

type journaled struct {
	Entry
	drop bool
}

func (s *Spool) newLoader(fn func(Entry) error) (*loader, error) {
	l := &loader{s: s, fn: fn}
	for id, err := range s.View().Queued() {
		if err != nil {
			return nil, err
		}
		l.names = append(l.names, compactID([]byte(id)))
	}
	slices.SortFunc(l.names, func(a, b compactID) int { return strings.Compare(string(a[:]), string(b[:])) })
	return l, nil
}

func (l *loader) run() error {
	f, err := l.s.fsys.OpenFile(filepath.Join(l.s.dir, fileSnapshot), os.O_RDONLY, 0)
	if err == nil {
		defer f.Close()
		gen, seq, err := lines(f, snapshotWord)
		if err == nil {
			l.gen = gen
			l.readJournal(gen)
			if err := l.merge(seq); err != nil {
				return err
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return l.open(len(l.names))
}

// readJournal takes the newest word of the journal on each id.
func (l *loader) readJournal(gen uint64) {
	f, err := l.s.fsys.OpenFile(filepath.Join(l.s.dir, fileJournal), os.O_RDONLY, 0)
	if err != nil {
		return // the message files say it all
	}
	defer f.Close()
	jgen, seq, err := lines(f, journalWord)
	if err != nil || jgen != gen {
		return
	}
	l.journal = map[compactID]journaled{}
	for e, drop := range seq {
		l.journal[compactID([]byte(e.ID))] = journaled{e, drop}
	}
}

// merge walks the snapshot and the names together. It ends early when the snapshot is not in
// order.
func (l *loader) merge(seq iter.Seq2[Entry, bool]) error {
	last := ""
	for e, drop := range seq {
		if drop || e.ID <= last {
			return nil
		}
		last = e.ID
		n := 0
		for n < len(l.names) && string(l.names[n][:]) < e.ID {
			n++
		}
		if err := l.open(n); err != nil {
			return err
		}
		if len(l.names) == 0 || string(l.names[0][:]) != e.ID {
			continue // its file is gone
		}
		if _, ok := l.journal[l.names[0]]; ok {
			if err := l.open(1); err != nil {
				return err
			}
			continue
		}
		l.names = l.names[1:]
		l.stats.Snapshot++
		if err := l.fn(e); err != nil {
			return err
		}
	}
	return nil
}

// open takes the next n names from the journal, or else from their files.
func (l *loader) open(n int) error {
	for _, name := range l.names[:n] {
		e := Entry{}
		if j, ok := l.journal[name]; ok && !j.drop {
			l.stats.Snapshot++
			e = j.Entry
		} else {
			var err error
			e, err = l.s.View().entry(string(name[:]))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				l.stats.Bad = append(l.stats.Bad, BadEntry{string(name[:]), err})
				continue
			}
			l.stats.Opened++
		}
		if err := l.fn(e); err != nil {
			return err
		}
	}
	l.names = l.names[n:]
	return nil
}

// entry opens a message of queue/ and sums it up.
func (v *View) entry(id string) (Entry, error) {
	m, err := v.Open(id)
	if err != nil {
		return Entry{}, err
	}
	st, err := v.State(m)
	return NewEntry(m, &st), errors.Join(err, m.Close())
}
