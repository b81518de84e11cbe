package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// instance is DIR/sandbox.json: what stays over restarts.
type instance struct {
	dir   string
	bin   string
	Opt   Options        `json:"options"`
	Ports map[string]int `json:"ports"` // by role
}

// port is a TCP port of the sandbox, by the role of who serves it.
type port struct {
	role, tool string
	env        string // its variable
	tls        bool   // from the first octet
	ready      string // how the greeting begins
	each       bool   // under inetd: a process for each connection
}

// ports are served in every mode, in the order they are started.
var ports = []port{
	{"mx", "msmtpd", "PP_SMTP_PORT", false, "220 ", true},
	{"submission", "msmtpd", "PP_SUBMISSION_PORT", false, "220 ", false},
	{"submissions", "msmtpd", "PP_SUBMISSIONS_PORT", true, "220 ", false},
	{"pop3", "mpop3d", "PP_POP3_PORT", false, "+OK ", true},
	{"pop3s", "mpop3d", "PP_POP3S_PORT", true, "+OK ", false},
}

func up(args []string) error {
	dir, opt, given, err := parse(args)
	if err != nil {
		return err
	}
	in := &instance{dir: dir, bin: os.Getenv("SANDBOX_BIN"), Opt: opt}
	if in.bin == "" {
		return errors.New("SANDBOX_BIN is not set: start scripts/sandbox, not sandboxtool")
	}
	if strings.ContainsAny(dir, " \t\n\"") {
		return fmt.Errorf("%q: a name with spaces or quotes cannot stand in inetd.conf", dir)
	}
	if len(in.path("spool/control")) > 100 {
		return fmt.Errorf("%s: the name is too long for the sockets below it (104 octets in all)", dir)
	}
	if err := down(dir); err != nil {
		return err
	}
	old, err := in.load()
	if err != nil {
		return err
	}
	switch {
	case !old || given:
		if old {
			in.Opt = opt
		}
		if err := in.write(); err != nil {
			return err
		}
	case in.grown():
		// Made by an older version: the new ports are added, and nothing else is touched.
		if err := errors.Join(in.choosePorts(), in.writeEnv(), in.save()); err != nil {
			return err
		}
	}
	if err := in.launch(); err != nil {
		return err
	}
	if err := in.ready(); err != nil {
		return errors.Join(err, down(dir))
	}
	return nil
}

// grown tells whether there are ports that the instance has not.
func (in *instance) grown() bool {
	for _, p := range ports {
		if in.Ports[p.role] == 0 {
			return true
		}
	}
	return false
}

// save writes what load reads.
func (in *instance) save() error {
	b, err := json.MarshalIndent(in, "", "\t")
	return errors.Join(err, os.WriteFile(in.path("sandbox.json"), b, 0o600))
}

func (in *instance) path(name string) string { return filepath.Join(in.dir, name) }

// load takes ports and, for now, options from an earlier "up".
func (in *instance) load() (bool, error) {
	b, err := os.ReadFile(in.path("sandbox.json"))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, in)
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", in.path("sandbox.json"), err)
	}
	return true, nil
}

// write makes everything that does not run: ports, certificates, configuration, accounts.
func (in *instance) write() error {
	for d, mode := range map[string]os.FileMode{"run": 0o755, "log": 0o755, "etc": 0o755, "mail": 0o700} {
		if err := os.MkdirAll(in.path(d), mode); err != nil {
			return err
		}
	}
	if err := in.choosePorts(); err != nil {
		return err
	}
	names := []string{"localhost", "127.0.0.1"}
	if in.Opt.Host != "127.0.0.1" {
		names = append(names, in.Opt.Host)
	}
	for _, d := range in.Opt.Domains {
		names = append(names, d, "mx."+d)
	}
	steps := []func() error{
		func() error { return certificates(in.path("etc"), names) },
		in.writeConfig, in.initSpool, in.writeAccounts, in.writeEnv, in.save,
	}
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}

// choosePorts keeps the ports there are. All new ones are held open together, so that the
// kernel gives different ones.
func (in *instance) choosePorts() error {
	if in.Ports == nil {
		in.Ports = make(map[string]int)
	}
	if in.Opt.SMTPPort != 0 {
		in.Ports["mx"] = in.Opt.SMTPPort
	}
	for _, p := range ports {
		if in.Ports[p.role] != 0 {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort(in.Opt.Host, "0"))
		if err != nil {
			return err
		}
		defer l.Close()
		in.Ports[p.role] = l.Addr().(*net.TCPAddr).Port
	}
	return nil
}

