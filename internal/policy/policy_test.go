package policy

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/mailtest"
	"pennypost/internal/resolve"
)

// site is a policy with a clock of its own.
type site struct {
	o   Options
	now time.Time
	log bytes.Buffer
}

func newSite(t *testing.T) *site {
	s := &site{now: time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)}
	s.o = Options{
		Hostname: "mx.home.test", State: filepath.Join(t.TempDir(), "policy"),
		Now: func() time.Time { return s.now }, Log: slog.New(slog.NewTextHandler(&s.log, nil)),
	}
	return s
}

func addr(t *testing.T, s string) envelope.Address {
	t.Helper()
	if s == "" {
		return envelope.Address{}
	}
	a, err := envelope.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// visit is one client that names one recipient.
func visit(t *testing.T, p *Policy, ip string, m Mail) (Verdict, []Verdict) {
	t.Helper()
	var trail []Verdict
	v := p.Visit(context.Background(), client(ip), func(r Verdict) { trail = append(trail, r) })
	defer v.Close()
	if r := v.Connect(); r.Refuses() {
		return r, trail
	}
	return v.Recipient(context.Background(), m), trail
}

func client(ip string) Client {
	c := Client{Local: netip.MustParseAddr("198.51.100.1")}
	if ip != "" {
		c.Addr = netip.MustParseAddr(ip)
	}
	return c
}

func TestExempt(t *testing.T) {
	s := newSite(t)
	s.o.HeloAddress, s.o.Trusted, s.o.ClientRate = true, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, 1
	s.o.GreetDelay = time.Second
	p := New(s.o)
	for _, c := range []struct {
		ip   string
		want string
	}{{"10.9.9.9", "exempt"}, {"::ffff:10.9.9.9", "exempt"}, {"", "exempt"}, {"192.0.2.1", "helo"}} {
		r, trail := visit(t, p, c.ip, Mail{Helo: "192.0.2.1", To: addr(t, "ann@home.test")})
		if got := trail[len(trail)-1].Check; got != c.want || r.Refuses() != (c.want == "helo") {
			t.Errorf("%q: %+v", c.ip, r)
		}
		v := p.Visit(context.Background(), client(c.ip), nil)
		if (v.GreetDelay() == 0) != (c.want == "exempt") || (v.Exempt() == "") != (c.want == "helo") {
			t.Errorf("%q: delay %v, exempt %q", c.ip, v.GreetDelay(), v.Exempt())
		}
		v.Close()
	}
}

func TestZeroOptionsAskNothing(t *testing.T) {
	s := newSite(t)
	p := New(s.o)
	r, trail := visit(t, p, "192.0.2.1", Mail{Helo: "mx.home.test", To: addr(t, "ann@home.test")})
	if r.Action != Pass || len(trail) != 0 {
		t.Errorf("%+v %+v", r, trail)
	}
	if _, err := os.Stat(s.o.State); err == nil {
		t.Error("a state directory was made for nothing")
	}
}

func TestHelo(t *testing.T) {
	for _, c := range []struct {
		helo, ip string
		want     string // which option refuses it
	}{
		{"c.test", "192.0.2.1", ""},
		{"MX.home.test.", "192.0.2.1", "own"},
		{"mx.home.test", "127.0.0.1", ""},    // ourselves
		{"mx.home.test", "198.51.100.1", ""}, // likewise
		{"[198.51.100.1]", "192.0.2.1", "own"},
		{"198.51.100.1", "192.0.2.1", "own address"},
		{"[192.0.2.1]", "192.0.2.1", ""},
		{"192.0.2.1", "192.0.2.1", "address"},
		{"2001:db8::1", "2001:db8::1", "address"},
		{"[IPv6:2001:db8::1]", "2001:db8::1", ""},
		{"desktop", "192.0.2.1", "unqualified"},
		{"desktop.", "192.0.2.1", "unqualified"},
	} {
		for _, option := range []string{"", "own", "address", "unqualified"} {
			s := newSite(t)
			s.o.HeloOwn, s.o.HeloAddress, s.o.HeloUnqualified = option == "own", option == "address", option == "unqualified"
			p := New(s.o)
			want := option != "" && strings.Contains(c.want, option)
			r, _ := visit(t, p, c.ip, Mail{Helo: c.helo, To: addr(t, "ann@home.test")})
			if r.Refuses() != want || want && (r.Check != "helo" || r.Code != 550 || r.DSN != "5.7.1" || r.Why == "") {
				t.Errorf("HELO %s from %s with %q: %+v", c.helo, c.ip, option, r)
			}
			if r, _ := visit(t, p, c.ip, Mail{Helo: c.helo, To: addr(t, "PostMaster@home.test")}); r.Refuses() {
				t.Errorf("postmaster does not hear %s: %+v", c.helo, r)
			}
		}
	}
}

const zone = `
7.2.0.192.bl.test. A 127.0.0.2
8.2.0.192.bl.test. A 127.0.0.9
9.2.0.192.bl.test. A 203.0.113.1
10.2.0.192.bl.test. A 127.255.255.254
1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.bl.test. A 127.0.0.2
7.2.0.192.wl.test. A 127.0.0.2
8.2.0.192.b2.test. A 127.0.0.2
12.2.0.192.bl.test. A 127.0.0.2
;! servfail 11.2.0.192.bl.test
;! timeout 12.2.0.192.b2.test
7.2.0.192.in-addr.arpa. PTR mail.far.test.
mail.far.test. A 192.0.2.7
8.2.0.192.in-addr.arpa. PTR mail.far.test.
9.2.0.192.in-addr.arpa. PTR none.far.test.
9.2.0.192.in-addr.arpa. PTR nine.far.test.
nine.far.test. A 192.0.2.9
11.2.0.192.in-addr.arpa. PTR slow.far.test.
;! servfail slow.far.test
;! servfail 12.2.0.192.in-addr.arpa
1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR six.far.test.
six.far.test. AAAA 2001:db8::1
`

func resolver(t *testing.T) (*mailtest.DNS, *resolve.Resolver) {
	t.Helper()
	d := mailtest.StartDNS(t, zone)
	return d, resolve.New(resolve.Options{Servers: []string{d.Addr()}, Timeout: 200 * time.Millisecond, Rounds: 1})
}

func TestDNSBL(t *testing.T) {
	d, dns := resolver(t)
	only2 := []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}
	for _, c := range []struct {
		name  string
		ip    string
		zones []Zone
		score int
		want  Action
		why   string
	}{
		{"listed", "192.0.2.7", []Zone{{Name: "bl.test", Weight: 1}}, 1, Reject, "is on bl.test, score 1 of 1"},
		{"listed, IPv6", "2001:db8::1", []Zone{{Name: "bl.test", Weight: 1}}, 1, Reject, "is on bl.test"},
		{"not listed", "192.0.2.99", []Zone{{Name: "bl.test", Weight: 1}}, 1, Pass, "is on no list"},
		{"not enough", "192.0.2.7", []Zone{{Name: "bl.test", Weight: 1}, {Name: "b2.test", Weight: 1}}, 2, Pass, "score 1 of 2"},
		{"enough", "192.0.2.8", []Zone{{Name: "bl.test", Weight: 1}, {Name: "b2.test", Weight: 1}}, 2, Reject, "is on bl.test, b2.test, score 2"},
		{"good elsewhere", "192.0.2.7", []Zone{{Name: "bl.test", Weight: 2}, {Name: "wl.test", Weight: -2}}, 1, Pass, "score 0 of 1"},
		{"another answer", "192.0.2.8", []Zone{{Name: "bl.test", Weight: 1, Answers: only2}}, 1, Pass, "is on no list"},
		{"that answer", "192.0.2.7", []Zone{{Name: "bl.test", Weight: 1, Answers: only2}}, 1, Reject, "is on bl.test"},
		{"a parked domain", "192.0.2.9", []Zone{{Name: "bl.test", Weight: 1}}, 1, Note, "which no list does"},
		{"may not ask", "192.0.2.10", []Zone{{Name: "bl.test", Weight: 1}}, 1, Note, "refuses to answer us"},
		{"broken list", "192.0.2.11", []Zone{{Name: "bl.test", Weight: 1}}, 1, Note, "gives no answer"},
		{"one silent, one not", "192.0.2.12", []Zone{{Name: "b2.test", Weight: 1}, {Name: "bl.test", Weight: 1}}, 1, Reject, "b2.test gives no answer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			s.o.DNS, s.o.Zones, s.o.Score = dns, c.zones, c.score
			r, trail := visit(t, New(s.o), c.ip, Mail{Helo: "c.test", To: addr(t, "ann@home.test")})
			if r.Action != c.want || !strings.Contains(trail[0].Why, c.why) {
				t.Errorf("%+v, %+v", r, trail)
			}
			if c.want == Reject && (r.Code != 554 || r.DSN != "5.7.1" || r.Check != "dnsbl") {
				t.Errorf("%+v", r)
			}
		})
	}
	if n := d.Queries("7.2.0.192.bl.test", 0); n != 1 {
		t.Errorf("%d questions about one client: the answer was not remembered", n)
	}
}

