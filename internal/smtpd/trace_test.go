package smtpd

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/smtp"
	"pennypost/internal/submit"
)

// talk plays lines to a server whose TLS handshakes are only played, and returns what it said.
func (f *fixture) talk(t *testing.T, lines ...string) string {
	t.Helper()
	if f.o.Role != Local {
		f.o.TLS = &tls.Config{}
	}
	s, err := New(f.o)
	if err != nil {
		t.Fatal(err)
	}
	s.Handshake = func(c net.Conn) (net.Conn, tls.ConnectionState, error) {
		return c, tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256}, nil
	}
	s.Implicit = s.Implicit || f.peer.User != ""
	c, sc := net.Pipe()
	go s.ServeConn(context.Background(), sc, f.peer)
	go func() {
		for _, l := range append(lines, "QUIT") {
			io.WriteString(c, l+"\r\n") // the server may be gone
		}
	}()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%v after %q", err, b)
	}
	return string(b)
}

// TestReceivedLine: the clauses of RFC 5321 §4.4 for each way in, and nothing beside them. What
// would tell strangers about this host or its users must not be there.
func TestReceivedLine(t *testing.T) {
	uid := 1000
	const cipher = "\n\ttls TLS_AES_128_GCM_SHA256"
	for _, c := range []struct {
		name, role, user string
		peer             smtp.Peer
		hello            string
		mail             string // parameters
		to               []string
		want             string // without the date
	}{
		{"HELO", MX, "", smtp.Peer{}, "HELO c.test", "", []string{"ann"}, "from c.test\n\tby mx.home.test with SMTP\n\tid ID\n\tfor <ann@home.test>"},
		{"EHLO, IPv4", MX, "", at("192.0.2.7:25"), "EHLO c.test", "", []string{"ann"}, "from c.test ([192.0.2.7])\n\tby mx.home.test with ESMTP\n\tid ID\n\tfor <ann@home.test>"},
		{"EHLO, IPv6 with a zone", MX, "", at("[fe80::1%eth0]:25"), "EHLO c.test", "", []string{"ann"}, "from c.test ([IPv6:fe80::1])\n\tby mx.home.test with ESMTP\n\tid ID\n\tfor <ann@home.test>"},
		{"an address for a name", MX, "", at("192.0.2.7:25"), "EHLO [192.0.2.7]", "", []string{"ann"}, "from [192.0.2.7] ([192.0.2.7])\n\tby mx.home.test with ESMTP\n\tid ID\n\tfor <ann@home.test>"},
		{"two recipients are not told about each other", MX, "", at("192.0.2.7:25"), "EHLO c.test", "", []string{"ann", "bob"}, "from c.test ([192.0.2.7])\n\tby mx.home.test with ESMTP\n\tid ID"},
		{"SMTPUTF8", MX, "", at("192.0.2.7:25"), "EHLO c.test", " SMTPUTF8", []string{"ann"}, "from c.test ([192.0.2.7])\n\tby mx.home.test with UTF8SMTP\n\tid ID\n\tfor <ann@home.test>"},
		{"submission", Submission, "ann@home.test", at("192.0.2.7:25"), "EHLO c.test", "", []string{"bob"}, "from c.test ([192.0.2.7])\n\tby mx.home.test with ESMTPSA\n\tid ID\n\tfor <bob@home.test>" + cipher},
		{"submissions, SMTPUTF8", Submissions, "ann@home.test", at("192.0.2.7:25"), "EHLO c.test", " SMTPUTF8", []string{"bob"}, "from c.test ([192.0.2.7])\n\tby mx.home.test with UTF8SMTPSA\n\tid ID\n\tfor <bob@home.test>" + cipher},
		{"local", Local, "", smtp.Peer{UID: &uid}, "EHLO secret-host.internal", "", []string{"bob"}, "by mx.home.test (pennypost, from userid 1000) with ESMTP\n\tid ID\n\tfor <bob@home.test>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(c.role)
			f.peer, f.peer.User = c.peer, c.user
			f.o.Login = func(context.Context, int) (string, error) { return "ann", nil }
			lines := []string{c.hello, "MAIL FROM:<ann@home.test>" + c.mail}
			for _, r := range c.to {
				lines = append(lines, "RCPT TO:<"+r+"@home.test>")
			}
			said := f.talk(t, append(lines, "DATA", "Date: x", "Message-ID: <x@y>", "", "text", ".")...)
			if len(f.mem.msgs) != 1 {
				t.Fatalf("not taken: %s", said)
			}
			text := f.mem.msgs[0].text
			got, rest, ok := strings.Cut(text, "; Sun, 22 Nov 2026 03:00:00 +0000\n")
			got = strings.Replace(got, f.mem.msgs[0].env.ID, "ID", 1)
			if !ok || got != "Received: "+c.want {
				t.Errorf("got  %q\nwant %q", got, "Received: "+c.want)
			}
			if rest != "Date: x\nMessage-ID: <x@y>\n\ntext\n" {
				t.Errorf("more was added: %q", rest)
			}
		})
	}
}

func at(s string) smtp.Peer { return smtp.Peer{Addr: netip.MustParseAddrPort(s)} }

// TestSTARTTLSInTheTrace: what is said after STARTTLS counts, for the MX as well.
func TestSTARTTLSInTheTrace(t *testing.T) {
	f := newFixture(MX)
	f.o.TLS = &tls.Config{}
	f.talk(t, "EHLO before.test", "STARTTLS", "EHLO after.test", "MAIL FROM:<>", "RCPT TO:<ann@home.test>", "DATA", "", "x", ".")
	if len(f.mem.msgs) != 1 || !strings.HasPrefix(f.mem.msgs[0].text, "Received: from after.test ([192.0.2.7])\n\tby mx.home.test with ESMTPS\n") {
		t.Errorf("%+v", f.mem.msgs)
	}
}

