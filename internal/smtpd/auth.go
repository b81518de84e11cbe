package smtpd

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/envelope"
	"pennypost/internal/sasl"
	"pennypost/internal/smtp"
)

// Auth says how users prove who they are and as whom they may send. The zero value knows no
// way. What a field is missing for is not offered.
type Auth struct {
	Passwords    auth.Checker                     // PLAIN, LOGIN, SCRAM
	Token        sasl.TokenFunc                   // OAUTHBEARER, XOAUTH2
	VerifyClient func(*tls.ConnectionState) error // EXTERNAL: tells whether an authority vouches for the certificate shown
	Certificates *Table                           // EXTERNAL: whose a certificate is
	Senders      *Table                           // addresses that users may use besides their own
	Mechanisms   []string                         // offered; nil: all
}

// proof is what a session keeps for its exchanges.
type proof struct {
	exchange auth.Server // of SCRAM, not known to be over
	asked    bool
	scram    []string // mechanisms for which there are records
}

// Mechanisms implements smtp.Authenticator: on the local socket the kernel's word counts; users
// elsewhere prove themselves under TLS and nowhere else.
func (s *session) Mechanisms() []string {
	var can []string
	switch {
	case s.o.Role == Local:
		can = []string{sasl.External}
	case s.submission() && s.st.TLS != nil:
		if s.o.Auth.Passwords != nil {
			can = append(s.scramMechanisms(), sasl.Plain, sasl.Login)
		}
		if s.o.Auth.Token != nil {
			can = append(can, sasl.OAuthBearer, sasl.XOAuth2)
		}
		if s.hasCertificate() {
			can = append(can, sasl.External)
		}
	}
	return slices.DeleteFunc(can, func(m string) bool {
		return s.o.Auth.Mechanisms != nil && !slices.Contains(s.o.Auth.Mechanisms, m)
	})
}

