package submit

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime/quotedprintable"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/spool"
)

var fixed = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// memory is a Store that keeps the finished messages.
type memory struct {
	done   []*memDraft
	open   int // drafts neither committed nor aborted
	drafts int
	fail   error // of every Write
}

type memDraft struct {
	m   *memory
	env envelope.Envelope
	bytes.Buffer
	over bool
}

func (m *memory) Create(env *envelope.Envelope) (Draft, error) {
	m.drafts++
	m.open++
	if env.ID == "" {
		env.ID = fmt.Sprintf("id%016d", m.drafts)
	}
	env.Time = fixed
	return &memDraft{m: m, env: *env}, nil
}

func (d *memDraft) Write(p []byte) (int, error) {
	if d.m.fail != nil {
		return 0, d.m.fail
	}
	return d.Buffer.Write(p)
}

func (d *memDraft) Reread() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(bytes.Clone(d.Bytes()))), nil
}

func (d *memDraft) Commit() error {
	d.m.done = append(d.m.done, d)
	d.end()
	return nil
}

func (d *memDraft) Abort() error { d.end(); return nil }

func (d *memDraft) end() {
	if !d.over {
		d.over = true
		d.m.open--
	}
}

// take submits in, cut into pieces of the given size, and returns the stored message.
func take(t testing.TB, in string, fix Fixup, o Options, piece int, to ...string) (*memDraft, error) {
	t.Helper()
	st := &memory{}
	o.Store, o.Hostname, o.Now = st, "host.test", func() time.Time { return fixed }
	env := &envelope.Envelope{From: "ann@host.test"}
	for _, a := range to {
		env.To = append(env.To, envelope.Recipient{Addr: a})
	}
	m, err := New(o).Begin(env, fix)
	if err == nil {
		for rest := in; rest != "" && err == nil; {
			n := min(piece, len(rest))
			_, err = m.Write([]byte(rest[:n]))
			rest = rest[n:]
		}
		if err == nil {
			_, err = m.Commit()
		}
	}
	if st.open != 0 {
		t.Errorf("%d drafts left over", st.open)
	}
	if err != nil {
		if len(st.done) > 0 {
			t.Errorf("a message was stored in spite of %v", err)
		}
		return nil, err
	}
	if len(st.done) != 1 {
		t.Fatalf("%d messages stored", len(st.done))
	}
	return st.done[0], nil
}

var pieces = []int{1 << 30, 1, 7, 4096}

