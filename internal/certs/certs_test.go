package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// write makes a certificate with a serial number and puts it and its key into dir.
func write(t *testing.T, dir string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	put(t, dir, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb}))
}

// put replaces a file as certbot does: by another one of the same name.
func put(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	tmp := filepath.Join(dir, name+".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func serial(t *testing.T, s *Store) int64 {
	t.Helper()
	pair, err := s.Config(false, false).GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf.SerialNumber.Int64()
}

func TestReload(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, 1)
	var log bytes.Buffer
	s, err := Open(Options{Pairs: []Pair{{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s.now = func() time.Time { return now }
	if n := serial(t, s); n != 1 {
		t.Fatalf("serial %d", n)
	}
	write(t, dir, 2)
	if n := serial(t, s); n != 1 {
		t.Errorf("the files were looked at again at once")
	}
	now = now.Add(lookEvery)
	if n := serial(t, s); n != 2 || !strings.Contains(log.String(), "certificate read again") {
		t.Errorf("serial %d after the change: %s", n, log.String())
	}
	// Half of a renewal, and a file that is gone: the last good pair goes on.
	put(t, dir, "key.pem", []byte("no key"))
	now = now.Add(lookEvery)
	if n := serial(t, s); n != 2 || !strings.Contains(log.String(), "the last one goes on") {
		t.Errorf("serial %d: %s", n, log.String())
	}
	os.Remove(filepath.Join(dir, "cert.pem"))
	now = now.Add(lookEvery)
	if n := serial(t, s); n != 2 {
		t.Errorf("serial %d", n)
	}
	write(t, dir, 3)
	now = now.Add(lookEvery)
	if n := serial(t, s); n != 3 {
		t.Errorf("serial %d after the repair", n)
	}
	if c := s.Config(false, true); c.ClientAuth != tls.NoClientCert || !c.SessionTicketsDisabled || c.MinVersion != 0x0303 {
		t.Errorf("configuration %+v", c)
	}
}

func TestOpenFails(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, 1)
	put(t, dir, "empty.pem", nil)
	good := Pair{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	none := filepath.Join(dir, "none")
	for name, o := range map[string]Options{
		"no certificate":         {},
		"a missing certificate":  {Pairs: []Pair{{none, none}}},
		"a missing second one":   {Pairs: []Pair{good, {none, none}}},
		"a key that is none":     {Pairs: []Pair{{good.Cert, good.Cert}}},
		"missing authorities":    {Pairs: []Pair{good}, ClientCA: none},
		"no authority in a file": {Pairs: []Pair{good}, ClientCA: filepath.Join(dir, "empty.pem")},
	} {
		if _, err := Open(o); err == nil {
			t.Errorf("%s is no error", name)
		}
	}
	if _, err := Open(Options{Pairs: []Pair{good}, ClientCA: good.Cert}); err != nil {
		t.Error(err)
	}
}
