package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"pennypost/internal/config"
	"pennypost/internal/resolve"
)

// relay looks at the files that hold passwords for next hops.
func (k *checker) relay(cfg *config.Config) {
	if cfg.Relay.Auth != "" {
		k.auth("relay.auth", cfg.Relay.Auth)
		if cfg.Relay.TLS == "none" {
			k.fail("relay.auth", "the password would be sent without TLS", "set relay.tls to encrypt or verify")
		}
	}
	for _, r := range cfg.Routes {
		if r.Auth != "" {
			k.auth("route "+r.Match+" auth", r.Auth)
		}
	}
	if cfg.Relay.Smarthost != "" {
		k.ok("relay.smarthost", cfg.Relay.Smarthost)
	}
}

func (k *checker) auth(thing, path string) {
	if !k.secret(thing, path) {
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		k.unseen(thing+" "+path, err)
		return
	}
	line, rest, _ := strings.Cut(string(data), "\n")
	name, password, ok := strings.Cut(line, ":")
	if !ok || name == "" || password == "" || strings.TrimSpace(rest) != "" {
		k.fail(thing+" "+path, "is not one line USER:PASSWORD", "write it so")
		return
	}
	k.ok(thing, path)
}

// workers looks for the programs and sockets that deliver.
func (k *checker) workers(cfg *config.Config) {
	for _, w := range cfg.Workers {
		thing := "worker " + w.Name
		if w.Socket != "" {
			continue // sockets come below
		}
		name := w.Command[0]
		var err error
		if filepath.IsAbs(name) {
			_, err = os.Stat(name)
		} else {
			_, err = findTool(name)
		}
		if err != nil {
			k.fail(thing, "its command "+name+" is not there", "install it, or correct worker.command")
			continue
		}
		k.ok(thing, name)
	}
}

// sockets connects to the UNIX sockets of other processes.
func (k *checker) sockets(ctx context.Context, cfg *config.Config) {
	for _, w := range cfg.Workers {
		if w.Socket == "" {
			continue
		}
		if err := reach(ctx, w.Socket); err != nil {
			k.fail("worker "+w.Name, w.Socket+": "+err.Error(), "start it: until then its mail is deferred")
		} else {
			k.ok("worker "+w.Name, w.Socket)
		}
	}
	if cfg.Submit.Socket == "" {
		return
	}
	switch err := greet(ctx, cfg.Submit.Socket); {
	case errors.Is(err, fs.ErrNotExist):
		k.warn("submit.socket "+cfg.Submit.Socket, "does not exist: users other than the spool's cannot send", "start msmtpd with --role local on it")
	case err != nil:
		k.fail("submit.socket "+cfg.Submit.Socket, err.Error(), "start msmtpd with --role local on it")
	default:
		k.ok("submit.socket", cfg.Submit.Socket)
	}
}

// patience is how long another process may take to answer.
const patience = 3 * time.Second

func connect(ctx context.Context, path string) (net.Conn, error) {
	d := net.Dialer{Timeout: patience}
	c, err := d.DialContext(ctx, "unix", path)
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err // without the path, which stands before it already
	}
	return c, err
}

// reach connects and hangs up.
func reach(ctx context.Context, path string) error {
	c, err := connect(ctx, path)
	if err != nil {
		return err
	}
	return c.Close()
}

// greet waits for the greeting of an SMTP server and takes leave.
func greet(ctx context.Context, path string) error {
	c, err := connect(ctx, path)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	r := bufio.NewReader(io.LimitReader(c, 64<<10))
	line, err := r.ReadString('\n')
	switch {
	case err != nil:
		return errors.New("nothing answers on it")
	case !strings.HasPrefix(line, "220"):
		return fmt.Errorf("greets with %q", strings.TrimSpace(line))
	}
	if _, err := io.WriteString(c, "QUIT\r\n"); err != nil {
		return err
	}
	// Ignored: it has greeted; waiting for its goodbye only keeps its log clean.
	_, _ = r.ReadString('\n')
	return nil
}

// dns asks how others find us.
func (k *checker) dns(ctx context.Context, cfg *config.Config) {
	o := resolve.Options{
		Hosts: cfg.DNS.Hosts, ResolvConf: "/etc/resolv.conf", Timeout: cfg.DNS.Timeout.Std(), Rounds: 1,
		TrustAD: cfg.DNS.TrustAD, IPv6: cfg.Relay.IPv6, Now: cfg.Now(),
	}
	if r := cfg.DNS.Resolver; r != "" {
		if _, _, err := net.SplitHostPort(r); err != nil {
			r = net.JoinHostPort(strings.Trim(r, "[]"), "53")
		}
		o.Servers = []string{r}
	}
	r := resolve.New(o)
	k.lists(ctx, r, cfg)
	addrs, err := r.Addrs(ctx, cfg.Hostname)
	switch {
	case err != nil:
		k.warn("dns "+cfg.Hostname, err.Error(), "add A and AAAA records for it: other hosts check the name in HELO")
		return
	case allLoopback(addrs):
		k.warn("dns "+cfg.Hostname, "has only loopback addresses", "other hosts need an address they can reach")
	default:
		k.ok("dns "+cfg.Hostname, fmt.Sprint(addrs))
	}
	for _, d := range cfg.Domains {
		k.mx(ctx, r, cfg, d)
	}
}

func allLoopback(addrs []netip.Addr) bool {
	for _, a := range addrs {
		if !a.IsLoopback() {
			return false
		}
	}
	return true
}

func (k *checker) mx(ctx context.Context, r *resolve.Resolver, cfg *config.Config, domain string) {
	hosts, err := r.NextHops(ctx, domain)
	if err != nil {
		k.warn("dns MX "+domain, err.Error(), "add an MX record that names "+cfg.Hostname)
		return
	}
	var names []string
	for _, h := range hosts {
		if strings.EqualFold(h.Name, cfg.Hostname) {
			k.ok("dns MX "+domain, h.Name)
			return
		}
		names = append(names, h.Name)
	}
	k.warn("dns MX "+domain, "leads to "+strings.Join(names, " ")+", not to "+cfg.Hostname, "correct the record, unless that host hands mail on to this one")
}
