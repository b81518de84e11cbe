package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/accounts"
	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/daemon"
	"pennypost/internal/daemon/store"
	"pennypost/internal/envelope"
	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
)

// job is one command on one account.
type job struct {
	c    *urfave.Context
	cfg  *config.Config
	name string // the address, or the Maildir
	user *accounts.Mailbox
	o    mailbox.Options
	dry  bool
	json bool
	// groups of a system user, besides his own.
	groups []int
	// before holds what was asked before root's rights were given up.
	before modseqs
}

// open opens the account's mail.
func (j *job) open() (*mailbox.Store, error) {
	s, err := mailbox.Open(j.user.Maildir, j.o)
	if errors.Is(err, maildir.ErrNotMaildir) {
		return nil, cli.Exit(envelope.ExNoInput, fmt.Errorf("%w (mstore create makes one)", err))
	}
	return s, err
}

// each runs a command on every account named.
func each(f func(*job) error) urfave.ActionFunc {
	return func(c *urfave.Context) error {
		if dir := cli.String(c, "maildir"); dir != "" {
			if c.NArg() > 0 || cli.Bool(c, "all") {
				return cli.Usage("--maildir takes no address and no --all")
			}
			j, err := byDir(c, dir)
			if err != nil {
				return err
			}
			return run(j, f)
		}
		for _, flag := range []string{"layout", "escape", "control", "index"} {
			if cli.String(c, flag) != "" {
				return cli.Usage("--%s needs --maildir; the configuration says it for accounts", flag)
			}
		}
		addresses := c.Args().Slice()
		switch all := cli.Bool(c, "all"); {
		case all && c.NArg() > 0:
			return cli.Usage("--all takes no address")
		case !all && c.NArg() == 0:
			return cli.Usage("no address given (mstore %s alice@example.org, or --maildir DIR)", c.Command.Name)
		case c.NArg() > 1 && os.Geteuid() == 0:
			return apart(c, addresses) // each as the owner of its mail
		}
		cfg, err := cli.Load(c)
		if err != nil {
			return err
		}
		acc, err := daemon.Accounts(cfg)
		if err != nil {
			return cli.Exit(envelope.ExConfig, err)
		}
		var errs []error
		if cli.Bool(c, "all") {
			if addresses, errs, err = everyone(acc); err != nil {
				return cli.Exit(envelope.ExConfig, err)
			}
			if os.Geteuid() == 0 {
				return worst(c, append(errs, apart(c, addresses)))
			}
		}
		for _, address := range addresses {
			j, err := byAddress(c, cfg, acc, address)
			if err == nil {
				err = run(j, f)
			}
			errs = append(errs, err)
		}
		return worst(c, errs)
	}
}

// everyone lists the accounts with a mailbox, and those that cannot be used.
func everyone(acc *accounts.Accounts) (addresses []string, errs []error, err error) {
	err = acc.Mailboxes(func(address string, err error) error {
		if err != nil {
			errs = append(errs, cli.Exit(envelope.ExConfig, fmt.Errorf("%s: %w", address, err)))
		} else {
			addresses = append(addresses, address)
		}
		return nil
	})
	return addresses, errs, err
}

// worst prints all errors but the one that decides the exit status, which is printed by the
// frame: what may be tried again decides over what may not.
func worst(c *urfave.Context, errs []error) (out error) {
	for _, err := range errs {
		switch {
		case err == nil:
			continue
		case out == nil:
			out = err
			continue
		case cli.Status(err) == envelope.ExTempFail:
			out, err = err, out
		}
		if text := err.Error(); text != "" {
			fmt.Fprintf(c.App.ErrWriter, "mstore: %s\n", cli.Escape(text, 0))
		}
	}
	return out
}

