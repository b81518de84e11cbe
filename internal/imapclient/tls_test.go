package imapclient

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pennypost/internal/mailtest"
)

// certificate writes a key and a certificate for localhost below dir.
func certificate(t *testing.T, dir string) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	c := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(cert, c, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kder}), 0o644); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(c)
	return cert, key, pool
}

// Login to a real server through STARTTLS; one whose certificate is nobody's gets no password.
func TestDovecotLogin(t *testing.T) {
	if why := mailtest.DovecotMissing(); why != "" {
		t.Skip(why)
	}
	dir, err := os.MkdirTemp("", "imapclient")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cert, key, pool := certificate(t, dir)
	d, err := mailtest.StartDovecot(mailtest.DovecotOptions{Dir: dir, Maildir: dir + "/home/md", More: "auth_failure_delay = 0\nservice anvil {\n  unix_listener anvil-auth-penalty {\n    mode = 0\n  }\n}\nssl = yes\nssl_cert = <" + cert + "\nssl_key = <" + key + "\n"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx := context.Background()
	good := Options{Addr: d.IMAP, Security: StartTLS, TLS: &tls.Config{RootCAs: pool, ServerName: "localhost"}}
	c, err := Dial(ctx, good)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Login("ann", "wrong", ""); err == nil {
		t.Error("logged in with a wrong password")
	}
	if err := c.Login("ann", "secret", ""); err != nil {
		t.Errorf("the right password after a wrong one: %v", err)
	}
	if st, err := c.Select("INBOX", false); err != nil || st.Validity == 0 {
		t.Errorf("%+v %v", st, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	bad := good
	bad.TLS = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"}
	if _, err := Dial(ctx, bad); err == nil {
		t.Error("a certificate of nobody's is trusted")
	}
}
