package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// issue makes a certificate, signed by parent or by itself, and gives its PEM files in dir.
func issue(t *testing.T, dir, name string, tmpl *x509.Certificate, key crypto.Signer, parent *tls.Certificate) (Pair, *tls.Certificate) {
	t.Helper()
	tmpl.SerialNumber, tmpl.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	if tmpl.NotAfter.IsZero() {
		tmpl.NotAfter = time.Now().Add(time.Hour)
	}
	signer, by := crypto.Signer(key), tmpl
	if parent != nil {
		signer, by = parent.PrivateKey.(crypto.Signer), parent.Leaf
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, name+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	put(t, dir, name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb}))
	p := Pair{filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")}
	c, err := readPair(p)
	if err != nil {
		t.Fatal(err)
	}
	return p, c
}

func ecKey(t *testing.T) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// connPair is a TCP connection: in a net.Pipe, both ends of a handshake may wait to write.
func connPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{client, server} {
		c.SetDeadline(time.Now().Add(10 * time.Second))
		t.Cleanup(func() { c.Close() })
	}
	return client, server
}

// handshake connects to a server with one configuration; the state is the server's.
func handshake(t *testing.T, server, client *tls.Config) (tls.ConnectionState, *x509.Certificate) {
	t.Helper()
	cs, seen, err := tryHandshake(t, server, client)
	if err != nil {
		t.Fatal(err)
	}
	return cs, seen
}

func tryHandshake(t *testing.T, server, client *tls.Config) (cs tls.ConnectionState, seen *x509.Certificate, err error) {
	a, b := connPair(t)
	done := make(chan error, 1)
	s := tls.Server(b, server)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = io.WriteString(s, "x") // carries the session tickets to a client that reads
		}
		done <- err
	}()
	c := tls.Client(a, client)
	_, err = io.ReadFull(c, make([]byte, 1))
	if serr := <-done; serr != nil {
		err = serr
	}
	if err == nil {
		cs, seen = s.ConnectionState(), c.ConnectionState().PeerCertificates[0]
	}
	return cs, seen, err
}

func TestChoiceByName(t *testing.T) {
	dir := t.TempDir()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := issue(t, dir, "first", &x509.Certificate{DNSNames: []string{"mx.a.test"}}, ecKey(t), nil)
	second, _ := issue(t, dir, "second", &x509.Certificate{DNSNames: []string{"mx.b.test", "*.c.test"}}, ecKey(t), nil)
	old, _ := issue(t, dir, "old", &x509.Certificate{DNSNames: []string{"mx.b.test"}}, rsaKey, nil)
	s, err := Open(Options{Pairs: []Pair{first, second, old}})
	if err != nil {
		t.Fatal(err)
	}
	rsaOnly := []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	for _, c := range []struct {
		name, sni string
		suites    []uint16
		want      string
	}{
		{"no name", "", nil, "first"},
		{"the first's name", "mx.a.test", nil, "first"},
		{"the second's name", "mx.b.test", nil, "second"},
		{"in capitals", "MX.B.Test", nil, "second"},
		{"a wildcard", "smtp.c.test", nil, "second"},
		{"nobody's name", "mx.d.test", nil, "first"},
		{"a client that knows RSA alone", "mx.b.test", rsaOnly, "old"},
		{"such a client without a name", "", rsaOnly, "old"},
		{"such a client with another name", "mx.a.test", rsaOnly, "old"},
	} {
		cc := &tls.Config{ServerName: c.sni, InsecureSkipVerify: true}
		if c.suites != nil {
			cc.CipherSuites, cc.MaxVersion = c.suites, tls.VersionTLS12
		}
		if _, got := handshake(t, s.Config(false, false), cc); got.Subject.CommonName != c.want {
			t.Errorf("%s: %s, want %s", c.name, got.Subject.CommonName, c.want)
		}
	}
}

