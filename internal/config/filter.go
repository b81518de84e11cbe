package config

import (
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Hook is a program or server that msmtpd asks, mpolicyhook(7).
type Hook struct {
	Name    string   `toml:"name"`    // in logs; default the socket's or the program's
	Socket  string   `toml:"socket"`  // UNIX socket of a server, or
	Command []string `toml:"command"` // program with its arguments, started for each question
	Stages  []string `toml:"stages"`  // connect, helo, mail, rcpt, data, message; default rcpt
	Roles   []string `toml:"roles"`   // default all
	Timeout Duration `toml:"timeout"` // default 10s
	Max     int      `toml:"max"`     // questions at once; default 20
	Default string   `toml:"default"` // without an answer: tempfail (default) | accept
}

// Milter is a content filter that speaks the milter protocol.
type Milter struct {
	Socket  string   `toml:"socket"`  // "inet:host:port" or "unix:/path"
	Roles   []string `toml:"roles"`   // default all
	Timeout Duration `toml:"timeout"` // of one answer; default 30s
	Default string   `toml:"default"` // without an answer: tempfail (default) | accept
}

// complete fills in what a section leaves out.
func (h *Hook) complete() {
	if h.Name == "" {
		h.Name = h.Socket
		if len(h.Command) > 0 {
			h.Name = filepath.Base(h.Command[0])
		}
	}
	if len(h.Stages) == 0 {
		h.Stages = []string{"rcpt"}
	}
	if h.Timeout == 0 {
		h.Timeout = Duration(10 * time.Second)
	}
	if h.Max == 0 {
		h.Max = 20
	}
}

func (m *Milter) complete() {
	if m.Timeout == 0 {
		m.Timeout = Duration(30 * time.Second)
	}
}

// Filters returns the hooks and milters with what their sections leave out filled in.
func (s *SMTPD) Filters() (hooks []Hook, milters []Milter) {
	hooks, milters = slices.Clone(s.Hooks), slices.Clone(s.Milters)
	for i := range hooks {
		hooks[i].complete()
	}
	for i := range milters {
		milters[i].complete()
	}
	return hooks, milters
}

func (c *checker) filter(section string, i int, roles []string, timeout Duration, def string) {
	for _, r := range roles {
		c.oneOf(section+".roles", i, r, "mx", "submission", "submissions", "local")
	}
	if timeout < 0 {
		c.bad(section+".timeout", i, "a time-out is more than 0")
	}
	c.oneOf(section+".default", i, def, "", "tempfail", "accept")
}

// checkFilters looks at [[smtpd.hook]] and [[smtpd.milter]].
func (c *Config) checkFilters(k *checker) {
	for i, h := range c.SMTPD.Hooks {
		k.filter("smtpd.hook", i, h.Roles, h.Timeout, h.Default)
		for _, s := range h.Stages {
			k.oneOf("smtpd.hook.stages", i, s, "connect", "helo", "mail", "rcpt", "data", "message")
		}
		switch {
		case (h.Socket == "") == (len(h.Command) == 0):
			k.bad("smtpd.hook.socket", i, "name either a socket or a command")
		case len(h.Command) > 0 && !filepath.IsAbs(h.Command[0]):
			k.bad("smtpd.hook.command", i, "%q: the program needs an absolute path", h.Command[0])
		}
		if h.Max < 0 {
			k.bad("smtpd.hook.max", i, "%d is too small: at least 1", h.Max)
		}
	}
	for i, m := range c.SMTPD.Milters {
		k.filter("smtpd.milter", i, m.Roles, m.Timeout, m.Default)
		kind, rest, _ := strings.Cut(m.Socket, ":")
		host, port, err := net.SplitHostPort(rest)
		switch {
		case kind == "unix" && filepath.IsAbs(rest):
		case kind == "inet" && err == nil && host != "" && port != "":
		default:
			k.bad("smtpd.milter.socket", i, "%q: write \"inet:127.0.0.1:8891\" or \"unix:/run/filter/sock\"", m.Socket)
		}
	}
}
