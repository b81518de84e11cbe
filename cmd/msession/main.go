// Command msession runs the sessions of mail clients as the users who have logged in.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/daemon"
	"pennypost/internal/envelope"
	"pennypost/internal/handover"
	"pennypost/internal/serve"
)

// idle ends an activated process that has no session.
const idle = time.Minute

// waiting is how many connections there may be besides the sessions; most of them are refused
// soon, or end sooner than the next one.
const waiting = 512

func main() { cli.Main(app()) }

func app() *urfave.App {
	return &urfave.App{
		Name: "msession", Usage: "run sessions of mail clients as their users",
		Flags: []urfave.Flag{
			cli.Config(), cli.JSON(),
			cli.Listen("serve the UNIX socket `PATH`, or \"config\" for session.socket"), cli.Idle(), cli.NotifyFd(),
		},
		Action: run,
	}
}

func run(c *urfave.Context) error {
	if c.NArg() > 0 {
		return cli.Usage("takes no operands")
	}
	cfg, err := cli.Load(c)
	if err != nil {
		return err
	}
	acc, err := daemon.Accounts(cfg)
	if err != nil {
		return cli.Exit(envelope.ExConfig, err)
	}
	if cfg.Accounts.AuthSocket == "" {
		return cli.Exit(envelope.ExConfig, errors.New("accounts.auth_socket is not set: tickets come from \"mpasswd serve\""))
	}
	f := daemon.Frame{
		Tool: "msession", Paths: true, ListenKey: "session.socket",
		Idle: idle, MaxSessions: cfg.Session.Max + waiting, Busy: `{"error":"busy"}` + "\n",
	}
	if cfg.Session.Socket != "" {
		f.Listen = []config.Listener{{Addr: cfg.Session.Socket}}
	}
	d, err := daemon.New(cli.ServingOf(c), cfg, f)
	if err != nil {
		return err
	}
	s, err := server(cfg, acc, d)
	if err != nil {
		return err
	}
	allowed, err := daemon.UIDs(cfg.Session.Users)
	if err != nil {
		return cli.Exit(envelope.ExConfig, fmt.Errorf("session.users: %w", err))
	}
	return d.Run(c.Context, nil, func(ctx context.Context, conn net.Conn, p serve.Peer, _ string) {
		if err := may(p, allowed); err != nil {
			d.Log.Warn("connection refused", "peer", who(p), "err", err)
			return
		}
		u, ok := conn.(*net.UnixConn)
		if !ok {
			d.Log.Warn("connection refused", "peer", who(p), "err", "descriptors come over UNIX sockets only")
			return
		}
		s.Serve(ctx, u, who(p))
	})
}

// server makes the one who begins sessions. From here on this process can gain no right that it
// does not have, and neither can its sessions.
func server(cfg *config.Config, acc *accounts.Accounts, d *daemon.Daemon) (*handover.Server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, cli.Exit(envelope.ExOSErr, err)
	}
	if err := handover.Confine(); err != nil {
		d.Log.Warn("sessions are less confined than they could be", "err", err)
	}
	return handover.NewServer(handover.Options{
		Tickets: auth.NewClient(cfg.Accounts.AuthSocket), Users: acc,
		Programs: programs(filepath.Dir(self), cfg.Path),
		FirstUID: cfg.Session.FirstUID, Max: cfg.Session.Max, PerUser: cfg.Session.PerUser,
		UID: os.Geteuid(), Log: d.Log,
	}), nil
}

// programs are those that run sessions, beside our own. Nothing of a request gets into their
// arguments.
func programs(dir, conf string) map[string][]string {
	out := map[string][]string{}
	for protocol, name := range map[string]string{handover.POP3: "mpop3d", handover.IMAP: "mimapd"} {
		args := []string{filepath.Join(dir, name)}
		if conf != "" {
			args = append(args, "--config", conf)
		}
		out[protocol] = append(args, "--session")
	}
	return out
}

// may tells whether a peer may hand clients over: root, our own user, and those of session.users.
func may(p serve.Peer, allowed []int) error {
	switch {
	case !p.Unix:
		return errors.New("clients are handed over on UNIX sockets only")
	case p.Cred == nil:
		return fmt.Errorf("unknown peer: %w", p.CredErr)
	case p.Cred.UID == 0 || p.Cred.UID == os.Geteuid() || slices.Contains(allowed, p.Cred.UID):
		return nil
	}
	return errors.New("this user may not hand clients over (session.users)")
}

func who(p serve.Peer) string {
	if p.Cred == nil {
		return "unknown"
	}
	return fmt.Sprintf("uid %d pid %d", p.Cred.UID, p.Cred.PID)
}
