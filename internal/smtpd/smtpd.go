// Package smtpd is what stands behind the SMTP engine: who may hand in mail for whom on which
// kind of socket, what is recorded about it, and the way of a message into the spool. It knows
// roles, accounts and policy, and no protocol syntax.
package smtpd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
	"pennypost/internal/policy"
	"pennypost/internal/sasl"
	"pennypost/internal/smtp"
	"pennypost/internal/submit"
)

// The roles of a socket.
const (
	MX          = "mx"          // anybody, for our own domains
	Submission  = "submission"  // our users, after STARTTLS and AUTH
	Submissions = "submissions" // the same over implicit TLS
	Local       = "local"       // processes of this host on a UNIX socket
)

// Roles lists them.
func Roles() []string { return []string{MX, Submission, Submissions, Local} }

// Accounts answers who exists.
type Accounts interface {
	IsLocal(domain string) bool
	Lookup(ctx context.Context, addr envelope.Address) (accounts.Result, error)
}

// Options say what a server is for. Numbers left 0 take smtp's defaults.
type Options struct {
	Role         string
	Hostname     string
	Domains      []string // the first completes bare names
	Accounts     Accounts
	Auth         Auth
	Submit       *submit.Submitter
	TLS          *tls.Config // nil: no TLS; the submission roles need it
	RelayFrom    []netip.Prefix
	RelayDomains []string       // "example.org", or ".example.org" for what is below it
	Policy       *policy.Policy // nil: nothing is asked of strangers
	Extend       Extend
	Filters      []Filter // asked in their order

	TrustedUIDs []int // may use any sender on the local socket; root always may
	// Login names the user of a uid, "" when there is none.
	Login func(ctx context.Context, uid int) (string, error)

	MaxSize       int64
	MaxRecipients int
	MaxErrors     int
	Timeout       time.Duration
	AuthDelay     time.Duration // before a wrong password is answered; default 1s, below 0 none
	Log           *slog.Logger
	Explain       Explain // nil: nobody wants to know
}

// New returns the server for one role.
func New(o Options) (*smtp.Server, error) {
	b := &backend{o: o}
	if b.o.Log == nil {
		b.o.Log = slog.New(slog.DiscardHandler)
	}
	if b.o.AuthDelay == 0 {
		b.o.AuthDelay = time.Second
	}
	s := &smtp.Server{
		Hostname: o.Hostname, Backend: b, TLS: o.TLS,
		MaxSize: o.MaxSize, MaxRecipients: o.MaxRecipients, MaxErrors: o.MaxErrors, Timeout: o.Timeout,
	}
	switch o.Role {
	case MX:
	case Submission, Submissions:
		if o.TLS == nil {
			return nil, fmt.Errorf("role %s needs TLS: passwords never go over clear text (set tls.cert and tls.key)", o.Role)
		}
		s.Implicit = o.Role == Submissions
	case Local:
		s.TLS = nil // the kernel stands between the two ends
	default:
		return nil, fmt.Errorf("unknown role %q (roles are %s)", o.Role, strings.Join(Roles(), ", "))
	}
	return s, nil
}

// backend is shared by all sessions of one server.
type backend struct{ o Options }

