package submit

import (
	"strings"
	"time"

	"pennypost/internal/envelope"
)

// Trace is the content of a Received line, RFC 5321 §4.4. Every part may come from outside:
// control characters in them are replaced.
type Trace struct {
	From    string // "helo.example (name.example [192.0.2.1])"; "" for a message without a client
	By      string // our name; "" means Options.Hostname
	Comment string // put behind By in parentheses: "pennypost, from userid 1000"
	With    string // RFC 3848: "ESMTPSA"; "" leaves the clause out
	For     bool   // name the recipient when there is exactly one
	Pri     string // RFC 6710 §4.1's PRIORITY clause; "" leaves it out
	TLS     string // cipher suite for RFC 8314 §4.3's clause; "" leaves it out
}

// line returns the finished field with its line end.
func (t *Trace) line(env *envelope.Envelope, hostname string, now time.Time) string {
	var b strings.Builder
	b.WriteString("Received:")
	if t.From != "" {
		b.WriteString(" from " + printable(t.From, 600) + "\n\tby ")
	} else {
		b.WriteString(" by ")
	}
	by := t.By
	if by == "" {
		by = hostname
	}
	b.WriteString(printable(by, 255))
	if t.Comment != "" {
		b.WriteString(" (" + printable(t.Comment, 600) + ")")
	}
	if t.With != "" {
		b.WriteString(" with " + printable(t.With, 40))
	}
	b.WriteString("\n\tid " + env.ID)
	if t.For && len(env.To) == 1 {
		b.WriteString("\n\tfor <" + printable(env.To[0].Addr, 320) + ">")
	}
	if t.Pri != "" {
		b.WriteString("\n\tPRIORITY " + printable(t.Pri, 2))
	}
	if t.TLS != "" {
		b.WriteString("\n\ttls " + printable(t.TLS, 60))
	}
	b.WriteString("; " + now.Format(dateFormat) + "\n")
	return b.String()
}

// dateFormat is RFC 5322 §3.3's date-time.
const dateFormat = time.RFC1123Z
