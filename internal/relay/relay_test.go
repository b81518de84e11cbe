package relay_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/mailtest"
	"pennypost/internal/relay"
	"pennypost/internal/resolve"
	"pennypost/internal/smtp"
	"pennypost/internal/worker"
)

const message = "Subject: hi\n\nbody\n.dot\n"

// rig is a Relayer with a DNS zone and peers on one port of 127.0.0.2, 127.0.0.3 ...
type rig struct {
	t     *testing.T
	r     *relay.Relayer
	peers []*mailtest.Peer
	port  int
}

// zone has the MX records of a test: a.test on the first peer with the second as backup.
const zone = `
$ORIGIN test.
a      MX 10 mx1
a      MX 20 mx2
mx1    A 127.0.0.2
mx2    A 127.0.0.3
deadmx A 127.0.0.99
b      MX 10 deadmx
b      MX 20 mx1
c      MX 10 mx1
both   MX 10 dual
dual   A 127.0.0.2
dual   A 127.0.0.99
null   MX 0 .
signed MX 10 mx1
;! ad signed.test
;! ad mx1.test
;! servfail broken.test
`

func newRig(t *testing.T, o relay.Options, peers ...mailtest.PeerOptions) *rig {
	t.Helper()
	g := &rig{t: t}
	for try := 0; ; try++ {
		if g.listen(peers) {
			break
		}
		if try > 20 {
			t.Fatal("no port is free on all addresses")
		}
	}
	for _, p := range g.peers {
		t.Cleanup(func() {
			p.Close()
			for _, f := range p.Faults() {
				t.Errorf("the client broke a rule: %s", f)
			}
		})
	}
	o.Port = g.port
	if o.Resolver == nil {
		d := mailtest.StartDNS(t, zone)
		o.Resolver = resolve.New(resolve.Options{Servers: []string{d.Addr()}, Timeout: 3 * time.Second, Rounds: 1})
	}
	if o.Timeouts == (smtp.ClientTimeouts{}) {
		o.Timeouts = smtp.DefaultTimeouts().Scaled(30 * time.Second) // a loaded machine is no fault
		o.Timeouts.Connect, o.Timeouts.Quit = 10*time.Second, 50*time.Millisecond
	}
	o.Helo = "me.test"
	g.r = relay.New(o)
	t.Cleanup(g.r.Close)
	return g
}

func (g *rig) listen(peers []mailtest.PeerOptions) bool {
	for _, p := range g.peers {
		p.Close()
	}
	g.peers = nil
	port := "0"
	for i, o := range peers {
		o.Addr = fmt.Sprintf("127.0.0.%d:%s", i+2, port)
		p, err := mailtest.NewPeer(o)
		if err != nil {
			return false
		}
		g.peers = append(g.peers, p)
		g.port = p.Port()
		port = fmt.Sprint(g.port)
	}
	return true
}

