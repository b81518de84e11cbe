package smtp_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/mailtest"
	"pennypost/internal/smtp"
)

const clientText = "Subject: hi\n\nbody\n.dot\n"

// patient leaves a loaded machine its time.
func patient() smtp.ClientTimeouts { return smtp.DefaultTimeouts().Scaled(30 * time.Second) }

// quick is for peers that stall.
func quick() smtp.ClientTimeouts {
	l := smtp.DefaultTimeouts().Scaled(time.Second)
	l.Greeting, l.Done, l.Connect = time.Second, time.Second, 10*time.Second
	return l
}

func dialPeer(t testing.TB, p *mailtest.Peer) net.Conn {
	t.Helper()
	network := "tcp"
	if strings.HasPrefix(p.Addr(), "/") {
		network = "unix"
	}
	c, err := net.Dial(network, p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func openClient(t testing.TB, p *mailtest.Peer, lmtp bool) *smtp.Client {
	t.Helper()
	return openWith(t, p, lmtp, patient())
}

func openWith(t testing.TB, p *mailtest.Peer, lmtp bool, limits smtp.ClientTimeouts) *smtp.Client {
	t.Helper()
	c, err := smtp.NewClient(t.Context(), dialPeer(t, p), lmtp, limits)
	if err == nil {
		err = c.Hello("me.test")
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func recipients(addrs ...string) []envelope.Recipient {
	var to []envelope.Recipient
	for _, a := range addrs {
		to = append(to, envelope.Recipient{Addr: a})
	}
	return to
}

func transaction(addrs ...string) *smtp.Transaction {
	return &smtp.Transaction{From: "a@x.test", To: recipients(addrs...), Text: strings.NewReader(clientText)}
}

// summary is one word a recipient: verdict, code and what may be tried again.
func summary(out []smtp.Outcome) string {
	again := map[smtp.Again]string{smtp.OtherHost: "+other", smtp.SameHost: "+same"}
	var s []string
	for _, o := range out {
		s = append(s, fmt.Sprintf("%s:%s%s", o.Verdict, o.Code, again[o.Again]))
	}
	return strings.Join(s, " ")
}

func TestSend(t *testing.T) {
	three := []string{"b@y.test", "c@y.test", "d@y.test"}
	const ok = "relayed:2.0.0"
	for _, c := range []struct {
		name   string
		script []string
		want   string
		broken bool // the connection is of no more use
	}{
		{"all taken", nil, ok + " " + ok + " " + ok, false},
		{"replies without codes", []string{"MAIL => 250", "RCPT => 250 ", "dot => 250-a|250 b"}, ok + " " + ok + " " + ok, false},
		{"one refused", []string{"RCPT TO:<c@ => 550 5.1.1 no"}, ok + " failed:5.1.1 " + ok, false},
		{"one deferred", []string{"RCPT TO:<c@ => 450 4.2.1 busy"}, ok + " deferred:4.2.1 " + ok, false},
		{"all refused", []string{"RCPT => 550 no"}, "failed:5.1.0 failed:5.1.0 failed:5.1.0", false},
		{"all refused and 354", []string{"RCPT => 550 5.1.1 no", "DATA => 354 go", "dot => 554 5.5.1 nobody"}, "failed:5.1.1 failed:5.1.1 failed:5.1.1", false},
		{"too many", []string{"RCPT#3+ => 452 4.5.3 too many"}, ok + " " + ok + " deferred:4.5.3+same", false},
		{"too many, old style", []string{"RCPT#3+ => 552 5.5.3 too many"}, ok + " " + ok + " deferred:4.5.3+same", false},
		{"full mailbox is not too many", []string{"RCPT#3 => 452 4.2.2 full"}, ok + " " + ok + " deferred:4.2.2", false},
		{"MAIL deferred", []string{"MAIL => 451 4.7.1 greylisted"}, "deferred:4.7.1+other deferred:4.7.1+other deferred:4.7.1+other", false},
		{"MAIL refused", []string{"MAIL => 550 5.7.1 blocked"}, "failed:5.7.1 failed:5.7.1 failed:5.7.1", false},
		{"MAIL 421", []string{"MAIL => 421 4.3.2 bye; close"}, "deferred:4.3.2+other deferred:4.3.2+other deferred:4.3.2+other", true},
		{"MAIL 354", []string{"MAIL => 354 what"}, "deferred:4.5.0+other deferred:4.5.0+other deferred:4.5.0+other", false},
		{"RCPT 421", []string{"RCPT#2 => 421 4.7.0 bye; close"}, "deferred:4.4.2+other deferred:4.7.0+other deferred:4.4.2+other", true},
		{"DATA refused", []string{"RCPT#1 => 550 5.1.1 no", "DATA => 554 5.7.1 no"}, "failed:5.1.1 failed:5.7.1 failed:5.7.1", false},
		{"DATA deferred", []string{"DATA => 451 4.3.0 later"}, "deferred:4.3.0 deferred:4.3.0 deferred:4.3.0", false},
		{"DATA 250", []string{"DATA => 250 what"}, "deferred:4.5.0 deferred:4.5.0 deferred:4.5.0", false},
		{"text refused", []string{"dot => 554 5.6.0 spam"}, "failed:5.6.0 failed:5.6.0 failed:5.6.0", false},
		{"text deferred", []string{"dot => 451 4.3.0 later"}, "deferred:4.3.0 deferred:4.3.0 deferred:4.3.0", false},
		{"closed at MAIL", []string{"MAIL => close"}, "deferred:4.4.2+other deferred:4.4.2+other deferred:4.4.2+other", true},
		{"closed at the second RCPT", []string{"RCPT#1 => 550 5.1.1 no", "RCPT#2 => close"}, "failed:5.1.1 deferred:4.4.2+other deferred:4.4.2+other", true},
		{"closed at the dot", []string{"RCPT#1 => 550 5.1.1 no", "dot => close"}, "failed:5.1.1 deferred:4.4.2 deferred:4.4.2", true},
		{"stall at MAIL", []string{"MAIL => stall"}, "deferred:4.4.2+other deferred:4.4.2+other deferred:4.4.2+other", true},
		{"stall at the dot", []string{"dot => stall"}, "deferred:4.4.2 deferred:4.4.2 deferred:4.4.2", true},
		{"garbage at RCPT", []string{"RCPT#2 => garbage"}, "deferred:4.5.0+other deferred:4.5.0+other deferred:4.5.0+other", true},
		{"garbage at the dot", []string{"dot => garbage"}, "deferred:4.5.0 deferred:4.5.0 deferred:4.5.0", true},
		{"an octet at a time", []string{"MAIL => slow 250-2.1.0 a|250 2.1.0 b", "dot => slow 250 2.6.0 ok"}, "relayed:2.6.0 relayed:2.6.0 relayed:2.6.0", false},
		{"long replies", []string{"RCPT => 550-" + strings.Repeat("x", 3000) + "|550 5.1.1 y"}, "failed:5.1.0 failed:5.1.0 failed:5.1.0", false},
		{"endless reply", []string{"MAIL => " + strings.Repeat("250-x|", 500)}, "deferred:4.5.0+other deferred:4.5.0+other deferred:4.5.0+other", true},
	} {
		for _, abilities := range [][]string{nil, {"8BITMIME"}} {
			t.Run(fmt.Sprintf("%s/pipelining=%t", c.name, abilities == nil), func(t *testing.T) {
				p := mailtest.StartPeer(t, mailtest.PeerOptions{Script: c.script, Abilities: abilities})
				limits := patient()
				if strings.Contains(c.name, "stall") {
					limits = quick()
				}
				client := openWith(t, p, false, limits)
				out, err := client.Send(t.Context(), transaction(three...))
				got := summary(out)
				// Without pipelining the 421 is all that is read.
				if got != c.want || c.broken != (err != nil) {
					t.Errorf("got  %s (%v)\nwant %s, broken %t", got, err, c.want, c.broken)
				}
				if err != nil || strings.HasPrefix(c.name, "MAIL") || !client.Usable() {
					return
				}
				// The connection is as good as new, whatever state the last transaction ended in.
				out, err = client.Send(t.Context(), transaction("z@y.test"))
				if err != nil || len(out) != 1 {
					t.Errorf("next transaction: %v, %v", summary(out), err)
				}
				for _, l := range client.Transcript() {
					if strings.Contains(l, "nested") {
						t.Errorf("the next transaction met an open one: %q", client.Transcript())
					}
				}
				client.Quit()
			})
		}
	}
}

// The whole command group is one write, and the message another one.
func TestSendWrites(t *testing.T) {
	p := mailtest.StartPeer(t, mailtest.PeerOptions{})
	conn := &countingConn{Conn: dialPeer(t, p)}
	c, err := smtp.NewClient(t.Context(), conn, false, patient())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Hello("me.test"); err != nil {
		t.Fatal(err)
	}
	conn.writes = 0
	for range 3 {
		if out, err := c.Send(t.Context(), transaction("b@y.test", "c@y.test")); err != nil || summary(out) != "relayed:2.0.0 relayed:2.0.0" {
			t.Fatal(summary(out), err)
		}
	}
	if conn.writes != 6 {
		t.Errorf("%d writes for 3 messages, want 6", conn.writes)
	}
	m := p.Messages()
	if len(m) != 3 || m[2].Text != clientText || strings.Join(m[2].To, " ") != "b@y.test c@y.test" || m[2].From != "a@x.test" {
		t.Errorf("taken: %+v", m)
	}
}

type countingConn struct {
	net.Conn
	writes int
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.writes++
	return c.Conn.Write(p)
}

func TestSendThousandRecipients(t *testing.T) {
	p := mailtest.StartPeer(t, mailtest.PeerOptions{Script: []string{"RCPT TO:<u500@ => 550 5.1.1 no"}})
	c := openClient(t, p, false)
	var to []string
	for i := range 1000 {
		to = append(to, fmt.Sprintf("u%d@some-longer-domain.test", i))
	}
	out, err := c.Send(t.Context(), transaction(to...))
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range out {
		want := envelope.Relayed
		if i == 500 {
			want = envelope.Failed
		}
		if o.Verdict != want {
			t.Fatalf("recipient %d: %+v", i, o)
		}
	}
	if m := p.Messages(); len(m) != 1 || len(m[0].To) != 999 {
		t.Errorf("%d messages", len(m))
	}
}

// timed makes a plain transaction one with a deadline.
func timed(mode string, left time.Duration, trace bool, notify []string) func(*smtp.Transaction) {
	return func(x *smtp.Transaction) {
		*x = *transaction("b@y.test")
		x.By, x.Left = &envelope.DeliverBy{Mode: mode, Trace: trace}, left
		x.To[0].Notify = notify
	}
}

func TestSendParameters(t *testing.T) {
	tx := func() *smtp.Transaction {
		x := transaction("b@y.test")
		x.Ret, x.EnvID, x.Size, x.Body = "HDRS", "QQ 1+2", 321, envelope.Body8Bit
		x.To[0].Notify, x.To[0].ORcpt = []string{"SUCCESS", "DELAY"}, "rfc822;Bob=B@y.test"
		return x
	}
	for _, c := range []struct {
		name      string
		abilities []string
		change    func(*smtp.Transaction)
		mail      string
		rcpt      string
		want      string
		dsn       bool
	}{
		{name: "everything", change: func(*smtp.Transaction) {},
			mail: "MAIL FROM:<a@x.test> SIZE=321 BODY=8BITMIME RET=HDRS ENVID=QQ+201+2B2",
			rcpt: "RCPT TO:<b@y.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Bob+3DB@y.test", want: "relayed:2.0.0", dsn: true},
		{name: "nothing", abilities: []string{}, change: func(x *smtp.Transaction) { x.Body = "" },
			mail: "MAIL FROM:<a@x.test>", rcpt: "RCPT TO:<b@y.test>", want: "relayed:2.0.0"},
		{name: "null reverse-path", abilities: []string{"PIPELINING"}, change: func(x *smtp.Transaction) { x.Body, x.From = "", "" },
			mail: "MAIL FROM:<>", rcpt: "RCPT TO:<b@y.test>", want: "relayed:2.0.0"},
		{name: "international", change: func(x *smtp.Transaction) {
			x.To[0] = envelope.Recipient{Addr: "jörg@y.test", ORcpt: "utf-8;jörg+x@y.test"}
		},
			mail: "MAIL FROM:<a@x.test> SIZE=321 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ+201+2B2",
			rcpt: `RCPT TO:<jörg@y.test> ORCPT=utf-8;jörg\x{2B}x@y.test`, want: "relayed:2.0.0", dsn: true},
		{name: "international, not taken", abilities: []string{"8BITMIME"}, change: func(x *smtp.Transaction) { x.To[0].Addr = "jörg@y.test" }, want: "failed:5.6.7+other"},
		{name: "international sender, not taken", abilities: []string{"8BITMIME"}, change: func(x *smtp.Transaction) { x.From = "jörg@y.test" }, want: "failed:5.6.7+other"},
		{name: "8-bit, not taken", abilities: []string{"DSN"}, change: func(*smtp.Transaction) {}, want: "failed:5.6.3+other"},
		{name: "binary, not taken", change: func(x *smtp.Transaction) { x.Body = envelope.BodyBinary }, want: "failed:5.6.3+other"},
		{name: "too large", abilities: []string{"8BITMIME", "SIZE 320"}, change: func(*smtp.Transaction) {}, want: "failed:5.3.4"},
		{name: "REQUIRETLS, not taken", change: func(x *smtp.Transaction) { x.RequireTLS = true }, want: "failed:5.7.30+other"},
		{name: "REQUIRETLS", abilities: []string{"REQUIRETLS"}, change: func(x *smtp.Transaction) { x.RequireTLS, x.Body = true, "" },
			mail: "MAIL FROM:<a@x.test> REQUIRETLS", rcpt: "RCPT TO:<b@y.test>", want: "relayed:2.0.0"},
		{name: "BY, passed on", abilities: []string{"DELIVERBY 60", "DSN"}, change: timed("R", 90*time.Second, true, nil),
			mail: "MAIL FROM:<a@x.test> BY=90;RT", rcpt: "RCPT TO:<b@y.test>", want: "relayed:2.0.0", dsn: true},
		{name: "BY R, too short for the peer", abilities: []string{"DELIVERBY 60"}, change: timed("R", 59*time.Second, false, nil), want: "failed:5.3.3"},
		{name: "BY R, not known", abilities: []string{}, change: timed("R", time.Hour, false, nil), want: "failed:5.3.3"},
		{name: "BY R, too late", abilities: []string{"DELIVERBY"}, change: timed("R", -time.Second, false, nil), want: "failed:5.4.7"},
		{name: "BY N, too late", abilities: []string{"DELIVERBY 60"}, change: timed("N", -90*time.Second, false, nil),
			mail: "MAIL FROM:<a@x.test> BY=-90;N", rcpt: "RCPT TO:<b@y.test>", want: "relayed:2.0.0"},
		{name: "BY N, not known", abilities: []string{"DSN"}, change: timed("N", time.Hour, false, nil),
			mail: "MAIL FROM:<a@x.test>", rcpt: "RCPT TO:<b@y.test> NOTIFY=FAILURE,DELAY", want: "relayed:2.0.0", dsn: true},
		{name: "BY N, not known, SUCCESS", abilities: []string{"DSN"}, change: timed("N", time.Hour, false, []string{"SUCCESS"}),
			mail: "MAIL FROM:<a@x.test>", rcpt: "RCPT TO:<b@y.test> NOTIFY=SUCCESS,DELAY", want: "relayed:2.0.0", dsn: true},
		{name: "BY N, not known, NEVER", abilities: []string{"DSN"}, change: timed("N", time.Hour, false, []string{"NEVER"}),
			mail: "MAIL FROM:<a@x.test>", rcpt: "RCPT TO:<b@y.test> NOTIFY=NEVER", want: "relayed:2.0.0", dsn: true},
		{name: "priority", abilities: []string{"MT-PRIORITY MIXER"}, change: func(x *smtp.Transaction) { *x = *transaction("b@y.test"); x.Priority = -4 },
			mail: "MAIL FROM:<a@x.test> MT-PRIORITY=-4", rcpt: "RCPT TO:<b@y.test>", want: "relayed:2.0.0"},
		{name: "no priority", abilities: []string{"MT-PRIORITY"}, change: func(x *smtp.Transaction) { *x = *transaction("b@y.test") },
			mail: "MAIL FROM:<a@x.test> MT-PRIORITY=0", rcpt: "RCPT TO:<b@y.test>", want: "relayed:2.0.0"},
		{name: "line break in a recipient", change: func(x *smtp.Transaction) { x.To[0].Addr = "b@y.test>\r\nRCPT TO:<c@y.test" }, want: "failed:5.1.3"},
		{name: "line break in the sender", change: func(x *smtp.Transaction) { x.From = "a@x.test>\nRSET" }, want: "failed:5.1.7"},
		{name: "line break in a parameter", abilities: []string{"DSN"}, change: func(x *smtp.Transaction) {
			x.Body, x.EnvID, x.Ret = "", "a\r\nb", "FULL\r\nRSET"
			x.To[0].Notify, x.To[0].ORcpt = []string{"NEVER\r\nRSET"}, "rfc822;a\r\nb"
		}, mail: "MAIL FROM:<a@x.test> ENVID=a+0D+0Ab", rcpt: "RCPT TO:<b@y.test> ORCPT=rfc822;a+0D+0Ab", want: "relayed:2.0.0", dsn: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := mailtest.StartPeer(t, mailtest.PeerOptions{Abilities: c.abilities})
			x := tx()
			c.change(x)
			out, err := openClient(t, p, false).Send(t.Context(), x)
			if err != nil || summary(out) != c.want {
				t.Fatalf("got %s, %v; want %s", summary(out), err, c.want)
			}
			if out[0].DSN != c.dsn {
				t.Errorf("DSN taken over: %t", out[0].DSN)
			}
			cmds := p.Commands()[1:]
			if c.mail == "" {
				if len(cmds) > 0 {
					t.Errorf("asked all the same: %q", cmds)
				}
				return
			}
			if cmds[0] != c.mail || cmds[1] != c.rcpt {
				t.Errorf("got  %q\nwant %q %q", cmds[:2], c.mail, c.rcpt)
			}
		})
	}
}

func TestSendBinary(t *testing.T) {
	p := mailtest.StartPeer(t, mailtest.PeerOptions{Abilities: []string{"PIPELINING", "CHUNKING", "BINARYMIME"}})
	c := openClient(t, p, false)
	text := "A: b\r\n\r\n\x00\r.\n.\r\n.\r\nx"
	for range 2 {
		x := transaction("b@y.test")
		x.Body, x.Size, x.Text = envelope.BodyBinary, int64(len(text)), strings.NewReader(text)
		if out, err := c.Send(t.Context(), x); err != nil || summary(out) != "relayed:2.0.0" {
			t.Fatal(summary(out), err)
		}
	}
	if m := p.Messages(); len(m) != 2 || m[1].Text != text {
		t.Errorf("taken: %+v", m)
	}
	// A text that is shorter than announced must never be completed.
	x := transaction("b@y.test")
	x.Body, x.Size, x.Text = envelope.BodyBinary, 100, strings.NewReader(text)
	if out, err := c.Send(t.Context(), x); err == nil || summary(out) != "deferred:4.3.0" {
		t.Error(summary(out), err)
	}
}

func TestSendTextFailsInTheMiddle(t *testing.T) {
	p := mailtest.StartPeer(t, mailtest.PeerOptions{})
	c := openClient(t, p, false)
	x := transaction("b@y.test")
	x.Text = &failingReader{strings.NewReader(clientText)}
	out, err := c.Send(t.Context(), x)
	if err == nil || summary(out) != "deferred:4.3.0" || out[0].Remote {
		t.Errorf("%s, %v", summary(out), err)
	}
	c.Close()
	p.Close()
	if len(p.Messages()) != 0 {
		t.Error("half a message was completed")
	}
}

type failingReader struct{ r *strings.Reader }

func (f *failingReader) Read(p []byte) (int, error) {
	if f.r.Len() == 0 {
		return 0, errors.New("disk error")
	}
	return f.r.Read(p)
}

// A peer that refuses in the middle of a long text is heard.
func TestSendRefusedInTheMiddle(t *testing.T) {
	p := mailtest.StartPeer(t, mailtest.PeerOptions{Script: []string{"text => 552 5.3.4 too much; close"}})
	c := openClient(t, p, false)
	x := transaction("b@y.test")
	x.Text = strings.NewReader("A: b\n\n" + strings.Repeat("a line of text\n", 1<<20))
	out, err := c.Send(t.Context(), x)
	if err == nil || len(out) != 1 || out[0].Verdict == envelope.Relayed {
		t.Fatal(summary(out), err)
	}
	// The reset may overtake the reply; then it is a broken connection before the dot.
	if got := summary(out); got != "failed:5.3.4" && got != "deferred:4.4.2+other" {
		t.Error(got)
	}
}

func TestLMTP(t *testing.T) {
	p := mailtest.StartPeer(t, mailtest.PeerOptions{LMTP: true, Addr: t.TempDir() + "/lmtp",
		Script: []string{"RCPT TO:<no@ => 550 5.1.1 no", "dot full@ => 452 4.2.2 full"}})
	c := openClient(t, p, true)
	for range 2 {
		out, err := c.Send(t.Context(), transaction("b@y.test", "no@y.test", "full@y.test", "d@y.test"))
		if err != nil || summary(out) != "relayed:2.0.0 failed:5.1.1 deferred:4.2.2 relayed:2.0.0" {
			t.Fatal(summary(out), err)
		}
	}
	out, err := c.Send(t.Context(), transaction("no@y.test"))
	if err != nil || summary(out) != "failed:5.1.1" {
		t.Error(summary(out), err)
	}
	c.Quit()
	if m := p.Messages(); len(m) != 2 || strings.Join(m[0].To, " ") != "b@y.test d@y.test" {
		t.Errorf("%+v", m)
	}
}

func TestLMTPBreaksBetweenReplies(t *testing.T) {
	p := mailtest.StartPeer(t, mailtest.PeerOptions{LMTP: true, Script: []string{"dot c@ => close"}})
	out, err := openClient(t, p, true).Send(t.Context(), transaction("b@y.test", "c@y.test", "d@y.test"))
	if err == nil || summary(out) != "relayed:2.0.0 deferred:4.4.2 deferred:4.4.2" {
		t.Error(summary(out), err)
	}
}

func TestHello(t *testing.T) {
	for _, c := range []struct {
		name   string
		script []string
		want   string // part of the error; "" is success
		stage  smtp.Stage
	}{
		{"greeting 421", []string{"greeting => 421 4.3.2 busy"}, "421 4.3.2 busy", smtp.StageConnect},
		{"greeting 554", []string{"greeting => 554 5.3.2 no"}, "554 5.3.2 no", smtp.StageConnect},
		{"greeting stalls", []string{"greeting => stall"}, "timeout", smtp.StageConnect},
		{"greeting closes", []string{"greeting => close"}, "EOF", smtp.StageConnect},
		{"greeting garbage", []string{"greeting => SSH-2.0-OpenSSH_9"}, "not an SMTP reply", smtp.StageConnect},
		{"HELO fallback", []string{"EHLO => 502 5.5.1 what"}, "", 0},
		{"HELO fallback after 500", []string{"EHLO => 500 what"}, "", 0},
		{"both refused", []string{"EHLO => 500 what", "HELO => 550 go away"}, "550 go away", smtp.StageHello},
		{"EHLO 4xx", []string{"EHLO => 450 4.3.2 later"}, "450 4.3.2 later", smtp.StageHello},
		{"EHLO closes", []string{"EHLO => close"}, "EOF", smtp.StageHello},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := mailtest.StartPeer(t, mailtest.PeerOptions{Script: c.script})
			limits := patient()
			if strings.Contains(c.name, "stall") {
				limits = quick()
			}
			client, err := smtp.NewClient(t.Context(), dialPeer(t, p), false, limits)
			if err == nil {
				err = client.Hello("me.test")
			}
			var broken *smtp.ClientError
			var refusal *smtp.Refusal
			switch {
			case c.want == "":
				if err != nil || client.Abilities().Pipelining {
					t.Errorf("%v, %+v", err, client.Abilities())
				}
			case err == nil || !strings.Contains(err.Error(), c.want):
				t.Errorf("got %v, want %q", err, c.want)
			case errors.As(err, &broken) && broken.Stage != c.stage, errors.As(err, &refusal) && refusal.Stage != c.stage:
				t.Errorf("%v at another stage than %v", err, c.stage)
			}
		})
	}
}

func TestAuth(t *testing.T) {
	for _, c := range []struct{ abilities, password, want string }{
		{"AUTH PLAIN LOGIN", "secret", ""},
		{"AUTH LOGIN", "secret", ""},
		{"AUTH=LOGIN", "secret", ""},
		{"AUTH PLAIN", "wrong", "535 5.7.8 wrong"},
		{"AUTH LOGIN", "wrong", "535 5.7.8 wrong"},
		{"AUTH CRAM-MD5", "secret", "neither"},
		{"PIPELINING", "secret", "neither"},
		{"AUTH PLAIN", "a\x00b", "NUL"},
	} {
		p := mailtest.StartPeer(t, mailtest.PeerOptions{Abilities: []string{c.abilities}, User: "me:secret"})
		client := openClient(t, p, false)
		err := client.Auth("me", c.password)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s with %q: %v", c.abilities, c.password, err)
		}
		if script := strings.Join(client.Transcript(), "\n"); strings.Contains(script, "AG1l") || strings.Contains(script, "bWU=") || strings.Contains(script, "c2VjcmV0") {
			t.Errorf("credentials in the transcript: %s", script)
		}
	}
}

