package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/envelope"
	"pennypost/internal/spool"
	"pennypost/internal/submit"
	"pennypost/internal/submit/compose"
	"pennypost/internal/submit/handoff"
)

// job is one run of msend or sendmail.
type job struct {
	cfg            *config.Config
	tool           string
	stdin          io.Reader
	stdout, stderr io.Writer

	from    *string // -f; nil: the caller's own address
	name    string
	to      []string
	extract bool
	ret     string
	envid   string
	notify  []string
	compose *letter

	printID, json, dryRun bool

	known map[string]bool // recipients of the envelope
	user  string          // login name
}

// letter is a message to be composed.
type letter struct {
	subject     string
	files       []string
	stdinName   string
	to, cc, bcc []string
}

// result is what --json prints.
type result struct {
	ID     string   `json:"id"`
	From   string   `json:"from"`
	To     []string `json:"to"`
	Size   int64    `json:"size"`
	Via    string   `json:"via,omitempty"`
	Header string   `json:"header,omitempty"`
}

func (j *job) run(ctx context.Context) error {
	env, err := j.envelope()
	if err != nil {
		return err
	}
	var watch interrupt
	j.stdin = watch.reader(j.stdin)
	msg, err := j.letter(env)
	if err != nil {
		return err
	}
	if len(env.To) == 0 && !j.extract {
		return cli.Usage("no recipients (name them behind the options, or use -t)")
	}
	door, err := j.door()
	if err != nil {
		return err
	}
	defer door.Close()
	o := submit.Options{
		Store: door, Hostname: j.cfg.Hostname, MaxSize: j.cfg.Limits.MessageSize, MaxHops: j.cfg.Limits.Hops,
		MaxRcpts: j.cfg.Limits.Recipients, Now: j.cfg.Now(), Log: j.logger(),
	}
	if j.dryRun {
		o.Store, o.Log = handoff.Plan{Show: j.show}, nil
	}
	m, err := submit.New(o).Begin(env, j.fixup(env, door))
	if err != nil {
		return err
	}
	if err := j.write(m, msg, &watch); err != nil {
		err = errors.Join(err, m.Abort())
		watch.stop()
		watch.die()
		return err
	}
	// A signal that comes now is too late: half a commit would be worse for everybody.
	_, err = m.Commit()
	watch.stop()
	if err != nil {
		return err
	}
	if j.dryRun {
		return nil
	}
	return j.done(ctx, m, door)
}

// fixup says what is changed on the way in. A message that goes through the socket gets its
// trace line there.
func (j *job) fixup(env *envelope.Envelope, door *handoff.Door) submit.Fixup {
	from := submit.Mailbox{Name: j.name}
	var err error
	if from.Addr, err = envelope.ParseAddress(env.From); err != nil { // the null reverse-path names no author
		from.Addr, _ = j.sender() // its error has been reported with the envelope
	}
	f := submit.Fixup{
		Pipe: true, AddDate: true, AddMessageID: true, AddFrom: from.String(), RemoveBcc: true,
		Extract: j.extract, Domain: j.cfg.Domains[0], Notify: j.notify,
	}
	if door.Direct() {
		f.Trace = &submit.Trace{Comment: "pennypost, from userid " + strconv.Itoa(*env.Origin.UID)}
	}
	return f
}

// envelope makes the envelope from flags and operands.
func (j *job) envelope() (*envelope.Envelope, error) {
	uid := os.Getuid()
	j.user = login(uid)
	j.known = make(map[string]bool, len(j.to))
	from, err := j.sender()
	if err != nil {
		return nil, err
	}
	if j.from != nil {
		if from, err = parseSender(*j.from, j.cfg.Domains[0]); err != nil {
			return nil, err
		}
	}
	env := &envelope.Envelope{
		From: from.String(), SMTPUTF8: !from.IsASCII(), EnvID: j.envid,
		Origin: envelope.Origin{Kind: envelope.OriginPipe, UID: &uid, User: j.user},
	}
	if env.Ret = strings.ToUpper(j.ret); env.Ret != "" && env.Ret != "HDRS" && env.Ret != "FULL" {
		return nil, cli.Usage("%q: reports return hdrs or full", j.ret)
	}
	if j.notify, err = notify(j.notify); err != nil {
		return nil, err
	}
	for _, s := range j.to {
		list, err := submit.ParseAddressList(s, j.cfg.Domains[0])
		if err != nil {
			return nil, err
		}
		j.add(env, list...)
	}
	return env, nil
}

