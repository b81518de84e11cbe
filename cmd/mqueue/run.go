package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/envelope"
	"pennypost/internal/sched"
	"pennypost/internal/serve"
	"pennypost/internal/spool"
)

func runFlags() []urfave.Flag {
	return []urfave.Flag{
		cli.Config(),
		&urfave.BoolFlag{Name: "once", Usage: "attempt everything that is due, leave the next due time, end"},
		&urfave.BoolFlag{Name: "until-empty", Usage: "end when nothing is queued"},
		&urfave.BoolFlag{Name: "no-wait", Usage: "exit 75 when another scheduler runs, instead of waiting for its end"},
		&urfave.DurationFlag{Name: "grace", Value: 20 * time.Second, Usage: "how long attempts may go on after SIGTERM"},
	}
}

func run(c *urfave.Context) error {
	if c.NArg() > 0 {
		return cli.Usage("run takes no operands")
	}
	cfg, err := cli.Load(c)
	if err != nil {
		return err
	}
	if ownSpool(cfg) {
		if err := spool.Init(cfg.Spool); err != nil {
			return cli.Exit(envelope.ExCantCreat, err)
		}
	}
	sp, err := openSpool(cfg)
	if err != nil {
		return err
	}
	defer sp.Close()
	log, err := cli.Logger(cfg, "mqueue")
	if err != nil {
		return cli.Exit(envelope.ExConfig, err)
	}
	if c.Bool("once") {
		return once(c, cfg, sp, log)
	}
	return resident(c, cfg, sp, log)
}

// ownSpool tells whether a missing spool may be made without being asked for. Root making that
// of the whole machine would keep its proper owner out.
func ownSpool(cfg *config.Config) bool {
	_, err := os.Lstat(cfg.Spool)
	return errors.Is(err, fs.ErrNotExist) && (os.Geteuid() != 0 || cfg.Path != "" && cfg.Path != config.SystemFile)
}

// lock makes a scheduler with its workers.
func lock(cfg *config.Config, sp *spool.Spool, log *slog.Logger, o func(*sched.Options), wait bool) (*sched.Scheduler, func(), error) {
	opts, agents, err := options(cfg, sp, log)
	if err != nil {
		return nil, nil, cli.Exit(envelope.ExConfig, err)
	}
	o(&opts)
	s, err := sched.New(opts, wait)
	if err != nil {
		return nil, nil, err
	}
	return s, func() {
		if err := s.Close(); err != nil {
			log.Error("scheduler does not end cleanly", "err", err)
		}
		for _, a := range agents {
			a.Close()
		}
	}, nil
}

func resident(c *urfave.Context, cfg *config.Config, sp *spool.Spool, log *slog.Logger) error {
	// A backlog is nearly all live memory: collect earlier rather than hold twice of it.
	debug.SetGCPercent(40)
	passed, err := serve.Adopt()
	if err != nil {
		return cli.Exit(envelope.ExOSErr, err)
	}
	wake, err := adoptWake(passed)
	if err != nil {
		return cli.Exit(envelope.ExOSErr, err)
	}
	set := func(o *sched.Options) {
		o.Wake, o.Control = wake, passed.Stream
		o.UntilEmpty = c.Bool("until-empty")
		o.Grace = c.Duration("grace")
	}
	s, end, err := lock(cfg, sp, log, set, false)
	if errors.Is(err, spool.ErrLocked) && !c.Bool("no-wait") {
		log.Info("another scheduler runs; waiting for its end")
		s, end, err = lockWaiting(c.Context, cfg, sp, log, set)
	}
	if err != nil {
		if c.Context.Err() != nil {
			return nil
		}
		return err
	}
	defer end()
	stop := reload(cfg, s, log)
	defer stop()
	log.Info("scheduler runs", "spool", cfg.Spool)
	err = s.Run(c.Context, serve.Ready)
	log.Info("scheduler ends")
	return err
}

