package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// await returns when somebody listens at addr.
func await(t *testing.T, addr string, limit time.Duration) {
	t.Helper()
	for end := time.Now().Add(limit); ; {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// opendkim starts one in a mode (s signs, v verifies) and returns its address.
func opendkim(t *testing.T, s *site, mode string) string {
	t.Helper()
	prog := need(t, "opendkim")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	addr := freePort(t)
	host, port, _ := net.SplitHostPort(addr)
	internal := "" // loopback, whose mail is signed
	if mode == "v" {
		internal = "InternalHosts csl:192.0.2.1\n"
	}
	conf := filepath.Join(s.dir, "opendkim-"+mode)
	text := fmt.Sprintf("Mode %s\nSocket inet:%s@%s\nBackground no\nSyslog no\nUserID %s\nRequireSafeKeys no\nCanonicalization relaxed/simple\n"+
		"Domain example.test\nSelector test\nKeyFile %s\nTestPublicKeys %s\nSignHeaders From,To,Subject,Date,Message-ID\nOversignHeaders From,Date\n%s",
		mode, port, host, me.Username, filepath.Join(s.dir, "test.private"), filepath.Join(s.dir, "keys"), internal)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(prog, "-f", "-x", conf)
	start(t, cmd)
	t.Cleanup(func() { cmd.Process.Kill() }) // its own way to an end takes 5 seconds
	await(t, addr, 20*time.Second)
	return addr
}

// TestOpenDKIM has a message of ours signed on its way out and verified on its way in. The
// signature covers the Date and Message-ID that this server adds.
func TestOpenDKIM(t *testing.T) {
	s := newSite(t)
	if out, err := exec.Command(need(t, "opendkim-genkey"), "-b", "2048", "-s", "test", "-d", "example.test", "-D", s.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	record, err := os.ReadFile(filepath.Join(s.dir, "test.txt"))
	if err != nil {
		t.Fatal(err)
	}
	// The strings of the record, joined, behind its name.
	parts := strings.Split(string(record), `"`)
	key := ""
	for i := 1; i < len(parts); i += 2 {
		key += parts[i]
	}
	if err := os.WriteFile(filepath.Join(s.dir, "keys"), []byte("test._domainkey.example.test "+key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.configure(t, fmt.Sprintf("[[smtpd.milter]]\nsocket = \"inet:%s\"\nroles = [\"local\"]\n[[smtpd.milter]]\nsocket = \"inet:%s\"\nroles = [\"mx\"]\n",
		opendkim(t, s, "s"), opendkim(t, s, "v")))
	at := s.serve(t)
	for i, body := range []string{"text\r\n", strings.Repeat("a line of a message that fits no hold\r\n", 5000)} {
		message := "From: alice@example.test\r\nTo: bob@example.test\r\nSubject: a\r\n folded one\r\n\r\n" + body
		envelope := "EHLO c.test\r\nMAIL FROM:<alice@example.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n"
		if got := say(t, "unix", at["local"], envelope+message+".\r\nQUIT\r\n"); !strings.Contains(got, "queued as") {
			t.Fatalf("%q", got)
		}
		signed := s.taken(t, 1)[0]
		if !strings.Contains(signed, "\nDKIM-Signature: v=1; a=rsa-sha256;") || !strings.Contains(signed, "\nMessage-ID: <") {
			t.Fatalf("message %d is not signed: %.2000s", i, signed)
		}
		_, text, _ := strings.Cut(signed, "\n") // the envelope is two lines
		_, text, _ = strings.Cut(text, "\n")
		wire := strings.ReplaceAll(text, "\n", "\r\n")
		for _, c := range []struct{ text, want string }{
			{wire, "dkim=pass"},
			{strings.Replace(wire, "Subject: a", "Subject: b", 1), "dkim=fail"},
			{wire + "more\r\n", "dkim=fail"},
		} {
			if got := say(t, "tcp", at["mx"], envelope+c.text+".\r\nQUIT\r\n"); !strings.Contains(got, "queued as") {
				t.Fatalf("%q", got)
			}
			if seen := s.taken(t, 1)[0]; !strings.Contains(seen, "\nAuthentication-Results: ") || !strings.Contains(seen, c.want) {
				t.Errorf("message %d: want %s: %.1500s", i, c.want, seen)
			}
		}
	}
}

// say sends text and returns what the server said.
func say(t *testing.T, network, addr, text string) string {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(60 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%q %v", b, err)
	}
	return string(b)
}

// taken returns the messages in the spool and takes them away.
func (s *site) taken(t *testing.T, n int) []string {
	t.Helper()
	q := s.queued(t)
	if len(q) != n {
		t.Fatalf("%d messages in the spool, want %d", len(q), n)
	}
	files, err := filepath.Glob(filepath.Join(s.spool, "incoming", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	return q
}