func TestHeader(t *testing.T) {
	all := Fixup{Pipe: true, RemoveBcc: true, AddDate: true, AddMessageID: true, AddFrom: "Ann <ann@host.test>"}
	bcc := Fixup{Pipe: true, RemoveBcc: true}
	added := "From: Ann <ann@host.test>\nDate: Sun, 22 Nov 2026 10:00:00 +0000\nMessage-ID: <id0000000000000001@host.test>\n"
	for _, c := range []struct {
		name, in, want string
		fix            Fixup
	}{
		{"unchanged", "Subject: a\n\nb\n", "Subject: a\n\nb\n", Fixup{}},
		{"no header", "hello\nworld\n", "\nhello\nworld\n", bcc},
		{"no header, fix-ups", "hello\n", added + "\nhello\n", all},
		{"empty", "", added + "\n", all},
		{"only an empty line", "\nhi\n", "\nhi\n", bcc},
		{"header without body", "Subject: a\n", "Subject: a\n\n", bcc},
		{"header without line end", "Subject: a", "Subject: a\n\n", bcc},
		{"bad line ends the header", "Subject: a\nnot a field\nTo: b\n", "Subject: a\n\nnot a field\nTo: b\n", bcc},
		{"leading white space is body", " x: y\nz: a\n", "\n x: y\nz: a\n", bcc},
		{"white space before the colon", "Subject : a\n\nb\n", "Subject : a\n\nb\n", bcc},
		{"CRLF", "Subject: a\r\n b\r\n\r\nc\r\nd\r\n", "Subject: a\n b\n\nc\nd\n", bcc},
		{"CRLF kept from the network", "Subject: a\r\n\r\nc\r\n", "Subject: a\r\n\nc\r\n", Fixup{}},
		{"bare CR and NUL in the header", "Subject: a\rb\x00c\n\nd\n", "Subject: a b c\n\nd\n", bcc},
		{"mailbox separator", "From ann Sun Nov 22 10:00:00 2026\nSubject: a\n\nFrom b\n", "Subject: a\n\nFrom b\n", bcc},
		{"fields of a stored message", "Return-Path: <x@y>\nContent-Length: 3\nSubject: a\n\nb\n", "Subject: a\n\nb\n", bcc},
		{"Bcc folded, all forms", "bcc: a@b,\n c@d\nSubject: s\nBCC : e@f\nResent-Bcc: g@h\nBccx: k\n\nBcc: body\n", "Subject: s\nBccx: k\n\nBcc: body\n", bcc},
		{"nothing missing", "From: x@y.test\nDate: d\nMessage-ID: <m@y>\n\n", "From: x@y.test\nDate: d\nMessage-ID: <m@y>\n\n", all},
		{"Sender is enough", "Sender: x@y.test\nDate: d\nMessage-Id: <m@y>\n\n", "Sender: x@y.test\nDate: d\nMessage-Id: <m@y>\n\n", all},
		{"resent", "Resent-To: q@r\nFrom: x@y\n\n", strings.NewReplacer("From", "Resent-From", "Date", "Resent-Date", "Message", "Resent-Message").Replace(added) + "Resent-To: q@r\nFrom: x@y\n\n", all},
		{"trace and more", "Subject: a\n\nb\n", "Received: from c.test ([192.0.2.1])\n\tby host.test (x) with ESMTP\n\tid id0000000000000001\n\tfor <bob@b.test>; Sun, 22 Nov 2026 10:00:00 +0000\nX-A: 1\nSubject: a\n\nb\n",
			Fixup{Trace: &Trace{From: "c.test ([192.0.2.1])", Comment: "x", With: "ESMTP", For: true}, Prepend: "X-A: 1\n"}},
		{"trace without header", " body\n", "Received: by host.test\n\tid id0000000000000001; Sun, 22 Nov 2026 10:00:00 +0000\n\n body\n", Fixup{Trace: &Trace{}}},
	} {
		for _, n := range pieces {
			d, err := take(t, c.in, c.fix, Options{}, n, "bob@b.test")
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			} else if got := strings.ReplaceAll(d.String(), d.env.ID, "id0000000000000001"); got != c.want {
				t.Errorf("%s (pieces of %d): got\n%q\nwant\n%q", c.name, n, got, c.want)
			}
		}
	}
}

// decode returns the body of a stored message as its reader sees it.
func decode(t testing.TB, d *memDraft) (head, body string) {
	t.Helper()
	head, raw, _ := strings.Cut("\n"+d.String(), "\n\n")
	head += "\n"
	var r io.Reader = strings.NewReader(raw)
	if strings.Contains(head, "\nContent-Transfer-Encoding: quoted-printable\n") {
		r = quotedprintable.NewReader(r)
	} else if strings.Contains(head, "\nContent-Transfer-Encoding: base64\n") {
		r = base64.NewDecoder(base64.StdEncoding, r)
	} else {
		return head, raw
	}
	for i, l := range strings.Split(raw, "\n") {
		if len(l) > 76 {
			t.Fatalf("encoded line %d has %d octets", i, len(l))
		}
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("the stored body does not decode: %v", err)
	}
	return head, string(b)
}

