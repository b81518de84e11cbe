// Package config reads the one configuration file, mconf(5). It hides the TOML library and the
// search order of the file. Everything has a default that works on loopback; unknown keys are
// errors. Only cmd/ uses it: packages take plain Options.
package config

import "time"

// Config is the whole file. A key, once released, keeps its meaning. Paths are absolute after
// Load: a relative one counts from the configuration file's directory.
type Config struct {
	Path string `toml:"-"` // the file it came from; "" when none was found (pure defaults)
	Mode string `toml:"-"` // "system" or "user": which search place was used; decides default directories

	Hostname   string   `toml:"hostname"`   // our name in HELO, Received, Message-ID; default os.Hostname
	Domains    []string `toml:"domains"`    // local domains; the first completes bare names
	Postmaster string   `toml:"postmaster"` // default postmaster@<first domain>
	Spool      string   `toml:"spool"`
	Maildirs   string   `toml:"maildirs"`    // template of a virtual user's Maildir: "/var/mail/%d/%u"
	Log        string   `toml:"log"`         // stderr | syslog | file:PATH
	LogFormat  string   `toml:"log_format"`  // text | json
	Clock      string   `toml:"clock"`       // "" system; "+72h"/"-1h" shifted; RFC 3339 time: stands still (tests)
	AdminGroup string   `toml:"admin_group"` // members may change any message in the queue

	Limits   Limits   `toml:"limits"`
	Queue    Queue    `toml:"queue"`
	Routes   []Route  `toml:"route"`
	Relay    Relay    `toml:"relay"`
	DNS      DNS      `toml:"dns"`
	TLS      TLS      `toml:"tls"`
	Accounts Accounts `toml:"accounts"`
	Deliver  Deliver  `toml:"deliver"`
	SMTPD    SMTPD    `toml:"smtpd"`
	Store    Store    `toml:"store"`
	POP3     POP3     `toml:"pop3"`
	Session  Session  `toml:"session"`
	Policy   Policy   `toml:"policy"`
	Submit   Submit   `toml:"submit"`
	Workers  []Worker `toml:"worker"`
}

// Limits bound what is accepted, whatever the way in.
type Limits struct {
	MessageSize int64 `toml:"message_size"` // octets; default 50 MiB; 0 = none
	Recipients  int   `toml:"recipients"`   // a message; default 1000 over SMTP (RFC 5321 asks for 100 at least)
	FreeSpace   int64 `toml:"free_space"`   // octets kept free on the spool's file system; default 64 MiB
	FreeInodes  int64 `toml:"free_inodes"`  // default 1000
	Hops        int   `toml:"hops"`         // Received lines; default 50
}

// Queue is mqueue's schedule.
type Queue struct {
	Retry       []Duration `toml:"retry"`        // delay before the 2nd, 3rd ... attempt; the last repeats
	Expiry      Duration   `toml:"expiry"`       // default 5d
	DelayNotice Duration   `toml:"delay_notice"` // default 4h: one delay DSN (RFC 3461 NOTIFY=DELAY); 0 = never
	PerHop      int        `toml:"per_hop"`      // attempts at once to one next hop; default 10
	Total       int        `toml:"total"`        // attempts at once in all; default 100
	Scan        Duration   `toml:"scan"`         // how often incoming/ is looked at without a poke; default 5s
	History     Duration   `toml:"history"`      // how long history files are kept; default 14d
	DSNRate     int        `toml:"dsn_rate"`     // DSNs to one reverse-path an hour before they are summed up; default 20
}

// Route sends matching recipients somewhere else than DNS and domains say. First match wins.
type Route struct {
	Match  string     `toml:"match"`  // "ann@x.test", "x.test", "*.x.test" (sub-domains), "*"
	To     string     `toml:"to"`     // "host:port", "[host]:port", "lmtp:host:port", "lmtp:/socket", "mx:domain", "local", "error:5.1.1 text"
	Worker string     `toml:"worker"` // name of a [[worker]] instead of to
	Auth   string     `toml:"auth"`   // file with USER:PASSWORD in one line
	TLS    string     `toml:"tls"`    // may | encrypt | verify | none | tls (implicit)
	Retry  []Duration `toml:"retry"`
	Expiry Duration   `toml:"expiry"`
}

