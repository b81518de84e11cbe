package relay

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"pennypost/internal/envelope"
	"pennypost/internal/smtp"
	"pennypost/internal/worker"
)

func TestParseHop(t *testing.T) {
	for in, want := range map[string]hop{
		"example.org":          {domain: "example.org", port: 25},
		"mx:example.org":       {domain: "example.org", port: 25},
		"mx.example.org:2525":  {host: "mx.example.org", port: 2525},
		"[mx.example.org]":     {host: "mx.example.org", port: 25},
		"[mx.example.org]:587": {host: "mx.example.org", port: 587},
		"192.0.2.1":            {host: "192.0.2.1", port: 25},
		"[192.0.2.1]:26":       {host: "192.0.2.1", port: 26},
		"[2001:db8::1]:26":     {host: "2001:db8::1", port: 26},
		"[IPv6:2001:db8::1]":   {host: "2001:db8::1", port: 25},
		"2001:db8::1":          {host: "2001:db8::1", port: 25},
		"Bücher.test:25":       {host: "xn--bcher-kva.test", port: 25},
		"lmtp:localhost":       {host: "localhost", port: 24, lmtp: true},
		"lmtp:localhost:2424":  {host: "localhost", port: 2424, lmtp: true},
		"lmtp:/run/lmtp":       {socket: "/run/lmtp", lmtp: true},
	} {
		if got, err := parseHop(in, 25); err != nil || got != want {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", ":25", "a b", "host:", "host:0", "host:65536", "host:x", "mx:", "mx:a:25", "lmtp:", "[]:25", "a\nb", "x:y:z"} {
		if got, err := parseHop(in, 25); err == nil {
			t.Errorf("%q is taken as %+v", in, got)
		}
	}
}

func sevenAll(t testing.TB, in string) string {
	t.Helper()
	out, err := io.ReadAll(newSevenBit(strings.NewReader(in)))
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestSevenBit(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"labelled", "A: b\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\ncafé = x \n",
			"A: b\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\ncaf=C3=A9 =3D x=20\n"},
		{"not labelled", "A: b\n\ncafé\n",
			"A: b\nContent-Transfer-Encoding: quoted-printable\nMIME-Version: 1.0\nContent-Type: text/plain; charset=unknown-8bit\n\ncaf=C3=A9\n"},
		{"no header at all", "\né\n", "Content-Transfer-Encoding: quoted-printable\nMIME-Version: 1.0\nContent-Type: text/plain; charset=unknown-8bit\n\n=C3=A9\n"},
		{"encoded already", "MIME-Version: 1.0\nContent-Transfer-Encoding: base64\n\nw6k=\n", "MIME-Version: 1.0\nContent-Transfer-Encoding: base64\n\nw6k=\n"},
		{"folded encoding", "MIME-Version: 1.0\nContent-Transfer-Encoding:\n 8bit\nContent-Type: text/plain\n\né\n",
			"MIME-Version: 1.0\nContent-Type: text/plain\nContent-Transfer-Encoding: quoted-printable\n\n=C3=A9\n"},
		{"multipart", "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"b b\"\nContent-Transfer-Encoding: 8bit\n\npre\n--b b\n\né\n--b b\nContent-Transfer-Encoding: base64\n\nw6k=\n--b b\nContent-Type: message/rfc822\nContent-Transfer-Encoding: 8bit\n\nSubject: x\n\né\n--b b--\nepilogue\n",
			"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"b b\"\nContent-Transfer-Encoding: 7bit\n\npre\n--b b\nContent-Transfer-Encoding: quoted-printable\n\n=C3=A9\n--b b\nContent-Transfer-Encoding: base64\n\nw6k=\n--b b\nContent-Type: message/rfc822\nContent-Transfer-Encoding: 7bit\n\nSubject: x\nContent-Transfer-Encoding: quoted-printable\n\n=C3=A9\n--b b--\nepilogue\n"},
	} {
		if got := sevenAll(t, c.in); got != c.want {
			t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
		}
		if b, err := io.ReadAll(newSevenBit(iotest.OneByteReader(strings.NewReader(c.in)))); err != nil || string(b) != c.want {
			t.Errorf("%s, an octet at a time: %q, %v", c.name, b, err)
		}
	}
}