func TestBody(t *testing.T) {
	long := strings.Repeat("0123456789", 10000)
	filler := strings.Repeat("seventy octets of plain text that fills the hold and something more..\n", 2000)
	bin := make([]byte, 300000)
	for i := range bin {
		bin[i] = byte(i*i>>3 ^ i)
	}
	qp, b64, bit8 := "Content-Transfer-Encoding: quoted-printable\n", "Content-Transfer-Encoding: base64\n", "Content-Transfer-Encoding: 8bit\n"
	utf, unknown := "charset=utf-8\n", "charset=unknown-8bit\n"
	for _, c := range []struct {
		name, head, in string
		want           string // decoded body; "=" means in
		has            []string
		not            string
		body           string
	}{
		{"plain", "", "a\nb\n", "=", nil, "MIME", ""},
		{"no line end", "", "a\nb", "a\nb\n", nil, "MIME", ""},
		{"998 octets", "", strings.Repeat("x", 998) + "\n", "=", nil, "MIME", ""},
		{"999 octets", "", strings.Repeat("x", 999) + "\n", "=", []string{qp, utf, "MIME-Version: 1.0\n"}, "", ""},
		{"progress bar", "", "10%\r20%\r100%\ndone\n", "=", []string{qp, utf}, "", ""},
		{"progress bar at the end", "", "10%\r", "10%\r\n", []string{qp}, "", ""},
		{"CR CR LF", "", "a\r\r\nb\n", "=", []string{qp}, "", ""},
		{"NUL", "", strings.Repeat("text ", 50) + "\x00\n", "=", []string{qp}, "", ""},
		{"trailing white space", "", "a\rb \nc\t\n \n", "=", []string{qp}, "", ""},
		{"100,000 octets", "", long + "\n", "=", []string{qp}, "", ""},
		{"100,000 octets and UTF-8", "", long + "ü\n", "=", []string{qp, utf}, "", ""},
		{"UTF-8", "", "Grüße\n", "=", []string{bit8, utf}, "", envelope.Body8Bit},
		{"Latin-1", "", "Gr\xfc\xdfe\n", "=", []string{bit8, unknown}, "", envelope.Body8Bit},
		{"UTF-8 cut at the end", "", "Gr\xc3", "Gr\xc3\n", []string{bit8, unknown}, "", envelope.Body8Bit},
		{"UTF-8, its own header", "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n", "ü\n", "=", nil, "MIME-Version: 1.0\nMIME", envelope.Body8Bit},
		{"UTF-8, no encoding named", "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n", "ü\n", "=", []string{bit8}, "", envelope.Body8Bit},
		{"own type, CR", "Content-Type: text/html (x); charset=iso-8859-1\nContent-Transfer-Encoding: 8bit\n", "a\rb\xfc\n", "=", []string{qp, "iso-8859-1"}, "8bit", ""},
		{"binary", "", string(bin), "=", []string{b64, "application/octet-stream"}, "", ""},
		{"binary with a type", "Content-Type: image/png\n", string(bin), "=", []string{b64, "image/png"}, "octet", ""},
		{"UTF-16", "Content-Type: text/plain; charset=utf-16le\n", "h\x00i\x00\r\x00\n\x00", "=", []string{b64}, "", ""},
		{"multipart, CR and NUL", "Content-Type: multipart/mixed; boundary=b\n", "--b\r\n\r\na\rb\x00c\r\n--b--\r\n", "--b\n\na b c\n--b--\n", []string{"multipart"}, "Transfer", ""},
		{"multipart with 8-bit", "Content-Type: multipart/mixed; boundary=b\n", "ü\n", "=", nil, "Transfer", envelope.Body8Bit},
		{"two types", "Content-Type: text/plain\nContent-Type: text/html\n", "a\rb\n", "a b\n", nil, "Transfer", ""},
		{"late UTF-8", "", filler + "ü\n", "=", []string{bit8, utf}, "", envelope.Body8Bit},
		{"late Latin-1 behind UTF-8", "", "ü\n" + filler + "\xfc\n" + filler, "=", []string{bit8, unknown}, "", envelope.Body8Bit},
		{"late CR", "", filler + "1\r2\n" + filler, "=", []string{qp, utf}, "", ""},
		{"late CR, then Latin-1", "", filler + "1\r2\n" + filler + "\xfc\n", "=", []string{qp, unknown}, "", ""},
		{"late NUL behind UTF-8", "", "ü\n" + filler + "\x00", "ü\n" + filler + "\x00\n", []string{qp, utf}, "8bit", ""},
		{"late long line", "", filler + long, filler + long + "\n", []string{qp}, "", ""},
		{"late CR in multipart", "Content-Type: multipart/mixed; boundary=b\n", filler + "a\rb\n", filler + "a b\n", nil, "Transfer", ""},
	} {
		for _, n := range append(pieces, 65536) {
			d, err := take(t, c.head+"\n"+c.in, Fixup{Pipe: true}, Options{}, n, "bob@b.test")
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			want := c.want
			if want == "=" {
				want = c.in
			}
			head, body := decode(t, d)
			if body != want {
				t.Errorf("%s (pieces of %d): body differs: %d octets, want %d: %.80q", c.name, n, len(body), len(want), body)
			}
			for _, s := range c.has {
				if strings.Count(head, s) != 1 {
					t.Errorf("%s (pieces of %d): header lacks %q:\n%s", c.name, n, s, head)
				}
			}
			if c.not != "" && strings.Contains(head, c.not) {
				t.Errorf("%s (pieces of %d): header has %q:\n%s", c.name, n, c.not, head)
			}
			if d.env.Body != c.body {
				t.Errorf("%s (pieces of %d): body type %q, want %q", c.name, n, d.env.Body, c.body)
			}
		}
	}
}

