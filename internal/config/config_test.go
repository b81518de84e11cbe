package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// load writes text to a file and loads it.
func load(t *testing.T, text string) (*Config, string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pennypost.toml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	return c, path, err
}

func TestLoadFaults(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"syntax", "hostname = \n", ":1: "},
		{"wrong type", "[queue]\nper_hop = \"many\"\n", "per_hop"},
		{"unknown key", "\nhostnam = \"a.test\"\n", ":2: hostnam: unknown key; did you mean hostname?"},
		{"unknown in section", "[queue]\nexpire = \"5d\"\n", ":2: queue.expire: unknown key; did you mean queue.expiry?"},
		{"wrong section", "[queue]\nsmarthost = \"h\"\n", "did you mean relay.smarthost?"},
		{"unknown section", "[imaginary]\nx = 1\n", "imaginary"},
		{"unknown in array", "[[route]]\nmatch = \"*\"\nto = \"local\"\nwhere = \"x\"\n", ":4: route.where: unknown key"},
		{"duration", "[queue]\nexpiry = \"5 days\"\n", "is no duration"},
		{"duration of zero", "[queue]\nexpiry = 0\n", ":2: queue.expiry: 0 would return every message"},
		{"retry of zero", "[queue]\nretry = [\"5m\", \"0\"]\n", "without a pause"},
		{"no retry", "[queue]\nretry = []\n", "at least one delay"},
		{"few recipients", "[limits]\nrecipients = 10\n", "limits.recipients: 10 is too small: at least 100"},
		{"negative", "[limits]\nmessage_size = -1\n", "too small"},
		{"per_hop", "[queue]\nper_hop = 0\n", "at least 1"},
		{"port", "[relay]\nport = 70000\n", "relay.port: 70000 is no port"},
		{"domain", "domains = [\"a.test\", \"b c\"]\n", `domains: "b c" is no domain name`},
		{"postmaster", "postmaster = \"root\"\n", "is no mail address"},
		{"log", "log = \"stdout\"\n", "none of stderr, syslog, file:PATH"},
		{"log_format", "log_format = \"xml\"\n", "none of text, json"},
		{"clock", "clock = \"tomorrow\"\n", "neither a shift"},
		{"password in smarthost", "[relay]\nsmarthost = \"me:pw@host:587\"\n", "name it in relay.auth"},
		{"smarthost", "[relay]\nsmarthost = \"host:smtp\"\n", `"smtp" is no port`},
		{"tls word", "[relay]\ntls = \"yes\"\n", "none of may, encrypt, verify, none, tls"},
		{"bind", "[relay]\nbind = \"eth0\"\n", "is no IP address"},
		{"resolver", "[dns]\nresolver = \"[::1\"\n", "']' missing"},
		{"cert alone", "[tls]\ncert = \"c.pem\"\n", "set together"},
		{"network", "[smtpd]\nrelay_from = [\"10.0.0.0/33\"]\n", "is no network"},
		{"relay domain", "[smtpd]\nrelay_domains = [\"..x.test\"]\n", `"..x.test" is no domain name`},
		{"no relay domain", "[smtpd]\nrelay_domains = [\".\"]\n", `"." is no domain name`},
		{"proxies", "[smtpd]\nxclient_from = [\"proxy\"]\n", ":2: smtpd.xclient_from"},
		{"etrn", "[smtpd]\netrn_from = [\"\"]\n", ":2: smtpd.etrn_from"},
		{"hold", "[smtpd]\nhold_max = \"31d\"\n", "at most 30d"},
		{"role", "[[smtpd.listen]]\naddr = \"127.0.0.1:0\"\nrole = \"imap\"\n", ":3: smtpd.listen.role"},
		{"listen without port", "[[smtpd.listen]]\naddr = \"127.0.0.1\"\nrole = \"mx\"\n", "has no port"},
		{"layout", "[store]\nlayout = \"flat\"\n", ":2: store.layout: \"flat\" is none of maildir++, fs"},
		{"escape", "[store]\nescape = \".\"\n", ":2: store.escape: \".\": one ASCII character"},
		{"special use", "[store]\nfolders = [\"Sent=outbox\"]\n", ":2: store.folders: \"outbox\" is none of"},
		{"folder without a name", "[store]\nfolders = [\"=sent\"]\n", "has no name"},
		{"one place for all", "store.index = \"/var/index/%d\"\n", "store.index: \"/var/index/%d\": a template"},
		{"short autologout", "pop3.timeout = \"5m\"\n", "pop3.timeout: 5m is too short"},
		{"sessions of nobody", "[smtpd]\nper_client = -1\n", "smtpd.per_client: -1 is too small"},
		{"POP3 of nobody", "[pop3]\nper_client = -1\n", "pop3.per_client: -1 is too small"},
		{"no unique-ids", "pop3.uidl = \"\"\n", "pop3.uidl: empty"},
		{"expire", "pop3.expire = -2\n", "pop3.expire: -2 is too small"},
		{"clear network", "[pop3]\nclear_from = [\"lo\"]\n", ":2: pop3.clear_from: \"lo\" is no network"},
		{"login delay", "pop3.login_delay = \"2d\"\n", "at most 1d"},
		{"role of another", "[[pop3.listen]]\naddr = \"127.0.0.1:0\"\nrole = \"mx\"\n", ":3: pop3.listen.role"},
		{"mechanism", "[accounts]\nmechanisms = [\"PLAIN\", \"CRAM-MD5\"]\n", ":2: accounts.mechanisms: \"CRAM-MD5\" is none of"},
		{"tokens twice", "[accounts]\ntoken_command = [\"/x\"]\ntoken_socket = \"/y\"\n", ":3: accounts.token_socket"},
		{"token program", "[accounts]\ntoken_command = [\"x\"]\n", "needs an absolute path"},
		{"token time", "[accounts]\ntoken_timeout = 0\n", "would refuse every token"},
		{"tokens at once", "[accounts]\ntoken_max = 0\n", "at least 1"},
		{"half a certificate", "[tls]\ncert = \"c\"\nkey = \"k\"\n[[tls.certificate]]\ncert = \"c\"\n", ":5: tls.certificate.cert"},
		{"subaddress", "[accounts]\nsubaddress = \"+-\"\n", "one character"},
		{"policy network", "policy.trusted = [\"10.0.0.0/33\"]\n", "policy.trusted: \"10.0.0.0/33\" is no network"},
		{"policy helo", "policy.helo = [\"theirs\"]\n", "none of own, address, unqualified"},
		{"policy sessions", "[policy]\nclient_sessions = 200\n", ":2: policy.client_sessions: 200 is too much"},
		{"policy rate", "policy.network_rate = -1\n", "too small"},
		{"greylist word", "policy.greylist = \"on\"\n", "none of off, domain, full"},
		{"greylist window", "[policy]\ngreylist_delay = \"1h\"\ngreylist_window = \"1h\"\n", ":3: policy.greylist_window: 1h is not longer"},
		{"greylist expiry", "[policy]\ngreylist_expiry = \"1h\"\n", "is shorter than greylist_window"},
		{"greet delay", "policy.greet_delay = \"5m\"\n", "clients give up"},
		{"tarpit", "policy.tarpit = \"5m\"\n", "too long"},
		{"second list", "[[policy.dnsbl]]\nzone = \"a.test\"\n[[policy.dnsbl]]\nzone = \"b c\"\n", ":4: policy.dnsbl.zone: \"b c\" is no domain"},
		{"list answers", "[[policy.dnsbl]]\nzone = \"a.test\"\nanswers = [\"x\"]\n", "policy.dnsbl.answers: \"x\" is no network"},
		{"route without match", "[[route]]\nto = \"local\"\n", "route.match: missing"},
		{"route to nowhere", "[[route]]\nmatch = \"*\"\n", "neither to nor worker"},
		{"route to two places", "[[route]]\nmatch = \"*\"\nto = \"local\"\nworker = \"local\"\n", "both to and worker"},
		{"route to an address", "[[route]]\nmatch = \"*\"\nto = \"a@b.test\"\n", "a route names a host"},
		{"second route", "[[route]]\nmatch = \"*\"\nto = \"local\"\n[[route]]\nmatch = \"*\"\nto = \"error:2.1.1 fine\"\n", ":6: route.to"},
		{"route to unknown worker", "[[route]]\nmatch = \"*\"\nworker = \"x\"\n", `no [[worker]] is named "x"`},
		{"lmtp without port", "[[route]]\nmatch = \"*\"\nto = \"lmtp:host\"\n", "has no port"},
		{"worker without name", "[[worker]]\nsocket = \"/x\"\n", "worker.name: missing"},
		{"worker without body", "[[worker]]\nname = \"x\"\n", "neither socket nor command"},
		{"filter on a socket", "[[worker]]\nname = \"x\"\nsocket = \"/x\"\nfilter = true\n", "a filter is a command"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, path, err := load(t, c.text)
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), path) {
				t.Errorf("got %q, want %q", err, c.want)
			}
		})
	}
}

