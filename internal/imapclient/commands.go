package imapclient

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"pennypost/internal/imapwire"
)

// List returns all mailboxes.
func (c *Client) List() ([]Mailbox, error) {
	c.list, c.size = nil, 0
	_, err := c.run("LIST", func(b []byte) []byte { return append(b, ` "" "*"`...) })
	return c.list, err
}

// Select opens a mailbox, read-only with EXAMINE.
func (c *Client) Select(name string, readOnly bool) (Status, error) {
	c.box = Status{}
	command := "SELECT"
	if readOnly {
		command = "EXAMINE"
	}
	_, err := c.run(command, func(b []byte) []byte { return imapwire.AppendMailbox(append(b, ' '), name, false) })
	return c.box, err
}

// Create makes a mailbox; one that is there already is no error.
func (c *Client) Create(name string) error {
	_, err := c.run("CREATE", func(b []byte) []byte { return imapwire.AppendMailbox(append(b, ' '), name, false) })
	var e *Error
	if errors.As(err, &e) && e.Status == "NO" {
		// Not every server says ALREADYEXISTS: look.
		if _, again := c.Select(name, true); again == nil {
			return nil
		}
	}
	return err
}

// Messages returns what there is in the mailbox, by UID: flags, dates, sizes.
func (c *Client) Messages() ([]Message, error) {
	if c.box.Exists == 0 {
		return nil, nil
	}
	if c.box.Exists > maxMessages {
		return nil, fmt.Errorf("%d messages: at most %d are taken", c.box.Exists, maxMessages)
	}
	var list []Message
	words := make(map[string]string)
	flags := 0
	limit := int(c.box.Exists) + 10_000 // mail may come meanwhile
	c.each = func(m Message) error {
		if len(list) >= limit {
			return c.fail(errors.New("the server tells of more messages than there are"))
		}
		if m.UID == 0 || m.Flags == nil && m.Date.IsZero() {
			return nil // news of something else
		}
		m.Flags = known(words, m.Flags)
		if flags += len(m.Flags); flags > maxFlags {
			return c.fail(errors.New("the server tells of more flags than can be"))
		}
		list = append(list, m)
		return nil
	}
	defer func() { c.each = nil }()
	_, err := c.run("UID FETCH", func(b []byte) []byte {
		return append(b, " 1:* (UID FLAGS INTERNALDATE RFC822.SIZE)"...)
	})
	return list, err
}

// known returns flags with the memory of words: what is held does not grow with their number.
// Absurd ones are left out.
func known(words map[string]string, flags []string) []string {
	var list []string
	if flags != nil {
		list = make([]string, 0, len(flags))
	}
	for _, f := range flags {
		w, ok := words[f]
		if !ok {
			if len(words) >= maxWords || len(f) > maxWord {
				continue
			}
			w = f
			words[f] = f
		}
		list = append(list, w)
	}
	return slices.Clip(list)
}

// ahead is how many messages are asked for before the first has come.
const ahead = 16

// ask is a message asked for.
type ask struct {
	tag  string
	uid  uint32
	done bool
}

