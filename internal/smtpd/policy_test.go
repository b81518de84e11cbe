package smtpd

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/emersion/go-milter"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
	"pennypost/internal/mailtest"
	"pennypost/internal/policy"
	"pennypost/internal/resolve"
	"pennypost/internal/smtp"
)

// edge is a fixture whose clients are judged. The nth connection of a dialogue comes from the
// nth address of ips, the last one from then on.
type edge struct {
	*fixture
	pol policy.Options
	ips []string
	now time.Time
	out lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

func (l *lockedBuffer) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.String()
}

func newEdge(t *testing.T) *edge {
	e := &edge{fixture: newFixture(MX), ips: []string{"192.0.2.7"}, now: time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)}
	e.o.Log = slog.New(slog.NewTextHandler(&e.out, nil))
	e.pol = policy.Options{
		Hostname: "mx.home.test", State: filepath.Join(t.TempDir(), "policy"), EarlyAction: policy.Reject,
		Now: func() time.Time { return e.now }, Log: e.o.Log,
	}
	return e
}

// play runs a dialogue; every server and every goroutine of it has ended when play returns.
func (e *edge) play(t *testing.T, script string) {
	t.Helper()
	e.o.Policy = policy.New(e.pol)
	s, err := New(e.o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	n := 0
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		sc, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		peer := e.peer
		peer.Addr = netip.AddrPortFrom(netip.MustParseAddr(e.ips[min(n, len(e.ips)-1)]), 4711)
		n++
		wg.Go(func() { s.ServeConn(context.Background(), sc, peer) })
		return c
	}
	mailtest.Dialogue(t, t.Name(), []byte(script), dial)
	wg.Wait()
}

// wantLog checks one line of the log, given by what it holds.
func (e *edge) wantLog(t *testing.T, parts ...string) {
	t.Helper()
	for line := range strings.Lines(e.out.text()) {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(line, p)
		}
		if all {
			return
		}
	}
	t.Errorf("no line of the log holds %q:\n%s", parts, e.out.text())
}

const toAnn = `S: 220 mx.home.test...
C: EHLO c.test
S* 250 
C: MAIL FROM:<x@far.test>
S: 250 2.1.0...
C: RCPT TO:<ann@home.test>
`

const quit = `C: QUIT
S: 221 2.0.0 bye
S!
`

func TestPolicyGreylist(t *testing.T) {
	e := newEdge(t)
	e.pol.Greylist = "full"
	e.play(t, toAnn+`S: 450 4.7.1 greylisted: try again in 1m0s
# the others of the transaction share its fate, but postmaster hears everybody
C: RCPT TO:<bob@home.test>
S: 450 4.7.1 greylisted...
C: RCPT TO:<postmaster>
S: 250 2.1.5...
C: RCPT TO:<nobody@home.test>
S: 550 5.1.1...
`+quit)
	e.wantLog(t, "msg=refused", "verb=RCPT", "code=450", "check=greylist", "first attempt")
	e.now = e.now.Add(2 * time.Minute)
	e.play(t, toAnn+"S: 250 2.1.5...\n"+quit)
}

func TestPolicyDNS(t *testing.T) {
	d := mailtest.StartDNS(t, `
7.2.0.192.bl.test. A 127.0.0.2
9.2.0.192.in-addr.arpa. PTR nine.far.test.
nine.far.test. A 192.0.2.9
;! servfail 10.2.0.192.bl.test
10.2.0.192.in-addr.arpa. PTR ten.far.test.
ten.far.test. A 192.0.2.10
`)
	e := newEdge(t)
	e.pol.DNS = resolve.New(resolve.Options{Servers: []string{d.Addr()}, Timeout: 5 * time.Second, Rounds: 1})
	e.pol.Zones = []policy.Zone{{Name: "bl.test", Weight: 1}}
	e.pol.ReverseDNS, e.pol.HeloOwn = "confirmed", true
	e.ips = []string{"192.0.2.7"}
	e.pol.ReverseDNS = "off"
	e.play(t, toAnn+`S: 554 5.7.1 your address 192.0.2.7 is listed by bl.test
C: RCPT TO:<PostMaster@home.test>
S: 250 2.1.5...
`+quit)
	e.wantLog(t, "msg=refused", "check=dnsbl", `why="192.0.2.7 is on bl.test, score 1 of 1"`)
	e.pol.ReverseDNS, e.ips = "confirmed", []string{"192.0.2.8"}
	e.play(t, toAnn+"S: 550 5.7.25 your address 192.0.2.8 has no name in DNS\n"+quit)
	e.wantLog(t, "msg=refused", "check=reverse-dns")
	e.ips = []string{"192.0.2.9"}
	e.play(t, toAnn+"S: 250 2.1.5...\n"+quit)
	e.play(t, strings.Replace(toAnn, "c.test", "MX.home.test", 1)+"S: 550 5.7.1 you are not MX.home.test, that is this host\n"+quit)
	e.wantLog(t, "msg=refused", "check=helo", "helo=MX.home.test")
	e.ips = []string{"192.0.2.10"} // a list that is broken stops nobody, and is told of
	e.play(t, toAnn+"S: 250 2.1.5...\n"+quit)
	e.wantLog(t, "msg=policy", "check=dnsbl", "action=note", "bl.test gives no answer")
}