// scramMechanisms asks once a session: the answer may come from another process.
func (s *session) scramMechanisms() []string {
	if !s.asked {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		var err error
		if s.scram, err = s.o.Auth.Passwords.Mechanisms(ctx); err != nil {
			s.o.Log.Error("SCRAM is not offered", "peer", s.peer(), "err", err)
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
func (s *session) channel() auth.Binding {
	if s.st.TLS == nil || s.st.TLS.Version < tls.VersionTLS13 {
		return auth.Binding{}
	}
	data, err := s.st.TLS.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return auth.Binding{}
	}
	return auth.Binding{Type: "tls-exporter", Data: data}
}

// Auth implements smtp.Authenticator.
func (s *session) Auth(ctx context.Context, mechanism string) (sasl.Server, error) {
	s.closeExchange()
	switch {
	case s.o.Role == MX:
		return nil, &smtp.Answer{Code: 502, Enhanced: "5.5.1", Text: "no AUTH on this port"}
	case s.submission() && s.st.TLS == nil:
		return nil, sasl.ErrNeedTLS
	case !slices.Contains(s.Mechanisms(), mechanism):
		return nil, nil // the engine says that it is not known
	}
	ex, err := s.begin(ctx, mechanism)
	if err != nil {
		return nil, s.notProved(ctx, mechanism, "", err)
	}
	return &attempt{Server: ex, s: s, mechanism: mechanism}, nil
}

func (s *session) begin(ctx context.Context, mechanism string) (sasl.Server, error) {
	switch mechanism {
	case sasl.Plain:
		return sasl.NewPlainServer(s.password), nil
	case sasl.Login:
		return sasl.NewLoginServer(s.password), nil
	case sasl.OAuthBearer:
		return sasl.NewOAuthBearerServer(s.token), nil
	case sasl.XOAuth2:
		return sasl.NewXOAuth2Server(s.token), nil
	case sasl.External:
		if s.o.Role == Local {
			return sasl.NewExternalServer(s.localUser), nil
		}
		return sasl.NewExternalServer(s.certificateUser), nil
	}
	x := auth.Exchange{Mechanism: mechanism, From: s.st.Peer.Addr.Addr()}
	// RFC 5802 §6: a client that could bind and was not offered it says so. It means a man in the
	// middle where the -PLUS form of the same mechanism was offered, and nothing elsewhere.
	if slices.Contains(s.Mechanisms(), strings.TrimSuffix(mechanism, "-PLUS")+"-PLUS") {
		x.Binding = s.channel()
	}
	ex, err := s.o.Auth.Passwords.SCRAM(ctx, x)
	if err != nil {
		return nil, err
	}
	s.exchange = ex
	return &scramServer{Server: ex}, nil
}

// closeExchange gives up a SCRAM exchange that was cancelled.
func (s *session) closeExchange() {
	if s.exchange != nil {
		s.exchange.Close()
		s.exchange = nil
	}
}

// attempt is one exchange whose end is logged.
type attempt struct {
	sasl.Server
	s         *session
	mechanism string
}

func (a *attempt) Next(ctx context.Context, response []byte) ([]byte, bool, error) {
	challenge, done, err := a.Server.Next(ctx, response)
	switch {
	case err != nil:
		claimed := ""
		if c, ok := a.Server.(sasl.Claimer); ok {
			claimed = c.Claimed()
		}
		err = a.s.notProved(ctx, a.mechanism, claimed, err)
	case done:
		a.s.explain("auth", "%s proved to be %s", a.mechanism, a.Server.User())
	}
	return challenge, done, err
}

// Quit implements sasl.Quitter.
func (a *attempt) Quit(ctx context.Context) error {
	q, ok := a.Server.(sasl.Quitter)
	if !ok {
		return nil
	}
	err := q.Quit(ctx)
	if err == nil {
		return nil
	}
	claimed := ""
	if c, ok := a.Server.(sasl.Claimer); ok {
		claimed = c.Claimed()
	}
	return a.s.notProved(ctx, a.mechanism, claimed, err)
}

// notProved logs why an exchange failed. The line "login refused" names the client's true
// address; it is what a fail2ban filter reads, so its words and their order stay.
func (s *session) notProved(ctx context.Context, mechanism, claimed string, err error) error {
	s.explain("auth", "%s for %q: %v", mechanism, claimed, err)
	attrs := []slog.Attr{
		slog.String("peer", s.peer()), slog.String("user", shorten(claimed)),
		slog.String("role", s.o.Role), slog.String("mechanism", mechanism),
	}
	switch {
	case errors.Is(err, sasl.ErrRefused):
		s.o.Log.LogAttrs(ctx, slog.LevelWarn, "login refused", attrs...)
		s.pause(ctx)
	case errors.Is(err, auth.ErrSlow):
		s.o.Log.LogAttrs(ctx, slog.LevelWarn, "login put off", attrs...)
		return &smtp.Answer{Code: 454, Enhanced: "4.7.0", Text: "too many failed logins, try again later"}
	case !errors.Is(err, sasl.ErrSyntax):
		s.o.Log.LogAttrs(ctx, slog.LevelError, "password check failed", append(attrs, slog.Any("err", err))...)
	}
	return err
}

// pause makes the next guess wait.
func (s *session) pause(ctx context.Context) {
	if s.o.AuthDelay <= 0 {
		return
	}
	t := time.NewTimer(s.o.AuthDelay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (s *session) password(ctx context.Context, login, password string) (string, error) {
	return s.o.Auth.Passwords.Password(ctx, login, password, s.st.Peer.Addr.Addr())
}

// token is a sasl.TokenFunc: whom the checker names must have a mailbox here, and be the one the
// client says to be.
func (s *session) token(ctx context.Context, claimed, token string) (string, error) {
	name, err := s.o.Auth.Token(ctx, claimed, token)
	if err != nil {
		return "", err
	}
	user, err := s.account(ctx, name)
	if err != nil || claimed == "" {
		return user, err
	}
	if asked, err := s.account(ctx, claimed); err != nil || asked != user {
		return "", errors.Join(err, sasl.ErrRefused)
	}
	return user, nil
}

// account is the mailbox that a name stands for, as the address by which it is known here.
func (s *session) account(ctx context.Context, name string) (string, error) {
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

// scramServer reads the name out of the client's first message, for the log.
type scramServer struct {
	auth.Server
	claimed string
}

// Claimed implements sasl.Claimer.
func (x *scramServer) Claimed() string { return x.claimed }

func (x *scramServer) Next(ctx context.Context, response []byte) ([]byte, bool, error) {
	if x.claimed == "" {
		x.claimed = scramName(string(response))
	}
	return x.Server.Next(ctx, response)
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
