// Command mdeliver delivers one message to local recipients, or serves mqueue as a worker.
package main

import (
	"log/slog"
	"os"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/accounts"
	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/daemon"
	"pennypost/internal/deliver"
	"pennypost/internal/envelope"
	"pennypost/internal/maildir"
	"pennypost/internal/worker"
)

func main() { cli.Main(app()) }

func app() *urfave.App {
	return &urfave.App{
		Name: "mdeliver", Usage: "deliver one message to local recipients", ArgsUsage: "[forward-path ...]",
		Flags: []urfave.Flag{
			cli.Config(), cli.JSON(), cli.DryRun(),
			&urfave.StringFlag{Name: "f", Usage: "`REVERSE-PATH` for Return-Path and for whoever a copy is handed on to"},
			&urfave.StringFlag{Name: "maildir", Usage: "deliver into this `DIR`, whoever it belongs to"},
			&urfave.StringFlag{Name: "mbox", Usage: "append to this `FILE` in mbox form"},
			&urfave.BoolFlag{Name: "create", Usage: "make a Maildir that is missing"},
			&urfave.BoolFlag{Name: "raw", Usage: "with --maildir or --mbox: add no header lines"},
			cli.WorkerFlag(), cli.Listen("serve mqueue on the UNIX socket `PATH`"), cli.Idle(),
		},
		Action: run,
	}
}

func run(c *urfave.Context) error {
	serving := c.Bool("worker") || c.IsSet("listen")
	direct := c.IsSet("maildir") || c.IsSet("mbox")
	switch {
	case serving && (c.NArg() > 0 || direct || c.IsSet("f")):
		return cli.Usage("a worker takes its recipients from mqueue")
	case c.IsSet("maildir") && c.IsSet("mbox"):
		return cli.Usage("--maildir and --mbox exclude each other")
	case direct && c.NArg() > 0:
		return cli.Usage("--maildir and --mbox take no recipients")
	case c.Bool("raw") && !direct:
		return cli.Usage("--raw needs --maildir or --mbox")
	case direct:
		return toTarget(c)
	}
	cfg, err := cli.Load(c)
	if err != nil {
		return err
	}
	acc, err := daemon.Accounts(cfg)
	if err != nil {
		return cli.Exit(envelope.ExConfig, err)
	}
	if serving {
		return work(c, cfg, acc)
	}
	return byHand(c, cfg, acc)
}

// options are those that the worker and a run by hand share.
func options(cfg *config.Config, acc *accounts.Accounts, create, sweep bool) deliver.Options {
	self, err := os.Executable()
	if err != nil {
		self = "" // then nothing can be written as another user, and delivery says so
	}
	return deliver.Options{
		Accounts: acc,
		Maildirs: maildir.NewSet(maildir.Options{Host: cfg.Hostname, Now: cfg.Now(), Create: create, Sweep: sweep}),
		Forward:  cfg.Deliver.Forward, PipeUser: cfg.Deliver.PipeUser, User: cfg.Deliver.User, PipeTimeout: cfg.Deliver.PipeTimeout.Std(),
		Create: create, Self: self, UID: os.Geteuid(), Now: cfg.Now(),
	}
}

// work serves mqueue until it goes away.
func work(c *urfave.Context, cfg *config.Config, acc *accounts.Accounts) error {
	o := options(cfg, acc, cfg.Deliver.Create || c.Bool("create"), true)
	return daemon.Work(c.Context, cli.ServingOf(c), cfg, "mdeliver", worker.AbleDeliver, func(log *slog.Logger) worker.Handler {
		o.Log = log
		return deliver.New(o).Handle
	})
}
