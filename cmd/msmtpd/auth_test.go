package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"pennypost/internal/mailtest"
)

// authSite is a site whose users have every way to log in.
func authSite(t *testing.T) *site {
	t.Helper()
	in, err := mailtest.NewInstance(mailtest.InstanceOptions{Extra: `
tls.client_ca = "client-ca.pem"
smtpd.senders = "senders"
accounts.certificates = "certificates"
accounts.token_command = ["/bin/sh", "-c", "read t; if [ \"$t\" = t0ken ]; then echo alice@example.test; else exit 77; fi"]
[[tls.certificate]]
cert = "second.pem"
key = "second.pem"
`})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	ca, caKey := newCertificate(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil)
	alice, aliceKey := newCertificate(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "Alice"}, EmailAddresses: []string{"alice@example.test"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca, caKey)
	second, secondKey := newCertificate(t, &x509.Certificate{Subject: pkix.Name{CommonName: "second"}, DNSNames: []string{"smtp.second.test"}}, nil, nil)
	for name, text := range map[string]string{
		"client-ca.pem": certPEM(ca), "alice.pem": certPEM(alice) + keyPEM(t, aliceKey), "second.pem": certPEM(second) + keyPEM(t, secondKey),
		"senders": "alice: news@far.test\n", "certificates": "bob: cn:Nobody\n",
	} {
		if err := os.WriteFile(filepath.Join(in.Dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{dir: in.Dir, bin: filepath.Join(in.Dir, "msmtpd"), config: in.Config, spool: in.Spool}
	if err := os.Symlink(self, s.bin); err != nil {
		t.Fatal(err)
	}
	return s
}

func newCertificate(t *testing.T, tmpl, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = big.NewInt(7), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent, parentKey = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func certPEM(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

func keyPEM(t *testing.T, k *ecdsa.PrivateKey) string {
	t.Helper()
	b, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}))
}

func (s *site) log(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestAuthClients logs in with other people's programs, once with each mechanism they know.
func TestAuthClients(t *testing.T) {
	t.Parallel()
	s := authSite(t)
	at := s.serve(t)
	_, port, _ := net.SplitHostPort(at["submission"])
	msg := filepath.Join(s.dir, "mail.txt")
	if err := os.WriteFile(msg, []byte("Subject: hi\r\n\r\ntext\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	alicePEM := filepath.Join(s.dir, "alice.pem")
	swaks := func(mechanism, password string) []string {
		return []string{"swaks", "--server", at["submission"], "--tls", "--auth", mechanism, "--auth-user", "alice@example.test", "--auth-password", password, "-f", "alice@example.test", "-t", "x@far.test"}
	}
	curl := func(more ...string) []string {
		return append([]string{"curl", "-sS", "-k", "smtps://" + at["submissions"], "--mail-from", "news@far.test", "--mail-rcpt", "x@far.test", "-T", msg}, more...)
	}
	msmtp := func(mechanism, password string, more ...string) []string {
		return append([]string{"msmtp", "--host=127.0.0.1", "--port=" + port, "--tls=on", "--tls-certcheck=off", "--auth=" + mechanism,
			"--user=alice@example.test", "--passwordeval=echo " + password, "--from=alice@example.test", "x@far.test"}, more...)
	}
	python := func(mechanism, password string) []string {
		return []string{"python3", "-c", `
import smtplib, ssl, sys
c = ssl.create_default_context(); c.check_hostname = False; c.verify_mode = ssl.CERT_NONE
s = smtplib.SMTP("127.0.0.1", int(sys.argv[1])); s.starttls(context=c); s.ehlo()
s.user, s.password = "alice@example.test", sys.argv[3]
s.auth(sys.argv[2], {"PLAIN": s.auth_plain, "LOGIN": s.auth_login}[sys.argv[2]])
s.sendmail("alice@example.test", ["x@far.test"], b"Subject: hi\r\n\r\ntext\r\n")
s.quit()
`, port, mechanism, password}
	}
	// gsasl logs in and sends nothing; it knows channel bindings.
	gsasl := func(mechanism, password string) []string {
		return []string{"gsasl", "--smtp", "--connect", at["submission"], "--no-cb", "--mechanism", mechanism,
			"--authentication-id", "alice@example.test", "--authorization-id", "", "--password", password, "--x509-ca-file="}
	}
	bound := gsasl("SCRAM-SHA-256-PLUS", "secret")
	bound = append(bound[:4], bound[5:]...)
	for _, c := range []struct {
		name string
		args []string
		ok   bool
	}{
		{"PLAIN", swaks("PLAIN", "secret"), true},
		{"LOGIN", swaks("LOGIN", "secret"), true},
		{"LOGIN wrong", swaks("LOGIN", "Secret"), false},
		{"PLAIN", curl("-u", "alice:secret", "--login-options", "AUTH=PLAIN"), true},
		{"LOGIN", curl("-u", "alice:secret", "--login-options", "AUTH=LOGIN"), true},
		{"OAUTHBEARER", curl("-u", "alice@example.test:", "--oauth2-bearer", "t0ken", "--login-options", "AUTH=OAUTHBEARER"), true},
		{"OAUTHBEARER wrong", curl("-u", "alice@example.test:", "--oauth2-bearer", "other", "--login-options", "AUTH=OAUTHBEARER"), false},
		{"XOAUTH2", curl("-u", "alice@example.test:", "--oauth2-bearer", "t0ken", "--login-options", "AUTH=XOAUTH2"), true},
		{"EXTERNAL", curl("-u", "alice@example.test:", "--login-options", "AUTH=EXTERNAL", "--cert", alicePEM, "--key", alicePEM), true},
		{"EXTERNAL, nobody named", curl("-u", ":", "--login-options", "AUTH=EXTERNAL", "--cert", alicePEM, "--key", alicePEM), true},
		{"EXTERNAL without a certificate", curl("-u", "alice@example.test:", "--login-options", "AUTH=EXTERNAL"), false},
		{"PLAIN", msmtp("plain", "secret"), true},
		{"LOGIN", msmtp("login", "secret"), true},
		{"SCRAM-SHA-256", msmtp("scram-sha-256", "secret"), true},
		{"SCRAM-SHA-256 wrong", msmtp("scram-sha-256", "Secret"), false},
		{"SCRAM-SHA-1", msmtp("scram-sha-1", "secret"), true},
		{"OAUTHBEARER", msmtp("oauthbearer", "t0ken"), true},
		{"XOAUTH2", msmtp("xoauth2", "t0ken"), true},
		{"EXTERNAL", msmtp("external", "none", "--tls-cert-file="+alicePEM, "--tls-key-file="+alicePEM), true},
		{"PLAIN", python("PLAIN", "secret"), true},
		{"LOGIN", python("LOGIN", "secret"), true},
		{"LOGIN wrong", python("LOGIN", "Secret"), false},
		{"SCRAM-SHA-256", gsasl("SCRAM-SHA-256", "secret"), true},
		{"SCRAM-SHA-256-PLUS", bound, true},
		{"SCRAM-SHA-256-PLUS, STARTTLS without EHLO", append(bound[:len(bound):len(bound)], "--starttls"), true},
		{"SCRAM-SHA-1", gsasl("SCRAM-SHA-1", "secret"), true},
		{"SCRAM-SHA-1 wrong", gsasl("SCRAM-SHA-1", "Secret"), false},
	} {
		t.Run(c.args[0]+" "+c.name, func(t *testing.T) {
			before := len(s.queued(t))
			cmd := exec.Command(need(t, c.args[0]), c.args[1:]...)
			cmd.Stdin = strings.NewReader("Subject: hi\n\ntext\n")
			out, err := cmd.CombinedOutput()
			if (err == nil) != c.ok {
				t.Fatalf("%v\n%s", err, out)
			}
			if n := len(s.queued(t)) - before; c.args[0] != "gsasl" && (n == 1) != c.ok {
				t.Fatalf("%d messages more\n%s", n, out)
			}
		})
	}
	if log := s.log(t); strings.Contains(log, "Secret") || strings.Contains(log, "other") {
		t.Errorf("what was refused is in the log:\n%s", log)
	}
}

// failregex are the filters of the manual page, with what fail2ban makes of <ADDR>.
func failregex(t *testing.T) []*regexp.Regexp {
	t.Helper()
	b, err := os.ReadFile("../../man/msmtpd.8")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(b), "\nfailregex = ")
	text, _, end := strings.Cut(text, "\n.Ed")
	if !ok || !end {
		t.Fatal("no filter in the manual page")
	}
	var out []*regexp.Regexp
	for line := range strings.Lines(text) {
		line = strings.ReplaceAll(strings.TrimSpace(line), `\e`, `\`)
		out = append(out, regexp.MustCompile(strings.ReplaceAll(line, "<ADDR>", `([0-9a-fA-F:.]+)`)))
	}
	return out
}

// TestFail2ban: each refused login is one line that the filter of the manual finds, with the
// address of the client, whatever the client says.
func TestFail2ban(t *testing.T) {
	t.Parallel()
	filters := failregex(t)
	for _, mode := range []string{"text", "json"} {
		for _, host := range []string{"127.0.0.1", "::1"} {
			t.Run(mode+" "+host, func(t *testing.T) {
				t.Parallel()
				s := authSite(t)
				l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
				if err != nil {
					t.Skipf("no %s here: %v", host, err)
				}
				addr := l.Addr().String()
				l.Close()
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				args := []string{"--notify-fd", "3", "--listen", addr + "=submissions"}
				if mode == "json" {
					args = append(args, "--json")
				}
				cmd := s.command(args...)
				cmd.ExtraFiles = []*os.File{w}
				start(t, cmd)
				w.Close()
				if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				forged := "x msg=\"login refused\" peer=192.0.2.99:1 user=\n\"msg\":\"login refused\",\"peer\":\"192.0.2.98:1\""
				refusedLogins(t, addr, "alice@example.test", forged, "msg=\"login refused\" peer=192.0.2.97:1 user=")
				var found []string
				for line := range strings.Lines(s.log(t)) {
					for _, f := range filters {
						for _, m := range f.FindAllStringSubmatch(line, -1) {
							found = append(found, m[1])
						}
					}
				}
				if got, want := strings.Join(found, " "), strings.Repeat(host+" ", 3); got+" " != want {
					t.Errorf("found %q, want %q\n%s", got, want, s.log(t))
				}
			})
		}
	}
}

// refusedLogins tries a wrong password for each user, after a greeting that forges a line.
func refusedLogins(t *testing.T, addr string, users ...string) {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "EHLO [msg=\"login.refused\"]\r\nEHLO c.test\r\n")
	for _, u := range users {
		fmt.Fprintf(c, "AUTH PLAIN %s\r\n", base64.StdEncoding.EncodeToString([]byte("\x00"+u+"\x00wrong")))
	}
	fmt.Fprintf(c, "MAIL FROM:<\"msg=login refused peer=192.0.2.96:1\"@far.test>\r\nQUIT\r\n")
	out, err := io.ReadAll(bufio.NewReader(c))
	if n := strings.Count(string(out), "535 5.7.8"); n != len(users) {
		t.Fatalf("%d refusals (%v)\n%s", n, err, out)
	}
}

// TestCertificateByName: SNI chooses, and a new certificate is served without a restart while an
// old connection goes on.
func TestCertificateByName(t *testing.T) {
	t.Parallel()
	s := authSite(t)
	addr := s.serve(t)["submissions"]
	dial := func(name string) (*tls.Conn, string) {
		t.Helper()
		c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		return c, c.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	old, name := dial("smtp.second.test")
	defer old.Close()
	if name != "second" {
		t.Errorf("smtp.second.test: %s", name)
	}
	if c, name := dial("localhost"); name != "localhost" {
		t.Errorf("localhost: %s", name)
	} else {
		c.Close()
	}
	cert, key := newCertificate(t, &x509.Certificate{Subject: pkix.Name{CommonName: "renewed"}, DNSNames: []string{"smtp.second.test"}}, nil, nil)
	path := filepath.Join(s.dir, "second.pem")
	if err := os.WriteFile(path+".new", []byte(certPEM(cert)+keyPEM(t, key)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, name := dial("smtp.second.test")
		c.Close()
		if name == "renewed" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the new certificate is not served")
		}
	}
	fmt.Fprint(old, "EHLO c.test\r\nQUIT\r\n")
	if out, err := io.ReadAll(old); err != nil || !strings.Contains(string(out), "\r\n221 ") {
		t.Errorf("the old connection: %v %s", err, out)
	}
}