// Relay is mrelay's.
type Relay struct {
	Port      int      `toml:"port"`           // of MX hosts; default 25
	Smarthost string   `toml:"smarthost"`      // "host:port": everything not local or routed goes there
	Auth      string   `toml:"auth"`           // file with USER:PASSWORD for it
	TLS       string   `toml:"tls"`            // may (default) | encrypt | verify | none | tls
	Helo      string   `toml:"helo"`           // default hostname
	Bind      string   `toml:"bind"`           // local address for outgoing connections
	Timeout   Duration `toml:"timeout"`        // scale of RFC 5321 §4.5.3.2's time-outs; "" = as there
	IdleReuse Duration `toml:"idle"`           // how long an idle connection is kept for the next message; default 5s
	PerConn   int      `toml:"per_connection"` // messages on one connection; default 100
	IPv6      string   `toml:"ipv6"`           // prefer (default) | avoid | never
}

// DNS is how names are looked up.
type DNS struct {
	Resolver string   `toml:"resolver"` // "127.0.0.1:53"; default from /etc/resolv.conf
	TrustAD  bool     `toml:"trust_ad"`
	Timeout  Duration `toml:"timeout"` // a query; default 5s
	Hosts    string   `toml:"hosts"`   // file in hosts(5) form, asked first; "" = none
}

// TLS is the server's certificates and whom the client trusts.
type TLS struct {
	Cert string `toml:"cert"` // PEM chain
	Key  string `toml:"key"`
	CA   string `toml:"ca"` // PEM; besides the system's roots

	Certificates []Certificate `toml:"certificate"` // further ones, chosen by the name a client asks for
	ClientCA     string        `toml:"client_ca"`   // PEM; authorities that vouch for users' certificates
}

// HasCerts tells whether a server has a certificate.
func (t TLS) HasCerts() bool { return t.Cert != "" || len(t.Certificates) > 0 }

// Certificate is one more certificate of a server.
type Certificate struct {
	Cert string `toml:"cert"` // PEM chain
	Key  string `toml:"key"`
}

// Accounts names the files of maccounts(5), and says how users prove who they are, whatever the
// protocol.
type Accounts struct {
	Users         string   `toml:"users"`
	UsersMay      bool     `toml:"-"` // users does not stand in the configuration: the default file need not exist
	Secrets       string   `toml:"secrets"`
	Aliases       []string `toml:"aliases"`
	System        bool     `toml:"system"`        // users of /etc/passwd and getent are users of the first domain
	SubaddressSep string   `toml:"subaddress"`    // default "+"; "" = none
	CatchAll      string   `toml:"catch_all"`     // address that takes unknown recipients of local domains
	AuthSocket    string   `toml:"auth_socket"`   // of "mpasswd serve"; "" = passwords are checked in the process itself
	AuthUsers     []string `toml:"auth_users"`    // who may ask there besides root and the service's own user
	Guesses       string   `toml:"guesses"`       // file with the counts of wrong passwords; default "guesses" in the spool
	LookupSocket  string   `toml:"lookup_socket"` // asked about users that no file has
	CheckPassword []string `toml:"checkpassword"` // program asked about logins without a secret

	Mechanisms   []string `toml:"mechanisms"`    // offered where they can work; default all
	Certificates string   `toml:"certificates"`  // file: user: sha256:FINGERPRINT, cn:NAME
	TokenCommand []string `toml:"token_command"` // checks OAuth tokens
	TokenSocket  string   `toml:"token_socket"`  // the same, a UNIX socket
	TokenTimeout Duration `toml:"token_timeout"` // default 10s
	TokenMax     int      `toml:"token_max"`     // checks at once; default 8
}

// Deliver is mdeliver's.
type Deliver struct {
	Forward     bool     `toml:"forward"`      // honour ~/.forward of system users; default true
	PipeUser    string   `toml:"pipe_user"`    // default pp-pipe
	User        string   `toml:"user"`         // whose the mailboxes of virtual users are, where mdeliver is root; default mdeliver's own
	PipeTimeout Duration `toml:"pipe_timeout"` // default 5m
	Create      bool     `toml:"create"`       // make a missing Maildir; default true
}

// SMTPD is msmtpd's.
type SMTPD struct {
	RelayFrom    []string   `toml:"relay_from"`    // networks that may relay without AUTH; default none, loopback included
	RelayDomains []string   `toml:"relay_domains"` // domains we are backup MX for; ".x.test" is all below x.test
	AuthFree     bool       `toml:"-"`
	MaxSessions  int        `toml:"max_sessions"` // in one process; default 10000
	PerClient    int        `toml:"per_client"`   // of one address or IPv6 /64 in one process; default 50, 0 = no limit
	Idle         Duration   `toml:"idle"`         // a socket-activated process ends after this without a client; default 30s
	Timeout      Duration   `toml:"timeout"`      // a client's silence; default 5m (RFC 5321 §4.5.3.2.7)
	Errors       int        `toml:"errors"`       // bad commands before 421; default 10
	HoldMax      Duration   `toml:"hold_max"`     // FUTURERELEASE: how long users may have a message held; default 7d, 0 = not offered
	DeliverBy    Duration   `toml:"deliver_by"`   // DELIVERBY: the shortest time that may be asked for; default 1m, 0 = not offered
	XClientFrom  []string   `toml:"xclient_from"` // networks of proxies that may use XCLIENT; default none
	ETRNFrom     []string   `toml:"etrn_from"`    // networks that may start a domain's queue by ETRN; default none
	ProxyFrom    []string   `toml:"proxy_from"`   // networks of proxies that send the PROXY protocol; default none
	Senders      string     `toml:"senders"`      // file: user: addresses, @domains, *
	Listen       []Listener `toml:"listen"`       // used by plain "msmtpd --listen" without arguments
	Hooks        []Hook     `toml:"hook"`         // programs that are asked about clients, recipients and messages
	Milters      []Milter   `toml:"milter"`       // content filters
}

