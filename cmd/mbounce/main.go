// Command mbounce writes a delivery status notification from a report, and reads one.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/dsn"
	"pennypost/internal/envelope"
)

func main() { cli.Main(app()) }

func app() *urfave.App {
	return &urfave.App{
		Name: "mbounce", Usage: "write a delivery status notification from a report",
		Flags: []urfave.Flag{
			cli.Config(),
			&urfave.StringFlag{Name: "from", Aliases: []string{"f"}, Usage: "reverse-`PATH` of the message, which gets the notification"},
			&urfave.StringFlag{Name: "report", Aliases: []string{"r"}, Usage: "read the report from `FILE` (- is standard input)"},
			&urfave.StringFlag{Name: "message", Aliases: []string{"m"}, Usage: "read the message from `FILE` (- is standard input)"},
			&urfave.StringFlag{Name: "kind", Aliases: []string{"k"}, Value: "failure", Usage: "`KIND` of notification: failure, delay or success"},
			&urfave.BoolFlag{Name: "full", Usage: "return the whole message, not only its header"},
			&urfave.StringFlag{Name: "envid", Usage: "envelope `ID` the sender gave (ENVID)"},
		},
		Commands: []*urfave.Command{{
			Name: "parse", Usage: "read a notification and print it as one JSON object",
			Flags:  []urfave.Flag{cli.JSON()},
			Action: parse,
		}},
		Action: bounce,
	}
}

func parse(c *urfave.Context) error {
	if c.NArg() > 0 {
		return cli.Usage("%q: the message is read from standard input", c.Args().First())
	}
	p, err := dsn.Parse(os.Stdin)
	switch {
	case errors.Is(err, dsn.ErrNoReport):
		return cli.Exit(envelope.ExDataErr, fmt.Errorf("standard input: %w", err))
	case err != nil:
		return cli.Exit(envelope.ExIOErr, fmt.Errorf("standard input: %w", err))
	}
	return cli.PrintJSON(c.App.Writer, p)
}

func bounce(c *urfave.Context) error {
	o, err := optionsOf(c)
	if err != nil {
		return err
	}
	cfg, err := cli.Load(c)
	if err != nil {
		return err
	}
	o.hostname, o.postmaster, o.now = cfg.Hostname, cfg.Postmaster, cfg.Now()()
	report, err := open(o.report)
	if err != nil {
		return err
	}
	defer report.Close()
	message, err := open(o.message)
	if err != nil {
		return err
	}
	defer message.Close()
	return write(c.App.Writer, o, report, message)
}

// optionsOf reads the flags of the tool itself.
func optionsOf(c *urfave.Context) (options, error) {
	o := options{
		kind: dsn.Kind(c.String("kind")), report: c.String("report"), message: c.String("message"),
		full: c.Bool("full"), envid: c.String("envid"),
	}
	switch {
	case c.NArg() > 0:
		return o, cli.Usage("unknown command %q", c.Args().First())
	case !c.IsSet("from"):
		return o, cli.Usage("no reverse-path: --from names who sent the message")
	case o.kind != dsn.Failure && o.kind != dsn.Delay && o.kind != dsn.Success:
		return o, cli.Usage("--kind %q: failure, delay or success", string(o.kind))
	case o.report == "" && o.message == "":
		return o, cli.Usage("report and message cannot both come from standard input: name one with --report or --message")
	case o.report == "-" && o.message == "-":
		return o, cli.Usage("report and message cannot both come from standard input")
	}
	if o.report == "" {
		o.report = "-"
	}
	if o.message == "" {
		o.message = "-"
	}
	from := strings.TrimSuffix(strings.TrimPrefix(c.String("from"), "<"), ">")
	if from != "" {
		a, err := envelope.ParseAddress(from)
		if err != nil {
			return o, cli.Exit(envelope.ExDataErr, fmt.Errorf("--from: %w", err))
		}
		o.from = a.String()
	}
	return o, nil
}

func open(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(os.Stdin), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, cli.Exit(envelope.ExNoInput, err)
	}
	return f, nil
}
