package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/daemon"
	"pennypost/internal/envelope"
	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
	"pennypost/internal/transfer"
)

// transfers are the commands that move mail.
func transfers() []*urfave.Command {
	return []*urfave.Command{
		{Name: "import", Usage: "copy mail into an account; what has been copied does not come again", ArgsUsage: "[address]", Action: each(told(importMail)), Flags: remote(
			&urfave.StringFlag{Name: "from", Usage: "`SOURCE`: mbox:PATH, maildir:DIR, fs:DIR, account:ADDRESS, imaps://USER@HOST, imap://USER@HOST"},
			&urfave.BoolFlag{Name: "restore", Usage: "from maildir: or fs:, with UIDs, into empty mailboxes"})},
		{Name: "export", Usage: "copy the mail of an account elsewhere, or bring such a copy up to date", ArgsUsage: "[address]", Action: each(told(exportMail)), Flags: remote(
			&urfave.StringFlag{Name: "to", Usage: "`TARGET`: mbox:DIR, maildir:DIR, fs:DIR, account:ADDRESS, imaps://USER@HOST, imap://USER@HOST"},
			&urfave.BoolFlag{Name: "prune", Usage: "remove from a Maildir what the account does not have any more"})},
	}
}

// remote are the flags of both, and more.
func remote(more ...urfave.Flag) []urfave.Flag {
	return common(append(more, mailboxes(),
		&urfave.StringFlag{Name: "into", Usage: "put the mailboxes below `NAME`"},
		&urfave.StringFlag{Name: "password-file", Usage: "read the server's password from the first line of `FILE`"},
		&urfave.StringFlag{Name: "tunnel", Usage: "talk IMAP with `COMMAND`, run by the shell, in place of a connection"},
		&urfave.StringFlag{Name: "ca", Usage: "trust the certificates in `FILE` too"},
		&urfave.BoolFlag{Name: "insecure", Usage: "send the password over a connection that is not encrypted"})...)
}

// told gives errors of moving mail their exit status.
func told(f func(*job) error) func(*job) error {
	return func(j *job) error {
		err := f(j)
		switch {
		case errors.Is(err, transfer.ErrOccupied):
			return cli.Exit(envelope.ExCantCreat, err)
		case errors.Is(err, transfer.ErrFormat):
			return cli.Exit(envelope.ExDataErr, err)
		case errors.Is(err, fs.ErrNotExist):
			return cli.Exit(envelope.ExNoInput, err)
		}
		return err
	}
}

// moved is one mailbox's line.
type moved struct {
	User    string   `json:"user"`
	Mailbox string   `json:"mailbox"` // of the account
	Other   string   `json:"other"`   // of the other side
	New     int      `json:"new"`
	Known   int      `json:"known"`
	Changed int      `json:"changed"`
	Removed int      `json:"removed"`
	Lost    []string `json:"lost,omitempty"`
}

// options are those of both directions. in says that the account's mailbox is the target.
func (j *job) options(in bool) (o transfer.Options, p *progress) {
	p = newProgress(j.c.App.ErrWriter)
	o = transfer.Options{Into: cli.String(j.c, "into"), DryRun: j.dry, Progress: p.show}
	if j.c.IsSet("mailbox") {
		o.Mailboxes = j.c.StringSlice("mailbox")
	}
	o.Report = func(r transfer.Result) {
		p.clear()
		m := moved{j.name, r.From, r.To, r.New, r.Known, r.Changed, r.Removed, r.Lost}
		if in {
			m.Mailbox, m.Other = r.To, r.From
		}
		// Ignored: the mail is copied, whoever reads of it.
		if j.json {
			_ = cli.PrintJSON(j.c.App.Writer, m)
			return
		}
		_, _ = fmt.Fprintf(j.c.App.Writer, "%s %d %d %d %d %s\n", cli.Escape(m.User, ' '), m.New, m.Known, m.Changed, m.Removed, cli.Escape(m.Mailbox, 0))
		for _, l := range m.Lost {
			_, _ = fmt.Fprintf(j.c.App.ErrWriter, "mstore: %s: %s: left behind: %s\n", cli.Escape(m.User, 0), cli.Escape(m.Mailbox, 0), cli.Escape(l, 0))
		}
	}
	return o, p
}