// The lists are asked when the client connects, all at once, and a silent one is waited for no
// longer than the time for DNS.
func TestDNSBLTimeout(t *testing.T) {
	d := mailtest.StartDNS(t, ";! timeout *\n")
	s := newSite(t)
	s.o.DNS = resolve.New(resolve.Options{Servers: []string{d.Addr()}, Timeout: time.Minute})
	s.o.Zones = []Zone{{Name: "a.test", Weight: 1}, {Name: "b.test", Weight: 1}, {Name: "c.test", Weight: 1}}
	s.o.DNSTimeout = 50 * time.Millisecond
	begin := time.Now()
	r, _ := visit(t, New(s.o), "192.0.2.1", Mail{Helo: "c.test", To: addr(t, "ann@home.test")})
	if took := time.Since(begin); r.Action != Note || took > 5*time.Second {
		t.Errorf("%+v after %v", r, took)
	}
	for _, z := range []string{"a.test", "b.test", "c.test"} {
		if n := d.Queries("1.2.0.192."+z, 0); n != 1 {
			t.Errorf("%s was asked %d times", z, n)
		}
	}
}

func TestReverseDNS(t *testing.T) {
	_, dns := resolver(t)
	for _, c := range []struct {
		ip                string
		exists, confirmed Action
		why               string
	}{
		{"192.0.2.7", Pass, Pass, "mail.far.test"},
		{"192.0.2.8", Pass, Reject, "mail.far.test"},
		{"192.0.2.9", Pass, Pass, "192.0.2.9 is "},
		{"192.0.2.10", Reject, Reject, "has no name in DNS"},
		{"192.0.2.11", Pass, Note, "192.0.2.11"},
		{"192.0.2.12", Note, Note, "cannot be looked up"},
		{"2001:db8::1", Pass, Pass, "six.far.test"},
	} {
		for mode, want := range map[string]Action{"exists": c.exists, "confirmed": c.confirmed, "off": Pass} {
			s := newSite(t)
			s.o.DNS, s.o.ReverseDNS = dns, mode
			r, trail := visit(t, New(s.o), c.ip, Mail{Helo: "c.test", To: addr(t, "ann@home.test")})
			if r.Action != want || want == Reject && (r.Code != 550 || r.DSN != "5.7.25") {
				t.Errorf("%s, %s: %+v", c.ip, mode, r)
			}
			v := New(s.o).Visit(t.Context(), Client{Addr: netip.MustParseAddr(c.ip)}, nil)
			name := v.Name(t.Context())
			v.Close()
			if (name != "") != (mode == "confirmed" && c.confirmed == Pass) || name != "" && !strings.HasSuffix(name, ".test") {
				t.Errorf("%s, %s: name %q", c.ip, mode, name)
			}
			if mode != "off" && !strings.Contains(trail[0].Why, c.why) {
				t.Errorf("%s, %s: %s", c.ip, mode, trail[0].Why)
			}
		}
	}
}

