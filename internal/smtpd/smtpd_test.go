package smtpd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
	"pennypost/internal/smtp"
	"pennypost/internal/submit"
)

// fakeAccounts: ann and bob at home.test, an alias team that names ann, and broken, which
// cannot be looked up.
type fakeAccounts struct{}

func (fakeAccounts) IsLocal(d string) bool { return strings.EqualFold(d, "home.test") }

func (f fakeAccounts) Lookup(_ context.Context, a envelope.Address) (accounts.Result, error) {
	if !f.IsLocal(a.Domain) {
		return accounts.Result{Kind: accounts.NotLocal}, nil
	}
	base, _, _ := strings.Cut(strings.ToLower(a.Local), "+")
	switch base {
	case "ann", "bob":
		return accounts.Result{Kind: accounts.IsMailbox, Address: envelope.Address{Local: base, Domain: "home.test"}, Mailbox: &accounts.Mailbox{Address: base + "@home.test", UID: -1}}, nil
	case "sys":
		return accounts.Result{Kind: accounts.IsMailbox, Mailbox: &accounts.Mailbox{Address: "sys@home.test", UID: 1000, System: true}}, nil
	case "team":
		return accounts.Result{Kind: accounts.IsAlias, Alias: &accounts.Alias{Targets: []accounts.Target{
			{Text: "/bin/true"}, {Addr: envelope.Address{Local: "ann", Domain: "home.test"}},
		}}}, nil
	case "broken":
		return accounts.Result{}, &accounts.Error{Status: envelope.Defer("4.3.5", "bad line"), Err: errors.New("/etc/x: bad line")}
	}
	return accounts.Result{Kind: accounts.NoSuchUser}, nil
}

// memory is a spool in memory.
type memory struct {
	msgs []stored
	fail error
}

type stored struct {
	env  envelope.Envelope
	text string
}

func (m *memory) Create(env *envelope.Envelope) (submit.Draft, error) {
	if m.fail != nil {
		return nil, m.fail
	}
	env.ID = "1k0000000000000000"
	return &draft{m: m, env: env}, nil
}

type draft struct {
	m   *memory
	env *envelope.Envelope
	bytes.Buffer
}

func (d *draft) Reread() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(d.Bytes())), nil }
func (d *draft) Abort() error                   { return nil }
func (d *draft) Commit() error {
	d.m.msgs = append(d.m.msgs, stored{*d.env, d.String()})
	return nil
}

type fixture struct {
	o    Options
	mem  *memory
	log  bytes.Buffer
	peer smtp.Peer

	realAccounts   *accounts.Accounts // of withRecords
	askCertificate bool
}

func newFixture(role string) *fixture {
	f := &fixture{mem: &memory{}}
	now := func() time.Time { return time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC) }
	f.o = Options{
		Role: role, Hostname: "mx.home.test", Domains: []string{"home.test"}, Accounts: fakeAccounts{},
		Auth:      Auth{Passwords: fakePasswords{}},
		Submit:    submit.New(submit.Options{Store: f.mem, Hostname: "mx.home.test", MaxSize: 10_000, MaxHops: 5, Now: now}),
		AuthDelay: -1, MaxSize: 10_000,
		Log: slog.New(slog.NewTextHandler(&f.log, nil)),
	}
	f.peer.Addr = netip.MustParseAddrPort("192.0.2.7:4711")
	f.peer.Local = netip.MustParseAddrPort("198.51.100.1:25")
	return f
}

// say plays lines and returns the last line of each reply.
func (f *fixture) say(t *testing.T, lines ...string) []string {
	t.Helper()
	s, err := New(f.o)
	if err != nil {
		t.Fatal(err)
	}
	c, sc := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ServeConn(context.Background(), sc, f.peer)
	}()
	go func() {
		io.WriteString(c, strings.Join(lines, "\r\n")+"\r\nQUIT\r\n")
	}()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	<-done
	var last []string
	for _, l := range strings.Split(strings.TrimSuffix(string(b), "\r\n"), "\r\n") {
		if len(l) < 4 || l[3] != '-' {
			last = append(last, l)
		}
	}
	return last[1:] // without the greeting
}