// Listener is one socket with its role.
type Listener struct {
	Addr string `toml:"addr"` // "127.0.0.1:25", "/run/pennypost/submit"
	Role string `toml:"role"` // mx | submission | submissions | local
}

// Policy is what msmtpd asks of strangers, mpolicy(5). Numbers that are 0 ask nothing.
type Policy struct {
	State           string   `toml:"state"`            // directory of what is remembered between connections
	Trusted         []string `toml:"trusted"`          // networks that are asked nothing, besides smtpd.relay_from
	Helo            []string `toml:"helo"`             // names refused in HELO: own, address, unqualified
	ReverseDNS      string   `toml:"reverse_dns"`      // off (default) | exists | confirmed
	GreetDelay      Duration `toml:"greet_delay"`      // before the greeting, to see who cannot wait
	EarlyTalker     string   `toml:"early_talker"`     // reject (default) | log
	ClientRate      int      `toml:"client_rate"`      // connections a minute from one address, or IPv6 /64
	NetworkRate     int      `toml:"network_rate"`     // the same from one network, /24 or /48
	ClientSessions  int      `toml:"client_sessions"`  // sessions at once from one address, or IPv6 /64
	NetworkSessions int      `toml:"network_sessions"` // the same from one network
	UserRecipients  int      `toml:"user_recipients"`  // recipients an hour of one authenticated user
	Greylist        string   `toml:"greylist"`         // off (default) | domain | full
	GreylistDelay   Duration `toml:"greylist_delay"`   // default 1m
	GreylistWindow  Duration `toml:"greylist_window"`  // default 1d
	GreylistExpiry  Duration `toml:"greylist_expiry"`  // default 5w
	GreylistKnown   int      `toml:"greylist_known"`   // successful retries that make a client known; default 1
	DNSBL           []DNSBL  `toml:"dnsbl"`
	DNSBLScore      int      `toml:"dnsbl_score"`      // sum of weights that refuses; default 1
	DNSBLTimeout    Duration `toml:"dnsbl_timeout"`    // default 5s
	Tarpit          Duration `toml:"tarpit"`           // before an unknown recipient is answered
	UnknownLimit    int      `toml:"unknown_limit"`    // unknown recipients that end a session
	Quota           bool     `toml:"quota"`            // full mailboxes refuse at RCPT; default true
	RelayRecipients string   `toml:"relay_recipients"` // file with the addresses of smtpd.relay_domains
}

// DNSBL is one zone of a list of addresses in DNS.
type DNSBL struct {
	Zone    string   `toml:"zone"`
	Weight  int      `toml:"weight"`  // default 1; below 0 for lists of good addresses
	Answers []string `toml:"answers"` // addresses or networks that count; default 127.0.0.0/8
}

// Submit is msend's.
type Submit struct {
	Socket string `toml:"socket"` // local submission socket of msmtpd; default /run/pennypost/submit
	From   string `toml:"from"`   // default domain or address for senders; default the first of domains
}

// Worker is a delivery agent mqueue drives. Those named "local" (mdeliver) and "relay" (mrelay)
// exist by default as children; a section of that name overrides.
type Worker struct {
	Name    string   `toml:"name"`
	Socket  string   `toml:"socket"`  // its own UNIX socket; else
	Command []string `toml:"command"` // a child on a socket pair (fd 3), or with filter = true a filter
	Filter  bool     `toml:"filter"`  // message on stdin, addresses as arguments, sysexits status as verdict
	User    string   `toml:"user"`    // the uid that must answer on Socket
	Max     int      `toml:"max"`     // requests in flight; default 50
	Timeout Duration `toml:"timeout"` // a request without an answer for so long is deferred; default 30m
}

// Duration reads "90s", "15m", "4h", "5d", "2w"; a bare 0 is allowed.
type Duration time.Duration
