package dsn

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"pennypost/internal/envelope"
)

// ErrNullReversePath refuses a report about a message that asks for none by its reverse-path.
var ErrNullReversePath = errors.New("a message from the null reverse-path is never reported")

// Write writes the report as a message with LF line ends.
func Write(w io.Writer, r Report) error {
	if r.Env.From == "" {
		return ErrNullReversePath
	}
	if len(r.Recipients) == 0 {
		return errors.New("dsn: no recipients to report")
	}
	l, err := plan(&r)
	if err != nil {
		return fmt.Errorf("dsn: original message: %w", err)
	}
	b := bufio.NewWriter(w)
	p := printer{w: b, r: &r, l: l, boundary: "=_" + r.ID + "_report"}
	p.header()
	p.human()
	p.status()
	if err := p.original(); err != nil {
		return fmt.Errorf("dsn: original message: %w", err)
	}
	p.printf("\n--%s--\n", p.boundary)
	return b.Flush()
}

// printer writes one report. Errors of the writer stay in the bufio.Writer until its Flush.
type printer struct {
	w        *bufio.Writer
	r        *Report
	l        layout
	boundary string
}

func (p *printer) printf(format string, args ...any) {
	// Ignored: bufio.Writer keeps the first error for Flush.
	_, _ = fmt.Fprintf(p.w, format, args...)
}

func rfc5322Date(t time.Time) string { return t.Format("Mon, 2 Jan 2006 15:04:05 -0700") }

func (p *printer) header() {
	r := p.r
	p.printf("From: Mail Delivery System <MAILER-DAEMON@%s>\n", r.Hostname)
	p.printf("To: <%s>\n", r.Env.From)
	p.printf("Subject: %s\n", fold(len("Subject: "), encodeWord(p.subject())))
	p.printf("Date: %s\n", rfc5322Date(r.Now))
	p.printf("Message-ID: %s\n", messageID(r))
	if p.l.messageID != "" {
		// RFC 5322 §3.6.4: these make mail readers show the report under the message.
		p.printf("In-Reply-To: %s\nReferences: %s\n", p.l.messageID, p.l.messageID)
	}
	// RFC 3834 §5.1: a report is an answer; nobody may answer it automatically.
	p.printf("Auto-Submitted: auto-replied\n")
	p.printf("MIME-Version: 1.0\n")
	p.printf("Content-Type: multipart/report; report-type=delivery-status;\n\tboundary=\"%s\"\n", p.boundary)
	if p.l.eightBit {
		p.printf("Content-Transfer-Encoding: 8bit\n")
	}
	p.printf("\nThis is a delivery report in MIME format.\n")
}

// part starts a body part.
func (p *printer) part(description, contentType, encoding string) {
	p.printf("\n--%s\nContent-Description: %s\nContent-Type: %s\n", p.boundary, description, contentType)
	if encoding != "" {
		p.printf("Content-Transfer-Encoding: %s\n", encoding)
	}
	p.printf("\n")
}

// human writes the part for people. Only here may a foreign reply bring 8-bit text, so the part
// is encoded when it does.
func (p *printer) human() {
	text := explain(p.r, p.l)
	if isASCII(text) {
		p.part("Notification", "text/plain; charset=us-ascii", "")
		p.printf("%s", text)
		return
	}
	p.part("Notification", "text/plain; charset=utf-8", "quoted-printable")
	q := qpWriter{w: p.w}
	q.write([]byte(text))
	q.end()
}

// status writes the part for programs.
func (p *printer) status() {
	contentType, encoding := "message/delivery-status", ""
	fields := p.fields()
	if p.l.global {
		// RFC 6533 §4.5: encoded, because the way back may lack SMTPUTF8.
		contentType = "message/global-delivery-status"
		if !isASCII(fields) {
			encoding = "quoted-printable"
		}
	}
	p.part("Delivery report", contentType, encoding)
	if encoding == "" {
		p.printf("%s", fields)
		return
	}
	q := qpWriter{w: p.w}
	q.write([]byte(fields))
	q.end()
}

// fields are the fields of RFC 3464 §2.2 and §2.3.
func (p *printer) fields() string {
	var b strings.Builder
	r := p.r
	p.field(&b, "Reporting-MTA", nameType(r.Hostname)+"; "+r.Hostname)
	if r.Env.EnvID != "" {
		p.field(&b, "Original-Envelope-Id", r.Env.EnvID)
	}
	if r.Env.ID != "" {
		p.field(&b, "X-Pennypost-Queue-Id", r.Env.ID)
	}
	if !r.Env.Time.IsZero() {
		p.field(&b, "Arrival-Date", rfc5322Date(r.Env.Time))
	}
	if by := r.Env.DeliverBy; by != nil {
		p.field(&b, "Deliver-By-Date", rfc5322Date(by.Deadline)) // RFC 2852 §5
	}
	if r.Env.Hold != "" {
		p.field(&b, "Future-Release-Request", r.Env.Hold) // RFC 4865 §5.1.2
	}
	for _, rc := range r.Recipients {
		b.WriteByte('\n')
		p.recipient(&b, rc)
	}
	return b.String()
}

