package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/envelope"
	"pennypost/internal/sched"
	"pennypost/internal/spool"
)

// operandsOf returns the operands, with those on standard input in the place of "-": the first
// word of each line, so that lines of "mqueue list" can be piped in.
func operandsOf(c *urfave.Context) ([]string, error) {
	var ids []string
	for _, a := range c.Args().Slice() {
		if a != "-" {
			ids = append(ids, a)
			continue
		}
		sc := bufio.NewScanner(os.Stdin)
		for sc.Scan() {
			if f := strings.Fields(sc.Text()); len(f) > 0 {
				ids = append(ids, f[0])
			}
		}
		if err := sc.Err(); err != nil {
			return nil, cli.Exit(envelope.ExIOErr, fmt.Errorf("standard input: %w", err))
		}
	}
	return ids, nil
}

// output is where a verb's answer goes.
type output struct {
	io.Writer
	err  io.Writer
	name string
}

func (o *output) Raw(p []byte) error {
	_, err := o.Write(p)
	return err
}

func (o *output) Fail(err error) error {
	_, werr := fmt.Fprintf(o.err, "%s: %s\n", o.name, cli.Escape(err.Error(), 0))
	return werr
}

// ask has the running scheduler execute the command. When none runs, this process takes its
// place for the moment: the same code, under the same lock.
func ask(c *urfave.Context, cmd *sched.Command) error {
	cfg, err := cli.Load(c)
	if err != nil {
		return err
	}
	out := &output{Writer: c.App.Writer, err: c.App.ErrWriter, name: "mqueue " + cmd.Verb}
	for range 20 {
		// The spool itself is not opened for this: most users may not.
		status, err := sched.Ask(c.Context, filepath.Join(cfg.Spool, "control"), cmd, out)
		switch {
		case !errors.Is(err, sched.ErrNoScheduler):
			return exit(status, err)
		case errors.Is(err, fs.ErrPermission):
			return cli.Exit(envelope.ExNoPerm, unreachable(cfg, fs.ErrPermission))
		}
		status, err = direct(c, cfg, cmd, out)
		if !errors.Is(err, spool.ErrLocked) {
			return exit(status, err)
		}
		pause() // a scheduler is starting or ending
	}
	return cli.Exit(envelope.ExTempFail, errors.New("the scheduler holds its lock and does not answer at its control socket: is it starting?"))
}

// exit makes an error of a status; an error without one is a temporary failure.
func exit(status int, err error) error {
	if err != nil && status == envelope.ExOK {
		return err
	}
	return cli.Exit(status, err)
}