func file(t testing.TB, text string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "msg")
	if err := os.WriteFile(path, []byte("head\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func request(hop, text string, to ...string) *worker.Request {
	req := &worker.Request{Seq: 7, ID: "id", Attempt: 1, From: "s@x.test", NextHop: hop, Offset: 5, Size: int64(len(text)), EOL: envelope.EOLLF}
	for _, a := range to {
		req.To = append(req.To, envelope.Recipient{Addr: a})
	}
	return req
}

func (g *rig) send(hop string, to ...string) []worker.Result {
	g.t.Helper()
	return g.do(request(hop, message, to...), message)
}

func (g *rig) do(req *worker.Request, text string) []worker.Result {
	g.t.Helper()
	rep := g.r.Handle(g.t.Context(), req, file(g.t, text))
	if rep.Seq != req.Seq || rep.ID != req.ID || len(rep.Results) != len(req.To) {
		g.t.Fatalf("report %+v for %+v", rep, req)
	}
	for i, res := range rep.Results {
		if res.To != req.To[i].Addr || !envelope.ValidCode(res.Code) {
			g.t.Fatalf("result %+v", res)
		}
	}
	return rep.Results
}

func brief(res []worker.Result) string {
	var s []string
	for _, r := range res {
		s = append(s, string(r.Verdict)+":"+r.Code)
	}
	return strings.Join(s, " ")
}

func (g *rig) taken() string {
	var s []string
	for _, p := range g.peers {
		s = append(s, fmt.Sprintf("%d/%d", len(p.Messages()), p.Conns()))
	}
	return strings.Join(s, " ")
}

func TestFallback(t *testing.T) {
	for _, c := range []struct {
		name   string
		hop    string
		script []string // of the first host
		want   string
		taken  string // messages/connections of each peer
		tried  string // parts of the reasons, in order
	}{
		{"first host", "a.test", nil, "relayed:2.0.0", "1/1 0/0", ""},
		{"first host dead", "b.test", nil, "relayed:2.0.0", "1/1 0/0", "connection refused|mx1.test"},
		{"first address dead", "both.test", nil, "relayed:2.0.0", "1/1 0/0", "*"},
		{"421 in the greeting", "a.test", []string{"greeting => 421 4.3.2 busy; close"}, "relayed:2.0.0", "0/1 1/1", "4.3.2 busy|mx2.test"},
		{"554 in the greeting", "a.test", []string{"greeting => 554 5.7.1 go away"}, "relayed:2.0.0", "0/1 1/1", "go away|mx2.test"},
		{"garbage in the greeting", "a.test", []string{"greeting => garbage"}, "relayed:2.0.0", "0/1 1/1", "does not speak SMTP|mx2.test"},
		{"silence", "a.test", []string{"greeting => stall"}, "relayed:2.0.0", "0/1 1/1", "no answer in time|mx2.test"},
		{"EHLO closes", "a.test", []string{"EHLO => close"}, "relayed:2.0.0", "0/1 1/1", "closed the connection|mx2.test"},
		{"MAIL deferred", "a.test", []string{"MAIL => 451 4.7.1 greylisted"}, "relayed:2.0.0", "0/1 1/1", "greylisted|mx2.test"},
		{"RCPT deferred stays", "a.test", []string{"RCPT => 450 4.2.0 later"}, "deferred:4.2.0", "0/1 0/0", "mx1.test"},
		{"RCPT refused stays", "a.test", []string{"RCPT => 550 5.1.1 no"}, "failed:5.1.1", "0/1 0/0", "mx1.test"},
		{"RCPT closes", "a.test", []string{"RCPT => close"}, "relayed:2.0.0", "0/1 1/1", "closed the connection|mx2.test"},
		{"dot deferred stays", "a.test", []string{"dot => 451 4.3.0 later"}, "deferred:4.3.0", "0/1 0/0", "mx1.test"},
		{"dot closes stays", "a.test", []string{"dot => close"}, "deferred:4.4.2", "0/1 0/0", "after the whole message"},
		{"only host", "c.test", []string{"MAIL => 451 4.7.1 greylisted"}, "deferred:4.7.1", "0/1 0/0", "greylisted"},
		{"only host refuses everybody", "c.test", []string{"greeting => 554 no"}, "deferred:4.3.2", "0/1 0/0", "554 no"},
		{"only host never takes mail", "c.test", []string{"greeting => 521 no"}, "failed:5.3.2", "0/1 0/0", "521 no"},
		{"null MX", "null.test", nil, "failed:5.1.10", "0/0 0/0", ""},
		{"no such domain", "nowhere.test", nil, "failed:5.1.2", "0/0 0/0", ""},
		{"DNS fails", "broken.test", nil, "deferred:4.4.3", "0/0 0/0", ""},
		{"bad next hop", "x:y:z", nil, "deferred:4.3.5", "0/0 0/0", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var o relay.Options
			if c.name == "silence" {
				o.Timeouts = smtp.DefaultTimeouts().Scaled(30 * time.Second)
				o.Timeouts.Greeting = time.Second
			}
			g := newRig(t, o, mailtest.PeerOptions{Script: c.script}, mailtest.PeerOptions{})
			res := g.send(c.hop, "b@y.test")
			if got := brief(res); got != c.want {
				t.Errorf("got %s, want %s: %+v", got, c.want, res)
			}
			if got := g.taken(); got != c.taken {
				t.Errorf("messages and connections: %s, want %s", got, c.taken)
			}
			if c.tried == "*" {
				return
			}
			tried := strings.Join(res[0].MX, "\n")
			rest := tried
			for _, part := range strings.Split(c.tried, "|") {
				_, after, ok := strings.Cut(rest, part)
				if !ok {
					t.Errorf("tried %q, want %q in it", tried, part)
				}
				rest = after
			}
			if res[0].Verdict != envelope.Relayed && g.peers[0].Conns() > 0 && len(res[0].Transcript) == 0 {
				t.Errorf("no transcript: %+v", res[0])
			}
		})
	}
}

