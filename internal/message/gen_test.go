package message

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// generator writes random messages. wild ones are broken in the ways real ones are.
type generator struct {
	*rand.Rand
	b     strings.Builder
	eol   string
	wild  bool
	depth int
	whole bool // the next body is that of an enclosed message
	next  int
}

// message returns the message with the given seed.
func generate(seed uint64, wild bool) string {
	g := generator{Rand: rand.New(rand.NewPCG(seed, 7)), wild: wild, eol: "\n"}
	switch g.IntN(4) {
	case 0:
		g.eol = "\r\n"
	case 1:
		if wild {
			g.eol = "" // both
		}
	}
	g.message()
	s := g.b.String()
	switch {
	case g.IntN(8) == 0: // no final newline
		s = strings.TrimRight(s, "\r\n")
	case wild && g.IntN(6) == 0:
		s = s[:g.IntN(len(s))]
	case wild && g.IntN(6) == 0:
		i := g.IntN(len(s))
		s = s[:i] + string(rune(g.IntN(128))) + s[min(i+g.IntN(3), len(s)):]
	}
	return s
}

func (g *generator) linef(format string, args ...any) { g.line(fmt.Sprintf(format, args...)) }

func (g *generator) line(s string) {
	for _, l := range strings.Split(s, "\n") {
		g.b.WriteString(l)
		switch {
		case g.eol != "":
			g.b.WriteString(g.eol)
		case g.IntN(2) == 0:
			g.b.WriteString("\n")
		default:
			g.b.WriteString("\r\n")
		}
	}
}

func (g *generator) one(s ...string) string { return s[g.IntN(len(s))] }

func (g *generator) maybe(n int, s ...string) string {
	if g.IntN(n) > 0 {
		return ""
	}
	return g.one(s...)
}

var someWords = []string{"alpha", "Beta", "x-1", "gamma_2", "d", "Ölberg", "q.r", "a'b", "=?utf-8?q?h=C3=A9llo?=", "=?iso-8859-1?B?6Q==?="}

func (g *generator) word() string {
	w := someWords[g.IntN(len(someWords))]
	if !g.wild && w == "q.r" {
		return "qr"
	}
	return w
}

func (g *generator) text(n int) string {
	var w []string
	for range 1 + g.IntN(n) {
		w = append(w, g.word())
	}
	return strings.Join(w, g.one(" ", " ", "\n ", "\n\t"))
}

func (g *generator) atom() string {
	return g.one("ann", "bob", "carl.c", "d-e+f", "x_y", "1.2", "o'neil")
}

func (g *generator) address() string {
	local := g.atom()
	if g.IntN(6) == 0 {
		local = g.one(`"john doe"`, `"a\"b"`, `"x@y"`, `"q"`)
	}
	domain := g.one("example.test", "b.example", "[192.0.2.1]", "x")
	spec := local + "@" + domain
	switch g.IntN(8) {
	case 0, 1:
		return spec
	case 2:
		return spec + " (" + g.one("Com Ment", "a (nested) b", `esc \) x`, "é") + ")"
	case 3:
		return "<" + spec + ">"
	case 4:
		return g.one(`"Doe, John"`, `"a \"b\" c"`, `"x  y"`, `""`, `"q" r "s t"`) + " <" + spec + ">"
	case 5:
		return g.text(3) + "\n <" + spec + "> (c)"
	case 6:
		return g.text(2) + "<" + spec + ">"
	default:
		return g.text(2) + " <" + spec + ">"
	}
}

func (g *generator) list() string {
	var l []string
	for range 1 + g.IntN(4) {
		if g.IntN(8) == 0 {
			var m []string
			for range g.IntN(3) {
				m = append(m, g.address())
			}
			l = append(l, g.one("undisclosed-recipients", "A Group", `"quoted, g"`)+":"+g.one("", " ")+strings.Join(m, ", ")+g.one(";", " ;"))
			continue
		}
		l = append(l, g.address())
	}
	return strings.Join(l, g.one(", ", ",", ",\n "))
}

func (g *generator) header() {
	type f struct {
		n int
		s func()
	}
	fields := []f{
		{10, func() {
			g.line("Date: " + g.one("Sun, 22 Nov 2026 05:00:00 +0100", "1 Jan 99 1:02 EST", "Mon,  2 Mar 2020 23:59:60 -0000 (UTC)", "Thu, 13 Feb 1969 23:32 -0330", "junk"))
		}},
		{9, func() {
			g.line("Subject: " + g.one("", "Re: ", "[l] ", "Fwd: [x] re: ") + g.text(6) + g.maybe(3, " (fwd)", ` "q\w"`))
		}},
		{10, func() { g.line("From: " + g.list()) }},
		{3, func() { g.line("Sender: " + g.address()) }},
		{3, func() { g.line("Reply-To: " + g.list()) }},
		{9, func() { g.line("To:" + g.one(" ", "", "\n ") + g.list()) }},
		{4, func() { g.line("CC: " + g.list()) }},
		{2, func() { g.line("Bcc: " + g.maybe(2, "a@b")) }},
		{9, func() { g.linef("Message-ID: <%d.x@h>", g.IntN(1000)) }},
		{4, func() { g.linef("In-Reply-To: <%d.x@h>", g.IntN(1000)) }},
		{4, func() { g.linef("References: <%d.x@h>\n\t<%d.x@h>", g.IntN(1000), g.IntN(1000)) }},
		{4, func() { g.line("Received: from a by b;\n\tdate") }},
		{1, func() { g.line("X-Long: " + strings.Repeat("z", g.IntN(2000))) }},
	}
	g.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
	for _, f := range fields {
		if g.IntN(10) < f.n {
			f.s()
		}
	}
	if g.wild {
		switch g.IntN(12) {
		case 0:
			g.line("no colon here")
		case 1:
			g.line("From : spaced@name")
		case 2:
			g.line("Subject: twice")
		case 3:
			g.line(" leading space")
		}
	}
}

