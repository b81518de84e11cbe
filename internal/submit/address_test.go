package submit

import (
	"bytes"
	"errors"
	"net/mail"
	"strings"
	"testing"

	"pennypost/internal/envelope"
)

func TestParseAddressList(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"a@b.test", "a@b.test"},
		{"", ""},
		{" , ,", ""},
		{"root", "root@home.test"},
		{"<a@b.test>", "a@b.test"},
		{"Ann Smith <a@b.test>, bob@c.test", "a@b.test bob@c.test"},
		{`"Smith, Ann" <a@b.test>`, "a@b.test"},
		{`"quo\"te, x" <a@b.test>,<c@d.test>`, "a@b.test c@d.test"},
		{"a@b.test (Smith, Ann (really)), c@d.test", "a@b.test c@d.test"},
		{"=?utf-8?Q?J=C3=B6rg?= <j@b.test>", "j@b.test"},
		{"Jörg, der <j@b.test>", "Jörg@home.test j@b.test"},
		{"Jörg <j@b.test>", "j@b.test"},
		{"undisclosed-recipients:;", ""},
		{"Team: a@b.test, B <b@c.test>; c@d.test", "a@b.test b@c.test c@d.test"},
		{"Team:a@b.test;, c@d.test", "a@b.test c@d.test"},
		{"<@x.test,@y.test:a@b.test>", "a@b.test"},
		{"a @ b . test", "a@b.test"},
		{"a(x)@(y)b.test", "a@b.test"},
		{`"a b"@c.test`, `"a b"@c.test`},
		{"a@[192.0.2.1], b@[IPv6:2001:db8::1]", "a@[192.0.2.1] b@[IPv6:2001:db8::1]"},
		{"A <a@b.test>\r\n , B\n\t<c@d.test>", "a@b.test c@d.test"},
		{"a.@b.test", `"a."@b.test`},
		{"a@b.test;c@d.test", "a@b.test c@d.test"},
		{"ann smith", "error"},
		{"a@b.test c@d.test", "error"},
		{"Ann <a@b.test", "error"},
		{`"Ann <a@b.test>`, "error"},
		{"Ann (x <a@b.test>", "error"},
		{"Ann <>", "error"},
		{"a@b@c.test", "error"},
		{"a@[192.0.2.1", "error"},
		{"a@b..test", "error"},
		{"a\x01@b.test", "error"},
	} {
		list, err := ParseAddressList(c.in, "home.test")
		var got []string
		for _, a := range list {
			got = append(got, a.String())
		}
		if err != nil {
			got = []string{"error"}
			if !errors.Is(err, envelope.ErrAddress) {
				t.Errorf("%q: %v is not ErrAddress", c.in, err)
			}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%q: %s, want %s", c.in, s, c.want)
		}
	}
}

func TestMailboxString(t *testing.T) {
	for _, c := range [][2]string{
		{"Ann Smith", "Ann Smith <a@b.test>"},
		{"", "a@b.test"},
		{"Smith, Ann", `"Smith, Ann" <a@b.test>`},
		{`a"b\c`, `"a\"b\\c" <a@b.test>`},
		{"Jörg", "=?utf-8?B?SsO2cmc=?= <a@b.test>"},
		{"x\nBcc: y", `"x?Bcc: y" <a@b.test>`},
		{"=?utf-8?q?x?=", `"=?utf-8?q?x?=" <a@b.test>`},
	} {
		m := Mailbox{c[0], envelope.Address{Local: "a", Domain: "b.test"}}
		if got := m.String(); got != c[1] {
			t.Errorf("%q: %s, want %s", c[0], got, c[1])
			continue
		}
		back, err := ParseMailboxes(m.String(), "")
		if err != nil || len(back) != 1 || back[0].Addr != m.Addr {
			t.Errorf("%q does not read back: %v %v", m, back, err)
		}
	}
	long := strings.Repeat("Grüße ", 30)
	for _, l := range strings.Split(EncodeWords(long), "\n") {
		if len(l) > 76 {
			t.Errorf("encoded line of %d octets", len(l))
		}
	}
	a, err := mail.ParseAddress(strings.ReplaceAll(EncodePhrase(long), "\n ", " ") + " <a@b.test>")
	if err != nil || a.Name != long {
		t.Errorf("%q, %v", a, err)
	}
}

