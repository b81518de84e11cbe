package smtpd

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

func testTLS(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
}

// client is one connection of a submission test.
type client struct {
	t *testing.T
	net.Conn
	br *bufio.Reader
}

func (f *fixture) connect(t *testing.T) *client {
	t.Helper()
	f.o.TLS = testTLS(t)
	if f.askCertificate {
		f.o.TLS.ClientAuth = tls.RequestClientCert
	}
	s, err := New(f.o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	sc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ServeConn(context.Background(), sc, f.peer)
	}()
	t.Cleanup(func() { c.Close(); <-done })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return &client{t, c, bufio.NewReader(c)}
}

func (c *client) startTLS() {
	c.Conn = tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true})
	c.br = bufio.NewReader(c.Conn)
}

// ask returns the last line of the reply.
func (c *client) ask(line string) string {
	c.t.Helper()
	if line != "" {
		if _, err := io.WriteString(c, strings.TrimSuffix(line, "\r\n")+"\r\n"); err != nil {
			c.t.Fatal(err)
		}
	}
	for {
		s, err := c.br.ReadString('\n')
		if err != nil {
			c.t.Fatalf("after %q: %q %v", line, s, err)
		}
		if s[3] == ' ' {
			return strings.TrimSuffix(s, "\r\n")
		}
	}
}

func plain(login, password string) string {
	return "AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00"+login+"\x00"+password))
}

func TestSubmissionNeedsTLSAndAuth(t *testing.T) {
	f := newFixture(Submission)
	c := f.connect(t)
	c.ask("")
	for _, step := range []struct{ say, want string }{
		{"EHLO c.test", "250 HELP"},
		{"MAIL FROM:<ann@home.test>", "530 5.7.0 say STARTTLS first"},
		{plain("ann", "secret"), "538 5.7.11"},
		{"STARTTLS", "220"},
	} {
		if got := c.ask(step.say); !strings.HasPrefix(got, step.want) {
			t.Fatalf("%s: %q, want %s", step.say, got, step.want)
		}
	}
	c.startTLS()
	for _, step := range []struct{ say, want string }{
		{"EHLO c.test", "250 HELP"},
		{"MAIL FROM:<ann@home.test>", "530 5.7.0 authentication required"},
		{plain("ann", "hunter2"), "535 5.7.8"},
		{plain("broken", "x"), "454 4.7.0"},
		{plain("ann", "secret"), "235"},
		{"MAIL FROM:<bob@home.test>", "550 5.7.1 ann@home.test may not send as bob@home.test"},
		{"MAIL FROM:<ann@far.test>", "550 5.7.1"},
		{"MAIL FROM:<broken@home.test>", "451 4.3.5"},
		{"MAIL FROM:<team@home.test>", "250"}, // an alias that names the user
		{"RSET", "250"},
		{"MAIL FROM:<>", "250"},
		{"RSET", "250"},
		{"MAIL FROM:<Ann+list@home.test>", "250"},
		{"RCPT TO:<nobody@home.test>", "550 5.1.1"},
		{"RCPT TO:<y@far.test>", "250"},
		{"DATA", "354"},
		{"Subject: x\r\n\r\ntext\r\n.", "250 2.0.0 queued as"},
		{"QUIT", "221"},
	} {
		if got := c.ask(step.say); !strings.HasPrefix(got, step.want) {
			t.Fatalf("%s: %q, want %s", step.say, got, step.want)
		}
	}
	if len(f.mem.msgs) != 1 {
		t.Fatal("no message")
	}
	m := f.mem.msgs[0]
	if o := m.env.Origin; o.Kind != "submit" || o.User != "ann@home.test" || o.Proto != "ESMTPSA" || !strings.HasPrefix(o.TLS, "TLSv1.3 TLS_") {
		t.Errorf("origin %+v", o)
	}
	for _, want := range []string{"with ESMTPSA\n", "\n\ttls TLS_", "\nDate: ", "\nMessage-ID: <"} {
		if !strings.Contains(m.text, want) {
			t.Errorf("message lacks %q:\n%s", want, m.text)
		}
	}
	log := f.log.String()
	if !strings.Contains(log, `msg="login refused" peer=192.0.2.7:4711 user=ann`) || strings.Contains(log, "hunter2") || strings.Count(log, "535") != 0 {
		t.Errorf("log: %s", log)
	}
}

func TestSubmissionsIsTLSFromTheStart(t *testing.T) {
	f := newFixture(Submissions)
	c := f.connect(t)
	c.startTLS()
	if got := c.ask(""); !strings.HasPrefix(got, "220 ") {
		t.Fatal(got)
	}
	c.ask("EHLO c.test")
	if got := c.ask(plain("ann", "secret")); !strings.HasPrefix(got, "235") {
		t.Error(got)
	}
}