// TestMilterIsToldTheName: of a client whose name policy has looked up and found true.
func TestMilterIsToldTheName(t *testing.T) {
	d := mailtest.StartDNS(t, `
9.2.0.192.in-addr.arpa. PTR nine.far.test.
nine.far.test. A 192.0.2.9
8.2.0.192.in-addr.arpa. PTR nine.far.test.
`)
	for _, c := range []struct{ mode, ip, want string }{
		{"confirmed", "192.0.2.9", "nine.far.test"},
		{"confirmed", "192.0.2.8", "[192.0.2.8]"}, // a name that another host has
		{"exists", "192.0.2.9", "[192.0.2.9]"},
		{"off", "192.0.2.9", "[192.0.2.9]"},
	} {
		e := newEdge(t)
		e.pol.DNS = resolve.New(resolve.Options{Servers: []string{d.Addr()}, Timeout: 5 * time.Second, Rounds: 1})
		e.pol.ReverseDNS, e.ips = c.mode, []string{c.ip}
		m := &content{end: func(*wire.Modifier) (wire.Response, error) { return wire.RespAccept, nil }}
		e.withMilter(t, m)
		e.play(t, "S: 220 mx.home.test...\nC: EHLO c.test\nS* 250 \nC: MAIL FROM:<x@far.test>\nS: 250 2.1.0...\n"+quit)
		m.mu.Lock()
		if m.host != c.want {
			t.Errorf("%s, %s: told %q, want %q", c.mode, c.ip, m.host, c.want)
		}
		m.mu.Unlock()
	}
}

func TestPolicyRates(t *testing.T) {
	e := newEdge(t)
	e.pol.ClientSessions, e.pol.NetworkRate = 1, 3
	e.ips = []string{"192.0.2.7", "192.0.2.7", "192.0.2.8", "192.0.2.9", "192.0.2.10"}
	e.play(t, `
S1: 220 mx.home.test...
S2: 421 4.7.0 too many sessions from 192.0.2.7, try again later
S2!
S3: 220 mx.home.test...
S4: 220 mx.home.test...
S5: 421 4.7.0 too many connections from 192.0.2.0/24 in a minute, try again later
S5!
C1: QUIT
S1: 221...
C3: QUIT
S3: 221...
C4: QUIT
S4: 221...
`)
	e.wantLog(t, "msg=refused", "code=421", "check=client-sessions", "peer=192.0.2.7:4711")
	e.wantLog(t, "msg=refused", "check=network-rate")
	e.now = e.now.Add(time.Hour)
	e.ips = []string{"192.0.2.7"}
	e.play(t, "S: 220...\n"+quit)
}

func TestPolicyEarlyTalker(t *testing.T) {
	e := newEdge(t)
	e.pol.GreetDelay = 2 * time.Second
	e.play(t, "C: EHLO c.test\nS: 554 5.5.1 wait for the greeting\nS!\n")
	e.wantLog(t, "msg=refused", "check=early-talker", "code=554")
	e.pol.EarlyAction = policy.Note
	e.play(t, "C: EHLO c.test\nS: 220 mx.home.test...\nS* 250 \n"+quit)
	e.wantLog(t, "msg=policy", "check=early-talker", "action=note")
	e.pol.GreetDelay, e.pol.EarlyAction = 20*time.Millisecond, policy.Reject
	e.play(t, toAnn+"S: 250 2.1.5...\n"+quit)
	e.pol.GreetDelay, e.pol.Trusted = time.Hour, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	e.play(t, "C: EHLO c.test\nS: 220 mx.home.test...\nS* 250 \n"+quit)
}

func TestPolicyUnknown(t *testing.T) {
	e := newEdge(t)
	e.pol.Tarpit, e.pol.UnknownLimit = 30*time.Millisecond, 3
	begin := time.Now()
	e.play(t, toAnn+`S: 250 2.1.5...
C: RCPT TO:<a@home.test>
S: 550 5.1.1...
C: RCPT TO:<b@home.test>
S: 550 5.1.1...
C: RCPT TO:<c@home.test>
S: 421 4.7.0 too many unknown recipients
S!
`)
	if took := time.Since(begin); took < 90*time.Millisecond {
		t.Errorf("three unknown recipients in %v", took)
	}
	e.wantLog(t, "msg=refused", "code=421", "check=unknown-limit")
}

// boxes gives ann a Maildir.
type boxes struct {
	fakeAccounts
	maildir string
}

func (b boxes) Lookup(ctx context.Context, a envelope.Address) (accounts.Result, error) {
	r, err := b.fakeAccounts.Lookup(ctx, a)
	if r.Mailbox != nil && a.Local == "ann" {
		r.Mailbox.Maildir, r.Mailbox.Extra = b.maildir, map[string]string{"userdb_quota_rule": "*:bytes=1000"}
	}
	return r, err
}

