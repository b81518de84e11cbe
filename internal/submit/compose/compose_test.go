package compose

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"strings"
	"testing"
	"testing/iotest"

	"pennypost/internal/envelope"
	"pennypost/internal/submit"
)

type part struct {
	kind, name string
	body       string
}

// read takes a composed message apart with the standard library.
func read(t *testing.T, raw []byte) (mail.Header, []part) {
	t.Helper()
	for i, l := range strings.Split(string(raw), "\n") {
		if len(l) > 998 {
			t.Errorf("line %d has %d octets", i, len(l))
		}
	}
	m, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/mixed" {
		t.Fatalf("%q: %v", kind, err)
	}
	var parts []part
	for r := multipart.NewReader(m.Body, params["boundary"]); ; {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return m.Header, parts
		}
		if err != nil {
			t.Fatal(err)
		}
		var body io.Reader = p
		switch p.Header.Get("Content-Transfer-Encoding") {
		case "base64":
			body = base64.NewDecoder(base64.StdEncoding, p)
		case "quoted-printable":
			body = quotedprintable.NewReader(p)
		}
		b, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		_, cd, _ := mime.ParseMediaType(p.Header.Get("Content-Disposition"))
		parts = append(parts, part{p.Header.Get("Content-Type"), cd["filename"], string(b)})
	}
}

func TestAttachments(t *testing.T) {
	all := make([]byte, 100003)
	for i := range all {
		all[i] = byte(i * 7)
	}
	long := strings.Repeat("x", 100000) + "\n"
	for _, c := range []struct{ name, text, kind, file, ctype string }{
		{"plain", "hello\n", "text/plain; charset=us-ascii", "a.tgz", "application/gzip"},
		{"UTF-8", "Grüße\n", "text/plain; charset=utf-8", "Köln & \"x\".pdf", "application/pdf"},
		{"legacy", "Gr\xfc\xdfe\n", "text/plain; charset=unknown-8bit", `quo"te\.txt`, "text/plain"},
		{"long line", long, "text/plain; charset=utf-8", "noext", "application/octet-stream"},
		{"large, cut inside a character", strings.Repeat("aü", 60000) + "\n", "text/plain; charset=utf-8", "x", "application/octet-stream"},
		{"progress", "1\r2\r3\n", "text/plain; charset=utf-8", "x", "application/octet-stream"},
		{"no text", "", "", "x", "application/octet-stream"},
	} {
		var b bytes.Buffer
		err := Write(&b, &Message{
			From: "ann@b.test", Subject: "Grüße", To: []submit.Mailbox{{Name: "Jörg", Addr: envelope.Address{Local: "j", Domain: "x.test"}}, {Addr: envelope.Address{Local: "k", Domain: "x.test"}}},
			Text:  iotest.HalfReader(strings.NewReader(c.text)),
			Files: []File{{c.file, bytes.NewReader(all)}, {"empty", strings.NewReader("")}},
		})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		h, parts := read(t, b.Bytes())
		if s, err := new(mime.WordDecoder).DecodeHeader(h.Get("Subject")); err != nil || s != "Grüße" {
			t.Errorf("%s: subject %q, %v", c.name, s, err)
		}
		if l, err := h.AddressList("To"); err != nil || len(l) != 2 || l[0].Name != "Jörg" {
			t.Errorf("%s: To %v, %v", c.name, l, err)
		}
		want := []part{{c.ctype, c.file, string(all)}, {"application/octet-stream", "empty", ""}}
		if c.text != "" {
			want = append([]part{{c.kind, "", c.text}}, want...)
		}
		if len(parts) != len(want) {
			t.Fatalf("%s: %d parts", c.name, len(parts))
		}
		for i, p := range parts {
			p.body = strings.ReplaceAll(p.body, "\r\n", "\n")
			w := want[i]
			w.body = strings.ReplaceAll(w.body, "\r\n", "\n")
			if p != w {
				t.Errorf("%s: part %d is %q %q %.60q, want %q %q %.60q", c.name, i, p.kind, p.name, p.body, w.kind, w.name, w.body)
			}
		}
	}
}

// Whatever source breaks off, the whole message fails.
func TestSourceFails(t *testing.T) {
	bad := errors.New("broken")
	for i, m := range []*Message{
		{Text: iotest.ErrReader(bad)},
		{Text: iotest.ErrReader(bad), Files: []File{{"x", strings.NewReader("")}}},
		{Text: io.MultiReader(strings.NewReader(strings.Repeat("x", 100000)), iotest.ErrReader(bad)), Files: []File{{"x", strings.NewReader("")}}},
		{Files: []File{{"x", iotest.ErrReader(bad)}}},
	} {
		if err := Write(io.Discard, m); !errors.Is(err, bad) {
			t.Errorf("%d: %v", i, err)
		}
	}
}
