package imapclient

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pennypost/internal/mailtest"
)

// server plays a script: a line "C: x" must come, all others go out. It returns a client
// whose greeting has been read, and what went wrong at the server's end.
func server(t *testing.T, o Options, script string) (*Client, func() error) {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() {
		defer theirs.Close()
		r := bufio.NewReader(theirs)
		for _, line := range strings.Split(strings.TrimSuffix(script, "\n"), "\n") {
			want, ok := strings.CutPrefix(line, "C: ")
			if !ok {
				if line == "..." { // for ever
					_, err := io.Copy(io.Discard, r)
					done <- err
					return
				}
				if _, err := fmt.Fprintf(theirs, "%s\r\n", line); err != nil {
					done <- err
					return
				}
				continue
			}
			got, err := r.ReadString('\n')
			if err != nil || strings.TrimRight(got, "\r\n") != want {
				done <- fmt.Errorf("%q came, not %q (%v)", got, want, err)
				return
			}
		}
		done <- nil
	}()
	if o.Security == Implicit {
		o.Security = Plain
	}
	c := newClient(context.Background(), ours, o)
	t.Cleanup(func() { ours.Close() })
	return c, func() error { return <-done }
}

func TestLogin(t *testing.T) {
	for _, c := range []struct {
		name, script string
		ok           bool
	}{
		{"SASL-IR", "* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] hi\nC: a1 AUTHENTICATE PLAIN AGFubgBzZWMicmV0\na1 OK [CAPABILITY IMAP4rev1 X] in\n", true},
		{"PLAIN", "* OK hi\nC: a1 CAPABILITY\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\na1 OK\nC: a2 AUTHENTICATE PLAIN\n+ \nC: AGFubgBzZWMicmV0\na2 OK in\nC: a3 CAPABILITY\n* CAPABILITY X\na3 OK\n", true},
		{"LOGIN", "* OK [CAPABILITY IMAP4rev1] hi\nC: a1 LOGIN \"ann\" \"sec\\\"ret\"\na1 OK [CAPABILITY X] in\n", true},
		{"LOGINDISABLED", "* OK [CAPABILITY IMAP4rev1 LOGINDISABLED] hi\n", false},
		{"refused", "* OK [CAPABILITY IMAP4rev1] hi\nC: a1 LOGIN \"ann\" \"sec\\\"ret\"\na1 NO [AUTHENTICATIONFAILED] no\n", false},
		{"BYE", "* BYE overloaded\n", false},
	} {
		cl, done := server(t, Options{Security: Plain, Insecure: true}, c.script)
		err := cl.open()
		if err == nil {
			err = cl.Login("ann", `sec"ret`, "")
		}
		if (err == nil) != c.ok || c.ok && !cl.Can("x") && !cl.Can("X") {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := done(); err != nil {
			t.Errorf("%s: server: %v", c.name, err)
		}
	}
	cl, _ := server(t, Options{Security: Plain}, "* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi\n")
	if err := cl.open(); err != nil {
		t.Fatal(err)
	}
	if err := cl.Login("ann", "x", ""); !errors.Is(err, ErrClear) {
		t.Errorf("a password in the clear: %v", err)
	}
}

// What an attacker writes before TLS is not taken for the server's.
func TestStartTLSInjection(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		defer theirs.Close()
		fmt.Fprint(theirs, "* OK hi\r\n")
		if _, err := bufio.NewReader(theirs).ReadString('\n'); err == nil {
			fmt.Fprint(theirs, "a1 OK go\r\n* CAPABILITY AUTH=PLAIN\r\n")
		}
	}()
	c := newClient(context.Background(), ours, Options{Security: StartTLS})
	if err := c.open(); err == nil || !strings.Contains(err.Error(), "in the clear") {
		t.Errorf("%v", err)
	}
}

// A greeting that says we are logged in would keep TLS away.
func TestPreauthBeforeTLS(t *testing.T) {
	c, _ := server(t, Options{Security: StartTLS}, "* PREAUTH hi\nC: a1 STARTTLS\na1 OK go\n...\n")
	if err := c.open(); err == nil || !strings.Contains(err.Error(), "before TLS") {
		t.Errorf("%v", err)
	}
}

