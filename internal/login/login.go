// Package login lets users in over protocols with SASL: which mechanisms a connection is offered,
// one exchange or one plain password, and a log line for each. It hides where passwords, tokens and
// certificates are checked; POP3, IMAP and SMTP carry its challenges in their own framing.
package login

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/envelope"
	"pennypost/internal/sasl"
)

// Accounts tells whose mailbox an address is; *accounts.Accounts does.
type Accounts interface {
	Lookup(ctx context.Context, addr envelope.Address) (accounts.Result, error)
}

// Options say how users can prove who they are. The zero value knows no way; what a field is
// missing for is not offered. They may be used by many goroutines at once.
type Options struct {
	Passwords    auth.Checker                     // PLAIN, LOGIN, SCRAM, plain passwords
	Token        sasl.TokenFunc                   // OAUTHBEARER, XOAUTH2
	VerifyClient func(*tls.ConnectionState) error // EXTERNAL: whether an authority vouches for the certificate shown
	Certificates *Table                           // EXTERNAL: whose a certificate is
	Accounts     Accounts                         // for tokens and certificates
	Domains      []string                         // the first completes names without one
	Mechanisms   []string                         // offered; nil: all
	// Tickets wants a ticket with each login, for a session that another process is to run. What
	// only this process has checked brings none: tokens and certificates are not offered then.
	Tickets bool
	Delay   time.Duration // after a refusal
	Role    string        // for the log
	Log     *slog.Logger
}

// Client is who wants to log in.
type Client struct {
	Peer string               // for the log
	From netip.Addr           // true address; the zero Addr where there is none
	TLS  *tls.ConnectionState // nil: clear text
	// Clear lets passwords come without TLS: nobody can listen.
	Clear bool
}

// Session is the part of one connection before its user is known. One goroutine uses it.
type Session struct {
	o     *Options
	c     Client
	asked bool
	scram []string // mechanisms for which there are records
}

// Session begins one. After STARTTLS there is a new one.
func (o *Options) Session(c Client) *Session { return &Session{o: o, c: c} }

// ErrUnknown says that a mechanism does not exist, or is not offered on this connection.
var ErrUnknown = errors.New("mechanism is not offered")

// Secure tells whether anything may be proved on this connection.
func (s *Session) Secure() bool { return s.c.TLS != nil || s.c.Clear }

// MayPassword tells whether a plain password is taken now: POP3's USER, IMAP's LOGIN. They are
// PLAIN in another dress, and go with it.
func (s *Session) MayPassword() bool {
	return s.Secure() && s.o.Passwords != nil && s.allowed(sasl.Plain)
}

func (s *Session) allowed(mechanism string) bool {
	return s.o.Mechanisms == nil || slices.Contains(s.o.Mechanisms, mechanism)
}

// Mechanisms are those to announce now, the best first.
func (s *Session) Mechanisms() []string {
	if !s.Secure() {
		return nil
	}
	var can []string
	if s.o.Passwords != nil {
		can = append(s.scramMechanisms(), sasl.Plain, sasl.Login)
	}
	if s.o.Token != nil && !s.o.Tickets {
		can = append(can, sasl.OAuthBearer, sasl.XOAuth2)
	}
	if !s.o.Tickets && s.hasCertificate() {
		can = append(can, sasl.External)
	}
	return slices.DeleteFunc(can, func(m string) bool { return !s.allowed(m) })
}

// scramMechanisms asks once a session: the answer may come from another process.
func (s *Session) scramMechanisms() []string {
	if !s.asked {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		var err error
		if s.scram, err = s.o.Passwords.Mechanisms(ctx); err != nil {
			s.o.Log.Error("SCRAM is not offered", "peer", s.c.Peer, "err", err)
		}
		s.asked = true
	}
	var can []string
	for _, m := range []string{auth.SCRAMSHA256Plus, auth.SCRAMSHA256, auth.SCRAMSHA1} {
		base, plus := strings.CutSuffix(m, "-PLUS")
		if slices.Contains(s.scram, base) && (!plus || len(s.channel().Data) > 0) {
			can = append(can, m)
		}
	}
	return can
}

// channel is what SCRAM can be bound to, RFC 9266 §2. Of older versions than TLS 1.3 nothing is
// used: there the exporter is unique under conditions only (§4.2).
func (s *Session) channel() auth.Binding {
	if s.c.TLS == nil || s.c.TLS.Version < tls.VersionTLS13 {
		return auth.Binding{}
	}
	data, err := s.c.TLS.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return auth.Binding{}
	}
	return auth.Binding{Type: "tls-exporter", Data: data}
}

// Password checks a password that came without SASL; command is what it came by, for the log.
func (s *Session) Password(ctx context.Context, command, name, password string) (auth.Identity, error) {
	if !s.Secure() {
		return auth.Identity{}, sasl.ErrNeedTLS
	}
	if !s.MayPassword() {
		return auth.Identity{}, ErrUnknown
	}
	id, err := s.check(ctx, name, password)
	if err != nil {
		s.failed(ctx, command, name, err)
		return auth.Identity{}, err
	}
	s.accepted(ctx, command, id.Address)
	return id, nil
}

func (s *Session) check(ctx context.Context, name, password string) (id auth.Identity, err error) {
	if s.o.Tickets {
		return s.o.Passwords.Login(ctx, auth.Attempt{Login: name, Password: password, From: s.c.From, Ticket: true})
	}
	id.Address, err = s.o.Passwords.Password(ctx, name, password, s.c.From)
	return id, err
}

