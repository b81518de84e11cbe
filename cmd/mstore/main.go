// Command mstore makes, looks after, takes over and copies the mail of accounts.
package main

import (
	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
)

func main() { cli.Main(app()) }

func app() *urfave.App {
	return &urfave.App{
		Name: "mstore", Usage: "make, check, take over and copy the mail of accounts", Flags: common(),
		Commands: append([]*urfave.Command{
			{Name: "create", Usage: "make the mailboxes of an account", ArgsUsage: "[address ...]", Action: each(create), Flags: common(
				&urfave.StringSliceFlag{Name: "folder", Usage: "make `NAME[=USE]` instead of store.folders; may be given again"})},
			{Name: "list", Usage: "print the mailboxes with counts and sizes", ArgsUsage: "[address ...]", Action: each(list), Flags: common(
				all(), &urfave.BoolFlag{Name: "read", Usage: "read messages whose size is not known"})},
			{Name: "check", Usage: "find damage and repair it; never removes mail", ArgsUsage: "[address ...]", Action: each(check), Flags: common(mailboxes(), all(),
				&urfave.BoolFlag{Name: "read", Usage: "read every message and compare its size with what clients are told"})},
			{Name: "reindex", Usage: "make the indexes anew", ArgsUsage: "[address ...]", Action: each(reindex), Flags: common(mailboxes())},
			{Name: "quota", Usage: "print what is used of the quota", ArgsUsage: "[address ...]", Action: each(quota), Flags: common(
				&urfave.BoolFlag{Name: "recount", Usage: "count anew"})},
			{Name: "convert", Usage: "take over a Maildir of Dovecot or Courier in place", ArgsUsage: "[address ...]", Action: each(convert), Flags: common(
				&urfave.StringFlag{Name: "doveadm", Value: "doveadm", Usage: "ask `PROGRAM` for the MODSEQs that Dovecot has told; empty: nobody"},
				&urfave.Uint64Flag{Name: "above", Usage: "let MODSEQs start above `N`"},
				&urfave.BoolFlag{Name: "back", Usage: "print what a way back to Dovecot needs, and change nothing"})},
		}, transfers()...),
	}
}

// common are the flags of every command, and more.
func common(more ...urfave.Flag) []urfave.Flag {
	return append(more, cli.Config(), cli.JSON(), cli.DryRun(),
		&urfave.StringFlag{Name: "maildir", Usage: "work on the Maildir `DIR`, whoever it belongs to; no configuration is read"},
		&urfave.StringFlag{Name: "layout", Usage: "with --maildir: maildir++ or fs"},
		&urfave.BoolFlag{Name: "utf8", Usage: "with --maildir: names of folders are UTF-8 on disk"},
		&urfave.StringFlag{Name: "escape", Usage: "with --maildir: `CHARACTER` that starts hex digits in names of folders"},
		&urfave.StringFlag{Name: "control", Usage: "with --maildir: `DIR` of the uidlists"},
		&urfave.StringFlag{Name: "index", Usage: "with --maildir: `DIR` of the indexes"})
}

func all() urfave.Flag {
	return &urfave.BoolFlag{Name: "all", Usage: "all accounts of the users file"}
}

func mailboxes() urfave.Flag {
	return &urfave.StringSliceFlag{Name: "mailbox", Usage: "only the mailbox `NAME`; may be given again"}
}