// A host that did not answer is tried last for a while.
func TestDeadHostIsRemembered(t *testing.T) {
	g := newRig(t, relay.Options{}, mailtest.PeerOptions{})
	for i, want := range []int{2, 0, 0} {
		res := g.send("b.test", "b@y.test")
		if brief(res) != "relayed:2.0.0" || len(res[0].MX) != want {
			t.Errorf("message %d: %s, tried %q", i+1, brief(res), res[0].MX)
		}
	}
}

func TestConnectionReuse(t *testing.T) {
	g := newRig(t, relay.Options{Idle: time.Minute, PerConn: 4}, mailtest.PeerOptions{})
	for range 10 {
		if res := g.send("a.test", "b@y.test"); brief(res) != "relayed:2.0.0" {
			t.Fatalf("%+v", res)
		}
	}
	if got := g.taken(); got != "10/3" {
		t.Errorf("messages/connections %s, want 10/3", got)
	}
	// Another domain with the same host shares the connection.
	g.send("c.test", "b@y.test")
	if got := g.taken(); got != "11/3" {
		t.Errorf("messages/connections %s, want 11/3", got)
	}
}

func TestIdleConnectionEnds(t *testing.T) {
	g := newRig(t, relay.Options{Idle: 30 * time.Millisecond}, mailtest.PeerOptions{})
	g.send("a.test", "b@y.test")
	quit := func() bool {
		cmds := g.peers[0].Commands()
		return cmds[len(cmds)-1] == "QUIT"
	}
	if !mailtest.Wait(5*time.Second, quit) {
		t.Errorf("no QUIT: %q", g.peers[0].Commands())
	}
	if res := g.send("a.test", "b@y.test"); brief(res) != "relayed:2.0.0" || g.taken() != "2/2" {
		t.Errorf("%+v, %s", res, g.taken())
	}
}

// A kept connection that the server closed meanwhile is no failure of anything.
func TestStaleConnection(t *testing.T) {
	for _, script := range [][]string{nil, {"MAIL#2 => 421 4.4.2 idle too long; close"}} {
		g := newRig(t, relay.Options{Idle: time.Minute}, mailtest.PeerOptions{Script: script}, mailtest.PeerOptions{})
		g.send("a.test", "b@y.test")
		if script == nil {
			g.peers[0].HangUp()
		}
		res := g.send("a.test", "b@y.test")
		if brief(res) != "relayed:2.0.0" || g.taken() != "2/2 0/0" || len(res[0].MX) != 0 {
			t.Errorf("%q: %+v, %s", script, res, g.taken())
		}
	}
}

