package pop3

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"pennypost/internal/auth"
	"pennypost/internal/handover"
	"pennypost/internal/login"
	"pennypost/internal/mailbox"
)

// proof is what a session knows of who its client is.
type proof struct {
	name  string         // what USER said
	who   string         // after the login
	login *login.Session // nil until it is asked for
}

// logins makes the client's ways to log in, again after a handshake.
func (c *session) logins() *login.Session {
	if c.login == nil {
		c.login = c.srv.Login.Session(login.Client{
			Peer: c.peer.String(), From: c.peer.Addr.Addr(), TLS: c.tls, Clear: c.mayClear(),
		})
	}
	return c.login
}

// mayClear tells whether a password may come without TLS: over pipes to whoever started us, where
// nobody else hears it, and from where the configuration says.
func (c *session) mayClear() bool {
	ip := c.peer.Addr.Addr()
	if !ip.IsValid() {
		return c.peer.Stdio
	}
	return slices.ContainsFunc(c.srv.ClearFrom, func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) })
}

// user is USER. Whether there is such a user, only the right password tells.
func (c *session) user(arg string) error {
	switch {
	case !c.logins().MayPassword():
		return c.needTLS()
	case !valid(arg):
		return c.fault("[AUTH] name is not UTF-8")
	}
	c.name = arg
	c.ok("name taken, send PASS")
	return nil
}

// needTLS answers where a password would travel in clear.
func (c *session) needTLS() error {
	if c.canTLS() {
		return c.fault("[AUTH] no passwords without TLS: say STLS first")
	}
	return c.fault("[AUTH] no passwords here")
}

// pass is PASS: everything behind the space is the password (RFC 1939 §7).
func (c *session) pass(arg string) error {
	name := c.name
	c.name = "" // RFC 1939 §7: a PASS stands immediately behind its USER
	switch {
	case !c.logins().MayPassword():
		return c.needTLS()
	case name == "":
		return c.fault("say USER first")
	case !valid(arg):
		return c.fault("[AUTH] password is not UTF-8")
	}
	id, err := c.logins().Password(c.ctx, "PASS", name, arg)
	if err != nil {
		return c.refuse(err)
	}
	return c.welcome(id)
}

// apop is APOP. It needs every password in clear on the server, and MD5: there are better ways to
// keep a password off the wire.
func (c *session) apop(string) error {
	return c.fault("no APOP: it needs passwords stored in clear; use AUTH SCRAM-SHA-256, or STLS and USER")
}

// auth runs one SASL exchange, RFC 5034 §4.
func (c *session) auth(arg string) error {
	mech, initial, hasInitial := strings.Cut(arg, " ")
	mech = strings.ToUpper(mech)
	if mech == "" {
		// No standard has it, but clients older than CAPA ask in this way.
		c.ok("these are the mechanisms")
		for _, m := range c.logins().Mechanisms() {
			c.line(m)
		}
		c.line(".")
		return nil
	}
	c.name = ""
	ex, err := c.logins().Begin(c.ctx, mech)
	if err != nil {
		return c.refuse(err)
	}
	var response []byte
	if hasInitial {
		if response, err = decode(initial); err != nil {
			return c.giveUp(ex, "initial response is not base64")
		}
	}
	for {
		challenge, done, err := ex.Next(c.ctx, response)
		switch {
		case err != nil:
			return c.refuse(err)
		case done:
			return c.welcome(ex.Identity())
		}
		c.line("+ ", base64.StdEncoding.EncodeToString(challenge))
		line, err := c.in.line(maxAuthLine)
		switch {
		case errors.Is(err, errLongLine):
			return c.giveUp(ex, "line is too long")
		case err != nil:
			return errors.Join(err, ex.Quit(c.ctx))
		case string(line) == "*":
			return c.giveUp(ex, "login cancelled")
		}
		if response, err = base64.StdEncoding.Strict().DecodeString(string(line)); err != nil {
			if string(line) != "=" { // an empty response to curl, as it is in the command
				return c.giveUp(ex, "response is not base64")
			}
			response = []byte{}
		}
	}
}

// giveUp ends an exchange that cannot go on. A client that had been refused already hears that.
func (c *session) giveUp(ex *login.Exchange, text string) error {
	if err := ex.Quit(c.ctx); err != nil {
		return c.refuse(err)
	}
	return c.fault(text)
}

