package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// Error is what is wrong with a configuration file: one sentence a line of the file.
type Error struct {
	Path  string
	Line  int    // 0: unknown
	Key   string // as written in the file, sections joined with dots
	Cause string
}

func (e *Error) Error() string {
	s := e.Path
	if e.Line > 0 {
		s = fmt.Sprintf("%s:%d", s, e.Line)
	}
	if e.Key != "" {
		s += ": " + e.Key
	}
	return s + ": " + e.Cause
}

// Find returns the configuration file to read and the mode it implies. A file that was asked
// for, by flag or environment, must exist; path is "" when none of the usual places has one.
func Find(asked string) (path, mode string, err error) {
	if asked == "" {
		asked = os.Getenv("PENNYPOST_CONFIG")
	}
	if asked != "" {
		path, err := filepath.Abs(asked)
		if err != nil {
			return "", "", err
		}
		return path, modeOf(path), nil
	}
	for _, p := range []struct{ path, mode string }{{userFile(), User}, {SystemFile, System}} {
		_, err := os.Stat(p.path)
		if err == nil {
			return p.path, p.mode, nil
		}
		// A file that is there and cannot be looked at is no reason to use another one.
		if !errors.Is(err, fs.ErrNotExist) {
			return "", "", err
		}
	}
	if os.Geteuid() == 0 {
		return "", System, nil
	}
	return "", User, nil
}

// modeOf tells the mode of a file that was asked for: only the user's own one, however it is
// named, is in user mode. Anything else would let one file mean different things to different
// users.
func modeOf(path string) string {
	if path == userFile() {
		return User
	}
	return System
}

func userFile() string {
	return filepath.Join(xdg("XDG_CONFIG_HOME", ".config"), "pennypost", "pennypost.toml")
}

// Load finds and reads the configuration file, fills in defaults and checks every value. Every
// fault found is in the error, joined; each is an *Error.
func Load(asked string) (*Config, error) {
	path, mode, err := Find(asked)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	dir := filepath.Dir(SystemFile)
	switch {
	case path != "":
		dir = filepath.Dir(path)
	case mode == User:
		dir = filepath.Dir(userFile())
	}
	c := Default(mode, dir)
	c.Path = path
	if path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("configuration: %w", err)
		}
		if err := decode(c, path, string(data)); err != nil {
			return nil, err
		}
	}
	if err := c.complete(dir); err != nil {
		return nil, err
	}
	return c, nil
}

// decode reads the text into c and refuses unknown keys.
func decode(c *Config, path, text string) error {
	md, err := toml.Decode(text, c)
	if err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			return &Error{Path: path, Line: pe.Position.Line, Key: pe.LastKey, Cause: pe.Message}
		}
		return &Error{Path: path, Cause: err.Error()}
	}
	c.Accounts.UsersMay = !md.IsDefined("accounts", "users")
	var errs []error
	for _, k := range md.Undecoded() {
		errs = append(errs, unknownKey(path, text, k))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if fs := c.check(); len(fs) > 0 {
		for _, f := range fs {
			errs = append(errs, &Error{Path: path, Line: lineOf(text, f.key, f.n), Key: f.key, Cause: f.cause})
		}
		return errors.Join(errs...)
	}
	return nil
}

// complete fills in what depends on the host and on other keys, and makes paths absolute.
func (c *Config) complete(dir string) error {
	if c.Hostname == "" {
		h, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("hostname: %w (set hostname in the configuration)", err)
		}
		c.Hostname = h
	}
	if len(c.Domains) == 0 {
		c.Domains = []string{c.Hostname}
	}
	if c.Postmaster == "" {
		c.Postmaster = "postmaster@" + c.Domains[0]
	}
	if c.Relay.Helo == "" {
		c.Relay.Helo = c.Hostname
	}
	if c.Accounts.Guesses == "" {
		c.Accounts.Guesses = filepath.Join(c.Spool, "guesses")
	}
	if c.Accounts.Aliases == nil {
		c.defaultAliases(dir)
	}
	for i := range c.Policy.DNSBL {
		if d := &c.Policy.DNSBL[i]; d.Weight == 0 {
			d.Weight = 1
		}
	}
	for i := range c.Workers {
		w := &c.Workers[i]
		if w.Max == 0 {
			w.Max = 50
		}
		if w.Timeout == 0 {
			w.Timeout = Duration(30 * time.Minute)
		}
	}
	c.absolute(dir)
	return nil
}

// defaultAliases takes the alias file beside the configuration, and the machine's own, where
// they exist. Files that are named in the configuration must exist; these need not.
func (c *Config) defaultAliases(dir string) {
	files := []string{filepath.Join(dir, "aliases")}
	if c.Mode == System && dir == filepath.Dir(SystemFile) {
		files = append(files, "/etc/aliases")
	}
	for _, f := range files {
		if _, err := os.Stat(f); !errors.Is(err, fs.ErrNotExist) {
			c.Accounts.Aliases = append(c.Accounts.Aliases, f)
		}
	}
}

// absolute makes every path count from dir.
func (c *Config) absolute(dir string) {
	abs := func(p *string) {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	for _, p := range []*string{
		&c.Spool, &c.Maildirs, &c.Relay.Auth, &c.DNS.Hosts, &c.TLS.Cert, &c.TLS.Key, &c.TLS.CA, &c.TLS.ClientCA,
		&c.SMTPD.Senders, &c.Accounts.Certificates, &c.Accounts.TokenSocket,
		&c.Accounts.Users, &c.Accounts.Secrets, &c.Accounts.AuthSocket, &c.Accounts.LookupSocket, &c.Accounts.Guesses, &c.Submit.Socket, &c.Policy.State, &c.Policy.RelayRecipients,
		&c.Store.Control, &c.Store.Index, &c.Session.Socket,
	} {
		abs(p)
	}
	for i := range c.Accounts.Aliases {
		abs(&c.Accounts.Aliases[i])
	}
	for i := range c.TLS.Certificates {
		abs(&c.TLS.Certificates[i].Cert)
		abs(&c.TLS.Certificates[i].Key)
	}
	for i := range c.Routes {
		abs(&c.Routes[i].Auth)
	}
	for i := range c.Workers {
		abs(&c.Workers[i].Socket)
	}
	for i := range c.SMTPD.Hooks {
		abs(&c.SMTPD.Hooks[i].Socket)
	}
	if f, ok := strings.CutPrefix(c.Log, "file:"); ok {
		abs(&f)
		c.Log = "file:" + f
	}
}