// Begin starts an exchange. Who gives it up before it is done or failed calls Quit.
func (s *Session) Begin(ctx context.Context, mechanism string) (*Exchange, error) {
	switch {
	case !s.Secure():
		return nil, sasl.ErrNeedTLS
	case !slices.Contains(s.Mechanisms(), mechanism):
		return nil, ErrUnknown
	}
	x := &Exchange{s: s, mechanism: mechanism}
	switch mechanism {
	case sasl.Plain:
		x.Server = sasl.NewPlainServer(x.password)
	case sasl.Login:
		x.Server = sasl.NewLoginServer(x.password)
	case sasl.OAuthBearer:
		x.Server = sasl.NewOAuthBearerServer(s.token)
	case sasl.XOAuth2:
		x.Server = sasl.NewXOAuth2Server(s.token)
	case sasl.External:
		x.Server = sasl.NewExternalServer(s.certificateUser)
	default:
		ask := auth.Exchange{Mechanism: mechanism, From: s.c.From, Ticket: s.o.Tickets}
		// RFC 5802 §6: a client that could bind and was not offered it says so. It means a man in
		// the middle where the -PLUS form of the same mechanism was offered, and nothing elsewhere.
		if slices.Contains(s.Mechanisms(), strings.TrimSuffix(mechanism, "-PLUS")+"-PLUS") {
			ask.Binding = s.channel()
		}
		ex, err := s.o.Passwords.SCRAM(ctx, ask)
		if err != nil {
			s.failed(ctx, mechanism, "", err)
			return nil, err
		}
		x.Server, x.scram = ex, ex
	}
	return x, nil
}

// Act starts an exchange by EXTERNAL where the kernel says who the client is.
func (s *Session) Act(who sasl.ActFunc) *Exchange {
	return &Exchange{Server: sasl.NewExternalServer(who), s: s, mechanism: sasl.External}
}

// Exchange is one conversation by a mechanism, a sasl.Server whose end is logged.
type Exchange struct {
	sasl.Server
	s         *Session
	mechanism string
	scram     auth.Server // nil: another mechanism
	ticket    string
	claimed   string
	over      bool
}

// Identity is who the user is, after success.
func (x *Exchange) Identity() auth.Identity {
	if x.scram != nil {
		x.ticket = x.scram.Ticket()
	}
	return auth.Identity{Address: x.User(), Ticket: x.ticket}
}

// Next implements sasl.Server.
func (x *Exchange) Next(ctx context.Context, response []byte) ([]byte, bool, error) {
	if x.scram != nil && x.claimed == "" {
		x.claimed = scramName(string(response))
	}
	challenge, done, err := x.Server.Next(ctx, response)
	switch {
	case err != nil:
		x.end()
		x.s.failed(ctx, x.mechanism, x.Claimed(), err)
	case done:
		x.end()
		x.s.accepted(ctx, x.mechanism, x.User())
	}
	return challenge, done, err
}

// Quit ends an exchange that the client gave up or did not carry on. Where the user had been
// refused already, it returns that refusal.
func (x *Exchange) Quit(ctx context.Context) error {
	over := x.over
	x.end()
	q, ok := x.Server.(sasl.Quitter)
	if !ok || over {
		return nil
	}
	err := q.Quit(ctx)
	if err != nil {
		x.s.failed(ctx, x.mechanism, x.Claimed(), err)
	}
	return err
}

func (x *Exchange) end() {
	x.over = true
	if x.scram != nil {
		x.scram.Close()
	}
}

// Claimed implements sasl.Claimer.
func (x *Exchange) Claimed() string {
	if c, ok := x.Server.(sasl.Claimer); ok {
		return c.Claimed()
	}
	return x.claimed
}

// password is a sasl.CheckFunc.
func (x *Exchange) password(ctx context.Context, name, password string) (string, error) {
	id, err := x.s.check(ctx, name, password)
	x.ticket = id.Ticket
	return id.Address, err
}

// token is a sasl.TokenFunc: whom the checker names must have a mailbox here, and be the one the
// client says to be.
func (s *Session) token(ctx context.Context, claimed, token string) (string, error) {
	name, err := s.o.Token(ctx, claimed, token)
	if err != nil {
		return "", err
	}
	user, err := s.Account(ctx, name)
	if err != nil || claimed == "" {
		return user, err
	}
	if asked, err := s.Account(ctx, claimed); err != nil || asked != user {
		return "", errors.Join(err, sasl.ErrRefused)
	}
	return user, nil
}

// Account is the mailbox that a name stands for, as the address by which it is known here.
func (s *Session) Account(ctx context.Context, name string) (string, error) {
	first := ""
	if len(s.o.Domains) > 0 {
		first = s.o.Domains[0]
	}
	addr, err := envelope.ParseLocal(name, first)
	if err != nil {
		return "", sasl.ErrRefused
	}
	r, err := s.o.Accounts.Lookup(ctx, addr)
	if err != nil {
		return "", err
	}
	if r.Kind != accounts.IsMailbox {
		return "", sasl.ErrRefused
	}
	return r.Mailbox.Address, nil
}

// scramName is the n= of gs2-cb-flag "," [authzid] "," "n=" name "," ..., RFC 5802 §7.
func scramName(msg string) string {
	f := strings.SplitN(msg, ",", 4)
	if len(f) < 4 {
		return ""
	}
	name, _ := strings.CutPrefix(f[2], "n=")
	return strings.NewReplacer("=2C", ",", "=3D", "=").Replace(name)
}
