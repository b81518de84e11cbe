package smtp

import (
	"context"
	"strconv"
	"strings"
	"time"

	"pennypost/internal/envelope"
)

// Extensions are what a session offers beside the extensions every session has.
type Extensions struct {
	RequireTLS    bool          // RFC 8689; offered under TLS only
	FutureRelease time.Duration // RFC 4865: the longest time a message is held; 0: not offered
	DeliverBy     bool          // RFC 2852
	MinBy         time.Duration // the shortest time with mode R
	Priority      bool          // RFC 6710
	XClient       bool          // the client is a proxy whose word is believed; asked once a connection
	XClientLogin  bool          // its word for who has logged in, too
}

// Extender is implemented by a Session that offers some of them. What is offered may change
// after AUTH and STARTTLS.
type Extender interface {
	Extensions() Extensions
}

// Starter is implemented by a Session that knows ETRN (RFC 1985).
type Starter interface {
	// MayStart tells whether the client may use it at all.
	MayStart() bool
	// Start has the mail for a domain sent, with below also that for the domains below it.
	Start(ctx context.Context, domain string, below bool) error
}

func (c *session) extensions() Extensions {
	var x Extensions
	if e, ok := c.be.(Extender); ok {
		x = e.Extensions()
	}
	x.RequireTLS = x.RequireTLS && c.st.TLS != nil
	return x
}

func (c *session) mayStart() bool {
	s, ok := c.be.(Starter)
	return ok && s.MayStart()
}

// announce appends the keywords of EHLO that depend on the session.
func (c *session) announce(b *strings.Builder) {
	x := c.extensions()
	// RFC 9422 §4.2. Refused recipients do not count here: we take no fewer than we say.
	b.WriteString("\nLIMITS RCPTMAX=" + strconv.Itoa(min(or(c.srv.MaxRecipients, 1000), 999999)))
	if x.RequireTLS {
		b.WriteString("\nREQUIRETLS")
	}
	if x.FutureRelease > 0 {
		until := c.srv.now().Add(x.FutureRelease).UTC().Format(time.RFC3339)
		b.WriteString("\nFUTURERELEASE " + seconds(x.FutureRelease) + " " + until)
	}
	if x.DeliverBy {
		b.WriteString("\nDELIVERBY " + seconds(x.MinBy))
	}
	if x.Priority {
		b.WriteString("\nMT-PRIORITY")
	}
	if c.mayStart() {
		b.WriteString("\nETRN")
	}
	if c.xclient {
		b.WriteString("\nXCLIENT NAME ADDR PORT PROTO HELO DESTADDR DESTPORT")
		if x.XClientLogin {
			b.WriteString(" LOGIN")
		}
	}
}

func seconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }

// extended reads a parameter of MAIL that only some sessions offer. known is false for one that
// this session does not.
func (o *MailOptions) extended(key, value string, has bool, x *Extensions, now time.Time) (known, ok bool) {
	switch {
	case key == "REQUIRETLS" && x.RequireTLS:
		o.RequireTLS = !has
		return true, !has
	case key == "HOLDFOR" && x.FutureRelease > 0:
		n, ok := parseSeconds(value)
		return true, ok && n > 0 && o.hold("for;"+value, now.Add(n), now, x)
	case key == "HOLDUNTIL" && x.FutureRelease > 0:
		// RFC 4865 §3: normalized to UTC, which RFC 3339 writes with a Z.
		t, err := time.Parse(time.RFC3339, strings.ToUpper(value))
		return true, err == nil && strings.HasSuffix(strings.ToUpper(value), "Z") && o.hold("until;"+value, t, now, x)
	case key == "BY" && x.DeliverBy:
		o.By, ok = parseBy(value, now)
		return true, ok
	case key == "MT-PRIORITY" && x.Priority:
		o.Priority, o.HasPriority = parsePriority(value)
		return true, o.HasPriority
	}
	return false, false
}

// hold notes a time to hold until. RFC 4865 §4.2: later than announced, in the past, or twice
// is an error.
func (o *MailOptions) hold(request string, until, now time.Time, x *Extensions) bool {
	// A client copies the latest date from our EHLO, which has no fractions of a second.
	if o.HoldUntil != nil || until.After(now.Add(x.FutureRelease)) || until.Before(now.Truncate(time.Second)) {
		return false
	}
	until = until.UTC()
	o.HoldUntil, o.Hold = &until, request
	return true
}

// consistent checks parameters against each other, once all are read.
func (o *MailOptions) consistent(x *Extensions, now time.Time) *Answer {
	switch {
	case o.By == nil:
	case o.By.Mode == "R" && o.By.Deadline.Sub(now) < x.MinBy:
		// RFC 2852 §3: less than the announced minimum is a permanent failure (55z).
		return &Answer{Code: 555, Enhanced: "5.5.4", Text: "BY: less than " + seconds(x.MinBy) + " seconds cannot be promised"}
	case o.HoldUntil != nil && o.HoldUntil.After(o.By.Deadline):
		// RFC 4865 §5.2.2.
		return &Answer{Code: 501, Enhanced: "5.5.4", Text: "the message is to be held beyond the time to deliver it by"}
	}
	return nil
}

// parseSeconds reads 1 to 9 digits.
func parseSeconds(s string) (time.Duration, bool) {
	if s == "" || len(s) > 9 {
		return 0, false
	}
	n, ok := parseSize(s)
	return time.Duration(n) * time.Second, ok
}

// parseBy reads by-value of RFC 2852 §4 and makes its time absolute.
func parseBy(s string, now time.Time) (*envelope.DeliverBy, bool) {
	num, mode, ok := strings.Cut(s, ";")
	digits, minus := strings.CutPrefix(num, "-")
	if !minus {
		digits = strings.TrimPrefix(num, "+")
	}
	n, isNum := parseSeconds(digits)
	if minus {
		n = -n
	}
	by := &envelope.DeliverBy{Deadline: now.Add(n).UTC()}
	by.Mode, by.Trace = strings.CutSuffix(strings.ToUpper(mode), "T")
	switch by.Mode {
	case "N":
	case "R": // RFC 2852 §4: zero or less is a syntax error here
		ok = ok && n > 0
	default:
		ok = false
	}
	return by, ok && isNum
}

// parsePriority reads priority-value of RFC 6710 §7.
func parsePriority(s string) (int, bool) {
	digit, minus := strings.CutPrefix(s, "-")
	if len(digit) != 1 || digit[0] < '0' || digit[0] > '9' || minus && digit == "0" {
		return 0, false
	}
	n := int(digit[0] - '0')
	if minus {
		n = -n
	}
	return n, true
}

// etrn is RFC 1985 §5.
func (c *session) etrn(arg string) error {
	name, below := strings.CutPrefix(arg, "@")
	switch {
	case !c.mayStart():
		return c.fault(502, "5.5.1", "not for you")
	case c.tx.open:
		return c.fault(503, "5.5.1", "not between MAIL and the end of the message")
	case name == "" || envelope.CheckDomain(name) != nil:
		return c.fault(501, "5.5.4", "want ETRN and a domain, or @ and a domain")
	}
	if err := c.be.(Starter).Start(c.ctx, name, below); err != nil {
		c.refused(answerFor(err))
		return nil
	}
	c.say(250, "2.0.0", "queuing for node "+name+" started")
	return nil
}