func TestEveryFaultIsReported(t *testing.T) {
	_, _, err := load(t, "log = \"x\"\n[relay]\nport = 0\n[limits]\nhops = 0\n")
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("got %v, want three lines", err)
	}
}

func TestLoadFile(t *testing.T) {
	c, path, err := load(t, `
hostname = "mx.a.test"
domains = ["a.test", "b.test"]
spool = "spool"
maildirs = "mail/%d/%u"
log = "file:log/x"
[queue]
retry = ["1s", "2m"]
expiry = "1w"
delay_notice = 0
[accounts]
aliases = ["al"]
subaddress = ""
[deliver]
forward = false
[[route]]
match = "*.c.test"
to = "[127.0.0.1]:2525"
auth = "pw"
[[route]]
match = "d.test"
to = "lmtp:/run/x"
[[route]]
match = "*"
to = "error:5.1.2 we send nothing: it's a test"
[[worker]]
name = "pager"
command = ["/bin/true"]
filter = true
`)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	for _, p := range []struct{ name, got, want string }{
		{"path", c.Path, path},
		{"spool", c.Spool, dir + "/spool"},
		{"maildirs", c.Maildirs, dir + "/mail/%d/%u"},
		{"log", c.Log, "file:" + dir + "/log/x"},
		{"aliases", c.Accounts.Aliases[0], dir + "/al"},
		{"users", c.Accounts.Users, dir + "/users"},
		{"auth", c.Routes[0].Auth, dir + "/pw"},
		{"postmaster", c.Postmaster, "postmaster@a.test"},
		{"helo", c.Relay.Helo, "mx.a.test"},
		{"expiry", c.Queue.Expiry.String(), "1w"},
		{"subaddress", c.Accounts.SubaddressSep, ""},
		{"worker timeout", c.Workers[0].Timeout.String(), "30m"},
	} {
		if p.got != p.want {
			t.Errorf("%s = %q, want %q", p.name, p.got, p.want)
		}
	}
	if !reflect.DeepEqual(c.Queue.Retry, []Duration{Duration(time.Second), Duration(2 * time.Minute)}) {
		t.Errorf("retry = %v: defaults shine through", c.Queue.Retry)
	}
	if c.Deliver.Forward || !c.Deliver.Create || c.Queue.DelayNotice != 0 || c.Workers[0].Max != 50 || c.Queue.Total != 100 {
		t.Errorf("%+v", c)
	}
}