func (in *instance) writeConfig() error {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	d := in.Opt.Domains
	line("# Written by scripts/sandbox; mconf(5) explains it. Changes stay until \"up\" is given options.")
	line("hostname = %q", "mx."+d[0])
	line("domains = %s", quoted(d))
	line("spool = %q", in.path("spool"))
	line("maildirs = %q", in.path("mail/%d/%u"))
	line("log = %q", "file:"+in.path("log/pennypost.log"))
	line("\n[relay]")
	if in.Opt.MXPort != 0 {
		line("port = %d", in.Opt.MXPort)
	}
	if in.Opt.Smarthost != "" {
		auth, hp := in.Opt.smarthost()
		line("smarthost = %q", hp)
		if auth != "" {
			if err := os.WriteFile(in.path("etc/smarthost"), []byte(auth+"\n"), 0o600); err != nil {
				return err
			}
			line("auth = %q", in.path("etc/smarthost"))
		}
	}
	if in.Opt.Resolver != "" {
		line("\n[dns]\nresolver = %q", in.Opt.Resolver)
	}
	line("\n[tls]\ncert = %q\nkey = %q\nca = %q", in.path("etc/cert.pem"), in.path("etc/key.pem"), in.path("etc/ca.pem"))
	line("\n[accounts]\nusers = %q\nsecrets = %q\naliases = [%q]\nsystem = false", in.path("etc/users"), in.path("etc/secrets"), in.path("etc/aliases"))
	line("\n[submit]\nsocket = %q\nfrom = %q", in.socket(), d[0])
	for _, r := range in.Opt.Routes {
		match, to, _ := strings.Cut(r, "=")
		line("\n[[route]]\nmatch = %q\nto = %q", match, to)
	}
	return os.WriteFile(in.config(), []byte(b.String()), 0o644)
}

func quoted(ss []string) string {
	q := make([]string, len(ss))
	for i, s := range ss {
		q[i] = strconv.Quote(s)
	}
	return "[" + strings.Join(q, ", ") + "]"
}

func (in *instance) config() string { return in.path("pennypost.toml") }
func (in *instance) socket() string { return in.path("run/submit") }

