package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"pennypost/internal/auth"
	"pennypost/internal/config"
	"pennypost/internal/login"
	"pennypost/internal/sasl"
	"pennypost/internal/smtpd"
)

// passwords asks "mpasswd serve" what daemons ask it first, which guesses at nothing.
func (k *checker) passwords(ctx context.Context, cfg *config.Config) {
	path := cfg.Accounts.AuthSocket
	if path == "" {
		return
	}
	thing := "accounts.auth_socket " + path
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c := auth.NewClient(path)
	defer c.Close()
	mechanisms, err := c.Mechanisms(ctx)
	const start, until = "start \"mpasswd serve\" on it", ": until then nobody can log in"
	switch {
	case err == nil && len(mechanisms) == 0:
		k.ok(thing, "answers")
	case err == nil:
		k.ok(thing, "answers, and knows keys for "+strings.Join(mechanisms, " "))
	case errors.Is(err, fs.ErrPermission):
		k.unseen(thing, fs.ErrPermission)
	case errors.Is(err, fs.ErrNotExist):
		k.fail(thing, "does not exist", start+until)
	case errors.Is(err, syscall.ECONNREFUSED):
		k.fail(thing, "nobody serves it", start+until)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		k.warn(thing, "does not let this user ask", "name the user of each daemon in accounts.auth_users, and run mcheck as that user")
	case errors.Is(err, os.ErrDeadlineExceeded):
		k.fail(thing, "does not answer within "+patience.String(), "see the log of mpasswd, and start it anew"+until)
	default:
		k.fail(thing, strings.TrimPrefix(err.Error(), sasl.ErrTemporary.Error()+": "), "correct it"+until)
	}
}

// logins looks at the files and programs by which users prove who they are.
func (k *checker) logins(cfg *config.Config) {
	a := cfg.Accounts
	for _, t := range []struct {
		key, path string
		table     *login.Table
	}{
		{"smtpd.senders", cfg.SMTPD.Senders, smtpd.NewSenders(cfg.SMTPD.Senders, cfg.Domains[0])},
		{"accounts.certificates", a.Certificates, login.NewCertificates(a.Certificates, cfg.Domains[0])},
	} {
		if t.path == "" {
			continue
		}
		if err := t.table.Check(); err != nil {
			k.fail(t.key+" "+t.path, cause(err), "correct it: until then, what needs it is deferred")
			continue
		}
		k.ok(t.key, t.path)
	}
	if len(a.TokenCommand) > 0 {
		prog := a.TokenCommand[0]
		if fi, err := os.Stat(prog); err != nil {
			k.fail("accounts.token_command "+prog, cause(err), "install it, or remove the key")
		} else if fi.Mode()&0o111 == 0 || fi.IsDir() {
			k.fail("accounts.token_command "+prog, "is no program", "chmod +x it")
		}
	}
	if s := a.TokenSocket; s != "" {
		if _, err := os.Stat(s); err != nil {
			k.warn("accounts.token_socket "+s, cause(err), "start its server: until then, tokens are refused for now")
		}
	}
}
