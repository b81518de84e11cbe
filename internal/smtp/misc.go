package smtp

func (c *session) rset(arg string) error {
	if arg != "" {
		return c.fault(501, "5.5.4", "RSET takes no argument")
	}
	c.reset()
	c.say(250, "2.0.0", "ok")
	return nil
}

func (c *session) noop(string) error {
	c.say(250, "2.0.0", "ok")
	return nil
}

func (c *session) quit(arg string) error {
	if arg != "" {
		return c.fault(501, "5.5.4", "QUIT takes no argument")
	}
	c.say(221, "2.0.0", "bye")
	c.closing = true
	return nil
}

// vrfy tells nothing: RFC 5321 §7.3 allows that, and asks for 252 rather than a code that reads
// like a verdict.
func (c *session) vrfy(arg string) error {
	if arg == "" {
		return c.fault(501, "5.5.4", "want VRFY and a name")
	}
	c.say(252, "2.5.0", "not told here; RCPT will say")
	return nil
}

func (c *session) expn(arg string) error {
	if arg == "" {
		return c.fault(501, "5.5.4", "want EXPN and the name of a list")
	}
	c.say(252, "2.5.0", "not told here; RCPT will say")
	return nil
}

func (c *session) help(string) error {
	c.say(214, "2.0.0", "commands: EHLO HELO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY EXPN HELP STARTTLS AUTH ETRN XCLIENT\nPennypost, see msmtpd(8)")
	return nil
}
