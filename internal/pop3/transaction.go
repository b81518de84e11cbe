package pop3

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// entry is one message of the maildrop. Its number is its place plus one, for the whole session
// (RFC 1939 §4): what comes or goes meanwhile is the next session's business.
type entry struct {
	uid     uint32
	size    int64
	id      string // unique-id that another server gave; "": by the format
	guid    string
	base    string
	deleted bool
	fetched bool
}

// drop is the maildrop of a session.
type drop struct {
	box      Maildrop // nil before the login
	msgs     []entry
	validity uint32
	left     int              // messages not deleted
	octets   int64            // of those
	removed  int              // messages that QUIT has removed
	wrong    map[uint32]int64 // sizes that turned out to be others than was told
}

// enter makes the maildrop of a user the session's, RFC 1939 §4.
func (c *session) enter(ctx context.Context, box Maildrop) error {
	list, validity, err := box.List(ctx)
	if err != nil {
		return errors.Join(err, box.Close())
	}
	c.drop = drop{box: box, validity: validity, msgs: make([]entry, len(list)), left: len(list)}
	for i, m := range list {
		c.msgs[i] = entry{uid: m.UID, size: m.Size, id: m.Key, guid: m.GUID, base: m.Base}
		c.octets += m.Size
	}
	c.state = transaction
	return nil
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// number64 reads digits and nothing else. What is too large for the type is the largest there is.
func number64(s string) (uint64, bool) {
	if s == "" || s[0] < '0' || s[0] > '9' { // ParseUint takes no sign, but "_" with base 0 alone
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil || errors.Is(err, strconv.ErrRange)
}

// message finds the message with a number. Where there is none it has answered, and returns nil.
func (c *session) message(arg string) (*entry, error) {
	n, ok := number64(arg)
	switch {
	case !ok:
		return nil, c.fault("that is no message number")
	case n == 0 || n > uint64(len(c.msgs)):
		return nil, c.err("no such message, there are " + strconv.Itoa(len(c.msgs)))
	case c.msgs[n-1].deleted:
		return nil, c.err("message is marked as deleted")
	}
	return &c.msgs[n-1], nil
}

func (c *session) stat(string) error {
	c.ok(strconv.Itoa(c.left) + " " + itoa(c.octets))
	return nil
}

func (c *session) list(arg string) error {
	return c.listing(arg, func(b []byte, m *entry) []byte { return strconv.AppendInt(b, m.size, 10) })
}

func (c *session) uidl(arg string) error {
	f := c.srv.UIDL.compile()
	return c.listing(arg, func(b []byte, m *entry) []byte {
		if m.id != "" {
			return appendID(b, m.id)
		}
		return f.append(b, c.validity, m)
	})
}

// listing answers with one line for a message, or one for each.
func (c *session) listing(arg string, field func([]byte, *entry) []byte) error {
	if arg != "" {
		m, err := c.message(arg)
		if m == nil {
			return err
		}
		c.ok(strings.TrimLeft(arg, "0") + " " + string(field(nil, m))) // as it stands in the list of all
		return nil
	}
	c.ok(strconv.Itoa(c.left) + " messages")
	for i := range c.msgs {
		m := &c.msgs[i]
		if m.deleted {
			continue
		}
		if err := c.room(); err != nil {
			return err
		}
		c.out = append(strconv.AppendInt(c.out, int64(i+1), 10), ' ')
		c.out = append(field(c.out, m), '\r', '\n')
	}
	c.line(".")
	return nil
}

func (c *session) dele(arg string) error {
	m, err := c.message(arg)
	if m == nil {
		return err
	}
	m.deleted = true
	c.left--
	c.octets -= m.size
	c.ok("message " + arg + " goes at QUIT")
	return nil
}

func (c *session) rset(string) error {
	for i := range c.msgs {
		if m := &c.msgs[i]; m.deleted {
			m.deleted = false
			c.left++
			c.octets += m.size
		}
	}
	c.ok("no message goes at QUIT")
	return nil
}

// quit is the UPDATE state, RFC 1939 §6: what is marked goes, and is gone for good when the
// client hears so.
func (c *session) quit(string) error {
	c.closing = true
	if c.box == nil {
		c.ok("bye")
		return nil
	}
	if uids := c.doomed(); len(uids) > 0 {
		if err := c.box.Remove(c.update(), uids); err != nil {
			c.srv.Log.Error("deleted messages not removed", "user", c.who, "err", err)
			return c.err("[SYS/TEMP] some deleted messages not removed")
		}
		c.removed = len(uids)
	}
	c.markFetched()
	c.release()
	c.ok("bye, " + strconv.Itoa(c.left) + " messages left")
	return nil
}

// update is the context of the last work: it goes on when the server is told to stop.
func (c *session) update() context.Context { return context.WithoutCancel(c.ctx) }

// doomed lists what QUIT removes.
func (c *session) doomed() []uint32 {
	var uids []uint32
	for i := range c.msgs {
		m := &c.msgs[i]
		// RFC 2449 §6.7: where mail cannot be left, fetching a message is as good as DELE.
		if m.fetched && c.srv.Expire == 0 && !m.deleted {
			m.deleted = true
			c.left--
		}
		if m.deleted {
			uids = append(uids, m.uid)
		}
	}
	return uids
}

// markFetched tells other clients what was fetched, and the index what was found out by it. That
// is so however the session ends.
func (c *session) markFetched() {
	var seen []uint32
	for _, m := range c.msgs {
		if m.fetched && !m.deleted && !c.srv.KeepUnseen {
			seen = append(seen, m.uid)
		}
	}
	if c.box == nil || len(seen)+len(c.wrong) == 0 {
		return
	}
	if err := c.box.Fetched(c.update(), seen, c.wrong); err != nil {
		c.srv.Log.Error("fetched messages not marked as read", "user", c.who, "err", err)
	}
}

// resize takes note of the true size of a message.
func (c *session) resize(m *entry, size int64) {
	if c.wrong == nil {
		c.wrong = make(map[uint32]int64)
	}
	c.wrong[m.uid] = size
	c.octets += size - m.size
	m.size = size
}

// release gives the maildrop back, so that the next session finds it free when this one hears "+OK".
func (c *session) release() {
	if c.box == nil {
		return
	}
	if err := c.box.Close(); err != nil {
		c.srv.Log.Error("maildrop not closed", "user", c.who, "err", err)
	}
	c.box = nil
}

// close ends what the session holds, and says in one line what it was.
func (c *session) close(why error) {
	if c.box != nil {
		c.markFetched()
		c.release()
	}
	attrs := []slog.Attr{slog.String("peer", c.peer.String())}
	if c.who != "" {
		attrs = append(attrs, slog.String("user", c.who))
	}
	attrs = append(attrs, slog.String("role", c.role), slog.Bool("tls", c.tls != nil || c.secured))
	if c.who == "" && why == nil || c.handed {
		return // a health check, or somebody else's line
	}
	if c.who != "" {
		attrs = append(attrs,
			slog.Int("messages", len(c.msgs)), slog.Int("retr", c.retr), slog.Int("top", c.top),
			slog.Int("dele", c.removed), slog.Int64("octets", c.sent))
	}
	attrs = append(attrs, slog.Int64("ms", time.Since(c.started).Milliseconds()))
	if why != nil {
		attrs = append(attrs, slog.String("err", fmt.Sprint(why)))
	}
	c.srv.Log.LogAttrs(c.update(), slog.LevelInfo, "session", attrs...)
}