// A body that its author has encoded is never encoded again.
func TestEncodedByAuthor(t *testing.T) {
	const head = "Content-Transfer-Encoding: base64\n\n"
	d, err := take(t, head+"aGk=\r\raGk=\x00\n", Fixup{Pipe: true}, Options{}, 5, "bob@b.test")
	if err != nil {
		t.Fatal(err)
	}
	if got := d.String(); got != head+"aGk=  aGk= \n" {
		t.Errorf("%q", got)
	}
}

func TestCRLFText(t *testing.T) {
	// A CRLF file with one progress bar: its line ends are line ends, its bare CR is kept.
	d, err := take(t, "Subject: x\r\n\r\na\r\n1\r2\r\n", Fixup{Pipe: true}, Options{}, 5, "bob@b.test")
	if err != nil {
		t.Fatal(err)
	}
	if _, body := decode(t, d); body != "a\n1\r2\n" {
		t.Errorf("%q", body)
	}
}

func TestRefusals(t *testing.T) {
	hops := strings.Repeat("Received: x\n", 51) + "\n"
	pipe := Fixup{Pipe: true}
	for _, c := range []struct {
		name, in string
		fix      Fixup
		o        Options
		to       []string
		code     string
		is       error
		exit     int
	}{
		{"no recipients", "a\n", pipe, Options{}, nil, "5.5.4", ErrNoRecipients, 64},
		{"no recipients in the header", "Subject: a\nTo: undisclosed-recipients:;\n\n", Fixup{Pipe: true, Extract: true}, Options{}, nil, "5.5.4", ErrNoRecipients, 64},
		{"bad recipient", "To: a b c\n\n", Fixup{Pipe: true, Extract: true}, Options{}, nil, "5.1.3", envelope.ErrAddress, 65},
		{"too many recipients", "a\n", pipe, Options{MaxRcpts: 2}, []string{"a@c.test", "b@c.test", "c@c.test"}, "5.5.3", ErrTooMany, 69},
		{"too many recipients in the header", "To: b@c.test, a@c.test\n\n", Fixup{Pipe: true, Extract: true}, Options{MaxRcpts: 2}, []string{"x@c.test"}, "5.5.3", ErrTooMany, 69},
		{"loop", hops, Fixup{}, Options{MaxHops: 50}, []string{"b@c.test"}, "5.4.6", ErrLoop, 69},
		{"too big", strings.Repeat("x\n", 100), pipe, Options{MaxSize: 100}, []string{"b@c.test"}, "5.3.4", ErrTooBig, 69},
		{"too big, late", strings.Repeat("x\n", 100000), pipe, Options{MaxSize: 100000}, []string{"b@c.test"}, "5.3.4", ErrTooBig, 69},
		{"endless header", "Subject: a\n" + strings.Repeat(" x\n", 1<<19), Fixup{}, Options{}, []string{"b@c.test"}, "5.3.4", ErrHeader, 69},
	} {
		for _, n := range []int{1 << 30, 1000} {
			_, err := take(t, c.in, c.fix, c.o, n, c.to...)
			var e *Error
			if !errors.As(err, &e) || e.Status.Code != c.code || !errors.Is(err, c.is) || e.ExitStatus() != c.exit {
				t.Errorf("%s: %v %+v, want %s, exit %d", c.name, err, e, c.code, c.exit)
			}
		}
	}
	if _, err := take(t, "To: b@c.test, a@c.test\n\n", Fixup{Pipe: true, Extract: true}, Options{MaxRcpts: 2}, 10, "a@c.test"); err != nil {
		t.Errorf("two recipients of two: %v", err)
	}
	if _, err := take(t, hops, Fixup{}, Options{MaxHops: 51}, 10, "b@c.test"); err != nil {
		t.Errorf("51 hops of 51: %v", err)
	}
	// A first line of many megabytes is a body, not a header without end.
	if _, err := take(t, strings.Repeat("x", 3<<20), pipe, Options{}, 65536, "b@c.test"); err != nil {
		t.Errorf("one long line: %v", err)
	}
}

type failingReader struct{ n int }

