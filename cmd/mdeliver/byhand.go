package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/accounts"
	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/deliver"
	"pennypost/internal/envelope"
	"pennypost/internal/maildir"
	"pennypost/internal/worker"
)

// reversePath reads -f, with or without angle brackets.
func reversePath(c *urfave.Context) (string, error) {
	s := c.String("f")
	if s == "" || s == "<>" {
		return "", nil
	}
	if a, rest, err := envelope.ParsePath(s); err == nil && rest == "" {
		return a.String(), nil
	}
	a, err := envelope.ParseLocal(s, "")
	if err != nil {
		return "", cli.Usage("-f: %v", err)
	}
	return a.String(), nil
}

// toTarget delivers into the Maildir or mbox named by a flag. No configuration is read.
func toTarget(c *urfave.Context) error {
	from, err := reversePath(c)
	if err != nil {
		return err
	}
	target, mbox := c.String("maildir"), false
	if target == "" {
		target, mbox = c.String("mbox"), true
	}
	if c.Bool("dry-run") {
		return print(c, worker.Result{
			To: "-", Mailbox: target,
			Status: envelope.Status{Verdict: envelope.Delivered, Code: "2.0.0", Reply: "would go to " + target},
		})
	}
	var header []byte
	if !c.Bool("raw") {
		header = []byte("Return-Path: <" + from + ">\n")
	}
	cfg := &config.Config{}
	host, err := os.Hostname()
	if err != nil {
		host = "" // the names are unique without it
	}
	set := maildir.NewSet(maildir.Options{Host: host, Create: c.Bool("create")})
	reply, err := deliver.Direct(c.Context, set, target, mbox, header, from, cfg.Now()(), os.Stdin)
	if err != nil {
		st := deliver.StatusOf(err)
		return cli.Exit(st.ToExit(), err)
	}
	if c.Bool("raw") {
		_, err := fmt.Fprintln(c.App.Writer, reply)
		return err
	}
	return print(c, worker.Result{
		To: "-", Mailbox: target, Status: envelope.Status{Verdict: envelope.Delivered, Code: "2.0.0", Reply: reply},
	})
}

// byHand delivers the message on standard input to the operands.
func byHand(c *urfave.Context, cfg *config.Config, acc *accounts.Accounts) error {
	if c.NArg() == 0 {
		return cli.Usage("no recipient given (mdeliver user@domain <message, or --maildir DIR)")
	}
	from, err := reversePath(c)
	if err != nil {
		return err
	}
	req := &worker.Request{ID: "-", Attempt: 1, From: from, EOL: envelope.EOLLF, Time: cfg.Now()()}
	for _, s := range c.Args().Slice() {
		a, err := envelope.ParseLocal(s, cfg.Domains[0])
		if err != nil {
			return cli.Exit(envelope.ExDataErr, err)
		}
		req.To = append(req.To, envelope.Recipient{Addr: a.String()})
	}
	o := options(cfg, acc, cfg.Deliver.Create || c.Bool("create"), false)
	o.Plan = c.Bool("dry-run")
	o.Log = slog.New(complaints{c.App.ErrWriter})
	f, err := message(req, o.Plan)
	if err != nil {
		return cli.Exit(envelope.ExIOErr, err)
	}
	defer f.Close()
	rep := deliver.New(o).Handle(c.Context, req, f)
	status := envelope.ExOK
	for _, r := range rep.Results {
		if r.Expand != nil && !o.Plan {
			if err := handOn(c.Context, r.Expand, io.NewSectionReader(f, req.Offset, req.Size)); err != nil {
				r.Status = envelope.Defer("4.3.0", "expanded, but not handed on: "+err.Error())
			}
		}
		if err := print(c, r); err != nil {
			return err
		}
		switch s := r.ToExit(); {
		case s == envelope.ExTempFail:
			status = s // what may be tried again decides over what may not
		case status == envelope.ExOK:
			status = s
		}
	}
	return cli.Exit(status, nil)
}

// message is the message on standard input as a file that can be read by position.
func message(req *worker.Request, plan bool) (*os.File, error) {
	if fi, err := os.Stdin.Stat(); err == nil && fi.Mode().IsRegular() {
		off, err := os.Stdin.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
		req.Offset, req.Size = off, max(fi.Size()-off, 0)
		return os.Stdin, nil
	}
	f, err := os.CreateTemp("", "mdeliver")
	if err != nil {
		return nil, err
	}
	err = os.Remove(f.Name())
	if err == nil && (!plan || !terminal(os.Stdin)) {
		if req.Size, err = io.Copy(f, os.Stdin); err != nil {
			err = fmt.Errorf("standard input: %w", err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// terminal tells whether f is a character device: a dry run waits for no message there.
func terminal(f *os.File) bool {
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}

// handOn gives the message to msend for the recipients that stand for an expanded one.
// mqueue does that for a worker; by hand nobody else would.
func handOn(ctx context.Context, x *worker.Expansion, message io.Reader) error {
	from := x.From
	if from == "" {
		from = "<>"
	}
	args := []string{"-f", from, "--"}
	for _, to := range x.To {
		args = append(args, to.Addr)
	}
	cmd := exec.CommandContext(ctx, beside("msend"), args...)
	cmd.Stdin = io.MultiReader(bytes.NewReader([]byte(x.Prepend)), message)
	out, err := cmd.CombinedOutput()
	if err != nil {
		line, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte{'\n'})
		return fmt.Errorf("msend: %w: %s", err, line)
	}
	return nil
}

// beside finds another tool next to this one, else on PATH.
func beside(tool string) string {
	if self, err := os.Executable(); err == nil {
		p := filepath.Join(filepath.Dir(self), tool)
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return tool
}

// print writes one result: verdict, code, mailbox, reply, address; or one JSON object.
func print(c *urfave.Context, r worker.Result) error {
	if c.Bool("json") {
		return cli.PrintJSON(c.App.Writer, r)
	}
	box := r.Mailbox
	if box == "" {
		box = "-"
	}
	reply := r.Reply
	if reply == "" {
		reply = "-"
	}
	_, err := fmt.Fprintf(c.App.Writer, "%s %s %s %s %s\n", r.Verdict, r.Code, cli.Escape(box, ' '), cli.Escape(reply, 0), cli.Escape(r.To, ' '))
	return err
}

// complaints prints the causes of what went wrong, as a tool run by hand does; results go to
// standard output and are no log.
type complaints struct{ w io.Writer }

func (h complaints) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelDebug }

func (h complaints) WithAttrs([]slog.Attr) slog.Handler { return h }

func (h complaints) WithGroup(string) slog.Handler { return h }

func (h complaints) Handle(_ context.Context, r slog.Record) error {
	to, cause := r.Message, ""
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "to":
			to = a.Value.String()
		case "err":
			cause = a.Value.String()
		}
		return true
	})
	if cause == "" {
		return nil
	}
	_, err := fmt.Fprintf(h.w, "mdeliver: %s: %s\n", cli.Escape(to, 0), cli.Escape(cause, 0))
	return err
}
