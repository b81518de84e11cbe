package dsn

import (
	"bufio"
	"fmt"
	"io"
	"time"

	"pennypost/internal/envelope"
)

// Digest sums up failures for which no reports of their own were sent, because there were too
// many for one reverse-path. It goes to postmaster.
type Digest struct {
	ID       string
	From     string // the reverse-path that got too many reports
	To       string // postmaster
	Hostname string
	Now      time.Time
	Lines    []Line
}

// Line is one failure in a Digest.
type Line struct {
	ID     string // queue id of the original
	Time   time.Time
	To     string
	Status envelope.Status
}

// DigestEnvelope is the envelope a digest travels with.
func DigestEnvelope(d *Digest) *envelope.Envelope {
	return &envelope.Envelope{
		ID: d.ID, Time: d.Now.UTC(), EOL: envelope.EOLLF,
		To:       []envelope.Recipient{{Addr: d.To, Notify: []string{notifyNever}}},
		SMTPUTF8: !isASCII(d.To),
		Origin:   envelope.Origin{Kind: envelope.OriginDSN, MsgID: "<" + d.ID + "@" + d.Hostname + ">"},
	}
}

// WriteDigest writes the digest as a message with LF line ends.
func WriteDigest(w io.Writer, d *Digest) error {
	b := bufio.NewWriter(w)
	// Ignored here and below: bufio.Writer keeps the first error for Flush.
	_, _ = fmt.Fprintf(b, "From: Mail Delivery System <MAILER-DAEMON@%s>\n", d.Hostname)
	_, _ = fmt.Fprintf(b, "To: <%s>\nSubject: %s\n", d.To,
		fold(len("Subject: "), encodeWord(fmt.Sprintf("%d undelivered messages from %s", len(d.Lines), d.From))))
	_, _ = fmt.Fprintf(b, "Date: %s\nMessage-ID: <%s@%s>\n", rfc5322Date(d.Now), d.ID, d.Hostname)
	_, _ = io.WriteString(b, "Auto-Submitted: auto-generated\nMIME-Version: 1.0\n"+
		"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n")
	q := qpWriter{w: b}
	q.write([]byte(wrap("", fmt.Sprintf("This is the mail system at %s. So much mail from <%s> failed that its sender "+
		"got no report about the messages below. The sender may be a program that went wrong, or the address may be forged.",
		d.Hostname, cleanLine(d.From, true)))))
	for _, l := range d.Lines {
		q.write([]byte(fmt.Sprintf("\n%s %s\n", l.Time.UTC().Format(time.RFC3339), l.ID)))
		q.write([]byte(wrap("    ", fmt.Sprintf("<%s>: %s %s", cleanLine(l.To, true), l.Status.Code, cut(cleanLine(l.Status.Reply, true), 300)))))
	}
	q.end()
	return b.Flush()
}
