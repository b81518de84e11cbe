package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
	"pennypost/internal/worker"
)

const (
	maxDepth   = 10      // aliases within aliases
	maxTargets = 100_000 // of one recipient
)

type leafKind int

const (
	toMailbox leafKind = iota
	toProgram
	toFile
)

// leaf is one target on this host.
type leaf struct {
	kind    leafKind
	addr    string            // for Delivered-To
	mailbox *accounts.Mailbox // toMailbox
	text    string            // command or path
	as      *identity         // who runs the command or writes the file
	detail  string
}

// name is how logs and reports call the target.
func (l leaf) name() string {
	switch l.kind {
	case toProgram:
		return "|" + l.text
	case toFile:
		return l.text
	}
	return l.mailbox.Maildir
}

// plan is what one recipient stands for.
type plan struct {
	addr  envelope.Address // the recipient as asked for
	chain []string         // the addresses it went through, for loop detection
	here  []leaf           // delivered in this attempt
	away  []string         // recipients of the message that goes on
	owner string           // reverse-path of that message when a list has an owner
	list  bool
}

// planner expands one recipient.
type planner struct {
	d    *Deliverer
	p    *plan
	seen map[string]bool // targets already in the plan, and aliases already expanded
	path []string        // aliases being expanded, outermost first
}

// plan finds out where mail for addr goes. It follows aliases and forwards until it meets
// mailboxes, programs, files and addresses elsewhere. A recipient that comes down to one
// mailbox is delivered at once. Otherwise addresses become recipients of their own in a
// child message, so that each is retried by itself, and only what no address stands for
// (programs, files, a user's own copy) is delivered here.
func (d *Deliverer) plan(ctx context.Context, addr envelope.Address) (*plan, error) {
	p := &plan{addr: addr}
	pl := &planner{d: d, p: p, seen: map[string]bool{}}
	for range maxDepth {
		r, err := d.o.Accounts.Lookup(ctx, addr)
		if err != nil {
			return nil, err
		}
		full := r.Full.String()
		if slices.Contains(p.chain, full) {
			return nil, failure("5.4.6", "the address is forwarded to itself")
		}
		p.chain = append(p.chain, full)
		switch r.Kind {
		case accounts.NotLocal:
			return nil, deferral("4.3.5", "the domain is not local here; the route that says so needs the postmaster's attention")
		case accounts.NoSuchUser:
			return nil, failure("5.1.1", "no such user here")
		case accounts.IsMailbox:
			if err := pl.mailbox(ctx, r, full); err != nil {
				return nil, err
			}
		case accounts.IsAlias:
			if err := pl.alias(ctx, r, full); err != nil {
				return nil, err
			}
		}
		if len(p.here)+len(p.away) == 0 {
			return nil, deferral("4.3.5", "the alias leads to nobody")
		}
		next, ok := p.onlyLocal(d)
		if !ok {
			return p, nil
		}
		addr, p.away = next, nil
		clear(pl.seen)
	}
	return nil, failure("5.4.6", "too many aliases and forwards one behind the other")
}

// onlyLocal returns the recipient to go on with when the plan is just one local address.
func (p *plan) onlyLocal(d *Deliverer) (envelope.Address, bool) {
	if len(p.here) != 0 || len(p.away) != 1 || p.owner != "" {
		return envelope.Address{}, false
	}
	a, err := envelope.ParseAddress(p.away[0])
	return a, err == nil && d.o.Accounts.IsLocal(a.Domain)
}

// mailbox plans for a recipient that is a mailbox: the user's forward file, else the Maildir.
func (pl *planner) mailbox(ctx context.Context, r accounts.Result, full string) error {
	m := r.Mailbox
	own := leaf{kind: toMailbox, addr: full, mailbox: m, detail: r.Detail}
	if !m.System || !pl.d.o.Forward {
		pl.add(own, m.Maildir)
		return nil
	}
	targets, err := pl.d.readForward(m)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		pl.add(own, m.Maildir)
		return nil
	}
	as := &identity{name: m.User, uid: m.UID, gid: m.GID, home: m.Home}
	pl.path = append(pl.path[:0], full, r.Address.String())
	return pl.targets(ctx, targets, origin{as: as, addr: full, detail: r.Detail, self: &own}, r)
}

// origin is where targets come from.
type origin struct {
	as     *identity // who runs programs; nil: nobody may
	refuse error     // why nobody may
	addr   string
	detail string
	self   *leaf // what a user's own name in the forward file stands for
	depth  int
}

