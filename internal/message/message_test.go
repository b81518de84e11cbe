package message

import (
	"strings"
	"testing"
	"time"
)

func parse(t testing.TB, msg string) *Part {
	t.Helper()
	p, err := Parse(strings.NewReader(msg), int64(len(msg)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{``, `NIL`},
		{` (nobody) `, `NIL`},
		{`a@b.c`, `((NIL NIL "a" "b.c"))`},
		{`<a@b.c>`, `((NIL NIL "a" "b.c"))`},
		{`A B <a@b>`, `(("A B" NIL "a" "b"))`},
		{`A. B. <a@b>`, `(("A. B." NIL "a" "b"))`},
		{`"A, \"B\"" <a@b>`, `(("A, \"B\"" NIL "a" "b"))`},
		{`a@b (Ann (x) \) Y)`, `(("Ann (x) ) Y" NIL "a" "b"))`},
		{`a@b, ,,c@d,`, `((NIL NIL "a" "b")(NIL NIL "c" "d"))`},
		{`g:;`, `((NIL NIL "g" NIL)(NIL NIL NIL NIL))`},
		{`g: a@b, c <d@e>;, f@g`, `((NIL NIL "g" NIL)(NIL NIL "a" "b")("c" NIL "d" "e")(NIL NIL NIL NIL)(NIL NIL "f" "g"))`},
		{`g: a@b`, `((NIL NIL "g" NIL)(NIL NIL "a" "b")(NIL NIL NIL NIL))`},
		{`"a b"@c`, `((NIL NIL "a b" "c"))`},
		{`"a"."b" . c@d . e`, `((NIL NIL "a.b.c" "d.e"))`},
		{`a@[192.0.2.1]`, `((NIL NIL "a" "[192.0.2.1]"))`},
		{`<@x,@y:a@b>`, `((NIL "@x,@y" "a" "b"))`},
		{"A\n\tB <a@b>", `(("A B" NIL "a" "b"))`},
		{`=?utf-8?q?=C3=A9?= <a@b>`, `(("=?utf-8?q?=C3=A9?=" NIL "a" "b"))`},
		{`é <é@ü.x>`, "((\"{2}\r\né\" NIL \"{2}\r\né\" \"{4}\r\nü.x\"))"},
		// Broken ones. They are seen, and so are those after them.
		{`ann`, `((NIL NIL "ann" "MISSING_DOMAIN"))`},
		{`ann bee`, `(("ann bee" NIL "MISSING_MAILBOX" "MISSING_DOMAIN"))`},
		{`<>`, `((NIL NIL "MISSING_MAILBOX" "MISSING_DOMAIN"))`},
		{`x <a b@c>, d@e`, `(("x" NIL "a" "SYNTAX_ERROR")(NIL NIL "d" "e"))`},
		{`<a@b, c@d`, `((NIL NIL "a" "SYNTAX_ERROR")(NIL NIL "c" "d"))`},
		{`@b`, `((NIL NIL "MISSING_MAILBOX" "b"))`},
		{`a@`, `((NIL NIL "a" "MISSING_DOMAIN"))`},
		{`a@b junk "x,y", c@d`, `((NIL NIL "a" "b")(NIL NIL "c" "d"))`},
		{`"open, a@b`, `NIL`},
		{`(open, a@b`, `NIL`},
		{`>, a@b`, `((NIL NIL "a" "b"))`},
	} {
		want := strings.NewReplacer(`"{`, `{`, "é\"", "é", "x\"))", "x))").Replace(c.want)
		if !strings.Contains(c.want, "{") {
			want = c.want
		}
		h := ReadHeader([]byte("To: " + c.in + "\n"))
		if got := string(appendAddresses(nil, h.To)); got != want {
			t.Errorf("%q\n got %q\nwant %q", c.in, got, want)
		}
	}
}

func TestEnvelope(t *testing.T) {
	h := ReadHeader([]byte("Received: x\nDATE: Sun, 22 Nov 2026 05:00:00 +0100\nFrom: a@b\nFrom: c@d\nSubject: a\n\tb  \"c\"\nMessage-ID:\n <x@y>\nSender:\nTo : e@f\nX: y\n\nFrom: body@x\n"))
	const want = `("Sun, 22 Nov 2026 05:00:00 +0100" "a b \"c\"" ((NIL NIL "a" "b")(NIL NIL "c" "d")) ((NIL NIL "a" "b")(NIL NIL "c" "d")) ((NIL NIL "a" "b")(NIL NIL "c" "d")) ((NIL NIL "e" "f")) NIL NIL NIL "<x@y>")`
	if got := string(AppendEnvelope(nil, h)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// What peers do not agree on, or what differs from Dovecot on purpose.
func TestStructure(t *testing.T) {
	const text = `("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" `
	for _, c := range []struct{ name, in, want string }{
		{"nothing", "", text + `0 0)`},
		{"header alone", "Subject: x\n", text + `0 0)`},
		{"no type", "Content-Type: text\n\nx\n", text + `3 1)`},
		{"no MIME", "Content-Transfer-Encoding: base64\n\nx\n", text + `3 1)`},
		{"no boundary", "Content-Type: multipart/mixed\n\nx\n", `(` + text + `0 0) "mixed")`},
		{"no part", "Content-Type: multipart/mixed; boundary=a\n\nx\n", `(` + text + `0 0) "mixed")`},
		{"unfinished", "Content-Type: multipart/mixed; boundary=a\n\n--a\n\nx\n", `(` + text + `3 1) "mixed")`},
		{"header cut by a boundary", "Content-Type: multipart/mixed; boundary=a\n\n--a\nContent-Type: message/rfc822\n--a--\n", `(("message" "rfc822" NIL NIL NIL "7bit" 0 (NIL NIL NIL NIL NIL NIL NIL NIL NIL NIL) ` + text + `0 0) 0) "mixed")`},
		{"message/global", "Content-Type: message/global\n\nSubject: x\n\ny", `("message" "global" NIL NIL NIL "7bit" 15 (NIL "x" NIL NIL NIL NIL NIL NIL NIL NIL) ` + text + `1 0) 2)`},
		{"encoded message/global", "Content-Type: message/global\nContent-Transfer-Encoding: base64\n\nU3ViamVjdDogeAo=\n", `("application" "octet-stream" NIL NIL NIL "base64" 18)`},
		{"header of an enclosed message alone", "Content-Type: multipart/digest; boundary=a\n\n--a\n\nSubject: x\n--a--\n", `(("message" "rfc822" NIL NIL NIL "7bit" 10 (NIL "x" NIL NIL NIL NIL NIL NIL NIL NIL) ` + text + `0 0) 0) "digest")`},
		{"sections", "Content-Type: a/b; x*1=c; y=z; x*0*=utf-8''%41\n\n", `("a" "b" ("y" "z" "x*" "utf-8''%41c") NIL NIL "7bit" 0)`},
		{"sections missing", "Content-Type: a/b; x*1=c; x*3=d\n\n", `("a" "b" ("x*1" "c" "x*3" "d") NIL NIL "7bit" 0)`},
		{"NUL", "Content-Type: a/b; x=\"a\x00b\"\n\n", "(\"a\" \"b\" (\"x\" {5}\r\na\uFFFDb) NIL NIL \"7bit\" 0)"},
	} {
		if got := string(AppendBody(nil, parse(t, c.in), false)); got != c.want {
			t.Errorf("%s\n got %q\nwant %q", c.name, got, c.want)
		}
	}
}

// Depth and number of parts end, and what lies behind is not lost.
func TestLimits(t *testing.T) {
	deep := strings.Repeat("Content-Type: message/rfc822\n\n", maxDepth+5) + "x\n"
	p := parse(t, deep)
	n := 1
	for len(p.Parts) > 0 {
		p = p.Parts[0]
		n++
	}
	if n != maxDepth || p.Kind != Opaque || p.End != int64(len(deep)) {
		t.Errorf("depth %d, kind %d, end %d", n, p.Kind, p.End)
	}
	many := "Content-Type: multipart/mixed; boundary=b\n\n" + strings.Repeat("--b\n\nx\n", maxParts+100) + "--b--\nend\n"
	p = parse(t, many)
	if len(p.Parts) != maxParts-1 || p.End != int64(len(many)) {
		t.Errorf("%d parts, end %d", len(p.Parts), p.End)
	}
	long := "To: " + strings.Repeat("a@b, ", 200_000) + "\n\nx\n"
	if p = parse(t, long); len(p.Fields.To) != keepField || p.BodyLines != 1 {
		t.Errorf("%d octets of To, %d lines", len(p.Fields.To), p.BodyLines)
	}
}

func TestBaseSubject(t *testing.T) {
	for _, c := range []struct {
		in, want string
		reply    bool
	}{
		{"hello", "hello", false},
		{"Re: hello", "hello", true},
		{"RE[2]: hello", "hello", true},
		{"re : Fw: FWD: hello", "hello", true},
		{"Re: [list] hello", "hello", true},
		{"[list] Re: hello", "hello", true},
		{"[list] hello", "hello", false},
		{"[a] [b]", "[b]", false},
		{"[a]", "[a]", false},
		{"hello (fwd) (FWD)", "hello", true},
		{"[fwd: hello]", "hello", true},
		{"[Fwd: Re: [x] hello (fwd)]", "hello", true},
		{"Re: ", "", true},
		{"Re", "Re", false},
		{"reply: x", "reply: x", false},
		{"[open", "[open", false},
		{"", "", false},
	} {
		if got, reply := baseSubject(c.in); got != c.want || reply != c.reply {
			t.Errorf("%q: %q %v, want %q %v", c.in, got, reply, c.want, c.reply)
		}
	}
}

func TestWords(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"plain", "plain"},
		{"=?utf-8?q?h=C3=A9_llo?=", "hé llo"},
		{"=?UTF-8?B?w6k=?=", "é"},
		{"=?utf-8?b?w6k?=", "é"},
		{"a =?utf-8?q?b?= c", "a b c"},
		{"=?utf-8?q?a?= =?utf-8?q?b?=", "ab"},
		{"=?utf-8?q?=C3?= =?utf-8?q?=A9?=", "é"},
		{"=?utf-8?q?a?= x =?utf-8?q?b?=", "a x b"},
		{"=?utf-8?q?a?==?iso-8859-1?q?=E9?=", "aé"},
		{"=?utf-8?q?a?= =? =?utf-8?q?b?=", "a =? b"},
		{"=?iso-8859-1*de?q?=E9?=", "é"},
		{"=?windows-1252?q?=80?=", "€"},
		{"=?iso-8859-15?q?=A4?=", "€"},
		{"=?koi8-r?b?8NLJ18XU?=", "Привет"},
		{"=?iso-2022-jp?B?GyRCJDMkcyRLJEEkTxsoQg==?=", "こんにちは"},
		{"=?gb2312?b?1tDOxA==?=", "中文"},
		{"=?shift_jis?b?g2WDWINn?=", "テスト"},
		{"=?euc-kr?b?x9GxuQ==?=", "한국"},
		{"=?x-unknown?q?=E9?=", "é"},
		{"=?utf-8?q?=FF?=", "\uFFFD"},
		{"=?utf-8?x?a?=", "=?utf-8?x?a?="},
		{"=?utf-8?q?a", "=?utf-8?q?a"},
		{"=?utf-8?q?a=0Ab=00c?=", "a b c"},
		{"h\xe9", "hé"},
		{"hé", "hé"},
		{"=?utf-8?q??=x", "x"},
	} {
		if got := string(decodeWords(nil, []byte(c.in))); got != c.want {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestDate(t *testing.T) {
	for _, c := range []struct {
		in, want string // want in RFC 3339, "" for none
	}{
		{"Sun, 22 Nov 2026 05:00:01 +0100", "2026-11-22T05:00:01+01:00"},
		{"22 Nov 2026 05:00 -0330", "2026-11-22T05:00:00-03:30"},
		{"Sun,22 Nov 26 5:00:00 EST (x)", "2026-11-22T05:00:00-05:00"},
		{"1 January 99 00:00:00 GMT", "1999-01-01T00:00:00Z"},
		{"1 Jan 70 00:00:00 Z", "1970-01-01T00:00:00Z"},
		{"1 Jan 100 00:00:00", "2000-01-01T00:00:00Z"},
		{"(c) Mon , 1 Feb (d) 2021 1 : 2 : 3 PDT", "2021-02-01T01:02:03-07:00"},
		{"1-Feb-2021 01.02.03 +0000", "2021-02-01T01:02:03Z"},
		{"Mon Feb 1 2021", ""},
		{"junk", ""},
		{"", ""},
		{"32 Jan 2021 00:00:00 Z", ""},
		{"1 Jan 2021 25:00 Z", ""},
	} {
		unix, zone, ok := date([]byte(c.in))
		got := ""
		if ok {
			got = time.Unix(unix, 0).In(time.FixedZone("", zone*60)).Format(time.RFC3339)
		}
		if got != c.want {
			t.Errorf("%q: %s, want %s", c.in, got, c.want)
		}
	}
}

func TestFields(t *testing.T) {
	h := ReadHeader([]byte("From: =?utf-8?q?J=C3=B6?= <jo@x>\nTo: grp: a@b;\nCc: bare@c\nSubject: Re: =?utf-8?q?=C3=A9?=\n  x\nMessage-ID: <\"a b\"@x>\nReferences: <1@x> junk <2\n @x> <noat> <3@x>\nIn-Reply-To: Your message <9@x>\n"))
	f := h.Decode()
	if f.Subject != "Re: é x" || f.Base != "é x" || !f.Reply || f.From != "Jö <jo@x>" || f.FromMailbox != "jo" || f.FromDisplay != "Jö" ||
		f.ToMailbox != "grp" || f.ToDisplay != "grp" || f.CcMailbox != "bare" || f.MessageID != "ab@x" || f.InReplyTo != "9@x" ||
		strings.Join(f.References, " ") != "1@x 2@x 3@x" || f.HasSent {
		t.Errorf("%+v", f)
	}
	if f = ReadHeader([]byte("In-Reply-To: <9@x>\nReferences: none\nTo: x@y\n")).Decode(); strings.Join(f.References, " ") != "9@x" || f.ToDisplay != "x@y" {
		t.Errorf("%+v", f)
	}
}
