// Command mqueue looks at and changes the queue, and runs it.
package main

import (
	"strings"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/sched"
)

func main() { cli.Main(app()) }

func app() *urfave.App {
	return &urfave.App{
		Name: "mqueue", Usage: "look at, change and run the queue",
		Flags: []urfave.Flag{cli.Config(), cli.JSON()},
		Commands: []*urfave.Command{
			{Name: "run", Usage: "deliver what is queued, and what comes", Flags: runFlags(), Action: run},
			verb("list", "print one line a message", "[id ...]", false),
			verb("show", "print envelope and state", "id ...", true),
			verb("cat", "print the message itself", "id ...", true),
			verb("explain", "tell what happened, what will, and what can be done", "id|address ...", true),
			verb("hold", "stop work on messages", "id ...", true, cli.DryRun()),
			verb("release", "let held messages go on", "id ...", true, cli.DryRun()),
			verb("retry", "make messages due now", "id ...", true, cli.DryRun()),
			verb("rm", "remove messages, or some recipients, without a report", "id ...", true, cli.DryRun(), recipientFlag()),
			verb("bounce", "return messages, or some recipients, to the sender", "id ...", true, cli.DryRun(), recipientFlag(),
				&urfave.StringFlag{Name: "why", Usage: "`TEXT` for the report"}),
			verb("flush", "make all due now, or those for a domain or next hop", "[domain|next-hop]", false, cli.DryRun()),
			verb("stats", "print totals and next hops", "", false),
			{
				Name: "route", Usage: "print where addresses go, or send messages another way", ArgsUsage: "address ... | --to HOP id ...",
				Flags: []urfave.Flag{
					cli.Config(), cli.JSON(), cli.DryRun(),
					&urfave.StringFlag{Name: "to", Usage: "next `HOP` for the messages named, \"\" for the route table's"},
				},
				Action: route,
			},
			{Name: "init", Usage: "make the spool", Flags: initFlags(), Action: initSpool},
		},
	}
}

func recipientFlag() urfave.Flag {
	return &urfave.StringSliceFlag{Name: "to", Usage: "only the recipient `ADDRESS` (may be repeated)"}
}

// verb is a command that is executed by the scheduler, or in its place.
func verb(name, usage, args string, operands bool, flags ...urfave.Flag) *urfave.Command {
	return &urfave.Command{
		Name: name, Usage: usage, ArgsUsage: args,
		Flags: append([]urfave.Flag{cli.Config(), cli.JSON()}, flags...),
		Action: func(c *urfave.Context) error {
			cmd := &sched.Command{Verb: name, JSON: cli.Bool(c, "json"), DryRun: cli.Bool(c, "dry-run"), Why: c.String("why")}
			if len(flags) > 1 {
				cmd.Addrs = c.StringSlice("to")
			}
			ids, err := operandsOf(c)
			if err != nil {
				return err
			}
			if name == "flush" {
				if len(ids) > 1 {
					return cli.Usage("flush takes one domain or next hop")
				}
				cmd.Target, ids = strings.Join(ids, ""), nil
			}
			if operands && len(ids) == 0 {
				if c.NArg() > 0 { // "-" with nothing on standard input
					return nil
				}
				return cli.Usage("%s: no queue id given", name)
			}
			if !operands && name != "list" && len(ids) > 0 {
				return cli.Usage("%s takes no operands", name)
			}
			if name == "list" && len(ids) == 0 && c.NArg() > 0 {
				return nil
			}
			cmd.IDs = ids
			return ask(c, cmd)
		},
	}
}

func route(c *urfave.Context) error {
	ids, err := operandsOf(c)
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		return cli.Usage("route: no address or queue id given")
	}
	cmd := &sched.Command{Verb: "route", JSON: cli.Bool(c, "json"), DryRun: cli.Bool(c, "dry-run")}
	if c.IsSet("to") {
		cmd.IDs, cmd.Target = ids, c.String("to")
	} else {
		cmd.Addrs = ids
	}
	return ask(c, cmd)
}