// alias plans for an alias.
func (pl *planner) alias(ctx context.Context, r accounts.Result, full string) error {
	o, ok, err := pl.d.o.Accounts.Owner(r.Address)
	if err != nil {
		return err
	}
	if ok && pl.p.owner == "" && !strings.HasPrefix(r.Address.Local, "owner-") {
		pl.p.owner, pl.p.list = o.String(), true
	}
	pl.path = append(pl.path[:0], full, r.Address.String())
	return pl.aliasTargets(ctx, r, full, 0)
}

func (pl *planner) aliasTargets(ctx context.Context, r accounts.Result, full string, depth int) error {
	as, refuse, err := pl.d.aliasIdentity(ctx, r.Alias)
	if err != nil {
		return err
	}
	return pl.targets(ctx, r.Alias.Targets, origin{as: as, refuse: refuse, addr: full, detail: r.Detail, depth: depth}, r)
}

func (pl *planner) targets(ctx context.Context, ts []accounts.Target, o origin, r accounts.Result) error {
	for _, t := range ts {
		if len(pl.p.here)+len(pl.p.away) >= maxTargets {
			return deferral("4.3.5", "the alias has too many targets")
		}
		if err := pl.target(ctx, t, o, r); err != nil {
			return err
		}
	}
	return nil
}

func (pl *planner) target(ctx context.Context, t accounts.Target, o origin, r accounts.Result) error {
	switch t.Kind {
	case accounts.ToAddress:
		a := t.Addr
		if a.Local == "" { // @domain: the same local-part there
			a.Local = r.Full.Local
		}
		return pl.address(ctx, a, o)
	case accounts.ToUser:
		return pl.user(ctx, t.Addr, o, failure("5.1.1", "an alias or forward names a user who does not exist"))
	case accounts.ToInclude:
		if o.self != nil {
			return deferral("4.3.5", "an include is not allowed in a forward file")
		}
		if o.depth >= maxDepth {
			return deferral("4.3.5", "include files nested too deeply")
		}
		if pl.once("include " + t.Text) {
			return nil
		}
		ts, err := pl.d.o.Accounts.Include(t.Text)
		if err != nil {
			return err
		}
		o.depth++
		return pl.targets(ctx, ts, o, r)
	case accounts.ToProgram, accounts.ToFile:
		if o.as == nil {
			return o.refuse
		}
		l := leaf{kind: toProgram, text: t.Text, as: o.as, addr: o.addr, detail: o.detail}
		if t.Kind == accounts.ToFile {
			l.kind = toFile
		}
		pl.add(l, fmt.Sprintf("%d %d %s", l.kind, o.as.uid, t.Text))
		return nil
	}
	return &Error{envelope.Defer("4.3.5", "an alias or forward needs the postmaster's attention"), errors.New(t.Text)}
}

// add puts a local target into the plan once.
func (pl *planner) add(l leaf, key string) {
	if !pl.once(key) {
		pl.p.here = append(pl.p.here, l)
	}
}

// once tells whether key was there before, and remembers it.
func (pl *planner) once(key string) bool {
	was := pl.seen[key]
	pl.seen[key] = true
	return was
}

// address plans for an address among the targets.
func (pl *planner) address(ctx context.Context, a envelope.Address, o origin) error {
	if a.Domain != "" && !pl.d.o.Accounts.IsLocal(a.Domain) {
		pl.away(a)
		return nil
	}
	r, err := pl.d.o.Accounts.Lookup(ctx, a)
	if err != nil {
		return err
	}
	full := r.Full.String()
	if slices.Contains(pl.path, full) || slices.Contains(pl.path, r.Address.String()) || slices.Contains(pl.p.chain, full) {
		// An alias or forward that names itself means the mailbox of that name.
		return pl.user(ctx, a, o, failure("5.4.6", "an alias or forward leads back to itself"))
	}
	if r.Kind != accounts.IsAlias || o.depth >= maxDepth {
		b, err := envelope.ParseAddress(full)
		if err != nil {
			return deferral("4.3.5", "an alias target cannot be used as an address")
		}
		pl.away(b)
		return nil
	}
	if pl.once("alias " + full) {
		return nil
	}
	if _, ok, err := pl.d.o.Accounts.Owner(r.Address); err != nil || ok {
		// A list within a list keeps its own owner: it is expanded by itself.
		pl.away(r.Address)
		return err
	}
	pl.path = append(pl.path, full)
	err = pl.aliasTargets(ctx, r, full, o.depth+1)
	pl.path = pl.path[:len(pl.path)-1]
	return err
}

