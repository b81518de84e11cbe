package sched

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/spool"
	"pennypost/internal/worker"
)

// errUnknown is the answer for an id that is not in the queue (exit status 65). For somebody
// who may not see a message it is not there.
var errUnknown = errors.New("no such message in the queue")

// errBusy is the answer when an attempt is under way that the verb cannot work beside.
var errBusy = errors.New("an attempt is under way: try again when it is over")

// Do executes one command for somebody and returns its exit status. Without Run before, it
// works on what Load found.
func (s *Scheduler) Do(ctx context.Context, c *Command, who Who, out Sink) (int, error) {
	switch c.Verb {
	case "ping":
		s.scan(false)
		return envelope.ExOK, nil
	case "list":
		return s.list(c, who, out)
	case "stats":
		return s.stats(c, who, out)
	case "route":
		if c.Target == "" && len(c.IDs) == 0 {
			return s.showRoutes(c, out)
		}
		if _, err := ParseTarget(c.Target); err != nil && c.Target != "" {
			return envelope.ExUsage, err
		}
	case "flush":
		return s.flush(c, who, out)
	case "show", "cat", "explain", "hold", "release", "retry", "rm", "bounce":
	default:
		return envelope.ExUsage, fmt.Errorf("unknown verb %q", c.Verb)
	}
	return s.forEach(ctx, c, who, out)
}

// forEach does a verb for each id; the worst status is the command's.
func (s *Scheduler) forEach(ctx context.Context, c *Command, who Who, out Sink) (int, error) {
	status := envelope.ExOK
	for _, id := range c.IDs {
		err := s.one(c, id, who, out)
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return envelope.ExTempFail, ctx.Err()
		}
		st := envelope.ExTempFail
		if errors.Is(err, errUnknown) {
			st = envelope.ExDataErr
		}
		if status == envelope.ExOK || st == envelope.ExTempFail {
			status = st
		}
		if err := out.Fail(fmt.Errorf("%s: %w", field(id), err)); err != nil {
			return envelope.ExIOErr, err
		}
	}
	return status, nil
}

func (s *Scheduler) one(c *Command, id string, who Who, out Sink) error {
	if !spool.ValidID(id) {
		if c.Verb == "explain" {
			return s.explainAddress(c, id, who, out)
		}
		return errUnknown
	}
	r, err := s.lookUp(id, who)
	if errors.Is(err, errUnknown) && c.Verb == "explain" {
		return s.explainGone(c, id, who, out)
	}
	if err != nil {
		return err
	}
	switch c.Verb {
	case "show":
		return s.show(c, id, out)
	case "cat":
		return s.cat(id, out)
	case "explain":
		return s.explain(c, r, id, out)
	}
	return s.change(c, r, id, who, out)
}

// lookUp finds a message that somebody may see. One that waits in incoming/ is taken in first.
func (s *Scheduler) lookUp(id string, who Who) (ref, error) {
	s.mu.Lock()
	r := s.entries.find(id)
	s.mu.Unlock()
	if r == 0 {
		if err := s.intake(id, true); err != nil {
			return 0, err
		}
		s.mu.Lock()
		r = s.entries.find(id)
		s.mu.Unlock()
	}
	if r == 0 {
		return 0, errUnknown
	}
	if !who.Admin && s.owner(r, id) != who.UID {
		return 0, errUnknown
	}
	return r, nil
}

// owner is the user who handed a message in; -1 is nobody.
func (s *Scheduler) owner(r ref, id string) int {
	s.mu.Lock()
	uid := int(s.entries.at(r).uid)
	s.mu.Unlock()
	if uid >= 0 {
		return uid
	}
	m, err := s.q.Open(id)
	if err != nil {
		return -1
	}
	defer s.shut(m)
	if u := m.Env.Origin.UID; u != nil {
		return *u
	}
	return int(m.UID)
}