// place is the other side: a kind, and where.
func place(c *urfave.Context, flag string) (kind, where string, err error) {
	s := cli.String(c, flag)
	kind, where, ok := strings.Cut(s, ":")
	if s == "" || !ok || where == "" {
		return "", "", cli.Usage("--%s %q: want mbox:PATH, maildir:DIR, fs:DIR, account:ADDRESS, imaps://USER@HOST or imap://USER@HOST", flag, s)
	}
	if (kind == "imap" || kind == "imaps") != strings.HasPrefix(where, "//") {
		return "", "", cli.Usage("--%s %q: only imap and imaps have // behind the colon", flag, s)
	}
	return kind, where, nil
}

// tree is a Maildir on the other side, with the escapes that the account has.
func (j *job) tree(kind, dir string) maildir.Tree {
	t := maildir.Tree{Root: filepath.Clean(dir), Escape: j.o.Escape}
	if kind == "fs" {
		t.Layout = maildir.LayoutFS
	}
	return t
}

// own is the tree of the job's account.
func (j *job) own() maildir.Tree {
	t := maildir.Tree{Root: j.user.Maildir, UTF8: j.o.UTF8, Control: j.o.Control, Index: j.o.Index, Escape: j.o.Escape}
	if j.o.FSLayout {
		t.Layout = maildir.LayoutFS
	}
	return t
}

func importMail(j *job) (err error) {
	kind, where, err := place(j.c, "from")
	if err != nil {
		return err
	}
	restore := j.c.Bool("restore")
	if restore && kind != "maildir" && kind != "fs" {
		return cli.Usage("--restore needs UIDs, which only maildir: and fs: have")
	}
	s, err := j.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	o, p := j.options(true)
	defer p.clear()
	if restore {
		if o.Into != "" {
			return cli.Usage("--restore puts mailboxes where they were; --into is for copies")
		}
		return transfer.Restore(j.c.Context, s, j.own(), j.tree(kind, where), o)
	}
	src, err := j.source(kind, where)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	return transfer.Import(j.c.Context, s, filepath.Join(j.user.Maildir, transfer.MemoryName), src, o)
}

func (j *job) source(kind, where string) (transfer.Source, error) {
	switch kind {
	case "mbox":
		return transfer.OpenMbox(where)
	case "maildir", "fs":
		return &transfer.Maildir{Tree: j.tree(kind, where)}, nil
	case "account":
		return j.other(where)
	case "imap", "imaps":
		return j.server(kind, where)
	}
	return nil, cli.Usage("--from %s: is neither mbox, maildir, fs, account, imap nor imaps", kind)
}

// other opens another account.
func (j *job) other(address string) (*transfer.Account, error) {
	cfg, err := cli.Load(j.c)
	if err != nil {
		return nil, err
	}
	acc, err := daemon.Accounts(cfg)
	if err != nil {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	k, err := byAddress(j.c, cfg, acc, address)
	if err != nil {
		return nil, err
	}
	if k.user.Maildir == j.user.Maildir {
		return nil, cli.Usage("%s is the account itself", address)
	}
	s, err := k.open()
	if err != nil {
		return nil, err
	}
	return &transfer.Account{Store: s, Name: k.name, Root: k.user.Maildir}, nil
}

func exportMail(j *job) (err error) {
	kind, where, err := place(j.c, "to")
	if err != nil {
		return err
	}
	if j.c.Bool("prune") && kind != "maildir" && kind != "fs" {
		return cli.Usage("--prune is for maildir: and fs:")
	}
	s, err := j.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	o, p := j.options(false)
	defer p.clear()
	o.Prune = j.c.Bool("prune")
	ctx := j.c.Context
	switch kind {
	case "maildir", "fs":
		return transfer.ToMaildir(ctx, s, j.tree(kind, where), o)
	case "mbox":
		return transfer.ToMbox(ctx, s, where, o)
	case "account":
		return j.toAccount(ctx, s, where, o)
	case "imap", "imaps":
		to, err := j.server(kind, where)
		if err != nil {
			return err
		}
		err = transfer.ToIMAP(ctx, s, filepath.Join(j.user.Maildir, transfer.UploadName), to, o)
		return errors.Join(err, to.Close())
	}
	return cli.Usage("--to %s: is neither mbox, maildir, fs, account, imap nor imaps", kind)
}

// toAccount is an import seen from the other side.
func (j *job) toAccount(ctx context.Context, s *mailbox.Store, address string, o transfer.Options) error {
	to, err := j.other(address)
	if err != nil {
		return err
	}
	src := &transfer.Account{Store: s, Name: j.name}
	err = transfer.Import(ctx, to.Store, filepath.Join(to.Root, transfer.MemoryName), src, o)
	return errors.Join(err, to.Close())
}
