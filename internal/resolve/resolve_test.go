package resolve_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"pennypost/internal/envelope"
	"pennypost/internal/mailtest"
	"pennypost/internal/resolve"
)

const zone = `
$ORIGIN test.
$TTL 300
a          MX 10 mx1.a
a          MX 20 mx2.a
mx1.a      A 192.0.2.1
mx1.a      AAAA 2001:db8::1
mx2.a      A 192.0.2.2
equal      MX 5 mx1.a
equal      MX 5 mx2.a
implicit   A 192.0.2.3
nullmx     MX 0 .
nullandone MX 0 .
nullandone MX 10 mx1.a
noaddr     TXT "nothing here"
deadmx     MX 10 nothing.a
deadmx     MX 20 noaddr
halfdead   MX 10 nothing.a
halfdead   MX 20 mx2.a
alias      CNAME alias2
alias2     CNAME a
loop       CNAME loop2
loop2      CNAME loop
dangling   CNAME nowhere
mxalias    MX 10 cn.a
cn.a       CNAME mx2.a
xn--bcher-kva MX 10 mx2.a
ours       MX 5 better.a
ours       MX 10 me
ours       MX 10 mx1.a
ours       MX 20 mx2.a
better.a   A 192.0.2.9
me         A 192.0.2.10
selfbest   MX 10 me
selfbest   MX 20 mx2.a
selfaddr   MX 10 other-name
selfaddr   MX 20 mx2.a
other-name A 192.0.2.10
big        MX 10 mx1.a
big        MX 20 mx2.a
old        MX 10 mx2.a
short      0 IN MX 10 mx2.a
secure     MX 10 mx9.a
mx9.a      A 192.0.2.11
tempmx     MX 10 broken.a
somebroken MX 10 broken.a
somebroken MX 20 mx2.a
;! servfail servfail.test
;! timeout silent.test
;! refused refused.test
;! garbage garbage.test
;! truncate big.test MX
;! formerr old.test
;! servfail broken.a.test
;! ad secure.test
;! ad mx9.a.test
`

func newResolver(t *testing.T, o resolve.Options) (*resolve.Resolver, *mailtest.DNS) {
	t.Helper()
	d := mailtest.StartDNS(t, zone)
	if o.Servers == nil {
		o.Servers = []string{d.Addr()}
	}
	o.Timeout = 200 * time.Millisecond
	return resolve.New(o), d
}

