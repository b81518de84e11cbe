// Package deliver makes the final delivery of messages to local recipients. It hides what
// stands between an address and a mailbox: aliases, forwards, subaddresses, loop detection,
// the lines put before a message, and the rights under which programs and files are used.
package deliver

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
	"pennypost/internal/maildir"
	"pennypost/internal/worker"
)

// parallel bounds the recipients of one message delivered at once: together they share
// directory syncs, a thousand of them do not take all descriptors.
const parallel = 16

// Options says how mail is delivered.
type Options struct {
	Accounts    *accounts.Accounts
	Maildirs    *maildir.Set
	Forward     bool          // honour ~/.forward of system users
	PipeUser    string        // runs programs and writes files named in root's aliases
	PipeTimeout time.Duration // of a program; default 5 minutes
	Create      bool          // make a missing Maildir
	Self        string        // this program's own path, run again to write as another user
	Plan        bool          // find out where mail would go, deliver nothing
	UID         int           // who we are: os.Geteuid()
	User        string        // as root, writes the mailboxes of accounts without a uid; "" = ourselves
	Now         func() time.Time
	Log         *slog.Logger
}

// Deliverer delivers messages. It may be used by many goroutines.
type Deliverer struct{ o Options }

// New returns a Deliverer.
func New(o Options) *Deliverer {
	if o.PipeTimeout <= 0 {
		o.PipeTimeout = 5 * time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Deliverer{o: o}
}

// job is one message under way.
type job struct {
	req *worker.Request
	msg *message
}

// Handle delivers the message in f to each recipient of req and reports on each.
func (d *Deliverer) Handle(ctx context.Context, req *worker.Request, f *os.File) *worker.Report {
	rep := &worker.Report{Seq: req.Seq, ID: req.ID, Results: make([]worker.Result, len(req.To))}
	msg, err := newMessage(f, req.Offset, req.Size, req.EOL)
	if err != nil {
		for i, to := range req.To {
			rep.Results[i] = worker.Result{To: to.Addr, Status: statusOf(err)}
		}
		d.o.Log.Error("message cannot be read", "id", req.ID, "err", err)
		return rep
	}
	j := &job{req: req, msg: msg}
	if len(req.To) == 1 {
		rep.Results[0] = d.recipient(ctx, j, req.To[0])
		return rep
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for i, to := range req.To {
		slots <- struct{}{}
		wg.Go(func() {
			rep.Results[i] = d.recipient(ctx, j, to)
			<-slots
		})
	}
	wg.Wait()
	return rep
}

// recipient delivers to one recipient. A deferral is logged with its cause, which the report,
// being for senders too, does not have. The outcome itself is logged by whoever asked.
func (d *Deliverer) recipient(ctx context.Context, j *job, to envelope.Recipient) worker.Result {
	start := time.Now()
	r, err := d.attempt(ctx, j, to)
	if err != nil {
		r.Status = statusOf(err)
	}
	r.To = to.Addr
	r.DelayMS = time.Since(start).Milliseconds()
	level := slog.LevelDebug
	attrs := []any{"id", j.req.ID, "from", j.req.From, "to", to.Addr, "status", r.Verdict, "dsn", r.Code,
		"delay_ms", r.DelayMS, "attempt", j.req.Attempt, "size", j.req.Size}
	if to.Orig != "" {
		attrs = append(attrs, "orig_to", to.Orig)
	}
	if r.Mailbox != "" {
		attrs = append(attrs, "mailbox", r.Mailbox)
	}
	if err != nil {
		if r.Verdict == envelope.Deferred {
			level = slog.LevelWarn
		}
		attrs = append(attrs, "err", err)
	} else if r.Reply != "" {
		attrs = append(attrs, "reply", r.Reply)
	}
	d.o.Log.Log(ctx, level, "delivery", attrs...)
	return r
}

// attempt finds out what the recipient stands for, delivers what must be delivered here, and
// hands the rest back as an expansion.
func (d *Deliverer) attempt(ctx context.Context, j *job, to envelope.Recipient) (worker.Result, error) {
	addr, err := envelope.ParseLocal(to.Addr, "")
	if err != nil {
		return worker.Result{}, &Error{envelope.Fail("5.1.3", "the address cannot be parsed"), err}
	}
	// The request comes from an envelope that somebody wrote into the spool, and both addresses
	// become header lines.
	for _, a := range []string{j.req.From, to.Orig} {
		if _, err := envelope.ParseLocal(a, ""); a != "" && err != nil {
			return worker.Result{}, &Error{envelope.Fail("5.1.7", "an address of the envelope cannot be parsed"), err}
		}
	}
	p, err := d.plan(ctx, addr)
	if err != nil {
		return worker.Result{}, err
	}
	for _, a := range p.chain {
		if j.msg.deliveredTo(a) {
			return worker.Result{}, failure("5.4.6", "mail forwarding loop: the message was delivered to this address before")
		}
	}
	if d.o.Plan {
		return p.describe(j, to), nil
	}
	var first worker.Result
	var failed error
	for i, l := range p.here {
		r, err := d.deliverTo(ctx, j, to, p, l)
		if err != nil {
			if !isFailure(err) || len(p.here)+len(p.away) == 1 {
				return worker.Result{Mailbox: l.name()}, err // nothing is handed on before all of here is settled
			}
			failed = errors.Join(failed, err)
			d.o.Log.Warn("one of several targets failed", "id", j.req.ID, "to", to.Addr, "mailbox", l.name(), "err", err)
			continue
		}
		if i == 0 || first.Verdict == "" {
			first = r
		}
	}
	if len(p.away) > 0 {
		return p.expansion(j, to, failed), nil
	}
	return first, failed
}

// deliverTo delivers to one target on this host.
func (d *Deliverer) deliverTo(ctx context.Context, j *job, to envelope.Recipient, p *plan, l leaf) (worker.Result, error) {
	r := worker.Result{Mailbox: l.name()}
	header := j.header(to, l)
	var err error
	switch l.kind {
	case toMailbox:
		r.Reply, err = d.toMailbox(ctx, j, l.mailbox, header)
	case toProgram:
		r.Reply, err = d.toProgram(ctx, j, p, l, header)
	case toFile:
		r.Reply, err = d.toFile(ctx, j, l, header)
	}
	if err != nil {
		return r, err
	}
	r.Verdict, r.Code = envelope.Delivered, "2.0.0"
	return r, nil
}

// header returns the lines final delivery puts before a message.
func (j *job) header(to envelope.Recipient, l leaf) []byte {
	var b strings.Builder
	// RFC 5321 §4.4: final delivery inserts the reverse-path.
	b.WriteString("Return-Path: <" + j.req.From + ">\n")
	b.WriteString("Delivered-To: " + l.addr + "\n")
	orig := to.Orig
	if orig == "" {
		orig = to.Addr
	}
	if !strings.EqualFold(orig, l.addr) {
		b.WriteString("X-Original-To: " + orig + "\n")
	}
	return []byte(b.String())
}

// toMailbox writes the message into a user's Maildir, as that user where the account names one.
func (d *Deliverer) toMailbox(ctx context.Context, j *job, m *accounts.Mailbox, header []byte) (string, error) {
	as, err := d.mailboxOwner(ctx, m)
	if err != nil {
		return "", err
	}
	if m.System {
		// A home that is not mounted must not become a directory on the file system below.
		if fi, err := os.Stat(m.Home); err != nil || !fi.IsDir() {
			return "", &Error{envelope.Defer("4.2.1", "the user's home directory is not there"), errors.Join(err, errors.New("home "+m.Home))}
		}
	}
	if as != nil {
		return d.asUser(ctx, j, as, header, d.maildirArgs(m.Maildir))
	}
	return d.toMaildir(ctx, j, m.Maildir, header)
}

// mailboxOwner says as whom the mailbox is written: nil is ourselves.
func (d *Deliverer) mailboxOwner(ctx context.Context, m *accounts.Mailbox) (*identity, error) {
	switch {
	case m.UID < 0 && d.o.UID == 0 && d.o.User != "":
		u, err := d.o.Accounts.SystemUser(ctx, d.o.User)
		if err != nil {
			return nil, err
		}
		if u == nil {
			return nil, deferral("4.3.5", "there is no user for the mailboxes of virtual users")
		}
		return &identity{name: u.Name, uid: u.UID, gid: u.GID, home: u.Home}, nil
	case m.UID < 0 && d.o.UID == 0:
		return firstOwner(m.Maildir)
	case m.UID < 0 || m.UID == d.o.UID:
		return nil, nil
	case d.o.UID == 0:
		gid := m.GID
		if gid < 0 {
			gid = m.UID
		}
		return &identity{name: m.User, uid: m.UID, gid: gid, home: m.Home}, nil
	case m.System:
		return nil, deferral("4.3.5", "delivery has no right to become this user")
	}
	return nil, nil // virtual users' mail belongs to whoever runs
}

func (d *Deliverer) maildirArgs(path string) []string {
	args := []string{"--maildir", path}
	if d.o.Create {
		args = append(args, "--create")
	}
	return args
}

// toMaildir delivers into the Maildir at path as ourselves.
func (d *Deliverer) toMaildir(ctx context.Context, j *job, path string, header []byte) (reply string, err error) {
	m, err := d.o.Maildirs.Open(path)
	if err != nil {
		return "", err
	}
	name, err := m.Deliver(ctx, header, j.msg.reader())
	if err = errors.Join(err, m.Close()); err != nil {
		return "", err
	}
	return "saved as " + name, nil
}

// Direct delivers the message into one Maildir (a directory) or mbox file without asking who
// lives there. r is read to its end.
func Direct(ctx context.Context, set *maildir.Set, target string, mbox bool, header []byte, from string, now time.Time, r io.Reader) (string, error) {
	if mbox {
		return "appended", appendMbox(ctx, target, from, now, header, r)
	}
	m, err := set.Open(target)
	if err != nil {
		return "", err
	}
	name, err := m.Deliver(ctx, header, r)
	if err = errors.Join(err, m.Close()); err != nil {
		return "", err
	}
	return "saved as " + name, nil
}