func TestGreylist(t *testing.T) {
	const mail, ip = "x@far.test", "192.0.2.7"
	type step struct {
		after    time.Duration
		ip       string
		from, to string
		want     Action
	}
	for _, c := range []struct {
		name  string
		mode  string
		known int
		steps []step
	}{
		{"a retry passes, then the network is known", "full", 1, []step{
			{0, ip, mail, "ann@home.test", Defer},
			{30 * time.Second, ip, mail, "ann@home.test", Defer},
			{40 * time.Second, ip, mail, "ann@home.test", Pass},
			{0, "192.0.2.200", "other@far.test", "bob@home.test", Pass},
			{0, "192.0.3.7", mail, "ann@home.test", Defer},
		}},
		{"another host of the network may retry", "full", 1, []step{
			{0, ip, mail, "ann@home.test", Defer},
			{2 * time.Minute, "192.0.2.8", mail, "ann@home.test", Pass},
		}},
		{"each message counts for itself", "full", 9, []step{
			{0, ip, mail, "ann@home.test", Defer},
			{0, ip, mail, "bob@home.test", Defer},
			{2 * time.Minute, ip, mail, "ann@home.test", Pass},
			{0, ip, "y@far.test", "ann@home.test", Defer},
			{time.Hour, ip, mail, "ANN@home.TEST", Pass},
		}},
		{"by domain", "domain", 9, []step{
			{0, ip, mail, "ann@home.test", Defer},
			{2 * time.Minute, ip, mail, "bob@home.test", Pass},
			{0, ip, mail, "bob@other.test", Defer},
		}},
		{"numbers in senders do not count", "full", 9, []step{
			{0, ip, "list-123=ann@far.test", "ann@home.test", Defer},
			{2 * time.Minute, ip, "list-4567=ann@far.test", "ann@home.test", Pass},
		}},
		{"null reverse-path", "full", 9, []step{
			{0, ip, "", "ann@home.test", Defer},
			{2 * time.Minute, ip, "", "ann@home.test", Pass},
		}},
		{"a retry that comes too late", "full", 1, []step{
			{0, ip, mail, "ann@home.test", Defer},
			{25 * time.Hour, ip, mail, "ann@home.test", Defer},
			{2 * time.Minute, ip, mail, "ann@home.test", Pass},
		}},
		{"forgotten after five weeks", "full", 1, []step{
			{0, ip, mail, "ann@home.test", Defer},
			{2 * time.Minute, ip, mail, "ann@home.test", Pass},
			{34 * 24 * time.Hour, ip, mail, "ann@home.test", Pass},
			{34 * 24 * time.Hour, ip, mail, "ann@home.test", Pass},
			{36 * 24 * time.Hour, ip, mail, "ann@home.test", Defer},
		}},
		{"a clock that was set back", "full", 1, []step{
			{0, ip, mail, "ann@home.test", Defer},
			{-48 * time.Hour, ip, mail, "ann@home.test", Defer},
			{2 * time.Minute, ip, mail, "ann@home.test", Pass},
		}},
		{"IPv6 by /64", "full", 1, []step{
			{0, "2001:db8::1", mail, "ann@home.test", Defer},
			{2 * time.Minute, "2001:db8::ffff:1", mail, "ann@home.test", Pass},
			{0, "2001:db8:0:1::1", mail, "ann@home.test", Defer},
		}},
		{"postmaster", "full", 1, []step{{0, ip, mail, "postmaster@home.test", Pass}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			s.o.Greylist, s.o.Grey = c.mode, GreyTimes{Known: c.known}
			for i, st := range c.steps {
				s.now = s.now.Add(st.after)
				// Each connection is another process's, as it were.
				r, trail := visit(t, New(s.o), st.ip, Mail{Helo: "c.test", From: addr(t, st.from), To: addr(t, st.to)})
				if r.Action != st.want || st.want == Defer && (r.Code != 450 || r.DSN != "4.7.1") || len(trail) == 0 {
					t.Errorf("step %d: %+v, %+v", i, r, trail)
				}
			}
			if s.log.Len() > 0 {
				t.Error(s.log.String())
			}
		})
	}
}

