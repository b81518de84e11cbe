package smtp_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"pennypost/internal/smtp"
)

// testTLS is a server's configuration and the pool that trusts it.
func testTLS(t testing.TB) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mx.x.test"}, DNSNames: []string{"mx.x.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}, pool
}

// talk is the client's side of a test, one line at a time.
type talk struct {
	t *testing.T
	net.Conn
	br *bufio.Reader
}

func newTalk(t *testing.T, c net.Conn) *talk {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &talk{t, c, bufio.NewReader(c)}
}

// ask sends line, if there is one, and returns the whole reply.
func (k *talk) ask(line string) string {
	k.t.Helper()
	if line != "" {
		if _, err := io.WriteString(k, line+"\r\n"); err != nil {
			k.t.Fatal(err)
		}
	}
	var all strings.Builder
	for {
		s, err := k.br.ReadString('\n')
		all.WriteString(s)
		if err != nil {
			k.t.Fatalf("after %q: %q: %v", line, all.String(), err)
		}
		if len(s) > 3 && s[3] == ' ' {
			return all.String()
		}
	}
}

func TestStartTLS(t *testing.T) {
	conf, pool := testTLS(t)
	b := &fakeBackend{}
	s := newServer(b)
	s.TLS = conf
	c := dialTCP(t, t.Context(), s)
	k := newTalk(t, c)
	k.ask("")
	if r := k.ask("EHLO c.test"); !strings.Contains(r, "250-STARTTLS\r\n") {
		t.Fatalf("STARTTLS not announced: %s", r)
	}
	k.ask("MAIL FROM:<a@x.test>")
	// Commands injected behind STARTTLS in clear text must not be run under TLS.
	if r := k.ask("STARTTLS\r\nRCPT TO:<evil@x.test>\r\nNOOP"); !strings.HasPrefix(r, "220 2.0.0") {
		t.Fatalf("STARTTLS: %s", r)
	}
	tc := tls.Client(c, &tls.Config{RootCAs: pool, ServerName: "mx.x.test"})
	k = newTalk(t, tc)
	// The state before STARTTLS is gone: no EHLO, no open transaction (RFC 3207 §4.2).
	if r := k.ask("MAIL FROM:<a@x.test>"); !strings.HasPrefix(r, "503 5.5.1 say EHLO") {
		t.Fatalf("first answer under TLS: %s", r)
	}
	if r := k.ask("EHLO c.test"); strings.Contains(r, "STARTTLS") {
		t.Fatalf("STARTTLS announced under TLS: %s", r)
	}
	if r := k.ask("STARTTLS"); !strings.HasPrefix(r, "503") {
		t.Fatalf("second STARTTLS: %s", r)
	}
	for _, step := range []struct{ say, want string }{
		{"MAIL FROM:<a@x.test>", "250"}, {"RCPT TO:<b@x.test>", "250"}, {"DATA", "354"}, {"text\r\n.", "250"}, {"QUIT", "221"},
	} {
		if r := k.ask(step.say); !strings.HasPrefix(r, step.want) {
			t.Errorf("%s: %s", step.say, r)
		}
	}
	if len(b.rcpts) != 1 || strings.Contains(b.rcpts[0], "evil") {
		t.Errorf("recipients %q", b.rcpts)
	}
	if len(b.refused) == 0 || !strings.HasPrefix(b.refused[0], "STARTTLS") {
		t.Errorf("the injection is not reported: %q", b.refused)
	}
}

// GNU SASL's client says STARTTLS before anything else. It tells us nothing that would not be
// forgotten anyhow.
func TestStartTLSWithoutHello(t *testing.T) {
	conf, pool := testTLS(t)
	s := newServer(&fakeBackend{})
	s.TLS = conf
	c := dialTCP(t, t.Context(), s)
	k := newTalk(t, c)
	k.ask("")
	if r := k.ask("STARTTLS"); !strings.HasPrefix(r, "220 2.0.0") {
		t.Fatalf("STARTTLS: %s", r)
	}
	k = newTalk(t, tls.Client(c, &tls.Config{RootCAs: pool, ServerName: "mx.x.test"}))
	if r := k.ask("EHLO c.test"); !strings.HasPrefix(r, "250-") {
		t.Errorf("EHLO: %s", r)
	}
}

// A handshake that fails is an error, however it fails, and nothing is said in clear after it.
func TestFailedHandshake(t *testing.T) {
	conf, _ := testTLS(t)
	for _, c := range []struct{ name, after string }{
		{"client gone", ""}, {"client cut off", "\x16\x03\x01"}, {"clear text", "EHLO again\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(&fakeBackend{})
			s.TLS = conf
			here, there := net.Pipe()
			done := make(chan error, 1)
			go func() { done <- s.ServeConn(context.Background(), there, smtp.Peer{}) }()
			k := newTalk(t, here)
			for _, l := range []string{"", "EHLO c.test", "STARTTLS"} {
				k.ask(l)
			}
			go func() {
				io.WriteString(here, c.after)
				if c.name != "clear text" {
					here.Close()
				}
			}()
			if rest, err := io.ReadAll(k.br); strings.Contains(string(rest), "421") {
				t.Errorf("said in clear: %q, %v", rest, err)
			}
			if err := <-done; err == nil || !strings.Contains(err.Error(), "TLS handshake") {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestImplicitTLS(t *testing.T) {
	conf, pool := testTLS(t)
	s := newServer(&fakeBackend{})
	s.TLS, s.Implicit = conf, true
	k := newTalk(t, tls.Client(dialTCP(t, t.Context(), s), &tls.Config{RootCAs: pool, ServerName: "mx.x.test"}))
	if r := k.ask(""); !strings.HasPrefix(r, "220 ") {
		t.Fatal(r)
	}
	if r := k.ask("EHLO c.test"); strings.Contains(r, "STARTTLS") {
		t.Fatal(r)
	}
	if r := k.ask("QUIT"); !strings.HasPrefix(r, "221") {
		t.Fatal(r)
	}
}

func TestTLSClientHelloInClearText(t *testing.T) {
	got := send(t, newServer(&fakeBackend{}), "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03\r\n")
	if codes(got) != "220 500" {
		t.Errorf("answered %q", got)
	}
}

func TestStopSaysGoodbye(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := newServer(&fakeBackend{})
	idle := newTalk(t, dialTCP(t, ctx, s))
	idle.ask("")
	busy := newTalk(t, dialTCP(t, ctx, s))
	for _, l := range []string{"", "EHLO c.test", "MAIL FROM:<a@x.test>", "RCPT TO:<b@x.test>", "DATA"} {
		busy.ask(l)
	}
	cancel()
	if r := idle.ask(""); r != "421 4.3.2 mx.x.test closing down\r\n" {
		t.Errorf("idle client is told %q", r)
	}
	// A message on its way is taken in whole.
	if r := busy.ask("text\r\n."); !strings.HasPrefix(r, "250 2.0.0") {
		t.Errorf("message in progress: %q", r)
	}
	if r := busy.ask(""); !strings.HasPrefix(r, "421 4.3.2") {
		t.Errorf("after the message: %q", r)
	}
}
