package resolve

import (
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func packed(f *testing.F, rrs ...string) []byte {
	f.Helper()
	m := new(dns.Msg).SetQuestion("a.test.", dns.TypeMX)
	for _, s := range rrs {
		rr, err := dns.NewRR(s)
		if err != nil {
			f.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	b, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// Whatever a server sends, the answer is bounded and of use to its readers.
func FuzzAnswer(f *testing.F) {
	f.Add(packed(f, "a.test. 60 IN MX 10 mx.a.test.", "a.test. 60 IN MX 0 ."), "a.test")
	f.Add(packed(f, "a.test. 60 IN CNAME b.test.", "b.test. 60 IN CNAME a.test.", "b.test. 60 IN A 192.0.2.1"), "a.test")
	f.Add(packed(f, `a\032b.test. 60 IN MX 10 \000\255.test.`), "a.test")
	f.Fuzz(func(t *testing.T, wire []byte, name string) {
		m := new(dns.Msg)
		if m.Unpack(wire) != nil {
			return
		}
		for _, typ := range []uint16{typeMX, typeA, typeAAAA} {
			a := &answer{ttl: maxTTL}
			next, err := a.collect(m, name, typ)
			if err != nil {
				continue
			}
			if a.ttl < 0 || a.ttl > maxTTL || len(a.mx)+len(a.addrs) > len(m.Answer) {
				t.Fatalf("%+v", a)
			}
			for _, ip := range a.addrs {
				if !ip.IsValid() || ip.Is4() != (typ == typeA) && !ip.Is4In6() {
					t.Fatalf("type %d gives %v", typ, ip)
				}
			}
			// The names go into lines of text and further questions.
			for _, host := range append([]string{next}, hostsOf(a)...) {
				if host == name {
					continue
				}
				for i := range len(host) {
					if host[i] < ' ' || host[i] > '~' {
						t.Fatalf("name %q", host)
					}
				}
			}
		}
	})
}

func hostsOf(a *answer) []string {
	var out []string
	for _, m := range a.mx {
		out = append(out, m.host)
	}
	return out
}

func FuzzFiles(f *testing.F) {
	f.Add("127.0.0.1 localhost\n::1 a.test A.Test. # x\nnameserver 192.0.2.1\n")
	f.Fuzz(func(t *testing.T, text string) {
		for name, addrs := range parseHosts(text) {
			if len(addrs) == 0 || !addrs[0].IsValid() {
				t.Fatalf("%q: %v", name, addrs)
			}
		}
		for _, s := range parseResolvConf(text) {
			if _, err := netip.ParseAddrPort(s); err != nil {
				t.Fatalf("server %q", s)
			}
		}
	})
}

func TestCacheIsBounded(t *testing.T) {
	now := time.Now()
	r := New(Options{Now: func() time.Time { return now }})
	done := make(chan struct{})
	close(done)
	for i := range maxEntries {
		r.cache[question{string(rune(i)), 1}] = &entry{done: done, answer: &answer{}, expires: now.Add(time.Hour)}
	}
	r.makeRoom()
	if n := len(r.cache); n >= maxEntries {
		t.Errorf("%d entries", n)
	}
}