func TestTooManyRecipients(t *testing.T) {
	var to []string
	for i := range 25 {
		to = append(to, fmt.Sprintf("u%d@y.test", i))
	}
	// The peer takes ten in a transaction.
	script := []string{"RCPT TO:<u3@ => 550 5.1.1 no"}
	for i := 11; i <= 24; i++ {
		script = append(script, fmt.Sprintf("RCPT TO:<u%d@#1 => 452 4.5.3 too many", i))
	}
	for i := 21; i <= 24; i++ {
		script = append(script, fmt.Sprintf("RCPT TO:<u%d@#1 => 452 4.5.3 too many", i))
	}
	g := newRig(t, relay.Options{Idle: time.Minute}, mailtest.PeerOptions{Script: script})
	for i, r := range g.send("a.test", to...) {
		want := "relayed"
		if i == 3 {
			want = "failed"
		}
		if string(r.Verdict) != want {
			t.Errorf("recipient %d: %+v", i, r)
		}
	}
	if m := g.peers[0].Messages(); g.peers[0].Conns() != 1 || len(m) < 2 {
		t.Errorf("%s", g.taken())
	}
}

// TestLimits (RFC 9422): what a peer says it takes is not overstepped.
func TestLimits(t *testing.T) {
	var to []string
	for i := range 25 {
		to = append(to, fmt.Sprintf("u%d@y.test", i))
	}
	g := newRig(t, relay.Options{Idle: time.Minute}, mailtest.PeerOptions{Abilities: append(mailtest.DefaultAbilities(), "LIMITS RCPTMAX=10 MAILMAX=4")})
	for i, r := range g.send("a.test", to...) {
		if r.Verdict != envelope.Relayed {
			t.Errorf("recipient %d: %+v", i, r)
		}
	}
	if got := g.taken(); got != "3/1" {
		t.Errorf("messages/connections %s, want 3/1", got)
	}
	for range 3 {
		g.send("a.test", "b@y.test")
	}
	if got := g.taken(); got != "6/2" {
		t.Errorf("messages/connections %s, want 6/2", got)
	}
}

func TestThousandRecipientsOneTransaction(t *testing.T) {
	var to []string
	for i := range 1000 {
		to = append(to, fmt.Sprintf("u%d@d%d.test", i, i%100))
	}
	g := newRig(t, relay.Options{}, mailtest.PeerOptions{})
	res := g.send(fmt.Sprintf("127.0.0.2:%d", g.port), to...)
	if m := g.peers[0].Messages(); len(m) != 1 || len(m[0].To) != 1000 || res[999].Verdict != envelope.Relayed {
		t.Errorf("%s", g.taken())
	}
	if res[0].Relay != fmt.Sprintf("127.0.0.2:%d", g.port) {
		t.Errorf("relay %q", res[0].Relay)
	}
}

func TestManyAtOnce(t *testing.T) {
	g := newRig(t, relay.Options{Idle: time.Minute}, mailtest.PeerOptions{})
	f := file(t, message)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 5 {
				rep := g.r.Handle(t.Context(), request("a.test", message, "b@y.test"), f)
				if brief(rep.Results) != "relayed:2.0.0" {
					t.Errorf("%+v", rep.Results)
				}
			}
		})
	}
	wg.Wait()
	if m := g.peers[0].Messages(); len(m) != 100 || g.peers[0].Conns() > 20 {
		t.Errorf("%s", g.taken())
	}
	for _, m := range g.peers[0].Messages() {
		if m.Text != message {
			t.Fatalf("text %q", m.Text)
		}
	}
}

// certificate returns a self-signed one for names, and the file to trust it by.
func certificate(t *testing.T, names ...string) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, path
}