// change does a verb that changes one message. When it returns nil, the change is on stable
// storage.
func (s *Scheduler) change(c *Command, r ref, id string, who Who, out Sink) error {
	if !c.DryRun {
		if err := s.apply(c, r, id, who); err != nil {
			return err
		}
		s.o.Log.Info("changed by an admin", "id", id, "verb", c.Verb, "uid", who.UID, "to", c.Addrs, "relay", c.Target)
	}
	if c.JSON {
		return printJSON(out, map[string]any{"id": id, "verb": c.Verb, "dry_run": c.DryRun})
	}
	if c.DryRun {
		_, err := fmt.Fprintf(out, "would %s %s\n", c.Verb, id)
		return err
	}
	return nil
}

func (s *Scheduler) apply(c *Command, r ref, id string, who Who) error {
	name := "uid " + strconv.Itoa(who.UID)
	switch c.Verb {
	case "hold":
		return s.record(r, id, spool.Record{Kind: spool.RecHold, Who: name}, func(e *entry) { e.flags |= held })
	case "release":
		return s.record(r, id, spool.Record{Kind: spool.RecRelease, Who: name}, func(e *entry) { e.flags &^= held })
	case "retry":
		return s.record(r, id, spool.Record{Kind: spool.RecRetry, Who: name}, s.dueNow)
	case "route":
		return s.record(r, id, spool.Record{Kind: spool.RecRoute, Route: c.Target, Who: name}, func(e *entry) {
			e.route(c.Target)
			e.hop = 0 // it is opened to see where it goes now
			s.dueNow(e)
		})
	}
	return s.finishByHand(c, r, id, name)
}

// dueNow makes a message due. s.mu is held.
func (s *Scheduler) dueNow(e *entry) {
	e.due = s.now()
	if e.state == waiting && e.hop != 0 {
		h := s.hops[e.hop]
		h.queue.pushFront(item{ref: s.entries.find(string(e.id[:]))}, e.prio) // what is left of it behind is stale
		s.wakeHop(h)
	}
}

// wakeHop lets a hop in back-off be probed at once, without a change of its schedule should
// that fail. s.mu is held.
func (s *Scheduler) wakeHop(h *hop) {
	if h.down(s.now()) {
		h.resume = h.until
	}
	h.until = 0
	s.activate(h)
}

// record writes an admin's word to the attempt log, durably, and then lets it take effect. What
// holds already is not written again, so that a verb may be repeated.
func (s *Scheduler) record(r ref, id string, rec spool.Record, fn func(*entry)) error {
	l := s.logLock(id)
	l.Lock()
	err := s.q.AppendLogSync(id, rec)
	l.Unlock()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries.find(id) != r {
		return nil // it was finished meanwhile
	}
	e := s.entries.at(r)
	e.gen++
	fn(e)
	s.note(r)
	switch {
	case e.state == waiting && (e.flags&held != 0 || e.hop == 0), e.state == idle:
		s.park(r, e)
	}
	s.fireUntil(s.now())
	s.dispatch()
	return nil
}

// finishByHand ends a message, or some of its recipients, by rm or bounce.
func (s *Scheduler) finishByHand(c *Command, r ref, id, who string) error {
	s.mu.Lock()
	e := s.entries.at(r)
	if e.state == working {
		s.mu.Unlock()
		if c.Verb == "rm" && len(c.Addrs) == 0 {
			return s.record(r, id, spool.Record{Kind: spool.RecRemove, Who: who}, func(e *entry) { e.flags |= removed })
		}
		return errBusy
	}
	e.state = working
	e.gen++
	s.busy++
	copied := *e
	s.mu.Unlock()
	left, rd, err := s.settleByHand(c, id, who, &copied)
	s.mu.Lock()
	defer s.mu.Unlock()
	e = s.entries.at(r)
	switch {
	case err != nil || len(left) > 0:
		s.busy--
		if rd != nil {
			e.left, e.text = uint32(len(left)), rd.msg.Env.From+"\t"+left[0].Addr
			s.shut(rd.msg)
		}
		e.hop = 0
		s.locate(e)
		s.note(r)
		s.park(r, e)
	default:
		s.busy--
		s.counts.Done++
		s.forget(r)
	}
	s.dispatch()
	return err
}

