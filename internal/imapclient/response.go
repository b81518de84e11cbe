package imapclient

import (
	"fmt"
	"io"
	"strings"
	"time"

	"pennypost/internal/imapwire"
)

// begin waits for the next response.
func (c *Client) begin() error {
	if c.dead != nil {
		return c.dead
	}
	c.patience(0)
	if err := c.r.Begin(); err != nil {
		return c.fail(err)
	}
	return nil
}

// wait reads responses until the one to the command tag. With more, it also returns, true,
// when the server asks for more of the command.
func (c *Client) wait(tag, command string, more bool) (asked bool, err error) {
	for {
		if err := c.begin(); err != nil {
			return false, err
		}
		switch c.r.Peek() {
		case '*':
			if err := c.untagged(); err != nil {
				return false, err
			}
		case '+':
			c.r.Text()
			if err := c.r.End(); err != nil {
				return false, c.fail(err)
			}
			if more {
				return true, nil
			}
			return false, c.fail(fmt.Errorf("%s: the server asks for what is not there", command))
		default:
			return false, c.tagged(tag, command)
		}
	}
}

func (c *Client) tagged(tag, command string) error {
	got := string(c.r.Tag())
	c.r.SP()
	status := strings.ToUpper(string(c.r.Atom()))
	text := c.condition()
	if err := c.r.End(); err != nil {
		return c.fail(err)
	}
	switch {
	case c.takes == nil && got != tag, c.takes != nil && !c.takes(got):
		return c.fail(fmt.Errorf("%s: an answer to %q came for %q", command, got, tag))
	case status == "OK":
		return nil
	case status == "NO" || status == "BAD":
		return &Error{command, status, c.code, text}
	}
	return c.fail(fmt.Errorf("%s: the server answers %q", command, status))
}

// condition takes " [CODE ...] text" (RFC 9051 §7.1).
func (c *Client) condition() (text string) {
	c.code = ""
	if c.r.AtEnd() {
		return ""
	}
	c.r.SP()
	t := string(c.r.Text())
	if code, rest, ok := strings.Cut(t, "]"); ok && strings.HasPrefix(t, "[") {
		// A flag list in PERMANENTFLAGS holds no bracket.
		c.code = code[1:]
		c.useCode(c.code)
		return strings.TrimPrefix(rest, " ")
	}
	return t
}

// useCode looks at a response code.
func (c *Client) useCode(code string) {
	name, arg, _ := strings.Cut(code, " ")
	var n uint32
	switch strings.ToUpper(name) {
	case "CAPABILITY":
		c.setCaps(arg)
	case "UIDVALIDITY":
		if _, err := fmt.Sscan(arg, &n); err == nil {
			c.box.Validity = n
		}
	case "UIDNEXT":
		if _, err := fmt.Sscan(arg, &n); err == nil {
			c.box.Next = n
		}
	}
}

func (c *Client) setCaps(list string) {
	clear(c.caps)
	c.told = true
	for _, name := range strings.Fields(list) {
		c.caps[strings.ToUpper(name)] = true
	}
}

// untagged takes a response that begins with "*".
func (c *Client) untagged() error {
	c.r.Want('*')
	c.r.SP()
	if d := c.r.Peek(); d >= '0' && d <= '9' {
		n := c.r.Number()
		c.r.SP()
		switch name := c.r.Atom(); {
		case imapwire.Fold(name, "EXISTS"):
			c.box.Exists = n
		case imapwire.Fold(name, "FETCH"):
			c.r.SP()
			return c.fetched()
		default:
			c.r.Text()
		}
		return c.end()
	}
	switch name := c.r.Atom(); {
	case imapwire.Fold(name, "OK"), imapwire.Fold(name, "NO"), imapwire.Fold(name, "BAD"):
		code := c.code // that of the tagged response counts
		c.condition()
		c.code = code
	case imapwire.Fold(name, "BYE"):
		text := c.condition()
		if err := c.end(); err != nil {
			return err
		}
		return c.fail(fmt.Errorf("the server ends the session: %q", text))
	case imapwire.Fold(name, "CAPABILITY"):
		if !c.r.AtEnd() {
			c.r.SP()
			c.setCaps(string(c.r.Text()))
		}
	case imapwire.Fold(name, "LIST"):
		c.r.SP()
		c.listed()
	default:
		for c.r.Err() == nil && !c.r.AtEnd() {
			c.r.SP()
			c.r.Skipped()
		}
	}
	return c.end()
}

