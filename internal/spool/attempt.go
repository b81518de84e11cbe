package spool

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/envelope"
)

// Kinds of Record.
const (
	RecAttempt = "attempt" // a round of work: Results
	RecHold    = "hold"    // an admin stops work on the message
	RecRelease = "release" // and lets it go on
	RecRetry   = "retry"   // due at Due, or at once
	RecRoute   = "route"   // Route replaces the table's next hop
	RecBounce  = "bounce"  // recipients To failed by an admin; Children holds the report
	RecRemove  = "rm"      // recipients To dropped without a report
	RecNotice  = "notice"  // a delay report was sent: Children
)

// Record is one line of an attempt log.
type Record struct {
	V        int        `json:"v"` // version of the format, 1
	Time     time.Time  `json:"time"`
	Kind     string     `json:"kind"`
	Round    int        `json:"round,omitempty"`    // of an attempt, from 1
	Results  []Result   `json:"results,omitempty"`  // of an attempt, one a recipient
	Due      *time.Time `json:"due,omitempty"`      // next attempt
	To       []string   `json:"to,omitempty"`       // recipients of a bounce or rm; none: all that are left
	Route    string     `json:"route,omitempty"`    // next hop in the form of mconf(5) route.to; "" takes the override away
	Who      string     `json:"who,omitempty"`      // the admin
	Why      string     `json:"why,omitempty"`      // the admin's words
	Children []string   `json:"children,omitempty"` // ids of messages submitted because of this
}

// Result is the outcome of an attempt for one recipient, with the field names of worker.Result.
type Result struct {
	To string `json:"to"`
	envelope.Status
	TLS        string   `json:"tls,omitempty"`
	DelayMS    int64    `json:"delay_ms"`
	MX         []string `json:"mx,omitempty"`
	Transcript []string `json:"transcript,omitempty"`
	Mailbox    string   `json:"mailbox,omitempty"`
	DSN        bool     `json:"dsn_relayed,omitempty"`
}

const (
	recordVersion = 1
	// maxRecord bounds one line: 100,000 results of a kilobyte.
	maxRecord = 100 << 20
	// maxLog bounds a whole log that a reader takes in; the rest is not read.
	maxLog = 1 << 30
)

// State is what a message's attempt log adds up to.
type State struct {
	Left     []envelope.Recipient // those still to be worked on, in the envelope's order
	Attempts int
	Extra    int       // of them, those before their time: somebody asked for them
	Planned  time.Time // of the next attempt, as the last one left it, whatever was asked for since
	First    time.Time // of the first attempt; zero before
	Last     time.Time // of the last attempt
	Due      time.Time // of the next one; zero: at once
	Hold     bool
	Route    string   // override by an admin
	Notified bool     // the delay report was sent
	Children []string // submitted so far
}

// NewState is the state of a message without a log: all recipients left, due at once, or when
// the submitter asked for it (RFC 4865 §1: not before the hold-until time), or held when a
// filter put it in quarantine.
func NewState(env *envelope.Envelope) State {
	st := State{Left: slices.Clone(env.To), Hold: env.Quarantine != ""}
	if env.HoldUntil != nil {
		st.Due = *env.HoldUntil
	}
	return st
}

// Apply is the one place where a record changes a state. A kind that it does not know (of a
// newer release) changes the due time and the children only.
func (st *State) Apply(r *Record) {
	switch r.Kind {
	case RecAttempt:
		if st.Early(r.Time) && (r.Round == 0 || r.Round > st.Attempts) {
			st.Extra++
		}
		if r.Round > 0 { // a round may be written down in parts
			st.Attempts = max(st.Attempts, r.Round)
		} else {
			st.Attempts++
		}
		if st.First.IsZero() {
			st.First = r.Time
		}
		st.Last = r.Time
		done := make(map[string]bool, len(r.Results))
		for i := range r.Results {
			if r.Results[i].Verdict.Done() {
				done[r.Results[i].To] = true
			}
		}
		st.drop(done)
	case RecHold:
		st.Hold = true
	case RecRelease:
		st.Hold = false
	case RecRetry:
		st.Due = time.Time{}
	case RecRoute:
		st.Route = r.Route
	case RecBounce, RecRemove:
		if len(r.To) == 0 {
			st.Left = nil
			break
		}
		done := make(map[string]bool, len(r.To))
		for _, to := range r.To {
			done[to] = true
		}
		st.drop(done)
	case RecNotice:
		st.Notified = true
	}
	if r.Due != nil {
		st.Due = *r.Due
		if r.Kind == RecAttempt {
			st.Planned = st.Due
		}
	}
	st.Children = append(st.Children, r.Children...)
}