// add puts recipients into the envelope, each once.
func (j *job) add(env *envelope.Envelope, list ...envelope.Address) {
	for _, a := range list {
		if k := a.Key(); !j.known[k] {
			j.known[k] = true
			env.To = append(env.To, envelope.Recipient{Addr: a.String(), Notify: j.notify})
			env.SMTPUTF8 = env.SMTPUTF8 || !a.IsASCII()
		}
	}
}

// parseSender reads a reverse-path; "" and "<>" are the null one.
func parseSender(s, domain string) (envelope.Address, error) {
	if s = strings.TrimSpace(s); s == "" || s == "<>" {
		return envelope.Address{}, nil
	}
	list, err := submit.ParseAddressList(s, domain)
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("%w: %q: one sender is wanted", envelope.ErrAddress, s)
	}
	if err != nil {
		return envelope.Address{}, err
	}
	return list[0], nil
}

// notify checks what --notify and -N ask for, RFC 3461 §4.1.
func notify(words []string) ([]string, error) {
	var out []string
	for _, w := range words {
		for _, n := range strings.Split(w, ",") {
			switch n = strings.ToUpper(strings.TrimSpace(n)); n {
			case "NEVER", "SUCCESS", "FAILURE", "DELAY":
				out = append(out, n)
			default:
				return nil, cli.Usage("%q: reports are asked for with never, success, failure or delay", n)
			}
		}
	}
	for _, n := range out {
		if n == "NEVER" && len(out) > 1 {
			return nil, cli.Usage("never does not go with other words")
		}
	}
	return out, nil
}

// sender is the caller's own address.
func (j *job) sender() (envelope.Address, error) {
	domain := j.cfg.Domains[0]
	if f := j.cfg.Submit.From; strings.Contains(f, "@") {
		return envelope.ParseAddress(f)
	} else if f != "" {
		domain = f
	}
	return envelope.Address{Local: j.user, Domain: domain}, nil
}

// login is the name of the user who runs this.
func login(uid int) string {
	for _, v := range []string{"LOGNAME", "USER"} {
		if a, err := envelope.ParseLocal(os.Getenv(v), ""); err == nil && a.Domain == "" {
			return a.Local
		}
	}
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "uid-" + id
}

// letter reads the addresses of a message to be composed and opens its attachments. It returns
// nil when a finished message is expected on standard input.
func (j *job) letter(env *envelope.Envelope) (*compose.Message, error) {
	l := j.compose
	if l == nil {
		return nil, nil
	}
	m := &compose.Message{Subject: l.subject, Text: source{"standard input", j.stdin}}
	for _, f := range []struct {
		values []string
		field  *[]submit.Mailbox
	}{{append(l.to, j.to...), &m.To}, {l.cc, &m.Cc}, {l.bcc, new([]submit.Mailbox)}} {
		for _, v := range f.values {
			boxes, err := submit.ParseMailboxes(v, j.cfg.Domains[0])
			if err != nil {
				return nil, err
			}
			for _, b := range boxes {
				*f.field = append(*f.field, b)
				j.add(env, b.Addr)
			}
		}
	}
	for _, name := range l.files {
		if name == "-" {
			if m.Text == nil {
				return nil, cli.Usage("-a - can be given once")
			}
			m.Files = append(m.Files, compose.File{Name: l.stdinName, Data: m.Text})
			m.Text = nil
			continue
		}
		f, err := os.Open(name)
		if err == nil {
			var info os.FileInfo
			if info, err = f.Stat(); err == nil && info.IsDir() {
				err = fmt.Errorf("%s: is a directory (tar makes a file of it)", name)
			}
		}
		if err != nil {
			return nil, cli.Exit(envelope.ExNoInput, fmt.Errorf("attachment: %w", err))
		}
		m.Files = append(m.Files, compose.File{Name: filepath.Base(name), Data: source{name, f}})
	}
	return m, nil
}

