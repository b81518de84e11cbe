// Package certs keeps a server's certificates and the authority that vouches for its clients:
// read from PEM files, and read again when they change, so that a renewed certificate needs no
// restart. Connections that are open keep what they were made with. A file that cannot be used
// is reported and the last good one goes on being served.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// lookEvery is how often handshakes look at the files.
const lookEvery = 2 * time.Second

// Pair names the PEM files of one certificate: its chain, and the key. One file may hold both.
type Pair struct{ Cert, Key string }

// Options say which files to read.
type Options struct {
	// Pairs are the certificates. A client gets the first that is for the name it asks for and
	// whose algorithm it knows; without such a name, the first whose algorithm it knows.
	Pairs []Pair
	// ClientCA holds the authorities that vouch for clients; "" for none.
	ClientCA string
	// AskClients asks every client for a certificate, even without a ClientCA.
	AskClients bool
	// Late leaves the files to the first handshake: a process for one connection that may want no
	// TLS saves more than a millisecond. A file that cannot be used fails the handshake.
	Late bool
	Log  *slog.Logger
}

// Store is what one server shows and whom it trusts. It may be used concurrently.
type Store struct {
	ask bool
	log *slog.Logger
	now func() time.Time

	mu     sync.Mutex
	pairs  []*watched[tls.Certificate]
	ca     *watched[x509.CertPool] // nil: none
	looked time.Time
}

// watched is a value read from files, and the state in which they were read.
type watched[T any] struct {
	files []string
	read  func() (*T, error)
	val   *T
	stamp [2]stamp
}

type stamp struct {
	mtime time.Time
	size  int64
	ino   uint64
}

// Open reads all files, unless that is left for later. Here, one that cannot be used is an error.
func Open(o Options) (*Store, error) {
	if len(o.Pairs) == 0 {
		return nil, errors.New("TLS: no certificate")
	}
	s := &Store{ask: o.AskClients || o.ClientCA != "", log: o.Log, now: time.Now}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, p := range o.Pairs {
		s.pairs = append(s.pairs, &watched[tls.Certificate]{
			files: []string{p.Cert, p.Key},
			read:  func() (*tls.Certificate, error) { return readPair(p) },
		})
	}
	if o.ClientCA != "" {
		s.ca = &watched[x509.CertPool]{
			files: []string{o.ClientCA},
			read:  func() (*x509.CertPool, error) { return readPool(o.ClientCA) },
		}
	}
	if o.Late {
		return s, nil
	}
	if s.ca != nil {
		if _, err := s.ca.refresh(); err != nil {
			return nil, err
		}
	}
	for _, p := range s.pairs {
		if _, err := p.refresh(); err != nil {
			return nil, err
		}
	}
	s.looked = s.now()
	return s, nil
}

// Config is a server's TLS configuration. Session tickets are a setting because some large
// senders fail to resume sessions on the MX port; clients says that certificates of clients
// are of use here.
func (s *Store) Config(tickets, clients bool) *tls.Config {
	c := &tls.Config{
		MinVersion:             tls.VersionTLS12, // RFC 8996 §4, RFC 9325 §3.1.1
		SessionTicketsDisabled: !tickets,
		GetCertificate:         func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return s.choose(h) },
	}
	if clients && s.ask {
		// Asked for, not verified: a client that shows one by chance can still use its
		// password. VerifyClient is called where the certificate is to count. No authorities
		// are named, because clients keep certificates of others back, pinned ones included.
		c.ClientAuth = tls.RequestClientCert
	}
	return c
}

// VerifyClient tells whether the certificate a client has shown is good now: issued by one of
// the client authorities, for clients, and not expired. It is asked at every use, since a
// resumed session may be older than the authorities or outlive the certificate.
func (s *Store) VerifyClient(cs *tls.ConnectionState) error {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return errors.New("no client certificate")
	}
	roots, now := s.authorities()
	if s.ca == nil {
		return errors.New("no authority for clients is configured")
	}
	if roots == nil {
		return errors.New("the authorities for clients were never read")
	}
	o := x509.VerifyOptions{
		Roots: roots, Intermediates: x509.NewCertPool(), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range cs.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := cs.PeerCertificates[0].Verify(o)
	return err
}

// authorities are those of now; nil where there are none, or none was ever read.
func (s *Store) authorities() (*x509.CertPool, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh()
	if s.ca == nil {
		return nil, s.now()
	}
	return s.ca.val, s.now()
}

// choose is the certificate for one handshake, RFC 6066 §3. A name that none is for gets the
// first: a client that looks at names will say so itself, and one that does not is served.
func (s *Store) choose(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh()
	for _, p := range s.pairs {
		if p.val == nil {
			return nil, fmt.Errorf("TLS certificate %s was never read", p.files[0])
		}
	}
	if len(s.pairs) == 1 || h == nil {
		return s.pairs[0].val, nil
	}
	if c := s.supported(h); c != nil {
		return c, nil
	}
	if h.ServerName != "" {
		anyName := *h
		anyName.ServerName = ""
		if c := s.supported(&anyName); c != nil {
			return c, nil
		}
	}
	return s.pairs[0].val, nil
}

func (s *Store) supported(h *tls.ClientHelloInfo) *tls.Certificate {
	for _, p := range s.pairs {
		if h.SupportsCertificate(p.val) == nil {
			return p.val
		}
	}
	return nil
}

// refresh reads again what has changed, looking no more often than lookEvery.
func (s *Store) refresh() {
	now := s.now()
	if d := now.Sub(s.looked); d >= 0 && d < lookEvery {
		return
	}
	s.looked = now
	for _, p := range s.pairs {
		again := p.val != nil
		changed, err := p.refresh()
		s.report(changed, again, err, p.files[0])
	}
	if s.ca != nil {
		again := s.ca.val != nil
		changed, err := s.ca.refresh()
		s.report(changed, again, err, s.ca.files[0])
	}
}

func (s *Store) report(changed, again bool, err error, file string) {
	switch {
	case err != nil && !again:
		s.log.Error("certificate not read", "cert", file, "err", err)
	case err != nil:
		s.log.Error("certificate not read again, the last one goes on", "cert", file, "err", err)
	case changed && again:
		s.log.Info("certificate read again", "cert", file)
	}
}

// refresh reads the files if they are not as they were. A key that does not fit its
// certificate, as in the moment between two renames, is an error; the next look tries again.
func (w *watched[T]) refresh() (changed bool, err error) {
	var st [2]stamp
	for i, path := range w.files {
		fi, err := os.Stat(path)
		if err != nil {
			return false, fmt.Errorf("TLS: %w", err)
		}
		st[i] = stamp{fi.ModTime(), fi.Size(), inode(fi)}
	}
	if w.val != nil && st == w.stamp {
		return false, nil
	}
	val, err := w.read()
	if err != nil {
		return false, err
	}
	w.val, w.stamp = val, st
	return true, nil
}

func readPair(p Pair) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(p.Cert, p.Key)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate %s: %w", p.Cert, err)
	}
	return &pair, nil
}

func readPool(path string) (*x509.CertPool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("TLS client authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("TLS client authorities: %s holds no PEM certificate", path)
	}
	return pool, nil
}