func TestTLSPolicies(t *testing.T) {
	cert, ca := certificate(t, "mx1.test")
	good := &tls.Config{Certificates: []tls.Certificate{cert}}
	broken := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, fmt.Errorf("no") }}
	for _, c := range []struct {
		name, policy string
		tls          *tls.Config
		ca           string
		require      bool
		implicit     bool
		route        string
		script       []string
		want, how    string
		conns        int
	}{
		{name: "may, offered", policy: "may", tls: good, want: "relayed:2.0.0", how: "unverified", conns: 1},
		{name: "may, offered, trusted", policy: "may", tls: good, ca: ca, want: "relayed:2.0.0", how: " verified", conns: 1},
		{name: "may, not offered", policy: "may", want: "relayed:2.0.0", conns: 1},
		{name: "may, refused", policy: "may", tls: good, script: []string{"STARTTLS => 454 4.7.0 not now"}, want: "relayed:2.0.0", conns: 1},
		{name: "may, broken", policy: "may", tls: broken, want: "relayed:2.0.0", conns: 2},
		{name: "none, offered", policy: "none", tls: good, want: "relayed:2.0.0", conns: 1},
		{name: "encrypt, offered", policy: "encrypt", tls: good, want: "relayed:2.0.0", how: "unverified", conns: 1},
		{name: "encrypt, not offered", policy: "encrypt", want: "deferred:4.7.4", conns: 1},
		{name: "encrypt, refused", policy: "encrypt", tls: good, script: []string{"STARTTLS => 454 4.7.0 not now"}, want: "deferred:4.7.4", conns: 1},
		{name: "encrypt, broken", policy: "encrypt", tls: broken, want: "deferred:4.7.5", conns: 1},
		{name: "verify, trusted", policy: "verify", tls: good, ca: ca, want: "relayed:2.0.0", how: " verified", conns: 1},
		{name: "verify, unknown", policy: "verify", tls: good, want: "deferred:4.7.5", conns: 1},
		{name: "implicit", policy: "tls", tls: good, ca: ca, implicit: true, want: "relayed:2.0.0", how: " verified", conns: 1},
		{name: "implicit, unknown", policy: "tls", tls: good, implicit: true, want: "deferred:4.7.5", conns: 1},
		{name: "route says encrypt", policy: "none", route: "encrypt", tls: good, want: "relayed:2.0.0", how: "unverified", conns: 1},
		{name: "route says none", policy: "verify", route: "none", tls: good, want: "relayed:2.0.0", conns: 1},
		{name: "REQUIRETLS", policy: "may", tls: good, ca: ca, require: true, want: "relayed:2.0.0", how: " verified", conns: 1},
		{name: "REQUIRETLS, unknown", policy: "may", tls: good, require: true, want: "failed:5.7.10", conns: 1},
		{name: "REQUIRETLS, no TLS", policy: "may", require: true, want: "failed:5.7.10", conns: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := mailtest.PeerOptions{TLS: c.tls, Implicit: c.implicit, Script: c.script}
			if c.require {
				p.Abilities = append(mailtest.DefaultAbilities(), "REQUIRETLS")
			}
			g := newRig(t, relay.Options{TLS: c.policy, CAFile: c.ca, Idle: time.Minute}, p)
			req := request("signed.test", message, "b@y.test")
			req.TLS, req.TLSMode = c.require, c.route
			res := g.do(req, message)
			if got := brief(res); got != c.want {
				t.Fatalf("got %s, want %s: %+v", got, c.want, res)
			}
			if (c.how == "") != (res[0].TLS == "") || !strings.HasSuffix(res[0].TLS, c.how) || c.how != "" && !strings.HasPrefix(res[0].TLS, "TLSv1.3 TLS_") {
				t.Errorf("TLS %q, want %q", res[0].TLS, c.how)
			}
			if n := g.peers[0].Conns(); n != c.conns {
				t.Errorf("%d connections, want %d", n, c.conns)
			}
			if m := g.peers[0].Messages(); len(m) > 0 && m[0].TLS != (c.how != "") {
				t.Errorf("the peer saw TLS %t", m[0].TLS)
			}
			if c.require && len(g.peers[0].Messages()) > 0 && !strings.Contains(g.peers[0].Messages()[0].Mail, "REQUIRETLS") {
				t.Errorf("%q", g.peers[0].Messages()[0].Mail)
			}
		})
	}
}