func TestSearchOrder(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_STATE_HOME", "")
	t.Setenv("XDG_CONFIG_HOME", "relative/is/ignored")
	t.Setenv("PENNYPOST_CONFIG", "")
	write := func(path, hostname string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("hostname = \""+hostname+"\"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(asked, hostname, mode string) {
		t.Helper()
		c, err := Load(asked)
		if err != nil || c.Hostname != hostname || c.Mode != mode {
			t.Errorf("Load(%q): %+v, %v; want %s in mode %s", asked, c, err, hostname, mode)
		}
	}
	if _, err := os.Stat(SystemFile); err != nil {
		if c, err := Load(""); err != nil || c.Path != "" || len(c.Domains) != 1 || c.Domains[0] != c.Hostname {
			t.Errorf("without any file: %+v, %v", c, err)
		}
	}
	user := filepath.Join(home, ".config/pennypost/pennypost.toml")
	write(user, "user.test")
	expect("", "user.test", User)
	expect(user, "user.test", User)
	write(filepath.Join(home, "other.toml"), "other.test")
	expect(filepath.Join(home, "other.toml"), "other.test", System)
	c, err := Load("")
	if err != nil || c.Spool != filepath.Join(home, ".local/state/pennypost/spool") || !c.Accounts.System {
		t.Errorf("user mode: %+v, %v", c, err)
	}
	dir := t.TempDir()
	write(filepath.Join(dir, "env.toml"), "env.test")
	write(filepath.Join(dir, "flag.toml"), "flag.test")
	t.Setenv("PENNYPOST_CONFIG", filepath.Join(dir, "env.toml"))
	expect("", "env.test", System)
	expect(filepath.Join(dir, "flag.toml"), "flag.test", System)
	if _, err := Load(filepath.Join(dir, "missing.toml")); err == nil {
		t.Error("a file that was asked for and is missing is no error")
	}
}

func TestDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"0": 0, "90s": 90 * time.Second, "15m": 15 * time.Minute, "4h": 4 * time.Hour, "5d": 120 * time.Hour,
		"2w": 336 * time.Hour, "1h30m": 90 * time.Minute, "250ms": 250 * time.Millisecond, "0s": 0,
	} {
		got, err := ParseDuration(in)
		if err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", in, got, err, want)
		}
		back, err := ParseDuration(Duration(want).String())
		if err != nil || back != want {
			t.Errorf("%v printed as %q reads as %v, %v", want, Duration(want), back, err)
		}
	}
	for _, in := range []string{"", "5", "d", "-5d", "5 d", "1.5h", "5x", "99999999999w", "1000000000000000000000s"} {
		if got, err := ParseDuration(in); err == nil {
			t.Errorf("ParseDuration(%q) = %v without an error", in, got)
		}
	}
}

func TestClock(t *testing.T) {
	at := func(s string) time.Time { return (&Config{Clock: s}).Now()() }
	if d := time.Until(at("")); d > 0 || d < -time.Minute {
		t.Errorf("system clock is off by %v", d)
	}
	if d := time.Until(at("+72h")); d > 72*time.Hour || d < 71*time.Hour {
		t.Errorf("+72h is off by %v", d)
	}
	if d := time.Until(at("-1h")); d > -time.Hour || d < -2*time.Hour {
		t.Errorf("-1h is off by %v", d)
	}
	if got := at("2026-11-22T10:00:00Z"); !got.Equal(time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)) {
		t.Errorf("standing clock at %v", got)
	}
}

func TestDefaultsPassTheirOwnChecks(t *testing.T) {
	for _, mode := range []string{System, User} {
		if f := Default(mode, "/etc/pennypost").check(); len(f) > 0 {
			t.Errorf("%s: %+v", mode, f)
		}
	}
}