// What is read back is what was there.
func FuzzSevenBit(f *testing.F) {
	f.Add("café = x \n\n .\t\n")
	f.Add(strings.Repeat("x", 200) + "é" + strings.Repeat(" ", 100) + "\n--b\n\nq\n--b--")
	f.Fuzz(func(t *testing.T, body string) {
		if strings.ContainsRune(body, '\r') {
			return // no line of the spool has one
		}
		out := sevenAll(t, "MIME-Version: 1.0\nContent-Type: text/plain\nContent-Transfer-Encoding: 8bit\n\n"+body)
		_, enc, _ := strings.Cut(out, "\n\n")
		for l := range strings.Lines(enc) {
			if len(strings.TrimSuffix(l, "\n")) > 76 {
				t.Fatalf("a line of %d octets", len(l))
			}
		}
		if s := smtp.ScanBytes([]byte(out), false); s.BodyEight || s.HeaderEight {
			t.Fatalf("8-bit octets in %q", out)
		}
		got, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(enc)))
		if err != nil || string(got) != body {
			t.Fatalf("%q reads as %q, %v", body, got, err)
		}
		// Any text as a whole message, and as a multipart, must come to an end.
		sevenAll(t, body)
		multi := sevenAll(t, "Content-Type: multipart/mixed; boundary=b\n\n--b\n\n"+strings.ReplaceAll(body, "--b", "")+"\n--b--\n")
		m, err := mail.ReadMessage(strings.NewReader(multi))
		if err != nil {
			t.Fatal(err)
		}
		_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := multipart.NewReader(m.Body, params["boundary"]).NextPart(); err != nil {
			t.Fatalf("%q: %v", multi, err)
		}
	})
}

func TestTransactionAdapts(t *testing.T) {
	eight := "A: b\n\ncafé\n"
	header := "Subject: café\n\nx\n"
	for _, c := range []struct {
		name, text string
		utf8, wire bool
		can        smtp.Abilities
		body       string
		wantUTF8   bool
		converted  bool
		size       int64
	}{
		{name: "plain", text: "A: b\n\nc\n", can: smtp.Abilities{EightBit: true}, size: 11},
		{name: "flag without need", text: "A: b\n\nc\n", utf8: true, size: 11},
		{name: "8-bit", text: eight, can: smtp.Abilities{EightBit: true}, body: envelope.Body8Bit, size: 15},
		{name: "8-bit, not taken", text: eight, converted: true},
		{name: "8-bit header", text: header, can: smtp.Abilities{EightBit: true}, body: envelope.Body8Bit, size: 21},
		{name: "8-bit header, not taken", text: header, body: envelope.Body8Bit, size: 21},
		{name: "international header", text: header, utf8: true, can: smtp.Abilities{EightBit: true, UTF8: true}, body: envelope.Body8Bit, wantUTF8: true, size: 21},
		{name: "binary", text: "A: b\r\n\r\n\x00", wire: true, body: envelope.BodyBinary, size: 9},
		{name: "wire but no binary", text: "A: b\r\n\r\nc\r\n", wire: true, size: 11},
	} {
		path := filepath.Join(t.TempDir(), "m")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		req := &worker.Request{From: "a@bücher.test", UTF8: c.utf8, Size: int64(len(c.text)), EOL: envelope.EOLLF}
		if c.wire {
			req.EOL = envelope.EOLWire
		}
		r := New(Options{})
		x, err := r.newText(f, req)
		if err != nil {
			t.Fatal(err)
		}
		tr := x.transaction(req, &c.can)
		got, _ := io.ReadAll(tr.Text)
		if tr.Body != c.body || tr.UTF8 != c.wantUTF8 || tr.Size != c.size || bytes.Equal(got, []byte(c.text)) == c.converted {
			t.Errorf("%s: %+v, text %q", c.name, tr, got)
		}
		from := "a@xn--bcher-kva.test"
		if c.can.UTF8 {
			from = "a@bücher.test"
		}
		if tr.From != from {
			t.Errorf("%s: from %q", c.name, tr.From)
		}
		x.release(r)
		f.Close()
	}
	for in, want := range map[string]string{
		"a@bücher.test": "a@xn--bcher-kva.test", "jörg@bücher.test": "jörg@xn--bcher-kva.test", "a@X.test": "a@X.test", "a@[192.0.2.1]": "a@[192.0.2.1]", "": "",
	} {
		if got := asciiDomain(in); got != want {
			t.Errorf("asciiDomain(%q) = %q, want %q", in, got, want)
		}
	}
}
