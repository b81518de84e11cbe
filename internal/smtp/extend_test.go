package smtp_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/mailtest"
	"pennypost/internal/smtp"
)

// extBackend offers everything.
type extBackend struct{ fakeBackend }

func (b *extBackend) NewSession(ctx context.Context, st *smtp.State) (smtp.Session, error) {
	if st.Peer.Addr.Addr() == netip.MustParseAddr("192.0.2.66") {
		return nil, &smtp.Answer{Code: 554, Enhanced: "5.7.1", Text: "not that one"}
	}
	s, err := b.fakeBackend.NewSession(ctx, st)
	if err != nil {
		return nil, err
	}
	return &extSession{s.(*fakeSession)}, nil
}

type extSession struct{ *fakeSession }

func (s *extSession) Extensions() smtp.Extensions {
	return smtp.Extensions{
		RequireTLS: true, FutureRelease: 24 * time.Hour, DeliverBy: true, MinBy: time.Minute, Priority: true, XClient: true, XClientLogin: true,
	}
}

func (s *extSession) MayStart() bool { return true }

func (s *extSession) Start(_ context.Context, domain string, below bool) error {
	if domain != "held.test" {
		return &smtp.Answer{Code: 459, Enhanced: "4.7.1", Text: "node " + domain + " not allowed"}
	}
	s.b.note("start %s %v", domain, below)
	return nil
}

func (s *extSession) Mail(ctx context.Context, from envelope.Address, o *smtp.MailOptions) error {
	if from.Local == "whoami" {
		return &smtp.Answer{Code: 550, Enhanced: "5.7.1", Text: fmt.Sprintf("%s %s %v %q", s.st.Peer.Addr, s.st.Helo, s.st.ESMTP, s.st.User)}
	}
	o.Priority = min(o.Priority, 3)
	return s.fakeSession.Mail(ctx, from, o)
}

func TestExtensionDialogues(t *testing.T) {
	mailtest.Dialogues(t, "testdata/extend/*.txt", func(t *testing.T) net.Conn {
		return dialTCP(t, t.Context(), newServer(&extBackend{}))
	})
}

// TestExtendedParametersReachTheBackend: the times of the protocol become points in time.
func TestExtendedParametersReachTheBackend(t *testing.T) {
	b := &extBackend{}
	s := newServer(b)
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	before := time.Now()
	send(t, s, "EHLO c\r\nMAIL FROM:<a@x.test> HOLDUNTIL="+until.Format(time.RFC3339)+" BY=+7200;nt MT-PRIORITY=-4\r\n"+
		"RSET\r\nMAIL FROM:<a@x.test> HOLDFOR=60\r\nQUIT\r\n")
	if len(b.opts) != 2 {
		t.Fatalf("%d transactions", len(b.opts))
	}
	o := b.opts[0]
	if o.HoldUntil == nil || !o.HoldUntil.Equal(until) || o.Hold != "until;"+until.Format(time.RFC3339) {
		t.Errorf("HOLDUNTIL: %v %q", o.HoldUntil, o.Hold)
	}
	if o.By == nil || o.By.Mode != "N" || !o.By.Trace || !near(o.By.Deadline, before.Add(2*time.Hour)) {
		t.Errorf("BY: %+v", o.By)
	}
	if o.Priority != -4 || !o.HasPriority {
		t.Errorf("MT-PRIORITY: %d %v", o.Priority, o.HasPriority)
	}
	if o = b.opts[1]; o.HoldUntil == nil || !near(*o.HoldUntil, before.Add(time.Minute)) || o.Hold != "for;60" || o.By != nil || o.HasPriority {
		t.Errorf("HOLDFOR: %+v", o)
	}
}

func near(got, want time.Time) bool { return got.Sub(want).Abs() < 10*time.Second }

