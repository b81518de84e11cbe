package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/envelope"
	"pennypost/internal/serve"
	"pennypost/internal/worker"
)

// Work serves mqueue by mworker(7), as the worker called name with one ability, until mqueue
// goes away or ctx ends. handler makes the one who does the work; it gets the log.
func Work(ctx context.Context, a cli.Serving, cfg *config.Config, name, ability string, handler func(*slog.Logger) worker.Handler) error {
	log, err := openLog(cli.Serving{}, cfg, name)
	if err != nil {
		return err
	}
	o := serve.WorkerOptions{Spool: cfg.Spool, Log: log}
	switch {
	case len(a.Listen) > 1:
		return cli.Usage("a worker serves one socket: one --listen")
	case len(a.Listen) == 1:
		o.Listen = a.Listen[0]
	default:
		o.Pair = a.Worker
	}
	if a.Idle != nil {
		o.Idle = *a.Idle
	}
	hello := worker.Hello{Versions: []int{worker.Version}, Name: name, Abilities: []string{ability}}
	handle := handler(log)
	err = serve.Worker(ctx, o, func(ctx context.Context, conn *net.UnixConn) error {
		return worker.Serve(ctx, conn, hello, handle, 0)
	})
	if err != nil && ctx.Err() == nil {
		return cli.Exit(envelope.ExOSErr, fmt.Errorf("worker: %w", err))
	}
	return nil
}
