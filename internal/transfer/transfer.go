// Package transfer moves mail into and out of accounts: from and to mbox files, Maildirs,
// other accounts and IMAP servers.
//
// A [Source] is read as a stream of messages. Import remembers what it has taken, in a file
// of the account and in the EMAILID of each message, so that a transfer that was cut off is
// taken up again and nothing comes twice. Exports are brought up to date the same way.
package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
)

// Message is one message of a Source.
type Message struct {
	Key      string // tells it apart in its mailbox, and stays from run to run
	Flags    maildir.Flags
	Keywords []string
	Date     time.Time // zero: not known
	Size     int64     // octets as sent; -1 unknown
	Body     io.Reader // valid until the next message is asked for
}

// Source is where mail comes from.
type Source interface {
	// ID tells the source apart from others, so that the keys of both may be the same.
	ID() string
	// Mailboxes are the names in UTF-8, levels apart by "/".
	Mailboxes(ctx context.Context) ([]string, error)
	// Messages yields the messages of a mailbox but those whose key is known. count, when it
	// is not 0, is how many there are with the known ones.
	Messages(ctx context.Context, name string, known func(key string) bool, count func(int)) iter.Seq2[Message, error]
	Close() error
}

// The errors that are no accident.
var (
	ErrOccupied = errors.New("something else is there")
	ErrFormat   = errors.New("not what it should be")
)

// refuse is an error of one of these kinds in words of its own.
type refuse struct {
	kind error
	text string
}

func (r *refuse) Error() string { return r.text }
func (r *refuse) Unwrap() error { return r.kind }

func refused(kind error, format string, args ...any) error {
	return &refuse{kind, fmt.Sprintf(format, args...)}
}

// Options says what is moved, and who wants to know.
type Options struct {
	Mailboxes []string // of the source; nil: all
	Into      string   // put the source's mailboxes below this one; "" beside the account's own
	DryRun    bool
	Prune     bool // Export to a Maildir: remove what the account does not have any more
	Progress  func(name string, done, of int)
	Report    func(Result)
	FS        durable.FS
}

func (o *Options) fs() durable.FS {
	if o.FS == nil {
		return durable.OS{}
	}
	return o.FS
}

func (o *Options) progress(name string, done, of int) {
	if o.Progress != nil {
		o.Progress(name, done, of)
	}
}

func (o *Options) report(r Result) {
	if o.Report != nil {
		o.Report(r)
	}
}

// wanted tells whether a mailbox is to be moved.
func (o *Options) wanted(name string) bool {
	return o.Mailboxes == nil || slices.Contains(o.Mailboxes, name)
}

// choose returns the mailboxes to move, or says which is not there.
func (o *Options) choose(names []string) ([]string, error) {
	for _, want := range o.Mailboxes {
		if !slices.Contains(names, want) {
			return nil, fmt.Errorf("%s: %w", want, mailbox.ErrNotFound)
		}
	}
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !o.wanted(n) }), nil
}

// Result is what became of one mailbox.
type Result struct {
	From, To string // mailboxes; To is a path where a file is written
	New      int    // messages moved
	Known    int    // that were there already
	Changed  int    // whose flags were brought up to date
	Removed  int
	Lost     []string // what could not come along, in words
}

// target is the mailbox that one of the source goes to.
func (o *Options) target(name string) string {
	switch {
	case o.Into == "":
		return name
	case strings.EqualFold(name, maildir.Inbox):
		return o.Into
	}
	return o.Into + "/" + name
}

// batch bounds what a crash undoes, and what is held open at a time.
const (
	batchMessages = 256
	batchOctets   = 32 << 20
)