// lockWaiting asks for the lock until it is given or the process is told to end. Blocking in the
// kernel would not notice the latter.
func lockWaiting(ctx context.Context, cfg *config.Config, sp *spool.Spool, log *slog.Logger, set func(*sched.Options)) (*sched.Scheduler, func(), error) {
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-t.C:
		}
		s, end, err := lock(cfg, sp, log, set, false)
		if !errors.Is(err, spool.ErrLocked) {
			return s, end, err
		}
	}
}

func adoptWake(p serve.PassedSockets) (*spool.Wake, error) {
	if p.Datagram == nil {
		return nil, nil
	}
	f, err := p.Datagram.File()
	if err != nil {
		return nil, err
	}
	fd, err := syscall.Dup(int(f.Fd())) // f closes its own when collected
	if err != nil {
		return nil, fmt.Errorf("wake-up socket: %w", err)
	}
	syscall.CloseOnExec(fd)
	if err := errors.Join(f.Close(), p.Datagram.Close()); err != nil {
		return nil, err
	}
	return spool.AdoptWake(uintptr(fd))
}

// reload reads the route table anew at SIGHUP; everything else needs a restart.
func reload(cfg *config.Config, s *sched.Scheduler, log *slog.Logger) (stop func()) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	go func() {
		for range hup {
			c, err := config.Load(cfg.Path)
			var routes []sched.Route
			var smart *sched.Target
			if err == nil {
				routes, smart, err = routesOf(c)
			}
			if err != nil {
				log.Error("configuration is not taken: the route table stays", "err", err)
				continue
			}
			s.SetRoutes(routes, c.Domains, smart)
			log.Info("route table read anew")
		}
	}()
	return func() { signal.Stop(hup); close(hup) }
}

// once is for cron and timers: it works off what is due, or tells the running scheduler to look.
func once(c *urfave.Context, cfg *config.Config, sp *spool.Spool, log *slog.Logger) error {
	for range 20 {
		s, end, err := lock(cfg, sp, log, func(*sched.Options) {}, false)
		if err == nil {
			defer end()
			return s.Once(c.Context)
		}
		if !errors.Is(err, spool.ErrLocked) {
			return err
		}
		_, err = sched.Ask(c.Context, sp.ControlPath(), &sched.Command{Verb: "ping"}, &output{Writer: c.App.Writer, err: c.App.ErrWriter, name: "mqueue run"})
		if !errors.Is(err, sched.ErrNoScheduler) {
			return err
		}
		pause()
	}
	return cli.Exit(envelope.ExTempFail, errors.New("another scheduler holds the lock and does not answer"))
}

func pause() { time.Sleep(50 * time.Millisecond) }

// direct executes a command in place of the scheduler that does not run.
func direct(c *urfave.Context, cfg *config.Config, cmd *sched.Command, out sched.Sink) (int, error) {
	sp, err := openSpool(cfg)
	if err != nil {
		return denied(cfg, err)
	}
	defer sp.Close()
	s, end, err := lock(cfg, sp, slog.New(slog.DiscardHandler), func(*sched.Options) {}, false)
	if err != nil {
		return denied(cfg, err)
	}
	defer end()
	if err := s.Prepare(); err != nil {
		return 0, err
	}
	status, err := s.Do(c.Context, cmd, sched.Who{UID: os.Geteuid(), Admin: true}, out)
	return status, errors.Join(err, s.Finish())
}

// unreachable says that this user does not get as far as the scheduler's socket. Whether one
// runs cannot be told.
func unreachable(cfg *config.Config, err error) error {
	return fmt.Errorf("this user cannot reach the scheduler of the spool %s (%w): run mqueue as the spool's owner or as root; "+
		"where others are meant to use it, chmod a+x the spool and the directories above it", cfg.Spool, err)
}

// denied gives an error of opening the spool its status.
func denied(cfg *config.Config, err error) (int, error) {
	if errors.Is(err, fs.ErrPermission) {
		return envelope.ExNoPerm, fmt.Errorf("no scheduler runs, and the spool %s is not yours: start mqueue run as its owner", cfg.Spool)
	}
	return 0, err
}
