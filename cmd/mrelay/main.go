// Command mrelay hands one message to its next hops by SMTP or LMTP and reports per recipient.
package main

import (
	"log/slog"
	"os"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/daemon"
	"pennypost/internal/relay"
	"pennypost/internal/worker"
)

func main() { cli.Main(app()) }

func app() *urfave.App {
	return &urfave.App{
		Name: "mrelay", Usage: "hand a message to its next hop", ArgsUsage: "forward-path ...",
		Flags: []urfave.Flag{
			cli.Config(), cli.JSON(), cli.DryRun(),
			&urfave.StringFlag{Name: "from", Aliases: []string{"f"}, Usage: "reverse-path `ADDRESS`; \"\" or <> is the null reverse-path"},
			&urfave.StringFlag{Name: "to", Usage: "next `HOP`: host:port, [address]:port, mx:domain, lmtp:host:port or lmtp:/socket"},
			&urfave.BoolFlag{Name: "lmtp", Usage: "speak LMTP to the next hop given by --to"},
			&urfave.StringFlag{Name: "tls", Usage: "`POLICY`: may, encrypt, verify, none or tls"},
			&urfave.StringFlag{Name: "auth-file", Usage: "authenticate as the USER:PASSWORD in the first line of `FILE`"},
			cli.WorkerFlag(), cli.Listen("serve mqueue on the UNIX socket `PATH`"), cli.Idle(),
		},
		Action: run,
	}
}

func run(c *urfave.Context) error {
	switch p := c.String("tls"); p {
	case "", relay.TLSMay, relay.TLSEncrypt, relay.TLSVerify, relay.TLSNone, relay.TLSImplicit:
	default:
		return cli.Usage("--tls %s: may, encrypt, verify, none or tls", p)
	}
	cfg, err := cli.Load(c)
	if err != nil {
		return err
	}
	if c.Bool("worker") || c.IsSet("listen") || os.Getenv("LISTEN_FDS") != "" && c.NArg() == 0 {
		return work(c, cfg)
	}
	j, err := newJob(c, cfg)
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return j.plan(c)
	}
	return j.run(c)
}

// work serves mqueue.
func work(c *urfave.Context, cfg *config.Config) error {
	if c.NArg() > 0 {
		return cli.Usage("a worker takes no operands")
	}
	r := relay.New(options(c, cfg))
	defer r.Close()
	return daemon.Work(c.Context, cli.ServingOf(c), cfg, "mrelay", worker.AbleRelay, func(*slog.Logger) worker.Handler { return r.Handle })
}
