// Package daemon is the frame that the programs which serve connections share: flags and
// configuration become a log, sockets, limits and an exit status. It hides how the two are put
// together; internal/serve does the serving. What logins need stands in daemon/login, so that a
// worker does not pay for it at each start.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/envelope"
	"pennypost/internal/serve"
)

// Frame is what one daemon has of its own.
type Frame struct {
	Tool    string   // its name in the log
	Roles   []string // nil: it has none
	Default string   // role of a socket that nothing gives one

	Listen    []config.Listener // what "--listen config" stands for
	ListenKey string            // the key that Listen comes from, for messages
	Paths     bool              // serves UNIX sockets alone: each --listen is a path

	Idle        time.Duration // of an activated process, where --idle does not say
	MaxSessions int
	Busy        string   // what a client over MaxSessions is told
	ProxyFrom   []string // proxies that speak the PROXY protocol
	ProxyKey    string   // the key that ProxyFrom comes from, for messages

	PerClient     int      // sessions of one client; 0 is no limit
	PerClientBusy string   // what a client over PerClient is told
	Exempt        []string // networks that PerClient is not about, besides loopback and ProxyFrom
}

// Daemon is a program about to serve.
type Daemon struct {
	Log *slog.Logger
	// Single tells that this process will serve one connection and then end.
	Single bool
	o      serve.Options
}

// New opens the log and decides where connections come from. Its errors have exit statuses.
func New(a cli.Serving, cfg *config.Config, f Frame) (*Daemon, error) {
	listen, err := f.listeners(a.Listen)
	if err != nil {
		return nil, err
	}
	log, err := openLog(a, cfg, f.Tool)
	if err != nil {
		return nil, err
	}
	proxies, err := Prefixes(f.ProxyKey, f.ProxyFrom)
	if err != nil {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	exempt, err := Prefixes("networks without a limit of sessions", append([]string{"127.0.0.0/8", "::1"}, f.Exempt...))
	if err != nil {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	o := serve.Options{
		Listen: listen, Roles: f.Roles, Role: a.Role, Default: f.Default, Idle: f.Idle,
		MaxSessions: f.MaxSessions, Busy: f.Busy, ProxyFrom: proxies, NotifyFd: a.NotifyFd, Log: log,
		PerClient: f.PerClient, PerClientBusy: f.PerClientBusy, Exempt: append(exempt, proxies...),
	}
	if a.Idle != nil {
		o.Idle = *a.Idle
	}
	return &Daemon{Log: log, Single: serve.Single(listen), o: o}, nil
}

// Run serves until the program is to end. check is asked about each role before that; nil asks
// nothing.
func (d *Daemon) Run(ctx context.Context, check func(role string) error, h serve.Handler) error {
	d.o.Check = check
	return status(serve.Run(ctx, d.o, h))
}

// ServeRoles is Run for a program with a server a role. server finds or makes one; it is asked
// about each role before anything is served, so that a configuration that lacks something is an
// error at the start.
func ServeRoles[S any](ctx context.Context, d *Daemon, server func(role string) (S, error), h func(ctx context.Context, s S, conn net.Conn, p serve.Peer, role string)) error {
	check := func(role string) error { _, err := server(role); return err }
	return d.Run(ctx, check, func(ctx context.Context, conn net.Conn, p serve.Peer, role string) {
		s, err := server(role)
		if err != nil {
			d.Log.Error("role cannot be served", "role", role, "err", err)
			return
		}
		h(ctx, s, conn, p, role)
	})
}

// openLog opens the log; --json makes it JSON, whatever the configuration says.
func openLog(a cli.Serving, cfg *config.Config, tool string) (*slog.Logger, error) {
	c := *cfg
	if a.JSON {
		c.LogFormat = "json"
	}
	log, err := cli.Logger(&c, tool)
	if err != nil {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	return log, nil
}

// status gives an error of serve its status: the system's refusals are not the administrator's.
func status(err error) error {
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
func (f *Frame) listeners(args []string) ([]serve.Listener, error) {
	var ls []serve.Listener
	for _, s := range args {
		switch {
		case s == "config" && len(f.Listen) == 0:
			return nil, cli.Exit(envelope.ExConfig, fmt.Errorf("--listen config: the configuration has no %s", f.ListenKey))
		case s == "config":
			for _, l := range f.Listen {
				ls = append(ls, serve.Listener{Addr: l.Addr, Role: l.Role})
			}
		case f.Paths:
			ls = append(ls, serve.Listener{Addr: path(s)})
		default:
			l, err := serve.ParseListener(s)
			if err != nil {
				return nil, cli.Usage("%v", err)
			}
			ls = append(ls, l)
		}
	}
	return ls, nil
}

// path makes a bare name what it is where only paths can stand.
func path(s string) string {
	if strings.Contains(s, "/") {
		return s
	}
	return "./" + s
}

// Prefixes reads the networks and addresses of one key of the configuration.
func Prefixes(key string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			var ip netip.Addr
			if ip, err = netip.ParseAddr(s); err == nil {
				p = netip.PrefixFrom(ip, ip.BitLen())
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %q is no network (10.0.0.0/8) or address", key, s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}
