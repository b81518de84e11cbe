package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/envelope"
	"pennypost/internal/relay"
	"pennypost/internal/resolve"
	"pennypost/internal/worker"
)

// job is one call by hand: recipients grouped by next hop.
type job struct {
	o     relay.Options
	from  string
	hops  []string // in order of appearance
	to    map[string][]envelope.Recipient
	order []string // recipients as given
}

func newJob(c *urfave.Context, cfg *config.Config) (*job, error) {
	if c.NArg() == 0 {
		return nil, cli.Usage("no recipient given")
	}
	if !c.IsSet("from") {
		return nil, cli.Usage("no reverse-path given: -f ADDRESS, or -f \"\" for the null reverse-path")
	}
	j := &job{o: options(c, cfg), to: map[string][]envelope.Recipient{}}
	if f := c.String("from"); f != "" && f != "<>" {
		a, err := envelope.ParseAddress(f)
		if err != nil {
			return nil, cli.Exit(envelope.ExDataErr, err)
		}
		j.from = a.String()
	}
	to := c.String("to")
	if c.Bool("lmtp") {
		if to == "" {
			return nil, cli.Usage("--lmtp needs --to")
		}
		to = "lmtp:" + strings.TrimPrefix(to, "lmtp:")
	}
	for _, arg := range c.Args().Slice() {
		a, err := envelope.ParseAddress(arg)
		if err != nil {
			return nil, cli.Exit(envelope.ExDataErr, err)
		}
		hop := to
		if hop == "" {
			hop = envelope.FoldDomain(a.Domain)
		}
		if j.to[hop] == nil {
			j.hops = append(j.hops, hop)
		}
		j.to[hop] = append(j.to[hop], envelope.Recipient{Addr: a.String()})
		j.order = append(j.order, a.String())
	}
	if f := c.String("auth-file"); f != "" {
		if to == "" {
			return nil, cli.Usage("--auth-file needs --to: a password is meant for one host")
		}
		j.o.Hops[to] = relay.Policy{Auth: f, TLS: c.String("tls")}
	} else if p := c.String("tls"); p != "" {
		for _, h := range j.hops {
			j.o.Hops[h] = relay.Policy{Auth: j.o.Hops[h].Auth, TLS: p}
		}
	}
	return j, nil
}

// run makes the attempts, one for each next hop, and prints one line for each recipient.
func (j *job) run(c *urfave.Context) error {
	f, off, size, err := message(os.Stdin)
	if err != nil {
		return cli.Exit(envelope.ExIOErr, fmt.Errorf("standard input: %w", err))
	}
	defer f.Close()
	r := relay.New(j.o)
	results := make(map[string][]worker.Result) // by address, which may be given twice
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, 10)
	for i, hop := range j.hops {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			rep := r.Handle(c.Context, &worker.Request{
				Seq: uint64(i), ID: "-", Attempt: 1, From: j.from, To: j.to[hop], NextHop: hop,
				Offset: off, Size: size, EOL: envelope.EOLLF, UTF8: true, Time: time.Now(),
			}, f)
			mu.Lock()
			defer mu.Unlock()
			for _, res := range rep.Results {
				results[res.To] = append(results[res.To], res)
			}
		})
	}
	wg.Wait()
	worst := envelope.ExOK
	for _, addr := range j.order {
		res := results[addr][0]
		results[addr] = results[addr][1:]
		if st := res.ToExit(); worst == envelope.ExOK || st == envelope.ExTempFail {
			worst = st
		}
		if err := printResult(c, &res); err != nil {
			return cli.Exit(envelope.ExIOErr, err)
		}
	}
	r.Close()
	return cli.Exit(worst, nil)
}

// printResult writes verdict, code, next hop, reply and, last, the address.
func printResult(c *urfave.Context, res *worker.Result) error {
	if c.Bool("json") {
		return cli.PrintJSON(c.App.Writer, res)
	}
	hop := res.Relay
	if hop == "" {
		hop = "-"
	}
	_, err := fmt.Fprintf(c.App.Writer, "%s %s %s %s %s\n", res.Verdict, res.Code,
		cli.Escape(hop, ' '), cli.Escape(res.Reply, 0), cli.Escape(res.To, ' '))
	return err
}

// message returns the message on standard input as a file to be read at offsets. What cannot
// be read twice is copied to a file without a name first.
func message(in *os.File) (f *os.File, off, size int64, err error) {
	if st, err := in.Stat(); err == nil && st.Mode().IsRegular() {
		if off, err := in.Seek(0, io.SeekCurrent); err == nil {
			return in, off, max(st.Size()-off, 0), nil
		}
	}
	if f, err = os.CreateTemp("", "mrelay"); err != nil {
		return nil, 0, 0, err
	}
	// Nobody else needs the name, and without it nothing is left behind.
	if err = os.Remove(f.Name()); err == nil {
		size, err = io.Copy(f, in)
	}
	if err != nil {
		return nil, 0, 0, errors.Join(err, f.Close())
	}
	return f, 0, size, nil
}

// planned is one host of --dry-run.
type planned struct {
	To    string       `json:"to"`
	Hop   string       `json:"next_hop"`
	Pref  int          `json:"pref"`
	Host  string       `json:"host"`
	Addrs []netip.Addr `json:"addrs"`
	Port  int          `json:"port,omitempty"`
	TLS   string       `json:"tls"`
	Auth  bool         `json:"auth"`
	LMTP  bool         `json:"lmtp"`
	Err   string       `json:"err,omitempty"`
}

// plan prints where the message would go: one line for each recipient and host, best first.
func (j *job) plan(c *urfave.Context) error {
	r := relay.New(j.o)
	status := envelope.ExOK
	for _, hop := range j.hops {
		p, err := r.Plan(c.Context, hop)
		if err != nil {
			st := planStatus(err)
			if status == envelope.ExOK || st.ToExit() == envelope.ExTempFail {
				status = st.ToExit()
			}
			p.Hosts = []resolve.Host{{Name: hop, Err: err}}
		}
		for _, to := range j.to[hop] {
			for _, h := range p.Hosts {
				l := planned{To: to.Addr, Hop: hop, Pref: h.Pref, Host: h.Name, Addrs: h.Addrs, Port: p.Port, TLS: p.TLS, Auth: p.Auth != "", LMTP: p.LMTP}
				if h.Err != nil {
					l.Err = planStatus(h.Err).Reply
				}
				if err := l.print(c); err != nil {
					return cli.Exit(envelope.ExIOErr, err)
				}
			}
		}
	}
	return cli.Exit(status, nil)
}

func (l *planned) print(c *urfave.Context) error {
	if c.Bool("json") {
		return cli.PrintJSON(c.App.Writer, l)
	}
	addrs := make([]string, 0, len(l.Addrs))
	for _, a := range l.Addrs {
		addrs = append(addrs, netip.AddrPortFrom(a, uint16(l.Port)).String())
	}
	where := strings.Join(addrs, ",")
	if where == "" {
		where = "-"
	}
	if l.Err != "" {
		where += " " + cli.Escape(l.Err, 0)
	}
	_, err := fmt.Fprintf(c.App.Writer, "%s %s %s %s %s\n", strconv.Itoa(l.Pref), cli.Escape(l.Host, ' '), l.TLS, where, cli.Escape(l.To, ' '))
	return err
}

func planStatus(err error) envelope.Status {
	var e *resolve.Error
	if errors.As(err, &e) {
		return e.Status
	}
	if errors.Is(err, context.Canceled) {
		return envelope.Defer("4.3.0", err.Error())
	}
	return envelope.Defer("4.3.5", err.Error())
}
