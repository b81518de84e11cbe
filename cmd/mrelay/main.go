// Command mrelay hands one message to its next hops by SMTP or LMTP and reports per recipient.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/envelope"
	"pennypost/internal/relay"
	"pennypost/internal/serve"
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
			&urfave.BoolFlag{Name: "worker", Usage: "serve mqueue on the socket pair at descriptor 3"},
			&urfave.StringFlag{Name: "listen", Usage: "serve mqueue on the UNIX socket `PATH`"},
			&urfave.DurationFlag{Name: "idle", Usage: "with an activated socket: end after `TIME` without a connection"},
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
	if c.Bool("worker") || c.String("listen") != "" || os.Getenv("LISTEN_FDS") != "" && c.NArg() == 0 {
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
	log, err := cli.Logger(cfg, "mrelay")
	if err != nil {
		return cli.Exit(envelope.ExConfig, err)
	}
	r := relay.New(options(c, cfg))
	defer r.Close()
	hello := worker.Hello{Versions: []int{worker.Version}, Name: "mrelay", Abilities: []string{worker.AbleRelay}}
	o := serve.WorkerOptions{Pair: c.Bool("worker"), Listen: c.String("listen"), Spool: cfg.Spool, Idle: c.Duration("idle"), Log: log}
	err = serve.Worker(c.Context, o, func(ctx context.Context, conn *net.UnixConn) error {
		return worker.Serve(ctx, conn, hello, r.Handle, 0)
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		return cli.Exit(envelope.ExOSErr, fmt.Errorf("worker: %w", err))
	}
	return nil
}
