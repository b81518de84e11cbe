// Package compose writes a new message with attachments. It hides MIME: header fields, the
// multipart frame, transfer encodings and parameter values. Everything streams: neither the
// text nor an attachment is held in memory.
package compose

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"pennypost/internal/submit"
)

// Message is what is to be written. Date, Message-ID and From are added by submit where they
// are missing.
type Message struct {
	From    string // a finished mailbox, "" for none
	To, Cc  []submit.Mailbox
	Subject string
	Text    io.Reader // nil: no text
	Files   []File
}

// File is one attachment.
type File struct {
	Name string
	Data io.Reader
}

// sampleSize is how much of the text decides about its encoding.
const sampleSize = 64 << 10

// Write writes the message to w. Without attachments the text follows the header as it is:
// submit encodes it where it has to be.
func Write(w io.Writer, m *Message) error {
	var h strings.Builder
	if m.From != "" {
		h.WriteString("From: " + m.From + "\n")
	}
	addressField(&h, "To", m.To)
	addressField(&h, "Cc", m.Cc)
	if m.Subject != "" {
		h.WriteString("Subject: " + submit.EncodeWords(m.Subject) + "\n")
	}
	if len(m.Files) == 0 {
		h.WriteByte('\n')
		if _, err := io.WriteString(w, h.String()); err != nil || m.Text == nil {
			return err
		}
		return copyAll(w, m.Text)
	}
	// "=_" occurs neither in base64 nor in quoted-printable text (RFC 2045 §6.7).
	boundary := "=_" + rand.Text()
	h.WriteString("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"" + boundary + "\"\n\n")
	if _, err := io.WriteString(w, h.String()); err != nil {
		return err
	}
	if m.Text != nil {
		if err := writeText(w, boundary, m.Text); err != nil {
			return err
		}
	}
	for _, f := range m.Files {
		if err := writeFile(w, boundary, f); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, "\n--"+boundary+"--\n")
	return err
}

func addressField(h *strings.Builder, name string, list []submit.Mailbox) {
	if len(list) == 0 {
		return
	}
	text := make([]string, len(list))
	for i, m := range list {
		text[i] = m.String()
	}
	h.WriteString(name + ": " + strings.Join(text, ",\n ") + "\n")
}

// writeText writes the text part: as it is where all of it is plain ASCII and short, else in
// quoted-printable form. No text makes no part.
func writeText(w io.Writer, boundary string, r io.Reader) error {
	sample := make([]byte, sampleSize)
	n, err := io.ReadFull(r, sample)
	if err == io.EOF {
		return nil
	}
	whole := err == io.ErrUnexpectedEOF
	if err != nil && !whole {
		return err
	}
	sample = sample[:n]
	charset := "utf-8"
	if !validText(sample, whole) {
		charset = "unknown-8bit"
	}
	part := "\n--" + boundary + "\nContent-Type: text/plain; charset="
	if whole && submit.IsPlain(sample) && !bytes.Contains(sample, []byte("--"+boundary)) {
		_, err := io.WriteString(w, part+"us-ascii\n\n"+string(sample))
		return err
	}
	if _, err := io.WriteString(w, part+charset+"\nContent-Transfer-Encoding: quoted-printable\n\n"); err != nil {
		return err
	}
	q := submit.NewQuotedPrintable(w)
	if err := copyAll(q, io.MultiReader(bytes.NewReader(sample), r)); err != nil {
		return err
	}
	return q.Close()
}

// validText tells whether a sample is UTF-8; one that is cut may end within a character.
func validText(sample []byte, whole bool) bool {
	if whole {
		return utf8.Valid(sample)
	}
	for cut := 0; cut < utf8.UTFMax; cut++ {
		if utf8.Valid(sample[:len(sample)-cut]) {
			return true
		}
	}
	return false
}

// writeFile writes an attachment in base64, whatever it holds: the exact bytes arrive.
func writeFile(w io.Writer, boundary string, f File) error {
	head := "\n--" + boundary + "\nContent-Type: " + typeOf(f.Name) + "\nContent-Transfer-Encoding: base64\n" +
		"Content-Disposition: attachment" + parameter("filename", f.Name) + "\n\n"
	if _, err := io.WriteString(w, head); err != nil {
		return err
	}
	lines := &lineWriter{w: w}
	enc := base64.NewEncoder(base64.StdEncoding, lines)
	if err := copyAll(enc, f.Data); err != nil {
		return err
	}
	if err := enc.Close(); err != nil {
		return err
	}
	return lines.end()
}

// copyAll is io.Copy with a large buffer and without shortcuts, so that it is w that sees
// every byte in large pieces.
func copyAll(w io.Writer, r io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, 64<<10))
	return err
}

// lineWriter cuts base64 into lines of 76 characters, RFC 2045 §6.8.
type lineWriter struct {
	w   io.Writer
	n   int // characters in the unfinished line
	buf []byte
}

func (l *lineWriter) Write(p []byte) (int, error) {
	const width = 76
	l.buf = l.buf[:0]
	for rest := p; len(rest) > 0; {
		k := min(width-l.n, len(rest))
		l.buf = append(l.buf, rest[:k]...)
		rest = rest[k:]
		if l.n += k; l.n == width {
			l.buf = append(l.buf, '\n')
			l.n = 0
		}
	}
	if _, err := l.w.Write(l.buf); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (l *lineWriter) end() error {
	if l.n == 0 {
		return nil
	}
	_, err := io.WriteString(l.w, "\n")
	return err
}

// parameter is "; name=value" as RFC 2045 §5.1 has it, or in the form of RFC 2231 §4 for a
// value that is not ASCII.
func parameter(name, value string) string {
	ascii := true
	for i := 0; i < len(value); i++ {
		ascii = ascii && value[i] >= ' ' && value[i] < 0x7f
	}
	if ascii {
		return ";\n " + name + `="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(value) + `"`
	}
	var b strings.Builder
	b.WriteString(";\n " + name + "*=utf-8''")
	for i := 0; i < len(value); i++ {
		c := value[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// typeOf guesses a media type by the name alone. What is not here is application/octet-stream,
// which every reader offers to save.
func typeOf(name string) string {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".txt", ".log", ".diff", ".patch", ".conf":
		return "text/plain"
	case ".csv":
		return "text/csv"
	case ".html", ".htm":
		return "text/html"
	case ".json":
		return "application/json"
	case ".xml":
		return "application/xml"
	case ".pdf":
		return "application/pdf"
	case ".png":
		return "image/png"
	case ".jpg", ".jpeg":
		return "image/jpeg"
	case ".gif":
		return "image/gif"
	case ".svg":
		return "image/svg+xml"
	case ".gz", ".tgz":
		return "application/gzip"
	case ".zip":
		return "application/zip"
	case ".ics":
		return "text/calendar"
	}
	return "application/octet-stream"
}
