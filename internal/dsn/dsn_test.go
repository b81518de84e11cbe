package dsn

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pennypost/internal/envelope"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var (
	accepted = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	now      = accepted.Add(time.Hour)
)

const plainOriginal = "From: ann@a.test\nTo: bob@b.test\nSubject: lunch\nMessage-ID: <m1@a.test>\n\nAt noon?\n"

func report(kind Kind, original string, rs ...Recipient) Report {
	r := Report{
		ID: "0c8r3v5k2abcdefghi", Kind: kind, Hostname: "mx.a.test", Postmaster: "postmaster@a.test", Now: now,
		Env:        &envelope.Envelope{ID: "0c8r3v5k1abcdefghi", Time: accepted, From: "ann@a.test", EOL: envelope.EOLLF},
		Recipients: rs,
	}
	if original != "" {
		r.Original = section(original)
	}
	return r
}

func section(s string) *io.SectionReader {
	return io.NewSectionReader(strings.NewReader("spool line\n"+s), int64(len("spool line\n")), int64(len(s)))
}

func failed(addr string) Recipient {
	return Recipient{
		Recipient: envelope.Recipient{Addr: addr, ORcpt: "rfc822;Robert@b.test"},
		Status: envelope.Status{Verdict: envelope.Failed, Code: "5.1.1", Reply: "550 5.1.1 <bob@b.test>: no such user here",
			Relay: "mx.b.test[127.0.0.3]:25", Remote: true},
		Last: now,
	}
}

func render(t *testing.T, r Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, r); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestGolden(t *testing.T) {
	delayed := failed("bob@b.test")
	delayed.Status = envelope.Defer("4.4.1", "connection refused")
	delayed.Relay, delayed.RetryUntil = "mx.b.test[127.0.0.3]:25", accepted.Add(5*24*time.Hour)
	delivered := Recipient{Recipient: envelope.Recipient{Addr: "bob@b.test", Notify: []string{"SUCCESS"}},
		Status: envelope.Status{Verdict: envelope.Delivered, Code: "2.0.0", Reply: "saved as /var/mail/secret/place"}}
	full := report(Failure, plainOriginal, failed("bob@b.test"), failed("carl@b.test"))
	full.Env.Ret, full.Env.EnvID = "FULL", "QQ314159"
	for name, r := range map[string]Report{
		"failure": report(Failure, plainOriginal, failed("bob@b.test")),
		"full":    full,
		"delay":   report(Delay, plainOriginal, delayed),
		"success": report(Success, plainOriginal, delivered),
	} {
		t.Run(name, func(t *testing.T) {
			got := render(t, r)
			path := filepath.Join("testdata", name+".msg")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s differs (go test -update rewrites it):\n%s", path, got)
			}
		})
	}
}