// hash is the EMAILID of a message that was imported (RFC 8474 §4 allows any): made of where
// it comes from, it says later that the message is here already.
func hash(parts ...string) string {
	h := sha256.New()
	for _, s := range parts {
		fmt.Fprintf(h, "%d %s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Import copies src into the account s. memory is the file that remembers.
func Import(ctx context.Context, s *mailbox.Store, memory string, src Source, o Options) error {
	names, err := src.Mailboxes(ctx)
	if err != nil {
		return err
	}
	if names, err = o.choose(names); err != nil {
		return err
	}
	m, err := openMemory(o.fs(), memory, o.DryRun)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err = o.importMailbox(ctx, s, m, src, name); err != nil {
			err = fmt.Errorf("%s: %w", name, err)
			break
		}
	}
	return errors.Join(err, m.close())
}

// importing is the import of one mailbox.
type importing struct {
	o     *Options
	m     *memory
	name  string
	dst   *mailbox.Mailbox
	have  map[string]bool // EMAILIDs
	res   Result
	total int
}

func (o *Options) importMailbox(ctx context.Context, s *mailbox.Store, m *memory, src Source, name string) error {
	im := &importing{o: o, m: m, name: name, have: map[string]bool{}, res: Result{From: name, To: o.target(name)}}
	if err := im.open(ctx, s); err != nil {
		return err
	}
	next, stop := iter.Pull2(src.Messages(ctx, name, func(key string) bool {
		known := im.known(src, key)
		if known {
			im.res.Known++
		}
		return known
	}, func(n int) { im.total = n }))
	err := im.all(ctx, src, next)
	stop()
	if im.dst != nil {
		err = errors.Join(err, im.dst.Close())
	}
	if err == nil {
		o.report(im.res)
	}
	return err
}

// open opens or makes the mailbox and notes which EMAILIDs it has.
func (im *importing) open(ctx context.Context, s *mailbox.Store) (err error) {
	im.dst, err = s.Mailbox(ctx, im.res.To)
	if errors.Is(err, mailbox.ErrNotFound) {
		if im.o.DryRun {
			im.dst = nil
			return nil
		}
		if err = s.Create(ctx, im.res.To); err == nil {
			if err = s.Subscribe(ctx, im.res.To, true); err == nil {
				im.dst, err = s.Mailbox(ctx, im.res.To)
			}
		}
	}
	if err != nil {
		return err
	}
	v, err := im.dst.Select(ctx, true)
	if err != nil {
		return errors.Join(err, im.dst.Close())
	}
	for _, msg := range v.All(1, v.Len()) {
		id, err := v.EmailID(msg.UID)
		if err != nil {
			continue // expunged, or its name cannot be read: then it is copied again
		}
		im.have[id] = true
		// An import that was killed before the uidlist had the EMAILID has left it in the name,
		// which is the EMAILID then.
		im.have[maildir.EmailIDIn(id)] = true
	}
	return v.Close()
}

// ids are the EMAILID of a message and what the memory says of it: that it was put into this
// mailbox.
func (im *importing) ids(src Source, key string) (email, memo string) {
	email = hash(src.ID(), im.name, key)
	return email, hash(email, im.res.To)
}

func (im *importing) known(src Source, key string) bool {
	email, memo := im.ids(src, key)
	return im.have[email] || im.m.has(memo)
}

// maxLost bounds what is told of one mailbox, whose words strangers have written.
const maxLost = 100

// left notes a keyword that a message comes without.
func (im *importing) left(keyword string) {
	what := fmt.Sprintf("keyword %.60s", keyword)
	if len(im.res.Lost) < maxLost && !slices.Contains(im.res.Lost, what) {
		im.res.Lost = append(im.res.Lost, what)
	}
}

func (im *importing) all(ctx context.Context, src Source, next func() (Message, error, bool)) error {
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var ids, memos []string
		octets := int64(0)
		pull := func() (mailbox.Item, error) {
			if len(ids) >= batchMessages || octets >= batchOctets {
				return mailbox.Item{}, io.EOF
			}
			msg, err, ok := next()
			if !ok || err != nil {
				more = false
				if err == nil {
					err = io.EOF
				}
				return mailbox.Item{}, err
			}
			id, memo := im.ids(src, msg.Key)
			ids, memos = append(ids, id), append(memos, memo)
			octets += max(msg.Size, 4096)
			im.o.progress(im.name, im.res.Known+im.res.New+len(ids), im.total)
			return mailbox.Item{Message: msg.Body, Size: msg.Size, Flags: msg.Flags, Keywords: msg.Keywords, Internal: msg.Date, EmailID: id, Left: im.left}, nil
		}
		var err error
		if im.o.DryRun {
			for err == nil {
				_, err = pull()
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
		} else {
			_, err = im.dst.AppendAll(ctx, pull)
		}
		if err != nil {
			return err
		}
		im.res.New += len(ids)
		for _, id := range ids {
			im.have[id] = true
		}
		if err := im.m.add(memos); err != nil {
			return err
		}
	}
	return nil
}
