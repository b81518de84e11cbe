package message

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// realistic returns messages as people get them.
func realistic(n int) []string {
	msgs := make([]string, n)
	line := strings.Repeat("All work and no play makes a dull boy. ", 2) + "\n"
	b64 := strings.Repeat("TWFuIGlzIGRpc3Rpbmd1aXNoZWQsIG5vdCBvbmx5IGJ5IGhpcyByZWFzb24sIGJ1dCBieSB0aGlz\n", 150)
	for i := range msgs {
		head := fmt.Sprintf("Return-Path: <a@b.test>\n%sFrom: \"Ann Example\" <ann%d@example.test>\nTo: Bob <bob@example.test>,\n\tCarl <carl@example.test>\nSubject: Re: =?utf-8?Q?Gr=C3=BC=C3=9Fe?= number %d\nDate: Sun, 22 Nov 2026 05:00:00 +0100\nMessage-ID: <%d@example.test>\nIn-Reply-To: <%d@example.test>\nReferences: <1@x> <%d@example.test>\nMIME-Version: 1.0\n",
			strings.Repeat("Received: from mx.example.test (mx.example.test [192.0.2.1])\n\tby mail.example.test with ESMTPS id 4711\n\tfor <bob@example.test>; Sun, 22 Nov 2026 05:00:00 +0100\n", 4), i, i, i, i-1, i-1)
		switch i % 3 {
		case 0:
			msgs[i] = head + "Content-Type: text/plain; charset=utf-8\n\n" + strings.Repeat(line, 40)
		case 1:
			msgs[i] = head + "Content-Type: multipart/alternative; boundary=\"=_alt\"\n\n--=_alt\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n" + strings.Repeat(line, 30) + "\n--=_alt\nContent-Type: text/html; charset=utf-8\n\n" + strings.Repeat(line, 80) + "\n--=_alt--\n"
		case 2:
			msgs[i] = head + "Content-Type: multipart/mixed; boundary=\"=_mix\"\n\n--=_mix\nContent-Type: text/plain\n\n" + strings.Repeat(line, 20) + "\n--=_mix\nContent-Type: application/pdf; name=\"report.pdf\"\nContent-Transfer-Encoding: base64\nContent-Disposition: attachment; filename=\"report.pdf\"\n\n" + b64 + "\n--=_mix--\n"
		}
	}
	return msgs
}

func BenchmarkParse(b *testing.B) {
	msgs := realistic(30)
	total := 0
	for _, m := range msgs {
		total += len(m)
	}
	var p Parser
	var out []byte
	b.SetBytes(int64(total / len(msgs)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m := msgs[i%len(msgs)]
		root, err := p.Parse(strings.NewReader(m), int64(len(m)))
		if err != nil {
			b.Fatal(err)
		}
		out = AppendEnvelope(out[:0], root.Fields)
		out = AppendBody(out, root, true)
		out = AppendBody(out, root, false)
		out = AppendMap(out, root)
	}
}

func BenchmarkDecode(b *testing.B) {
	h := ReadHeader([]byte(realistic(1)[0]))
	b.ReportAllocs()
	for b.Loop() {
		h.Decode()
	}
}

// BenchmarkFiles opens, reads and parses files: those of MESSAGE_CORPUS if it names a
// directory, else our own.
func BenchmarkFiles(b *testing.B) {
	dir := os.Getenv("MESSAGE_CORPUS")
	if dir == "" {
		dir = b.TempDir()
		for i, m := range realistic(300) {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(m), 0o600); err != nil {
				b.Fatal(err)
			}
		}
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	var p Parser
	var out []byte
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		f, err := os.Open(filepath.Join(dir, list[i%len(list)].Name()))
		if err != nil {
			b.Fatal(err)
		}
		st, err := f.Stat()
		if err != nil {
			b.Fatal(err)
		}
		root, err := p.Parse(f, st.Size())
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
		out = AppendEnvelope(out[:0], root.Fields)
		out = AppendBody(out, root, true)
		out = AppendMap(out, root)
		root.Fields.Decode()
	}
}

func BenchmarkWire(b *testing.B) {
	m := []byte(strings.Repeat(strings.Repeat("x", 70)+"\n", 1000))
	b.SetBytes(int64(len(m)))
	b.ReportAllocs()
	var w Wire
	var buf bytes.Buffer
	for b.Loop() {
		buf.Reset()
		w.Reset(bytes.NewReader(m), 0, int64(len(m)), -1)
		if _, err := w.WriteTo(&buf); err != nil {
			b.Fatal(err)
		}
	}
}

var whole = flag.Bool("linear.whole", false, "every case of TestLinear with 50 MB")

// Fifty megabytes of the worst we know are parsed in a time that grows with their size
// alone. The bound is wide for busy machines; anything quadratic is far beyond it.
func TestLinear(t *testing.T) {
	nested := func(name string) string {
		var b strings.Builder
		for i := range maxDepth - 1 {
			fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=%s%c%c\n\n--%s%c%c\n", name, 'a'+i/26, 'a'+i%26, name, 'a'+i/26, 'a'+i%26)
		}
		return b.String()
	}
	head := "Content-Type: multipart/mixed; boundary=b\n\n"
	for name, c := range map[string]struct{ head, unit string }{
		"boundaries":         {head, "--b\n"},
		"boundaries, CRLF":   {head, "--b\r\n"},
		"other boundaries":   {head, "--x\n"},
		"nearly":             {head, "--\n"},
		"deep":               {nested(""), "--a\n"},
		"deep, one prefix":   {nested("abcdefghijklmno"), "--abcdefghijklmno\n"},
		"ends":               {head, "--b--\n"},
		"header":             {"", "a\n"},
		"fields":             {"", "To: a\n"},
		"continued":          {"To: a\n", " ,\n"},
		"one field":          {"Content-Type: a/b", ";a=("},
		"quotes":             {"To: ", "\"<"},
		"encoded words":      {"Subject: ", "=?a?q?"},
		"ids":                {"References: ", "<"},
		"blobs":              {"Subject: ", "[]"},
		"forwarded":          {"Subject: ", "[fwd:"},
		"empty lines":        {head, "\n"},
		"one line":           {head, "x"},
		"half words":         {"Subject: ", " =?a?q? "},
		"enclosed addresses": {head, "--b\nContent-Type: message/rfc822\n\nFrom: " + strings.Repeat("a,", 1000) + "\n\n"},
		"carriage returns":   {head, "\r"},
		"messages":           {"", "Content-Type: message/rfc822\n\n"},
		"parts with headers": {head, "--b\nContent-Type: text/plain; a=b; c*0=d; c*1=e\n\n"},
	} {
		size := 1 << 20
		if name == "enclosed addresses" {
			size = 4 << 20
		} else if name == "boundaries" || *whole {
			size = 50 << 20
		}
		msg := []byte(c.head + strings.Repeat(c.unit, (size-len(c.head))/len(c.unit)))
		start := time.Now()
		p, err := Parse(bytes.NewReader(msg), int64(len(msg)))
		if err != nil {
			t.Fatal(err)
		}
		parsed := time.Since(start)
		out := AppendEnvelope(nil, p.Fields)
		out = AppendBody(out, p, true)
		p.Fields.Decode()
		took := time.Since(start)
		t.Logf("%-20s %v, %v with strings of %d octets", name, parsed.Round(time.Millisecond), took.Round(time.Millisecond), len(out))
		if took > 20*time.Second {
			t.Errorf("%s: %v", name, took)
		}
		if len(out) > 64<<20 {
			t.Errorf("%s: %d octets of strings", name, len(out))
		}
	}
}