func TestWhoMaySendToWhom(t *testing.T) {
	uid := func(n int) *int { return &n }
	for _, c := range []struct {
		name     string
		set      func(*fixture)
		mail, to string
		want     string // first word of the last refusal, or 250
	}{
		{"mx to us", nil, "x@far.test", "ann@home.test", "250"},
		{"mx to our subaddress", nil, "x@far.test", "Ann+x@HOME.test", "250"},
		{"mx to nobody", nil, "x@far.test", "nobody@home.test", "550 5.1.1"},
		{"mx look-up fails", nil, "x@far.test", "broken@home.test", "451 4.3.5"},
		{"mx to postmaster", nil, "x@far.test", "postmaster@home.test", "250"},
		{"mx to bare postmaster", nil, "x@far.test", "PostMaster", "250"},
		{"mx to our address literal", nil, "x@far.test", "ann@[198.51.100.1]", "250"},
		{"mx to another literal", nil, "x@far.test", "ann@[198.51.100.2]", "550 5.7.1"},
		{"mx relay", nil, "x@far.test", "y@far.test", "550 5.7.1"},
		{"mx relay as one of us", nil, "ann@home.test", "y@far.test", "550 5.7.1"},
		{"mx relay, null sender", nil, "", "y@far.test", "550 5.7.1"},
		{"mx relay with %", nil, "x@far.test", "y%far.test@home.test", "550 5.1.1"},
		{"mx relay with !", nil, "x@far.test", "far.test!y@home.test", "550 5.1.1"},
		{"mx relay in quotes", nil, "x@far.test", `"y@far.test"@home.test`, "550 5.1.1"},
		{"mx relay by source route", nil, "x@far.test", "@home.test:y@far.test", "550 5.7.1"},
		{"mx from a loopback client", func(f *fixture) { f.peer.Addr = netip.MustParseAddrPort("127.0.0.1:9") }, "x@far.test", "y@far.test", "550 5.7.1"},
		{"mx unknown client", func(f *fixture) {
			f.peer.Addr = netip.AddrPort{}
			f.o.RelayFrom = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		}, "x@far.test", "y@far.test", "550 5.7.1"},
		{"mx from relay_from", func(f *fixture) { f.o.RelayFrom = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} }, "x@far.test", "y@far.test", "250"},
		{"mx for relay_domains", func(f *fixture) { f.o.RelayDomains = []string{"Far.test"} }, "x@far.test", "y@FAR.test", "250"},
		{"mx relay_domains names no sub-domains", func(f *fixture) { f.o.RelayDomains = []string{"far.test"} }, "x@far.test", "y@a.far.test", "550 5.7.1"},
		{"mx relay_domains with a dot", func(f *fixture) { f.o.RelayDomains = []string{".far.test"} }, "x@far.test", "y@a.far.test", "250"},
		{"mx relay_domains with a dot is not the domain itself", func(f *fixture) { f.o.RelayDomains = []string{".Far.test."} }, "x@far.test", "y@far.test", "550 5.7.1"},
		{"local, trusted uid", func(f *fixture) { f.o.Role, f.peer.UID, f.o.TrustedUIDs = Local, uid(77), []int{77} }, "x@far.test", "y@far.test", "250"},
		{"local, root", func(f *fixture) { f.o.Role, f.peer.UID = Local, uid(0) }, "x@far.test", "y@far.test", "250"},
		{"local, own name", func(f *fixture) { f.o.Role, f.peer.UID = Local, uid(1000) }, "carl@home.test", "y@far.test", "250"},
		{"local, own name at the host", func(f *fixture) { f.o.Role, f.peer.UID = Local, uid(1000) }, "carl+x@mx.home.test", "y@far.test", "250"},
		{"local, own name elsewhere", func(f *fixture) { f.o.Role, f.peer.UID = Local, uid(1000) }, "carl@far.test", "y@far.test", "550 5.7.1"},
		{"local, another's name", func(f *fixture) { f.o.Role, f.peer.UID = Local, uid(1000) }, "ann@home.test", "y@far.test", "550 5.7.1"},
		{"local, account of the same uid", func(f *fixture) { f.o.Role, f.peer.UID = Local, uid(1000) }, "sys@home.test", "y@far.test", "250"},
		{"local, null sender", func(f *fixture) { f.o.Role, f.peer.UID = Local, uid(1000) }, "", "y@far.test", "250"},
		{"local to nobody", func(f *fixture) { f.o.Role, f.peer.UID = Local, uid(1000) }, "", "nobody@home.test", "550 5.1.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(MX)
			f.o.Login = func(context.Context, int) (string, error) { return "carl", nil }
			if c.set != nil {
				c.set(f)
			}
			got := f.say(t, "EHLO c.test", "MAIL FROM:<"+c.mail+">", "RCPT TO:<"+c.to+">", "DATA", "Subject: x", "", "text", ".")
			refusal := "250"
			for _, r := range got[1:3] {
				if r[0] != '2' && refusal == "250" {
					refusal = r
				}
			}
			if !strings.HasPrefix(refusal, c.want) {
				t.Errorf("replies %q, want %s", got, c.want)
			}
			if taken := len(f.mem.msgs) == 1; taken != (c.want == "250") {
				t.Errorf("message taken: %v", taken)
			}
			if refused := strings.Contains(f.log.String(), "msg=refused"); refused != (c.want != "250") {
				t.Errorf("log: %s", f.log.String())
			}
		})
	}
}