func (r *failingReader) Read(p []byte) (int, error) {
	if r.n == 0 {
		return 0, os.ErrDeadlineExceeded
	}
	r.n--
	for i := range p {
		p[i] = "x\n"[i&1]
	}
	return len(p), nil
}

func TestReadError(t *testing.T) {
	for _, n := range []int{0, 1, 5} {
		st := &memory{}
		m, err := New(Options{Store: st}).Begin(&envelope.Envelope{To: []envelope.Recipient{{Addr: "b@c.test"}}}, Fixup{Pipe: true})
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.ReadFrom(&failingReader{n})
		if !errors.Is(err, ErrRead) || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after %d reads: %v", n, err)
		}
		if _, err := m.Commit(); err == nil || st.open != 0 || len(st.done) != 0 {
			t.Errorf("after %d reads: commit %v, %d open, %d stored", n, err, st.open, len(st.done))
		}
	}
}

// TestSpool runs the restart through the real spool: one message in it at the end, none after a
// failure.
func TestSpool(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	if err := spool.Init(dir); err != nil {
		t.Fatal(err)
	}
	sp, err := spool.Open(dir, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer sp.Close()
	s := New(Options{Spool: sp, Hostname: "host.test", MaxSize: 1 << 20})
	env := &envelope.Envelope{From: "a@b.test", To: []envelope.Recipient{{Addr: "c@d.test"}}}
	m, err := s.Begin(env, Fixup{Pipe: true, Trace: &Trace{}})
	if err != nil {
		t.Fatal(err)
	}
	in := strings.Repeat("a line of text\n", 20000) + "late\rCR ü\n"
	if _, err := io.Copy(m, strings.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	id, err := m.Commit()
	if err != nil {
		t.Fatal(err)
	}
	names, _ := os.ReadDir(filepath.Join(dir, "incoming"))
	if len(names) != 1 || names[0].Name() != id {
		t.Fatalf("incoming holds %v, want %s", names, id)
	}
	b, err := os.ReadFile(filepath.Join(dir, "incoming", id))
	if err != nil {
		t.Fatal(err)
	}
	parts := bytes.SplitN(b, []byte("\n"), 3)
	if !bytes.Contains(parts[2], []byte("\tid "+id+";")) {
		t.Errorf("the trace line does not name %s:\n%.300s", id, parts[2])
	}
	_, body := decode(t, &memDraft{Buffer: *bytes.NewBuffer(parts[2])})
	if body != in {
		t.Errorf("body of %d octets, want %d", len(body), len(in))
	}
	m, err = s.Begin(&envelope.Envelope{To: env.To}, Fixup{Pipe: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = io.Copy(m, strings.NewReader(strings.Repeat(in, 10))); !errors.Is(err, ErrTooBig) {
		t.Fatalf("too big: %v", err)
	}
	if names, _ := os.ReadDir(filepath.Join(dir, "incoming")); len(names) != 1 {
		t.Errorf("after a refusal incoming holds %v", names)
	}
}

// discard is a Store that measures nothing but us.
type discard struct{}

func (discard) Create(env *envelope.Envelope) (Draft, error) {
	env.ID = "id0000000000000001"
	return discard{}, nil
}
func (discard) Write(p []byte) (int, error)    { return len(p), nil }
func (discard) Reread() (io.ReadCloser, error) { return nil, errors.ErrUnsupported }
func (discard) Commit() error                  { return nil }
func (discard) Abort() error                   { return nil }

func BenchmarkPipe(b *testing.B) {
	text := bytes.Repeat([]byte("seventy octets of plain text, as a log or a mail has them, and more.\n"), 1<<16)
	for _, c := range []struct {
		name string
		in   []byte
	}{
		{"clean", text},
		{"crlf", bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n"))},
		{"utf8", bytes.ReplaceAll(text, []byte("plain"), []byte("pläin"))},
		{"progress", bytes.ReplaceAll(text, []byte("log"), []byte("l\rg"))},
		{"binary", bytes.Repeat([]byte{0, 1, 2, 3, 250, 10, 65, 13}, 1<<19)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.in)))
			s := New(Options{Store: discard{}})
			for b.Loop() {
				m, err := s.Begin(&envelope.Envelope{To: []envelope.Recipient{{Addr: "a@b.test"}}}, Fixup{Pipe: true})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := m.ReadFrom(struct{ io.Reader }{bytes.NewReader(c.in)}); err != nil {
					b.Fatal(err)
				}
				if _, err := m.Commit(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
