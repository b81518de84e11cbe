package main

import (
	"net"
	"net/netip"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/config"
	"pennypost/internal/relay"
	"pennypost/internal/resolve"
	"pennypost/internal/smtp"
)

// options turns the configuration, and what the flags change in it, into those of a Relayer.
func options(c *urfave.Context, cfg *config.Config) relay.Options {
	o := relay.Options{
		Resolver: resolver(cfg),
		Helo:     cfg.Relay.Helo,
		Port:     cfg.Relay.Port,
		TLS:      cfg.Relay.TLS,
		Hops:     map[string]relay.Policy{},
		CAFile:   cfg.TLS.CA,
		Timeouts: smtp.DefaultTimeouts().Scaled(cfg.Relay.Timeout.Std()),
		Idle:     cfg.Relay.IdleReuse.Std(),
		PerConn:  cfg.Relay.PerConn,
	}
	o.Bind, _ = netip.ParseAddr(cfg.Relay.Bind) // checked by config; "" leaves the zero Addr
	if cfg.Relay.Smarthost != "" {
		o.Hops[cfg.Relay.Smarthost] = relay.Policy{Auth: cfg.Relay.Auth, TLS: cfg.Relay.TLS}
	}
	for _, r := range cfg.Routes {
		// mqueue writes a route to "mx:domain" as the bare domain.
		to := strings.TrimPrefix(r.To, "mx:")
		if _, known := o.Hops[to]; r.To != "" && !known {
			o.Hops[to] = relay.Policy{Auth: r.Auth, TLS: r.TLS}
		}
	}
	if p := c.String("tls"); p != "" {
		o.TLS = p
	}
	return o
}

func resolver(cfg *config.Config) *resolve.Resolver {
	o := resolve.Options{
		ResolvConf: "/etc/resolv.conf",
		Hosts:      cfg.DNS.Hosts,
		Timeout:    cfg.DNS.Timeout.Std(),
		TrustAD:    cfg.DNS.TrustAD,
		IPv6:       cfg.Relay.IPv6,
		Self:       []string{cfg.Hostname, cfg.Relay.Helo},
	}
	if cfg.DNS.Resolver != "" {
		o.Servers = []string{cfg.DNS.Resolver}
	}
	if cfg.Relay.Port == 25 {
		o.SelfAddrs = ownAddrs
	}
	return resolve.New(o)
}

// ownAddrs are this machine's addresses but for loopback, on which other instances may live.
func ownAddrs() []netip.Addr {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil // the host names still tell us apart
	}
	var out []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() {
			out = append(out, p.Addr())
		}
	}
	return out
}
