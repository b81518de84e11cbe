package smtp

import (
	"encoding/base64"
	"errors"
	"slices"
	"strconv"
	"strings"

	"pennypost/internal/sasl"
)

func (c *session) helo(arg string) error { return c.greet(arg, false) }
func (c *session) ehlo(arg string) error { return c.greet(arg, true) }

// greet answers HELO and EHLO. The name is checked for its form only: RFC 5321 §4.1.4 forbids
// refusing a client because its name does not match its address.
func (c *session) greet(name string, esmtp bool) error {
	if !plausibleHelo(name) {
		return c.fault(501, "5.5.4", "want the name of your host or its address in brackets")
	}
	if c.st.Helo != "" {
		c.reset()
	}
	c.st.Helo, c.st.ESMTP = name, esmtp
	if !esmtp {
		c.say(250, "", c.srv.Hostname)
		return nil
	}
	var b strings.Builder
	b.WriteString(c.srv.Hostname)
	b.WriteString("\nPIPELINING\nSIZE")
	if c.srv.MaxSize > 0 {
		b.WriteString(" " + strconv.FormatInt(c.srv.MaxSize, 10))
	}
	if c.canTLS() {
		b.WriteString("\nSTARTTLS")
	}
	if m := c.mechanisms(); len(m) > 0 && c.st.User == "" {
		b.WriteString("\nAUTH " + strings.Join(m, " "))
	}
	c.announce(&b)
	b.WriteString("\nENHANCEDSTATUSCODES\n8BITMIME\nSMTPUTF8\nDSN\nCHUNKING\nBINARYMIME\nHELP")
	c.say(250, "", b.String())
	return nil
}

func plausibleHelo(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	for i := 0; i < len(s); i++ {
		ch := s[i]
		switch {
		case ch >= 'a' && ch <= 'z', ch >= 'A' && ch <= 'Z', ch >= '0' && ch <= '9':
		case ch == '.', ch == '-', ch == '_', ch == '[', ch == ']', ch == ':':
		case ch >= 0x80: // RFC 6531 §3.2 allows U-labels once SMTPUTF8 is known
		default:
			return false
		}
	}
	return true
}

func (c *session) canTLS() bool { return c.srv.TLS != nil && c.st.TLS == nil }

func (c *session) starttls(arg string) error {
	switch {
	case arg != "":
		return c.fault(501, "5.5.4", "STARTTLS takes no argument")
	case c.st.TLS != nil:
		return c.fault(503, "5.5.1", "TLS is on already")
	case c.srv.TLS == nil:
		return c.fault(502, "5.5.1", "no TLS here")
	}
	c.say(220, "2.0.0", "go ahead")
	if err := c.flush(); err != nil {
		return err
	}
	// RFC 3207 §4.2: back to the state before EHLO, with nothing kept that was said in clear.
	if n := c.in.discard(); n > 0 {
		if o, ok := c.be.(Observer); ok {
			o.Refused("STARTTLS", "", &Answer{Code: 554, Enhanced: "5.5.1", Text: strconv.Itoa(n) + " octets after STARTTLS thrown away"})
		}
	}
	c.reset()
	c.st.Helo, c.st.ESMTP, c.st.User, c.st.Vouched = "", false, "", false
	return c.handshake()
}

func (c *session) mechanisms() []string {
	if a, ok := c.be.(Authenticator); ok {
		return a.Mechanisms()
	}
	return nil
}

// auth runs one SASL exchange, RFC 4954 §4.
func (c *session) auth(arg string) error {
	c.arg = "" // never into a log
	name, initial, hasInitial := strings.Cut(arg, " ")
	mech := strings.ToUpper(name)
	a, ok := c.be.(Authenticator)
	switch {
	case !ok:
		return c.fault(502, "5.5.1", "no AUTH here")
	case !c.st.ESMTP:
		return c.fault(503, "5.5.1", "say EHLO first")
	case c.st.User != "":
		return c.fault(503, "5.5.1", "authenticated already")
	case c.tx.open:
		return c.fault(503, "5.5.1", "not between MAIL and the end of the message")
	case mech == "":
		return c.fault(501, "5.5.4", "want AUTH and a mechanism")
	}
	if isMechanism(name) {
		c.arg = mech
	}
	ex, err := a.Auth(c.ctx, mech)
	if err != nil {
		return c.authFailed(err)
	}
	if ex == nil || !slices.Contains(a.Mechanisms(), mech) {
		return c.fault(504, "5.5.4", "unknown mechanism")
	}
	var response []byte
	if hasInitial {
		if response, err = decodeResponse(initial); err != nil {
			return c.fault(501, "5.5.2", "initial response is not base64")
		}
	}
	for {
		challenge, done, err := ex.Next(c.ctx, response)
		if err != nil {
			return c.authFailed(err)
		}
		if done {
			c.st.User = ex.User()
			c.errs, c.idle = 0, 0
			c.say(235, "2.7.0", "welcome")
			return nil
		}
		c.say(334, "", base64.StdEncoding.EncodeToString(challenge))
		line, err := c.in.line(maxAuthLine)
		switch {
		case errors.Is(err, errLongLine):
			return c.fault(500, "5.5.6", "authentication exchange line is too long")
		case errors.Is(err, errBareLF), errors.Is(err, errBareCR):
			c.closing, c.linger = true, true
			c.say(500, "5.5.2", "lines end in CR LF, never in one of them alone; closing the connection")
			return nil
		case err != nil:
			return err
		case string(line) == "*":
			if q, ok := ex.(sasl.Quitter); ok {
				if err := q.Quit(c.ctx); err != nil {
					return c.authFailed(err)
				}
			}
			return c.fault(501, "5.7.0", "authentication cancelled")
		}
		if response, err = base64.StdEncoding.Strict().DecodeString(string(line)); err != nil {
			if string(line) != "=" { // an empty response to curl, as it is at the end of AUTH
				return c.fault(501, "5.5.2", "response is not base64")
			}
			response = []byte{}
		}
	}
}

// isMechanism tells whether s can be shown as a name of RFC 4422 §3.1. One with small letters may
// be a response that stands where the name belongs.
func isMechanism(s string) bool {
	return len(s) <= 20 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}

// decodeResponse reads an initial response; "=" stands for an empty one (RFC 4954 §4).
func decodeResponse(s string) ([]byte, error) {
	if s == "=" {
		return []byte{}, nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err == nil && len(b) == 0 {
		err = errors.New("empty")
	}
	return b, err
}

func (c *session) authFailed(err error) error {
	var a *Answer
	switch {
	case errors.As(err, &a):
		return c.fault(a.Code, a.Enhanced, a.Text)
	case errors.Is(err, sasl.ErrRefused):
		return c.fault(535, "5.7.8", "user name or password is wrong")
	case errors.Is(err, sasl.ErrNeedTLS):
		return c.fault(538, "5.7.11", "this needs TLS: say STARTTLS first")
	case errors.Is(err, sasl.ErrSyntax):
		return c.fault(501, "5.5.2", "response does not fit the mechanism")
	}
	c.refused(&Answer{Code: 454, Enhanced: "4.7.0", Text: "cannot check passwords right now, try again later"})
	return nil
}