// Early tells whether an attempt at t comes before its time. A clock is corrected by less than a
// second at once, or jumps.
func (st *State) Early(t time.Time) bool { return t.Add(time.Second).Before(st.Planned) }

func (st *State) drop(done map[string]bool) {
	st.Left = slices.DeleteFunc(st.Left, func(r envelope.Recipient) bool { return done[r.Addr] })
}

// AppendLog adds records to a message's attempt log, by one write and without a sync: what a
// power cut takes from it makes recipients be worked on twice, never lost. Time and version
// are filled in where they are missing.
func (q *Queue) AppendLog(id string, recs ...Record) error { return q.appendLog(id, false, recs) }

// AppendLogSync is AppendLog for a promise made to a person, such as a hold: when it returns
// nil, the records are on stable storage.
func (q *Queue) AppendLogSync(id string, recs ...Record) error { return q.appendLog(id, true, recs) }

func (q *Queue) appendLog(id string, sync bool, recs []Record) error {
	if !ValidID(id) {
		return fmt.Errorf("spool: %q is not a queue id", id)
	}
	var buf bytes.Buffer
	for i := range recs {
		if recs[i].Time.IsZero() {
			recs[i].Time = q.s.o.Now().UTC().Truncate(time.Millisecond)
		}
		recs[i].V = recordVersion
		line, err := jsonLine(&recs[i])
		if err != nil {
			return err
		}
		buf.Write(line)
	}
	f, err := q.s.fsys.OpenFile(q.s.path(dirLog, id), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	at, err := logEnd(f)
	if err == nil {
		_, err = f.WriteAt(buf.Bytes(), at)
	}
	if err == nil && sync {
		if err = durable.Sync(f); err == nil {
			err = q.logd.Sync()
		}
	}
	return errors.Join(err, f.Close())
}

// logEnd finds where the next record goes: behind the last LF. What a crash left of a torn line
// is cut off.
func logEnd(f durable.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	end := size
	b := make([]byte, 4096)
	for end > 0 {
		n := min(end, int64(len(b)))
		if err := readFull(f, b[:n], end-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(b[:n], '\n'); i >= 0 {
			end = end - n + int64(i) + 1
			break
		}
		end -= n
	}
	if end < size {
		return end, f.Truncate(end)
	}
	return end, nil
}

// ReadLog calls fn for each record of a message's attempt log, in order. A message without a
// log has no records. A torn last line is left out, and so is a line that is no record (a power
// cut may leave NULs where an unsynced line was): forgetting a record makes recipients be
// worked on again, giving up would keep the message from all of them. A newer format ends in
// ErrNewerFormat.
func (v *View) ReadLog(id string, fn func(*Record) error) error {
	if !ValidID(id) {
		return fmt.Errorf("spool: %q is not a queue id", id)
	}
	f, err := v.s.fsys.OpenFile(v.s.path(dirLog, id), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := readRecords(io.LimitReader(f, maxLog), fn); err != nil {
		return fmt.Errorf("spool %s: attempt log: %w", id, err)
	}
	return nil
}

// State reads the attempt log of m.
func (v *View) State(m *Message) (State, error) {
	st := NewState(m.Env)
	err := v.ReadLog(m.ID, func(r *Record) error { st.Apply(r); return nil })
	return st, err
}

func readRecords(r io.Reader, fn func(*Record) error) error {
	br := bufio.NewReader(r)
	for {
		line, err := readLine(br, maxRecord)
		if err == io.EOF {
			return nil // with or without a torn line
		}
		if err != nil {
			return err
		}
		var rec Record
		if json.Unmarshal(line, &rec) != nil || rec.V < 1 {
			continue
		}
		if rec.V > recordVersion {
			return ErrNewerFormat
		}
		if err := fn(&rec); err != nil {
			return err
		}
	}
}

// readLine returns the next line without its LF; io.EOF means that no complete one is left.
func readLine(br *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := br.ReadSlice('\n')
		if err == nil && line == nil {
			return part[:len(part)-1], nil
		}
		line = append(line, part...)
		if err == nil {
			return line[:len(line)-1], nil
		}
		if err != bufio.ErrBufferFull {
			return nil, err
		}
		if len(line) > limit {
			return nil, fmt.Errorf("%w: a line over %d octets", ErrCorrupt, limit)
		}
	}
}
