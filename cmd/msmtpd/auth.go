package main

import (
	access "pennypost/internal/daemon/login"
	"pennypost/internal/login"
	"pennypost/internal/smtpd"
)

// auth is how users prove who they are in every role; passwords come later.
func (s *servers) auth() smtpd.Auth {
	c, first := s.cfg.Accounts, s.cfg.Domains[0]
	a := smtpd.Auth{Mechanisms: c.Mechanisms}
	if s.cert != nil && s.cfg.TLS.ClientCA != "" {
		a.VerifyClient = s.cert.VerifyClient
	}
	if f := s.cfg.SMTPD.Senders; f != "" {
		a.Senders = smtpd.NewSenders(f, first)
	}
	if c.Certificates != "" {
		a.Certificates = login.NewCertificates(c.Certificates, first)
	}
	if check := access.Tokens(c); check != nil {
		a.Token = check
	}
	return a
}
