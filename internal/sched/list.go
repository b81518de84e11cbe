package sched

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"pennypost/internal/envelope"
)

// States as list and show name them.
const (
	stateActive   = "active"   // an attempt is under way
	stateReady    = "ready"    // due, waits for its turn
	stateWaiting  = "waiting"  // behind a next hop that does not answer
	stateDeferred = "deferred" // waits for its due time
	stateHeld     = "held"
)

// listLine is one message of the list.
type listLine struct {
	ID       string `json:"id"`
	State    string `json:"state"`
	Due      string `json:"due,omitempty"`
	Attempts int    `json:"attempts"`
	Size     int64  `json:"size"`
	Left     int    `json:"left"` // recipients
	Relay    string `json:"relay,omitempty"`
	From     string `json:"from"`
	To       string `json:"to"` // the first recipient left
}

// view is an entry as people see it. s.mu is held.
func (s *Scheduler) view(r ref) listLine {
	if r == 0 {
		return listLine{}
	}
	e := s.entries.at(r)
	v := listLine{ID: string(e.id[:]), Attempts: int(e.tries), Size: e.size, Left: int(e.left), From: e.from(), To: e.to()}
	h := s.hops[e.hop]
	if e.hop != 0 {
		v.Relay = h.target.String()
	}
	switch {
	case e.flags&held != 0:
		v.State = stateHeld
		return v
	case e.state == working:
		v.State = stateActive
	case e.state == waiting && h.fails > 0:
		v.State = stateWaiting
	case e.state == waiting || e.due <= s.now():
		v.State = stateReady
	default:
		v.State = stateDeferred
	}
	v.Due = s.wallTime(s.dueOf(e)).Format(time.RFC3339)
	return v
}

// list prints one line a message, in the order of the ids, which is that of acceptance. It
// holds the lock for a few messages at a time.
func (s *Scheduler) list(c *Command, who Who, out Sink) (int, error) {
	if len(c.IDs) > 0 {
		return s.listSome(c, who, out)
	}
	s.mu.Lock()
	ids := make([]key, 0, s.entries.len())
	s.entries.each(func(_ ref, e *entry) bool { ids = append(ids, e.id); return true })
	s.mu.Unlock()
	slices.SortFunc(ids, func(a, b key) int { return bytes.Compare(a[:], b[:]) })
	var buf []byte
	for part := range slices.Chunk(ids, 500) {
		var foreign []key
		buf = buf[:0]
		s.mu.Lock()
		for _, id := range part {
			r := s.entries.byID[id]
			switch {
			case r == 0:
			case !who.Admin && s.entries.at(r).uid < 0:
				foreign = append(foreign, id) // its owner is not known without opening it
			case who.Admin || int(s.entries.at(r).uid) == who.UID:
				v := s.view(r)
				buf = v.append(buf, c.JSON)
			}
		}
		s.mu.Unlock()
		if _, err := out.Write(buf); err != nil {
			return envelope.ExIOErr, err
		}
		for _, id := range foreign {
			if err := s.listOne(c, string(id[:]), who, out); err != nil && err != errUnknown {
				return envelope.ExIOErr, err
			}
		}
	}
	return envelope.ExOK, nil
}

func (s *Scheduler) listSome(c *Command, who Who, out Sink) (int, error) {
	status := envelope.ExOK
	for _, id := range c.IDs {
		err := s.listOne(c, id, who, out)
		if err == errUnknown {
			status = envelope.ExDataErr
			err = out.Fail(fmt.Errorf("%s: %w", field(id), err))
		}
		if err != nil {
			return envelope.ExIOErr, err
		}
	}
	return status, nil
}

func (s *Scheduler) listOne(c *Command, id string, who Who, out Sink) error {
	r, err := s.lookUp(id, who)
	if err != nil {
		return errUnknown
	}
	s.mu.Lock()
	v := s.view(r)
	s.mu.Unlock()
	_, err = out.Write(v.append(nil, c.JSON))
	return err
}

// append adds the line in one of its two forms.
func (v *listLine) append(b []byte, asJSON bool) []byte {
	if asJSON {
		b = append(append(b, `{"id":"`...), v.ID...)
		b = append(append(b, `","state":"`...), v.State...)
		b = append(b, '"')
		if v.Due != "" {
			b = append(append(append(b, `,"due":"`...), v.Due...), '"')
		}
		b = strconv.AppendInt(append(b, `,"attempts":`...), int64(v.Attempts), 10)
		b = strconv.AppendInt(append(b, `,"size":`...), v.Size, 10)
		b = strconv.AppendInt(append(b, `,"left":`...), int64(v.Left), 10)
		if v.Relay != "" {
			b = appendString(append(b, `,"relay":`...), v.Relay)
		}
		b = appendString(append(b, `,"from":`...), v.From)
		b = appendString(append(b, `,"to":`...), v.To)
		return append(b, "}\n"...)
	}
	due := v.Due
	if due == "" {
		due = "-"
	}
	relay := v.Relay
	if relay == "" {
		relay = "-"
	}
	b = append(append(b, v.ID...), '\t')
	b = append(append(b, v.State...), '\t')
	b = append(append(b, due...), '\t')
	b = append(strconv.AppendInt(b, int64(v.Attempts), 10), '\t')
	b = append(strconv.AppendInt(b, v.Size, 10), '\t')
	b = append(strconv.AppendInt(b, int64(v.Left), 10), '\t')
	b = append(append(b, field(relay)...), '\t')
	b = append(append(append(b, '<'), field(v.From)...), '>', '\t')
	return append(append(append(b, '<'), field(v.To)...), '>', '\n')
}

