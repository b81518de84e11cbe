// Command mpasswd makes, changes, lists and tests accounts, and checks passwords for the daemons.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/accounts"
	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/durable"
	"pennypost/internal/envelope"
	"pennypost/internal/password"
)

func main() { cli.Main(app()) }

func app() *urfave.App {
	scheme := &urfave.StringFlag{Name: "scheme", Value: password.DefaultScheme, Usage: "hash the password by `SCHEME`"}
	scram := &urfave.StringFlag{Name: "scram", Value: "sha-256", Usage: "store keys for SCRAM: sha-256, all or none"}
	flags := func(more ...urfave.Flag) []urfave.Flag { return append(more, cli.Config(), cli.JSON(), cli.DryRun()) }
	return &urfave.App{
		Name: "mpasswd", Usage: "make, change and test accounts", Flags: flags(),
		Commands: []*urfave.Command{
			{Name: "add", Usage: "make an account; the password is read from standard input", ArgsUsage: "address", Action: with(add), Flags: flags(scheme, scram,
				&urfave.StringFlag{Name: "home", Usage: "home `DIR` of the account"},
				&urfave.StringFlag{Name: "extra", Usage: "extra `FIELDS`, such as userdb_quota_rule=*:storage=1G"},
				&urfave.BoolFlag{Name: "no-password", Usage: "make a mailbox nobody can log in to"})},
			{Name: "passwd", Usage: "change the password of an account", ArgsUsage: "address", Action: with(change), Flags: flags(scheme, scram)},
			{Name: "rm", Usage: "remove an account; its mail stays", ArgsUsage: "address", Action: with(remove), Flags: flags()},
			{Name: "test", Usage: "tell by the exit status whether the password on standard input is right", ArgsUsage: "address", Action: with(test), Flags: flags()},
			{Name: "list", Usage: "print the accounts", Action: list, Flags: flags()},
			{Name: "serve", Usage: "check passwords for the daemons", Action: run, Flags: []urfave.Flag{cli.Config(), cli.JSON(),
				cli.Listen("serve the UNIX socket `PATH`, or \"config\" for accounts.auth_socket"), cli.Idle(), cli.NotifyFd()}},
			{Name: "hash", Usage: "print the password on standard input as it would be stored", Action: hash, Flags: flags(scheme)},
		},
	}
}

// task is one command on one address.
type task struct {
	c     *urfave.Context
	cfg   *config.Config
	acc   *accounts.Accounts
	addr  envelope.Address
	first string
	dry   bool
}

// with reads configuration and address for a command.
func with(f func(*task) error) urfave.ActionFunc {
	return func(c *urfave.Context) error {
		if c.NArg() != 1 {
			return cli.Usage("want one address")
		}
		cfg, acc, err := open(c)
		if err != nil {
			return err
		}
		first := cfg.Domains[0]
		addr, err := envelope.ParseLocal(c.Args().First(), first)
		if err != nil {
			return cli.Exit(envelope.ExDataErr, err)
		}
		t := &task{c: c, cfg: cfg, acc: acc, addr: acc.Key(addr), first: first, dry: cli.Bool(c, "dry-run")}
		if !acc.IsLocal(addr.Domain) {
			return cli.Exit(envelope.ExNoHost, fmt.Errorf("%s: %s is not one of the domains in the configuration", t.addr, addr.Domain))
		}
		return status(f(t))
	}
}

func open(c *urfave.Context) (*config.Config, *accounts.Accounts, error) {
	cfg, err := cli.Load(c)
	if err != nil {
		return nil, nil, err
	}
	acc, err := accounts.Open(accounts.Options{
		Domains: cfg.Domains, Maildirs: cfg.Maildirs, Subaddress: cfg.Accounts.SubaddressSep,
		Users: cfg.Accounts.Users, UsersMay: true, Secrets: cfg.Accounts.Secrets,
	})
	if err != nil {
		return nil, nil, cli.Exit(envelope.ExConfig, err)
	}
	return cfg, acc, nil
}

// status gives the errors of account files their exit statuses.
func status(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, accounts.ErrExists):
		return cli.Exit(envelope.ExCantCreat, err)
	case errors.Is(err, accounts.ErrNoUser):
		return cli.Exit(envelope.ExNoUser, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, durable.ErrLocked):
		return cli.Exit(envelope.ExTempFail, err)
	}
	return err
}

// files are the paths that must be known to change something.
func (t *task) files() error {
	if t.cfg.Accounts.Users == "" || t.cfg.Accounts.Secrets == "" {
		return cli.Exit(envelope.ExConfig, errors.New("accounts.users and accounts.secrets must name files"))
	}
	return nil
}

// same tells whether users and secrets are one file.
func (t *task) same() bool {
	return filepath.Clean(t.cfg.Accounts.Users) == filepath.Clean(t.cfg.Accounts.Secrets)
}