func (p *printer) recipient(b *strings.Builder, rc Recipient) {
	// RFC 3461 §6.3 (d): from ORCPT or not at all.
	if kind, addr, ok := strings.Cut(rc.ORcpt, ";"); ok {
		p.field(b, "Original-Recipient", kind+"; "+addr)
	}
	p.field(b, "Final-Recipient", addressType(rc.Addr)+"; "+rc.Addr)
	p.field(b, "Action", action(p.r.Kind, rc.Verdict))
	p.field(b, "Status", statusCode(p.r.Kind, rc))
	if host := remoteMTA(rc.Relay); host != "" {
		p.field(b, "Remote-MTA", "dns; "+host)
	}
	// Of a success only the remote side's words: ours name a place in the mail store.
	if rc.Reply != "" && (p.r.Kind != Success || rc.Remote) {
		// RFC 3464 §2.3.6: "smtp" only for what the remote side said.
		kind := "x-pennypost"
		if rc.Remote {
			kind = "smtp"
		}
		p.field(b, "Diagnostic-Code", kind+"; "+cut(rc.Reply, 4000))
	}
	if !rc.Last.IsZero() {
		p.field(b, "Last-Attempt-Date", rfc5322Date(rc.Last))
	}
	if p.r.Kind == Delay && !rc.RetryUntil.IsZero() {
		p.field(b, "Will-Retry-Until", rfc5322Date(rc.RetryUntil))
	}
}

// statusCode makes the class of the code fit the action (RFC 3464 §2.3.4): a deferral that was
// given up has a code of class 4, which stays; an unusable code becomes the general one.
func statusCode(kind Kind, rc Recipient) string {
	if envelope.ValidCode(rc.Code) && (kind != Success || rc.Code[0] == '2') && (kind == Success || rc.Code[0] != '2') {
		return rc.Code
	}
	switch kind {
	case Success:
		return "2.0.0"
	case Delay:
		return "4.0.0"
	}
	return "5.0.0"
}

// field writes one field, safe against what others put into its value and folded.
func (p *printer) field(b *strings.Builder, name, value string) {
	value = cleanLine(value, p.l.global)
	fmt.Fprintf(b, "%s: %s\n", name, fold(len(name)+2, value))
}

// nameType is "dns" for a fully-qualified name, RFC 3461 §6.3 (b).
func nameType(host string) string {
	if strings.Contains(host, ".") {
		return "dns"
	}
	return "x-local-hostname"
}

// addressType is "rfc822", or RFC 6533 §3's "utf-8".
func addressType(addr string) string {
	if isASCII(addr) {
		return "rfc822"
	}
	return "utf-8"
}

// remoteMTA is the host name in "host[addr]:port".
func remoteMTA(relay string) string {
	if i := strings.IndexByte(relay, '['); i > 0 {
		return relay[:i]
	}
	host, _, _ := strings.Cut(relay, "]")
	if strings.HasPrefix(relay, "[") {
		return host + "]"
	}
	host, _, _ = strings.Cut(relay, ":")
	if strings.HasPrefix(relay, "/") || host == "lmtp" {
		return ""
	}
	return host
}

// original writes the third part.
func (p *printer) original() error {
	if p.r.Original == nil {
		return nil
	}
	contentType, size := "text/rfc822-headers", p.l.header
	switch {
	case p.l.full && p.l.global:
		contentType, size = "message/global", p.r.Original.Size()
	case p.l.full:
		contentType, size = "message/rfc822", p.r.Original.Size()
	case p.l.global:
		contentType = "message/global-headers"
	}
	description := "Undelivered message header"
	if p.l.full {
		description = "Undelivered message"
	}
	if p.r.Kind != Failure {
		description = "Message header"
	}
	encoding := ""
	switch {
	case p.l.encode:
		encoding = "quoted-printable"
	case p.l.eightBit:
		encoding = "8bit"
	}
	p.part(description, contentType, encoding)
	src := io.NewSectionReader(p.r.Original, 0, size)
	if !p.l.encode {
		n, err := io.Copy(p.w, src)
		if err == nil && n != size {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return encodeQP(p.w, src)
}

// cleanLine makes text safe for one header line: control characters become spaces, and 8-bit
// text becomes "?" where the part is ASCII.
func cleanLine(s string, utf8OK bool) string {
	if !utf8OK && isASCII(s) || utf8OK && utf8.ValidString(s) {
		ok := true
		for i := 0; i < len(s) && ok; i++ {
			ok = s[i] >= ' ' && s[i] != 0x7f
		}
		if ok {
			return s
		}
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r < ' ' || r == 0x7f:
			return ' '
		case r < utf8.RuneSelf:
			return r
		case !utf8OK || r == utf8.RuneError || r < 0xa0 || r == 0x2028 || r == 0x2029:
			return '?'
		}
		return r
	}, s)
}

// fold breaks a field value at spaces so that lines stay short; words longer than a line are
// broken only where they would pass the limit of RFC 5322 §2.1.1. used is the length of what
// stands before the value on its first line.
func fold(used int, s string) string {
	const nice, hard = 76, 900
	var b strings.Builder
	for i, word := range strings.Fields(s) {
		for len(word) > hard {
			cut := hard
			for cut > 0 && !utf8.RuneStart(word[cut]) {
				cut--
			}
			b.WriteString("\n " + word[:cut])
			word, used = word[cut:], hard
		}
		switch {
		case i == 0 && used < hard:
		case used+1+len(word) > nice:
			b.WriteString("\n ")
			used = 1
		default:
			b.WriteByte(' ')
			used++
		}
		b.WriteString(word)
		used += len(word)
	}
	return b.String()
}
