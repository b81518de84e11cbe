package message

import (
	"mime"
	"net/mail"
	"strings"
	"testing"
)

func TestAppendASCII(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"ASCII stays as it is", "Subject: x\n y\nTo:  a@b.test\n\n", "Subject: x\n y\nTo:  a@b.test\n\n"},
		{"CR LF becomes LF", "Subject: x\r\n\r\n", "Subject: x\n\n"},
		{"no line end", "Subject: x", "Subject: x"},
		{"text", "Subject: grüße an alle\n", "Subject: =?UTF-8?B?Z3LDvMOfZQ==?= an alle\n"},
		{"two words and what is between", "Subject: a ü b ü c\n", "Subject: a =?UTF-8?B?w7wgYiDDvA==?= c\n"},
		{"folded", "Subject: a\n ü\nX: y\n", "Subject: a =?UTF-8?B?w7w=?=\nX: y\n"},
		{"another charset", "Subject: gr\xfc\xdfe\n", "Subject: =?unknown-8bit?B?Z3L832U=?=\n"},
		{"a name", "From: Jürg <j@b.test>\n", "From: =?UTF-8?B?SsO8cmc=?= <j@b.test>\n"},
		{"a quoted name", "From: \"Müller, \\\"J\\\"\" <j@b.test>, x@y.test\n", "From: =?UTF-8?B?TcO8bGxlciwgIkoi?= <j@b.test>,\n x@y.test\n"},
		{"a comment", "From: j@b.test (Jürg)\n", "From: =?UTF-8?B?SsO8cmc=?= <j@b.test>\n"},
		{"an address", "From: Jürg <jürg@b.test>\n", "From: =?UTF-8?B?SsO8cmcgPGrDvHJnQGIudGVzdD4=?= <invalid@internationalized-address.invalid>\n"},
		{"a bare address", "To: jürg@b.test, k@b.test\n", "To: =?UTF-8?B?PGrDvHJnQGIudGVzdD4=?= <invalid@internationalized-address.invalid>,\n k@b.test\n"},
		{"a group", "To: Ü: ü <a@b.test>, c@d.test;\n", "To: =?UTF-8?B?w7w=?= <a@b.test>,\n c@d.test\n"},
		{"a parameter", "Content-Type: text/plain; charset=utf-8; name=\"ü \\\"1\\\".txt\"\n", "Content-Type: text/plain;\n charset=utf-8;\n name*=UTF-8''%C3%BC%20%221%22.txt\n"},
		{"a type", "Content-Type: tüxt/plain; a=b\nX: y\n", "X: y\n"},
		{"no place for words", "Message-ID: <ü@b.test>\nX: y\n", "X: y\n"},
		{"a name of a field", "Sübject: x\nX: y\n", "X: y\n"},
		{"no field", "gr\xc3\xbc\xc3\x9fe\nX: y\n", "X: y\n"},
	} {
		if got := string(AppendASCII(nil, []byte(c.in))); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// What comes out is what other readers understand, and says what went in.
func TestAppendASCIIIsReadable(t *testing.T) {
	long := strings.Repeat("Überraschung für alle, ", 20)
	in := "Subject: " + long + "\nFrom: Jürgen Müller <j@b.test>\nTo: 用户@例子.test, Zoë <zoe@b.test>\n\n"
	out := AppendASCII(nil, []byte(in))
	for line := range strings.Lines(string(out)) {
		if len(line) > 100 {
			t.Errorf("line of %d octets: %s", len(line), line)
		}
	}
	m, err := mail.ReadMessage(strings.NewReader(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	var d mime.WordDecoder
	if s, err := d.DecodeHeader(m.Header.Get("Subject")); err != nil || s != strings.TrimSpace(long) {
		t.Errorf("subject %q, %v", s, err)
	}
	from, err := m.Header.AddressList("From")
	if err != nil || from[0].Name != "Jürgen Müller" || from[0].Address != "j@b.test" {
		t.Errorf("from %v, %v", from, err)
	}
	to, err := m.Header.AddressList("To")
	if err != nil || len(to) != 2 || to[0].Name != "<用户@例子.test>" || to[1].Name != "Zoë" || to[1].Address != "zoe@b.test" {
		t.Errorf("to %v, %v", to, err)
	}
}

// Property: ASCII comes out, not much longer; ASCII goes through as it is but for CRs at line ends.
func FuzzAppendASCII(f *testing.F) {
	for _, s := range []string{"Subject: ü\n\n", "From: \"ü\" <ü@x>, (ü) a@b\n", "Content-Type: a/b; c=\"ü\\\"", "To: ü: \xff;,<>\n", "x\r\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out := AppendASCII(nil, in)
		if !isASCII(out) {
			t.Fatalf("%q", out)
		}
		if len(out) > 20*len(in)+1000 {
			t.Fatalf("%d octets became %d", len(in), len(out))
		}
		if want := strings.ReplaceAll(string(in), "\r\n", "\n"); isASCII(in) && string(out) != want {
			t.Fatalf("%q became %q", in, out)
		}
	})
}
