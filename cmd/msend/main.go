// Command msend takes one message into the spool, or composes one from its flags. Called as
// sendmail, mailq or newaliases it behaves as these programs do, for those who expect them.
package main

import (
	"context"
	"os"
	"path/filepath"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
)

func main() {
	// The old names have their own options, which the flag library cannot read.
	switch name := filepath.Base(os.Args[0]); name {
	case "sendmail", "mailq", "newaliases":
		os.Exit(sendmail(name, os.Args[1:]))
	}
	// Not cli.Main: its handler for signals would only be in the way. An interrupt ends the process
	// at once, also while it waits for input, and the handler's threads are a fifth of the time
	// that msend takes. Only a message long enough to have a file in the spool is watched over.
	os.Exit(cli.Run(context.Background(), app(), os.Args))
}

func app() *urfave.App {
	return &urfave.App{
		Name: "msend", Usage: "queue one message for delivery", ArgsUsage: "[recipient ...]",
		Flags: []urfave.Flag{
			&urfave.BoolFlag{Name: "t", Usage: "take recipients from To, Cc and Bcc"},
			&urfave.StringFlag{Name: "f", Usage: "use `ADDRESS` as reverse-path; '<>' is the null one"},
			&urfave.StringFlag{Name: "from-name", Aliases: []string{"F"}, Usage: "put `NAME` into a From field that is added"},
			&urfave.StringFlag{Name: "subject", Aliases: []string{"s"}, Usage: "compose a message with the subject `TEXT`"},
			&urfave.StringSliceFlag{Name: "attach", Aliases: []string{"a"}, Usage: "attach `FILE`; - is standard input"},
			&urfave.StringFlag{Name: "attach-name", Usage: "name what -a - attaches `NAME`", Value: "stdin"},
			&urfave.StringSliceFlag{Name: "to", Usage: "compose: add `ADDRESS` to To"},
			&urfave.StringSliceFlag{Name: "cc", Usage: "compose: add `ADDRESS` to Cc"},
			&urfave.StringSliceFlag{Name: "bcc", Usage: "compose: send a copy to `ADDRESS`, unnamed"},
			&urfave.StringSliceFlag{Name: "notify", Usage: "ask for reports: `never`, success, failure, delay"},
			&urfave.StringFlag{Name: "ret", Usage: "reports return `hdrs` or full"},
			&urfave.StringFlag{Name: "envid", Usage: "reports name the envelope `ID`"},
			&urfave.BoolFlag{Name: "flush", Usage: "only hand on what waits in the own spool"},
			&urfave.BoolFlag{Name: "print-id", Aliases: []string{"v"}, Usage: "print the queue id"},
			cli.DryRun(), cli.JSON(), cli.Config(),
		},
		Action: action,
	}
}

func action(c *urfave.Context) error {
	cfg, err := cli.Load(c)
	if err != nil {
		return err
	}
	j := &job{
		cfg: cfg, tool: "msend", stdin: os.Stdin, stdout: c.App.Writer, stderr: c.App.ErrWriter,
		extract: c.Bool("t"), name: c.String("from-name"), to: c.Args().Slice(),
		ret: c.String("ret"), envid: c.String("envid"), notify: c.StringSlice("notify"),
		printID: c.Bool("print-id"), json: c.Bool("json"), dryRun: c.Bool("dry-run"),
	}
	if c.IsSet("f") {
		from := c.String("f")
		j.from = &from
	}
	if c.Bool("flush") {
		if c.NArg() > 0 {
			return cli.Usage("--flush takes no recipients")
		}
		return j.flush(c.Context)
	}
	for _, name := range []string{"subject", "attach", "to", "cc", "bcc"} {
		if c.IsSet(name) {
			j.compose = &letter{
				subject: c.String("subject"), files: c.StringSlice("attach"), stdinName: c.String("attach-name"),
				to: c.StringSlice("to"), cc: c.StringSlice("cc"), bcc: c.StringSlice("bcc"),
			}
		}
	}
	if j.compose != nil && j.extract {
		return cli.Usage("-t reads a finished message; -s, -a, --to, --cc and --bcc compose one")
	}
	return j.run(c.Context)
}