func TestClientCertificates(t *testing.T) {
	dir := t.TempDir()
	srv, _ := issue(t, dir, "server", &x509.Certificate{DNSNames: []string{"mx.a.test"}}, ecKey(t), nil)
	authority := func(name string) (Pair, *tls.Certificate) {
		return issue(t, dir, name, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, ecKey(t), nil)
	}
	caFile, ca := authority("ca")
	_, other := authority("other")
	usage := func(u x509.ExtKeyUsage) *x509.Certificate {
		return &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{u}, EmailAddresses: []string{"ann@a.test"}}
	}
	late := usage(x509.ExtKeyUsageClientAuth)
	late.NotAfter = time.Now().Add(-time.Minute)
	s, err := Open(Options{Pairs: []Pair{srv}, ClientCA: caFile.Cert})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s.now = func() time.Time { return now }
	show := func(tmpl *x509.Certificate, by *tls.Certificate) *tls.Config {
		_, c := issue(t, dir, "client", tmpl, ecKey(t), by)
		return &tls.Config{ServerName: "mx.a.test", InsecureSkipVerify: true, Certificates: []tls.Certificate{*c}, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	}
	good := show(usage(x509.ExtKeyUsageClientAuth), ca)
	for _, c := range []struct {
		name   string
		client *tls.Config
		ok     bool
	}{
		{"of the authority", good, true},
		{"of another authority", show(usage(x509.ExtKeyUsageClientAuth), other), false},
		{"of itself", show(usage(x509.ExtKeyUsageClientAuth), nil), false},
		{"of a server", show(usage(x509.ExtKeyUsageServerAuth), ca), false},
		{"expired", show(late, ca), false},
		{"none", &tls.Config{InsecureSkipVerify: true}, false},
	} {
		// Whatever it is, the connection itself works.
		cs, _ := handshake(t, s.Config(true, true), c.client)
		if err := s.VerifyClient(&cs); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if cs, _ := handshake(t, s.Config(false, false), good); len(cs.PeerCertificates) > 0 {
		t.Error("a certificate was asked for where none is of use")
	}

	// The authority is replaced: a resumed session proves nothing any more, a new one neither.
	config := s.Config(true, true)
	handshake(t, config, good)
	otherPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate[0]})
	put(t, dir, "ca.pem", otherPEM)
	now = now.Add(lookEvery)
	cs, _ := handshake(t, config, good)
	if !cs.DidResume {
		t.Error("the session was not resumed: the test proves less than it says")
	}
	if err := s.VerifyClient(&cs); err == nil {
		t.Error("the old authority still counts")
	}
	// A file that is broken is none: the last good one goes on.
	put(t, dir, "ca.pem", []byte("no certificate"))
	now = now.Add(lookEvery)
	cs, _ = handshake(t, config, show(usage(x509.ExtKeyUsageClientAuth), other))
	if err := s.VerifyClient(&cs); err != nil {
		t.Errorf("after a broken file: %v", err)
	}
}

// TestVerifyWhileReloading is for the race detector: logins and handshakes share what is read again.
func TestVerifyWhileReloading(t *testing.T) {
	dir := t.TempDir()
	p, _ := issue(t, dir, "mx", &x509.Certificate{DNSNames: []string{"mx.a.test"}}, ecKey(t), nil)
	_, ca := issue(t, dir, "ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, ecKey(t), nil)
	_, client := issue(t, dir, "client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ecKey(t), ca)
	leaf, err := x509.ParseCertificate(client.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate[0]})
	put(t, dir, "pool.pem", pool)
	s, err := Open(Options{Pairs: []Pair{p}, ClientCA: filepath.Join(dir, "pool.pem")})
	if err != nil {
		t.Fatal(err)
	}
	var tick atomic.Int64
	s.now = func() time.Time { return time.Now().Add(time.Duration(tick.Add(1)) * lookEvery) }
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 50 {
				if err := s.VerifyClient(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}); err != nil {
					t.Errorf("a good certificate: %v", err)
					return
				}
			}
		})
	}
	for range 20 {
		pool = append(pool, '\n')
		put(t, dir, "pool.pem", pool)
	}
	all.Wait()
}

// TestReloadDropsNobody: a connection made before a change goes on after it.
func TestReloadDropsNobody(t *testing.T) {
	dir := t.TempDir()
	p, _ := issue(t, dir, "mx", &x509.Certificate{DNSNames: []string{"mx.a.test"}}, ecKey(t), nil)
	s, err := Open(Options{Pairs: []Pair{p}})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s.now = func() time.Time { return now }
	config := s.Config(true, false)
	a, b := connPair(t)
	echo := tls.Server(b, config)
	go io.Copy(echo, echo)
	c := tls.Client(a, &tls.Config{InsecureSkipVerify: true})
	ask := func() {
		t.Helper()
		if _, err := io.WriteString(c, "NOOP"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	before := c.ConnectionState().PeerCertificates[0]
	issue(t, dir, "mx", &x509.Certificate{DNSNames: []string{"mx.a.test"}}, ecKey(t), nil)
	now = now.Add(lookEvery)
	_, after := handshake(t, config, &tls.Config{InsecureSkipVerify: true})
	if after.Equal(before) {
		t.Error("a new connection got the old certificate")
	}
	ask()
}
