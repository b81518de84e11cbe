// Package certs keeps a server's certificate: read from PEM files, and read again when they
// change, so that a renewed certificate needs no restart. A pair that cannot be used is reported
// and the last good one goes on being served.
package certs

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// lookEvery is how often handshakes look at the files.
const lookEvery = 2 * time.Second

// Store is the certificate of one server. It may be used concurrently.
type Store struct {
	cert, key string
	log       *slog.Logger
	now       func() time.Time

	mu     sync.Mutex
	pair   *tls.Certificate
	stamp  [2]stamp
	looked time.Time
}

type stamp struct {
	mtime time.Time
	size  int64
	ino   uint64
}

// Open reads the chain and the key.
func Open(cert, key string, log *slog.Logger) (*Store, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Store{cert: cert, key: key, log: log, now: time.Now}
	st, err := s.look()
	if err != nil {
		return nil, err
	}
	if err := s.load(st); err != nil {
		return nil, err
	}
	s.looked = s.now()
	return s, nil
}

// Config is a server's TLS configuration. Session tickets are a setting because some large
// senders fail to resume sessions on the MX port.
func (s *Store) Config(tickets bool) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12, // RFC 8996 §4, RFC 9325 §3.1.1
		SessionTicketsDisabled: !tickets,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.current(), nil
		},
	}
}

// current is the pair to serve now.
func (s *Store) current() *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if d := now.Sub(s.looked); d >= 0 && d < lookEvery {
		return s.pair
	}
	s.looked = now
	st, err := s.look()
	if err == nil && st != s.stamp {
		if err = s.load(st); err == nil {
			s.log.Info("certificate read again", "cert", s.cert)
		}
	}
	if err != nil {
		s.log.Error("certificate not read again, the last one goes on", "cert", s.cert, "err", err)
	}
	return s.pair
}

func (s *Store) look() (st [2]stamp, err error) {
	for i, path := range []string{s.cert, s.key} {
		fi, err := os.Stat(path)
		if err != nil {
			return st, fmt.Errorf("TLS: %w", err)
		}
		st[i] = stamp{fi.ModTime(), fi.Size(), inode(fi)}
	}
	return st, nil
}

// load reads the pair. A key that does not fit the certificate, as in the moment between two
// renames, is an error; the next look tries again.
func (s *Store) load(st [2]stamp) error {
	pair, err := tls.LoadX509KeyPair(s.cert, s.key)
	if err != nil {
		return fmt.Errorf("TLS certificate %s: %w", s.cert, err)
	}
	s.pair, s.stamp = &pair, st
	return nil
}
