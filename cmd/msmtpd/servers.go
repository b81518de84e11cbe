package main

import (
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/certs"
	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/daemon"
	"pennypost/internal/daemon/login"
	"pennypost/internal/envelope"
	"pennypost/internal/smtp"
	"pennypost/internal/smtpd"
	"pennypost/internal/submit"
)

// servers makes the server of a role when its first connection comes: a process for one MX
// connection needs neither the secrets nor TLS tickets.
type servers struct {
	cfg  *config.Config
	play *play // nil: at work
	base smtpd.Options
	cert *certs.Store // nil: no TLS

	mu      sync.Mutex
	made    map[string]*smtp.Server
	acc     *accounts.Accounts
	checker auth.Checker // of passwords, one for all roles
}

// newServers takes what the configuration names; with a play, nothing that is written or secret.
// A process for a single connection reads certificates when it has come to that.
func newServers(cfg *config.Config, log *slog.Logger, p *play, single bool) (*servers, error) {
	s := &servers{cfg: cfg, play: p, made: make(map[string]*smtp.Server)}
	relayFrom, err := daemon.Prefixes("smtpd.relay_from", cfg.SMTPD.RelayFrom)
	if err != nil {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	sp, err := p.spool(cfg)
	if err != nil {
		return nil, err
	}
	acc, err := daemon.Accounts(cfg)
	if err != nil {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	s.acc = acc
	if s.cert, err = openCerts(cfg, log, p, single); err != nil {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	pol, err := newPolicy(cfg, relayFrom, p != nil, log)
	if err != nil {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	extend, err := extensions(cfg, sp)
	if err != nil {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	list, err := filters(cfg)
	if err != nil {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	s.base = smtpd.Options{
		Hostname: cfg.Hostname, Domains: cfg.Domains, Accounts: acc, Auth: s.auth(),
		Submit: submit.New(submit.Options{
			Spool: sp, Hostname: cfg.Hostname, MaxSize: cfg.Limits.MessageSize, MaxHops: cfg.Limits.Hops, Now: cfg.Now(), Log: log,
		}),
		RelayFrom: relayFrom, RelayDomains: cfg.SMTPD.RelayDomains, Policy: pol, Extend: extend,
		TrustedUIDs: trusted(cfg.Spool), Login: userOf(acc), Filters: list,
		MaxSize: cfg.Limits.MessageSize, MaxRecipients: cfg.Limits.Recipients,
		MaxErrors: cfg.SMTPD.Errors, Timeout: cfg.SMTPD.Timeout.Std(), Log: log,
	}
	p.stage(&s.base, cfg)
	return s, nil
}

// role returns the server of one role.
func (s *servers) role(role string) (*smtp.Server, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if srv := s.made[role]; srv != nil {
		return srv, nil
	}
	o := s.base
	o.Role = role
	if o.Auth.Passwords == nil && (role == smtpd.Submission || role == smtpd.Submissions) {
		if s.checker == nil {
			s.checker = login.Passwords(s.cfg, s.acc, o.Log)
		}
		o.Auth.Passwords = s.checker
	}
	if s.cert != nil || s.play.pretends(role) {
		o.TLS = s.tls(role)
	}
	srv, err := smtpd.New(o)
	if err == nil {
		s.made[role] = srv
	}
	return srv, err
}

// tls turns session tickets off on the MX port: a large sender cannot resume its sessions.
// Users alone are asked for certificates.
func (s *servers) tls(role string) *tls.Config {
	if s.play != nil {
		return &tls.Config{}
	}
	return s.cert.Config(role != smtpd.MX, role != smtpd.MX)
}

// openCerts is nil where no certificate is configured. With a play no key is read.
func openCerts(cfg *config.Config, log *slog.Logger, p *play, late bool) (*certs.Store, error) {
	if p != nil && cfg.TLS.HasCerts() {
		return &certs.Store{}, nil
	}
	return login.Certs(cfg, cfg.Accounts.Certificates != "", late, log)
}

// trusted are the users who may use any sender: who owns the spool, and who we are.
func trusted(spoolDir string) []int {
	uids := []int{os.Geteuid()}
	if fi, err := os.Stat(spoolDir); err == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			uids = append(uids, int(st.Uid))
		}
	}
	return uids
}

// userOf names the user of a uid, from all lists of the system; one who is in none has no name.
func userOf(acc *accounts.Accounts) func(context.Context, int) (string, error) {
	return func(ctx context.Context, uid int) (string, error) {
		u, err := acc.SystemUserByID(ctx, uid)
		if err != nil || u == nil {
			return "", err
		}
		return u.Name, nil
	}
}
