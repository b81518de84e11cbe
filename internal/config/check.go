package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"pennypost/internal/envelope"
)

// fault is one thing wrong with a value.
type fault struct {
	key   string
	n     int // of which [[section]], from 0
	cause string
}

type checker struct{ faults []fault }

func (c *checker) bad(key string, n int, format string, args ...any) {
	c.faults = append(c.faults, fault{key, n, fmt.Sprintf(format, args...)})
}

func (c *checker) oneOf(key string, n int, v string, allowed ...string) {
	for _, a := range allowed {
		if v == a {
			return
		}
	}
	c.bad(key, n, "%q is none of %s", v, strings.Join(nonEmpty(allowed), ", "))
}

func nonEmpty(in []string) []string {
	var out []string
	for _, s := range in {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

func (c *checker) atLeast(key string, v, least int64) {
	if v < least {
		c.bad(key, 0, "%d is too small: at least %d", v, least)
	}
}

func (c *checker) domain(key string, n int, d string) {
	if err := envelope.CheckDomain(strings.TrimSuffix(d, ".")); err != nil {
		c.bad(key, n, "%q is no domain name", d)
	}
}

func (c *checker) address(key string, n int, a string) {
	if _, err := envelope.ParseAddress(a); err != nil {
		c.bad(key, n, "%q is no mail address: write local-part@domain", a)
	}
}

// check looks at every value that the file can get wrong without breaking its syntax.
func (c *Config) check() []fault {
	k := &checker{}
	c.checkNames(k)
	c.checkNumbers(k)
	for i, r := range c.Routes {
		k.route(i, r)
	}
	c.checkRelay(k)
	c.checkSMTPD(k)
	c.checkFilters(k)
	c.checkAuth(k)
	c.Policy.check(k)
	c.checkSession(k)
	c.checkWorkers(k)
	c.checkMail(k)
	return k.faults
}

func (c *Config) checkNames(k *checker) {
	if c.Hostname != "" {
		k.domain("hostname", 0, c.Hostname)
	}
	for _, d := range c.Domains {
		k.domain("domains", 0, d)
	}
	if c.Postmaster != "" {
		k.address("postmaster", 0, c.Postmaster)
	}
	if c.Spool == "" {
		k.bad("spool", 0, "empty: name a directory, or leave the key out")
	}
	if c.Maildirs == "" {
		k.bad("maildirs", 0, "empty: name a template such as \"/var/mail/%%d/%%u\", or leave the key out")
	}
	if f, ok := strings.CutPrefix(c.Log, "file:"); ok {
		if f == "" {
			k.bad("log", 0, "no path after file:")
		}
	} else {
		k.oneOf("log", 0, c.Log, "stderr", "syslog", "file:PATH")
	}
	k.oneOf("log_format", 0, c.LogFormat, "text", "json")
	if _, _, err := parseClock(c.Clock); err != nil {
		k.bad("clock", 0, "%q is neither a shift such as \"+72h\" nor a time such as \"2026-11-22T10:00:00Z\"", c.Clock)
	}
	if s := c.Accounts.SubaddressSep; len(s) > 1 || s == "@" || s == "/" {
		k.bad("accounts.subaddress", 0, "%q: one character, not @ or /, or \"\" for none", s)
	}
	if c.Accounts.CatchAll != "" {
		k.address("accounts.catch_all", 0, c.Accounts.CatchAll)
	}
	if p := c.Accounts.CheckPassword; len(p) > 0 && !filepath.IsAbs(p[0]) {
		k.bad("accounts.checkpassword", 0, "%q: the program's absolute path must come first", p[0])
	}
	if f := c.Submit.From; f != "" {
		if strings.Contains(f, "@") {
			k.address("submit.from", 0, f)
		} else {
			k.domain("submit.from", 0, f)
		}
	}
}

func (c *Config) checkNumbers(k *checker) {
	k.atLeast("limits.message_size", c.Limits.MessageSize, 0)
	// RFC 5321 §4.5.3.1.8: a server takes at least 100 recipients.
	k.atLeast("limits.recipients", int64(c.Limits.Recipients), 100)
	k.atLeast("limits.free_space", c.Limits.FreeSpace, 0)
	k.atLeast("limits.free_inodes", c.Limits.FreeInodes, 0)
	k.atLeast("limits.hops", int64(c.Limits.Hops), 1)
	if len(c.Queue.Retry) == 0 {
		k.bad("queue.retry", 0, "empty: name at least one delay")
	}
	k.retry("queue.retry", 0, c.Queue.Retry)
	if c.Queue.Expiry <= 0 {
		k.bad("queue.expiry", 0, "0 would return every message at its first deferral")
	}
	k.atLeast("queue.per_hop", int64(c.Queue.PerHop), 1)
	k.atLeast("queue.total", int64(c.Queue.Total), 1)
	if c.Queue.Scan <= 0 {
		k.bad("queue.scan", 0, "0 would look without a pause")
	}
	k.atLeast("queue.dsn_rate", int64(c.Queue.DSNRate), 1)
	k.atLeast("smtpd.max_sessions", int64(c.SMTPD.MaxSessions), 1)
	k.atLeast("smtpd.per_client", int64(c.SMTPD.PerClient), 0)
	k.atLeast("smtpd.errors", int64(c.SMTPD.Errors), 1)
	if c.SMTPD.Timeout <= 0 {
		k.bad("smtpd.timeout", 0, "0 would end every session at once")
	}
	if c.DNS.Timeout <= 0 {
		k.bad("dns.timeout", 0, "0 would fail every query")
	}
	k.atLeast("relay.per_connection", int64(c.Relay.PerConn), 1)
	k.port("relay.port", 0, c.Relay.Port)
}

func (k *checker) retry(key string, n int, ds []Duration) {
	for _, d := range ds {
		if d <= 0 {
			k.bad(key, n, "0 would try again without a pause")
			return
		}
	}
}

func (k *checker) port(key string, n, p int) {
	if p < 1 || p > 65535 {
		k.bad(key, n, "%d is no port: 1 to 65535", p)
	}
}

func tlsWords() []string { return []string{"", "may", "encrypt", "verify", "none", "tls"} }

func (c *Config) checkRelay(k *checker) {
	k.oneOf("relay.tls", 0, c.Relay.TLS, tlsWords()...)
	k.oneOf("relay.ipv6", 0, c.Relay.IPv6, "prefer", "avoid", "never")
	if s := c.Relay.Smarthost; s != "" {
		if strings.Contains(s, "@") {
			// The file is world-readable.
			k.bad("relay.smarthost", 0, "holds a password: put USER:PASSWORD into a file of mode 0600 and name it in relay.auth")
		} else if err := hostPort(s, 25); err != nil {
			k.bad("relay.smarthost", 0, "%v", err)
		}
	}
	if c.Relay.Helo != "" {
		k.domain("relay.helo", 0, c.Relay.Helo)
	}
	if b := c.Relay.Bind; b != "" {
		if _, err := netip.ParseAddr(b); err != nil {
			k.bad("relay.bind", 0, "%q is no IP address", b)
		}
	}
	if r := c.DNS.Resolver; r != "" {
		if err := hostPort(r, 53); err != nil {
			k.bad("dns.resolver", 0, "%v", err)
		}
	}
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		k.bad("tls.cert", 0, "cert and key are set together")
	}
	for i, p := range c.TLS.Certificates {
		if p.Cert == "" || p.Key == "" {
			k.bad("tls.certificate.cert", i, "cert and key are set together")
		}
	}
}

// checkAuth looks at the part of [accounts] about logins.
func (c *Config) checkAuth(k *checker) {
	a := c.Accounts
	for _, m := range a.Mechanisms {
		k.oneOf("accounts.mechanisms", 0, m, "PLAIN", "LOGIN", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1",
			"OAUTHBEARER", "XOAUTH2", "EXTERNAL")
	}
	if len(a.TokenCommand) > 0 {
		if a.TokenSocket != "" {
			k.bad("accounts.token_socket", 0, "token_command is set too: one of them checks tokens")
		}
		if !filepath.IsAbs(a.TokenCommand[0]) {
			k.bad("accounts.token_command", 0, "%q: the program needs an absolute path", a.TokenCommand[0])
		}
	}
	if a.TokenTimeout <= 0 {
		k.bad("accounts.token_timeout", 0, "0 would refuse every token")
	}
	k.atLeast("accounts.token_max", int64(a.TokenMax), 1)
}

// maxHold is below what the scheduler takes for a clock set wrong.
const maxHold = Duration(30 * 24 * time.Hour)

func (c *checker) networks(key string, list []string) {
	for _, n := range list {
		if _, err := netip.ParsePrefix(n); err == nil {
			continue
		}
		if _, err := netip.ParseAddr(n); err != nil {
			c.bad(key, 0, "%q is no network: write 192.0.2.0/24 or 2001:db8::/32", n)
		}
	}
}

func (c *Config) checkSMTPD(k *checker) {
	k.networks("smtpd.relay_from", c.SMTPD.RelayFrom)
	k.networks("smtpd.xclient_from", c.SMTPD.XClientFrom)
	k.networks("smtpd.etrn_from", c.SMTPD.ETRNFrom)
	k.networks("smtpd.proxy_from", c.SMTPD.ProxyFrom)
	if d := c.SMTPD.HoldMax; d < 0 || d > maxHold {
		k.bad("smtpd.hold_max", 0, "at most 30d, or 0 not to offer it")
	}
	if d := c.SMTPD.DeliverBy; d < 0 || d > maxHold {
		k.bad("smtpd.deliver_by", 0, "at most 30d, or 0 not to offer it")
	}
	for _, d := range c.SMTPD.RelayDomains {
		// ".x.test" is what is below x.test.
		if envelope.CheckDomain(envelope.FoldDomain(strings.TrimPrefix(d, "."))) != nil {
			k.bad("smtpd.relay_domains", 0, "%q is no domain name", d)
		}
	}
	k.listeners("smtpd.listen", c.SMTPD.Listen, "mx", "submission", "submissions", "local")
}

func (c *Config) checkWorkers(k *checker) {
	seen := map[string]bool{"local": true, "relay": true}
	for i, w := range c.Workers {
		switch {
		case w.Name == "":
			k.bad("worker.name", i, "missing")
		case w.Socket == "" && len(w.Command) == 0:
			k.bad("worker.socket", i, "worker %q has neither socket nor command", w.Name)
		case w.Socket != "" && len(w.Command) > 0:
			k.bad("worker.socket", i, "worker %q has both socket and command", w.Name)
		case w.Filter && w.Socket != "":
			k.bad("worker.filter", i, "worker %q: a filter is a command, not a socket", w.Name)
		case w.Max < 0:
			k.bad("worker.max", i, "%d is too small: at least 1", w.Max)
		case len(w.Command) > 0 && !filepath.IsAbs(w.Command[0]) && strings.Contains(w.Command[0], "/"):
			k.bad("worker.command", i, "%q: an absolute path, or a bare name looked for beside mqueue and in PATH", w.Command[0])
		}
		seen[w.Name] = true
	}
	for i, r := range c.Routes {
		if r.Worker != "" && !seen[r.Worker] {
			k.bad("route.worker", i, "no [[worker]] is named %q", r.Worker)
		}
	}
}

// hostPort checks "host:port". A port of 0 or above makes ":port" optional, for -1 it is required.
func hostPort(s string, port int) error {
	host, p := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") && (strings.Count(s, ":") == 1 || s[0] == '[') {
		host, p = s[:i], s[i+1:]
		if n, err := strconv.Atoi(p); err != nil || n < 0 || n > 65535 {
			return fmt.Errorf("%q: %q is no port", s, p)
		}
	}
	if p == "" && port < 0 {
		return fmt.Errorf("%q has no port: write host:port", s)
	}
	inner, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		var ok bool
		if inner, ok = strings.CutSuffix(inner, "]"); !ok {
			return fmt.Errorf("%q: ']' missing", s)
		}
	}
	if _, err := netip.ParseAddr(inner); err == nil {
		return nil
	}
	if err := envelope.CheckDomain(inner); err != nil {
		return fmt.Errorf("%q is neither a host name nor an IP address", host)
	}
	return nil
}
