package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/envelope"
	"pennypost/internal/submit/handoff"
)

// mode is what a call of sendmail is about.
type mode int

const (
	modeMessage mode = iota
	modeQueue        // -bp, mailq
	modeSMTP         // -bs
	modeAliases      // -bi, newaliases
	modeFlush        // -q
)

// call is a command line of sendmail, understood.
type call struct {
	mode    mode
	from    *string
	name    string
	extract bool
	dots    bool // a line with a single dot does not end the message
	ret     string
	envid   string
	notify  []string
	flush   string // argument of -q
	to      []string
}

// Options with a value, attached or as the next argument; and those whose value, if there is
// one, is attached. What is in neither and not handled is an unknown option.
const (
	withValue     = "ABbCDeFfhLNOoprRVX"
	withOptional  = "dq"
	withoutAction = "GILUimnstv"
)

// parseCall reads a command line as sendmail does: flags may be joined (-ti), values attached
// (-fann@example.org).
func parseCall(name string, args []string) (*call, error) {
	c := &call{}
	switch name {
	case "mailq":
		c.mode = modeQueue
	case "newaliases":
		c.mode = modeAliases
	}
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			c.to = args
			return c, nil
		}
		for i := 1; i < len(arg); i++ {
			o, value := arg[i], ""
			switch {
			case strings.IndexByte(withValue, o) >= 0:
				if value = arg[i+1:]; value == "" {
					if len(args) == 0 {
						return nil, cli.Usage("-%c: needs a value", o)
					}
					value, args = args[0], args[1:]
				}
				i = len(arg)
			case strings.IndexByte(withOptional, o) >= 0:
				value = arg[i+1:]
				i = len(arg)
			case strings.IndexByte(withoutAction, o) < 0:
				return nil, cli.Usage("-%s: unknown option", printableOption(o))
			}
			if err := c.option(o, value); err != nil {
				return nil, err
			}
		}
	}
	for _, a := range args {
		if len(a) > 1 && a[0] == '-' {
			return nil, cli.Usage("%q behind the recipients: options stand before them (-- ends options)", a)
		}
	}
	c.to = args
	return c, nil
}

func printableOption(o byte) string {
	if o <= ' ' || o >= 0x7f {
		return fmt.Sprintf("\\x%02x", o)
	}
	return string(rune(o))
}

// option takes one option. Those that are not here concern a sendmail.cf or a daemon and are
// accepted for the sake of old callers.
func (c *call) option(o byte, value string) error {
	switch o {
	case 'f', 'r':
		c.from = &value
	case 'F':
		c.name = value
	case 't':
		c.extract = true
	case 'i':
		c.dots = true
	case 'o':
		c.dots = c.dots || value == "i"
	case 'O':
		k, v, _ := strings.Cut(value, "=")
		c.dots = c.dots || strings.EqualFold(k, "IgnoreDots") && !strings.HasPrefix(strings.ToLower(v), "f")
	case 'N':
		c.notify = []string{value}
	case 'R':
		// Behind -q it would be a substring of recipients, which -q takes attached.
		c.ret = value
	case 'V':
		c.envid = value
	case 'I':
		c.mode = modeAliases
	case 'q':
		c.mode, c.flush = modeFlush, value
	case 'b':
		return c.become(value)
	}
	return nil
}

// become is -b.
func (c *call) become(what string) error {
	switch what {
	case "m":
		c.mode = modeMessage
	case "p":
		c.mode = modeQueue
	case "s":
		c.mode = modeSMTP
	case "i":
		c.mode = modeAliases
	case "d", "D", "l":
		return cli.Usage("-b%s: there is no daemon in here: msmtpd receives mail and mqueue run delivers it", what)
	default:
		return cli.Usage("-b%s: not known (m message, p queue, s SMTP, i aliases)", what)
	}
	return nil
}

// sendmail runs the program under one of its old names.
func sendmail(name string, args []string) int {
	err := runCall(name, args)
	if err == nil {
		return envelope.ExOK
	}
	msg := strings.ReplaceAll(err.Error(), "\n", "; ")
	fmt.Fprintf(os.Stderr, "%s: %s\n", name, cli.Escape(msg, 0))
	return cli.Status(err)
}

