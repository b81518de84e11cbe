package cli

import (
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	urfave "github.com/urfave/cli/v2"
)

// Version is the release this source is or becomes.
const Version = "0.1.0"

// FullVersion is Version with the revision the binary was built from, where the build knows it.
func FullVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return Version
	}
	rev, dirty := "", ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			rev = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "+"
			}
		}
	}
	if len(rev) < 12 {
		return Version
	}
	return Version + " " + rev[:12] + dirty
}

// helpApp prints the help of a whole tool. The library's own printer goes through templates and
// takes an operand behind --help for a topic.
func helpApp(w io.Writer, app *urfave.App) {
	printHelp(w, app.Name, app.Usage, app.ArgsUsage, app.Description, app.Flags, app.Commands)
}

func helpCommand(w io.Writer, c *urfave.Command, path string) {
	printHelp(w, path, c.Usage, c.ArgsUsage, c.Description, c.Flags, c.Subcommands)
}

func printHelp(w io.Writer, path, usage, args, description string, flags []urfave.Flag, commands []*urfave.Command) {
	line := path + " [options]"
	if len(commands) > 0 && args == "" {
		args = "command ..."
	}
	if args != "" {
		line += " " + args
	}
	fmt.Fprintf(w, "usage: %s\n%s: %s\n", line, path, usage)
	if description != "" {
		fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(description))
	}
	if len(commands) > 0 {
		fmt.Fprint(w, "\ncommands:\n")
		for _, c := range commands {
			if !c.Hidden {
				fmt.Fprintf(w, "  %-22s %s\n", c.Name, c.Usage)
			}
		}
	}
	fmt.Fprint(w, "\noptions:\n")
	for _, f := range flags {
		printFlag(w, f)
	}
}

func printFlag(w io.Writer, f urfave.Flag) {
	if v, ok := f.(urfave.VisibleFlag); ok && !v.IsVisible() {
		return
	}
	var value, usage string
	if d, ok := f.(urfave.DocGenerationFlag); ok {
		usage = d.GetUsage()
		if d.TakesValue() {
			value, usage = placeholder(usage)
		}
	}
	names := make([]string, 0, 2)
	for _, n := range f.Names() {
		names = append(names, dashed(n))
	}
	// Short names first, as in manuals.
	if len(names) == 2 && len(names[1]) == 2 {
		names[0], names[1] = names[1], names[0]
	}
	left := strings.Join(names, ", ") + value
	fmt.Fprintf(w, "  %-22s %s\n", left, usage)
}

// placeholder takes the back-quoted word of a usage text as the name of the value.
func placeholder(usage string) (value, rest string) {
	before, after, ok := strings.Cut(usage, "`")
	if ok {
		if name, tail, ok := strings.Cut(after, "`"); ok {
			return " " + name, before + name + tail
		}
	}
	return " VALUE", usage
}
