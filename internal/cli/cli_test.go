package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/envelope"
)

// tool returns an app that prints what it was given, one item a line.
func tool() *urfave.App {
	show := func(c *urfave.Context) error {
		for _, t := range c.StringSlice("to") {
			fmt.Fprintf(c.App.Writer, "to=%s\n", t)
		}
		fmt.Fprintf(c.App.Writer, "t=%v v=%v json=%v args=%q\n", c.Bool("t"), c.Bool("v"), Bool(c, "json"), c.Args().Slice())
		return nil
	}
	return &urfave.App{
		Name: "tool", Usage: "test the frame", ArgsUsage: "[operand ...]",
		Flags: []urfave.Flag{
			Config(), JSON(),
			&urfave.BoolFlag{Name: "t", Usage: "first letter"}, &urfave.BoolFlag{Name: "v"},
			&urfave.StringSliceFlag{Name: "to", Usage: "one `ADDRESS`; may be repeated"},
			&urfave.IntFlag{Name: "count"},
		},
		Action: show,
	}
}

func tree() *urfave.App {
	app := tool()
	list := &urfave.Command{Name: "list", Usage: "list things", ArgsUsage: "[id ...]",
		Flags: []urfave.Flag{JSON(), Config()}, Action: app.Action}
	deep := &urfave.Command{Name: "deep", Usage: "more below", Subcommands: []*urfave.Command{
		{Name: "down", Usage: "the bottom", Action: app.Action},
	}}
	app.Action, app.Commands = nil, []*urfave.Command{list, deep}
	return app
}

func run(app *urfave.App, args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	app.Writer, app.ErrWriter = &out, &errs
	status = Run(context.Background(), app, append([]string{app.Name}, args...))
	return status, out.String(), errs.String()
}

func TestTraps(t *testing.T) {
	for _, c := range []struct {
		name           string
		app            func() *urfave.App
		args           string
		status         int
		stdout, stderr string // "" means empty; else must be contained
	}{
		{"help is an operand", tool, "help", 0, `args=["help"]`, ""},
		{"h is an operand", tool, "h", 0, `args=["h"]`, ""},
		{"version is an operand", tool, "version", 0, `args=["version"]`, ""},
		{"help to stdout", tool, "--help", 0, "usage: tool [options] [operand ...]\n", ""},
		{"help with an operand behind", tool, "-h x@y", 0, "usage: tool", ""},
		{"help names values", tool, "--help", 0, "--to ADDRESS", ""},
		{"version", tool, "--version", 0, "tool (pennypost) " + Version, ""},
		{"unknown option", tool, "--nope", 64, "", "tool: --nope: unknown option (tool --help lists them)\n"},
		{"value missing", tool, "--to", 64, "", "tool: --to: needs a value\n"},
		{"bad number", tool, "--count=x", 64, "", "tool: invalid value"},
		{"option behind operand", tool, "a@b --to c", 64, "", `tool: "--to" after the operands`},
		{"short option behind operand", tool, "a@b -t", 64, "", `tool: "-t" after the operands`},
		{"double dash ends options", tool, "-t -- a@b -f", 0, `t=true v=false json=false args=["a@b" "-f"]`, ""},
		{"single dash is an operand", tool, "a -", 0, `args=["a" "-"]`, ""},
		{"short options together", tool, "-tv", 0, "t=true v=true", ""},
		{"commas do not split", tool, "--to a,b@c --to d", 0, "to=a,b@c\nto=d\n", ""},
		{"sub-command", tree, "list x", 0, `args=["x"]`, ""},
		{"json before the sub-command", tree, "--json list", 0, "json=true", ""},
		{"json behind the sub-command", tree, "list --json", 0, "json=true", ""},
		{"no command", tree, "", 64, "", "tool: no command given"},
		{"unknown command", tree, "lsit", 64, "", `tool: unknown command "lsit"`},
		{"help is no command", tree, "help", 64, "", `unknown command "help"`},
		{"help under a command is an operand", tree, "list help", 0, `args=["help"]`, ""},
		{"help of a command", tree, "list --help", 0, "usage: tool list [options] [id ...]", ""},
		{"help before a command", tree, "--help list", 0, "commands:\n  list ", ""},
		{"option behind a command's operand", tree, "list x --json", 64, "", `"--json" after the operands`},
		{"unknown option of a command", tree, "list -z", 64, "", "tool: -z: unknown option"},
		{"two levels", tree, "deep down x", 0, `args=["x"]`, ""},
		{"two levels, unknown", tree, "deep up", 64, "", `unknown command "up"`},
		{"two levels, help", tree, "deep --help", 0, "usage: tool deep [options] command ...", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, out, errs := run(c.app(), strings.Fields(c.args)...)
			if status != c.status || !matches(out, c.stdout) || !matches(errs, c.stderr) {
				t.Errorf("%q: exit %d, want %d\nstdout %q, want %q\nstderr %q, want %q",
					c.args, status, c.status, out, c.stdout, errs, c.stderr)
			}
		})
	}
}