// TestTimedOriginal: what the sender asked for in the way of time stands in the report, which is
// as urgent and as protected as its message (RFC 2852 §5, RFC 4865 §5.1.2, RFC 6710 §4.6, RFC
// 8689 §5).
func TestTimedOriginal(t *testing.T) {
	r := report(Failure, plainOriginal, failed("bob@b.test"))
	r.Env.Ret, r.Env.RequireTLS, r.Env.Priority, r.Env.Hold = "FULL", true, 3, "for;3600"
	r.Env.DeliverBy = &envelope.DeliverBy{Deadline: accepted.Add(2 * time.Hour), Mode: "R"}
	text := render(t, r)
	for _, want := range []string{
		"\nDeliver-By-Date: " + rfc5322Date(accepted.Add(2*time.Hour)) + "\n", "\nFuture-Release-Request: for;3600\n", "\nArrival-Date: ", "text/rfc822-headers",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if env, err := Child(&r); err != nil || !env.RequireTLS || env.Priority != 3 || env.DeliverBy != nil || env.HoldUntil != nil {
		t.Errorf("%+v %v", env, err)
	}
}

func TestDue(t *testing.T) {
	rc := func(v envelope.Verdict, notify ...string) Recipient {
		return Recipient{Recipient: envelope.Recipient{Addr: "x@y.test", Notify: notify}, Status: envelope.Status{Verdict: v}}
	}
	taken := rc(envelope.Relayed, "SUCCESS")
	taken.Relayed = true
	told := rc(envelope.Relayed)
	told.Relayed, told.Told = true, true
	for i, c := range []struct {
		kind Kind
		r    Recipient
		want bool
	}{
		{Success, told, true},
		{Failure, rc(envelope.Failed), true},
		{Failure, rc(envelope.Deferred), true},
		{Failure, rc(envelope.Delivered), false},
		{Failure, rc(envelope.Failed, "NEVER"), false},
		{Failure, rc(envelope.Failed, "SUCCESS"), false},
		{Failure, rc(envelope.Failed, "SUCCESS", "FAILURE"), true},
		{Failure, rc(envelope.Failed, "failure"), true},
		{Failure, rc(envelope.Failed, "FAILURE", "NEVER"), false},
		{Delay, rc(envelope.Deferred), true},
		{Delay, rc(envelope.Deferred, "DELAY"), true},
		{Delay, rc(envelope.Deferred, "FAILURE"), false},
		{Delay, rc(envelope.Failed), false},
		{Success, rc(envelope.Delivered), false},
		{Success, rc(envelope.Delivered, "SUCCESS"), true},
		{Success, rc(envelope.Expanded, "SUCCESS"), true},
		{Success, rc(envelope.Relayed, "SUCCESS"), true},
		{Success, taken, false},
		{Success, rc(envelope.Failed, "SUCCESS"), false},
	} {
		env := &envelope.Envelope{From: "ann@a.test"}
		if got := len(Due(env, c.kind, []Recipient{c.r})) == 1; got != c.want {
			t.Errorf("case %d: %s %+v: due %v, want %v", i, c.kind, c.r, got, c.want)
		}
		if got := Due(&envelope.Envelope{}, c.kind, []Recipient{c.r}); got != nil {
			t.Errorf("case %d: a report to the null reverse-path is due", i)
		}
	}
}

func TestNullReversePathIsRefused(t *testing.T) {
	r := report(Failure, plainOriginal, failed("bob@b.test"))
	r.Env.From = ""
	if err := Write(io.Discard, r); !errors.Is(err, ErrNullReversePath) {
		t.Errorf("got %v", err)
	}
}

func TestChild(t *testing.T) {
	r := report(Failure, "Subject: \xe4\n\nbody\n", failed("bob@b.test"))
	env, err := Child(&r)
	if err != nil {
		t.Fatal(err)
	}
	if env.From != "" || len(env.To) != 1 || env.To[0].Addr != "ann@a.test" || fmt.Sprint(env.To[0].Notify) != "[NEVER]" ||
		env.Ret != "" || env.Body != "" || env.Origin.Parent != r.Env.ID || env.ID != r.ID {
		t.Errorf("%+v", env)
	}
	r.Env.Ret = "FULL"
	if env, err = Child(&r); err != nil || env.Body != envelope.Body8Bit {
		t.Errorf("8-bit original in full: %+v %v", env, err)
	}
	r.Env.SMTPUTF8 = true // then the part may be encoded, and is
	if env, err = Child(&r); err != nil || env.Body != "" {
		t.Errorf("SMTPUTF8 original in full: %+v %v", env, err)
	}
}

// parts takes the report apart with the standard library as an independent reader.
func parts(t *testing.T, msg string) (mail.Header, []string, []string) {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(strings.ReplaceAll(msg, "\n", "\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatalf("%q %v %v", kind, params, err)
	}
	var types, bodies []string
	for mr := multipart.NewReader(m.Body, params["boundary"]); ; {
		p, err := mr.NextRawPart()
		if errors.Is(err, io.EOF) {
			return m.Header, types, bodies
		}
		if err != nil {
			t.Fatal(err)
		}
		var body io.Reader = p
		if p.Header.Get("Content-Transfer-Encoding") == "quoted-printable" {
			body = quotedprintable.NewReader(p)
		}
		data, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		types = append(types, p.Header.Get("Content-Type"))
		bodies = append(bodies, strings.ReplaceAll(string(data), "\r\n", "\n"))
	}
}

// Whatever the original and the replies hold, the report is a well-formed message of short
// ASCII lines (one kind excepted), and the original comes back byte for byte.
func TestOriginals(t *testing.T) {
	long := strings.Repeat("x", 3000)
	for _, c := range []struct {
		name, original, ret string
		utf8                bool
		want, wantType      string
		eightBit            bool
	}{
		{"header only", plainOriginal, "", false, strings.SplitAfter(plainOriginal, "<m1@a.test>\n")[0], "text/rfc822-headers", false},
		{"full", plainOriginal, "FULL", false, plainOriginal, "message/rfc822", false},
		{"8-bit header", "Subject: \xfc= \n\nb\n", "HDRS", false, "Subject: \xfc= \n", "text/rfc822-headers", false},
		{"8-bit body, header asked for", "Subject: x\n\n\xfc\n", "HDRS", false, "Subject: x\n", "text/rfc822-headers", false},
		{"8-bit full", "Subject: x\n\n\xfc\n", "FULL", false, "Subject: x\n\n\xfc\n", "message/rfc822", true},
		{"utf8 full", "Subject: ü\n\nü\n", "FULL", true, "Subject: ü\n\nü\n", "message/global", false},
		{"utf8 header", "Subject: ü\n\nü\n", "", true, "Subject: ü\n", "message/global-headers", false},
		{"long header line", "Subject: " + long + "\n\nb\n", "", false, "Subject: " + long + "\n", "text/rfc822-headers", false},
		{"CR and NUL in the header", "Subject: a\rb\x00c\n\nb\n", "", false, "Subject: a\rb\x00c\n", "text/rfc822-headers", false},
		{"no body", "Subject: x\n", "", false, "Subject: x\n", "text/rfc822-headers", false},
		{"no line end", "Subject: x", "", false, "Subject: x", "text/rfc822-headers", false},
		{"no header", "\nbody only\n", "", false, "", "text/rfc822-headers", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			rc := failed("bob@b.test")
			rc.Reply = "550 nein \x1b[1m é " + strings.Repeat("word ", 300) + long
			r := report(Failure, c.original, rc)
			r.Env.Ret, r.Env.SMTPUTF8 = c.ret, c.utf8
			got := render(t, r)
			checkLines(t, got, c.eightBit)
			_, types, bodies := parts(t, got)
			if len(types) != 3 || types[2] != c.wantType {
				t.Fatalf("types %q, want third %s", types, c.wantType)
			}
			if strings.TrimSuffix(bodies[2], "\n") != strings.TrimSuffix(c.want, "\n") {
				t.Errorf("original came back as %q, want %q", bodies[2], c.want)
			}
			p, err := Parse(strings.NewReader(got))
			if err != nil || len(p.Recipients) != 1 || p.Recipients[0].To != "bob@b.test" || p.Recipients[0].OrigTo != "Robert@b.test" ||
				p.Recipients[0].DSN != "5.1.1" || p.Recipients[0].Relay != "mx.b.test" || p.Recipients[0].Status != envelope.Failed {
				t.Errorf("%+v %v", p, err)
			}
		})
	}
}

func checkLines(t *testing.T, msg string, eightBit bool) {
	t.Helper()
	for i, l := range strings.Split(msg, "\n") {
		if len(l) > maxLine || strings.ContainsAny(l, "\r\x00\x1b") || !eightBit && !isASCII(l) {
			t.Errorf("line %d is unsafe: %.120q", i+1, l)
		}
	}
}

func TestUTF8Addresses(t *testing.T) {
	rc := failed("jörg@exämple.test")
	rc.ORcpt = ""
	r := report(Failure, plainOriginal, rc)
	got := render(t, r)
	checkLines(t, got, false)
	h, types, bodies := parts(t, got)
	if types[1] != "message/global-delivery-status" || !strings.Contains(bodies[1], "Final-Recipient: utf-8; jörg@exämple.test\n") {
		t.Errorf("%q %q", types, bodies)
	}
	subject, err := new(mime.WordDecoder).DecodeHeader(h.Get("Subject"))
	if err != nil || subject != "Not delivered: jörg@exämple.test" {
		t.Errorf("subject %q %v", subject, err)
	}
}

// RFC 3461 §4.4 and §4.2 let the sender put any octet into ENVID and ORCPT.
func TestParametersCannotForgeFields(t *testing.T) {
	rc := failed("bob@b.test")
	rc.ORcpt = "rfc822;x\nAction: delivered"
	r := report(Failure, plainOriginal, rc)
	r.Env.EnvID = "a\n\nFinal-Recipient: rfc822; eve@b.test"
	p, err := Parse(strings.NewReader(render(t, r)))
	if err != nil || len(p.Recipients) != 1 || p.Recipients[0].Status != envelope.Failed {
		t.Errorf("%+v %v", p, err)
	}
}

func TestOversizedOriginal(t *testing.T) {
	r := report(Failure, "Subject: x\n\n"+strings.Repeat("y\n", 1000), failed("bob@b.test"))
	r.Env.Ret, r.MaxFull = "FULL", 500
	if _, types, _ := parts(t, render(t, r)); types[2] != "text/rfc822-headers" {
		t.Errorf("%q", types)
	}
}

func TestOriginalCutShort(t *testing.T) {
	r := report(Failure, plainOriginal, failed("bob@b.test"))
	r.Env.Ret = "FULL"
	r.Original = io.NewSectionReader(strings.NewReader("Subject: x\n\nb"), 0, 4000)
	if err := Write(io.Discard, r); err == nil {
		t.Error("an original that ends early was reported as whole")
	}
}

func TestDigest(t *testing.T) {
	d := &Digest{ID: "0c8r3v5k2abcdefghi", From: "ann@a.test", To: "postmaster@a.test", Hostname: "mx.a.test", Now: now, Lines: []Line{
		{ID: "0c8r3v5k1abcdefghi", Time: accepted, To: "jörg@b.test", Status: envelope.Fail("5.1.1", "no such\nuser")},
		{ID: "0c8r3v5k1abcdefghj", Time: accepted, To: "bob@b.test", Status: envelope.Fail("5.2.2", "full")},
	}}
	var b bytes.Buffer
	if err := WriteDigest(&b, d); err != nil {
		t.Fatal(err)
	}
	checkLines(t, b.String(), false)
	m, err := mail.ReadMessage(&b)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(quotedprintable.NewReader(m.Body))
	if err != nil || !strings.Contains(string(body), "<jörg@b.test>: 5.1.1 no such user\n") || m.Header.Get("Subject") != "2 undelivered messages from ann@a.test" {
		t.Errorf("%v %q %v", m.Header, body, err)
	}
	if env := DigestEnvelope(d); env.From != "" || env.To[0].Addr != "postmaster@a.test" {
		t.Errorf("%+v", env)
	}
}

func TestRemoteMTA(t *testing.T) {
	for in, want := range map[string]string{
		"mx.b.test[127.0.0.3]:25": "mx.b.test", "[127.0.0.3]:25": "[127.0.0.3]", "host:25": "host", "": "",
		"/run/lmtp": "", "lmtp:/run/lmtp": "",
	} {
		if got := remoteMTA(in); got != want {
			t.Errorf("remoteMTA(%q) = %q, want %q", in, got, want)
		}
	}
}