// settleByHand does the work on disk: report first, then the log, then, with nobody left, history
// and removal. rd is nil when nothing could be done.
func (s *Scheduler) settleByHand(c *Command, id, who string, e *entry) ([]envelope.Recipient, *round, error) {
	m, st, owed, err := s.openMessage(id)
	if err != nil {
		return nil, nil, err
	}
	rd := &round{msg: m, st: st, owed: owed, n: st.Attempts + 1}
	kind := spool.RecRemove
	if c.Verb == "bounce" {
		kind = spool.RecBounce
	}
	left := st.Left[:0:0]
	for _, to := range st.Left {
		if len(c.Addrs) > 0 && !slices.Contains(c.Addrs, to.Addr) {
			left = append(left, to)
			continue
		}
		why := c.Why
		if why == "" {
			why = "returned by the administrator of this host"
		}
		rd.results = append(rd.results, result{Result: worker.Result{To: to.Addr, Status: envelope.Fail("5.7.0", why)}, rcpt: to})
	}
	if len(rd.results) == 0 && len(st.Left) > 0 {
		s.shut(m)
		return nil, nil, fmt.Errorf("none of its recipients left is %s", strings.Join(c.Addrs, " "))
	}
	rec := spool.Record{Kind: kind, To: c.Addrs, Who: who, Why: c.Why}
	if kind == spool.RecBounce {
		rec.Children, _, err = s.reports(rd, e, left)
		for i := range rd.results {
			s.logAttempt(rd, &rd.results[i])
		}
	}
	if err == nil {
		l := s.logLock(id)
		l.Lock()
		err = s.q.AppendLogSync(id, rec)
		l.Unlock()
	}
	if err != nil {
		s.shut(m)
		return nil, nil, err
	}
	if len(left) > 0 {
		return left, rd, nil
	}
	h := s.history(rd, rec.Children)
	h.Attempts = st.Attempts
	if h.Removed = kind == spool.RecRemove; h.Removed {
		h.Results = slices.DeleteFunc(h.Results, func(r historyResult) bool {
			return slices.ContainsFunc(rd.results, func(x result) bool { return x.To == r.To })
		})
	}
	s.bury(m, h)
	return nil, rd, nil
}

// flush makes messages due at once: all, or those of a domain or next hop.
func (s *Scheduler) flush(c *Command, who Who, out Sink) (int, error) {
	if !who.Admin {
		return envelope.ExNoPerm, errors.New("only the spool's owner, root and members of admin_group may flush")
	}
	ids := s.makeDue(c.DryRun, func(e *entry) bool { return s.flushes(e, c.Target) })
	slices.Sort(ids)
	if s.byHand && !c.DryRun { // the next scheduler, which makes the attempts, reads it
		for _, id := range ids {
			rec := spool.Record{Kind: spool.RecRetry, Who: "uid " + strconv.Itoa(who.UID)}
			if err := s.q.AppendLogSync(id, rec); err != nil {
				return envelope.ExTempFail, err
			}
		}
	}
	if !c.JSON && !c.DryRun {
		return envelope.ExOK, nil
	}
	for _, id := range ids {
		var err error
		if c.JSON {
			err = printJSON(out, map[string]any{"id": id, "verb": "flush", "dry_run": c.DryRun})
		} else {
			_, err = fmt.Fprintf(out, "would retry %s\n", id)
		}
		if err != nil {
			return envelope.ExIOErr, err
		}
	}
	return envelope.ExOK, nil
}

// makeDue makes messages due at once and names them; with dry it only names them.
func (s *Scheduler) makeDue(dry bool, wanted func(*entry) bool) (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.entries.each(func(r ref, e *entry) bool {
		if e.flags&held != 0 || e.state == working || !wanted(e) {
			return true
		}
		ids = append(ids, string(e.id[:]))
		if dry {
			return true
		}
		if e.state == idle {
			e.due = now
			s.park(r, e)
		} else {
			s.wakeHop(s.hops[e.hop])
		}
		return true
	})
	s.fireUntil(now)
	s.dispatch()
	return ids
}

