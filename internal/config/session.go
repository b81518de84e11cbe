package config

// Session is msession's: sessions that run as the system's users.
type Session struct {
	Socket   string   `toml:"socket"`       // of msession; "" = sessions run in the process that took the login
	Users    []string `toml:"users"`        // who may hand clients over, besides root; default pp-login
	FirstUID int      `toml:"first_uid"`    // users below it get no session; default 1000
	Max      int      `toml:"max_sessions"` // at once; default 2000
	PerUser  int      `toml:"per_user"`     // of one user; default 50
}

func defaultSession() Session {
	return Session{Users: []string{"pp-login"}, FirstUID: 1000, Max: 2000, PerUser: 50}
}

// checkSession looks at [session].
func (c *Config) checkSession(k *checker) {
	s := c.Session
	if s.Socket != "" && c.Accounts.AuthSocket == "" {
		k.bad("session.socket", 0, "tickets come from \"mpasswd serve\": set accounts.auth_socket too")
	}
	k.atLeast("session.first_uid", int64(s.FirstUID), 1)
	k.atLeast("session.max_sessions", int64(s.Max), 1)
	k.atLeast("session.per_user", int64(s.PerUser), 1)
}