// decode reads an initial response; "=" stands for an empty one (RFC 5034 §4).
func decode(s string) ([]byte, error) {
	if s == "=" {
		return []byte{}, nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err == nil && len(b) == 0 {
		err = errors.New("empty")
	}
	return b, err
}

// refuse answers a login that failed. AUTH and SYS are RFC 3206's codes.
func (c *session) refuse(err error) error {
	switch login.ClassOf(err) {
	case login.Refused:
		return c.fault("[AUTH] user name or password is wrong")
	case login.NeedTLS:
		return c.needTLS()
	case login.Syntax:
		return c.fault("response does not fit the mechanism")
	case login.Unknown:
		return c.fault("unknown mechanism")
	case login.Slow:
		return c.fault("[LOGIN-DELAY] too many failed logins, try again later")
	case login.Busy:
		return c.fault("[SYS/TEMP] too many logins at once, try again later")
	}
	return c.fault("[SYS/TEMP] cannot check who you are right now, try again later")
}

// welcome opens the maildrop of a user who has logged in, or gives the session to a process that
// may.
func (c *session) welcome(id auth.Identity) error {
	if taken, err := c.handOver(id); taken {
		return nil
	} else if err != nil {
		return c.unopened(id.Address, err)
	}
	box, err := c.srv.Open(c.ctx, id.Address)
	if err == nil {
		err = c.enter(c.ctx, box)
	}
	if err != nil {
		return c.unopened(id.Address, err)
	}
	c.who, c.errs = id.Address, 0
	c.ok("welcome, " + strconv.Itoa(c.left) + " messages (" + itoa(c.octets) + " octets)")
	return nil
}

// unopened answers a login that was right and yet opens no maildrop.
func (c *session) unopened(user string, err error) error {
	peer := c.peer.String()
	switch {
	case errors.Is(err, mailbox.ErrInUse):
		c.srv.Log.Warn("maildrop in use", "peer", peer, "user", user)
		return c.fault("[IN-USE] another session has the maildrop")
	case errors.Is(err, ErrSoon):
		return c.fault("[LOGIN-DELAY] the last login was a moment ago")
	case errors.Is(err, handover.ErrRefused):
		c.srv.Log.Error("no session for a user", "peer", peer, "user", user, "err", err)
		return c.fault("[SYS/PERM] no session for this user")
	}
	c.srv.Log.Error("maildrop cannot be opened", "peer", peer, "user", user, "err", err)
	return c.fault("[SYS/TEMP] cannot open the maildrop, try again later")
}

// carried is what a session takes along to another process.
type carried struct {
	UTF8 bool   `json:"utf8,omitempty"`
	Role string `json:"role"`
	// What CAPA has said of logins: it says so again (RFC 2449 §3).
	Password bool   `json:"password,omitempty"`
	SASL     string `json:"sasl,omitempty"`
}

// offers are the ways to log in: whether USER is one, and the mechanisms.
func (c *session) offers() (password bool, mechanisms string) {
	if c.told != nil { // logins were elsewhere
		return c.told.Password, c.told.SASL
	}
	return c.logins().MayPassword(), strings.Join(c.logins().Mechanisms(), " ")
}

// handOver gives the connection to a process of the user, which answers the login.
func (c *session) handOver(id auth.Identity) (taken bool, err error) {
	if c.srv.HandOver == nil {
		return false, nil
	}
	if err := c.flush(); err != nil {
		return false, err
	}
	st := carried{UTF8: c.utf8, Role: c.srv.Role}
	st.Password, st.SASL = c.offers()
	taken, err = c.srv.HandOver(c.ctx, c.conn, id.Address, handover.Request{
		Protocol: handover.POP3, Ticket: id.Ticket, Peer: c.peer.Addr, TLS: c.tls, Pending: c.in.shed(), State: st,
	})
	if errors.Is(err, handover.ErrLost) { // two must not speak with one client
		c.srv.Log.Error("no session for a user", "peer", c.peer.String(), "user", id.Address, "err", err)
		taken, err = true, nil
	}
	if taken {
		c.closing, c.handed = true, true
	}
	return taken, err
}

// ServeSession serves a client who has logged in elsewhere. It closes conn.
func (s *Server) ServeSession(ctx context.Context, conn net.Conn, f *handover.Facts) error {
	var st carried
	if err := json.Unmarshal(f.State, &st); err != nil {
		return fmt.Errorf("state of the session: %w", err)
	}
	c := s.newSession(ctx, conn, Peer{Addr: f.Peer})
	c.utf8, c.role, c.secured, c.told = st.UTF8, st.Role, f.TLS != nil, &st
	c.in.buf, c.in.w = f.Pending, len(f.Pending)
	stop := context.AfterFunc(ctx, c.wake)
	defer stop()
	_ = c.welcome(auth.Identity{Address: f.Address}) // it has answered; commands says it
	// Without a maildrop there is nothing to do here, whatever the client has sent already.
	c.closing = c.state == authorization
	c.linger = c.closing
	c.run()
	return nil
}
