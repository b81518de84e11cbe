package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"pennypost/internal/accounts"
	"pennypost/internal/certs"
	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/daemon"
	access "pennypost/internal/daemon/login"
	"pennypost/internal/envelope"
	"pennypost/internal/handover"
	"pennypost/internal/login"
	"pennypost/internal/pop3"
)

// servers makes the server of a role when its first connection comes.
type servers struct {
	cfg   *config.Config
	log   *slog.Logger
	acc   *accounts.Accounts
	cert  *certs.Store     // nil: no TLS
	out   *handover.Client // nil: no sessions of system users
	uidl  pop3.Format
	clear []netip.Prefix
	base  login.Options

	mu   sync.Mutex
	made map[string]*pop3.Server
}

// newServers takes what the configuration names. A process for a single connection reads
// certificates when it has come to that.
func newServers(cfg *config.Config, log *slog.Logger, single bool) (*servers, error) {
	s := &servers{cfg: cfg, log: log, made: make(map[string]*pop3.Server)}
	var err error
	if s.uidl, err = format(cfg); err != nil {
		return nil, err
	}
	if s.clear, err = daemon.Prefixes("pop3.clear_from", cfg.POP3.ClearFrom); err != nil {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	if s.acc, err = daemon.Accounts(cfg); err != nil {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	a := cfg.Accounts
	if s.cert, err = access.Certs(cfg, a.Certificates != "", single, log); err != nil {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	s.base = login.Options{
		Token: access.Tokens(a), Accounts: s.acc, Domains: cfg.Domains,
		Mechanisms: a.Mechanisms, Delay: loginDelay, Log: log,
	}
	if s.cert != nil && cfg.TLS.ClientCA != "" {
		s.base.VerifyClient = s.cert.VerifyClient
	}
	if a.Certificates != "" {
		s.base.Certificates = login.NewCertificates(a.Certificates, cfg.Domains[0])
	}
	if cfg.Session.Socket != "" {
		s.out = handover.NewClient(cfg.Session.Socket)
		s.base.Tickets = true
	}
	return s, nil
}

func format(cfg *config.Config) (pop3.Format, error) {
	f, err := pop3.ParseFormat(cfg.POP3.UIDL)
	if err != nil {
		return f, cli.Exit(envelope.ExConfig, fmt.Errorf("pop3.uidl: %w", err))
	}
	return f, nil
}

// role returns the server of one role.
func (s *servers) role(role string) (*pop3.Server, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if srv := s.made[role]; srv != nil {
		return srv, nil
	}
	if role == pop3.TLS && s.cert == nil {
		return nil, errors.New("role pop3s needs TLS (set tls.cert and tls.key)")
	}
	if s.base.Passwords == nil {
		s.base.Passwords = access.Passwords(s.cfg, s.acc, s.log) // one for both roles
	}
	o := s.base
	o.Role = role
	srv := server(s.cfg, s.log, s.uidl)
	srv.Role, srv.Login, srv.ClearFrom = role, &o, s.clear
	srv.Open = func(ctx context.Context, user string) (pop3.Maildrop, error) {
		m, err := s.mailbox(ctx, user)
		if err != nil {
			return nil, err
		}
		return open(ctx, s.cfg, s.log, m)
	}
	if s.out != nil {
		srv.HandOver = s.handOver
	}
	if s.cert != nil {
		srv.TLS = s.cert.Config(true, true)
	}
	s.made[role] = srv
	return srv, nil
}

// handOver gives away who is a user of the system; everybody else has the mail user, who we are.
func (s *servers) handOver(ctx context.Context, conn net.Conn, user string, r handover.Request) (bool, error) {
	m, err := s.mailbox(ctx, user)
	if err != nil || !m.System {
		return false, err
	}
	err = s.out.Do(ctx, conn, r)
	return err == nil, err
}

// mailbox is the account of somebody who has logged in.
func (s *servers) mailbox(ctx context.Context, user string) (*accounts.Mailbox, error) {
	addr, err := envelope.ParseAddress(user)
	if err != nil {
		return nil, err
	}
	r, err := s.acc.LookupUser(ctx, addr)
	if err != nil {
		return nil, err
	}
	if r.Kind != accounts.IsMailbox {
		return nil, fmt.Errorf("%s is no mailbox any more", user)
	}
	return r.Mailbox, nil
}