// Fetch calls each with the bodies of messages as they come, which is nearly in the order of
// uids. One that is not there any more is passed over. An error of each ends the
// connection's use: bodies may be under way.
func (c *Client) Fetch(uids []uint32, each func(uid uint32, body io.Reader, size int64) error) error {
	var under []ask
	// The first message is asked for alone: it shows whether the server says whose body comes
	// before it comes, so that several may be under way.
	depth := 1
	c.each = func(m Message) error {
		if m.Body == nil {
			return nil
		}
		uid := m.UID
		if uid == 0 && len(under) == 1 {
			uid = under[0].uid
		} else if uid != 0 {
			depth = ahead
		}
		for i := range under {
			if a := &under[i]; a.uid == uid && !a.done {
				a.done = true
				if err := each(uid, m.Body, m.Size); err != nil {
					return c.fail(err)
				}
				return nil
			}
		}
		return c.fail(fmt.Errorf("a message came that was not asked for: %d", uid))
	}
	// RFC 9051 §5.5: a server may work on several commands at once and end a later one first.
	c.takes = func(tag string) bool {
		i := slices.IndexFunc(under, func(a ask) bool { return a.tag == tag })
		if i < 0 {
			return false
		}
		under = slices.Delete(under, i, i+1)
		return true
	}
	defer func() { c.each, c.takes = nil, nil }()
	for len(uids) > 0 || len(under) > 0 {
		if len(under) <= depth/2 && len(uids) > 0 {
			for len(under) < depth && len(uids) > 0 {
				uid := uids[0]
				tag := c.queue("UID FETCH", func(b []byte) []byte {
					return fmt.Appendf(b, " %d (UID BODY.PEEK[])", uid)
				})
				under, uids = append(under, ask{tag: tag, uid: uid}), uids[1:]
			}
			if err := c.w.Flush(); err != nil {
				return c.fail(err)
			}
		}
		if _, err := c.wait(under[0].tag, "UID FETCH", false); err != nil {
			return c.fail(err)
		}
	}
	return nil
}

// Append adds a message of size octets, which come with CR LF line ends, and returns its UID
// where the server tells (RFC 4315 §3), else 0.
func (c *Client) Append(name string, flags []string, date time.Time, size int64, body io.Reader) (uid uint32, err error) {
	// RFC 7888 §4: a server that refuses may have to read all of it; small ones go at once.
	wait := !c.Can("LITERAL+") && (!c.Can("LITERAL-") || size > 4096)
	c.tag++
	tag := fmt.Sprintf("a%d", c.tag)
	c.w.Raw(tag).Raw(" APPEND ").Mailbox(name).Raw(" ")
	if len(flags) > 0 {
		c.w.Append(func(b []byte) []byte { return append(imapwire.AppendFlags(b, flags), ' ') })
	}
	if !date.IsZero() {
		c.w.Append(func(b []byte) []byte { return append(imapwire.AppendDateTime(b, date), ' ') })
	}
	c.w.Append(func(b []byte) []byte {
		return imapwire.AppendLiteral(b, imapwire.Literal{Size: size, NonSync: !wait})
	})
	if wait {
		if err := c.w.Flush(); err != nil {
			return 0, c.fail(err)
		}
		if asked, err := c.wait(tag, "APPEND", true); err != nil || !asked {
			return 0, err
		}
	}
	if err := c.copy(body, size); err != nil {
		return 0, err
	}
	if err := c.w.CRLF().Flush(); err != nil {
		return 0, c.fail(err)
	}
	if _, err = c.wait(tag, "APPEND", false); err != nil {
		return 0, err
	}
	var validity uint32
	if code, ok := strings.CutPrefix(strings.ToUpper(c.code), "APPENDUID "); ok {
		if _, err := fmt.Sscan(code, &validity, &uid); err != nil {
			uid = 0 // no number: not told
		}
	}
	return uid, nil
}

// copy sends exactly size octets of body: a message that turns out to be shorter or longer
// leaves a connection that says nothing sensible any more.
func (c *Client) copy(body io.Reader, size int64) error {
	buf := make([]byte, min(size+1, 32<<10))
	for left := size; ; {
		n, err := body.Read(buf)
		if int64(n) > left {
			return c.fail(fmt.Errorf("message is longer than its %d octets", size))
		}
		left -= int64(n)
		c.w.Bytes(buf[:n])
		if errors.Is(err, io.EOF) {
			if left > 0 {
				return c.fail(fmt.Errorf("message ends %d octets before its %d", left, size))
			}
			return nil
		}
		if err != nil {
			return c.fail(err)
		}
	}
}

// StoreFlags replaces the flags of a message.
func (c *Client) StoreFlags(uid uint32, flags []string) error {
	_, err := c.run("UID STORE", func(b []byte) []byte {
		b = fmt.Appendf(b, " %d FLAGS.SILENT ", uid)
		return imapwire.AppendFlags(b, flags)
	})
	return err
}