func TestRequireTLSNeedsSignedMX(t *testing.T) {
	g := newRig(t, relay.Options{}, mailtest.PeerOptions{})
	req := request("a.test", message, "b@y.test")
	req.TLS = true
	if res := g.do(req, message); brief(res) != "failed:5.7.10" || g.taken() != "0/0" {
		t.Errorf("%+v, %s", res, g.taken())
	}
	req.From = "" // RFC 8689 §4.2.1 is about messages with a reverse-path
	if res := g.do(req, message); brief(res) != "relayed:2.0.0" {
		t.Errorf("%+v", res)
	}
}

// TestDeadline: the next hop gets the time that is left, and the report says whether it took it.
func TestDeadline(t *testing.T) {
	for _, c := range []struct {
		name      string
		abilities []string
		by        envelope.DeliverBy
		want      string
		param     string
		taken     bool
	}{
		{"known", []string{"DELIVERBY"}, envelope.DeliverBy{Mode: "R", Deadline: time.Now().Add(time.Hour)}, "relayed:2.0.0", " BY=35", true},
		{"R, not known", nil, envelope.DeliverBy{Mode: "R", Deadline: time.Now().Add(time.Hour)}, "failed:5.3.3", "", false},
		{"N, not known", nil, envelope.DeliverBy{Mode: "N", Deadline: time.Now().Add(time.Hour)}, "relayed:2.0.0", "", false},
		{"R, over", []string{"DELIVERBY"}, envelope.DeliverBy{Mode: "R", Deadline: time.Now().Add(-time.Hour)}, "failed:5.4.7", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, relay.Options{}, mailtest.PeerOptions{Abilities: append(mailtest.DefaultAbilities(), c.abilities...)})
			req := request("a.test", message, "b@y.test")
			req.By = &c.by
			res := g.do(req, message)
			if brief(res) != c.want || res[0].By != c.taken {
				t.Errorf("%+v", res)
			}
			if m := g.peers[0].Messages(); len(m) > 0 && (c.param == "" && strings.Contains(m[0].Mail, "BY=") || !strings.Contains(m[0].Mail, c.param)) {
				t.Errorf("%q, want %q", m[0].Mail, c.param)
			}
		})
	}
}