func matches(got, want string) bool {
	if want == "" {
		return got == ""
	}
	return strings.Contains(got, want)
}

func TestValuesKeepTheirSpaces(t *testing.T) {
	_, out, _ := run(tool(), "--to", " a b ")
	if !strings.Contains(out, "to= a b \n") {
		t.Errorf("got %q", out)
	}
}

type coded struct{}

func (coded) Error() string   { return "coded" }
func (coded) ExitStatus() int { return 67 }

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 75},
		{syscall.EACCES, 75},
		{fmt.Errorf("wrapped: %w", coded{}), 67},
		{Exit(78, coded{}), 78},
		{fmt.Errorf("wrapped: %w", Exit(69, nil)), 69},
		{Exit(0, nil), 0},
		{Usage("no"), 64},
		{fmt.Errorf("x: %w", envelope.ErrAddress), 65},
	} {
		if got := Status(c.err); got != c.want {
			t.Errorf("Status(%v) = %d, want %d", c.err, got, c.want)
		}
	}
}

func TestErrorIsOneLine(t *testing.T) {
	app := tool()
	app.Action = func(*urfave.Context) error {
		return errors.Join(errors.New("first\x1b[31m"), errors.New("second"))
	}
	status, out, errs := run(app)
	if status != 75 || out != "" || errs != "tool: first\\x1b[31m; second\n" {
		t.Errorf("exit %d, stdout %q, stderr %q", status, out, errs)
	}
}

func TestSilentExit(t *testing.T) {
	app := tool()
	app.Action = func(*urfave.Context) error { return Exit(75, nil) }
	if status, out, errs := run(app); status != 75 || out != "" || errs != "" {
		t.Errorf("exit %d, stdout %q, stderr %q", status, out, errs)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestFullDiskBehindStdout(t *testing.T) {
	app := tool()
	var errs bytes.Buffer
	app.Writer, app.ErrWriter = fullDisk{}, &errs
	if status := Run(context.Background(), app, []string{"tool"}); status != 74 {
		t.Errorf("exit %d, want 74; stderr %q", status, errs.String())
	}
	app = tool()
	app.Writer, app.ErrWriter = fullDisk{}, &errs
	app.Action = func(c *urfave.Context) error {
		_, err := c.App.Writer.Write([]byte("x"))
		return fmt.Errorf("print: %w", err)
	}
	if status := Run(context.Background(), app, []string{"tool"}); status != 74 {
		t.Errorf("the tool saw it: exit %d, want 74", status)
	}
}

func TestEscape(t *testing.T) {
	for _, c := range []struct {
		in   string
		sep  byte
		want string
	}{
		{"plain", '\t', "plain"},
		{"a\tb\nc\r", '\t', `a\x09b\x0ac\x0d`},
		{"a b", ' ', `a\x20b`},
		{`a\b`, ' ', `a\x5cb`},
		{`a\b`, 0, `a\b`},
		{"a\xffb", 0, `a\xffb`},
		{"jörg", ' ', "jörg"},
		{"a\u2028b\u0085c\u202ed", 0, `a\u2028b\u0085c\u202ed`},
		{"a\x7f\x00", 0, `a\x7f\x00`},
		{"a\ufffdb", 0, "a\ufffdb"},
	} {
		if got := Escape(c.in, c.sep); got != c.want {
			t.Errorf("Escape(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func TestPrintJSON(t *testing.T) {
	var b bytes.Buffer
	if err := PrintJSON(&b, map[string]string{"from": "<>", "reply": "a\nb"}); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != `{"from":"<>","reply":"a\nb"}`+"\n" {
		t.Errorf("got %q", got)
	}
}
