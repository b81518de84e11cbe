package dsn

import (
	"bufio"
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"mime/quotedprintable"
	"strings"
	"time"

	"pennypost/internal/envelope"
)

// Parsed is what a notification says, with the names of logs and --json.
type Parsed struct {
	MTA        string            `json:"mta,omitempty"`       // Reporting-MTA without its type
	EnvID      string            `json:"envid,omitempty"`     //
	Arrival    *time.Time        `json:"arrival,omitempty"`   //
	MsgID      string            `json:"msgid,omitempty"`     // of the original
	ReportID   string            `json:"report_id,omitempty"` // Message-ID of the report
	Recipients []ParsedRecipient `json:"recipients"`
}

// ParsedRecipient is one recipient of a Parsed.
type ParsedRecipient struct {
	OrigTo string           `json:"orig_to,omitempty"`
	To     string           `json:"to"`
	Status envelope.Verdict `json:"status"`
	DSN    string           `json:"dsn,omitempty"`
	Relay  string           `json:"relay,omitempty"` // Remote-MTA without its type
	Reply  string           `json:"reply,omitempty"` // Diagnostic-Code without its type
	Until  *time.Time       `json:"until,omitempty"`
}

// ErrNoReport is returned for a message that is no delivery status notification.
var ErrNoReport = errors.New("no delivery status notification (multipart/report of type delivery-status)")

// Bounds of what Parse keeps, whatever a message holds.
const (
	maxField      = 8 << 10
	maxFields     = 1000
	maxRecipients = 10000
	maxStatusPart = 4 << 20
)

// Parse reads a message and returns what its status part says. Line ends may be LF or CRLF.
// Memory stays bounded for any input.
func Parse(r io.Reader) (*Parsed, error) {
	s := &lines{r: bufio.NewReaderSize(r, 8<<10)}
	top, err := s.fields()
	if err != nil {
		return nil, err
	}
	kind, params, err := mime.ParseMediaType(first(top, "content-type"))
	if err != nil || kind != "multipart/report" || !strings.EqualFold(params["report-type"], "delivery-status") || params["boundary"] == "" {
		return nil, ErrNoReport
	}
	p := &Parsed{Recipients: []ParsedRecipient{}, ReportID: first(top, "message-id")}
	s.boundary = "--" + params["boundary"]
	found := false
	for s.nextPart() {
		h, err := s.fields()
		if err != nil {
			return nil, err
		}
		kind, _, _ := mime.ParseMediaType(first(h, "content-type"))
		switch kind {
		case "message/delivery-status", "message/global-delivery-status":
			if found {
				continue
			}
			found = true
			if err := p.status(s.body(first(h, "content-transfer-encoding"))); err != nil {
				return nil, err
			}
		case "text/rfc822-headers", "message/rfc822", "message/global", "message/global-headers":
			inner := &lines{r: bufio.NewReader(s.body(first(h, "content-transfer-encoding")))}
			fields, err := inner.fields()
			if err != nil {
				return nil, err
			}
			if p.MsgID == "" {
				p.MsgID = first(fields, "message-id")
			}
		}
	}
	if s.err != nil {
		return nil, s.err
	}
	if !found || len(p.Recipients) == 0 {
		return nil, ErrNoReport
	}
	return p, nil
}

// status reads the groups of fields of RFC 3464 §2.1: the message's, then one a recipient.
func (p *Parsed) status(r io.Reader) error {
	in := &lines{r: bufio.NewReader(io.LimitReader(r, maxStatusPart))}
	for group := 0; !in.eof && len(p.Recipients) < maxRecipients; {
		fields, err := in.fields()
		if err != nil {
			return err
		}
		if len(fields) == 0 {
			continue // more than one empty line between groups
		}
		if group == 0 {
			p.MTA = afterType(first(fields, "reporting-mta"))
			p.EnvID = first(fields, "original-envelope-id")
			p.Arrival = date(first(fields, "arrival-date"))
		}
		// Some reporters leave the message's group out.
		if to := first(fields, "final-recipient"); to != "" {
			p.Recipients = append(p.Recipients, recipientOf(to, fields))
		}
		group++
	}
	return nil
}

func recipientOf(to string, fields []field) ParsedRecipient {
	rc := ParsedRecipient{
		To: afterType(to), OrigTo: afterType(first(fields, "original-recipient")),
		Status: verdictOf(first(fields, "action")), DSN: codeOf(first(fields, "status")),
		Relay: afterType(first(fields, "remote-mta")), Reply: afterType(first(fields, "diagnostic-code")),
		Until: date(first(fields, "will-retry-until")),
	}
	return rc
}