func TestStartTLSIgnoresClearText(t *testing.T) {
	p := mailtest.StartPeer(t, mailtest.PeerOptions{TLS: &tls.Config{}, Script: []string{"STARTTLS => 220 go|250 injected"}})
	c := openClient(t, p, false)
	err := c.StartTLS(func(net.Conn) (net.Conn, error) { t.Error("handshake begun"); return nil, errors.New("no") })
	if err == nil || !strings.Contains(err.Error(), "clear text") || c.Usable() {
		t.Errorf("%v", err)
	}
}

func TestContextBreaksOff(t *testing.T) {
	p := mailtest.StartPeer(t, mailtest.PeerOptions{Script: []string{"dot => stall"}})
	limits := smtp.DefaultTimeouts()
	c, err := smtp.NewClient(t.Context(), dialPeer(t, p), false, limits)
	if err == nil {
		err = c.Hello("me.test")
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	out, err := c.Send(ctx, transaction("b@y.test"))
	if err == nil || summary(out) != "deferred:4.4.2" {
		t.Error(summary(out), err)
	}
	// A context that is over already ends the session at its next step.
	p2 := mailtest.StartPeer(t, mailtest.PeerOptions{})
	c2 := openClient(t, p2, false)
	if out, err := c2.Send(ctx, transaction("b@y.test")); err == nil || out[0].Verdict != envelope.Deferred {
		t.Error(summary(out), err)
	}
}

func TestScaledTimeouts(t *testing.T) {
	d := smtp.DefaultTimeouts()
	if d.Scaled(0) != d {
		t.Error("zero changes them")
	}
	if s := d.Scaled(time.Minute); s.Command != time.Minute || s.Done != 2*time.Minute || s.Connect != 6*time.Second {
		t.Errorf("%+v", s)
	}
}

// BenchmarkTransaction is one pipelined message to a server that costs next to nothing.
func BenchmarkTransaction(b *testing.B) {
	here, there := net.Pipe()
	go cheapServer(there)
	c, err := smtp.NewClient(b.Context(), here, false, smtp.DefaultTimeouts())
	if err == nil {
		err = c.Hello("me.test")
	}
	if err != nil {
		b.Fatal(err)
	}
	text := strings.NewReader("Subject: x\n\n" + strings.Repeat("a line of some length, as there are many\n", 100))
	to := recipients("b@y.test")
	b.ReportAllocs()
	for b.Loop() {
		text.Reset("Subject: x\n\n" + clientText)
		if _, err := c.Send(b.Context(), &smtp.Transaction{From: "a@x.test", To: to, Text: text}); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
}

func cheapServer(c net.Conn) {
	buf := make([]byte, 64<<10)
	c.Write([]byte("220 x\r\n"))
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		s := string(buf[:n])
		switch {
		case strings.HasPrefix(s, "EHLO"):
			c.Write([]byte("250-x\r\n250 PIPELINING\r\n"))
		case strings.HasPrefix(s, "MAIL"):
			c.Write([]byte("250 ok\r\n250 ok\r\n354 go\r\n"))
		case strings.HasSuffix(s, "\r\n.\r\n"):
			c.Write([]byte("250 ok\r\n"))
		}
	}
}