// appendString is a JSON string of an address or host name, nearly always without anything to
// escape.
func appendString(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
			q, err := json.Marshal(s)
			if err != nil {
				return append(b, `""`...) // cannot be: every string can be encoded
			}
			return append(b, q...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// field makes text from outside safe for line output: control characters, TAB included, and
// what is no UTF-8 become \xNN, and backslashes are doubled so that it can be undone.
func field(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, unsafe) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case unsafe(r) || r == utf8.RuneError && n <= 1:
			for j := range n {
				fmt.Fprintf(&b, `\x%02x`, s[i+j])
			}
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

func unsafe(r rune) bool {
	return r < ' ' || r == '\\' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}

func printJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// statLine is one next hop with messages, or with a fault.
type statLine struct {
	Relay    string `json:"relay"`
	Worker   string `json:"worker"`
	Waiting  int    `json:"waiting"`
	Running  int    `json:"running"`
	Limit    int    `json:"limit"`
	Failures int    `json:"failures"`
	Retry    string `json:"retry,omitempty"`
	Code     string `json:"dsn,omitempty"`
	Reply    string `json:"reply,omitempty"`
}

// stats prints totals and next hops.
func (s *Scheduler) stats(c *Command, who Who, out Sink) (int, error) {
	if !who.Admin {
		return envelope.ExNoPerm, fmt.Errorf("only the spool's owner, root and members of admin_group may see the figures")
	}
	states := map[string]int{}
	lines := []statLine{} // in JSON an empty list, not null
	s.mu.Lock()
	s.entries.each(func(r ref, _ *entry) bool { states[s.view(r).State]++; return true })
	n, counts := s.entries.len(), s.counts
	for _, h := range s.hops[1:] {
		if h.queue.len()+h.urgent.len()+h.running == 0 && h.fails == 0 {
			continue
		}
		l := statLine{
			Relay: h.target.String(), Worker: h.worker.name, Waiting: h.queue.len() + h.urgent.len(), Running: h.running,
			Limit: h.limit, Failures: h.fails,
		}
		if h.fails > 0 {
			l.Retry, l.Code, l.Reply = s.wallTime(h.until).Format(time.RFC3339), h.last.Code, h.last.Reply
		}
		lines = append(lines, l)
	}
	s.mu.Unlock()
	var err error
	if c.JSON {
		err = printJSON(out, map[string]any{
			"messages": n, "active": states[stateActive], "ready": states[stateReady], "waiting": states[stateWaiting],
			"deferred": states[stateDeferred], "held": states[stateHeld],
			"taken": counts.Taken, "attempts": counts.Attempts, "done": counts.Done, "hops": lines,
		})
	} else {
		err = printStats(out, n, states, &counts, lines)
	}
	if err != nil {
		return envelope.ExIOErr, err
	}
	return envelope.ExOK, nil
}

func printStats(w io.Writer, n int, states map[string]int, counts *Counts, lines []statLine) error {
	var b strings.Builder
	fmt.Fprintf(&b, "messages\t%d\n", n)
	for _, st := range []string{stateActive, stateReady, stateWaiting, stateDeferred, stateHeld} {
		fmt.Fprintf(&b, "%s\t%d\n", st, states[st])
	}
	fmt.Fprintf(&b, "taken\t%d\nattempts\t%d\ndone\t%d\n", counts.Taken, counts.Attempts, counts.Done)
	for _, l := range lines {
		fmt.Fprintf(&b, "hop\t%d\t%d\t%d\t%s", l.Waiting, l.Running, l.Failures, field(l.Relay))
		if l.Failures > 0 {
			fmt.Fprintf(&b, "\t%s\t%s %s", l.Retry, l.Code, field(l.Reply))
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// showRoutes prints where addresses would go.
func (s *Scheduler) showRoutes(c *Command, out Sink) (int, error) {
	status := envelope.ExOK
	for _, a := range c.Addrs {
		if _, err := envelope.ParseLocal(a, ""); err != nil {
			status = envelope.ExDataErr
			if err := out.Fail(fmt.Errorf("%q is no address: %w", a, err)); err != nil {
				return envelope.ExIOErr, err
			}
			continue
		}
		s.mu.Lock()
		t := s.table.find(a)
		s.mu.Unlock()
		var err error
		if c.JSON {
			err = printJSON(out, map[string]any{"to": a, "relay": t.String(), "worker": t.Worker, "next_hop": t.NextHop, "tls": t.TLS})
		} else {
			_, err = fmt.Fprintf(out, "%s\t<%s>\n", field(t.String()), field(a))
		}
		if err != nil {
			return envelope.ExIOErr, err
		}
	}
	return status, nil
}
