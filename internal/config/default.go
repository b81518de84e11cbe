package config

import (
	"os"
	"path/filepath"
	"time"
)

// Modes of Config.Mode.
const (
	System = "system" // an installation for the whole machine: /etc, /var
	User   = "user"   // one person's own: XDG directories, nothing installed
)

// SystemFile is where the configuration of a whole machine is.
const SystemFile = "/etc/pennypost/pennypost.toml"

// Default is the configuration of an empty file. dir is the directory that relative paths count
// from; account files are looked for there. Host-dependent defaults are filled in by Load.
func Default(mode, dir string) *Config {
	day := 24 * time.Hour
	c := &Config{
		Mode: mode, Log: "stderr", LogFormat: "text",
		AdminGroup: "pp-admin",
		Spool:      "/var/spool/pennypost",
		Maildirs:   "/var/mail/%d/%u",
		Limits:     Limits{MessageSize: 50 << 20, Recipients: 1000, FreeSpace: 64 << 20, FreeInodes: 1000, Hops: 50},
		Queue: Queue{
			Retry: []Duration{
				Duration(5 * time.Minute), Duration(15 * time.Minute), Duration(30 * time.Minute),
				Duration(time.Hour), Duration(2 * time.Hour), Duration(4 * time.Hour),
			},
			Expiry: Duration(5 * day), DelayNotice: Duration(4 * time.Hour), PerHop: 10, Total: 100,
			Scan: Duration(5 * time.Second), History: Duration(14 * day), DSNRate: 20,
		},
		Relay: Relay{Port: 25, TLS: "may", IdleReuse: Duration(5 * time.Second), PerConn: 100, IPv6: "prefer"},
		DNS:   DNS{Timeout: Duration(5 * time.Second)},
		Accounts: Accounts{
			Users: filepath.Join(dir, "users"), UsersMay: true, Secrets: filepath.Join(dir, "secrets"), SubaddressSep: "+",
			TokenTimeout: Duration(10 * time.Second), TokenMax: 8,
		},
		Deliver: Deliver{Forward: true, PipeUser: "pp-pipe", PipeTimeout: Duration(5 * time.Minute), Create: true},
		SMTPD:   SMTPD{MaxSessions: 10000, PerClient: 50, Idle: Duration(30 * time.Second), Timeout: Duration(5 * time.Minute), Errors: 10, HoldMax: Duration(7 * day), DeliverBy: Duration(time.Minute)},
		Policy:  defaultPolicy(),
		Submit:  Submit{Socket: "/run/pennypost/submit"},
	}
	c.defaultMail()
	c.Session = defaultSession()
	if mode == User {
		state := xdg("XDG_STATE_HOME", ".local/state")
		c.Spool = filepath.Join(state, "pennypost", "spool")
		c.Maildirs = filepath.Join(state, "pennypost", "mail", "%d", "%u")
		c.Policy.State = filepath.Join(state, "pennypost", "policy")
		// Reports about the user's own mail come back to a name of /etc/passwd.
		c.Accounts.System = true
	}
	return c
}

// xdg is a directory of the XDG base directory specification, which ignores relative values.
func xdg(env, fallback string) string {
	if d := os.Getenv(env); filepath.IsAbs(d) {
		return d
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/"
	}
	return filepath.Join(home, fallback)
}