// show is "pref name addr,addr; ..." of hosts.
func show(hosts []resolve.Host) string {
	var out []string
	for _, h := range hosts {
		var a []string
		for _, ip := range h.Addrs {
			a = append(a, ip.String())
		}
		s := fmt.Sprintf("%d %s %s", h.Pref, h.Name, strings.Join(a, ","))
		if h.Err != nil {
			s += "!"
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

func TestNextHops(t *testing.T) {
	r, _ := newResolver(t, resolve.Options{Self: []string{"me.test"}, SelfAddrs: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.10")} }})
	const six = "2001:db8::1,192.0.2.1"
	for _, c := range []struct{ domain, want, code string }{
		{"a.test", "10 mx1.a.test " + six + "; 20 mx2.a.test 192.0.2.2", ""},
		{"A.TEST.", "10 mx1.a.test " + six + "; 20 mx2.a.test 192.0.2.2", ""},
		{"implicit.test", "0 implicit.test 192.0.2.3", ""},
		{"nullmx.test", "", "5.1.10"},
		{"nullandone.test", "10 mx1.a.test " + six, ""},
		{"nowhere.test", "", "5.1.2"},
		{"noaddr.test", "0 noaddr.test !", "5.4.4"},
		{"deadmx.test", "10 nothing.a.test !; 20 noaddr.test !", "5.4.4"},
		{"halfdead.test", "10 nothing.a.test !; 20 mx2.a.test 192.0.2.2", ""},
		{"alias.test", "10 mx1.a.test " + six + "; 20 mx2.a.test 192.0.2.2", ""},
		{"loop.test", "", "4.4.3"},
		{"dangling.test", "", "5.1.2"},
		{"mxalias.test", "10 cn.a.test 192.0.2.2", ""},
		{"bücher.test", "10 mx2.a.test 192.0.2.2", ""},
		{"BÜCHER.test.", "10 mx2.a.test 192.0.2.2", ""},
		{"ours.test", "5 better.a.test 192.0.2.9", ""},
		{"selfbest.test", "", "5.4.6"},
		{"selfaddr.test", "", "5.4.6"},
		{"big.test", "10 mx1.a.test " + six + "; 20 mx2.a.test 192.0.2.2", ""},
		{"old.test", "10 mx2.a.test 192.0.2.2", ""},
		{"servfail.test", "", "4.4.3"},
		{"silent.test", "", "4.4.3"},
		{"refused.test", "", "4.4.3"},
		{"garbage.test", "", "4.4.3"},
		{"tempmx.test", "10 broken.a.test !", "4.4.3"},
		{"somebroken.test", "10 broken.a.test !; 20 mx2.a.test 192.0.2.2", ""},
		{"[192.0.2.7]", "0 [192.0.2.7] 192.0.2.7", ""},
		{"[IPv6:2001:db8::7]", "0 [IPv6:2001:db8::7] 2001:db8::7", ""},
		{"localhost", "", "5.1.2"},
		{"bad domain", "", "5.1.2"},
		{"a..test", "", "5.1.2"},
	} {
		hosts, err := r.NextHops(t.Context(), c.domain)
		var e *resolve.Error
		switch {
		case c.code == "" && err != nil:
			t.Errorf("%s: %v", c.domain, err)
		case c.code != "" && (!errors.As(err, &e) || e.Status.Code != c.code):
			t.Errorf("%s: %v, want %s", c.domain, err, c.code)
		case c.code != "" && (e.Status.Verdict == envelope.Failed) != (c.code[0] == '5'):
			t.Errorf("%s: %+v", c.domain, e.Status)
		}
		if got := show(hosts); got != c.want {
			t.Errorf("%s: got %q, want %q", c.domain, got, c.want)
		}
	}
}

func TestEqualPreferencesAreShuffled(t *testing.T) {
	r, _ := newResolver(t, resolve.Options{})
	seen := map[string]bool{}
	for range 200 {
		hosts, err := r.NextHops(t.Context(), "equal.test")
		if err != nil {
			t.Fatal(err)
		}
		seen[hosts[0].Name] = true
	}
	if len(seen) != 2 {
		t.Errorf("always first: %v", seen)
	}
}

func TestFamilies(t *testing.T) {
	for pref, want := range map[string]string{
		"":       "2001:db8::1,192.0.2.1",
		"prefer": "2001:db8::1,192.0.2.1",
		"avoid":  "192.0.2.1,2001:db8::1",
		"never":  "192.0.2.1",
	} {
		r, d := newResolver(t, resolve.Options{IPv6: pref})
		addrs, err := r.Addrs(t.Context(), "mx1.a.test")
		if got := show([]resolve.Host{{Addrs: addrs}}); err != nil || got != "0  "+want {
			t.Errorf("%q: %q, %v", pref, got, err)
		}
		if n := d.Queries("mx1.a.test", dns.TypeAAAA); (n == 0) != (pref == "never") {
			t.Errorf("%q: %d questions for AAAA", pref, n)
		}
	}
}

func TestAddrs(t *testing.T) {
	r, d := newResolver(t, resolve.Options{})
	for host, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "[192.0.2.1]": "192.0.2.1", "2001:db8::5": "2001:db8::5", "[IPv6:2001:db8::5]": "2001:db8::5",
		"mx2.a.test": "192.0.2.2", "localhost": "::1,127.0.0.1",
	} {
		addrs, err := r.Addrs(t.Context(), host)
		if got := show([]resolve.Host{{Addrs: addrs}}); err != nil || got != "0  "+want {
			t.Errorf("%s: %q, %v", host, got, err)
		}
	}
	if d.Queries("localhost", 0) != 0 {
		t.Error("DNS is asked about localhost")
	}
	if _, err := r.Addrs(t.Context(), "nothing.a.test"); err == nil {
		t.Error("an unknown host has addresses")
	}
}

func TestCache(t *testing.T) {
	var mu sync.Mutex
	now := time.Now()
	r, d := newResolver(t, resolve.Options{Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	ask := func(domain string) {
		t.Helper()
		// Some domains are there to fail.
		_, _ = r.NextHops(t.Context(), domain)
	}
	step := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
	expect := func(domain string, want int) {
		t.Helper()
		if n := d.Queries(domain, dns.TypeMX); n != want {
			t.Errorf("%s: %d questions, want %d", domain, n, want)
		}
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { ask("a.test") })
	}
	wg.Wait()
	expect("a.test", 1)
	step(299 * time.Second)
	ask("a.test")
	expect("a.test", 1)
	step(2 * time.Second)
	ask("a.test")
	expect("a.test", 2)

	ask("short.test") // TTL 0 is kept for a second
	ask("short.test")
	expect("short.test", 1)
	step(2 * time.Second)
	ask("short.test")
	expect("short.test", 2)

	ask("nowhere.test")
	ask("nowhere.test")
	expect("nowhere.test", 1)
	step(2 * time.Minute)
	ask("nowhere.test")
	expect("nowhere.test", 2)

	ask("refused.test") // failures are not kept
	ask("refused.test")
	expect("refused.test", 4)
}

func TestAD(t *testing.T) {
	r, _ := newResolver(t, resolve.Options{})
	for domain, want := range map[string]bool{"secure.test": true, "a.test": false} {
		hosts, err := r.NextHops(t.Context(), domain)
		if err != nil || hosts[0].AD != want {
			t.Errorf("%s: %+v, %v", domain, hosts, err)
		}
	}
}

func TestServersAreTriedInTurn(t *testing.T) {
	d := mailtest.StartDNS(t, zone)
	dead := mailtest.StartDNS(t, ";! timeout *\n")
	refusing := mailtest.StartDNS(t, ";! refused *\n")
	r := resolve.New(resolve.Options{Servers: []string{"127.0.0.1:1", dead.Addr(), refusing.Addr(), d.Addr()}, Timeout: 100 * time.Millisecond})
	if hosts, err := r.NextHops(t.Context(), "implicit.test"); err != nil || len(hosts) != 1 {
		t.Errorf("%v, %v", hosts, err)
	}
	none := resolve.New(resolve.Options{})
	var e *resolve.Error
	if _, err := none.NextHops(t.Context(), "a.test"); !errors.As(err, &e) || e.Status.Code != "4.4.3" {
		t.Errorf("without a server: %v", err)
	}
}

func TestResolvConf(t *testing.T) {
	d := mailtest.StartDNS(t, zone)
	_, port, _ := strings.Cut(d.Addr(), ":")
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("# comment\nsearch x\nnameserver 127.0.0.1\nnameserver nonsense\nnameserver ::1\noptions edns0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := resolve.New(resolve.Options{ResolvConf: path, Timeout: 50 * time.Millisecond, Rounds: 1})
	// Port 53 of loopback is not ours: only that it was asked can be seen.
	if _, err := r.NextHops(t.Context(), "a.test"); err != nil && !strings.Contains(err.Error(), ":53") {
		t.Errorf("%v (our server is at %s)", err, port)
	}
}

func TestHostsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("127.0.0.5 A.test mx2.a.test # comment\nnonsense a.test\n::1 a.test\n")
	r, d := newResolver(t, resolve.Options{Hosts: path})
	hosts, err := r.NextHops(t.Context(), "a.test")
	if got := show(hosts); err != nil || got != "0 a.test ::1,127.0.0.5" {
		t.Errorf("%q, %v", got, err)
	}
	if d.Queries("a.test", 0) != 0 {
		t.Error("DNS is asked about a name of the hosts file")
	}
	hosts, err = r.NextHops(t.Context(), "old.test") // MX from DNS, its address from the file
	if got := show(hosts); err != nil || got != "10 mx2.a.test 127.0.0.5" {
		t.Errorf("%q, %v", got, err)
	}
	write("127.0.0.66 a.test\n")
	if hosts, err = r.NextHops(t.Context(), "a.test"); err != nil || show(hosts) != "0 a.test 127.0.0.66" {
		t.Errorf("after a change: %q, %v", show(hosts), err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if hosts, err = r.NextHops(t.Context(), "a.test"); err != nil || len(hosts) != 2 {
		t.Errorf("without the file: %q, %v", show(hosts), err)
	}
}

func TestBrokenOff(t *testing.T) {
	r, _ := newResolver(t, resolve.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var e *resolve.Error
	if _, err := r.NextHops(ctx, "a.test"); !errors.As(err, &e) || e.Status.Verdict != envelope.Deferred {
		t.Errorf("%v", err)
	}
	if _, err := r.NextHops(t.Context(), "a.test"); err != nil {
		t.Errorf("the broken look-up is remembered: %v", err)
	}
}

func TestToASCII(t *testing.T) {
	for in, want := range map[string]string{
		"Example.ORG.": "example.org", "bücher.example": "xn--bcher-kva.example", "_x.test": "_x.test",
		"例え.テスト": "xn--r8jz45g.xn--zckzah",
	} {
		if got, err := resolve.ToASCII(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", ".", "a b", "ü\x00", "a..b", strings.Repeat("ü", 60) + ".test", "\xff.test"} {
		if got, err := resolve.ToASCII(in); err == nil {
			t.Errorf("%q is taken as %q", in, got)
		}
	}
}
