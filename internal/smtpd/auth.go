package smtpd

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"strings"

	"pennypost/internal/auth"
	"pennypost/internal/login"
	"pennypost/internal/sasl"
	"pennypost/internal/smtp"
)

// Auth says how users prove who they are and as whom they may send. The zero value knows no
// way. What a field is missing for is not offered.
type Auth struct {
	Passwords    auth.Checker                     // PLAIN, LOGIN, SCRAM
	Token        sasl.TokenFunc                   // OAUTHBEARER, XOAUTH2
	VerifyClient func(*tls.ConnectionState) error // EXTERNAL: tells whether an authority vouches for the certificate shown
	Certificates *login.Table                     // EXTERNAL: whose a certificate is
	Senders      *login.Table                     // addresses that users may use besides their own
	Mechanisms   []string                         // offered; nil: all
}

// proof is what a session keeps for its exchanges.
type proof struct {
	ways     *login.Session
	secured  *tls.ConnectionState // what ways was made for
	exchange *login.Exchange      // the last one
}

// logins are the ways of the connection as it is now.
func (s *session) logins() *login.Session {
	if s.ways == nil || s.secured != s.st.TLS {
		a := &s.o.Auth
		o := &login.Options{
			Passwords: a.Passwords, Token: a.Token, VerifyClient: a.VerifyClient, Certificates: a.Certificates,
			Accounts: s.o.Accounts, Domains: s.o.Domains, Mechanisms: a.Mechanisms,
			Delay: s.o.AuthDelay, Role: s.o.Role, Log: s.o.Log,
		}
		s.ways, s.secured = o.Session(login.Client{Peer: s.peer(), From: s.st.Peer.Addr.Addr(), TLS: s.st.TLS}), s.st.TLS
	}
	return s.ways
}

// Mechanisms implements smtp.Authenticator: on the local socket the kernel's word counts; users
// elsewhere prove themselves under TLS and nowhere else.
func (s *session) Mechanisms() []string {
	switch {
	case s.o.Role == Local && (s.o.Auth.Mechanisms == nil || slices.Contains(s.o.Auth.Mechanisms, sasl.External)):
		return []string{sasl.External}
	case s.submission():
		return s.logins().Mechanisms()
	}
	return nil
}

// Auth implements smtp.Authenticator.
func (s *session) Auth(ctx context.Context, mechanism string) (sasl.Server, error) {
	s.closeExchange()
	switch {
	case s.o.Role == MX:
		return nil, &smtp.Answer{Code: 502, Enhanced: "5.5.1", Text: "no AUTH on this port"}
	case s.o.Role == Local && slices.Contains(s.Mechanisms(), mechanism):
		s.exchange = s.logins().Act(s.localUser)
	case s.o.Role == Local:
		return nil, nil // the engine says that it is not known
	default:
		x, err := s.logins().Begin(ctx, mechanism)
		switch {
		case errors.Is(err, login.ErrUnknown):
			return nil, nil
		case err != nil:
			return nil, s.notProved(mechanism, "", err)
		}
		s.exchange = x
	}
	return &attempt{Exchange: s.exchange, s: s, mechanism: mechanism}, nil
}

// closeExchange gives up an exchange that was not carried on.
func (s *session) closeExchange() {
	if s.exchange != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // nobody waits for an answer
		_ = s.exchange.Quit(ctx)
		s.exchange = nil
	}
}

// attempt is one exchange whose end is explained.
type attempt struct {
	*login.Exchange
	s         *session
	mechanism string
}

func (a *attempt) Next(ctx context.Context, response []byte) ([]byte, bool, error) {
	challenge, done, err := a.Exchange.Next(ctx, response)
	switch {
	case err != nil:
		err = a.s.notProved(a.mechanism, a.Claimed(), err)
	case done:
		a.s.explain("auth", "%s proved to be %s", a.mechanism, a.User())
	}
	return challenge, done, err
}

// Quit implements sasl.Quitter.
func (a *attempt) Quit(ctx context.Context) error {
	err := a.Exchange.Quit(ctx)
	if err != nil {
		err = a.s.notProved(a.mechanism, a.Claimed(), err)
	}
	return err
}

// notProved is the answer to an exchange that failed; login has logged it.
func (s *session) notProved(mechanism, claimed string, err error) error {
	s.explain("auth", "%s for %q: %v", mechanism, claimed, err)
	if login.ClassOf(err) == login.Slow {
		return &smtp.Answer{Code: 454, Enhanced: "4.7.0", Text: "too many failed logins, try again later"}
	}
	return err
}

// localUser is a sasl.ActFunc for the local socket: a process is the user it runs as.
func (s *session) localUser(ctx context.Context, authz string) (string, error) {
	name, err := s.login(ctx, *s.st.Peer.UID)
	if err != nil {
		return "", err
	}
	local, domain, full := strings.Cut(authz, "@")
	if authz != "" && (local != name || full && !s.ownDomain(domain)) {
		return "", sasl.ErrRefused
	}
	return name, nil
}
