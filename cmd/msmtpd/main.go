// Command msmtpd receives mail by SMTP and puts it into the spool.
package main

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/daemon"
	"pennypost/internal/envelope"
	"pennypost/internal/serve"
	"pennypost/internal/smtp"
	"pennypost/internal/smtpd"
	"pennypost/internal/spool"
)

func main() { cli.Main(app()) }

func app() *urfave.App {
	return &urfave.App{
		Name: "msmtpd", Usage: "receive mail by SMTP",
		Flags: append([]urfave.Flag{
			cli.Config(), cli.JSON(), cli.Role("mx, submission, submissions or local"),
			cli.Listen("serve `ADDR[=ROLE]`: HOST:PORT, the path of a UNIX socket, or \"config\" for smtpd.listen"),
			cli.Idle(), cli.NotifyFd(),
		}, simulateFlags()...),
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
	if c.Bool("simulate") {
		return simulate(c, cfg)
	}
	d, err := daemon.New(cli.ServingOf(c), cfg, daemon.Frame{
		Tool: "msmtpd", Roles: smtpd.Roles(), Default: smtpd.MX,
		Listen: cfg.SMTPD.Listen, ListenKey: "smtpd.listen",
		Idle: cfg.SMTPD.Idle.Std(), MaxSessions: cfg.SMTPD.MaxSessions,
		Busy:      "421 4.3.2 " + cfg.Hostname + " too many sessions, try again later\r\n",
		ProxyFrom: cfg.SMTPD.ProxyFrom, ProxyKey: "smtpd.proxy_from",
		PerClient:     cfg.SMTPD.PerClient,
		PerClientBusy: "421 4.7.0 " + cfg.Hostname + " too many sessions from your address, end some first\r\n",
		Exempt:        slices.Concat(cfg.SMTPD.RelayFrom, cfg.Policy.Trusted, cfg.SMTPD.XClientFrom),
	})
	if err != nil {
		return err
	}
	servers, err := newServers(cfg, d.Log, nil, d.Single)
	if err != nil {
		return err
	}
	return daemon.ServeRoles(c.Context, d, servers.role, func(ctx context.Context, s *smtp.Server, conn net.Conn, p serve.Peer, role string) {
		peer := toPeer(p, role)
		if err := s.ServeConn(ctx, conn, peer); err != nil && !errors.Is(err, smtp.ErrRefused) {
			d.Log.Info("session ended early", "peer", peer.String(), "role", role, "err", err)
		}
	})
}

func toPeer(p serve.Peer, role string) smtp.Peer {
	peer := smtp.Peer{Addr: p.Addr, Local: p.Local, Stdio: p.Stdio}
	switch {
	case p.Cred != nil:
		peer.UID = &p.Cred.UID
	case p.Stdio && role == smtpd.Local:
		uid := os.Getuid() // whoever started us speaks for that user
		peer.UID = &uid
	}
	return peer
}

// openSpool opens the spool, with the sentence that helps when there is none.
func openSpool(cfg *config.Config) (*spool.Spool, error) {
	sp, err := spool.Open(cfg.Spool, spool.Options{
		Now: cfg.Now(), FreeSpace: cfg.Limits.FreeSpace, FreeInodes: cfg.Limits.FreeInodes,
	})
	if err != nil {
		return nil, cli.Exit(envelope.ExTempFail, err)
	}
	return sp, nil
}