func TestLocalNeedsCredentials(t *testing.T) {
	f := newFixture(Local)
	s, err := New(f.o)
	if err != nil {
		t.Fatal(err)
	}
	c, sc := net.Pipe()
	go s.ServeConn(context.Background(), sc, smtp.Peer{})
	b, _ := io.ReadAll(c)
	if !strings.HasPrefix(string(b), "554 5.7.0 cannot tell who is asking") {
		t.Errorf("greeting %q", b)
	}
}

func TestRolesNeedTheirFiles(t *testing.T) {
	for role, want := range map[string]string{Submission: "needs TLS", Submissions: "needs TLS", "smtp": `unknown role "smtp"`} {
		if _, err := New(Options{Role: role}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("role %s: error %v, want %s", role, err, want)
		}
	}
}

func TestNoAuthOffTheSubmissionRoles(t *testing.T) {
	f := newFixture(MX)
	if got := f.say(t, "EHLO c.test", "AUTH PLAIN AGFubgBzZWNyZXQ="); got[1] != "502 5.5.1 no AUTH on this port" {
		t.Errorf("replies %q", got)
	}
}

func TestTrace(t *testing.T) {
	v6 := netip.MustParseAddrPort("[2001:db8::1]:4711")
	uid := 0
	for _, c := range []struct {
		name  string
		set   func(*fixture)
		rcpts []string
		hello string
		want  string
	}{
		{"one recipient", nil, []string{"ann@home.test"}, "EHLO c.test",
			"Received: from c.test ([192.0.2.7])\n\tby mx.home.test with ESMTP\n\tid 1k0000000000000000\n\tfor <ann@home.test>; Sun, 22 Nov 2026 03:00:00 +0000\n"},
		// Two recipients are not told about each other.
		{"two recipients", nil, []string{"ann@home.test", "bob@home.test"}, "HELO c.test",
			"Received: from c.test ([192.0.2.7])\n\tby mx.home.test with SMTP\n\tid 1k0000000000000000; Sun, 22 Nov 2026 03:00:00 +0000\n"},
		{"IPv6", func(f *fixture) { f.peer.Addr = v6 }, []string{"ann@home.test"}, "EHLO [IPv6:2001:db8::1]",
			"Received: from [IPv6:2001:db8::1] ([IPv6:2001:db8::1])\n\tby mx.home.test with ESMTP\n"},
		{"local", func(f *fixture) { f.o.Role, f.peer = Local, smtp.Peer{UID: &uid} }, []string{"ann@home.test"}, "EHLO localhost",
			"Received: by mx.home.test (pennypost, from userid 0) with ESMTP\n\tid 1k0000000000000000\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(MX)
			if c.set != nil {
				c.set(f)
			}
			lines := []string{c.hello, "MAIL FROM:<x@far.test>"}
			for _, r := range c.rcpts {
				lines = append(lines, "RCPT TO:<"+r+">")
			}
			got := f.say(t, append(lines, "DATA", "Subject: x", "", "text", ".")...)
			if len(f.mem.msgs) != 1 || !strings.HasPrefix(f.mem.msgs[0].text, c.want) {
				t.Fatalf("replies %q, message %+v", got, f.mem.msgs)
			}
			if last := got[len(got)-2]; last != "250 2.0.0 queued as 1k0000000000000000" {
				t.Errorf("reply %q", last)
			}
		})
	}
}

