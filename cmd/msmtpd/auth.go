package main

import (
	"log/slog"

	"pennypost/internal/auth"
	"pennypost/internal/smtpd"
	"pennypost/internal/token"
)

// auth is how users prove who they are in every role; passwords come later.
func (s *servers) auth() smtpd.Auth {
	c, first := s.cfg.SMTPD.Auth, s.cfg.Domains[0]
	a := smtpd.Auth{Mechanisms: c.Mechanisms}
	if s.cert != nil && s.cfg.TLS.ClientCA != "" {
		a.VerifyClient = s.cert.VerifyClient
	}
	if c.Senders != "" {
		a.Senders = smtpd.NewSenders(c.Senders, first)
	}
	if c.Certificates != "" {
		a.Certificates = smtpd.NewCertificates(c.Certificates, first)
	}
	if len(c.TokenCommand) > 0 || c.TokenSocket != "" {
		t := token.New(token.Options{
			Command: c.TokenCommand, Socket: c.TokenSocket, Timeout: c.TokenTimeout.Std(), Max: c.TokenMax,
		})
		a.Token = t.Check
	}
	return a
}

// passwords is who checks them, one for all roles: "mpasswd serve", or the same code here.
func (s *servers) passwords(log *slog.Logger) auth.Checker {
	switch {
	case s.checker != nil:
	case s.cfg.Accounts.AuthSocket != "":
		s.checker = auth.NewClient(s.cfg.Accounts.AuthSocket)
	default:
		s.checker = auth.New(auth.Options{
			Accounts: s.acc, Program: s.cfg.Accounts.CheckPassword, State: s.cfg.Accounts.Guesses, Log: log,
		})
	}
	return s.checker
}