// The verdict about the first recipient holds for the transaction.
func TestGreylistAsksOnce(t *testing.T) {
	s := newSite(t)
	s.o.Greylist, s.o.Grey = "full", GreyTimes{Known: 9}
	v := New(s.o).Visit(context.Background(), client("192.0.2.7"), nil)
	defer v.Close()
	ask := func(to string) Action {
		return v.Recipient(context.Background(), Mail{From: addr(t, "x@far.test"), To: addr(t, to)}).Action
	}
	first, second := ask("ann@home.test"), ask("bob@home.test")
	v.Reset()
	s.now = s.now.Add(2 * time.Minute)
	third, fourth := ask("ann@home.test"), ask("bob@home.test")
	if got := fmt.Sprint(first, second, third, fourth); got != "defer defer pass pass" {
		t.Error(got)
	}
}

// A flood of first attempts does not push out who has come back.
func TestGreylistIsBounded(t *testing.T) {
	s := newSite(t)
	s.o.Greylist, s.o.Grey = "full", GreyTimes{Known: 1}
	p := New(s.o)
	p.grey.buckets = 2
	good := Mail{From: addr(t, "x@far.test"), To: addr(t, "ann@home.test")}
	visit(t, p, "192.0.2.7", good)
	s.now = s.now.Add(2 * time.Minute)
	visit(t, p, "192.0.2.7", good)
	for i := range 3 * 2 * perBucket {
		s.now = s.now.Add(time.Second)
		m := Mail{From: addr(t, "spam"+strings.Repeat("x", i%60)+"@far.test"), To: addr(t, "ann@home.test")}
		visit(t, p, fmt.Sprintf("203.0.%d.7", i%256), m)
	}
	if r, _ := visit(t, p, "192.0.2.9", Mail{From: addr(t, "y@far.test"), To: addr(t, "bob@home.test")}); r.Refuses() {
		t.Errorf("%+v", r)
	}
	if fi, err := os.Stat(filepath.Join(s.o.State, "greylist")); err != nil || fi.Size() != 3*blockSize {
		t.Errorf("%v %v", fi, err)
	}
}