// codeOf drops the comment some reporters put behind the code.
func codeOf(s string) string {
	code, _, _ := strings.Cut(s, " ")
	if !envelope.ValidCode(code) {
		return ""
	}
	return code
}

// verdictOf turns an Action into our word for it; an unknown one is a deferral, never a failure.
func verdictOf(action string) envelope.Verdict {
	word, _, _ := strings.Cut(strings.ToLower(action), " ")
	switch word {
	case "failed":
		return envelope.Failed
	case "delivered":
		return envelope.Delivered
	case "relayed":
		return envelope.Relayed
	case "expanded":
		return envelope.Expanded
	}
	return envelope.Deferred
}

// afterType drops the "rfc822;" or "dns;" in front of a value.
func afterType(s string) string {
	if _, v, ok := strings.Cut(s, ";"); ok {
		return strings.TrimSpace(v)
	}
	return s
}

func date(s string) *time.Time {
	if i := strings.IndexByte(s, '('); i > 0 {
		s = strings.TrimSpace(s[:i])
	}
	for _, layout := range []string{"Mon, 2 Jan 2006 15:04:05 -0700", "2 Jan 2006 15:04:05 -0700", time.RFC1123} {
		if t, err := time.Parse(layout, s); err == nil {
			return &t
		}
	}
	return nil
}

type field struct{ name, value string }

func first(fs []field, name string) string {
	for _, f := range fs {
		if f.name == name {
			return f.value
		}
	}
	return ""
}

// lines reads a message line by line, without line ends. With a boundary set it stops in front
// of each line that starts with it.
type lines struct {
	r        *bufio.Reader
	boundary string
	at       string // boundary line that was met and not yet taken
	eof      bool
	err      error // other than the end of the input
}

// next returns the next line, cut at maxField octets, and whether there was one.
func (l *lines) next() (string, bool) {
	if l.eof || l.at != "" {
		return "", false
	}
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		if room := maxField - len(line); room > 0 {
			line = append(line, part[:min(room, len(part))]...)
		}
		if err == nil {
			break
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		l.eof = true
		if !errors.Is(err, io.EOF) {
			l.err = err
		}
		if len(line) == 0 {
			return "", false
		}
		break
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(line), "\n"), "\r")
	if l.boundary != "" && strings.HasPrefix(text, l.boundary) {
		l.at = text
		return "", false
	}
	return text, true
}

// nextPart skips to the next part; false at the closing boundary or the end.
func (l *lines) nextPart() bool {
	for l.at == "" {
		if _, ok := l.next(); !ok && l.at == "" {
			return false
		}
	}
	closing := strings.HasPrefix(l.at, l.boundary+"--")
	l.at = ""
	return !closing
}

// fields reads unfolded header fields up to an empty line. A line that is no field is skipped:
// broken reports are what this is for.
func (l *lines) fields() ([]field, error) {
	var fs []field
	for {
		text, ok := l.next()
		if !ok || text == "" {
			return fs, l.err
		}
		if text[0] == ' ' || text[0] == '\t' {
			if n := len(fs); n > 0 && len(fs[n-1].value) < maxField {
				fs[n-1].value = strings.TrimSpace(fs[n-1].value + " " + strings.TrimSpace(text))
			}
			continue
		}
		name, value, ok := strings.Cut(text, ":")
		if ok && len(fs) < maxFields {
			fs = append(fs, field{strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)})
		}
	}
}

// body reads the rest of the part, decoded.
func (l *lines) body(encoding string) io.Reader {
	raw := &partReader{l: l}
	switch strings.ToLower(encoding) {
	case "quoted-printable":
		return quotedprintable.NewReader(raw)
	case "base64":
		return base64.NewDecoder(base64.StdEncoding, raw)
	}
	return raw
}

// partReader gives the lines of a part as a stream with LF.
type partReader struct {
	l    *lines
	left string
}

func (p *partReader) Read(b []byte) (int, error) {
	if p.left == "" {
		text, ok := p.l.next()
		if !ok {
			if p.l.err != nil {
				return 0, p.l.err
			}
			return 0, io.EOF
		}
		p.left = text + "\n"
	}
	n := copy(b, p.left)
	p.left = p.left[n:]
	return n, nil
}
