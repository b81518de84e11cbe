package main

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"pennypost/internal/config"
	"pennypost/internal/daemon"
)

// sessions looks at [session]: who may hand clients over, and whether msession is there to take
// them.
func (k *checker) sessions(ctx context.Context, cfg *config.Config) {
	path := cfg.Session.Socket
	if path == "" {
		return
	}
	if !cfg.Accounts.System {
		k.warn("session.socket", "no user of the system has a mailbox here, so nobody gets a session", "set accounts.system, or remove the key")
	}
	k.sessionUsers(cfg)
	a := cfg.Accounts
	if a.TokenSocket != "" || len(a.TokenCommand) > 0 || a.Certificates != "" || cfg.TLS.ClientCA != "" {
		k.warn("session.socket", "with it POP3 takes no tokens and no client certificates", "nothing, where users have passwords")
	}
	k.sessionSocket(ctx, path)
}

// sessionUsers are the daemons' users; each must be able to get tickets.
func (k *checker) sessionUsers(cfg *config.Config) {
	askers, err := daemon.UIDs(cfg.Accounts.AuthUsers)
	if err != nil {
		return // that key has its own finding when it is needed
	}
	for _, name := range cfg.Session.Users {
		uids, err := daemon.UIDs([]string{name})
		switch {
		case err != nil:
			k.fail("session.users "+name, "there is no such user", "make it (systemd-sysusers does), or name the user of mpop3d")
		case uids[0] != 0 && !slices.Contains(askers, uids[0]):
			k.fail("session.users "+name, "gets no tickets", "name it in accounts.auth_users too")
		default:
			k.ok("session.users", name)
		}
	}
}

// sessionSocket asks for nothing: whoever may ask is told that this is no request.
func (k *checker) sessionSocket(ctx context.Context, path string) {
	thing := "session.socket " + path
	const start = "start msession on it: until then, users of the system cannot fetch mail"
	if fi, err := os.Lstat(path); err == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
			k.fail(thing, "does not belong to root: daemons of other users will not trust it", "start msession as root")
			return
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	var said string
	if err == nil {
		defer c.Close()
		err = c.SetDeadline(time.Now().Add(patience))
	}
	if err == nil {
		_, err = c.Write([]byte("{}\n"))
	}
	if err == nil || errors.Is(err, syscall.EPIPE) {
		said, err = bufio.NewReader(c).ReadString('\n')
	}
	switch {
	case strings.Contains(said, `"error":`):
		k.ok(thing, "answers")
	case errors.Is(err, fs.ErrPermission):
		k.unseen(thing, fs.ErrPermission)
	case errors.Is(err, fs.ErrNotExist):
		k.fail(thing, "does not exist", start)
	case errors.Is(err, syscall.ECONNREFUSED):
		k.fail(thing, "nobody serves it", start)
	case errors.Is(err, os.ErrDeadlineExceeded):
		k.fail(thing, "does not answer within "+patience.String(), "see the log of msession, and start it anew")
	default:
		k.warn(thing, "does not let this user ask", "run mcheck as root, or as a user of session.users")
	}
}
