// Command mxlookup prints the next hops of domains, best first.
package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/envelope"
	"pennypost/internal/resolve"
)

func main() { cli.Main(app()) }

func app() *urfave.App {
	return &urfave.App{
		Name: "mxlookup", Usage: "print the next hops of a domain", ArgsUsage: "domain ...",
		Flags: []urfave.Flag{
			cli.Config(), cli.JSON(),
			&urfave.StringFlag{Name: "resolver", Usage: "ask the DNS server at `HOST:PORT`"},
		},
		Action: run,
	}
}

func run(c *urfave.Context) error {
	if c.NArg() == 0 {
		return cli.Usage("no domain given")
	}
	cfg, err := cli.Load(c)
	if err != nil {
		return err
	}
	if s := c.String("resolver"); s != "" {
		if _, err := netip.ParseAddrPort(s); err != nil {
			return cli.Usage("--resolver %s: not an address and a port", s)
		}
		cfg.DNS.Resolver = s
	}
	r := resolver(cfg)
	status := envelope.ExOK
	for _, d := range c.Args().Slice() {
		hosts, err := r.NextHops(c.Context, d)
		if err := print(c, d, hosts, err); err != nil {
			return cli.Exit(envelope.ExIOErr, err)
		}
		if err != nil {
			if st := statusOf(err).ToExit(); status == envelope.ExOK || st == envelope.ExTempFail {
				status = st
			}
		}
	}
	return cli.Exit(status, nil)
}

func resolver(cfg *config.Config) *resolve.Resolver {
	o := resolve.Options{
		ResolvConf: "/etc/resolv.conf", Hosts: cfg.DNS.Hosts, Timeout: cfg.DNS.Timeout.Std(),
		TrustAD: cfg.DNS.TrustAD, IPv6: cfg.Relay.IPv6, Self: []string{cfg.Hostname, cfg.Relay.Helo},
	}
	if cfg.DNS.Resolver != "" {
		o.Servers = []string{cfg.DNS.Resolver}
	}
	return resolve.New(o)
}

// line is one host of a domain, or a domain without any.
type line struct {
	Domain   string           `json:"domain"`
	Pref     int              `json:"pref"`
	Host     string           `json:"host,omitempty"`
	Implicit bool             `json:"implicit,omitempty"`
	Addrs    []netip.Addr     `json:"addrs,omitempty"`
	AD       bool             `json:"ad"`
	Status   envelope.Verdict `json:"status,omitempty"` // of a domain or host that cannot be used
	Code     string           `json:"dsn,omitempty"`
	Reply    string           `json:"reply,omitempty"`
}

// print writes one line for each host. A domain without a usable host ends with its reason: as
// an object with --json, else on stderr.
func print(c *urfave.Context, domain string, hosts []resolve.Host, why error) error {
	for _, h := range hosts {
		l := line{Domain: domain, Pref: h.Pref, Host: h.Name, Implicit: h.Implicit, Addrs: h.Addrs, AD: h.AD}
		if h.Err != nil {
			st := statusOf(h.Err)
			l.Status, l.Code, l.Reply = st.Verdict, st.Code, st.Reply
		}
		if err := l.print(c); err != nil {
			return err
		}
	}
	if why == nil {
		return nil
	}
	st := statusOf(why)
	if c.Bool("json") {
		return cli.PrintJSON(c.App.Writer, &line{Domain: domain, Status: st.Verdict, Code: st.Code, Reply: st.Reply})
	}
	_, err := fmt.Fprintf(c.App.ErrWriter, "mxlookup: %s %s: %s\n", st.Verdict, st.Code, cli.Escape(st.Reply, 0))
	return err
}

func (l *line) print(c *urfave.Context) error {
	if c.Bool("json") {
		return cli.PrintJSON(c.App.Writer, l)
	}
	f := []string{cli.Escape(l.Domain, ' '), fmt.Sprint(l.Pref), cli.Escape(l.Host, ' ')}
	for _, a := range l.Addrs {
		f = append(f, a.String())
	}
	if len(l.Addrs) == 0 {
		f = append(f, "-", cli.Escape(l.Reply, 0))
	}
	_, err := fmt.Fprintln(c.App.Writer, strings.Join(f, " "))
	return err
}

func statusOf(err error) envelope.Status {
	var e *resolve.Error
	if errors.As(err, &e) {
		return e.Status
	}
	return envelope.Defer("4.4.3", err.Error())
}