func TestPolicyQuota(t *testing.T) {
	e := newEdge(t)
	dir := t.TempDir()
	e.o.Accounts, e.pol.Quota = boxes{maildir: dir}, true
	if err := os.WriteFile(filepath.Join(dir, "maildirsize"), []byte("0S\n900 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e.play(t, toAnn+"S: 250 2.1.5...\n"+quit)
	e.play(t, strings.Replace(toAnn, "x@far.test>", "x@far.test> SIZE=101", 1)+"S: 452 4.2.2 mailbox is full\nC: RCPT TO:<bob@home.test>\nS: 250...\n"+quit)
	e.wantLog(t, "msg=refused", "code=452", "check=quota", `why="the mailbox holds 900 of 1000 octets"`)
}

func TestPolicyRelayRecipients(t *testing.T) {
	e := newEdge(t)
	e.o.RelayDomains = []string{"far.test"}
	e.pol.RelayFile = filepath.Join(t.TempDir(), "recipients")
	if err := os.WriteFile(e.pol.RelayFile, []byte("carl@far.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e.pol.UnknownLimit = 2
	e.play(t, toAnn+`S: 250 2.1.5...
C: RCPT TO:<Carl@far.test>
S: 250 2.1.5...
C: RCPT TO:<dora@far.test>
S: 550 5.1.1 no such user: dora@far.test
C: RCPT TO:<any@other.test>
S: 550 5.7.1 relaying denied...
C: RCPT TO:<eve@far.test>
S: 421 4.7.0 too many unknown recipients
S!
`)
	e.wantLog(t, "msg=refused", "code=550", "check=relay-recipient")
	e.ips = []string{"10.0.0.1"}
	e.pol.Trusted = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	e.play(t, toAnn+"S: 250 2.1.5...\nC: RCPT TO:<dora@far.test>\nS: 250 2.1.5...\n"+quit)
}

// Users are counted by what they send, and asked nothing else.
func TestPolicyUser(t *testing.T) {
	e := newEdge(t)
	e.pol.UserRecipients, e.pol.Greylist, e.pol.ClientRate = 2, "full", 1
	e.o.Policy = policy.New(e.pol)
	s := &session{backend: &backend{o: e.o}, st: &smtp.State{User: "ann@home.test"}, user: "ann@home.test"}
	s.o.Role = Submission
	if err := s.policyConnect(context.Background()); err != nil || s.visit != nil {
		t.Fatalf("%v %v", err, s.visit)
	}
	for i, want := range []string{"", "", "452 4.7.1 too many recipients in an hour"} {
		err := s.policyRcpt(context.Background(), envelope.Address{Local: "y", Domain: "far.test"})
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("recipient %d: %v, want %q", i, err, want)
		}
	}
}

// A recipient said twice is one recipient.
func TestPolicyCountsRecipientsOnce(t *testing.T) {
	e := newEdge(t)
	e.pol.UserRecipients = 1
	e.o.Policy, e.o.Role = policy.New(e.pol), Submission
	s := &session{backend: &backend{o: e.o}, st: &smtp.State{User: "ann@home.test"}, user: "ann@home.test"}
	for _, to := range []envelope.Address{{Local: "y", Domain: "far.test"}, {Local: "y", Domain: "Far.test"}} {
		if err := s.Rcpt(context.Background(), to, &smtp.RcptOptions{}); err != nil {
			t.Errorf("%s: %v", to, err)
		}
	}
	if err := s.Rcpt(context.Background(), envelope.Address{Local: "z", Domain: "far.test"}, &smtp.RcptOptions{}); err == nil {
		t.Error("another one is not counted")
	}
	if len(s.to) != 1 {
		t.Errorf("recipients %v", s.to)
	}
}

// Whoever wants to know is told of every check.
func TestPolicyExplained(t *testing.T) {
	e := newEdge(t)
	e.pol.Greylist, e.pol.ClientRate, e.pol.DryRun, e.pol.HeloAddress = "domain", 9, true, true
	e.pol.GreetDelay, e.pol.Tarpit = time.Hour, time.Hour
	var told []string
	e.o.Explain = func(stage, text string) {
		if stage == "policy" {
			told = append(told, text)
		}
	}
	e.play(t, toAnn+"S: 450 4.7.1...\nC: RCPT TO:<nobody@home.test>\nS: 550 5.1.1...\n"+quit)
	got := strings.Join(told, "\n")
	for _, want := range []string{
		"client-rate: pass: 192.0.2.7 is at 1 of 9 in a minute", "helo: pass: c.test is no name that is refused",
		"early-talker: pass: the greeting would be held back for 1h0m0s", "tarpit: pass: the answer would be held back for 1h0m0s",
		"greylist: defer: the first attempt of this sender and recipient from 192.0.2.0/24",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("not told: %s\n%s", want, got)
		}
	}
	if _, err := os.Stat(e.pol.State); err == nil {
		t.Error("a dry run wrote state")
	}
}
