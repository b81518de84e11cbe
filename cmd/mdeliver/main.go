// Command mdeliver delivers one message to local recipients, or serves mqueue as a worker.
package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/accounts"
	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/deliver"
	"pennypost/internal/envelope"
	"pennypost/internal/maildir"
	"pennypost/internal/serve"
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
			&urfave.BoolFlag{Name: "worker", Usage: "serve mqueue on descriptor 3, or on sockets passed by systemd"},
			&urfave.StringFlag{Name: "listen", Usage: "serve mqueue on a UNIX socket at `PATH`"},
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
	acc, err := openAccounts(cfg)
	if err != nil {
		return cli.Exit(envelope.ExConfig, err)
	}
	if serving {
		return work(c, cfg, acc)
	}
	return byHand(c, cfg, acc)
}

func openAccounts(cfg *config.Config) (*accounts.Accounts, error) {
	getent := ""
	if cfg.Accounts.System {
		// Where there is no getent, /etc/passwd is all there is.
		getent, _ = exec.LookPath("getent")
	}
	return accounts.Open(accounts.Options{
		Domains: cfg.Domains, Postmaster: cfg.Postmaster, Maildirs: cfg.Maildirs,
		Users: cfg.Accounts.Users, UsersMay: cfg.Accounts.UsersMay, Aliases: cfg.Accounts.Aliases,
		System: cfg.Accounts.System, Passwd: "/etc/passwd", Getent: getent,
		Subaddress: cfg.Accounts.SubaddressSep, CatchAll: cfg.Accounts.CatchAll, Lookup: cfg.Accounts.LookupSocket,
	})
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
		Forward:  cfg.Deliver.Forward, PipeUser: cfg.Deliver.PipeUser, PipeTimeout: cfg.Deliver.PipeTimeout.Std(),
		Create: create, Self: self, UID: os.Geteuid(), Now: cfg.Now(),
	}
}

// work serves mqueue until it goes away.
func work(c *urfave.Context, cfg *config.Config, acc *accounts.Accounts) error {
	log, err := cli.Logger(cfg, "mdeliver")
	if err != nil {
		return cli.Exit(envelope.ExConfig, err)
	}
	o := options(cfg, acc, cfg.Deliver.Create || c.Bool("create"), true)
	o.Log = log
	d := deliver.New(o)
	passed := os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid())
	wo := serve.WorkerOptions{
		Pair: c.Bool("worker") && !c.IsSet("listen") && !passed, Listen: c.String("listen"),
		UIDs: []int{0, os.Geteuid()}, Log: log,
	}
	// Whoever owns the spool runs mqueue.
	var st syscall.Stat_t
	if syscall.Stat(cfg.Spool, &st) == nil {
		wo.UIDs = append(wo.UIDs, int(st.Uid))
	}
	hello := worker.Hello{Versions: []int{worker.Version}, Name: "mdeliver", Abilities: []string{worker.AbleDeliver}}
	err = serve.Worker(c.Context, wo, func(ctx context.Context, conn *net.UnixConn) error {
		return worker.Serve(ctx, conn, hello, d.Handle, 0)
	})
	if err != nil {
		return cli.Exit(envelope.ExOSErr, err)
	}
	return nil
}
