package mailtest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// DNS is an authoritative DNS server over UDP and TCP on loopback. It answers from one
// master file that may hold names of any zone, follows CNAMEs and wildcards inside it, and
// says NXDOMAIN for everything else. Lines that start with ";!" script faults:
//
//	;! servfail NAME [TYPE]    answer SERVFAIL
//	;! refused NAME [TYPE]     answer REFUSED
//	;! timeout NAME [TYPE]     no answer at all
//	;! truncate NAME [TYPE]    empty answer with TC over UDP, the whole one over TCP
//	;! garbage NAME [TYPE]     octets that are no DNS message
//	;! formerr NAME [TYPE]     answer FORMERR to queries with EDNS
//	;! ad NAME [TYPE]          set the AD flag, as a validating resolver does
//	;! delay=DUR NAME [TYPE]   wait before the answer
//
// NAME may be "*" for all names. A DNS may be used concurrently.
type DNS struct {
	addr netip.AddrPort
	udp  *dns.Server
	tcp  *dns.Server

	mu      sync.Mutex
	zone    *dnsZone
	path    string // file to watch; "" when the zone came from SetZone
	stamp   dnsStamp
	queries map[dnsKey]int
}

type dnsKey struct {
	name string
	typ  uint16
}

// dnsStamp tells whether the zone file is another one than before.
type dnsStamp struct {
	mtime time.Time
	size  int64
}

// dnsZone is one parsed master file; it is never changed after it is made.
type dnsZone struct {
	rrs    map[dnsKey][]dns.RR
	names  map[string]bool // all owner names and their ancestors (empty non-terminals)
	faults map[dnsKey][]dnsFault
}

type dnsFault struct {
	kind  string
	delay time.Duration
}

// StartDNS serves zone (master-file text) until the test ends.
func StartDNS(t testing.TB, zone string) *DNS {
	t.Helper()
	d, err := NewDNS("127.0.0.1:0", "")
	if err == nil {
		t.Cleanup(d.Close)
		err = d.SetZone(zone)
	}
	if err != nil {
		t.Fatalf("test DNS server: %v", err)
	}
	return d
}

// NewDNS listens on addr (host:port, port 0 for any) and serves the master file at path,
// reading it again whenever it changes. With path "" it serves nothing until SetZone.
func NewDNS(addr, path string) (*DNS, error) {
	d := &DNS{path: path, queries: map[dnsKey]int{}}
	if err := d.SetZone(""); err != nil {
		return nil, err
	}
	d.path = path
	if path != "" {
		if err := d.Reload(); err != nil {
			return nil, err
		}
	}
	pc, l, err := listenBoth(addr)
	if err != nil {
		return nil, err
	}
	d.addr = l.Addr().(*net.TCPAddr).AddrPort()
	d.udp = &dns.Server{PacketConn: pc, Handler: d}
	d.tcp = &dns.Server{Listener: l, Handler: d}
	for _, s := range []*dns.Server{d.udp, d.tcp} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go func() {
			// Its error is that of Close; a server that never starts would hang here,
			// and both sockets are open already.
			_ = s.ActivateAndServe()
		}()
		<-up
	}
	return d, nil
}

// listenBoth opens a UDP and a TCP socket on one port.
func listenBoth(addr string) (net.PacketConn, net.Listener, error) {
	var err error
	for range 20 {
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err != nil {
			return nil, nil, err
		}
		var pc net.PacketConn
		if pc, err = net.ListenPacket("udp", l.Addr().String()); err == nil {
			return pc, l, nil
		}
		l.Close() // somebody has the UDP port of the TCP port the kernel chose: try another
	}
	return nil, nil, err
}

// Addr is the server's address as host:port.
func (d *DNS) Addr() string { return d.addr.String() }

// Close stops the server.
func (d *DNS) Close() {
	// Ignored: a second Close finds them stopped.
	_ = d.udp.Shutdown()
	_ = d.tcp.Shutdown()
}

// SetZone replaces what is served.
func (d *DNS) SetZone(text string) error {
	z, err := parseZone(text, "zone")
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.zone, d.path = z, ""
	return nil
}

// Reload reads the zone file if it changed. A file that cannot be read or parsed leaves the
// old zone in force and is reported once.
func (d *DNS) Reload() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reload()
}

func (d *DNS) reload() error {
	if d.path == "" {
		return nil
	}
	st, err := os.Stat(d.path)
	if err != nil {
		return err
	}
	stamp := dnsStamp{st.ModTime(), st.Size()}
	if stamp == d.stamp {
		return nil
	}
	d.stamp = stamp
	text, err := os.ReadFile(d.path)
	if err != nil {
		return err
	}
	z, err := parseZone(string(text), d.path)
	if err != nil {
		return err
	}
	d.zone = z
	return nil
}

// Queries counts the questions asked so far for name; typ 0 counts all types.
func (d *DNS) Queries(name string, typ uint16) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for k, c := range d.queries {
		if k.name == dns.CanonicalName(name) && (typ == 0 || typ == k.typ) {
			n += c
		}
	}
	return n
}

