// Command mcheck reads the whole configuration and the files it names, and says what is wrong
// and what to do about it.
package main

import (
	"errors"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/envelope"
)

func main() { cli.Main(app()) }

func app() *urfave.App {
	return &urfave.App{
		Name: "mcheck", Usage: "say what is wrong with the configuration",
		Flags: []urfave.Flag{
			cli.Config(), cli.JSON(),
			&urfave.BoolFlag{Name: "no-dns", Usage: "ask no name server"},
			&urfave.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "leave out what is right"},
		},
		Action: run,
	}
}

func run(c *urfave.Context) error {
	if c.NArg() > 0 {
		return cli.Usage("%q: mcheck takes no operands", c.Args().First())
	}
	k := &checker{json: c.Bool("json"), quiet: c.Bool("quiet"), w: c.App.Writer}
	cfg, err := config.Load(c.String("config"))
	if err != nil {
		k.broken(err)
	} else {
		k.all(c.Context, cfg, !c.Bool("no-dns"))
	}
	switch {
	case k.err != nil:
		return cli.Exit(envelope.ExIOErr, k.err)
	case k.failed:
		return cli.Exit(envelope.ExConfig, nil)
	}
	return nil
}

// broken reports every fault of a configuration that cannot be used.
func (k *checker) broken(err error) {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		for _, e := range joined.Unwrap() {
			k.broken(e)
		}
		return
	}
	k.fail("configuration", err.Error(), "correct it; mconf(5) explains every key")
}
