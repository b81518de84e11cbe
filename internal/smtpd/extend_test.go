package smtpd

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/submit"
)

func nets(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// offered are the keywords of one EHLO.
func (f *fixture) offered(t *testing.T) string {
	t.Helper()
	c := f.connect(t)
	c.ask("")
	if f.o.Role == Submission {
		c.ask("EHLO c.test")
		c.ask("STARTTLS")
		c.startTLS()
	}
	var words []string
	for _, l := range c.all("EHLO c.test") {
		word, _, _ := strings.Cut(l[4:], " ")
		switch word {
		case "REQUIRETLS", "FUTURERELEASE", "DELIVERBY", "MT-PRIORITY", "ETRN", "XCLIENT", "LIMITS":
			words = append(words, word)
		}
	}
	return strings.Join(words, " ")
}

// all returns every line of the reply.
func (c *client) all(line string) (lines []string) {
	c.t.Helper()
	if _, err := c.Write([]byte(line + "\r\n")); err != nil {
		c.t.Fatal(err)
	}
	for {
		s, err := c.br.ReadString('\n')
		if err != nil {
			c.t.Fatal(err)
		}
		lines = append(lines, strings.TrimSuffix(s, "\r\n"))
		if s[3] == ' ' {
			return lines
		}
	}
}

func TestWhoIsOfferedWhat(t *testing.T) {
	full := Extend{HoldMax: time.Hour, MinBy: time.Minute, Flush: func(string, bool) error { return nil }}
	uid := 1000
	for _, c := range []struct {
		name string
		role string
		set  func(*fixture)
		want string
	}{
		{"stranger", MX, nil, "LIMITS MT-PRIORITY"},
		{"who may relay", MX, func(f *fixture) { f.o.RelayFrom = nets("192.0.2.0/24") }, "LIMITS DELIVERBY MT-PRIORITY"},
		{"proxy", MX, func(f *fixture) { f.o.Extend.XClientFrom = nets("192.0.2.7/32") }, "LIMITS MT-PRIORITY XCLIENT"},
		{"no proxy", MX, func(f *fixture) { f.o.Extend.XClientFrom = nets("192.0.2.8/32") }, "LIMITS MT-PRIORITY"},
		{"may start", MX, func(f *fixture) { f.o.Extend.ETRNFrom = nets("192.0.2.0/24") }, "LIMITS MT-PRIORITY ETRN"},
		{"nobody to tell", MX, func(f *fixture) { f.o.Extend.ETRNFrom = nets("192.0.2.0/24"); f.o.Extend.Flush = nil }, "LIMITS MT-PRIORITY"},
		{"user", Submission, nil, "LIMITS REQUIRETLS FUTURERELEASE DELIVERBY MT-PRIORITY"},
		{"user, switched off", Submission, func(f *fixture) { f.o.Extend = Extend{} }, "LIMITS REQUIRETLS MT-PRIORITY"},
		{"process", Local, func(f *fixture) { f.peer.UID = &uid }, "LIMITS FUTURERELEASE DELIVERBY MT-PRIORITY"},
		{"process is no proxy", Local, func(f *fixture) { f.peer.UID = &uid; f.o.Extend.XClientFrom = nets("0.0.0.0/0") }, "LIMITS FUTURERELEASE DELIVERBY MT-PRIORITY"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(c.role)
			f.o.Extend = full
			if c.set != nil {
				c.set(f)
			}
			if got := f.offered(t); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// TestPriorityOfStrangers (RFC 6710 §4.1): a stranger may stay behind, not get ahead.
func TestPriorityOfStrangers(t *testing.T) {
	for _, c := range []struct {
		ours  bool
		param string
		reply string
		want  int
		trace string
	}{
		{false, " MT-PRIORITY=5", "250 2.3.6 0 is the priority", 0, "\tPRIORITY 0;"},
		{false, " MT-PRIORITY=-5", "250 2.1.0", -5, "\tPRIORITY -5;"},
		{true, " MT-PRIORITY=5", "250 2.1.0", 5, "\tPRIORITY 5;"},
		{true, "", "250 2.1.0", 0, ""},
	} {
		f := newFixture(MX)
		if c.ours {
			f.o.RelayFrom = nets("192.0.2.0/24")
		}
		got := f.say(t, "EHLO c.test", "MAIL FROM:<x@far.test>"+c.param, "RCPT TO:<ann@home.test>", "DATA", "Subject: a", "", "b", ".")
		if !strings.HasPrefix(got[1], c.reply) || len(f.mem.msgs) != 1 {
			t.Fatalf("%+v: %q", c, got)
		}
		m := f.mem.msgs[0]
		if m.env.Priority != c.want || strings.Contains(m.text, "PRIORITY") != (c.trace != "") || !strings.Contains(m.text, c.trace) {
			t.Errorf("%+v: priority %d, %s", c, m.env.Priority, m.text)
		}
	}
}

// TestRequestsReachTheSpool: what a user asks for stands in the envelope.
func TestRequestsReachTheSpool(t *testing.T) {
	f := newFixture(Submission)
	f.o.Extend = Extend{HoldMax: 48 * time.Hour, MinBy: time.Minute}
	c := f.connect(t)
	c.ask("")
	c.ask("EHLO c.test")
	c.ask("STARTTLS")
	c.startTLS()
	now := time.Now()
	for _, line := range []string{
		"EHLO c.test", plain("ann", "secret"), "MAIL FROM:<ann@home.test> REQUIRETLS HOLDFOR=86400 BY=90000;RT MT-PRIORITY=2",
		"RCPT TO:<x@far.test>", "DATA", "Subject: a\r\n\r\nb\r\n.",
	} {
		if got := c.ask(line); got[0] > '3' {
			t.Fatalf("%s: %s", line, got)
		}
	}
	e := f.mem.msgs[0].env
	if !e.RequireTLS || e.Priority != 2 || e.Hold != "for;86400" || e.HoldUntil == nil || e.HoldUntil.Sub(now.Add(24*time.Hour)).Abs() > 10*time.Second {
		t.Errorf("%+v", e)
	}
	if by := e.DeliverBy; by == nil || by.Mode != "R" || !by.Trace || by.Deadline.Sub(now.Add(25*time.Hour)).Abs() > 10*time.Second {
		t.Errorf("%+v", e.DeliverBy)
	}
}

func TestETRN(t *testing.T) {
	f := newFixture(MX)
	f.o.RelayDomains = []string{"held.test", ".many.test"}
	var asked []string
	f.o.Extend = Extend{ETRNFrom: nets("192.0.2.0/24"), Flush: func(d string, below bool) error {
		if below {
			d = "@" + d
		}
		if d == "broken.many.test" {
			return errors.New("no socket")
		}
		asked = append(asked, d)
		return nil
	}}
	got := f.say(t, "EHLO c.test", "ETRN Held.Test", "ETRN @a.many.test", "ETRN broken.many.test", "ETRN many.test", "ETRN @test", "ETRN home.test")
	for i, want := range []string{"250 2.0.0", "250 2.0.0", "458 4.3.0", "459 4.7.1", "459 4.7.1", "459 4.7.1"} {
		if !strings.HasPrefix(got[i+1], want) {
			t.Errorf("%d: %q, want %s", i, got[i+1], want)
		}
	}
	if strings.Join(asked, " ") != "held.test @a.many.test" {
		t.Errorf("asked for %q", asked)
	}
	for _, line := range []string{"queue started", "level=ERROR msg=refused peer=192.0.2.7:4711 role=mx helo=c.test verb=ETRN arg=broken.many.test code=458"} {
		if !strings.Contains(f.log.String(), line) {
			t.Errorf("no line %q in the log", line)
		}
	}
}

// TestXClient: the rights are those of the client behind the proxy, and so is the trace.
func TestXClient(t *testing.T) {
	f := newFixture(MX)
	f.o.Extend.XClientFrom = nets("192.0.2.7/32")
	f.o.RelayFrom = nets("203.0.113.0/24", "192.0.2.7/32")
	got := f.say(t,
		"EHLO proxy.test", "XCLIENT ADDR=203.0.113.5 NAME=in.test", "EHLO in.test", "MAIL FROM:<x@far.test>", "RCPT TO:<y@far.test>", "RSET",
		"XCLIENT ADDR=198.51.100.9 PORT=99", "EHLO out.test", "MAIL FROM:<x@far.test>", "RCPT TO:<y@far.test>", "RCPT TO:<ann@home.test>", "DATA", "Subject: a", "", "b", ".")
	for i, want := range map[int]string{1: "220", 4: "250", 6: "220", 9: "550 5.7.1", 10: "250", 12: "250"} {
		if !strings.HasPrefix(got[i], want) {
			t.Errorf("%d: %q, want %s", i, got[i], want)
		}
	}
	if len(f.mem.msgs) != 1 {
		t.Fatalf("%d messages: %q", len(f.mem.msgs), got)
	}
	m := f.mem.msgs[0]
	if m.env.Origin.Peer != "198.51.100.9:99" || m.env.Origin.Kind != envelope.OriginSMTP || !strings.HasPrefix(m.text, "Received: from out.test ([198.51.100.9])") {
		t.Errorf("%+v %s", m.env.Origin, m.text)
	}
}

// TestXClientLogin: a proxy that has checked a password says whose it was. TLS ended at the proxy.
// The user's rights are no greater than after AUTH, and where nobody logs in there are none.
func TestXClientLogin(t *testing.T) {
	for _, c := range []struct {
		name, role, login, from string
		xclient, mail, rcpt     string
	}{
		{"user", Submission, "ann@home.test", "ann@home.test", "220", "250", "250"},
		{"bare name", Submission, "ann", "ann@home.test", "220", "250", "250"},
		{"another's address", Submission, "ann", "bob@home.test", "220", "550 5.7.1 ann@home.test may not", "503"},
		{"nobody's login", Submission, "ghost", "ghost@home.test", "220", "550 5.7.1 the user", "503"},
		{"nobody's login, null sender", Submission, "ghost", "", "220", "550 5.7.1 the user", "503"},
		{"look-up fails", Submission, "broken", "broken@home.test", "220", "451", "503"},
		{"no login", Submission, "[UNAVAILABLE]", "ann@home.test", "220", "530 5.7.0 say STARTTLS", "503"},
		{"no logins on this port", MX, "ann", "ann@home.test", "501", "250", "550"},
		{"no login on this port", MX, "[UNAVAILABLE]", "ann@home.test", "220", "250", "550"},
	} {
		f := newFixture(c.role)
		f.o.TLS = testTLS(t)
		f.o.Extend.XClientFrom = nets("192.0.2.7/32")
		got := f.say(t, "EHLO proxy.test", "XCLIENT ADDR=203.0.113.5 LOGIN="+c.login, "EHLO c.test", "MAIL FROM:<"+c.from+">", "RCPT TO:<x@far.test>")
		for i, want := range map[int]string{1: c.xclient, 3: c.mail, 4: c.rcpt} {
			if !strings.HasPrefix(got[i], want) {
				t.Errorf("%s: %d: %q, want %s", c.name, i, got[i], want)
			}
		}
	}
	f := newFixture(Submission)
	f.o.TLS = testTLS(t)
	f.o.Extend.XClientFrom = nets("192.0.2.7/32")
	f.say(t, "EHLO p", "XCLIENT ADDR=203.0.113.5 LOGIN=ann", "EHLO c", "MAIL FROM:<ann@home.test>", "RCPT TO:<x@far.test>", "DATA", "", ".")
	if len(f.mem.msgs) != 1 || f.mem.msgs[0].env.Origin.User != "ann@home.test" || f.mem.msgs[0].env.Origin.Proto != "ESMTPA" {
		t.Errorf("%+v", f.mem.msgs)
	}
}

// TestXClientIsTheConnections: who may say it is decided by the connection. A client behind the
// proxy gains nothing by an address in the list, a stranger nothing by naming one.
func TestXClientIsTheConnections(t *testing.T) {
	f := newFixture(MX)
	f.o.Extend.XClientFrom = nets("203.0.113.0/24")
	got := f.say(t, "EHLO c", "XCLIENT ADDR=203.0.113.5")
	if !strings.HasPrefix(got[1], "550 5.7.0") {
		t.Errorf("a stranger: %q", got)
	}
	f.o.Extend.XClientFrom = nets("192.0.2.7/32")
	got = f.say(t, "EHLO c", "XCLIENT ADDR=203.0.113.5", "XCLIENT ADDR=203.0.113.6")
	if !strings.HasPrefix(got[1], "220") || !strings.HasPrefix(got[2], "220") {
		t.Errorf("a proxy, twice: %q", got)
	}
}

// TestRequestsAreLogged: the line of an accepted message names what was asked for.
func TestRequestsAreLogged(t *testing.T) {
	f := newFixture(Local)
	uid := 0
	f.peer.UID = &uid
	f.o.Extend = Extend{HoldMax: time.Hour, MinBy: time.Minute}
	f.o.Submit = submit.New(submit.Options{Store: f.mem, Hostname: "mx.home.test", MaxHops: 5, Log: f.o.Log})
	f.say(t, "EHLO c.test", "MAIL FROM:<ann@home.test> HOLDFOR=60 BY=3600;R MT-PRIORITY=-3", "RCPT TO:<x@far.test>", "DATA", "", ".")
	for _, want := range []string{"hold_until=", "deliver_by=", "mode=R", "priority=-3"} {
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("no %s in %s", want, f.log.String())
		}
	}
}