// TestOneLineEach: an accepted message and a refusal have one line of the log each, with what
// happened and why, in both forms of the log; whatever the client says stays in that line.
func TestOneLineEach(t *testing.T) {
	body := []string{"DATA", "Subject: x", "Message-ID: <m@far.test>", "", "secret text", "."}
	start := []string{"EHLO c.test", "MAIL FROM:<x@far.test>"}
	for _, c := range []struct {
		name  string
		lines []string
		fail  error
		want  []string // of each line: message, code and enhanced code
		keys  map[string]string
	}{
		{"accepted", append(append(start[:2:2], "RCPT TO:<ann@home.test>"), body...), nil, []string{"accepted"},
			map[string]string{"id": "^1k0", "from": "^x@far.test$", "to": `^\[ann@home.test\]$`, "nrcpt": "^1$", "size": "^[1-9]", "msgid": "^<m@far.test>$", "kind": "^smtp$", "peer": "^192.0.2.7:4711$"}},
		{"unknown recipient", append(start[:2:2], "RCPT TO:<nobody@home.test>"), nil, []string{"refused 550 5.1.1"},
			map[string]string{"peer": "^192.0.2.7:4711$", "role": "^mx$", "helo": "^c.test$", "verb": "^RCPT$", "arg": "^TO:<nobody@home.test>$", "from": "^x@far.test$", "reply": "no such user"}},
		{"relaying", append(start[:2:2], "RCPT TO:<y@far.test>"), nil, []string{"refused 550 5.7.1"}, map[string]string{"reply": "relaying denied"}},
		{"look-up fails", append(start[:2:2], "RCPT TO:<broken@home.test>"), nil, []string{"refused 451 4.3.5"}, map[string]string{"level": "^ERROR$", "err": "bad line"}},
		{"one of two", append(append(start[:2:2], "RCPT TO:<nobody@home.test>", "RCPT TO:<ann@home.test>"), body...), nil, []string{"refused 550 5.1.1", "accepted"}, nil},
		{"too big", append(append(start[:2:2], "RCPT TO:<ann@home.test>"), "DATA", strings.Repeat("x", 9000), strings.Repeat("x", 9000), "."), nil, []string{"refused 552 5.3.4"}, map[string]string{"verb": "^DATA$"}},
		{"no space", append(append(start[:2:2], "RCPT TO:<ann@home.test>"), body...), &submit.Error{Status: envelope.Defer("4.3.1", "insufficient system storage"), Err: io.ErrShortWrite}, []string{"refused 452 4.3.1"}, map[string]string{"level": "^ERROR$", "err": "short write"}},
		{"syntax", []string{"EHLO c.test", "MAIL FRM"}, nil, []string{"refused 501 5.5.4"}, map[string]string{"arg": "^FRM$"}},
		{"8-bit octets and quotes", []string{"EHLO c.test", "X\xff\"=\u2028 msg=accepted level=ERROR"}, nil, []string{"refused 500 5.5.1"}, nil},
	} {
		for _, form := range []string{"text", "json"} {
			t.Run(c.name+", "+form, func(t *testing.T) {
				f := newFixture(MX)
				f.mem.fail = c.fail
				var log bytes.Buffer
				var h slog.Handler = slog.NewJSONHandler(&log, nil)
				if form == "text" {
					h = slog.NewTextHandler(&log, nil)
				}
				f.o.Log = slog.New(h)
				f.o.Submit = submit.New(submit.Options{Store: f.mem, Hostname: "mx.home.test", MaxSize: 10_000, MaxHops: 5, Log: f.o.Log})
				f.talk(t, c.lines...)
				if strings.Contains(log.String(), "secret text") {
					t.Errorf("text of the message is in the log: %s", log.String())
				}
				lines := strings.Split(strings.TrimSuffix(log.String(), "\n"), "\n")
				if len(lines) != len(c.want) {
					t.Fatalf("%d lines, want %d: %s", len(lines), len(c.want), log.String())
				}
				for i, l := range lines {
					checkLine(t, form, l, c.want[i], c.keys, i == 0)
				}
			})
		}
	}
}

// checkLine looks at one line of the log: which event it tells of, and some of its values.
func checkLine(t *testing.T, form, line, want string, keys map[string]string, first bool) {
	t.Helper()
	msg, codes := want, ""
	if strings.HasPrefix(want, "refused ") {
		msg, codes, _ = strings.Cut(want, " ")
	}
	code, dsn, _ := strings.Cut(codes, " ")
	if form == "text" {
		for _, w := range []string{"msg=" + msg, "code=" + code, "dsn=" + dsn} {
			if !strings.HasSuffix(w, "=") && !strings.Contains(line, w) && !strings.Contains(line, `msg="`+msg+`"`) {
				t.Errorf("%q is not in %s", w, line)
			}
		}
		return
	}
	var v map[string]any
	if err := json.Unmarshal([]byte(line), &v); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	if v["msg"] != msg || code != "" && (jsonText(v["code"]) != code || v["dsn"] != dsn) {
		t.Errorf("want %s: %s", want, line)
	}
	for k, re := range keys {
		if first && !regexp.MustCompile(re).MatchString(jsonText(v[k])) {
			t.Errorf("%s is %q, want %s", k, jsonText(v[k]), re)
		}
	}
}

func jsonText(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case []any:
		var all []string
		for _, e := range v {
			all = append(all, jsonText(e))
		}
		return "[" + strings.Join(all, " ") + "]"
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
