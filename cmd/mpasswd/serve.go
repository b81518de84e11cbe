package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"time"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/daemon"
	"pennypost/internal/daemon/login"
	"pennypost/internal/envelope"
	"pennypost/internal/serve"
)

// maxSessions bounds the connections; each login in progress has one.
const maxSessions = 1024

// idle ends an activated process; what it remembers of passwords and keys is worth a while.
const idle = 10 * time.Minute

// run is "mpasswd serve".
func run(c *urfave.Context) error {
	if c.NArg() > 0 {
		return cli.Usage("serve takes no operands")
	}
	cfg, acc, err := open(c)
	if err != nil {
		return err
	}
	f := daemon.Frame{
		Tool: "mpasswd", Paths: true, ListenKey: "accounts.auth_socket",
		Idle: idle, MaxSessions: maxSessions, Busy: `{"error":"busy"}` + "\n",
	}
	if cfg.Accounts.AuthSocket != "" {
		f.Listen = []config.Listener{{Addr: cfg.Accounts.AuthSocket}}
	}
	d, err := daemon.New(cli.ServingOf(c), cfg, f)
	if err != nil {
		return err
	}
	allowed, err := daemon.UIDs(cfg.Accounts.AuthUsers)
	if err != nil {
		return cli.Exit(envelope.ExConfig, fmt.Errorf("accounts.auth_users: %w", err))
	}
	if _, _, err := acc.SCRAM(); err != nil {
		d.Log.Error("secrets cannot be read; every login is put off until they can", "err", err)
	}
	s := login.Service(cfg, acc, cfg.Accounts.Guesses, d.Log)
	return d.Run(c.Context, nil, func(ctx context.Context, conn net.Conn, p serve.Peer, _ string) {
		redeem, err := rights(p, allowed)
		if err == nil {
			err = s.Serve(ctx, conn, redeem)
		}
		if err != nil {
			d.Log.Warn("connection ended", "peer", who(p), "err", err)
		}
	})
}

// rights tells whether a peer may ask, and whether it may take tickets: root and our own user do.
func rights(p serve.Peer, allowed []int) (redeem bool, err error) {
	switch {
	case p.Stdio:
		return true, nil
	case !p.Unix:
		return false, errors.New("passwords are checked on UNIX sockets only")
	case p.Cred == nil:
		return false, fmt.Errorf("unknown peer: %w", p.CredErr)
	case p.Cred.UID == 0 || p.Cred.UID == os.Geteuid():
		return true, nil
	case slices.Contains(allowed, p.Cred.UID):
		return false, nil
	}
	return false, errors.New("this user may not ask (accounts.auth_users)")
}

func who(p serve.Peer) string {
	if p.Cred == nil {
		return "unknown"
	}
	return "uid " + strconv.Itoa(p.Cred.UID)
}