// log tells on standard error what a person should know.
func log(c *urfave.Context) *slog.Logger {
	return slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// byDir is a job on a Maildir that no configuration knows.
func byDir(c *urfave.Context, dir string) (*job, error) {
	o := mailbox.Options{UTF8: cli.Bool(c, "utf8"), Control: cli.String(c, "control"), Index: cli.String(c, "index"), Courier: true, Log: log(c)}
	switch layout := cli.String(c, "layout"); layout {
	case "", "maildir++":
	case "fs":
		o.FSLayout = true
	default:
		return nil, cli.Usage("--layout %q is neither maildir++ nor fs", layout)
	}
	if e := cli.String(c, "escape"); len(e) > 1 {
		return nil, cli.Usage("--escape %q is more than one character", e)
	} else if e != "" {
		o.Escape = e[0]
	}
	o.Host, _ = os.Hostname() // names of messages are unique without it
	name := dir
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	m := &accounts.Mailbox{Maildir: dir, UID: -1, GID: -1}
	return &job{c: c, cfg: config.Default(config.User, ""), name: name, user: m, o: o, dry: cli.Bool(c, "dry-run"), json: cli.Bool(c, "json")}, nil
}

// owner is whose files dir holds, or will hold: the owner of what is there of it.
func owner(dir string) (uid, gid int, err error) {
	for {
		info, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) && dir != "/" {
			dir = filepath.Dir(dir)
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return 0, 0, fmt.Errorf("%s: its owner is not known", dir)
		}
		return int(st.Uid), int(st.Gid), nil
	}
}

// byAddress is a job on an account.
func byAddress(c *urfave.Context, cfg *config.Config, acc *accounts.Accounts, address string) (*job, error) {
	addr, err := envelope.ParseLocal(address, cfg.Domains[0])
	if err != nil {
		return nil, cli.Exit(envelope.ExDataErr, err)
	}
	if !acc.IsLocal(addr.Domain) {
		return nil, cli.Exit(envelope.ExNoHost, fmt.Errorf("%s: %s is not one of the domains in the configuration", addr, addr.Domain))
	}
	r, err := acc.LookupUser(c.Context, addr)
	if err != nil {
		return nil, err
	}
	if r.Kind != accounts.IsMailbox {
		return nil, cli.Exit(envelope.ExNoUser, fmt.Errorf("%s: no such mailbox", addr))
	}
	o, err := store.Options(cfg, r.Mailbox, log(c))
	if err != nil {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	o.Create = false
	var groups []int
	if r.Mailbox.System && os.Geteuid() == 0 {
		if groups, err = acc.Groups(c.Context, r.Mailbox.User, r.Mailbox.GID); err != nil {
			return nil, err
		}
	}
	return &job{groups: groups, c: c, cfg: cfg, name: r.Mailbox.Address, user: r.Mailbox, o: o, dry: cli.Bool(c, "dry-run"), json: cli.Bool(c, "json")}, nil
}

// run does the work as the owner of the mail: what root wrote, he could not change any more.
func run(j *job, f func(*job) error) error {
	if j.c.Command.Name == "convert" {
		j.before = askDoveadm(j)
	}
	if err := j.become(); err != nil {
		return cli.Exit(envelope.ExOSErr, err)
	}
	err := f(j)
	if err != nil && cli.Status(err) == envelope.ExTempFail && errors.Is(err, mailbox.ErrNotFound) {
		err = cli.Exit(envelope.ExNoInput, err)
	}
	if err == nil || err.Error() == "" || strings.HasPrefix(err.Error(), j.name) {
		return err
	}
	return fmt.Errorf("%s: %w", j.name, err)
}

// become gives root's rights up.
func (j *job) become() (err error) {
	if os.Geteuid() != 0 {
		return nil
	}
	uid, gid := j.user.UID, j.user.GID
	if uid < 0 {
		if uid, gid, err = owner(j.user.Maildir); err != nil {
			return err
		}
	}
	switch {
	case uid == 0:
		return nil
	case gid < 0:
		return fmt.Errorf("the account names user %d and no group", uid)
	}
	if err := errors.Join(syscall.Setgroups(j.groups), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
		return fmt.Errorf("become user %d: %w", uid, err)
	}
	return nil
}

// apart runs one process for each address. Rights that were given up do not come back.
func apart(c *urfave.Context, addresses []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	given := os.Args[1 : len(os.Args)-c.NArg()]
	if n := len(given); n > 0 && given[n-1] == "--" {
		given = given[:n-1]
	}
	if cli.Bool(c, "all") {
		given = append(slices.Clone(given), "--all=false") // the last one counts
	}
	status := envelope.ExOK
	for _, address := range addresses {
		cmd := exec.CommandContext(c.Context, self, append(slices.Clone(given), "--", address)...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, c.App.Writer, c.App.ErrWriter
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case err == nil:
		case !errors.As(err, &exit):
			return err
		case status == envelope.ExOK || exit.ExitCode() == envelope.ExTempFail:
			status = exit.ExitCode()
		}
	}
	return cli.Exit(status, nil)
}
