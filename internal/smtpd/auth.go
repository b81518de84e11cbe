package smtpd

import (
	"context"
	"fmt"
	"time"

	"pennypost/internal/sasl"
	"pennypost/internal/smtp"
)

// Mechanisms implements smtp.Authenticator: passwords are asked for on the submission roles
// only, and there only under TLS.
func (s *session) Mechanisms() []string {
	if !s.submission() || s.st.TLS == nil {
		return nil
	}
	return []string{sasl.Plain}
}

// Auth implements smtp.Authenticator.
func (s *session) Auth(_ context.Context, mechanism string) (sasl.Server, error) {
	switch {
	case !s.submission():
		return nil, &smtp.Answer{Code: 502, Enhanced: "5.5.1", Text: "no AUTH on this port"}
	case s.st.TLS == nil:
		return nil, sasl.ErrNeedTLS
	case mechanism == sasl.Plain:
		return sasl.NewPlainServer(s.password), nil
	}
	return nil, nil // unknown: the engine says so
}

// password checks one guess. The line it logs names the client's true address; it is what a
// fail2ban filter reads.
func (s *session) password(ctx context.Context, login, password string) (string, error) {
	user, ok, err := s.o.Accounts.CheckPassword(ctx, login, password)
	if err != nil {
		s.o.Log.Error("password check failed", "peer", s.peer(), "user", login, "err", err)
		return "", fmt.Errorf("%w: %w", sasl.ErrTemporary, err)
	}
	if ok {
		return user, nil
	}
	s.o.Log.Warn("login refused", "peer", s.peer(), "user", login, "role", s.o.Role)
	if d := s.o.AuthDelay; d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return "", sasl.ErrRefused
}
