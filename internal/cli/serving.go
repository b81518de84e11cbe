package cli

import (
	"time"

	urfave "github.com/urfave/cli/v2"
)

// Serving is what a command line says of how a daemon gets its connections.
type Serving struct {
	Role     string         // --role: of sockets without one
	Listen   []string       // --listen, as given
	Idle     *time.Duration // --idle; nil: not given
	NotifyFd int            // --notify-fd; 0: none
	Worker   bool           // --worker
	JSON     bool           // --json: the log is JSON
}

// Listen is the --listen flag of a daemon; what says what it takes.
func Listen(what string) urfave.Flag {
	return &urfave.StringSliceFlag{Name: "listen", Usage: what}
}

// Idle is the --idle flag of a daemon.
func Idle() urfave.Flag {
	return &urfave.DurationFlag{Name: "idle", Usage: "end an activated process after `TIME` without a client (0: never)"}
}

// NotifyFd is the --notify-fd flag of a daemon.
func NotifyFd() urfave.Flag {
	return &urfave.IntFlag{Name: "notify-fd", Usage: "write a newline to descriptor `N` when ready"}
}

// Role is the --role flag of a daemon with several; names lists them.
func Role(names string) urfave.Flag {
	return &urfave.StringFlag{Name: "role", Usage: "`ROLE` of sockets without one: " + names}
}

// WorkerFlag is the --worker flag of those who serve mqueue.
func WorkerFlag() urfave.Flag {
	return &urfave.BoolFlag{Name: "worker", Usage: "serve mqueue on the socket pair at descriptor 3, or on sockets passed by systemd"}
}

// ServingOf reads the flags above; one that the tool does not have is not set.
func ServingOf(c *urfave.Context) Serving {
	s := Serving{
		Role: c.String("role"), Listen: c.StringSlice("listen"), NotifyFd: c.Int("notify-fd"),
		Worker: c.Bool("worker"), JSON: c.Bool("json"),
	}
	if c.IsSet("idle") {
		d := c.Duration("idle")
		s.Idle = &d
	}
	return s
}