// initSpool makes the spool before anything runs: the daemons start all at once, and msmtpd
// refuses to serve without one.
func (in *instance) initSpool() error {
	out, err := exec.Command(in.prog("mqueue"), "--config", in.config(), "init").CombinedOutput()
	if err != nil {
		return fmt.Errorf("mqueue init: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// writeAccounts makes the account files anew with mpasswd, so that they are what mpasswd
// makes, and an aliases file that was not there.
func (in *instance) writeAccounts() error {
	for _, f := range []string{"etc/users", "etc/secrets"} {
		if err := os.WriteFile(in.path(f), nil, 0o600); err != nil {
			return err
		}
	}
	addrs, passwords := in.Opt.addresses()
	for i, a := range addrs {
		cmd := exec.Command(filepath.Join(in.bin, "mpasswd"), "--config", in.config(), "add", a)
		cmd.Stdin = strings.NewReader(passwords[i] + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("mpasswd add %s: %w: %s", a, err, bytes.TrimSpace(out))
		}
	}
	if _, err := os.Stat(in.path("etc/aliases")); err == nil {
		return nil
	}
	var b strings.Builder
	for _, d := range in.Opt.Domains {
		fmt.Fprintf(&b, "postmaster@%s: %s\n", d, addrs[0])
	}
	return os.WriteFile(in.path("etc/aliases"), []byte(b.String()), 0o644)
}

// writeEnv writes shell assignments that are also plain NAME=VALUE lines wherever no value
// needs a quote.
func (in *instance) writeEnv() error {
	var b strings.Builder
	set := func(name, value string) {
		if strings.ContainsFunc(value, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-:+@%,", r)
		}) {
			value = "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
		}
		fmt.Fprintf(&b, "%s=%s\n", name, value)
	}
	set("PP_HOST", in.Opt.Host)
	for _, p := range ports {
		set(p.env, strconv.Itoa(in.Ports[p.role]))
	}
	set("PP_SUBMIT_SOCKET", in.socket())
	set("PP_CA", in.path("etc/ca.pem"))
	set("PP_CONFIG", in.config())
	set("PP_SPOOL", in.path("spool"))
	set("PP_MAILDIRS", in.path("mail"))
	set("PP_BIN", in.bin)
	set("PP_PIDS", in.path("pids"))
	set("PENNYPOST_CONFIG", in.config())
	return os.WriteFile(in.path("env"), []byte(b.String()), 0o644)
}

// commands is what runs, in the order it is started.
func (in *instance) commands() ([]command, error) {
	cmds := []command{{"mqueue", []string{in.prog("mqueue"), "--config", in.config(), "run"}}}
	local := port{role: "local", tool: "msmtpd"}
	if in.Opt.Mode == "inetd" {
		c, err := in.inetd(local)
		return append(cmds, c...), err
	}
	activate := ""
	if in.Opt.Mode == "systemd" {
		var err error
		if activate, err = find("systemd-socket-activate"); err != nil {
			return nil, err
		}
	}
	for _, p := range append(ports[:len(ports):len(ports)], local) {
		args := append(in.serve(p), "--listen", in.addr(p))
		if activate != "" {
			args = append([]string{activate, "--accept", "--fdname=" + p.role, "--listen=" + in.addr(p)}, in.serve(p)...)
		}
		cmds = append(cmds, command{p.name(), args})
	}
	return cmds, nil
}

func (p port) name() string { return p.tool + "-" + p.role }

// serve is the command that serves a port somebody else has opened.
func (in *instance) serve(p port) []string {
	return []string{in.prog(p.tool), "--config", in.config(), "--role", p.role}
}

func (in *instance) addr(p port) string {
	if p.role == "local" {
		return in.socket()
	}
	return net.JoinHostPort(in.Opt.Host, strconv.Itoa(in.Ports[p.role]))
}

func (in *instance) prog(name string) string { return filepath.Join(in.bin, name) }

// inetd writes inetd.conf: some ports start a process a connection, the others one for many.
// The local socket has its own listener: who asks there is a matter of UNIX sockets, which
// inetd does not know on every system.
func (in *instance) inetd(local port) ([]command, error) {
	prog, err := find("inetd", "openbsd-inetd")
	if err != nil {
		return nil, err
	}
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	for _, p := range ports {
		// The default limit of starts a minute would close connections without a word.
		wait := "wait"
		if p.each {
			wait = "nowait.100000"
		}
		args := in.serve(p)
		fmt.Fprintf(&b, "%s:%d stream tcp %s %s %s %s %s\n", in.Opt.Host, in.Ports[p.role], wait, me.Username, args[0], p.tool, strings.Join(args[1:], " "))
	}
	conf := in.path("etc/inetd.conf")
	if err := os.WriteFile(conf, []byte(b.String()), 0o644); err != nil {
		return nil, err
	}
	return []command{
		{"inetd", []string{prog, "-i", conf}},
		{local.name(), append(in.serve(local), "--listen", in.addr(local))},
	}, nil
}

// find looks on PATH and where daemons are, which is not on everybody's PATH.
func find(names ...string) (string, error) {
	for _, n := range names {
		if p, err := exec.LookPath(n); err == nil {
			return p, nil
		}
		for _, d := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
			if p, err := exec.LookPath(filepath.Join(d, n)); err == nil {
				return p, nil
			}
		}
	}
	return "", fmt.Errorf("%s is not installed", names[0])
}

// launch leaves the supervisor running, in a session of its own.
func (in *instance) launch() error {
	cmds, err := in.commands()
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(cmds, "", "\t")
	if err != nil {
		return err
	}
	// A socket file of a process that was killed would refuse the next listener.
	if err := os.Remove(in.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(in.path("run/commands.json"), b, 0o644); err != nil {
		return err
	}
	log, err := os.OpenFile(in.path("log/supervisor.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "supervise", in.dir)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release()
}

// ready waits until every port answers as it should and the scheduler takes commands.
func (in *instance) ready() error {
	checks := map[string]func() error{
		"local": func() error { c, err := net.Dial("unix", in.socket()); return greeted("220 ", c, err) },
		"mqueue": func() error {
			c, err := net.Dial("unix", in.path("spool/control"))
			if err != nil {
				return err
			}
			return c.Close()
		},
	}
	for _, p := range ports {
		checks[p.role] = func() error { return in.greeting(p) }
	}
	for begin := time.Now(); ; pause() {
		var last error
		for name, check := range checks {
			if err := check(); err != nil {
				last = fmt.Errorf("%s: %w", name, err)
			} else {
				delete(checks, name)
			}
		}
		if len(checks) == 0 {
			return nil
		}
		if time.Since(begin) > 15*time.Second {
			return fmt.Errorf("%w; the logs are in %s\n%s", last, in.path("log"), in.tails())
		}
	}
}

func (in *instance) greeting(p port) error {
	d := net.Dialer{Timeout: 5 * time.Second}
	dial := d.Dial
	if p.tls {
		dial = (&tls.Dialer{NetDialer: &d, Config: in.tls()}).Dial
	}
	c, err := dial("tcp", in.addr(p))
	return greeted(p.ready, c, err)
}

func greeted(want string, c net.Conn, err error) error {
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, want) {
		return fmt.Errorf("greeting %q: %w", line, err)
	}
	if _, err := fmt.Fprint(c, "QUIT\r\n"); err != nil {
		return err
	}
	_, err = r.ReadString('\n')
	return err
}

func (in *instance) tls() *tls.Config {
	pool := x509.NewCertPool()
	if c, err := readCert(in.path("etc/ca.pem")); err == nil {
		pool.AddCert(c)
	}
	return &tls.Config{RootCAs: pool, ServerName: "localhost"}
}

// tails shows the ends of the logs, for an instance that does not come up.
func (in *instance) tails() string {
	var b strings.Builder
	logs, err := filepath.Glob(in.path("log/*.log"))
	if err != nil {
		return ""
	}
	for _, l := range logs {
		text, err := os.ReadFile(l)
		if err != nil || len(text) == 0 {
			continue
		}
		fmt.Fprintf(&b, "== %s\n%s", filepath.Base(l), text[max(0, len(text)-1000):])
	}
	return strings.TrimRight(b.String(), "\n")
}
