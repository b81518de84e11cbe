package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/envelope"
	"pennypost/internal/serve"
)

// maxSessions bounds the connections; each login in progress has one.
const maxSessions = 1024

// newService checks passwords by the configuration. state is the file of the counts, or "".
func newService(cfg *config.Config, acc *accounts.Accounts, state string, log *slog.Logger) *auth.Service {
	return auth.New(auth.Options{Accounts: acc, Program: cfg.Accounts.CheckPassword, State: state, Log: log})
}

// run is "mpasswd serve".
func run(c *urfave.Context) error {
	if c.NArg() > 0 {
		return cli.Usage("serve takes no operands")
	}
	cfg, acc, err := open(c)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		cfg.LogFormat = "json"
	}
	log, err := cli.Logger(cfg, "mpasswd")
	if err != nil {
		return cli.Exit(envelope.ExConfig, err)
	}
	o := serve.Options{
		Idle: c.Duration("idle"), MaxSessions: maxSessions, Busy: `{"error":"busy"}` + "\n", NotifyFd: c.Int("notify-fd"), Log: log,
	}
	if path := c.String("listen"); path != "" {
		if path == "config" {
			path = cfg.Accounts.AuthSocket
		}
		if path == "" {
			return cli.Exit(envelope.ExConfig, errors.New("--listen config: the configuration has no accounts.auth_socket"))
		}
		if !strings.Contains(path, "/") {
			path = "./" + path
		}
		o.Listen = []serve.Listener{{Addr: path}}
	}
	allowed, err := uids(cfg.Accounts.AuthUsers)
	if err != nil {
		return cli.Exit(envelope.ExConfig, fmt.Errorf("accounts.auth_users: %w", err))
	}
	if _, _, err := acc.SCRAM(); err != nil {
		log.Error("secrets cannot be read; every login is put off until they can", "err", err)
	}
	s := newService(cfg, acc, cfg.Accounts.Guesses, log)
	err = serve.Run(c.Context, o, func(ctx context.Context, conn net.Conn, p serve.Peer, _ string) {
		redeem, err := rights(p, allowed)
		if err == nil {
			err = s.Serve(ctx, conn, redeem)
		}
		if err != nil {
			log.Warn("connection ended", "peer", who(p), "err", err)
		}
	})
	var errno syscall.Errno
	switch {
	case err == nil:
		return nil
	case errors.As(err, &errno):
		return cli.Exit(envelope.ExOSErr, err)
	}
	return cli.Exit(envelope.ExConfig, err)
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

// uids looks the users up by name; numbers are taken as they are.
func uids(names []string) ([]int, error) {
	var out []int
	for _, name := range names {
		n, err := strconv.Atoi(name)
		if err != nil {
			u, err := user.Lookup(name)
			if err != nil {
				return nil, err
			}
			if n, err = strconv.Atoi(u.Uid); err != nil {
				return nil, err
			}
		}
		out = append(out, n)
	}
	return out, nil
}
