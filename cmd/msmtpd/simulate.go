package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/envelope"
	"pennypost/internal/sasl"
	"pennypost/internal/smtp"
	"pennypost/internal/smtpd"
	"pennypost/internal/spool"
	"pennypost/internal/submit"
	"pennypost/internal/submit/handoff"
)

func simulateFlags() []urfave.Flag {
	return []urfave.Flag{
		&urfave.BoolFlag{Name: "simulate", Usage: "play the client's lines on standard input, explain every decision, write nothing"},
		&urfave.StringFlag{Name: "client", Usage: "with --simulate: the client is `ADDR`, an address, ADDRESS:PORT or uid:NUMBER"},
		&urfave.BoolFlag{Name: "tls", Usage: "with --simulate: the connection is under TLS from its beginning"},
		&urfave.StringFlag{Name: "user", Usage: "with --simulate: the client has authenticated as `LOGIN`"},
	}
}

// simulate plays one session. It is the session code of a server at work; what differs is what
// stands at its edges: the connection, TLS, the spool, the log, and who checks passwords.
func simulate(c *urfave.Context, cfg *config.Config) error {
	role := c.String("role")
	if role == "" {
		role = smtpd.MX
	}
	if !slices.Contains(smtpd.Roles(), role) {
		return cli.Exit(envelope.ExConfig, fmt.Errorf("unknown role %q (roles are %s)", role, strings.Join(smtpd.Roles(), ", ")))
	}
	p := &play{in: bufio.NewReader(c.App.Reader), out: c.App.Writer, json: c.Bool("json")}
	log := slog.New(slog.NewTextHandler(&logLines{p}, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	s, err := newServers(cfg, log, p, false)
	if err != nil {
		return err
	}
	peer, err := playedPeer(c, role)
	if err != nil {
		return err
	}
	if login := c.String("user"); login != "" {
		if peer.User, err = playedUser(c.Context, s.base.Accounts, login, cfg, role); err != nil {
			return err
		}
	}
	srv, err := s.role(role)
	if err != nil {
		return cli.Exit(envelope.ExConfig, err)
	}
	srv.Handshake = func(conn net.Conn) (net.Conn, tls.ConnectionState, error) {
		p.explain("connect", "a TLS handshake is taken to succeed")
		return conn, tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true, CipherSuite: tls.TLS_AES_128_GCM_SHA256}, nil
	}
	srv.Implicit = srv.Implicit || c.Bool("tls") || peer.User != ""
	if srv.Implicit && srv.TLS == nil {
		return cli.Usage("role %s has no TLS", role)
	}
	if err := srv.ServeConn(c.Context, p, peer); err != nil && c.Context.Err() == nil {
		p.explain("end", "%v", err)
	}
	return p.err
}

// playedPeer is the client that --client names.
func playedPeer(c *urfave.Context, role string) (smtp.Peer, error) {
	peer := smtp.Peer{Local: netip.AddrPort{}}
	text := c.String("client")
	if n, ok := strings.CutPrefix(text, "uid:"); ok && role == smtpd.Local {
		uid, err := strconv.Atoi(n)
		if err != nil || uid < 0 {
			return peer, cli.Usage("--client %q: no user id", text)
		}
		peer.UID = &uid
		return peer, nil
	}
	if role == smtpd.Local {
		if text != "" {
			return peer, cli.Usage("--client %q: the clients of role local are processes, uid:NUMBER", text)
		}
		uid := os.Getuid()
		peer.UID = &uid
		return peer, nil
	}
	if text == "" {
		return peer, nil
	}
	if ap, err := netip.ParseAddrPort(text); err == nil {
		peer.Addr = ap
		return peer, nil
	}
	ip, err := netip.ParseAddr(strings.Trim(text, "[]"))
	if err != nil {
		return peer, cli.Usage("--client %q: want an address, or ADDRESS:PORT", text)
	}
	peer.Addr = netip.AddrPortFrom(ip, 0)
	return peer, nil
}

// playedUser is the account that a login names, as a checked password would have found it.
func playedUser(ctx context.Context, acc smtpd.Accounts, login string, cfg *config.Config, role string) (string, error) {
	if role != smtpd.Submission && role != smtpd.Submissions {
		return "", cli.Usage("--user is for the roles submission and submissions")
	}
	domain := ""
	if len(cfg.Domains) > 0 {
		domain = cfg.Domains[0]
	}
	addr, err := envelope.ParseLocal(login, domain)
	if err != nil {
		return "", cli.Usage("--user %q: %v", login, err)
	}
	r, err := acc.Lookup(ctx, addr)
	if err != nil {
		return "", cli.Exit(envelope.ExTempFail, fmt.Errorf("look-up of %s: %w", login, err))
	}
	if r.Kind != accounts.IsMailbox {
		return "", cli.Exit(envelope.ExNoUser, fmt.Errorf("--user %s: no such user", login))
	}
	return r.Mailbox.Address, nil
}

// play is a connection whose client is a script, and the place where all that happens is told,
// in the order in which it happens.
type play struct {
	in   *bufio.Reader
	out  io.Writer
	json bool
	rest []byte // of a line that was not taken whole
	err  error  // of the output
}

// playLine is one line of output with --json.
type playLine struct {
	Who   string `json:"who"` // client, server, explain or log
	Stage string `json:"stage,omitempty"`
	Text  string `json:"text"`
}

func (p *play) print(mark string, l playLine) {
	if p.err != nil {
		return
	}
	if p.json {
		p.err = cli.PrintJSON(p.out, l)
		return
	}
	if l.Stage != "" {
		mark += l.Stage + ": "
	}
	_, p.err = fmt.Fprintln(p.out, mark+cli.Escape(l.Text, 0))
}

func (p *play) explain(stage, format string, args ...any) {
	p.tell(stage, fmt.Sprintf(format, args...))
}

// tell is the session's Explain.
func (p *play) tell(stage, text string) { p.print("# ", playLine{"explain", stage, text}) }

// Read gives the session one line at a time, so that each answer stands below its command.
// Lines of the script may end as lines of text do.
func (p *play) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		line, err := p.in.ReadBytes('\n')
		if len(line) == 0 {
			return 0, err
		}
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		p.print("C: ", playLine{Who: "client", Text: string(line)})
		p.rest = append(line, '\r', '\n')
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, p.err
}

