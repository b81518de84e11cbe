package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/auth/service"
	"pennypost/internal/cli"
	"pennypost/internal/daemon"
	"pennypost/internal/daemon/login"
	"pennypost/internal/envelope"
	"pennypost/internal/password"
	"pennypost/internal/sasl"
)

// report prints what was done, or would be, where somebody asked to see it.
func (t *task) report(action string) error {
	if cli.Bool(t.c, "json") {
		return cli.PrintJSON(t.c.App.Writer, struct {
			Action string `json:"action"`
			User   string `json:"user"`
			DryRun bool   `json:"dry_run,omitempty"`
		}{action, t.addr.String(), t.dry})
	}
	if !t.dry {
		return nil
	}
	_, err := fmt.Fprintf(t.c.App.Writer, "would %s %s\n", action, t.addr)
	return err
}

// add makes a users line and a secrets line; what is there already and can stay does.
func add(t *task) error {
	if err := t.files(); err != nil {
		return err
	}
	var stored []string
	if !t.c.Bool("no-password") {
		pw, err := readPassword(true)
		if err != nil {
			return err
		}
		if stored, err = records(t.c, pw); err != nil {
			return cli.Usage("%v", err)
		}
		// Before anything is written: an account with a password is not to be taken over.
		if err := accounts.SetSecret(t.cfg.Accounts.Secrets, t.first, t.addr, stored, true, true); err != nil {
			return err
		}
	}
	err := t.addUser()
	if errors.Is(err, accounts.ErrExists) && stored != nil {
		err = nil // a mailbox gets its first password
	}
	if err == nil && stored != nil {
		err = accounts.SetSecret(t.cfg.Accounts.Secrets, t.first, t.addr, stored, true, t.dry)
	}
	if err != nil {
		return err
	}
	return t.report("add")
}

// addUser makes the mailbox. A user of the system has one; a line in users would take the mail away
// from there, and is made where the command line asks for what only such a line can say.
func (t *task) addUser() error {
	home, extra := t.c.String("home"), t.c.String("extra")
	if t.cfg.Accounts.System && home == "" && extra == "" && t.addr.Domain == envelope.FoldDomain(t.first) {
		acc, err := daemon.Accounts(t.cfg)
		if err != nil {
			return cli.Exit(envelope.ExConfig, err)
		}
		switch u, err := acc.SystemUser(t.c.Context, t.addr.Local); {
		case err != nil:
			return err
		case u != nil:
			return fmt.Errorf("%s: %w: it is a user of the system", t.addr, accounts.ErrExists)
		}
	}
	return accounts.AddUser(t.cfg.Accounts.Users, t.first, t.addr, home, extra, t.dry)
}

func change(t *task) error {
	if err := t.files(); err != nil {
		return err
	}
	pw, err := readPassword(true)
	if err != nil {
		return err
	}
	stored, err := records(t.c, pw)
	if err != nil {
		return cli.Usage("%v", err)
	}
	if err := accounts.SetSecret(t.cfg.Accounts.Secrets, t.first, t.addr, stored, false, t.dry); err != nil {
		return err
	}
	return t.report("change")
}

// record is what is stored of a password under one scheme.
func record(scheme, pw string) (string, error) {
	if name := strings.ToUpper(scheme); name == auth.SCRAMSHA256 || name == auth.SCRAMSHA1 {
		return service.NewRecord(name, pw)
	}
	return password.New(scheme, pw)
}

// records are all that is stored of a password: its hash and the keys for SCRAM.
func records(c *urfave.Context, pw string) ([]string, error) {
	first, err := record(c.String("scheme"), pw)
	if err != nil {
		return nil, err
	}
	rs := []string{first}
	var more []string
	switch s := c.String("scram"); s {
	case "none":
	case "sha-256":
		more = []string{auth.SCRAMSHA256}
	case "all":
		more = []string{auth.SCRAMSHA256, auth.SCRAMSHA1}
	default:
		return nil, fmt.Errorf("--scram %s is not one of sha-256 all none", s)
	}
	if _, plain := password.Plain(first); plain {
		return rs, nil // every mechanism can use it as it is
	}
	for _, m := range more {
		if strings.HasPrefix(first, "{"+m+"}") {
			continue
		}
		r, err := service.NewRecord(m, pw)
		if err != nil && !c.IsSet("scram") {
			return rs, nil //nolint:nilerr // a password that SCRAM cannot carry is one for the hash alone
		}
		if err != nil {
			return nil, err
		}
		rs = append(rs, r)
	}
	return rs, nil
}

// remove takes the password away first: who cannot be reached must not be able to log in.
func remove(t *task) error {
	if err := t.files(); err != nil {
		return err
	}
	had, err := accounts.Remove(t.cfg.Accounts.Secrets, t.first, t.addr, t.dry)
	if err != nil {
		return err
	}
	if !t.same() {
		was, err := accounts.Remove(t.cfg.Accounts.Users, t.first, t.addr, t.dry)
		if err != nil {
			return err
		}
		had = had || was
	}
	if !had {
		return fmt.Errorf("%s: %w", t.addr, accounts.ErrNoUser)
	}
	return t.report("remove")
}

func test(t *task) error {
	pw, err := readPassword(false)
	if err != nil {
		return err
	}
	// Counted nowhere: whoever can read the file needs no guesses.
	_, err = login.Service(t.cfg, t.acc, "", nil).Password(t.c.Context, t.addr.String(), pw, netip.Addr{})
	ok := err == nil
	if !ok && !errors.Is(err, sasl.ErrRefused) {
		return cli.Exit(envelope.ExTempFail, err)
	}
	if cli.Bool(t.c, "json") {
		err := cli.PrintJSON(t.c.App.Writer, struct {
			User string `json:"user"`
			OK   bool   `json:"ok"`
		}{t.addr.String(), ok})
		if err != nil {
			return err
		}
	}
	if !ok {
		return cli.Exit(envelope.ExNoPerm, fmt.Errorf("%s: wrong password, or no such account", t.addr))
	}
	return nil
}

func list(c *urfave.Context) error {
	if c.NArg() > 0 {
		return cli.Usage("list takes no operands")
	}
	_, acc, err := open(c)
	if err != nil {
		return err
	}
	return status(acc.List(func(l accounts.Listed) error {
		if cli.Bool(c, "json") {
			return cli.PrintJSON(c.App.Writer, l)
		}
		box, pw := l.Mailbox, "-"
		if box == "" {
			box = "-"
		}
		if l.Password {
			pw = "password"
		}
		_, err := fmt.Fprintf(c.App.Writer, "%s %s %s\n", pw, cli.Escape(box, ' '), cli.Escape(l.Address, ' '))
		return err
	}))
}

func hash(c *urfave.Context) error {
	if c.NArg() > 0 {
		return cli.Usage("hash takes no operands: the password is read from standard input")
	}
	pw, err := readPassword(true)
	if err != nil {
		return err
	}
	stored, err := record(c.String("scheme"), pw)
	if err != nil {
		return cli.Usage("%v", err)
	}
	_, err = fmt.Fprintln(c.App.Writer, stored)
	return err
}

// checkLine refuses what cannot be a password in a line-oriented world.
func checkLine(s string) (string, error) {
	s = strings.TrimSuffix(strings.TrimSuffix(s, "\n"), "\r")
	if s == "" {
		return "", cli.Exit(envelope.ExDataErr, errors.New("no password on standard input"))
	}
	return s, nil
}
