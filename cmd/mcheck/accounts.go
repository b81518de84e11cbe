package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/user"
	"strings"

	"pennypost/internal/accounts"
	"pennypost/internal/config"
	"pennypost/internal/daemon"
	"pennypost/internal/envelope"
)

// accounts asks the account files the questions the daemons will ask.
func (k *checker) accounts(ctx context.Context, cfg *config.Config) {
	k.secrets(cfg)
	for _, f := range cfg.Accounts.Aliases {
		k.aliases(cfg, f)
	}
	a, err := daemon.Accounts(cfg)
	if err != nil {
		k.fail("accounts", err.Error(), "correct the configuration")
		return
	}
	for _, d := range cfg.Domains {
		k.postmaster(ctx, a, d)
	}
	// An error of the files themselves is what the look-up below is for.
	faults, _ := a.AliasFaults(ctx)
	for _, f := range faults {
		k.fail("alias "+f.Alias, f.What, "correct it")
	}
	// A name nobody has makes every source answer, broken lines included.
	nobody := envelope.Address{Local: "mcheck-looks-for-nobody", Domain: envelope.FoldDomain(cfg.Domains[0])}
	switch r, err := a.Lookup(ctx, nobody); {
	case errors.Is(err, fs.ErrPermission):
		k.unseen("accounts", err)
	case err != nil:
		k.fail("accounts", lookupCause(err), "correct it: until then mail for unknown names is deferred")
	case r.Kind == accounts.NoSuchUser:
		k.ok("accounts", "unknown names of "+cfg.Domains[0]+" are refused")
	default:
		k.ok("accounts", "unknown names of "+cfg.Domains[0]+" are taken by a catch-all")
	}
}

// postmaster: RFC 5321 §4.5.1 wants mail for postmaster delivered in every domain.
func (k *checker) postmaster(ctx context.Context, a *accounts.Accounts, domain string) {
	thing := "postmaster@" + domain
	r, err := a.Lookup(ctx, envelope.Address{Local: "postmaster", Domain: envelope.FoldDomain(domain)})
	switch {
	case errors.Is(err, fs.ErrPermission):
		k.unseen(thing, err)
	case err != nil:
		k.fail(thing, lookupCause(err), "correct it: until then its mail is deferred")
	case r.Kind == accounts.IsMailbox || r.Kind == accounts.IsAlias:
		k.ok(thing, "is delivered")
	default:
		k.warn(thing, "nobody reads its mail", "add an alias postmaster, or set postmaster")
	}
}

// lookupCause is the inner error: the outer one is worded for remote hosts.
func lookupCause(err error) string {
	var e *accounts.Error
	if errors.As(err, &e) && e.Err != nil {
		return e.Err.Error()
	}
	return err.Error()
}

func (k *checker) secrets(cfg *config.Config) {
	path := cfg.Accounts.Secrets
	if path == "" {
		return
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		k.warn("secrets "+path, "does not exist: nobody can log in", "mpasswd add makes it")
		return
	}
	if !k.secret("secrets", path) {
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		k.unseen("secrets "+path, err)
		return
	}
	plain := 0
	for l := range strings.Lines(string(data)) {
		if _, secret, ok := strings.Cut(l, ":"); ok && strings.HasPrefix(strings.ToUpper(secret), "{PLAIN}") {
			plain++
		}
	}
	if plain > 0 {
		k.warn("secrets "+path, "holds passwords that are not hashed", "set them anew with mpasswd")
		return
	}
	k.ok("secrets", path)
}

// aliases looks at one aliases file: who can change it, and whether its programs can run.
func (k *checker) aliases(cfg *config.Config, path string) {
	thing := "aliases " + path
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		k.unseen(thing, err)
		return
	case err != nil:
		k.fail(thing, cause(err), "make it, or take it out of accounts.aliases")
		return
	}
	if err := accounts.CheckSafe(path); err != nil {
		k.fail(thing, err.Error(), "until then its mail is deferred")
		return
	}
	if !hasProgram(string(data)) {
		k.ok("aliases", path)
		return
	}
	switch _, err := user.Lookup(cfg.Deliver.PipeUser); {
	case err != nil:
		k.warn(thing, "runs programs, but there is no user "+cfg.Deliver.PipeUser+": their mail is deferred with 4.3.5",
			"useradd --system "+cfg.Deliver.PipeUser+", or set deliver.pipe_user")
	default:
		k.ok("aliases", path+", programs run as "+cfg.Deliver.PipeUser)
	}
}

// hasProgram tells whether an aliases file has a program target.
func hasProgram(text string) bool {
	for l := range strings.Lines(text) {
		l = strings.TrimSpace(l)
		if !strings.HasPrefix(l, "#") && strings.Contains(l, "|") {
			return true
		}
	}
	return false
}