func TestSmarthost(t *testing.T) {
	auth := filepath.Join(t.TempDir(), "auth")
	write := func(s string) {
		if err := os.WriteFile(auth, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := mailtest.PeerOptions{Abilities: append(mailtest.DefaultAbilities(), "AUTH PLAIN"), User: "me:pass:word"}
	for _, c := range []struct{ file, want, user string }{
		{"me:pass:word\n", "relayed:2.0.0", "me"},
		{"me:wrong\n", "deferred:4.7.8", ""},
		{"nonsense\n", "deferred:4.3.5", ""},
		{"", "deferred:4.3.5", ""},
	} {
		g := newRig(t, relay.Options{}, p)
		hop := fmt.Sprintf("127.0.0.2:%d", g.port)
		write(c.file)
		r := relay.New(relay.Options{Resolver: resolve.New(resolve.Options{}), Hops: map[string]relay.Policy{hop: {Auth: auth}},
			Timeouts: smtp.DefaultTimeouts().Scaled(30 * time.Second)})
		rep := r.Handle(t.Context(), request(hop, message, "b@y.test"), file(t, message))
		r.Close()
		if got := brief(rep.Results); got != c.want {
			t.Errorf("%q: %s, want %s: %+v", c.file, got, c.want, rep.Results)
		}
		if m := g.peers[0].Messages(); len(m) > 0 && m[0].User != c.user {
			t.Errorf("authenticated as %q", m[0].User)
		}
		if s := fmt.Sprintf("%+v", rep.Results); strings.Contains(s, "pass:word") || strings.Contains(s, "AG1l") {
			t.Errorf("credentials in the report: %s", s)
		}
		// A request may name only what is configured here.
		req := request("a.test", message, "b@y.test")
		req.Auth = "/etc/shadow"
		if rep := r.Handle(t.Context(), req, file(t, message)); brief(rep.Results) != "deferred:4.3.5" {
			t.Errorf("%+v", rep.Results)
		}
	}
}

func TestLMTPSocket(t *testing.T) {
	p := mailtest.StartPeer(t, mailtest.PeerOptions{LMTP: true, Addr: t.TempDir() + "/s", Script: []string{"dot full@ => 452 4.2.2 full"}})
	g := newRig(t, relay.Options{Idle: time.Minute})
	for range 2 {
		res := g.send("lmtp:"+p.Addr(), "b@y.test", "full@y.test")
		if brief(res) != "relayed:2.0.0 deferred:4.2.2" || res[0].Relay != p.Addr() {
			t.Errorf("%+v", res)
		}
	}
	if p.Conns() != 1 {
		t.Errorf("%d connections", p.Conns())
	}
	if res := g.send("lmtp:/nowhere/at/all", "b@y.test"); brief(res) != "deferred:4.4.1" {
		t.Errorf("%+v", res)
	}
	over := mailtest.StartPeer(t, mailtest.PeerOptions{LMTP: true})
	if res := g.send("lmtp:"+over.Addr(), "b@y.test"); brief(res) != "relayed:2.0.0" {
		t.Errorf("%+v", res)
	}
}

func TestAddressesOfBothFamilies(t *testing.T) {
	g := newRig(t, relay.Options{Resolver: fixed{netip.MustParseAddr("::1"), netip.MustParseAddr("127.0.0.99"), netip.MustParseAddr("127.0.0.2")}}, mailtest.PeerOptions{})
	res := g.send("any.test", "b@y.test")
	if brief(res) != "relayed:2.0.0" || len(res[0].MX) != 3 {
		t.Errorf("%+v", res)
	}
}

type fixed []netip.Addr

func (f fixed) NextHops(context.Context, string) ([]resolve.Host, error) {
	return []resolve.Host{{Name: "dual.test", Addrs: f}}, nil
}

func (f fixed) Addrs(context.Context, string) ([]netip.Addr, error) { return f, nil }

// mqueue's side and the worker's over a real socket.
func TestAsWorker(t *testing.T) {
	g := newRig(t, relay.Options{Idle: time.Minute}, mailtest.PeerOptions{})
	path := t.TempDir() + "/w"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			err = worker.Serve(t.Context(), c.(*net.UnixConn), worker.Hello{Name: "mrelay", Abilities: []string{worker.AbleRelay}}, g.r.Handle, 0)
		}
		done <- err
	}()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	cl, err := worker.NewClient(t.Context(), conn.(*net.UnixConn), "mqueue", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		req := request("a.test", message, "b@y.test", "c@y.test")
		rep, err := cl.Do(t.Context(), req, file(t, message))
		if err != nil || brief(rep.Results) != "relayed:2.0.0 relayed:2.0.0" {
			t.Fatalf("%+v, %v", rep, err)
		}
	}
	cl.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if g.taken() != "3/1" {
		t.Errorf("%s", g.taken())
	}
}

func TestBrokenMessageFile(t *testing.T) {
	g := newRig(t, relay.Options{}, mailtest.PeerOptions{})
	for _, size := range []int64{100, 1 << 20} {
		req := request("a.test", message, "b@y.test")
		req.Size = size
		res := g.do(req, message)
		if size < 1<<17 && (brief(res) != "deferred:4.3.0" || g.taken() != "0/0") {
			t.Errorf("size %d: %+v, %s", size, res, g.taken())
		}
	}
}

func TestBrokenOffAttempt(t *testing.T) {
	g := newRig(t, relay.Options{Timeouts: smtp.DefaultTimeouts()}, mailtest.PeerOptions{Script: []string{"MAIL => stall"}})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	rep := g.r.Handle(ctx, request("a.test", message, "b@y.test"), file(t, message))
	if rep.Results[0].Verdict != envelope.Deferred || time.Since(start) > 5*time.Second {
		t.Errorf("%+v after %v", rep.Results, time.Since(start))
	}
}