// TestRequireTLS (RFC 8689 §2): the parameter exists only in a session under TLS.
func TestRequireTLS(t *testing.T) {
	b := &extBackend{}
	s := newServer(b)
	conf, pool := testTLS(t)
	s.TLS, s.Implicit = conf, true
	c := newTalk(t, tls.Client(dialTCP(t, t.Context(), s), &tls.Config{RootCAs: pool, ServerName: "mx.x.test"}))
	c.ask("")
	for _, step := range []struct{ say, want string }{
		{"EHLO c.test", "250-REQUIRETLS"},
		{"MAIL FROM:<a@x.test> REQUIRETLS=yes", "501 5.5.4 bad value of REQUIRETLS"},
		{"MAIL FROM:<a@x.test> REQUIRETLS REQUIRETLS", "501 5.5.4 parameter REQUIRETLS given twice"},
		{"MAIL FROM:<a@x.test> REQUIRETLS", "250 2.1.0"},
	} {
		if got := c.ask(step.say); !strings.Contains(got, step.want) {
			t.Errorf("%s: %q, want %q", step.say, got, step.want)
		}
	}
	if len(b.opts) != 1 || !b.opts[0].RequireTLS {
		t.Errorf("options %+v", b.opts)
	}
}

// TestRecipientFlood: recipients beyond the limit are refused one by one, but not for ever.
func TestRecipientFlood(t *testing.T) {
	got := send(t, newServer(&fakeBackend{}), "EHLO c\r\nMAIL FROM:<a@x.test>\r\n"+strings.Repeat("RCPT TO:<b@x.test>\r\n", 3000))
	if n := strings.Count(got, "\r\n452 4.5.3"); n != 1051 || strings.Count(got, "\r\n421 4.5.3 ") != 1 {
		t.Errorf("%d refusals, end %q", n, got[len(got)-80:])
	}
}

// TestPipelinedGarbage: octets that are no commands, in one write, end after the error limit
// with 421, and none of the text behind it is answered.
func TestPipelinedGarbage(t *testing.T) {
	for name, raw := range map[string]string{
		"lines":    strings.Repeat("\x80\xff garbage \t more\r\n", 5000),
		"verbs":    strings.Repeat("DATA\r\nRCPT TO:<x@x.test>\r\nMAIL\r\nBDAT\r\n", 1000),
		"nul":      strings.Repeat("\x00\x00\x00\r\n", 5000),
		"one line": strings.Repeat("A", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			b := &fakeBackend{}
			got := send(t, newServer(b), raw)
			if n := strings.Count(got, "\r\n"); n > 10 || len(b.messages()) != 0 {
				t.Errorf("%d replies: %q", n, got[:min(len(got), 300)])
			}
		})
	}
}

// FuzzMailParameters: whatever follows the path, what is accepted lies within what is offered.
func FuzzMailParameters(f *testing.F) {
	for _, s := range []string{" HOLDFOR=60 BY=120;RT", " BY=-1;N", " HOLDUNTIL=2030-01-01T00:00:00Z", " MT-PRIORITY=-9", " SIZE=1 BODY=8BITMIME"} {
		f.Add(s)
	}
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		o, refusal := smtp.ParseMailParams(s, now)
		if refusal != nil {
			return
		}
		if o.HoldUntil != nil && (o.HoldUntil.Before(now) || o.HoldUntil.After(now.Add(24*time.Hour))) {
			t.Errorf("%q: held until %v", s, o.HoldUntil)
		}
		if o.By != nil && o.By.Mode == "R" && o.By.Deadline.Before(now.Add(time.Minute)) {
			t.Errorf("%q: deadline %v", s, o.By.Deadline)
		}
		if o.Priority < -9 || o.Priority > 9 {
			t.Errorf("%q: priority %d", s, o.Priority)
		}
	})
}

// FuzzXClient: what a proxy says is a state or a refusal, and puts nothing into lines of a log.
func FuzzXClient(f *testing.F) {
	for _, s := range []string{"ADDR=192.0.2.1", "ADDR=IPV6:::1", "PORT=[UNAVAILABLE]", "LOGIN=a+40b", "HELO=x+0A", "DESTADDR=::ffff:1.2.3.4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, attr string) {
		st, refusal := smtp.Override(attr)
		if refusal != nil {
			return
		}
		for _, s := range []string{st.Helo, st.User} {
			if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q: %q", attr, s)
			}
		}
		if a := st.Peer.Addr.Addr(); a.Zone() != "" || a.Is4In6() {
			t.Errorf("%q: address %v", attr, a)
		}
	})
}