func (c *Client) end() error {
	if err := c.r.End(); err != nil {
		return c.fail(err)
	}
	return nil
}

// listed takes the rest of "* LIST (flags) delimiter name".
func (c *Client) listed() {
	m := Mailbox{Flags: c.r.Flags()}
	c.r.SP()
	if d := c.r.NString(); len(d) == 1 {
		m.Delimiter = d[0]
	}
	c.r.SP()
	m.Name = c.r.Mailbox(false)
	for c.r.Err() == nil && !c.r.AtEnd() {
		c.r.SP()
		c.r.Skipped()
	}
	c.size += len(m.Name)
	for _, f := range m.Flags {
		c.size += len(f)
	}
	if len(c.list) >= maxMailboxes || c.size > maxNames {
		c.r.Fail("more than %d mailboxes, or %d octets of names", maxMailboxes, maxNames)
		return
	}
	c.list = append(c.list, m)
}

// fetched takes the list of a FETCH response.
func (c *Client) fetched() error {
	var m Message
	var failed error
	c.r.List(func() {
		item := c.r.Name()
		switch {
		case imapwire.Fold(item, "UID"):
			c.r.SP()
			m.UID = c.r.Number()
		case imapwire.Fold(item, "FLAGS"):
			c.r.SP()
			m.Flags = c.r.Flags()
		case imapwire.Fold(item, "INTERNALDATE"):
			c.r.SP()
			m.Date = c.r.DateTime()
		case imapwire.Fold(item, "RFC822.SIZE"):
			c.r.SP()
			m.Size = c.r.Number64()
		case imapwire.Fold(item, "BODY"):
			failed = c.bodyItem(&m)
		default:
			c.r.SP()
			c.r.Skipped()
		}
	})
	if failed != nil {
		return failed
	}
	if err := c.end(); err != nil {
		return err
	}
	if c.each != nil && m.Body == nil && m.UID != 0 {
		return c.each(m)
	}
	return nil
}

// bodyItem takes BODY[] and its value, and hands it on while it comes.
func (c *Client) bodyItem(m *Message) error {
	c.r.Want('[')
	c.r.Want(']')
	c.r.SP()
	if c.each == nil {
		c.r.Skipped()
		return nil
	}
	var src io.Reader
	size := int64(0)
	switch c.r.Peek() {
	case '{', '~':
		l := c.r.LiteralHead()
		size = l.Size
		if size > c.o.MaxMessage {
			return c.fail(fmt.Errorf("a message of %d octets: at most %d are taken", size, c.o.MaxMessage))
		}
		c.patience(size)
		src = c.r.Body()
	case '"':
		s := string(c.r.Quoted())
		src, size = strings.NewReader(s), int64(len(s))
	default:
		if c.r.Nil(); c.r.Err() != nil {
			return nil
		}
		return nil // it is gone
	}
	if c.r.Err() != nil {
		return nil // End tells
	}
	b := *m
	b.Body, b.Size = src, size
	m.Body = src
	err := c.each(b)
	c.patience(size) // what was not read of it is skipped by the Reader
	return err
}

// Mailbox is a line of LIST.
type Mailbox struct {
	Name      string // UTF-8, levels apart by Delimiter
	Delimiter byte   // 0: there are no levels
	Flags     []string
}

// Has tells whether a line of LIST has an attribute, which begins with a backslash.
func (m Mailbox) Has(flag string) bool {
	for _, f := range m.Flags {
		if strings.EqualFold(f, flag) {
			return true
		}
	}
	return false
}

// Status is what SELECT says.
type Status struct{ Validity, Next, Exists uint32 }

// Message is what FETCH says of a message.
type Message struct {
	UID   uint32
	Flags []string
	Date  time.Time
	Size  int64
	Body  io.Reader // nil when it was not asked for; valid until the function returns
}