// NewSession implements smtp.Backend.
func (b *backend) NewSession(ctx context.Context, st *smtp.State) (smtp.Session, error) {
	s := &session{backend: b, st: st}
	if b.o.Role == Local && st.Peer.UID == nil {
		a := &smtp.Answer{Code: 554, Enhanced: "5.7.0", Text: "cannot tell who is asking: this platform or socket shows no user"}
		s.Refused("", "", a)
		return nil, a
	}
	s.explainStart()
	if err := s.policyConnect(ctx); err != nil {
		return nil, err
	}
	if err := s.filterConnect(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// session is one connection.
type session struct {
	*backend
	st   *smtp.State
	user string // who hands in: the authenticated address, or the login of the local user
	from envelope.Address
	mail smtp.MailOptions
	to   []envelope.Recipient
	// fault is what went wrong on our side, until the refusal that comes of it is logged.
	fault error
	filters
	judge
	proof
}

func (s *session) submission() bool { return s.o.Role == Submission || s.o.Role == Submissions }

// Mail implements smtp.Session.
func (s *session) Mail(ctx context.Context, from envelope.Address, o *smtp.MailOptions) error {
	var err error
	switch {
	case s.submission():
		err = s.submitterMay(ctx, from)
	case s.o.Role == Local:
		err = s.localMay(ctx, from)
	}
	s.explainSender(from, err)
	if err != nil {
		return err
	}
	if err := s.filterMail(ctx, from, o); err != nil {
		return err
	}
	o.Priority = s.priority(o.Priority)
	s.from, s.mail, s.to = from, *o, nil
	return nil
}

// submitterMay checks the sender of an authenticated user, RFC 6409 §6.1: the user's own
// addresses, in any spelling that reaches the user's own mailbox. Where a proxy vouches for the
// user, TLS is the proxy's business too: it ends there.
func (s *session) submitterMay(ctx context.Context, from envelope.Address) error {
	if s.st.TLS == nil && !s.st.Vouched {
		return &smtp.Answer{Code: 530, Enhanced: "5.7.0", Text: "say STARTTLS first"} // RFC 3207 §4
	}
	if s.st.User == "" {
		return &smtp.Answer{Code: 530, Enhanced: "5.7.0", Text: "authentication required"} // RFC 4954 §6
	}
	if err := s.loggedIn(ctx); err != nil {
		return err
	}
	// Reports about a message that was read are sent with the null reverse-path (RFC 8098 §3).
	if from.IsNull() {
		return nil
	}
	own, err := s.reaches(ctx, from, func(m *accounts.Mailbox) bool { return m.Address == s.user })
	if err == nil && !own {
		own, err = s.senderListed(ctx, from)
	}
	if err != nil {
		return s.lookupFailed(from, err)
	}
	if !own {
		return &smtp.Answer{Code: 550, Enhanced: "5.7.1", Text: s.user + " may not send as " + from.String()}
	}
	return nil
}

// loggedIn names the user as accounts are named here. AUTH has done so; a proxy passes on what its
// client typed.
func (s *session) loggedIn(ctx context.Context) error {
	if !s.st.Vouched {
		s.user = s.st.User
		return nil
	}
	user, err := s.logins().Account(ctx, s.st.User)
	switch {
	case errors.Is(err, sasl.ErrRefused):
		return &smtp.Answer{Code: 550, Enhanced: "5.7.1", Text: "the user whom the proxy names has no mailbox here"}
	case err != nil:
		return s.lookupFailed(envelope.Address{Local: s.st.User}, err)
	}
	s.explain("auth", "a proxy in smtpd.xclient_from says that the client has logged in as %s", user)
	s.user = user
	return nil
}

// localMay checks the sender of a process on this host.
func (s *session) localMay(ctx context.Context, from envelope.Address) error {
	uid := *s.st.Peer.UID
	if s.user == "" {
		name, err := s.login(ctx, uid)
		if err != nil {
			s.fault = fmt.Errorf("login of uid %d: %w", uid, err)
			return &smtp.Answer{Code: 451, Enhanced: "4.3.0", Text: "cannot look up who you are, try again later"}
		}
		s.user = name
	}
	if from.IsNull() || uid == 0 {
		return nil
	}
	for _, t := range s.o.TrustedUIDs {
		if t == uid {
			return nil
		}
	}
	base, _, _ := strings.Cut(from.Local, "+")
	if strings.EqualFold(base, s.user) && s.ownDomain(from.Domain) {
		return nil
	}
	own, err := s.reaches(ctx, from, func(m *accounts.Mailbox) bool { return m.UID == uid && m.System })
	if err == nil && !own {
		own, err = s.senderListed(ctx, from)
	}
	if err != nil {
		return s.lookupFailed(from, err)
	}
	if !own {
		return &smtp.Answer{Code: 550, Enhanced: "5.7.1", Text: s.user + " may not send as " + from.String()}
	}
	return nil
}

func (s *session) login(ctx context.Context, uid int) (string, error) {
	name := ""
	if s.o.Login != nil {
		var err error
		if name, err = s.o.Login(ctx, uid); err != nil {
			return "", err
		}
	}
	if name == "" {
		name = fmt.Sprintf("uid%d", uid)
	}
	return name, nil
}

// ownDomain tells whether addresses below the login of a local user are made with domain.
func (s *session) ownDomain(domain string) bool {
	return strings.EqualFold(domain, s.o.Hostname) || len(s.o.Domains) > 0 && strings.EqualFold(domain, s.o.Domains[0])
}

// reaches tells whether addr is a mailbox that mine accepts, or an alias that names one.
func (s *session) reaches(ctx context.Context, addr envelope.Address, mine func(*accounts.Mailbox) bool) (bool, error) {
	r, err := s.o.Accounts.Lookup(ctx, addr)
	s.explainLookup("mail", addr, r, err)
	if err != nil {
		return false, err
	}
	switch r.Kind {
	case accounts.IsMailbox:
		return mine(r.Mailbox), nil
	case accounts.IsAlias:
		for _, t := range r.Alias.Targets {
			if t.Addr.IsNull() {
				continue // a program or a file
			}
			r, err := s.o.Accounts.Lookup(ctx, t.Addr)
			if err != nil {
				return false, err
			}
			if r.Kind == accounts.IsMailbox && mine(r.Mailbox) {
				return true, nil
			}
		}
	}
	return false, nil
}

// Rcpt implements smtp.Session. Nothing a configuration leaves out makes an open relay: what is
// not named here is refused.
func (s *session) Rcpt(ctx context.Context, to envelope.Address, o *smtp.RcptOptions) error {
	if local, ok := s.complete(to); ok {
		to = local
	}
	if s.o.Accounts.IsLocal(to.Domain) {
		if err := s.localRcpt(ctx, to); err != nil {
			return err
		}
	} else if !s.mayRelay(to) {
		return &smtp.Answer{Code: 550, Enhanced: "5.7.1", Text: "relaying denied: " + to.Domain + " is not served here"}
	}
	r := envelope.Recipient{Addr: to.String(), Notify: o.Notify, ORcpt: o.ORcpt}
	for _, have := range s.to {
		if sameMailbox(have.Addr, r.Addr) {
			return nil // said twice, counted and delivered once
		}
	}
	if err := s.policyRcpt(ctx, to); err != nil {
		return err
	}
	if err := s.filterRcpt(ctx, to); err != nil {
		return err
	}
	s.to = append(s.to, r)
	return nil
}

// sameMailbox compares two addresses as they are written: a domain has no case, a local-part may.
func sameMailbox(a, b string) bool {
	at := strings.LastIndexByte(a, '@')
	return len(a) == len(b) && at >= 0 && a[:at] == b[:at] && strings.EqualFold(a[at:], b[at:])
}

// complete gives the two forms that need no domain name of ours one: <postmaster>
// (RFC 5321 §4.5.1), and a mailbox at the very address the client connected to (§4.1.3).
func (s *session) complete(to envelope.Address) (envelope.Address, bool) {
	if len(s.o.Domains) == 0 {
		return to, false
	}
	own := to.Domain == ""
	if ip, ok := to.Literal(); ok && s.st.Peer.Local.IsValid() {
		own = ip == s.st.Peer.Local.Addr()
	}
	to.Domain = s.o.Domains[0]
	return to, own
}

func (s *session) localRcpt(ctx context.Context, to envelope.Address) error {
	r, err := s.o.Accounts.Lookup(ctx, to)
	s.explainLookup("rcpt", to, r, err)
	switch {
	case strings.EqualFold(to.Local, "postmaster"):
		s.explain("rcpt", "postmaster is accepted whatever the look-up says")
		return nil // RFC 5321 §4.5.1: accepted whatever else is wrong
	case err != nil:
		return s.lookupFailed(to, err)
	case r.Kind == accounts.NoSuchUser, r.Kind == accounts.NotLocal:
		return s.unknownRcpt(ctx, &smtp.Answer{Code: 550, Enhanced: "5.1.1", Text: "no such user: " + to.String()})
	case r.Kind == accounts.IsMailbox:
		return s.policyMailbox(r.Mailbox)
	}
	return nil
}

// lookupFailed defers: a failed look-up is never "no such user".
func (s *session) lookupFailed(addr envelope.Address, err error) error {
	s.fault = fmt.Errorf("look-up of %s: %w", addr, err)
	var e *accounts.Error
	if errors.As(err, &e) {
		return &smtp.Answer{Code: 451, Enhanced: e.Status.Code, Text: "cannot look up the address right now, try again later"}
	}
	return &smtp.Answer{Code: 451, Enhanced: "4.3.0", Text: "cannot look up the address right now, try again later"}
}

// mayRelay tells whether the session may send to a domain that is not ours.
func (s *session) mayRelay(to envelope.Address) bool {
	switch s.o.Role {
	case Local:
		s.explain("rcpt", "%s is not local: processes of this host may send anywhere", to.Domain)
		return true
	case Submission, Submissions:
		s.explain("rcpt", "%s is not local: users may send anywhere", to.Domain)
		return s.st.User != ""
	}
	if p, ok := among(s.st.Peer.Addr, s.o.RelayFrom); ok {
		s.explain("rcpt", "%s is not local, but the client is in %s of smtpd.relay_from", to.Domain, p)
		return true
	}
	if d, ok := s.relayDomain(to.Domain); ok {
		s.explain("rcpt", "%s is not local, but matches %s of smtpd.relay_domains", to.Domain, d)
		return true
	}
	s.explain("rcpt", "%s is not local, and neither smtpd.relay_from nor smtpd.relay_domains lets it pass", to.Domain)
	return false
}

// Reset implements smtp.Session.
func (s *session) Reset() {
	s.from, s.mail, s.to = envelope.Address{}, smtp.MailOptions{}, nil
	s.filterReset()
	if s.visit != nil {
		s.visit.Reset()
	}
}

// Close implements smtp.Session.
func (s *session) Close() {
	if s.fault != nil { // the client did not wait for its answer
		s.o.Log.Error("message not stored", "peer", s.peer(), "from", s.from.String(), "err", s.fault)
	}
	s.filterClose()
	s.policyClose()
	s.closeExchange()
}
