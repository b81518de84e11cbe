package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/envelope"
	"pennypost/internal/sched"
	"pennypost/internal/spool"
	"pennypost/internal/submit"
	"pennypost/internal/worker"
)

func openSpool(cfg *config.Config) (*spool.Spool, error) {
	o := spool.Options{Now: cfg.Now(), FreeSpace: cfg.Limits.FreeSpace, FreeInodes: cfg.Limits.FreeInodes, Trusted: trusted()}
	sp, err := spool.Open(cfg.Spool, o)
	if errors.Is(err, spool.ErrNoSpool) {
		return nil, cli.Exit(envelope.ExConfig, err)
	}
	return sp, err
}

// trusted tells of a submitter whether his word about a message's origin counts: that of the
// daemons of pennypost(7), where they exist. The list of users is read when there is one to tell
// of: most commands see none, and reading it takes as long as the rest of what they do.
func trusted() func(uid uint32) bool {
	uids := sync.OnceValue(func() []string {
		var uids []string
		for _, name := range []string{"pp-smtp", "pp-queue"} {
			if u, err := user.Lookup(name); err == nil {
				uids = append(uids, u.Uid)
			}
		}
		return uids
	})
	return func(uid uint32) bool { return slices.Contains(uids(), strconv.FormatUint(uint64(uid), 10)) }
}

// options turns the configuration into the scheduler's options, with an agent for each worker.
func options(cfg *config.Config, sp *spool.Spool, log *slog.Logger) (sched.Options, []*worker.Agent, error) {
	routes, smart, err := routesOf(cfg)
	if err != nil {
		return sched.Options{}, nil, err
	}
	workers, agents, err := workersOf(cfg, log)
	if err != nil {
		return sched.Options{}, nil, err
	}
	notice := time.Duration(cfg.Queue.DelayNotice)
	if notice == 0 {
		notice = -1
	}
	return sched.Options{
		Spool:    sp,
		Submit:   submit.New(submit.Options{Spool: sp, Hostname: cfg.Hostname, MaxHops: cfg.Limits.Hops, Now: cfg.Now()}),
		Hostname: cfg.Hostname, Postmaster: cfg.Postmaster, Domains: cfg.Domains, Routes: routes, Smarthost: smart, Workers: workers,
		Retry: durations(cfg.Queue.Retry), Expiry: time.Duration(cfg.Queue.Expiry), DelayNotice: notice,
		Scan: time.Duration(cfg.Queue.Scan), History: time.Duration(cfg.Queue.History),
		PerHop: cfg.Queue.PerHop, Total: cfg.Queue.Total, DSNRate: cfg.Queue.DSNRate,
		Admin: inGroup(cfg.AdminGroup), Now: cfg.Now(), Log: log,
	}, agents, nil
}

func durations(in []config.Duration) []time.Duration {
	if in == nil {
		return nil
	}
	out := make([]time.Duration, len(in))
	for i, d := range in {
		out[i] = time.Duration(d)
	}
	return out
}

func routesOf(cfg *config.Config) ([]sched.Route, *sched.Target, error) {
	routes := make([]sched.Route, 0, len(cfg.Routes))
	for _, r := range cfg.Routes {
		t := sched.Target{Worker: r.Worker}
		if r.Worker == "" {
			var err error
			if t, err = sched.ParseTarget(r.To); err != nil {
				return nil, nil, fmt.Errorf("route for %q: %w", r.Match, err)
			}
		}
		t.Auth, t.TLS, t.Retry, t.Expiry = r.Auth, r.TLS, durations(r.Retry), time.Duration(r.Expiry)
		routes = append(routes, sched.Route{Match: r.Match, Target: t})
	}
	if cfg.Relay.Smarthost == "" {
		return routes, nil, nil
	}
	t, err := sched.ParseTarget(cfg.Relay.Smarthost)
	if err != nil {
		return nil, nil, fmt.Errorf("relay.smarthost: %w", err)
	}
	t.Auth, t.TLS = cfg.Relay.Auth, cfg.Relay.TLS
	return routes, &t, nil
}

