// Package cli is the frame of every command: it wraps the flag library once, so that its traps
// are closed for all tools alike. It owns --help and --version, turns errors into exit statuses,
// ends the context on SIGINT and SIGTERM, opens the log and loads the configuration.
// Only cmd/ uses it.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/config"
	"pennypost/internal/envelope"
)

// Main runs the app with the arguments and streams of the process and ends the process.
func Main(app *urfave.App) { os.Exit(Run(newSignalContext(), app, os.Args)) }

// Run is Main without the process around it: it returns the exit status. Streams that the app
// does not set are those of the process.
func Run(ctx context.Context, app *urfave.App, args []string) int {
	if app.Writer == nil {
		app.Writer = os.Stdout
	}
	if app.ErrWriter == nil {
		app.ErrWriter = os.Stderr
	}
	out := &stickyWriter{w: app.Writer}
	app.Writer = out
	frame(app, args)
	err := app.RunContext(ctx, args)
	if errors.Is(err, errDone) {
		err = nil
	}
	switch {
	case out.err == nil:
	case err == nil:
		err = Exit(envelope.ExIOErr, fmt.Errorf("standard output: %w", out.err))
	case errors.Is(err, out.err): // a tool that looked at its own writes ends with the same status
		err = Exit(envelope.ExIOErr, err)
	}
	if err == nil {
		return envelope.ExOK
	}
	if msg := err.Error(); msg != "" {
		// Ignored: there is no further place to complain about a broken stderr.
		_, _ = fmt.Fprintf(app.ErrWriter, "%s: %s\n", app.Name, oneLine(msg))
	}
	return Status(err)
}

// errDone ends a run after --help or --version: nothing more to do, exit 0.
var errDone = errors.New("")

// frame closes the traps of the flag library on the app and on every command below it.
func frame(app *urfave.App, args []string) {
	// The library answers --help itself as long as this is set, even with HideHelp, and takes an
	// operand behind it for a topic.
	urfave.HelpFlag = nil
	app.HideHelp, app.HideHelpCommand, app.HideVersion = true, true, true
	app.UseShortOptionHandling = true
	app.Compiled = time.Unix(1, 0)       // unset, the library looks up the date of os.Args[0], at each start
	app.DisableSliceFlagSeparator = true // a comma is a character of an address
	app.ExitErrHandler = func(*urfave.Context, error) {}
	app.OnUsageError = usageError
	app.CommandNotFound = nil
	app.Flags = append(app.Flags, helpFlag(), &urfave.BoolFlag{Name: "version", Usage: "print the version and exit"})
	keepSpace(app.Flags)
	app.Before = before(app.Before, func(w io.Writer) { helpApp(w, app) })
	app.Action = action(app.Action, args, len(app.Commands) > 0)
	for _, c := range app.Commands {
		frameCommand(c, args, app.Name)
	}
}

func frameCommand(c *urfave.Command, args []string, path string) {
	c.HideHelp, c.HideHelpCommand = true, true
	c.UseShortOptionHandling = true
	c.OnUsageError = usageError
	c.Flags = append(c.Flags, helpFlag())
	keepSpace(c.Flags)
	path += " " + c.Name
	c.Before = before(c.Before, func(w io.Writer) { helpCommand(w, c, path) })
	c.Action = action(c.Action, args, len(c.Subcommands) > 0)
	for _, s := range c.Subcommands {
		frameCommand(s, args, path)
	}
}

// keepSpace stops the library from trimming the values of flags that may be repeated.
func keepSpace(flags []urfave.Flag) {
	for _, f := range flags {
		if s, ok := f.(*urfave.StringSliceFlag); ok {
			s.KeepSpace = true
		}
	}
}

func helpFlag() urfave.Flag {
	return &urfave.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "print this help and exit"}
}

// before answers --help and --version. It stands before the dispatch to sub-commands, so that
// "mqueue --help list" is answered too.
func before(next urfave.BeforeFunc, help func(io.Writer)) urfave.BeforeFunc {
	return func(c *urfave.Context) error {
		if c.Bool("help") {
			help(c.App.Writer)
			return errDone
		}
		if c.Bool("version") {
			fmt.Fprintf(c.App.Writer, "%s (pennypost) %s\n", c.App.Name, FullVersion())
			return errDone
		}
		if next != nil {
			return next(c)
		}
		return nil
	}
}

// action refuses what the library would let pass silently: an option behind the operands, and
// an unknown sub-command.
func action(next urfave.ActionFunc, args []string, hasCommands bool) urfave.ActionFunc {
	return func(c *urfave.Context) error {
		operands := c.Args().Slice()
		if next == nil {
			if len(operands) == 0 {
				return Usage("no command given (%s --help lists them)", c.App.Name)
			}
			return Usage("unknown command %q (%s --help lists them)", operands[0], c.App.Name)
		}
		// The library drops a leading "--"; the raw arguments still have it.
		first := len(args) - len(operands)
		if first > 0 && len(operands) > 0 && args[first-1] == "--" {
			return next(c)
		}
		for _, o := range operands {
			if len(o) > 1 && o[0] == '-' {
				return Usage("%q after the operands: options stand before them (-- ends options)", o)
			}
		}
		return next(c)
	}
}

// usageError rewrites the flag library's message into one of ours. The library would print the
// whole manual to stdout, where a pipe takes it for the result.
func usageError(c *urfave.Context, err error, _ bool) error {
	msg := err.Error()
	if name, ok := strings.CutPrefix(msg, "flag provided but not defined: -"); ok {
		return Usage("%s: unknown option (%s --help lists them)", dashed(name), c.App.Name)
	}
	if name, ok := strings.CutPrefix(msg, "flag needs an argument: -"); ok {
		return Usage("%s: needs a value", dashed(name))
	}
	return Usage("%s", msg)
}

func dashed(name string) string {
	name = strings.TrimLeft(name, "-")
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// Config is the --config flag, which every tool has.
func Config() urfave.Flag {
	return &urfave.StringFlag{Name: "config", Usage: "read `FILE` instead of the usual configuration"}
}

// JSON is the --json flag: one object a line.
func JSON() urfave.Flag {
	return &urfave.BoolFlag{Name: "json", Usage: "print one JSON object a line"}
}

// DryRun is the --dry-run flag of tools that change something.
func DryRun() urfave.Flag {
	return &urfave.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "say what would be done, change nothing"}
}

// Bool tells whether a boolean flag is set on the command or on any command above it. The
// library's own look-up stops at the first command that defines the flag, so that
// "mqueue --json list" would lose its --json.
func Bool(c *urfave.Context, name string) bool {
	for _, l := range c.Lineage() {
		if l.Command != nil && l.Bool(name) {
			return true
		}
	}
	return false
}

// String returns the value of a flag set on the command or on the nearest command above it.
func String(c *urfave.Context, name string) string {
	for _, l := range c.Lineage() {
		if l.Command != nil && l.IsSet(name) {
			return l.String(name)
		}
	}
	return c.String(name)
}

// Load reads the configuration that --config, the environment or the usual places name.
func Load(c *urfave.Context) (*config.Config, error) {
	cfg, err := config.Load(String(c, "config"))
	if err != nil {
		return nil, Exit(envelope.ExConfig, err)
	}
	return cfg, nil
}

// stickyWriter keeps the first write error, so that a full disk behind stdout is no success.
type stickyWriter struct {
	w   io.Writer
	err error
}

func (s *stickyWriter) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil && s.err == nil {
		s.err = err
	}
	return n, err
}