// Servers that tell of more than there can be do not fill the memory.
func TestBounds(t *testing.T) {
	words := make(map[string]string)
	var flags []string
	for i := range maxWords + 10 {
		flags = append(flags, fmt.Sprint("k", i))
	}
	list := known(words, append(flags, strings.Repeat("x", maxWord+1), "k1"))
	if len(list) != maxWords+1 || len(words) != maxWords || list[maxWords] != "k1" {
		t.Errorf("%d flags, %d words", len(list), len(words))
	}
	if got := known(words, []string{}); got == nil {
		t.Error("no flags are not unknown ones")
	}
	const line = 900_000
	script := "* PREAUTH [CAPABILITY X] hi\nC: a1 LIST \"\" \"*\"\n" + strings.Repeat("* LIST () \"/\" \""+strings.Repeat("a", line)+"\"\n", maxNames/line+2) + "a1 OK done\n"
	c, _ := server(t, Options{}, script)
	if err := c.open(); err != nil {
		t.Fatal(err)
	}
	if list, err := c.List(); err == nil {
		t.Errorf("%d names", len(list))
	}
}

func TestFetch(t *testing.T) {
	c, done := server(t, Options{}, `* PREAUTH [CAPABILITY IMAP4rev1] hi
C: a1 EXAMINE "Entw&APw-rfe x"
* 2 EXISTS
* OK [UIDVALIDITY 7] x
* OK [UIDNEXT 12] x
* FLAGS (\Seen)
* OK [PERMANENTFLAGS (\Seen \*)] x
a1 OK [READ-ONLY] done
C: a2 UID FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE)
* 1 FETCH (UID 9 FLAGS (\Seen $x) INTERNALDATE " 1-Feb-1994 21:52:25 -0800" RFC822.SIZE 4)
* 2 FETCH (RFC822.SIZE 3 UID 11 INTERNALDATE "11-Feb-1994 21:52:25 -0800" FLAGS () X-NEW ("a" (b {2}
xy)))
a2 OK done
C: a3 UID FETCH 9 (UID BODY.PEEK[])
* 1 FETCH (UID 9 BODY[] {4}
a
b)
a3 OK
C: a4 UID FETCH 10 (UID BODY.PEEK[])
C: a5 UID FETCH 11 (UID BODY.PEEK[])
* 1 FETCH (FLAGS (\Flagged))
* 2 FETCH (UID 11 BODY[] "xyz")
a4 OK nothing
a5 OK
C: a6 LOGOUT
* BYE
`)
	if err := c.open(); err != nil {
		t.Fatal(err)
	}
	st, err := c.Select("Entwürfe x", true)
	if err != nil || st != (Status{7, 12, 2}) {
		t.Fatalf("%+v %v", st, err)
	}
	list, err := c.Messages()
	if err != nil || len(list) != 2 || list[0].UID != 9 || !slices.Equal(list[0].Flags, []string{`\Seen`, "$x"}) || list[0].Date.Unix() != 760168345 || list[1].Size != 3 {
		t.Fatalf("%+v %v", list, err)
	}
	var got []string
	err = c.Fetch([]uint32{9, 10, 11}, func(uid uint32, body io.Reader, size int64) error {
		b, err := io.ReadAll(body)
		got = append(got, fmt.Sprint(uid, string(b), size))
		return err
	})
	if err != nil || !slices.Equal(got, []string{"9a\r\nb4", "11xyz3"}) {
		t.Fatalf("%q %v", got, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := done(); err != nil {
		t.Error(err)
	}
}

// RFC 9051 §5.5: commands that are under way at once may end in any order, each of them once.
func TestFetchOutOfOrder(t *testing.T) {
	const script = "* OK [CAPABILITY X] hi\nC: a1 UID FETCH 1 (UID BODY.PEEK[])\n* 1 FETCH (UID 1 BODY[] {1}\na)\na1 OK\n" +
		"C: a2 UID FETCH 2 (UID BODY.PEEK[])\nC: a3 UID FETCH 3 (UID BODY.PEEK[])\n* 3 FETCH (UID 3 BODY[] {1}\nc)\na3 OK\n"
	for _, s := range []struct {
		name, rest string
		ok         bool
	}{
		{"later first", "* 2 FETCH (UID 2 BODY[] {1}\nb)\na2 OK\n", true},
		{"one twice", "a3 OK\n", false},
		{"none of ours", "a4 OK\n", false},
	} {
		c, done := server(t, Options{Timeout: 10 * time.Second}, script+s.rest)
		if err := c.open(); err != nil {
			t.Fatal(err)
		}
		got := ""
		err := c.Fetch([]uint32{1, 2, 3}, func(uid uint32, body io.Reader, _ int64) error {
			b, err := io.ReadAll(body)
			got += fmt.Sprint(uid, string(b), " ")
			return err
		})
		if (err == nil) != s.ok || s.ok && got != "1a 3c 2b " {
			t.Errorf("%s: %q %v", s.name, got, err)
		}
		if err := done(); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

// A server that lies, is slow, or says too much ends the connection and costs little.
func TestBadServers(t *testing.T) {
	fetch := func(c *Client) error {
		return c.Fetch([]uint32{1}, func(_ uint32, body io.Reader, _ int64) error {
			_, err := io.Copy(io.Discard, body)
			return err
		})
	}
	messages := func(c *Client) error {
		if _, err := c.Select("INBOX", true); err != nil {
			return err
		}
		_, err := c.Messages()
		return err
	}
	for name, s := range map[string]struct {
		script string
		do     func(*Client) error
	}{
		"silent":                 {"* OK [CAPABILITY X] hi\nC: a1 UID FETCH 1 (UID BODY.PEEK[])\n...\n", fetch},
		"stops in a message":     {"* OK [CAPABILITY X] hi\nC: a1 UID FETCH 1 (UID BODY.PEEK[])\n* 1 FETCH (UID 1 BODY[] {100}\nx\n...\n", fetch},
		"huge message":           {"* OK [CAPABILITY X] hi\nC: a1 UID FETCH 1 (UID BODY.PEEK[])\n* 1 FETCH (UID 1 BODY[] {99999999999}\n", fetch},
		"another message":        {"* OK [CAPABILITY X] hi\nC: a1 UID FETCH 1 (UID BODY.PEEK[])\n* 1 FETCH (UID 2 BODY[] {1}\nx)\na1 OK\n", fetch},
		"ends in a message":      {"* OK [CAPABILITY X] hi\nC: a1 UID FETCH 1 (UID BODY.PEEK[])\n* 1 FETCH (UID 1 BODY[] {9}\nx\n", fetch},
		"wrong tag":              {"* OK [CAPABILITY X] hi\nC: a1 UID FETCH 1 (UID BODY.PEEK[])\na9 OK\n", fetch},
		"no IMAP":                {"* OK [CAPABILITY X] hi\nC: a1 UID FETCH 1 (UID BODY.PEEK[])\nHTTP/1.1 400 Bad\n", fetch},
		"deep lists":             {"* OK [CAPABILITY X] hi\nC: a1 UID FETCH 1 (UID BODY.PEEK[])\n* 1 FETCH (X " + strings.Repeat("(", 200) + "\n", fetch},
		"BYE":                    {"* OK [CAPABILITY X] hi\nC: a1 UID FETCH 1 (UID BODY.PEEK[])\n* BYE tired\n", fetch},
		"more than there are":    {"* OK [CAPABILITY X] hi\nC: a1 EXAMINE INBOX\n* 1 EXISTS\na1 OK\nC: a2 UID FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE)\n" + strings.Repeat("* 1 FETCH (UID 1 FLAGS ())\n", 10_100), messages},
		"four thousand millions": {"* OK [CAPABILITY X] hi\nC: a1 EXAMINE INBOX\n* 4294967295 EXISTS\na1 OK\n", messages},
	} {
		c, _ := server(t, Options{Timeout: 100 * time.Millisecond, MaxMessage: 1000}, s.script)
		if err := c.open(); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := s.do(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestAppend(t *testing.T) {
	const head = "* OK [CAPABILITY X%s] hi\nC: a1 APPEND INBOX (\\Seen) \" 1-Feb-1994 21:52:25 +0000\" {5%s}\n%sC: a\nC: bc\na1 OK [APPENDUID 3 12] done\n"
	for _, c := range []struct{ caps, plus, asked string }{{"", "", "+ go\n"}, {" LITERAL+", "+", ""}, {" LITERAL-", "+", ""}} {
		cl, done := server(t, Options{}, fmt.Sprintf(head, c.caps, c.plus, c.asked))
		if err := cl.open(); err != nil {
			t.Fatal(err)
		}
		uid, err := cl.Append("INBOX", []string{`\Seen`}, time.Unix(760139545, 0).UTC(), 5, strings.NewReader("a\r\nbc"))
		if err != nil || uid != 12 {
			t.Errorf("%q: %d %v", c.caps, uid, err)
		}
		if err := done(); err != nil {
			t.Errorf("%q: %v", c.caps, err)
		}
	}
	cl, _ := server(t, Options{}, "* OK [CAPABILITY LITERAL+] hi\n...\n")
	if err := cl.open(); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Append("INBOX", nil, time.Time{}, 9, strings.NewReader("short")); err == nil || cl.dead == nil {
		t.Errorf("a message that is too short: %v", err)
	}
}

// A context that ends frees whoever waits.
func TestCancel(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithCancel(context.Background())
	c := newClient(ctx, ours, Options{})
	cancel()
	if err := c.open(); err == nil {
		t.Error("opened")
	}
}

func TestDovecot(t *testing.T) {
	dir, err := os.MkdirTemp("", "imapclient")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c, err := Over(context.Background(), mailtest.Dovecot(t, dir), Options{Security: Plain})
	if err != nil || !c.LoggedIn() {
		t.Fatal(err)
	}
	if err := c.Create("Entwürfe/alt"); err != nil {
		t.Fatal(err)
	}
	if err := c.Create("Entwürfe/alt"); err != nil {
		t.Errorf("again: %v", err)
	}
	when := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	for i := range 50 {
		body := fmt.Sprintf("Subject: %d\r\n\r\n%s", i, strings.Repeat("x\r\n", i*100))
		uid, err := c.Append("Entwürfe/alt", []string{`\Seen`, "$k"}, when, int64(len(body)), strings.NewReader(body))
		if err != nil || uid != uint32(i+1) {
			t.Fatalf("%d %v", uid, err)
		}
	}
	boxes, err := c.List()
	if err != nil || !slices.ContainsFunc(boxes, func(m Mailbox) bool { return m.Name == "Entwürfe/alt" && m.Delimiter == '/' }) {
		t.Fatalf("%+v %v", boxes, err)
	}
	st, err := c.Select("Entwürfe/alt", false)
	if err != nil || st.Exists != 50 || st.Next != 51 || st.Validity == 0 {
		t.Fatalf("%+v %v", st, err)
	}
	list, err := c.Messages()
	if err != nil || len(list) != 50 || !list[7].Date.Equal(when) || !slices.Contains(list[7].Flags, "$k") {
		t.Fatalf("%d %v", len(list), err)
	}
	var uids []uint32
	sizes := make(map[uint32]int64)
	for _, m := range list {
		uids = append(uids, m.UID)
		sizes[m.UID] = m.Size
	}
	n := 0
	// Dovecot works on several commands at once and may send a later message first.
	err = c.Fetch(uids, func(uid uint32, body io.Reader, size int64) error {
		b, err := io.ReadAll(body)
		if int64(len(b)) != size || size != sizes[uid] || !strings.HasPrefix(string(b), fmt.Sprintf("Subject: %d\r\n", uid-1)) {
			t.Errorf("message %d: %d octets, %d, %d", uid, len(b), size, sizes[uid])
		}
		delete(sizes, uid) // each comes once
		n++
		return err
	})
	if err != nil || n != 50 {
		t.Fatalf("%d: %v", n, err)
	}
	if err := c.StoreFlags(3, []string{`\Deleted`}); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzClient(f *testing.F) {
	f.Add("* OK [CAPABILITY A] x\r\na1 OK\r\n* LIST (\\X) \"/\" \"a\"\r\na1 OK\r\na2 OK x\r\n* 1 FETCH (UID 1 BODY[] {1}\r\nx)\r\na3 OK\r\n")
	f.Fuzz(func(t *testing.T, in string) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			go io.Copy(io.Discard, theirs)
			theirs.Write([]byte(in))
		}()
		c := newClient(context.Background(), ours, Options{Security: Plain, MaxMessage: 1000, Timeout: time.Second})
		defer ours.Close()
		if c.open() != nil {
			return
		}
		c.List()
		c.Select("x", true)
		c.Messages()
		c.Fetch([]uint32{1, 2}, func(_ uint32, b io.Reader, size int64) error {
			if n, err := io.Copy(io.Discard, b); err == nil && n != size {
				t.Errorf("%d octets of %d", n, size)
			}
			return nil
		})
	})
}
