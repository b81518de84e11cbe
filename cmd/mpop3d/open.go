package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/accounts"
	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/daemon"
	"pennypost/internal/daemon/store"
	"pennypost/internal/envelope"
	"pennypost/internal/handover"
	"pennypost/internal/mailbox"
	"pennypost/internal/pop3"
	"pennypost/internal/serve"
)

// loginDelay is what a wrong password costs.
const loginDelay = time.Second

// server is what sessions have in common, wherever their user has logged in.
func server(cfg *config.Config, log *slog.Logger, uidl pop3.Format) *pop3.Server {
	return &pop3.Server{
		Hostname: cfg.Hostname, UIDL: uidl, Expire: cfg.POP3.Expire, LoginDelay: cfg.POP3.LoginDelay.Std(),
		KeepUnseen: !cfg.POP3.Seen, Timeout: cfg.POP3.Timeout.Std(), MaxErrors: cfg.POP3.Errors, Log: log,
	}
}

// open opens and locks the inbox of an account.
func open(ctx context.Context, cfg *config.Config, log *slog.Logger, m *accounts.Mailbox) (pop3.Maildrop, error) {
	s, err := store.Open(cfg, m, log)
	if err != nil {
		return nil, err
	}
	inbox, err := s.Mailbox(ctx, "INBOX")
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	d, err := pop3.OpenBox(ctx, inbox, pop3.BoxOptions{Dir: m.Maildir, Delay: cfg.POP3.LoginDelay.Std()})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &drop{d, s}, nil
}

// drop is a maildrop and its account, which end together.
type drop struct {
	pop3.Maildrop
	s *mailbox.Store
}

func (d *drop) Close() error { return errors.Join(d.Maildrop.Close(), d.s.Close()) }

// session serves one user, whom msession has made this process the user of.
func session(c *urfave.Context, cfg *config.Config) error {
	facts, err := readFacts()
	if err != nil {
		return cli.Exit(envelope.ExUsage, fmt.Errorf("--session: %w (msession starts it)", err))
	}
	cfg.Log = "stderr" // msession puts it into its own
	d, err := daemon.New(cli.Serving{}, cfg, daemon.Frame{Tool: "mpop3d"})
	if err != nil {
		return err
	}
	uidl, err := format(cfg)
	if err != nil {
		return err
	}
	srv := server(cfg, d.Log, uidl)
	srv.Open = func(ctx context.Context, _ string) (pop3.Maildrop, error) {
		return open(ctx, cfg, d.Log, &accounts.Mailbox{Address: facts.Address, User: facts.Name, Home: facts.Home, Maildir: facts.Maildir})
	}
	return d.Run(c.Context, nil, func(ctx context.Context, conn net.Conn, _ serve.Peer, _ string) {
		if err := srv.ServeSession(ctx, conn, facts); err != nil {
			d.Log.Error("session cannot be served", "user", facts.Address, "err", err)
		}
	})
}

// readFacts reads what msession tells at descriptor 3.
func readFacts() (*handover.Facts, error) {
	// Never closed: without msession the descriptor is the runtime's.
	facts, err := handover.ReadFacts(os.NewFile(3, "descriptor 3"))
	if err == nil && facts.Protocol != handover.POP3 {
		err = fmt.Errorf("the session is one of %q", facts.Protocol)
	}
	return facts, err
}
