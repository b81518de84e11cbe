package pop3

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"io"
	"math"
	"net"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"pennypost/internal/message"
)

func decode64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func encode64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// reply is what a message becomes when it comes in pieces of n octets.
func reply(in string, n int, lines uint64) (out []byte, octets int64) {
	var w wire
	t := transfer{c: &session{}, left: lines, whole: lines == math.MaxUint64}
	done := false
	for p := []byte(in); len(p) > 0 && !done; p = p[min(n, len(p)):] {
		done = t.pass(bytes.Clone(p[:min(n, len(p))]), false)
	}
	w = t.w
	return w.end(t.c.out), w.octets
}

func TestWire(t *testing.T) {
	for _, c := range []struct {
		in, want string
		octets   int64
	}{
		{"", ".\r\n", 0},
		{"a\n", "a\r\n.\r\n", 3},
		{"a\r\n", "a\r\n.\r\n", 3},
		{"a\r\r\n", "a\r\r\n.\r\n", 4},
		{"a", "a\r\n.\r\n", 1},
		{"a\r", "a\r\r\n.\r\n", 2},
		{".\n..\n.a\n", "..\r\n...\r\n..a\r\n.\r\n", 3 + 4 + 4},
		{"\n\n", "\r\n\r\n.\r\n", 4},
		{"a\rb\x00\n", "a\rb\x00\r\n.\r\n", 6},
	} {
		for n := 1; n < 5; n++ {
			got, octets := reply(c.in, n, math.MaxUint64)
			if string(got) != c.want || octets != c.octets {
				t.Errorf("%q in pieces of %d: %q, %d octets; want %q, %d", c.in, n, got, octets, c.want, c.octets)
			}
		}
	}
}

func TestTop(t *testing.T) {
	for _, c := range []struct {
		in    string
		lines uint64
		want  string
	}{
		{"h\n\n1\n2\n", 0, "h\r\n\r\n"},
		{"h\n\n1\n2\n", 1, "h\r\n\r\n1\r\n"},
		{"h\n\n1\n2", 2, "h\r\n\r\n1\r\n2\r\n"},
		{"h\n\n1\n2\n", 9, "h\r\n\r\n1\r\n2\r\n"},
		{"h\r\n\r\n\r\n2\r\n", 1, "h\r\n\r\n\r\n"},
		{"h\n", 3, "h\r\n"},
		{"\n1\n2\n", 1, "\r\n1\r\n"},
		{"\r\r\n\n1\n2\n", 1, "\r\r\n\r\n1\r\n"},
	} {
		for n := 1; n < 6; n++ {
			if got, _ := reply(c.in, n, c.lines); string(got) != c.want+".\r\n" {
				t.Errorf("%d lines of %q in pieces of %d: %q, want %q", c.lines, c.in, n, got, c.want)
			}
		}
	}
}

// Property: a client that undoes the dots has the message as the CRLF view of the message package
// shows it, whatever pieces it came in, and TOP is a beginning of it.
func FuzzWire(f *testing.F) {
	f.Add([]byte("h\n\n.a\r\nb\r"), 3, uint64(1))
	f.Add([]byte("..\n\r\n"), 1, uint64(0))
	f.Fuzz(func(t *testing.T, in []byte, n int, lines uint64) {
		n = 1 + max(n, -n)&15
		out, octets := reply(string(in), n, math.MaxUint64)
		got, err := io.ReadAll(rawDots(out))
		if err != nil {
			t.Fatal(err)
		}
		var want bytes.Buffer
		if _, err := message.NewWire(bytes.NewReader(in), 0, int64(len(in)), -1).WriteTo(&want); err != nil {
			t.Fatal(err)
		}
		if int64(want.Len()) != octets {
			t.Fatalf("%d octets counted, %d are there", octets, want.Len())
		}
		if want.Len() > 0 && !bytes.HasSuffix(want.Bytes(), []byte("\n")) {
			want.WriteString("\r\n")
		}
		if !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("%q, want %q", got, want.Bytes())
		}
		topped, _ := reply(string(in), n, lines%8)
		if !bytes.HasPrefix(out, bytes.TrimSuffix(topped, []byte(".\r\n"))) {
			t.Fatalf("TOP %d: %q of %q", lines%8, topped, out)
		}
	})
}

// rawDots undoes the dots as a client does, and keeps every other octet. textproto's reader would
// change CR LF.
func rawDots(out []byte) io.Reader {
	var b bytes.Buffer
	for len(out) > 0 {
		i := bytes.Index(out, []byte("\n")) + 1
		line := out[:i]
		out = out[i:]
		if string(line) == ".\r\n" {
			break
		}
		if line[0] == '.' {
			line = line[1:]
		}
		b.Write(line)
	}
	if len(out) > 0 {
		b.WriteString("what follows the end: " + string(out))
	}
	return &b
}