// Property: whatever net/mail reads as a list of addresses, we read as the same addresses; and
// no address we read can break a line protocol.
func FuzzParseAddressList(f *testing.F) {
	for _, s := range []string{`"a, b" <c@d.test>, e@f.test (x)`, "g: a@b.test, c@d.test;", "<@x.test:a@b.test>", "=?utf-8?q?=C3?= <a@b.test>", "a @ b.test", `"\"@"@b.test`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ours, err := ParseAddressList(s, "home.test")
		for _, a := range ours {
			if strings.ContainsAny(a.String(), "\r\n\x00") {
				t.Fatalf("%q gives %q", s, a)
			}
			if b, err := envelope.ParseAddress(a.String()); err != nil || b != a {
				t.Fatalf("%q gives %q, which reads as %q, %v", s, a, b, err)
			}
		}
		theirs, terr := mail.ParseAddressList(s)
		if terr != nil {
			return
		}
		for _, a := range theirs {
			// What is no envelope address for us may be one for them: theirs is the looser syntax.
			i := strings.LastIndexByte(a.Address, '@')
			if _, perr := envelope.ParseAddress((envelope.Address{Local: a.Address[:i], Domain: a.Address[i+1:]}).String()); perr != nil {
				return
			}
		}
		if err != nil {
			t.Fatalf("%q: net/mail reads %v, we say %v", s, theirs, err)
		}
		if len(ours) != len(theirs) {
			t.Fatalf("%q: %v, net/mail reads %v", s, ours, theirs)
		}
		for i, a := range ours {
			if got := a.Local + "@" + a.Domain; got != strings.TrimSuffix(theirs[i].Address, ".") {
				t.Fatalf("%q: %q, net/mail reads %q", s, got, theirs[i].Address)
			}
		}
	})
}

// Property: whatever comes through a pipe is stored as a message with a header and a body; the
// decoded body is the input, no Bcc is left, and the size of the pieces does not matter.
func FuzzPipe(f *testing.F) {
	for _, s := range []string{
		"Subject: a\nBcc: b@c.test\n\nbody\n", "\n1\r2\x00\xff\n", "a\r\nb\r\n", "Content-Type: multipart/mixed; boundary=x\n\n--x\n\r\n",
		"Content-Type: text/plain\nContent-Transfer-Encoding: 8bit\n\nü\r", "From x\n>From y\nA: b\n c\nBCC : x\n\n=\n", "bcc:\n x\nBcc", " \n",
	} {
		f.Add([]byte(s), uint8(3))
	}
	fix := Fixup{Pipe: true, RemoveBcc: true, AddDate: true, Trace: &Trace{}}
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		d, err := take(t, string(in), fix, Options{}, 1<<30, "b@c.test")
		if err != nil {
			t.Fatal(err)
		}
		cut, err := take(t, string(in), fix, Options{}, int(piece)+1, "b@c.test")
		if err != nil || !bytes.Equal(cut.Bytes(), d.Bytes()) {
			t.Fatalf("in pieces of %d: %v\n%q\nwhole:\n%q", int(piece)+1, err, cut, d)
		}
		var scan headerScan
		end, _, _ := scan.next(d.Bytes(), true)
		h := parseHeader(d.Bytes()[:end], false)
		for fl := range h.fields() {
			if h.is(fl, "bcc", "resent-bcc") {
				t.Fatalf("a Bcc is left:\n%s", h.raw)
			}
		}
		if i := bytes.Index(d.Bytes(), []byte("\n\n")); i+1 != end {
			t.Fatalf("header ends at %d, empty line at %d:\n%q", end, i, d)
		}
		if bytes.ContainsAny(d.Bytes(), "\r\x00") {
			t.Fatalf("bare CR or NUL stored:\n%q", d)
		}
		// The input's own header, read by the same rules, says where its body begins.
		in = bytes.Clone(in)
		own := headerScan{mbox: true}
		_, start, _ := own.next(in, true)
		ih := parseHeader(in[:start], true)
		if !encodable(ih) {
			return
		}
		_, got := decode(t, d)
		want := string(in[start:])
		// Text gets a line end at its end, and LF for CRLF; beyond that nothing differs.
		lf := strings.ReplaceAll(want, "\r\n", "\n")
		if got != want && got != want+"\n" && got != lf && got != lf+"\n" {
			t.Fatalf("body %q, want %q; stored:\n%s", got, want, d)
		}
	})
}