func runCall(name string, args []string) error {
	c, err := parseCall(name, args)
	if err != nil {
		return err
	}
	switch c.mode {
	case modeQueue:
		return become("mqueue", "list")
	case modeFlush:
		if id, ok := strings.CutPrefix(c.flush, "I"); ok {
			return become("mqueue", "retry", id)
		}
		return become("mqueue", "flush")
	}
	cfg, err := config.Load("")
	if err != nil {
		return cli.Exit(envelope.ExConfig, err)
	}
	j := &job{
		cfg: cfg, tool: name, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		from: c.from, name: c.name, to: c.to, extract: c.extract, ret: c.ret, envid: c.envid, notify: c.notify,
	}
	if j.name == "" {
		j.name = os.Getenv("NAME")
	}
	switch c.mode {
	case modeAliases:
		return checkAliases(cfg)
	case modeSMTP:
		return j.speakSMTP()
	}
	if !c.dots {
		j.stdin = &dotted{r: bufio.NewReaderSize(os.Stdin, 64<<10), bol: true}
	}
	return j.run(context.Background())
}

// become replaces this process by one of our tools.
func become(tool string, args ...string) error {
	path, err := besides(tool)
	if err != nil {
		return cli.Exit(envelope.ExOSFile, err)
	}
	err = syscall.Exec(path, append([]string{tool}, args...), os.Environ())
	return cli.Exit(envelope.ExOSErr, fmt.Errorf("%s: %w", path, err))
}

// besides finds a tool beside this one, where they are installed together, or on PATH.
func besides(tool string) (string, error) {
	if self, err := os.Executable(); err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			path := filepath.Join(filepath.Dir(self), tool)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return path, nil
			}
		}
	}
	path, err := exec.LookPath(tool)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside this program nor on PATH", tool)
	}
	return path, nil
}

// speakSMTP is -bs: the dialogue of the local submission role on standard input and output,
// held by a msmtpd of our own where we may write the spool, else by the one behind the socket.
func (j *job) speakSMTP() error {
	door, err := j.door()
	if err != nil {
		return err
	}
	if err := door.Close(); err != nil {
		return err
	}
	if door.Direct() {
		args := []string{"--role", "local"}
		if j.cfg.Path != "" {
			args = append(args, "--config", j.cfg.Path)
		}
		return become("msmtpd", args...)
	}
	return handoff.Pipe(j.cfg.Submit.Socket, os.Stdin, os.Stdout)
}

// checkAliases is newaliases: alias files are read as they are, so there is nothing to build;
// that they can be read is worth knowing.
func checkAliases(cfg *config.Config) error {
	var bad []error
	for _, path := range cfg.Accounts.Aliases {
		f, err := os.Open(path)
		if err == nil {
			_, err = io.Copy(io.Discard, f)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			bad = append(bad, err)
		}
	}
	if len(bad) > 0 {
		return cli.Exit(envelope.ExConfig, errors.Join(bad...))
	}
	return nil
}

// dotted reads a message up to a line with a single dot, or to its end.
type dotted struct {
	r    *bufio.Reader
	rest []byte // of the line read last
	bol  bool   // the next piece begins a line
	err  error
}

func (d *dotted) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(d.rest) == 0 {
			if d.err != nil {
				break
			}
			// What is in the buffer goes out before the next read, which may wait.
			if n > 0 && d.r.Buffered() == 0 {
				break
			}
			line, err := d.r.ReadSlice('\n')
			if err != bufio.ErrBufferFull {
				d.err = err
			}
			if d.bol && (bytes.Equal(line, []byte(".\n")) || bytes.Equal(line, []byte(".\r\n")) || err == io.EOF && string(line) == ".") {
				d.err = io.EOF
				break
			}
			d.bol = bytes.HasSuffix(line, []byte("\n"))
			d.rest = line
			continue
		}
		k := copy(p[n:], d.rest)
		n, d.rest = n+k, d.rest[k:]
	}
	if n == 0 && len(d.rest) == 0 && d.err != nil {
		return 0, d.err
	}
	return n, nil
}
