package resolve_test

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pennypost/internal/mailtest"
	"pennypost/internal/resolve"
)

func TestReverse(t *testing.T) {
	d := mailtest.StartDNS(t, `
7.2.0.192.in-addr.arpa. PTR Mail.Far.test.
7.2.0.192.in-addr.arpa. PTR b.test.
8.2.0.192.in-addr.arpa. CNAME 8.sub.test.
8.sub.test. PTR c.test.
1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR six.test.
10.2.0.192.in-addr.arpa. PTR a\032b.test.
7.2.0.192.bl.test. A 127.0.0.2
7.2.0.192.bl.test. A 127.0.0.9
;! servfail 9.2.0.192.in-addr.arpa
;! servfail 9.2.0.192.bl.test
`)
	r := resolve.New(resolve.Options{Servers: []string{d.Addr()}, Timeout: time.Second, Rounds: 1})
	for _, c := range []struct {
		ip   string
		want []string
		fail bool
	}{
		{"192.0.2.7", []string{"b.test", "mail.far.test"}, false},
		{"::ffff:192.0.2.7", []string{"b.test", "mail.far.test"}, false},
		{"192.0.2.8", []string{"c.test"}, false},
		{"192.0.2.9", nil, true},
		{"192.0.2.10", nil, false},
		{"192.0.2.11", nil, false},
		{"2001:db8::1", []string{"six.test"}, false},
	} {
		got, err := r.Reverse(context.Background(), netip.MustParseAddr(c.ip))
		slices.Sort(got)
		if !slices.Equal(got, c.want) || (err != nil) != c.fail {
			t.Errorf("%s: %q %v, want %q", c.ip, got, err, c.want)
		}
	}
	for ip, want := range map[string]int{"192.0.2.7": 2, "192.0.2.8": 0, "192.0.2.9": -1} {
		got, err := r.A(context.Background(), resolve.ReverseName(netip.MustParseAddr(ip), "BL.test"))
		if n := len(got); n != max(want, 0) || (err != nil) != (want < 0) {
			t.Errorf("%s in bl.test: %v %v, want %d", ip, got, err, want)
		}
	}
}

// A server may be named without its port.
func TestServersHaveAPort(t *testing.T) {
	for in, want := range map[string]string{"127.0.0.1": "127.0.0.1:53", "::1": "[::1]:53", "[::1]": "[::1]:53", "[::1]:5": "[::1]:5", "ns.test:5": "ns.test:5"} {
		if got := resolve.ServersOf(resolve.New(resolve.Options{Servers: []string{in}})); got[0] != want {
			t.Errorf("%s: %s, want %s", in, got[0], want)
		}
	}
}
