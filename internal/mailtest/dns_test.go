package mailtest

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const testZone = `
$ORIGIN a.test.
@        MX 10 mx1
@        MX 20 mx2
mx1      A 127.0.0.2
mx2      AAAA ::1
alias    CNAME other.b.test.
loop     CNAME loop2
loop2    CNAME loop
*.wild   A 127.0.0.9
x.y.z    TXT "deep"
other.b.test. A 127.0.0.3
;! servfail broken.a.test
;! truncate big.a.test TXT
;! timeout silent.a.test A
;! ad mx1.a.test
;! formerr old.a.test
big      TXT "all of it"
old      A 127.0.0.4
`

func askDNS(t *testing.T, network, addr, name string, typ uint16, edns bool) (*dns.Msg, error) {
	t.Helper()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), typ)
	if edns {
		q.SetEdns0(1232, false)
	}
	m, _, err := (&dns.Client{Net: network, Timeout: 300 * time.Millisecond}).Exchange(q, addr)
	return m, err
}

func TestDNSAnswers(t *testing.T) {
	d := StartDNS(t, testZone)
	for _, c := range []struct {
		name  string
		typ   uint16
		rcode int
		n     int
	}{
		{"a.test", dns.TypeMX, dns.RcodeSuccess, 2},
		{"A.TeSt", dns.TypeMX, dns.RcodeSuccess, 2},
		{"mx1.a.test", dns.TypeA, dns.RcodeSuccess, 1},
		{"mx1.a.test", dns.TypeAAAA, dns.RcodeSuccess, 0},
		{"alias.a.test", dns.TypeA, dns.RcodeSuccess, 2},
		{"loop.a.test", dns.TypeA, dns.RcodeSuccess, 20},
		{"any.wild.a.test", dns.TypeA, dns.RcodeSuccess, 1},
		{"y.z.a.test", dns.TypeTXT, dns.RcodeSuccess, 0},
		{"nothing.a.test", dns.TypeA, dns.RcodeNameError, 0},
		{"elsewhere.example", dns.TypeMX, dns.RcodeNameError, 0},
		{"broken.a.test", dns.TypeA, dns.RcodeServerFailure, 0},
	} {
		m, err := askDNS(t, "udp", d.Addr(), c.name, c.typ, true)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if m.Rcode != c.rcode || len(m.Answer) != c.n {
			t.Errorf("%s %s: rcode %d with %d records, want %d with %d", c.name, dns.TypeToString[c.typ], m.Rcode, len(m.Answer), c.rcode, c.n)
		}
	}
	if n := d.Queries("A.test", dns.TypeMX); n != 2 {
		t.Errorf("counted %d queries for a.test MX, want 2", n)
	}
}

func TestDNSFaults(t *testing.T) {
	d := StartDNS(t, testZone)
	m, err := askDNS(t, "udp", d.Addr(), "big.a.test", dns.TypeTXT, false)
	if err != nil || !m.Truncated || len(m.Answer) != 0 {
		t.Errorf("truncate over UDP: %v, %v", m, err)
	}
	m, err = askDNS(t, "tcp", d.Addr(), "big.a.test", dns.TypeTXT, false)
	if err != nil || m.Truncated || len(m.Answer) != 1 {
		t.Errorf("truncate over TCP: %v, %v", m, err)
	}
	if _, err = askDNS(t, "udp", d.Addr(), "silent.a.test", dns.TypeA, false); err == nil {
		t.Error("timeout: there was an answer")
	} else if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
		t.Errorf("timeout: %v", err)
	}
	if m, err = askDNS(t, "udp", d.Addr(), "mx1.a.test", dns.TypeA, true); err != nil || !m.AuthenticatedData {
		t.Errorf("ad: %v, %v", m, err)
	}
	if m, err = askDNS(t, "udp", d.Addr(), "old.a.test", dns.TypeA, true); err != nil || m.Rcode != dns.RcodeFormatError {
		t.Errorf("formerr: %v, %v", m, err)
	}
	if m, err = askDNS(t, "udp", d.Addr(), "old.a.test", dns.TypeA, false); err != nil || len(m.Answer) != 1 {
		t.Errorf("formerr without EDNS: %v, %v", m, err)
	}
	for _, bad := range []string{";! nonsense a.test", ";! servfail", ";! servfail a.test NOTYPE", "a.test. A 1.2.3"} {
		if d.SetZone(bad) == nil {
			t.Errorf("the zone %q is taken", bad)
		}
	}
}

func TestDNSReloadsItsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zone")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("h.test. A 127.0.0.1\n")
	d, err := NewDNS("127.0.0.1:0", path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	write("h.test. A 127.0.0.1\nh.test. A 127.0.0.2\n")
	m, err := askDNS(t, "udp", d.Addr(), "h.test", dns.TypeA, false)
	if err != nil || len(m.Answer) != 2 {
		t.Fatalf("after the change: %v, %v", m, err)
	}
	if _, err := NewDNS("127.0.0.1:0", path+".missing"); err == nil {
		t.Error("a missing zone file is taken")
	}
}