// ServeDNS implements dns.Handler.
func (d *DNS) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	if len(q.Question) != 1 {
		return
	}
	key := dnsKey{dns.CanonicalName(q.Question[0].Name), q.Question[0].Qtype}
	d.mu.Lock()
	if err := d.reload(); err != nil {
		fmt.Fprintf(os.Stderr, "dnsd: the old zone stays in force: %v\n", err)
	}
	d.queries[key]++
	z := d.zone
	d.mu.Unlock()

	m := z.answer(q, key)
	_, overUDP := w.RemoteAddr().(*net.UDPAddr)
	for _, f := range z.faultsOf(key) {
		switch f.kind {
		case "timeout":
			return
		case "garbage":
			// Ignored, here and below: the asker times out and says so.
			_, _ = w.Write([]byte{byte(q.Id >> 8), byte(q.Id), 0x80})
			return
		case "delay":
			time.Sleep(f.delay)
		case "servfail":
			m = new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		case "refused":
			m = new(dns.Msg).SetRcode(q, dns.RcodeRefused)
		case "formerr":
			if q.IsEdns0() != nil {
				m = new(dns.Msg).SetRcode(q, dns.RcodeFormatError)
			}
		case "truncate":
			if overUDP {
				m.Answer, m.Truncated = nil, true
			}
		case "ad":
			m.AuthenticatedData = true
		}
	}
	if overUDP {
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = max(size, int(o.UDPSize()))
		}
		m.Truncate(size)
	}
	_ = w.WriteMsg(m)
}

// parseZone reads master-file text; relative names count from the root.
func parseZone(text, name string) (*dnsZone, error) {
	z := &dnsZone{rrs: map[dnsKey][]dns.RR{}, names: map[string]bool{}, faults: map[dnsKey][]dnsFault{}}
	for i, line := range strings.Split(text, "\n") {
		f, ok := strings.CutPrefix(strings.TrimSpace(line), ";!")
		if !ok {
			continue
		}
		if err := z.addFault(strings.Fields(f)); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, i+1, err)
		}
	}
	p := dns.NewZoneParser(strings.NewReader(text), ".", name)
	p.SetDefaultTTL(60)
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		h := rr.Header()
		owner := dns.CanonicalName(h.Name)
		k := dnsKey{owner, h.Rrtype}
		z.rrs[k] = append(z.rrs[k], rr)
		for n := owner; n != "."; {
			z.names[n] = true
			i, end := dns.NextLabel(n, 0)
			if end {
				break
			}
			n = n[i:]
		}
	}
	return z, p.Err()
}

func (z *dnsZone) addFault(f []string) error {
	if len(f) < 2 || len(f) > 3 {
		return fmt.Errorf("want ';! FAULT NAME [TYPE]'")
	}
	fault := dnsFault{kind: f[0]}
	if v, ok := strings.CutPrefix(f[0], "delay="); ok {
		dur, err := time.ParseDuration(v)
		if err != nil {
			return err
		}
		fault = dnsFault{"delay", dur}
	}
	switch fault.kind {
	case "servfail", "refused", "timeout", "truncate", "garbage", "formerr", "ad", "delay":
	default:
		return fmt.Errorf("unknown fault %q", f[0])
	}
	k := dnsKey{name: "*"}
	if f[1] != "*" {
		k.name = dns.CanonicalName(f[1])
	}
	if len(f) == 3 {
		t, ok := dns.StringToType[strings.ToUpper(f[2])]
		if !ok {
			return fmt.Errorf("unknown type %q", f[2])
		}
		k.typ = t
	}
	z.faults[k] = append(z.faults[k], fault)
	return nil
}

func (z *dnsZone) faultsOf(k dnsKey) []dnsFault {
	if len(z.faults) == 0 {
		return nil
	}
	var all []dnsFault
	for _, n := range []string{k.name, "*"} {
		all = append(all, z.faults[dnsKey{n, k.typ}]...)
		all = append(all, z.faults[dnsKey{n, 0}]...)
	}
	return all
}

// answer looks key up, following CNAMEs as far as the zone knows them.
func (z *dnsZone) answer(q *dns.Msg, key dnsKey) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Authoritative, m.RecursionAvailable = true, true
	if o := q.IsEdns0(); o != nil {
		m.SetEdns0(o.UDPSize(), o.Do())
	}
	name := key.name
	for range 20 {
		owner, exists := z.closest(name)
		if !exists {
			m.Rcode = dns.RcodeNameError
			return m
		}
		if rrs := z.rrs[dnsKey{owner, key.typ}]; len(rrs) > 0 {
			m.Answer = append(m.Answer, renamed(rrs, owner, name)...)
			return m
		}
		alias := z.rrs[dnsKey{owner, dns.TypeCNAME}]
		if len(alias) == 0 {
			return m
		}
		m.Answer = append(m.Answer, renamed(alias[:1], owner, name)...)
		name = dns.CanonicalName(alias[0].(*dns.CNAME).Target)
	}
	return m // a loop: the chain so far, as servers answer it
}

// closest finds the owner whose records answer for name: itself or the wildcard above it.
func (z *dnsZone) closest(name string) (owner string, exists bool) {
	if z.names[name] {
		return name, true
	}
	for n := name; ; {
		i, end := dns.NextLabel(n, 0)
		if end {
			return "", false
		}
		n = n[i:]
		if z.names["*."+n] {
			return "*." + n, true
		}
		if z.names[n] { // RFC 4592 §3.3.1: the closest encloser ends the search
			return "", false
		}
	}
}

// renamed gives the records of a wildcard the name that was asked for.
func renamed(rrs []dns.RR, owner, name string) []dns.RR {
	if owner == name {
		return rrs
	}
	out := make([]dns.RR, len(rrs))
	for i, rr := range rrs {
		out[i] = dns.Copy(rr)
		out[i].Header().Name = name
	}
	return out
}

// Port is the server's port as a number in text.
func (d *DNS) Port() string { return strconv.Itoa(int(d.addr.Port())) }
