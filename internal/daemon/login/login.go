// Package login makes what daemons with logins share out of the configuration: certificates, the
// one who checks passwords, the one who checks tokens.
package login

import (
	"context"
	"log/slog"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/auth/service"
	"pennypost/internal/certs"
	"pennypost/internal/config"
	"pennypost/internal/token"
)

// Certs opens the certificates of [tls]; nil where none is configured. askClients wants a
// certificate of every client; late leaves the files to the first handshake.
func Certs(cfg *config.Config, askClients, late bool, log *slog.Logger) (*certs.Store, error) {
	if !cfg.TLS.HasCerts() {
		return nil, nil
	}
	var pairs []certs.Pair
	if cfg.TLS.Cert != "" {
		pairs = append(pairs, certs.Pair{Cert: cfg.TLS.Cert, Key: cfg.TLS.Key})
	}
	for _, p := range cfg.TLS.Certificates {
		pairs = append(pairs, certs.Pair{Cert: p.Cert, Key: p.Key})
	}
	return certs.Open(certs.Options{Pairs: pairs, ClientCA: cfg.TLS.ClientCA, AskClients: askClients, Late: late, Log: log})
}

// Passwords is who checks them: "mpasswd serve" where it has a socket, else the same code here.
func Passwords(cfg *config.Config, acc *accounts.Accounts, log *slog.Logger) auth.Checker {
	if cfg.Accounts.AuthSocket != "" {
		return auth.NewClient(cfg.Accounts.AuthSocket)
	}
	return Service(cfg, acc, cfg.Accounts.Guesses, log)
}

// Service checks passwords in this process. state is the file of the counts of wrong ones, or "".
func Service(cfg *config.Config, acc *accounts.Accounts, state string, log *slog.Logger) *service.Service {
	return service.New(service.Options{Accounts: acc, Program: cfg.Accounts.CheckPassword, State: state, Log: log})
}

// Tokens is who checks OAuth tokens; nil where nobody does.
func Tokens(c config.Accounts) func(ctx context.Context, user, token string) (address string, err error) {
	if len(c.TokenCommand) == 0 && c.TokenSocket == "" {
		return nil
	}
	return token.New(token.Options{
		Command: c.TokenCommand, Socket: c.TokenSocket, Timeout: c.TokenTimeout.Std(), Max: c.TokenMax,
	}).Check
}
