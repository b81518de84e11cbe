// Command sandboxtool does the work of scripts/sandbox: it writes a complete private instance
// below one directory, starts it on free loopback ports, and stops it again.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const usage = `usage: sandbox up DIR [options]     write (or take up again) the instance DIR, start it, wait until it serves
       sandbox down DIR             stop it; data stays; nothing to stop is no error

  --mode listen|inetd|systemd       who listens: our own daemons (default), openbsd-inetd, systemd-socket-activate
  --domain D                        local domain, repeatable (default example.test); the first completes bare names
  --user NAME:PASSWORD              mail user in every domain, or NAME@DOMAIN:PASSWORD in one, repeatable
                                    (default alice:secret and bob:secret)
  --route DOMAIN=HOST:PORT          mail for DOMAIN goes there, repeatable
  --smarthost [USER:PASS@]HOST:PORT mail that is neither local nor routed goes there
  --resolver HOST:PORT              DNS server (default: the system's)
  --mx-port PORT                    port of other people's MX hosts (default 25)
  --host ADDR                       loopback address to listen on (default 127.0.0.1)
  --smtp-port PORT                  our own MX port (default: a free one)

DIR/env holds shell assignments: PP_HOST, the ports, PP_SUBMIT_SOCKET, PP_CA, PP_CONFIG, PP_SPOOL,
PP_MAILDIRS, PP_BIN, PP_PIDS and PENNYPOST_CONFIG. "up" without options on an existing DIR keeps its
options and its configuration file as they are; ports, keys, spool and mail are kept in any case.
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "sandbox: %v\n", err)
		if errors.Is(err, errUsage) {
			os.Exit(64)
		}
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("%w: sandbox up|down DIR (\"sandbox help\" says more)", errUsage)
	}
	switch args[0] {
	case "help", "-h", "--help":
		fmt.Print(usage)
		return nil
	case "up":
		return up(args[1:])
	case "down":
		if len(args) != 2 {
			return fmt.Errorf("%w: sandbox down DIR", errUsage)
		}
		dir, err := filepath.Abs(args[1])
		if err != nil {
			return err
		}
		return down(dir)
	case "supervise": // what "up" leaves running
		return supervise(args[1])
	}
	return fmt.Errorf("%w: unknown command %q", errUsage, args[0])
}

// Options are what a person asked for; they are kept in DIR/sandbox.json.
type Options struct {
	Mode      string   `json:"mode"`
	Domains   []string `json:"domains"`
	Users     []string `json:"users"`
	Routes    []string `json:"routes,omitempty"`
	Smarthost string   `json:"smarthost,omitempty"`
	Resolver  string   `json:"resolver,omitempty"`
	MXPort    int      `json:"mx_port,omitempty"`
	Host      string   `json:"host"`
	SMTPPort  int      `json:"smtp_port,omitempty"`
}

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// parse reads "DIR [options]" in either order; given is false when there were no options.
func parse(args []string) (dir string, o Options, given bool, err error) {
	f := flag.NewFlagSet("up", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.Mode, "mode", "listen", "")
	f.Var((*list)(&o.Domains), "domain", "")
	f.Var((*list)(&o.Users), "user", "")
	f.Var((*list)(&o.Routes), "route", "")
	f.StringVar(&o.Smarthost, "smarthost", "", "")
	f.StringVar(&o.Resolver, "resolver", "", "")
	f.IntVar(&o.MXPort, "mx-port", 0, "")
	f.StringVar(&o.Host, "host", "127.0.0.1", "")
	f.IntVar(&o.SMTPPort, "smtp-port", 0, "")
	for rest := args; len(rest) > 0; {
		if err := f.Parse(rest); err != nil {
			return "", o, false, fmt.Errorf("%w: %w", errUsage, err)
		}
		if rest = f.Args(); len(rest) > 0 {
			if dir != "" {
				return "", o, false, fmt.Errorf("%w: two directories, %q and %q", errUsage, dir, rest[0])
			}
			dir, rest = rest[0], rest[1:]
		}
	}
	if dir == "" {
		return "", o, false, fmt.Errorf("%w: sandbox up DIR [options]", errUsage)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", o, false, err
	}
	if len(o.Domains) == 0 {
		o.Domains = []string{"example.test"}
	}
	if len(o.Users) == 0 {
		o.Users = []string{"alice:secret", "bob:secret"}
	}
	return dir, o, f.NFlag() > 0, o.check()
}

func (o Options) check() error {
	if !slices.Contains([]string{"listen", "inetd", "systemd"}, o.Mode) {
		return fmt.Errorf("%w: --mode %q: listen, inetd or systemd", errUsage, o.Mode)
	}
	if net.ParseIP(o.Host) == nil {
		return fmt.Errorf("%w: --host %q is no address", errUsage, o.Host)
	}
	for _, u := range o.Users {
		if name, pw, ok := strings.Cut(u, ":"); !ok || name == "" || pw == "" {
			return fmt.Errorf("%w: --user %q: NAME:PASSWORD", errUsage, u)
		}
	}
	for _, r := range o.Routes {
		d, to, ok := strings.Cut(r, "=")
		if !ok || d == "" || !hostPort(to) {
			return fmt.Errorf("%w: --route %q: DOMAIN=HOST:PORT", errUsage, r)
		}
	}
	if _, hp := o.smarthost(); o.Smarthost != "" && !hostPort(hp) {
		return fmt.Errorf("%w: --smarthost: [USER:PASS@]HOST:PORT", errUsage)
	}
	if o.Resolver != "" && !hostPort(o.Resolver) {
		return fmt.Errorf("%w: --resolver %q: HOST:PORT", errUsage, o.Resolver)
	}
	return nil
}

func hostPort(s string) bool {
	h, p, err := net.SplitHostPort(s)
	n, perr := strconv.Atoi(p)
	return err == nil && perr == nil && h != "" && n > 0 && n < 1<<16
}

// smarthost parts the credentials from the address. A password may hold an @.
func (o Options) smarthost() (auth, hostport string) {
	i := strings.LastIndexByte(o.Smarthost, '@')
	if i < 0 {
		return "", o.Smarthost
	}
	return o.Smarthost[:i], o.Smarthost[i+1:]
}

// addresses lists all mail users with their passwords.
func (o Options) addresses() (addrs, passwords []string) {
	for _, u := range o.Users {
		name, pw, _ := strings.Cut(u, ":")
		if strings.Contains(name, "@") {
			addrs, passwords = append(addrs, name), append(passwords, pw)
			continue
		}
		for _, d := range o.Domains {
			addrs, passwords = append(addrs, name+"@"+d), append(passwords, pw)
		}
	}
	return addrs, passwords
}
