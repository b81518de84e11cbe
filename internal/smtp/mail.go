package smtp

import (
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"pennypost/internal/envelope"
)

func (c *session) mail(arg string) error {
	switch {
	case c.st.Helo == "":
		return c.fault(503, "5.5.1", "say EHLO first")
	case c.tx.open:
		return c.fault(503, "5.5.1", "the last MAIL is still open")
	}
	path, ok := pathArg(arg, "FROM:")
	if !ok {
		return c.fault(501, "5.5.4", "want MAIL FROM:<address>")
	}
	addr, rest, err := envelope.ParsePath(path)
	if err != nil || addr.Domain == "" && addr.Local != "" {
		return c.fault(553, "5.1.7", "the sender's address cannot be read")
	}
	x, now := c.extensions(), c.srv.now()
	o, a := parseMailParams(rest, c.st.ESMTP, &x, now)
	if a != nil {
		return c.fault(a.Code, a.Enhanced, a.Text)
	}
	if !addr.IsASCII() && !o.SMTPUTF8 {
		// RFC 6531 §3.5.
		return c.fault(550, "5.6.7", "this address needs the SMTPUTF8 parameter")
	}
	if c.srv.MaxSize > 0 && o.Size > c.srv.MaxSize {
		c.refused(&Answer{Code: 552, Enhanced: "5.3.4", Text: "message is too big"}) // RFC 1870 §6.1
		return nil
	}
	asked := o.Priority
	if err := c.be.Mail(c.ctx, addr, o); err != nil {
		c.refused(answerFor(err))
		return nil
	}
	c.tx = transaction{open: true, began: now, opts: *o, from: addr}
	if o.Priority != asked {
		// RFC 6710 §4.1: the code says that the priority is another one, the text which.
		c.say(250, "2.3.6", strconv.Itoa(o.Priority)+" is the priority you may use; sender ok")
		return nil
	}
	c.say(250, "2.1.0", "sender ok")
	return nil
}

func (c *session) rcpt(arg string) error {
	if !c.tx.open {
		return c.fault(503, "5.5.1", "say MAIL first")
	}
	if c.tx.msg != nil || c.tx.bad {
		return c.fault(503, "5.5.1", "the message has begun")
	}
	path, ok := pathArg(arg, "TO:")
	if !ok {
		return c.fault(501, "5.5.4", "want RCPT TO:<address>")
	}
	addr, rest, err := envelope.ParsePath(path)
	if err != nil || addr.IsNull() {
		return c.fault(501, "5.1.3", "the recipient's address cannot be read")
	}
	o, a := parseRcptParams(rest, c.st.ESMTP)
	if a != nil {
		return c.fault(a.Code, a.Enhanced, a.Text)
	}
	if !addr.IsASCII() && !c.tx.opts.SMTPUTF8 {
		return c.fault(553, "5.6.7", "this address needs the SMTPUTF8 parameter of MAIL")
	}
	if c.tx.rcpts >= or(c.srv.MaxRecipients, 1000) {
		// RFC 5321 §4.5.3.1.10: 452, so that the client sends the rest in another transaction.
		c.say(452, "4.5.3", "too many recipients")
		if c.tx.over++; c.tx.over > 10*c.tx.rcpts+1000 {
			c.bye("4.5.3", "too many recipients by far")
		}
		return nil
	}
	if err := c.be.Rcpt(c.ctx, addr, o); err != nil {
		c.refused(answerFor(err))
		return nil
	}
	c.tx.rcpts++
	c.say(250, "2.1.5", "recipient ok")
	return nil
}

// refused sends a backend's refusal. Many of them in a row are somebody trying addresses.
func (c *session) refused(a *Answer) {
	c.answer(a)
	c.idled()
}

// idled counts what moved no mail.
func (c *session) idled() {
	if c.idle++; c.idle > maxIdleCommands && !c.closing {
		c.bye("4.7.0", "too many commands without a message")
	}
}

// pathArg cuts the keyword off "FROM:<path> params". A space before the path is no RFC 5321
// syntax, but clients old enough to need it are still about, and it cannot be misread.
func pathArg(arg, keyword string) (path string, ok bool) {
	if len(arg) < len(keyword) || !strings.EqualFold(arg[:len(keyword)], keyword) {
		return "", false
	}
	return strings.TrimLeft(arg[len(keyword):], " "), true
}

// params calls f for each parameter of s, which is empty or starts with a space.
func params(s string, esmtp bool, f func(key, value string, has bool) *Answer) *Answer {
	if s == "" {
		return nil
	}
	if s[0] != ' ' {
		return &Answer{Code: 501, Enhanced: "5.5.4", Text: "text after the address"}
	}
	fields := strings.Fields(s)
	if len(fields) > 0 && !esmtp {
		return &Answer{Code: 555, Enhanced: "5.5.4", Text: "parameters need EHLO"}
	}
	for i, p := range fields {
		key, value, has := strings.Cut(p, "=")
		key = strings.ToUpper(key)
		if !isKeyword(key) || has && !isValue(value) {
			return &Answer{Code: 501, Enhanced: "5.5.4", Text: "a parameter cannot be read"}
		}
		for _, q := range fields[:i] {
			if k, _, _ := strings.Cut(q, "="); strings.EqualFold(k, key) {
				return &Answer{Code: 501, Enhanced: "5.5.4", Text: "parameter " + key + " given twice"}
			}
		}
		if a := f(key, value, has); a != nil {
			return a
		}
	}
	return nil
}