// workersOf makes the agents: mdeliver and mrelay as children unless configured otherwise, and
// those the configuration adds.
func workersOf(cfg *config.Config, log *slog.Logger) (map[string]sched.Worker, []*worker.Agent, error) {
	list := []config.Worker{
		{Name: sched.Local, Command: child(cfg, "mdeliver"), Max: 50, Timeout: config.Duration(30 * time.Minute)},
		{Name: sched.Relay, Command: child(cfg, "mrelay"), Max: cfg.Queue.Total, Timeout: config.Duration(30 * time.Minute)},
	}
	for _, w := range cfg.Workers {
		if i := slices.IndexFunc(list, func(d config.Worker) bool { return d.Name == w.Name }); i >= 0 {
			list[i] = w
		} else {
			list = append(list, w)
		}
	}
	out := make(map[string]sched.Worker, len(list))
	var agents []*worker.Agent
	for _, w := range list {
		uid, err := uidOf(w.User)
		if err != nil {
			return nil, nil, fmt.Errorf("worker %s: %w", w.Name, err)
		}
		a := worker.NewAgent(worker.Spec{
			Name: w.Name, Socket: w.Socket, Command: w.Command, Filter: w.Filter, UID: uid,
			Timeout: time.Duration(w.Timeout), Stderr: os.Stderr, Log: log,
		})
		agents = append(agents, a)
		out[w.Name] = sched.Worker{Do: a, Max: w.Max}
	}
	return out, agents, nil
}

// child is the command line of one of our own tools as a worker. The one beside this binary
// goes before one on the path: they are of the same release.
func child(cfg *config.Config, name string) []string {
	path := name
	if exe, err := os.Executable(); err == nil {
		if p := filepath.Join(filepath.Dir(exe), name); executable(p) {
			path = p
		}
	}
	if path == name {
		if p, err := exec.LookPath(name); err == nil {
			path = p
		}
	}
	args := []string{path, "--worker"}
	if cfg.Path != "" {
		args = append(args, "--config", cfg.Path)
	}
	return args
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// uidOf looks up a user's number; -1 when none is named.
func uidOf(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	if n, err := strconv.Atoi(name); err == nil {
		return n, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return -1, err
	}
	return strconv.Atoi(u.Uid)
}

// inGroup tells whether a user belongs to the group. A group that does not exist has no members.
func inGroup(name string) func(uid int) bool {
	return func(uid int) bool {
		if name == "" {
			return false
		}
		g, err := user.LookupGroup(name)
		if err != nil {
			return false
		}
		u, err := user.LookupId(strconv.Itoa(uid))
		if err != nil {
			return false
		}
		ids, err := u.GroupIds()
		return err == nil && slices.Contains(ids, g.Gid)
	}
}

func initFlags() []urfave.Flag {
	return []urfave.Flag{
		cli.Config(), cli.DryRun(),
		&urfave.StringFlag{Name: "group", Usage: "let members of `GROUP` put messages into the spool"},
		&urfave.StringFlag{Name: "owner", Usage: "give the spool to `USER` (as root)"},
	}
}

// initSpool makes the spool's directories, or puts their rights in order.
func initSpool(c *urfave.Context) error {
	if c.NArg() > 0 {
		return cli.Usage("init takes no operands: the spool is the one of the configuration")
	}
	cfg, err := cli.Load(c)
	if err != nil {
		return err
	}
	gid := -1
	if name := c.String("group"); name != "" {
		if gid, err = gidOf(name); err != nil {
			return cli.Exit(envelope.ExConfig, err)
		}
	}
	owner, err := uidOf(c.String("owner"))
	if err != nil {
		return cli.Exit(envelope.ExConfig, err)
	}
	if cli.Bool(c, "dry-run") {
		_, err := fmt.Fprintf(c.App.Writer, "would make the spool %s\n", cfg.Spool)
		return err
	}
	if err := spool.InitGroup(cfg.Spool, gid); err != nil {
		return cli.Exit(envelope.ExCantCreat, err)
	}
	if owner < 0 {
		return nil
	}
	return filepath.WalkDir(cfg.Spool, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if err := os.Lchown(path, owner, -1); err != nil {
			return err
		}
		if d.IsDir() { // chown takes the set-group-ID bit away
			return os.Chmod(path, info.Mode()&(fs.ModePerm|fs.ModeSetgid|fs.ModeSticky))
		}
		return nil
	})
}

func gidOf(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return -1, err
	}
	return strconv.Atoi(g.Gid)
}
