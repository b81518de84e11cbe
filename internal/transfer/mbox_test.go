package transfer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pennypost/internal/maildir"
)

// texts reads an mbox whole: "flags keywords date|text" of each message.
func texts(mbox string) (list []string, keys []string, err error) {
	r := newMboxReader("test", strings.NewReader(mbox), int64(len(mbox)))
	for {
		m, err := r.next()
		if errors.Is(err, io.EOF) {
			return list, keys, nil
		}
		if err != nil {
			return list, keys, err
		}
		b, err := io.ReadAll(m.Body)
		if err != nil {
			return list, keys, err
		}
		list = append(list, fmt.Sprintf("%s%s|%s", status(m.Flags, ^maildir.Flags(0)), strings.Join(m.Keywords, ","), b))
		keys = append(keys, m.Key)
	}
}

const from = "From a@b Sun Nov 22 05:00:00 2026\n"

func TestMboxReader(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []string
	}{
		{"one", from + "A: b\n\nx\n\n", []string{"|A: b\n\nx\n"}},
		{"no empty line at the end", from + "A: b\n\nx\n", []string{"|A: b\n\nx\n"}},
		{"no final newline", from + "A: b\n\nx", []string{"|A: b\n\nx"}},
		{"two", from + "A: b\n\nx\n\n" + from + "C: d\n\ny\n\n", []string{"|A: b\n\nx\n", "|C: d\n\ny\n"}},
		{"empty lines of a message", from + "A: b\n\n\nx\n\n\n" + from + "C: d\n\n", []string{"|A: b\n\n\nx\n\n", "|C: d\n\n"}},
		{"header alone", from + "A: b\n", []string{"|A: b\n"}},
		{"no header", from + "\nx\n\n", []string{"|\nx\n"}},
		{"quoted", from + "A: b\n\n>From x\n>>From y\n> From z\n\n", []string{"|A: b\n\nFrom x\n>From y\n> From z\n"}},
		{"no date", from + "A: b\n\n\nFrom here\n\n", []string{"|A: b\n\n\nFrom here\n"}},
		{"no empty line before", from + "A: b\n\nx\n" + from + "y\n\n", []string{"|A: b\n\nx\n" + from + "y\n"}},
		{"CRLF", "From a@b Sun Nov 22 05:00:00 2026\r\nStatus: R\r\nA: b\r\n\r\nx\r\n\r\nFrom c Sun Nov 22 05:00:00 +0100 2026\r\n\r\ny\r\n", []string{"R|A: b\r\n\r\nx\r\n", "|\r\ny\r\n"}},
		{"flags", from + "Status: RO\nX-Status: AFDT\nX-Keywords: a, $b\n c\nX-UID: 7\nA: b\n\n", []string{"RAFDTa,$b|A: b\n\n"}},
		{"Thunderbird", from + "X-Mozilla-Status: 0005\nX-Mozilla-Status2: 00000000\nX-Mozilla-Keys: w                \nA: b\n\n", []string{"RFw|A: b\n\n"}},
		{"Content-Length", from + "Content-Length: 45\nA: b\n\n" + "x\n\n" + from + "y\n>From\n" + "\n" + from + "C: d\n\n", []string{"|A: b\n\nx\n\n" + from + "y\n>From\n", "|C: d\n\n"}},
		{"a wrong Content-Length", from + "Content-Length: 7\nA: b\n\nx\n\n" + from + "C: d\n\n", []string{"|A: b\n\nx\n", "|C: d\n\n"}},
		{"a huge Content-Length", from + "Content-Length: 9223372036854775807\nA: b\n\nx\n\n", []string{"|A: b\n\nx\n"}},
		{"empty", "", nil},
	} {
		got, _, err := texts(c.in)
		if err != nil || fmt.Sprintf("%q", got) != fmt.Sprintf("%q", c.want) {
			t.Errorf("%s: %v\n got %q\nwant %q", c.name, err, got, c.want)
		}
	}
	if _, _, err := texts("Subject: x\n\n"); err == nil {
		t.Error("what is no mbox is taken for one")
	}
	// The same message twice is two messages, and each is known again.
	_, keys, err := texts(from + "\nx\n\n" + from + "\nx\n\n")
	if err != nil || len(keys) != 2 || keys[0] == keys[1] {
		t.Errorf("%q %v", keys, err)
	}
	_, again, err := texts(from + "Status: O\n\nx\n\n" + from + "X-UID: 3\n\nx\n\n" + from + "\ny\n")
	if err != nil || len(again) != 3 || again[0] != keys[0] || again[1] != keys[1] {
		t.Errorf("%q, before %q: %v", again, keys, err)
	}
}

// What is written is read back, whatever it holds; only a missing last line end is added.
func FuzzMbox(f *testing.F) {
	f.Add("A: b\n\nx\n", "Subject: y\n\nFrom a@b Sun Nov 22 05:00:00 2026\n\n\n")
	f.Add("", "From x\n")
	f.Add("\n\n\n", "A: b")
	f.Fuzz(func(t *testing.T, a, b string) {
		var out bytes.Buffer
		w := bufio.NewWriter(&out)
		var want []string
		for _, s := range []string{a, b} {
			// The fields of the mbox itself are not a message's, and CRLF is for the wire.
			low := strings.ToLower(s)
			for _, name := range []string{"status", "x-", "content-length"} {
				if strings.Contains(low, name) {
					return
				}
			}
			s = strings.ReplaceAll(s, "\r", "")
			w.WriteString(from)
			if err := mboxText(w, bufio.NewReader(strings.NewReader(s))); err != nil {
				t.Fatal(err)
			}
			if s != "" && !strings.HasSuffix(s, "\n") {
				s += "\n"
			}
			if !strings.Contains(s, "\n\n") && !strings.HasPrefix(s, "\n") {
				s += "\n" // the empty line behind a header
			}
			want = append(want, "|"+s)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		got, _, err := texts(out.String())
		if err != nil || fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
			t.Errorf("%v\n got %q\nwant %q\n in %q", err, got, want, out.String())
		}
	})
}

// FuzzMboxReader reads anything; each octet is read once or twice, not more.
func FuzzMboxReader(f *testing.F) {
	f.Add(from + "Content-Length: 3\n\nx\n\n" + from + "Status: R\n\n>From x\n")
	f.Fuzz(func(t *testing.T, in string) {
		list, keys, err := texts(in)
		if err == nil && in != "" && len(list) == 0 {
			t.Errorf("%q: nothing", in)
		}
		seen := make(map[string]bool)
		for _, k := range keys {
			if seen[k] {
				t.Errorf("%q: two messages have the key %s", in, k)
			}
			seen[k] = true
		}
	})
}

func TestMboxDirectory(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"inbox", "Sent.mbox", "Work.sbd/2026", "Work.msf", ".hidden"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o700); err != nil {
			t.Fatal(err)
		}
		text := from + "\n" + f + "\n"
		if f == "Work.msf" {
			text = "// <!-- mork -->\n"
		}
		if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, err := OpenMbox(dir)
	if err != nil {
		t.Fatal(err)
	}
	names, err := m.Mailboxes(context.Background())
	if err != nil || strings.Join(names, " ") != "Sent Work/2026 INBOX" {
		t.Errorf("%q %v", names, err)
	}
}
