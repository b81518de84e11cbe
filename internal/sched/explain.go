package sched

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/spool"
)

// explain tells in sentences what happened to a message, what will, and what can be done.
func (s *Scheduler) explain(c *Command, r ref, id string, out Sink) error {
	m, st, _, err := s.openMessage(id)
	if err != nil {
		return gone(err)
	}
	defer s.shut(m)
	var recs []spool.Record
	if err := s.q.ReadLog(id, func(rec *spool.Record) error { recs = append(recs, *rec); return nil }); err != nil {
		return err
	}
	s.mu.Lock()
	x := s.prospect(r, &st)
	s.mu.Unlock()
	if c.JSON {
		return printJSON(out, map[string]any{
			"id": id, "state": x.line.State, "due": x.line.Due, "relay": x.line.Relay, "attempts": st.Attempts,
			"left": st.Left, "from": m.Env.From, "envelope": m.Env, "log": recs, "next": x.next, "advice": x.advice,
		})
	}
	var b strings.Builder
	age := s.wall().Sub(m.Env.Time).Round(time.Second)
	fmt.Fprintf(&b, "Message %s from <%s>, %d octets, was accepted %s (%s ago)%s.\n", id, field(m.Env.From), m.Size, stamp(m.Env.Time), age, origin(&m.Env.Origin))
	if why := m.Env.Quarantine; why != "" {
		fmt.Fprintf(&b, "%s: held by the filter %s.\n", stamp(m.Env.Time), field(why))
	}
	for i := range recs {
		explainRecord(&b, &recs[i])
	}
	if st.Attempts == 0 {
		b.WriteString("No attempt was made for this message itself yet.\n")
	}
	if n := len(st.Left); n > 0 {
		names := make([]string, 0, 5)
		for _, to := range st.Left[:min(n, 5)] {
			names = append(names, "<"+field(to.Addr)+">")
		}
		more := ""
		if n > 5 {
			more = " and " + strconv.Itoa(n-5) + " more"
		}
		fmt.Fprintf(&b, "Left: %s%s.\n", strings.Join(names, " "), more)
	}
	explainRequests(&b, m.Env)
	fmt.Fprintf(&b, "%s\n", x.next)
	if x.advice != "" {
		fmt.Fprintf(&b, "%s\n", x.advice)
	}
	_, err = io.WriteString(out, b.String())
	return err
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return strconv.Itoa(n) + " times"
}

