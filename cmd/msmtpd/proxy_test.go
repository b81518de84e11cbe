package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// from connects from an address of our own, sends text, and returns what the server said.
func from(t *testing.T, local, addr, text string) string {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	var c net.Conn
	var err error
	for end := time.Now().Add(10 * time.Second); ; {
		if c, err = d.Dial("tcp", addr); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(c)
	return string(b)
}

func TestProxyProtocol(t *testing.T) {
	s := newSite(t)
	s.configure(t, "smtpd.proxy_from = [\"127.0.0.0/8\"]\n")
	at := s.serve(t)
	const header = "PROXY TCP4 192.0.2.9 198.51.100.1 4711 25\r\n"
	if got := from(t, "127.0.0.1", at["mx"], header+fmt.Sprintf(oneMessage, "proxy")); !strings.Contains(got, "queued as") {
		t.Fatalf("%q", got)
	}
	q := s.queued(t)
	if len(q) != 1 || !strings.Contains(q[0], `"peer":"192.0.2.9:4711"`) || !strings.Contains(q[0], "Received: from c.test ([192.0.2.9])") {
		t.Errorf("the client is not the one the proxy named: %q", q)
	}
	if got := from(t, "127.0.0.1", at["mx"], "EHLO c.test\r\nQUIT\r\n"); got != "" {
		t.Errorf("without a header: %q", got)
	}

	// Ahead of TLS where TLS comes first.
	c, err := net.Dial("tcp", at["submissions"])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, header); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(tls.Client(c, &tls.Config{InsecureSkipVerify: true})).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "220 ") {
		t.Errorf("over TLS: %q %v", line, err)
	}
}

func TestProxyFromStrangers(t *testing.T) {
	s := newSite(t)
	s.configure(t, "smtpd.proxy_from = [\"192.0.2.1\"]\n")
	at := s.serve(t)
	got := from(t, "127.0.0.1", at["mx"], "PROXY TCP4 192.0.2.1 198.51.100.1 4711 25\r\n"+fmt.Sprintf(oneMessage, "stranger"))
	if !strings.Contains(got, "500 5.5.1 unknown command\r\n") {
		t.Errorf("%q", got)
	}
	if q := s.queued(t); len(q) != 1 || !strings.Contains(q[0], `"peer":"127.0.0.1:`) {
		t.Errorf("spool: %q", q)
	}
}

// TestOneClientCannotTakeAll: a client over its share is turned away in SMTP's words, on each port;
// others, trusted networks and this host are not.
func TestOneClientCannotTakeAll(t *testing.T) {
	s := newSite(t)
	s.configure(t, "smtpd.per_client = 2\nsmtpd.proxy_from = [\"127.0.0.7\"]\npolicy.trusted = [\"198.51.100.0/24\"]\n")
	at := s.serve(t)
	open := func(local, header, role string) string {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
		c, err := d.Dial("tcp", at[role])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, header); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			t.Fatalf("%q %v", line, err)
		}
		return line
	}
	from(t, "127.0.0.1", at["mx"], "QUIT\r\n") // waits until it serves
	for _, c := range []struct{ client, role, want string }{
		{"192.0.2.9", "mx", "220 "},
		{"192.0.2.9", "submission", "220 "},
		{"192.0.2.9", "mx", "421 4.7.0 mx.example.test too many sessions from your address"},
		{"192.0.2.9", "submission", "421 4.7.0 "},
		{"192.0.2.10", "mx", "220 "},
		{"198.51.100.5", "mx", "220 "}, {"198.51.100.5", "mx", "220 "}, {"198.51.100.5", "mx", "220 "},
	} {
		if got := open("127.0.0.7", "PROXY TCP4 "+c.client+" 203.0.113.1 4711 25\r\n", c.role); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %q, want %q", c.client, got, c.want)
		}
	}
	for range 4 {
		if got := open("127.0.0.1", "", "mx"); !strings.HasPrefix(got, "220 ") {
			t.Errorf("this host: %q", got)
		}
	}
}

func TestCurlHAProxy(t *testing.T) {
	curl := need(t, "curl")
	s := newSite(t)
	s.configure(t, "smtpd.proxy_from = [\"127.0.0.1\"]\n")
	at := s.serve(t)
	cmd := exec.Command(curl, "-sS", "-m", "20", "--haproxy-protocol", "smtp://"+at["mx"], "--mail-from", "x@far.test", "--mail-rcpt", "bob@example.test", "-T", "-")
	cmd.Stdin = strings.NewReader("Subject: curl\r\n\r\ntext\r\n")
	if out, err := cmd.CombinedOutput(); err != nil || len(s.queued(t)) != 1 {
		t.Errorf("%v: %s", err, out)
	}
}

// TestHAProxy puts the real one in front, with both versions of the protocol.
func TestHAProxy(t *testing.T) {
	prog := need(t, "haproxy")
	s := newSite(t)
	s.configure(t, "smtpd.proxy_from = [\"127.0.0.1\"]\n")
	at := s.serve(t)
	front := []string{freePort(t), freePort(t)}
	conf := filepath.Join(s.dir, "haproxy.cfg")
	text := "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n"
	for i, send := range []string{"send-proxy", "send-proxy-v2 proxy-v2-options unique-id,crc32c"} {
		text += fmt.Sprintf("listen v%d\n bind %s\n unique-id-format %%ci-%%cp\n server s %s %s\n", i+1, front[i], at["mx"], send)
	}
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, exec.Command(prog, "-db", "-f", conf))
	for i, addr := range front {
		client := fmt.Sprintf("127.0.0.%d", i+7)
		got := from(t, client, addr, fmt.Sprintf(oneMessage, "haproxy"))
		if !strings.Contains(got, "queued as") {
			t.Fatalf("version %d: %q", i+1, got)
		}
		q := strings.Join(s.queued(t), "\n")
		if !strings.Contains(q, `"peer":"`+client+":") || !strings.Contains(q, "Received: from c.test (["+client+"])") {
			t.Errorf("version %d: the client is not seen: %s", i+1, q)
		}
	}
}
