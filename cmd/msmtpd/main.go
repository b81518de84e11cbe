// Command msmtpd receives mail by SMTP and puts it into the spool.
package main

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/config"
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
			cli.Config(), cli.JSON(),
			&urfave.StringFlag{Name: "role", Usage: "`ROLE` of sockets without one: mx, submission, submissions or local"},
			&urfave.StringSliceFlag{Name: "listen", Usage: "serve `ADDR[=ROLE]`: HOST:PORT, the path of a UNIX socket, or \"config\" for smtpd.listen"},
			&urfave.DurationFlag{Name: "idle", Usage: "end an activated process after `TIME` without a client (0: never)"},
			&urfave.IntFlag{Name: "notify-fd", Usage: "write a newline to descriptor `N` when ready"},
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
	listen, err := listeners(c, cfg)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		cfg.LogFormat = "json"
	}
	log, err := cli.Logger(cfg, "msmtpd")
	if err != nil {
		return cli.Exit(envelope.ExConfig, err)
	}
	o := serve.Options{
		Listen: listen, Roles: smtpd.Roles(), Role: c.String("role"), Default: smtpd.MX,
		Idle: cfg.SMTPD.Idle.Std(), MaxSessions: cfg.SMTPD.MaxSessions, NotifyFd: c.Int("notify-fd"),
		Busy: "421 4.3.2 " + cfg.Hostname + " too many sessions, try again later\r\n",
		Log:  log,
	}
	if c.IsSet("idle") {
		o.Idle = c.Duration("idle")
	}
	if o.ProxyFrom, err = prefixes("smtpd.proxy_from", cfg.SMTPD.ProxyFrom); err != nil {
		return cli.Exit(envelope.ExConfig, err)
	}
	servers, err := newServers(cfg, log, nil, serve.Single(listen))
	if err != nil {
		return err
	}
	o.Check = func(role string) error { _, err := servers.role(role); return err }
	return exit(serve.Run(c.Context, o, func(ctx context.Context, conn net.Conn, p serve.Peer, role string) {
		s, err := servers.role(role)
		if err != nil {
			log.Error("role cannot be served", "role", role, "err", err)
			return
		}
		peer := toPeer(p, role)
		if err := s.ServeConn(ctx, conn, peer); err != nil {
			log.Info("session ended early", "peer", peer.String(), "role", role, "err", err)
		}
	}))
}

// exit gives an error of serve its status: the system's refusals are not the administrator's.
func exit(err error) error {
	var errno syscall.Errno
	switch {
	case err == nil:
		return nil
	case errors.As(err, &errno):
		return cli.Exit(envelope.ExOSErr, err)
	}
	return cli.Exit(envelope.ExConfig, err)
}

// listeners are the sockets asked for on the command line.
func listeners(c *urfave.Context, cfg *config.Config) ([]serve.Listener, error) {
	var ls []serve.Listener
	for _, s := range c.StringSlice("listen") {
		if s == "config" {
			for _, l := range cfg.SMTPD.Listen {
				ls = append(ls, serve.Listener{Addr: l.Addr, Role: l.Role})
			}
			if len(cfg.SMTPD.Listen) == 0 {
				return nil, cli.Exit(envelope.ExConfig, errors.New("--listen config: the configuration has no smtpd.listen"))
			}
			continue
		}
		l, err := serve.ParseListener(s)
		if err != nil {
			return nil, cli.Usage("%v", err)
		}
		ls = append(ls, l)
	}
	return ls, nil
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