func TestFormat(t *testing.T) {
	m := &entry{uid: 12, base: "1700.M1P2.host,S=3 é", guid: "AbC"}
	for _, c := range []struct{ format, want string }{
		{"%08Xu%08Xv", "0000000c6553f100"}, // Dovecot's default
		{"%v.%u", "1700000000.12"},
		{"%v-%u", "1700000000-12"},
		{"UID%u-%v", "UID12-1700000000"}, // Courier's look
		{"%Xu%UXv", "c6553F100"},
		{"%04u", "0012"},
		{"%1u", "1"}, // as Dovecot: a width without 0 cuts
		{"%f", "1700.M1P2.host,S=3+20+C3+A9"},
		{"%8f", "1700.M1P"},
		{"%Lg%%%Ug", "abc%ABC"},
		{"%06g", "000AbC"},
	} {
		f, err := ParseFormat(c.format)
		if err != nil {
			t.Errorf("%s: %v", c.format, err)
			continue
		}
		if got := string(f.append(nil, 1700000000, m)); got != c.want {
			t.Errorf("%s: %q, want %q", c.format, got, c.want)
		}
	}
	if got := string(Format{}.compile().append(nil, 1700000000, m)); got != "0000000c6553f100" {
		t.Errorf("zero Format: %q", got)
	}
	for _, bad := range []string{"", "%v", "x", "%", "%0", "%q", "%m", "%Xf", "%99999999999u", "a b%u", "%u\x7f"} {
		if _, err := ParseFormat(bad); err == nil {
			t.Errorf("%q is a format", bad)
		}
	}
}

// Property: whatever the format and the names, a unique-id has the octets that it may have.
func FuzzFormat(f *testing.F) {
	f.Add("%08Xu%08Xv", "1700.M1P2.host", "g")
	f.Add("%3f%Ug%%", "a\x00\xff", "é")
	f.Fuzz(func(t *testing.T, format, base, guid string) {
		p, err := ParseFormat(format)
		if err != nil {
			return
		}
		for _, c := range p.append(nil, 7, &entry{uid: 9, base: base, guid: guid}) {
			if c < 0x21 || c > 0x7e {
				t.Fatalf("%q in an id of %q", c, format)
			}
		}
	})
}

// tokenLogin is a login that takes no time, right or wrong.
const tokenLogin = "AUTH XOAUTH2 dXNlcj1hbGljZUBleGFtcGxlLnRlc3QBYXV0aD1CZWFyZXIgdDBrZW4BAQ==\r\n"

// Property: whatever a client sends, every reply is one line of at most 512 octets that begins
// with +OK or -ERR, or follows one of the replies that have several.
func FuzzSession(f *testing.F) {
	for _, s := range []string{
		tokenLogin + "STAT\r\nLIST\r\nUIDL\r\nRETR 1\r\nTOP 2 1\r\nDELE 1\r\nRSET\r\nNOOP\r\nQUIT\r\n",
		"CAPA\r\nLANG\r\nUTF8\r\n" + tokenLogin + "RETR 2\r\nQUIT\r\n",
		"AUTH PLAIN\r\nAGFsaWNlAHNlIGNyZXQ=\r\nLIST 2\r\nUIDL 9\r\n",
		"AUTH\r\nAUTH SCRAM-SHA-256 biwsbj1hbGljZSxyPWFiYw==\r\n*\r\nAPOP a b\r\nSTLS\r\n",
	} {
		f.Add([]byte(s))
	}
	d := newDrop(f, messages...)
	s, _ := testServer(f, d)
	s.TLS = nil
	s.Login.Passwords = nil // its delays after wrong passwords would be all that is tested
	f.Fuzz(func(t *testing.T, in []byte) {
		c, done := connect(t, t.Context(), s, stdio)
		r := textproto.NewReader(bufio.NewReader(c))
		go func() {
			_, _ = c.Write(in) // the server may have hung up
			_ = c.(interface{ CloseWrite() error }).CloseWrite()
		}()
		for multi := false; ; {
			line, err := r.ReadLine()
			if err != nil {
				break
			}
			switch {
			case len(line) > 510:
				t.Fatalf("%d octets: %q", len(line), line)
			case multi && line == ".":
				multi = false
			case multi, strings.HasPrefix(line, "+ "), strings.HasPrefix(line, "-ERR "):
			case strings.HasPrefix(line, "+OK "):
				for _, end := range []string{"this is what there is", "there is one", "these are the mechanisms", " messages", " octets", "top of message"} {
					multi = multi || strings.HasSuffix(line, end)
				}
			default:
				t.Fatalf("%q", line)
			}
		}
		<-done
		if d.locked {
			t.Fatal("the lock is not given back")
		}
	})
}

// TestShed: while a session is elsewhere, which may be for hours with TLS, the process that took the
// login has no password in its buffers, and what came behind the login is not lost.
func TestShed(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	go func() { _, _ = io.WriteString(client, "PASS se cret\r\nSTAT\r\n") }() // one write: all of it is read at once
	in := input{ctx: t.Context(), conn: server, timeout: time.Minute, flush: func() error { return nil }}
	if line, err := in.line(maxCommand); err != nil || string(line) != "PASS se cret" {
		t.Fatalf("%q, %v", line, err)
	}
	was := in.buf
	if rest := in.shed(); string(rest) != "STAT\r\n" || cap(in.buf) > 64 {
		t.Errorf("left %q in %d octets", rest, cap(in.buf))
	}
	if bytes.ContainsAny(was, "cret") {
		t.Errorf("the buffer still holds %q", was)
	}
	if line, err := in.line(maxCommand); err != nil || string(line) != "STAT" {
		t.Errorf("after it %q, %v", line, err)
	}
}