func TestEnvelope(t *testing.T) {
	f := newFixture(MX)
	f.say(t, "EHLO c.test", "MAIL FROM:<x@far.test> RET=HDRS ENVID=QQ BODY=8BITMIME",
		"RCPT TO:<ann@home.test> NOTIFY=FAILURE ORCPT=rfc822;a@b", "RCPT TO:<ann@home.test>", "RCPT TO:<bob@[198.51.100.1]>",
		"DATA", "Subject: x", "Message-ID: <m@far.test>", "", "text", ".")
	if len(f.mem.msgs) != 1 {
		t.Fatal(f.log.String())
	}
	e := f.mem.msgs[0].env
	if e.From != "x@far.test" || e.Ret != "HDRS" || e.EnvID != "QQ" || e.Body != "8BITMIME" || e.EOL != envelope.EOLLF || len(e.To) != 2 {
		t.Errorf("envelope %+v", e)
	}
	if r := e.To[0]; r.Addr != "ann@home.test" || r.ORcpt != "rfc822;a@b" || len(r.Notify) != 1 || r.Notify[0] != "FAILURE" {
		t.Errorf("recipient %+v", r)
	}
	if r := e.To[1]; r.Addr != "bob@home.test" {
		t.Errorf("recipient %+v", r)
	}
	want := envelope.Origin{Kind: "smtp", Peer: "192.0.2.7:4711", Helo: "c.test", Proto: "ESMTP", MsgID: "<m@far.test>"}
	if e.Origin != want {
		t.Errorf("origin %+v, want %+v", e.Origin, want)
	}
}

func TestBinaryIsStoredAsReceived(t *testing.T) {
	f := newFixture(MX)
	f.say(t, "EHLO c.test", "MAIL FROM:<x@far.test> BODY=BINARYMIME", "RCPT TO:<ann@home.test>", "BDAT 20 LAST\r\nSubject: x\r\n\r\na\x00\nb\r.\r\n")
	if len(f.mem.msgs) != 1 || f.mem.msgs[0].env.EOL != envelope.EOLWire {
		t.Fatalf("%+v %s", f.mem.msgs, f.log.String())
	}
	if m := f.mem.msgs[0].text; !regexp.MustCompile(`^Received: [^\n]*\r\n(\t[^\n]*\r\n)+Subject: x\r\n\r\na\x00\nb\r\.$`).MatchString(m) {
		t.Errorf("message %q", m)
	}
}

func TestStoreRefusals(t *testing.T) {
	for _, c := range []struct {
		name string
		fail error
		body string
		want string
	}{
		{"no space", &submit.Error{Status: envelope.Defer("4.3.1", "insufficient system storage"), Err: errors.New("/spool: full")}, "x", "452 4.3.1 insufficient"},
		{"no spool", os.ErrPermission, "x", "451 4.3.5 "},
		{"disk error", errors.New("write /spool/x: input/output error"), "x", "451 4.3.0 "},
		{"loop", nil, strings.Repeat("Received: by x; date\r\n", 6) + "\r\nx", "554 5.4.6 "},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(MX)
			f.mem.fail = c.fail
			got := f.say(t, "EHLO c.test", "MAIL FROM:<x@far.test>", "RCPT TO:<ann@home.test>", "DATA", c.body, ".")
			if !strings.HasPrefix(got[4], c.want) || strings.Contains(got[4], "/spool") {
				t.Errorf("reply %q, want %s", got[4], c.want)
			}
			if len(f.mem.msgs) > 0 {
				t.Error("taken all the same")
			}
		})
	}
}

// TestLookupErrorShowsNoPath: the cause is for the log, not for strangers.
func TestLookupErrorShowsNoPath(t *testing.T) {
	f := newFixture(MX)
	got := f.say(t, "EHLO c.test", "MAIL FROM:<x@far.test>", "RCPT TO:<broken@home.test>")
	if strings.Contains(got[2], "/etc") || !strings.Contains(f.log.String(), filepath.Join("/etc", "x")) {
		t.Errorf("reply %q, log %s", got[2], f.log.String())
	}
}

// TestTrailingDot: the dot at the end of a domain is no part of RFC 5321 §4.1.2's grammar. It is
// taken and dropped, so that nobody behind us sees it, and makes no other recipient.
func TestTrailingDot(t *testing.T) {
	f := newFixture(MX)
	got := f.say(t, "EHLO c", "MAIL FROM:<x@far.test.>", "RCPT TO:<ann@home.test.>", "RCPT TO:<ann@HOME.test>", "RCPT TO:<ann@home.test..>",
		"RCPT TO:<y@far.test.>", "DATA", "", ".")
	for i, want := range map[int]string{1: "250", 2: "250", 3: "250", 4: "501", 5: "550 5.7.1 relaying denied: far.test is"} {
		if !strings.HasPrefix(got[i], want) {
			t.Errorf("%d: %q, want %s", i, got[i], want)
		}
	}
	if len(f.mem.msgs) != 1 {
		t.Fatalf("%d messages: %q", len(f.mem.msgs), got)
	}
	env := f.mem.msgs[0].env
	if env.From != "x@far.test" || len(env.To) != 1 || env.To[0].Addr != "ann@home.test" {
		t.Errorf("from %s to %+v", env.From, env.To)
	}
}