// A dry run explains every check and leaves no trace.
func TestDryRun(t *testing.T) {
	s := newSite(t)
	s.o.Greylist, s.o.DryRun, s.o.HeloAddress, s.o.ClientRate, s.o.ClientSessions = "full", true, true, 5, 5
	r, trail := visit(t, New(s.o), "192.0.2.7", Mail{Helo: "192.0.2.7", From: addr(t, "x@far.test"), To: addr(t, "ann@home.test")})
	var names []string
	for _, v := range trail {
		names = append(names, v.Check+"="+v.Action.String())
	}
	if got := strings.Join(names, " "); r.Check != "helo" || got != "client-sessions=pass client-rate=pass helo=reject greylist=defer" {
		t.Errorf("%+v: %s", r, got)
	}
	if _, err := os.Stat(s.o.State); err == nil {
		t.Error("it wrote")
	}
}

// State that cannot be used is the administrator's trouble, not the client's.
func TestStateFails(t *testing.T) {
	s := newSite(t)
	if err := os.WriteFile(s.o.State, nil, 0o600); err != nil { // a file where the directory belongs
		t.Fatal(err)
	}
	s.o.Greylist, s.o.ClientRate, s.o.ClientSessions = "full", 1, 1
	p := New(s.o)
	for range 3 {
		r, _ := visit(t, p, "192.0.2.7", Mail{Helo: "c.test", From: addr(t, "x@far.test"), To: addr(t, "ann@home.test")})
		if r.Refuses() {
			t.Errorf("%+v", r)
		}
	}
	if n := strings.Count(s.log.String(), "policy state cannot be used"); n != 3 {
		t.Errorf("%d lines for 3 checks: %s", n, s.log.String())
	}
}