func attempts(n int) string {
	if n == 1 {
		return "one attempt"
	}
	return strconv.Itoa(n) + " attempts"
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

func origin(o *envelope.Origin) string {
	switch {
	case o.Kind == envelope.OriginDSN && o.Parent != "":
		return ", a delivery report about message " + o.Parent
	case o.Kind == envelope.OriginForward:
		return ", made from message " + o.Parent + " by an alias or forward"
	case o.User != "":
		return " from user " + field(o.User)
	case o.Peer != "":
		return " from " + field(o.Peer)
	case o.UID != nil:
		return " from local uid " + strconv.Itoa(*o.UID)
	}
	return ""
}

func explainRecord(b *strings.Builder, r *spool.Record) {
	at := stamp(r.Time)
	who := field(r.Who)
	switch r.Kind {
	case spool.RecAttempt:
		for i := range r.Results {
			explainResult(b, at, r.Round, &r.Results[i])
		}
	case spool.RecHold:
		fmt.Fprintf(b, "%s: held by %s.\n", at, who)
	case spool.RecRelease:
		fmt.Fprintf(b, "%s: released by %s.\n", at, who)
	case spool.RecRetry:
		fmt.Fprintf(b, "%s: made due by %s.\n", at, who)
	case spool.RecRoute:
		fmt.Fprintf(b, "%s: next hop set to %q by %s.\n", at, r.Route, who)
	case spool.RecBounce:
		fmt.Fprintf(b, "%s: returned to the sender by %s%s.\n", at, who, list(r.To))
	case spool.RecRemove:
		fmt.Fprintf(b, "%s: removed by %s%s.\n", at, who, list(r.To))
	case spool.RecNotice:
		fmt.Fprintf(b, "%s: a delay report was sent to the sender.\n", at)
	default:
		fmt.Fprintf(b, "%s: %s.\n", at, field(r.Kind))
	}
	if len(r.Children) > 0 && r.Kind != spool.RecNotice {
		fmt.Fprintf(b, "%s: a delivery report was queued as message %s.\n", at, strings.Join(r.Children, ", "))
	}
}

func list(to []string) string {
	if len(to) == 0 {
		return ""
	}
	return ", for <" + field(strings.Join(to, "> <")) + ">"
}

func explainResult(b *strings.Builder, at string, round int, r *spool.Result) {
	fmt.Fprintf(b, "%s: attempt %d, <%s>: %s %s", at, round, field(r.To), r.Verdict, r.Code)
	if r.Relay != "" {
		fmt.Fprintf(b, " by %s", field(r.Relay))
	}
	if r.Reply != "" {
		fmt.Fprintf(b, ": %s", field(r.Reply))
	}
	b.WriteString("\n")
	for _, m := range r.MX {
		fmt.Fprintf(b, "    tried %s\n", field(m))
	}
	if r.TLS != "" {
		fmt.Fprintf(b, "    TLS: %s\n", field(r.TLS))
	}
	for _, t := range r.Transcript {
		fmt.Fprintf(b, "    %s\n", field(t))
	}
}

// outlook is what comes next.
type outlook struct {
	line   listLine
	next   string
	advice string
}

// prospect says what comes next for a message. s.mu is held.
func (s *Scheduler) prospect(r ref, st *spool.State) outlook {
	x := outlook{line: s.view(r)}
	if r == 0 || s.entries.at(r).state == free {
		x.next = "It has just left the queue: ask again."
		return x
	}
	e := s.entries.at(r)
	h := s.hops[e.hop]
	id := x.line.ID
	end := s.wallTime(e.born + s.o.Expiry.Milliseconds())
	switch x.line.State {
	case stateHeld:
		x.next = "It is held and waits until somebody releases it."
		x.advice = "To let it go on: mqueue release " + id
		return x
	case stateActive:
		x.next = "An attempt is under way now."
		return x
	case stateWaiting:
		x.next = fmt.Sprintf("It waits behind next hop %s, which has failed %s since %s (%s %s). One message at a time tries whether it is back, next at %s; %d in line go on at the first success.",
			field(x.line.Relay), times(h.fails), stamp(s.wallTime(h.since)), h.last.Code, field(h.last.Reply), stamp(s.wallTime(h.until)), h.queue.len()+h.urgent.len())
	case stateReady:
		x.next = "It is due and waits for its turn."
		if a := h.worker; a.until > s.now() {
			x.next = fmt.Sprintf("It is due, but worker %s cannot be reached (%v); the next try is at %s.", a.name, a.err, stamp(s.wallTime(a.until)))
			x.advice = "See whether the worker runs and its socket or command in the configuration is right (mcheck)."
			return x
		}
		if s.byHand {
			x.next = "It is due; no scheduler runs at the moment."
			x.advice = "To start one: mqueue run"
			return x
		}
	default:
		x.next = "The next attempt is due at " + stamp(s.wallTime(e.due)) + "."
	}
	if s.wall().Before(end) {
		x.next += " If nothing changes it is returned to the sender after " + stamp(end) + "."
	} else {
		x.next += " It is past its expiry: after an attempt, its third at least, it is returned to the sender."
	}
	x.advice = "To try it now: mqueue retry " + id + ". To send it another way: mqueue route --to HOST:PORT " + id + ". To return it now: mqueue bounce " + id + "."
	if st.Route != "" {
		x.advice += " To follow the route table again: mqueue route --to '' " + id + "."
	}
	return x
}

// explainGone looks for a message in the history files, newest first.
func (s *Scheduler) explainGone(c *Command, id string, who Who, out Sink) error {
	return s.searchHistory(c, who, out, func(h *historyLine) bool { return h.ID == id }, 1)
}

// explainAddress tells of the messages from or to an address: those in the queue, and what the
// history holds.
func (s *Scheduler) explainAddress(c *Command, addr string, who Who, out Sink) error {
	a, err := envelope.ParseAddress(strings.Trim(addr, "<>"))
	if err != nil {
		return errUnknown
	}
	want := a.Key()
	var ids []string
	s.mu.Lock()
	s.entries.each(func(_ ref, e *entry) bool {
		if sameAddress(e.from(), want) || sameAddress(e.to(), want) || e.left > 1 {
			ids = append(ids, string(e.id[:]))
		}
		return true
	})
	s.mu.Unlock()
	slices.Sort(ids)
	found := 0
	for _, id := range ids {
		r, err := s.lookUp(id, who)
		if err != nil || !s.concerns(id, want) {
			continue
		}
		if err := s.explain(c, r, id, out); err != nil && !errors.Is(err, errUnknown) {
			return err
		}
		found++
	}
	err = s.searchHistory(c, who, out, func(h *historyLine) bool {
		return sameAddress(h.From, want) || slices.ContainsFunc(h.Results, func(r historyResult) bool {
			return sameAddress(r.To, want) || sameAddress(r.OrigTo, want)
		})
	}, 100)
	if errors.Is(err, errUnknown) && found > 0 {
		return nil
	}
	return err
}

func sameAddress(a, key string) bool {
	if !strings.EqualFold(a, key) {
		return false
	}
	p, err := envelope.ParseAddress(a)
	return err == nil && p.Key() == key
}

// concerns opens a message for several recipients to see whether an address is among them.
func (s *Scheduler) concerns(id, want string) bool {
	m, err := s.q.Open(id)
	if err != nil {
		return false
	}
	defer s.shut(m)
	return sameAddress(m.Env.From, want) || slices.ContainsFunc(m.Env.To, func(r envelope.Recipient) bool {
		return sameAddress(r.Addr, want) || sameAddress(r.Orig, want)
	})
}

// searchHistory explains finished messages that match, at most limit of them.
func (s *Scheduler) searchHistory(c *Command, who Who, out Sink, match func(*historyLine) bool, limit int) error {
	dates, err := s.q.HistoryDays()
	if err != nil {
		return err
	}
	slices.Sort(dates)
	slices.Reverse(dates)
	found := 0
	for _, day := range dates {
		n, err := s.searchDay(c, day, who, out, match, limit-found)
		if err != nil {
			return err
		}
		if found += n; found >= limit {
			break
		}
	}
	if found == 0 {
		return errUnknown
	}
	return nil
}

func (s *Scheduler) searchDay(c *Command, day string, who Who, out Sink, match func(*historyLine) bool, limit int) (int, error) {
	f, err := s.q.OpenHistory(day)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	br := bufio.NewReaderSize(f, 64<<10)
	var hits []historyLine
	for {
		line, err := br.ReadBytes('\n')
		if err == io.EOF {
			break // a torn last line is left out
		}
		if err != nil {
			return 0, err
		}
		var h historyLine
		if json.Unmarshal(line, &h) != nil || !match(&h) {
			continue
		}
		if who.Admin || h.Origin.UID != nil && *h.Origin.UID == who.UID {
			hits = append(hits, h)
		}
	}
	if len(hits) > limit {
		hits = hits[len(hits)-limit:]
	}
	for i := range hits {
		if err := explainHistory(c, out, &hits[i]); err != nil {
			return 0, err
		}
	}
	return len(hits), nil
}

func explainHistory(c *Command, out Sink, h *historyLine) error {
	if c.JSON {
		return printJSON(out, map[string]any{"id": h.ID, "state": "done", "history": h})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Message %s from <%s>, %d octets, was accepted %s%s and left the queue %s after %s.\n",
		h.ID, field(h.From), h.Size, stamp(h.Accepted), origin(&h.Origin), stamp(h.Time), attempts(h.Attempts))
	for i := range h.Results {
		r := &h.Results[i]
		fmt.Fprintf(&b, "<%s>: %s %s", field(r.To), r.Verdict, r.Code)
		if r.Relay != "" {
			fmt.Fprintf(&b, " by %s", field(r.Relay))
		}
		if r.Mailbox != "" {
			fmt.Fprintf(&b, " in %s", field(r.Mailbox))
		}
		if r.Reply != "" {
			fmt.Fprintf(&b, ": %s", field(r.Reply))
		}
		b.WriteByte('\n')
	}
	if h.Removed {
		b.WriteString("It was removed by an administrator without a report.\n")
	}
	if len(h.Children) > 0 {
		fmt.Fprintf(&b, "Delivery reports about it: %s.\n", strings.Join(h.Children, " "))
	}
	_, err := io.WriteString(out, b.String())
	return err
}