// away puts an address into the child message once.
func (pl *planner) away(a envelope.Address) {
	if !pl.once("away " + a.Key()) {
		pl.p.away = append(pl.p.away, a.String())
	}
}

// user plans for \user: the mailbox of that name, whatever aliases and forwards say.
// When there is none, the answer is missing.
func (pl *planner) user(ctx context.Context, a envelope.Address, o origin, missing error) error {
	if a.Domain != "" && !pl.d.o.Accounts.IsLocal(a.Domain) {
		pl.away(a)
		return nil
	}
	r, err := pl.d.o.Accounts.LookupUser(ctx, a)
	if err != nil {
		return err
	}
	if r.Kind != accounts.IsMailbox {
		return missing
	}
	if o.self != nil && o.self.mailbox.Address == r.Mailbox.Address {
		pl.add(*o.self, o.self.mailbox.Maildir)
		return nil
	}
	pl.add(leaf{kind: toMailbox, addr: r.Full.String(), mailbox: r.Mailbox, detail: r.Detail}, r.Mailbox.Maildir)
	return nil
}

// expansion is the result for a recipient that others stand for.
func (p *plan) expansion(j *job, to envelope.Recipient, failed error) worker.Result {
	x := &worker.Expansion{From: j.req.From}
	for _, a := range p.chain {
		x.Prepend += "Delivered-To: " + a + "\n"
	}
	orig := to.Orig
	if orig == "" {
		orig = to.Addr
	}
	child := envelope.Recipient{Notify: childNotify(to.Notify, len(p.here)+len(p.away) > 1), ORcpt: to.ORcpt, Orig: orig}
	if p.list {
		// RFC 3461 §5.2.7.1: a list's parameters are not those of the sender.
		child.Notify, child.ORcpt = nil, ""
		if x.From != "" { // never give a reverse-path to a bounce
			x.From = p.owner
		}
	}
	for _, a := range p.away {
		c := child
		c.Addr = a
		x.To = append(x.To, c)
	}
	reply := fmt.Sprintf("expanded to %d", len(p.away))
	if len(p.away) == 1 {
		reply = "expanded to " + p.away[0]
	}
	if len(p.here) > 0 {
		reply += fmt.Sprintf(" and %d here", len(p.here))
	}
	if failed != nil {
		// The sender hears of the target that failed, and the others get their mail.
		st := statusOf(failed)
		st.Reply += "; otherwise " + reply
		return worker.Result{Status: st, Expand: x}
	}
	return worker.Result{
		Status: envelope.Status{Verdict: envelope.Expanded, Code: "2.0.0", Reply: reply}, Expand: x,
		DSN: !p.list && len(p.here)+len(p.away) == 1, // its NOTIFY went on
	}
}

// childNotify passes NOTIFY on. RFC 3461 §5.2.7.3 (c): an alias with several targets keeps
// SUCCESS for itself (the "expanded" report); with one target all of it goes on (§5.2.7.2).
func childNotify(notify []string, several bool) []string {
	if !several || !slices.Contains(notify, "SUCCESS") {
		return notify
	}
	var out []string
	for _, n := range notify {
		if n != "SUCCESS" {
			out = append(out, n)
		}
	}
	if out == nil { // an empty NOTIFY would ask for failure reports, which SUCCESS alone did not
		out = []string{"NEVER"}
	}
	return out
}

// describe is the result of a dry run.
func (p *plan) describe(j *job, to envelope.Recipient) worker.Result {
	var parts []string
	for _, l := range p.here {
		s := l.name()
		if l.kind == toMailbox {
			s = "mailbox " + s
		}
		if l.as != nil {
			s += " as " + l.as.name
		}
		parts = append(parts, s)
	}
	if len(p.away) == 0 {
		r := worker.Result{Status: envelope.Status{Verdict: envelope.Delivered, Code: "2.0.0", Reply: "would go to " + strings.Join(parts, ", ")}}
		r.Mailbox = p.here[0].name()
		return r
	}
	r := p.expansion(j, to, nil)
	r.Reply = "would go to " + strings.Join(append(parts, p.away...), ", ")
	return r
}
