package dsn

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pennypost/internal/envelope"
)

// Reports of other systems, as they come: Postfix's, one without the message's group of fields
// and with CRLF, one whose status part is encoded.
func TestParseForeign(t *testing.T) {
	for _, c := range []struct {
		file string
		want Parsed
	}{
		{"postfix.eml", Parsed{MTA: "mx.b.test", MsgID: "<m1@a.test>", ReportID: "<r1@mx.b.test>", Recipients: []ParsedRecipient{
			{OrigTo: "nobody@b.test", To: "nobody@b.test", Status: envelope.Failed, DSN: "5.1.1", Relay: "mail.b.test",
				Reply: "550 5.1.1 <nobody@b.test>: Recipient address rejected: User unknown"}}}},
		{"headless.eml", Parsed{Recipients: []ParsedRecipient{{To: "x@b.test", Status: envelope.Deferred, DSN: "4.4.1"}}}},
		{"encoded.eml", Parsed{MTA: "mx.b.test", Recipients: []ParsedRecipient{
			{To: "jörg@b.test", Status: envelope.Failed, DSN: "5.1.1"}, {To: "b@b.test", Status: envelope.Delivered}}}},
	} {
		data, err := os.ReadFile(filepath.Join("testdata", c.file))
		if err != nil {
			t.Fatal(err)
		}
		for _, msg := range []string{string(data), strings.ReplaceAll(string(data), "\n", "\r\n")} {
			p, err := Parse(strings.NewReader(msg))
			if err != nil {
				t.Errorf("%s: %v", c.file, err)
				continue
			}
			p.Arrival = nil
			if p.MTA != c.want.MTA || p.MsgID != c.want.MsgID || p.ReportID != c.want.ReportID || len(p.Recipients) != len(c.want.Recipients) {
				t.Errorf("%s: %+v, want %+v", c.file, p, c.want)
				continue
			}
			for i := range p.Recipients {
				if p.Recipients[i] != c.want.Recipients[i] {
					t.Errorf("%s: %+v, want %+v", c.file, p.Recipients[i], c.want.Recipients[i])
				}
			}
		}
	}
}

func TestParseOther(t *testing.T) {
	for _, msg := range []string{
		"", "Subject: x\n\nbody\n",
		"Content-Type: multipart/mixed; boundary=x\n\n--x\n\n--x--\n",
		"Content-Type: multipart/report; report-type=delivery-status\n\n",
		"Content-Type: multipart/report; report-type=delivery-status; boundary=x\n\n--x\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; y\n\n--x--\n",
		"Content-Type: multipart/report; report-type=feedback-report; boundary=x\n\n--x\n",
	} {
		if p, err := Parse(strings.NewReader(msg)); !errors.Is(err, ErrNoReport) {
			t.Errorf("%q: %+v, %v", msg, p, err)
		}
	}
}

type brokenReader struct{ r io.Reader }

var errDisk = errors.New("disk on fire")

func (b brokenReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if errors.Is(err, io.EOF) {
		err = errDisk
	}
	return n, err
}

func TestParseReadError(t *testing.T) {
	data, err := os.ReadFile("testdata/postfix.eml")
	if err != nil {
		t.Fatal(err)
	}
	for n := range data {
		p, err := Parse(brokenReader{bytes.NewReader(data[:n])})
		if !errors.Is(err, errDisk) && !errors.Is(err, ErrNoReport) && n < bytes.Index(data, []byte("--B1--")) {
			t.Fatalf("%d octets, then a read error: %+v, %v", n, p, err)
		}
	}
}

// Properties: no panic, and what was parsed survives being reported and parsed again.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.[em][ms][lg]")
	if err != nil || len(files) < 4 {
		f.Fatal(files, err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(bytes.NewReader(data))
		if err != nil {
			return
		}
		r := Report{ID: "0c8r3v5k2abcdefghi", Kind: Failure, Hostname: "mx.a.test", Now: now,
			Env: &envelope.Envelope{From: "ann@a.test", EnvID: p.EnvID, SMTPUTF8: true}}
		for _, rc := range p.Recipients {
			r.Recipients = append(r.Recipients, Recipient{
				Recipient: envelope.Recipient{Addr: rc.To},
				Status:    envelope.Status{Verdict: rc.Status, Code: rc.DSN, Reply: rc.Reply},
			})
		}
		var b bytes.Buffer
		if err := Write(&b, r); err != nil {
			t.Fatal(err)
		}
		again, err := Parse(&b)
		if err != nil {
			t.Fatal(err)
		}
		if len(again.Recipients) != len(p.Recipients) {
			t.Fatalf("%d recipients became %d", len(p.Recipients), len(again.Recipients))
		}
	})
}