// flushDomain is what a client of msmtpd may ask for by ETRN (RFC 1985 §5.3).
func (s *Scheduler) flushDomain(domain string, below bool) {
	ids := s.makeDue(false, func(e *entry) bool {
		if s.flushes(e, domain) {
			return true
		}
		_, d, _ := strings.Cut(e.to(), "@")
		return below && strings.HasSuffix(strings.ToLower(d), "."+strings.ToLower(domain))
	})
	s.o.Log.Info("domain is started", "domain", domain, "below", below, "messages", len(ids))
}

// flushes tells whether a message belongs to what is flushed. Of a message for several next
// hops only the first recipient's domain is in memory; it is flushed too when in doubt.
func (s *Scheduler) flushes(e *entry, target string) bool {
	if target == "" {
		return true
	}
	if e.hop != 0 && s.hops[e.hop].target.String() == target {
		return true
	}
	_, domain, _ := strings.Cut(e.to(), "@")
	return strings.EqualFold(domain, target) || e.left > 1
}

// show prints envelope and state of one message.
func (s *Scheduler) show(c *Command, id string, out Sink) error {
	m, st, _, err := s.openMessage(id)
	if err != nil {
		return gone(err)
	}
	defer s.shut(m)
	s.mu.Lock()
	v := s.view(s.entries.find(id))
	s.mu.Unlock()
	if c.JSON {
		return printJSON(out, map[string]any{
			"id": id, "state": v.State, "due": v.Due, "relay": v.Relay, "attempts": st.Attempts, "size": m.Size, "left": st.Left,
			"route": st.Route, "children": st.Children, "envelope": m.Env, "uid": m.UID,
		})
	}
	var b strings.Builder
	line := func(k, val string) {
		if val != "" {
			fmt.Fprintf(&b, "%-10s %s\n", k, field(val))
		}
	}
	line("id", id)
	line("state", v.State)
	line("due", v.Due)
	line("attempts", strconv.Itoa(st.Attempts))
	line("accepted", m.Env.Time.UTC().Format(time.RFC3339))
	line("size", strconv.FormatInt(m.Size, 10))
	line("origin", m.Env.Origin.Kind)
	line("peer", m.Env.Origin.Peer)
	line("user", m.Env.Origin.User)
	line("msgid", m.Env.Origin.MsgID)
	line("route", st.Route)
	line("from", "<"+m.Env.From+">")
	for _, to := range m.Env.To {
		what := "done"
		if slices.ContainsFunc(st.Left, func(r envelope.Recipient) bool { return r.Addr == to.Addr }) {
			what = "left"
		}
		line("to", what+" <"+to.Addr+">")
	}
	_, err = out.Write([]byte(b.String()))
	return err
}

// gone says that a message left between two looks at it.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errUnknown
	}
	return err
}

// cat prints the message bytes.
func (s *Scheduler) cat(id string, out Sink) error {
	m, err := s.q.Open(id)
	if err != nil {
		return gone(err)
	}
	defer s.shut(m)
	body := m.Body()
	buf := make([]byte, 48<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if err := out.Raw(buf[:n]); err != nil {
				return err
			}
		}
		if n == 0 || err != nil {
			break
		}
	}
	if at, err := body.Seek(0, 1); err != nil || at != m.Size {
		return errors.Join(err, fmt.Errorf("message file ends at octet %d of %d", at, m.Size))
	}
	return nil
}

// Prepare loads the queue for verbs when no scheduler runs: changes are made, attempts not.
func (s *Scheduler) Prepare() error {
	s.mu.Lock()
	s.ending, s.byHand = true, true
	s.mu.Unlock()
	if err := s.load(); err != nil {
		return err
	}
	s.scan(true)
	return nil
}

// Finish ends what Prepare began.
func (s *Scheduler) Finish() error {
	s.wg.Wait()
	return errors.Join(s.put(), s.q.WriteDue(s.earliest()))
}