func (p *play) Write(b []byte) (int, error) {
	for l := range strings.Lines(string(b)) {
		p.print("S: ", playLine{Who: "server", Text: strings.TrimRight(l, "\r\n")})
	}
	return len(b), p.err
}

func (p *play) Close() error                     { return nil }
func (p *play) LocalAddr() net.Addr              { return nil }
func (p *play) RemoteAddr() net.Addr             { return nil }
func (p *play) SetDeadline(time.Time) error      { return nil }
func (p *play) SetReadDeadline(time.Time) error  { return nil }
func (p *play) SetWriteDeadline(time.Time) error { return nil }

// logLines shows what a server at work would have logged.
type logLines struct{ p *play }

func (l *logLines) Write(b []byte) (int, error) {
	l.p.print("# log: ", playLine{Who: "log", Text: strings.TrimSpace(string(b))})
	return len(b), nil
}

// spool is opened where there is work to do; a play needs none.
func (p *play) spool(cfg *config.Config) (*spool.Spool, error) {
	if p != nil {
		return nil, nil
	}
	return openSpool(cfg)
}

// pretends tells whether a role that cannot be without TLS is played without a certificate.
func (p *play) pretends(role string) bool {
	if p == nil || role != smtpd.Submission && role != smtpd.Submissions {
		return false
	}
	p.explain("connect", "no certificate is configured: at work, the role %s would not be served", role)
	return true
}

// stage replaces in o what a session would change; without a play it does nothing.
func (p *play) stage(o *smtpd.Options, cfg *config.Config) {
	if p == nil {
		return
	}
	o.Explain, o.Auth.Passwords = p.tell, noPasswords{p: p}
	if o.Auth.Token != nil {
		o.Auth.Token = func(context.Context, string, string) (string, error) { return p.noLogin() }
	}
	o.Submit = submit.New(submit.Options{
		Store: p.store(), Hostname: cfg.Hostname, MaxSize: cfg.Limits.MessageSize, MaxHops: cfg.Limits.Hops, Now: cfg.Now(), Log: o.Log,
	})
	o.Extend.Flush = func(domain string, below bool) error {
		p.explain("etrn", "the scheduler would be told to start the mail for %s now (domains below it: %t)", domain, below)
		return nil
	}
}

// store is a door into no spool: it shows what would have been kept.
func (p *play) store() submit.Store {
	return handoff.Plan{Show: func(env *envelope.Envelope, header []byte, size int64) error {
		b, err := json.Marshal(env)
		if err != nil {
			return err
		}
		p.explain("store", "nothing is written; it would be incoming/%s of the spool, %d octets", env.ID, size)
		p.explain("store", "envelope %s", b)
		for l := range strings.Lines(string(header)) {
			p.explain("store", "header %s", strings.ReplaceAll(strings.TrimRight(l, "\n"), "\t", "    "))
		}
		return nil
	}}
}

// noPasswords checks none: a guess would count.
type noPasswords struct {
	auth.Checker
	p *play
}

var errNotPlayed = errors.New("no password or token is checked in a simulation; --user plays a client that has authenticated")

func (n noPasswords) Password(context.Context, string, string, netip.Addr) (string, error) {
	return n.p.noLogin()
}

func (n noPasswords) Mechanisms(context.Context) ([]string, error) { return nil, nil }

func (p *play) noLogin() (string, error) {
	p.explain("auth", "%v", errNotPlayed)
	return "", fmt.Errorf("%w: %w", sasl.ErrTemporary, errNotPlayed)
}