// isKeyword and isValue are esmtp-keyword and esmtp-value of RFC 5321 §4.1.2, the latter with
// the UTF-8 of RFC 6531 §3.3.
func isKeyword(s string) bool {
	for i := 0; i < len(s); i++ {
		ch := s[i]
		if !(ch >= 'A' && ch <= 'Z' || ch >= '0' && ch <= '9' || ch == '-' && i > 0) {
			return false
		}
	}
	return s != ""
}

func isValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] == '=' || s[i] == 0x7f {
			return false
		}
	}
	return s != "" && utf8.ValidString(s)
}

func badParam(key string) *Answer {
	return &Answer{Code: 501, Enhanced: "5.5.4", Text: "bad value of " + key}
}

func unknownParam(key string) *Answer {
	return &Answer{Code: 555, Enhanced: "5.5.4", Text: "unknown parameter " + key}
}

func parseMailParams(s string, esmtp bool, x *Extensions, now time.Time) (*MailOptions, *Answer) {
	o := &MailOptions{}
	a := params(s, esmtp, func(key, value string, has bool) *Answer {
		ok := has
		switch key {
		case "SIZE":
			o.Size, ok = parseSize(value)
		case "BODY":
			switch strings.ToUpper(value) {
			case "7BIT":
			case envelope.Body8Bit:
				o.Body = envelope.Body8Bit
			case envelope.BodyBinary:
				o.Body = envelope.BodyBinary
			default:
				ok = false
			}
		case "SMTPUTF8":
			o.SMTPUTF8, ok = true, !has
		case "RET":
			o.Ret = strings.ToUpper(value)
			ok = o.Ret == "FULL" || o.Ret == "HDRS"
		case "ENVID":
			// RFC 3461 §4.4: up to 100 characters, printable once decoded.
			o.EnvID, ok = decodeXtext(value)
			ok = ok && len(value) <= 100 && isPrintable(o.EnvID)
		case "AUTH":
			o.Auth, ok = decodeXtext(value)
			ok = ok && o.Auth != "" && isPrintable(o.Auth)
		default:
			var known bool
			if known, ok = o.extended(key, value, has, x, now); !known {
				return unknownParam(key)
			}
		}
		if !ok {
			return badParam(key)
		}
		return nil
	})
	if a == nil {
		a = o.consistent(x, now)
	}
	return o, a
}

func parseRcptParams(s string, esmtp bool) (*RcptOptions, *Answer) {
	o := &RcptOptions{}
	a := params(s, esmtp, func(key, value string, _ bool) *Answer {
		var ok bool // an option without a value has the empty one, which neither takes
		switch key {
		case "NOTIFY":
			o.Notify, ok = parseNotify(value)
		case "ORCPT":
			o.ORcpt, ok = parseORcpt(value)
		default:
			return unknownParam(key)
		}
		if !ok {
			return badParam(key)
		}
		return nil
	})
	return o, a
}

// parseSize reads up to 20 digits (RFC 1870 §4); what does not fit is the largest number, so
// that it is too big rather than an error.
func parseSize(s string) (int64, bool) {
	if s == "" || len(s) > 20 {
		return 0, false
	}
	var n int64
	for i := 0; i < len(s); i++ {
		d := int64(s[i]) - '0'
		if d < 0 || d > 9 {
			return 0, false
		}
		if n > (math.MaxInt64-d)/10 {
			n = math.MaxInt64
			continue
		}
		n = n*10 + d
	}
	return n, true
}

// parseNotify reads NOTIFY, RFC 3461 §4.1: NEVER alone, or a list of the others.
func parseNotify(s string) ([]string, bool) {
	var l []string
	for _, w := range strings.Split(strings.ToUpper(s), ",") {
		switch w {
		case "NEVER", "SUCCESS", "FAILURE", "DELAY":
		default:
			return nil, false
		}
		for _, have := range l {
			if have == w || have == "NEVER" || w == "NEVER" {
				return nil, false
			}
		}
		l = append(l, w)
	}
	return l, true
}

// parseORcpt reads ORCPT, RFC 3461 §4.2: an address type, a semicolon, and xtext. Of the utf-8
// type (RFC 6533 §3) the escapes stay as they are: a DSN carries them in the same form.
func parseORcpt(s string) (string, bool) {
	typ, addr, ok := strings.Cut(s, ";")
	if !ok || addr == "" || len(s) > 500 || !isKeyword(strings.ToUpper(typ)) {
		return "", false
	}
	if strings.EqualFold(typ, "utf-8") {
		return "utf-8;" + addr, true
	}
	d, ok := decodeXtext(addr)
	return strings.ToLower(typ) + ";" + d, ok && isPrintable(d)
}

// decodeXtext undoes RFC 3461 §4's xtext: printable characters, with "+" and two upper-case hex
// digits for any other octet.
func decodeXtext(s string) (string, bool) {
	if strings.IndexByte(s, '+') < 0 {
		return s, isXchars(s)
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '+' {
			if !isXchars(s[i : i+1]) {
				return "", false
			}
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		hi, lo := hexDigit(s[i+1]), hexDigit(s[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	return b.String(), true
}

func isXchars(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] > '~' || s[i] == '=' {
			return false
		}
	}
	return true
}

// hexDigit takes lower case as well, which some senders write.
func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

// isPrintable keeps out what would end a line of a file or a report later.
func isPrintable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