// source names the reader in its errors.
type source struct {
	name string
	r    io.Reader
}

func (s source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		err = cli.Exit(envelope.ExIOErr, fmt.Errorf("%s: %w: nothing was queued", s.name, err))
	}
	return n, err
}

// write brings the message to its end.
func (j *job) write(m *submit.Message, msg *compose.Message, watch *interrupt) error {
	if msg != nil {
		return compose.Write(watch.writer(m), msg)
	}
	_, err := m.ReadFrom(j.stdin)
	if errors.Is(err, submit.ErrRead) {
		return fmt.Errorf("standard input: %w: nothing was queued", err)
	}
	return err
}

// door finds the way into the spool.
func (j *job) door() (*handoff.Door, error) {
	return handoff.Open(handoff.Options{
		Spool: j.cfg.Spool, Make: j.cfg.Mode == config.User, Socket: j.cfg.Submit.Socket,
		Own: config.Default(config.User, "").Spool, Hostname: j.cfg.Hostname,
		Limits: spool.Options{Now: j.cfg.Now(), FreeSpace: j.cfg.Limits.FreeSpace, FreeInodes: j.cfg.Limits.FreeInodes},
	})
}

// logger is the configured log. On standard error only what the user has to know is logged;
// a log that this user may not write is done without.
func (j *job) logger() *slog.Logger {
	if j.cfg.Log == "stderr" {
		return slog.New(slog.NewTextHandler(j.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	l, err := cli.Logger(j.cfg, j.tool)
	if err != nil {
		return nil
	}
	return l
}

// done reports what happened and hands on what waited.
func (j *job) done(ctx context.Context, m *submit.Message, door *handoff.Door) error {
	if why := door.Waiting(); why != nil {
		fmt.Fprintf(j.stderr, "%s: %v: the message waits in the own spool and the next msend hands it on\n", j.tool, why)
	} else {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		// Ignored: this message is safe; the others still wait and get their next chance.
		_, _, _ = door.Flush(ctx, 100, j.refused)
	}
	env := m.Envelope()
	switch {
	case j.json:
		r := result{ID: door.ID(), From: env.From, Size: m.Size(), Via: door.Via()}
		for _, to := range env.To {
			r.To = append(r.To, to.Addr)
		}
		return j.printed(door.ID(), cli.PrintJSON(j.stdout, r))
	case j.printID:
		_, err := fmt.Fprintln(j.stdout, door.ID())
		return j.printed(door.ID(), err)
	}
	return nil
}

// printed tells whoever may want to repeat that there is no need.
func (j *job) printed(id string, err error) error {
	if err != nil {
		return fmt.Errorf("the message is queued as %s, but cannot be reported: %w", id, err)
	}
	return nil
}

// show prints what a dry run found out.
func (j *job) show(env *envelope.Envelope, header []byte, size int64) error {
	r := result{ID: env.ID, From: env.From, Size: size, Header: string(header)}
	for _, to := range env.To {
		r.To = append(r.To, to.Addr)
	}
	if j.json {
		return cli.PrintJSON(j.stdout, r)
	}
	var b strings.Builder
	b.WriteString("from <" + r.From + ">\n")
	for _, to := range r.To {
		b.WriteString("to <" + to + ">\n")
	}
	b.WriteString("\n" + r.Header)
	_, err := io.WriteString(j.stdout, b.String())
	return err
}

func (j *job) refused(id string, err error) {
	fmt.Fprintf(j.stderr, "%s: waiting message %s was refused and lies in the own spool's corrupt directory: %v\n", j.tool, id, err)
}

// flush is --flush: hand on what waits in the own spool, and nothing else.
func (j *job) flush(ctx context.Context) error {
	door, err := j.door()
	if err != nil {
		return err
	}
	defer door.Close()
	sent, left, err := door.Flush(ctx, 1<<30, j.refused)
	if j.json {
		if perr := cli.PrintJSON(j.stdout, map[string]int{"sent": sent, "left": left}); perr != nil {
			return perr
		}
	}
	if err != nil {
		return cli.Exit(envelope.ExTempFail, fmt.Errorf("%d messages still wait: %w", left, err))
	}
	return nil
}
