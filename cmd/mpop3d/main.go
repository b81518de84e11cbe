// Command mpop3d lets users fetch their mail by POP3.
package main

import (
	"context"
	"net"
	"slices"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/daemon"
	"pennypost/internal/pop3"
	"pennypost/internal/serve"
)

func main() { cli.Main(app()) }

func app() *urfave.App {
	return &urfave.App{
		Name: "mpop3d", Usage: "let users fetch their mail by POP3",
		Flags: []urfave.Flag{
			cli.Config(), cli.JSON(), cli.Role("pop3 or pop3s"),
			cli.Listen("serve `ADDR[=ROLE]`: HOST:PORT, the path of a UNIX socket, or \"config\" for pop3.listen"),
			cli.Idle(), cli.NotifyFd(),
			&urfave.BoolFlag{Name: "session", Usage: "serve the user that descriptor 3 tells of, on standard input and output"},
		},
		Action: run,
	}
}

func run(c *urfave.Context) error {
	if c.NArg() > 0 {
		return cli.Usage("unexpected operand %q", c.Args().First())
	}
	cfg, err := cli.Load(c)
	if err != nil {
		return err
	}
	if c.Bool("session") {
		return session(c, cfg)
	}
	d, err := daemon.New(cli.ServingOf(c), cfg, daemon.Frame{
		Tool: "mpop3d", Roles: pop3.Roles(), Default: pop3.Clear,
		Listen: cfg.POP3.Listen, ListenKey: "pop3.listen",
		Idle: cfg.POP3.Idle.Std(), MaxSessions: cfg.POP3.MaxSessions,
		Busy:      "-ERR [SYS/TEMP] too many sessions, try again later\r\n",
		ProxyFrom: cfg.POP3.ProxyFrom, ProxyKey: "pop3.proxy_from",
		PerClient:     cfg.POP3.PerClient,
		PerClientBusy: "-ERR [SYS/TEMP] too many sessions from your address, end some first\r\n",
		Exempt:        slices.Concat(cfg.POP3.ClearFrom, cfg.SMTPD.RelayFrom, cfg.Policy.Trusted),
	})
	if err != nil {
		return err
	}
	servers, err := newServers(cfg, d.Log, d.Single)
	if err != nil {
		return err
	}
	return daemon.ServeRoles(c.Context, d, servers.role, func(ctx context.Context, s *pop3.Server, conn net.Conn, p serve.Peer, _ string) {
		s.ServeConn(ctx, conn, pop3.Peer{Addr: p.Addr, Stdio: p.Stdio})
	})
}