func (g *generator) message() {
	g.header()
	if g.IntN(8) > 0 {
		g.line("MIME-Version: 1.0")
	}
	g.part(false)
}

func (g *generator) params() string {
	s := g.one("; charset=utf-8", `; charset="iso-8859-1"`, "; format=flowed; charset=us-ascii", ";\n charset=UTF-8;\n delsp=yes", "; name=foo.txt", `; name="a \"b\" c.txt"`, "",
		";\n title*0*=us-ascii'en'This%20is%20even%20more%20;\n title*1*=%2A%2A%2Afun%2A%2A%2A%20;\n title*2=\"isn't it!\"",
		"; name*=utf-8''%C3%A9.txt", "; name*0=ab; name*1=cd", "; x=y (comment) ; z=1", "; NAME=\"é\"")
	if g.wild {
		s += g.one("", "", "", ";", "; broken", "; a==?utf-8?q?x?=", ` ; b="unterminated`, "; n*1=x; n*3=y", "; q*0=1; r*9=2", " junk", "; a*b=c", "; c=(x)y", "; name=a b.txt")
	}
	return s
}

func (g *generator) part(mime bool) {
	g.depth++
	defer func() { g.depth-- }()
	kind := g.IntN(10)
	if g.depth > 4 {
		kind = min(kind, 5)
	}
	if !mime && g.IntN(2) == 0 {
		kind = 9
	}
	extra := func() {
		for _, s := range []string{"Content-ID: <id@x>", "Content-Description: " + g.text(3), "Content-Transfer-Encoding: " + g.one("7bit", "8bit", "quoted-printable", "base64", "BASE64", "(c) binary"),
			"Content-Disposition: " + g.one("inline", "attachment; filename=x.pdf", "attachment;\n filename*=utf-8''%E2%82%AC.txt", "attachment; filename=\"a b.doc\"; size=12"), "Content-Language: " + g.one("en", "en, de-AT", "x-klingon"),
			"Content-MD5: Q2hlY2sgSW50ZWdyaXR5IQ==", "Content-Location: http://x/" + g.maybe(2, "\n y")} {
			if g.IntN(4) == 0 {
				g.line(s)
			}
		}
		if g.wild {
			if s := g.maybe(6, "Content-Transfer-Encoding: x y", "Content-Type: text/html", "Content-Disposition: ", "Content-Language: ,,", "Content-ID:", "Content-Transfer-Encoding:"); s != "" {
				g.line(s)
			}
		}
	}
	switch {
	case kind < 2:
		extra()
		g.body()
	case kind < 4:
		g.line("Content-Type: " + g.one("text/plain", "text/html", "TEXT/Plain", "text/x-y") + g.params())
		extra()
		g.body()
	case kind < 6:
		ct := g.one("application/pdf", "image/png", "application/octet-stream", "message/delivery-status", "message/partial", "application/x (c)")
		if g.wild {
			ct = g.one(ct, ct, ct, "multipart/mixed", "(c)text/plain(d)")
		}
		g.line("Content-Type: " + ct + g.params())
		extra()
		g.body()
	case kind < 7:
		g.line("Content-Type: message/rfc822" + g.maybe(3, "; name=x.eml"))
		extra()
		g.line("")
		g.whole = true
		g.message()
	default:
		g.multipart(extra)
	}
}

func (g *generator) multipart(extra func()) {
	g.next++
	b := fmt.Sprintf("%s%d", g.one("b", "=_next", "--x", "a b", "bb"), g.next)
	if g.wild && g.IntN(6) == 0 {
		b = g.one("b", "b1", "b1--", "bb", strings.Repeat("w", 90))
	}
	sub := g.one("mixed", "alternative", "related", "digest", "REPORT; report-type=delivery-status")
	g.linef("Content-Type: multipart/%s; boundary=%q", sub, b)
	extra()
	if !g.wild || g.IntN(20) > 0 {
		g.line("")
	}
	if g.IntN(2) == 0 {
		g.line(g.one("preamble", "", "This is a\nmultipart message"))
	}
	n := 1 + g.IntN(3)
	if g.wild {
		n = g.IntN(4)
	}
	for range n {
		g.line("--" + b + g.maybe(5, " ", "  \t"))
		if sub == "digest" && (!g.wild || g.IntN(4) > 0) {
			g.line("")
			g.whole = true
			g.message()
		} else {
			g.part(true)
		}
		if g.IntN(2) == 0 {
			g.line("")
		}
	}
	if !g.wild || g.IntN(4) > 0 {
		g.line("--" + b + "--" + g.maybe(5, " "))
	}
	switch g.IntN(4) {
	case 0:
		g.line("epilogue")
	case 1:
		g.line("")
	}
}

func (g *generator) body() {
	if g.wild && !g.whole && g.IntN(15) == 0 {
		return
	}
	g.whole = false
	g.line("")
	for range g.IntN(5) {
		g.line(g.one("hello", "", "- dash", "--", "-- ", "--notaboundary", "é 8bit", strings.Repeat("x", g.IntN(300)), "From here", "."))
	}
}
