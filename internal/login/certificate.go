package login

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"pennypost/internal/sasl"
)

// NewCertificates is the table that tells whose a certificate is.
func NewCertificates(path, firstDomain string) *Table {
	return NewTable(path, firstDomain, cleanCertificate)
}

// cleanCertificate takes "sha256:" and the fingerprint in hex, with colons or without, or "cn:"
// and the common name.
func cleanCertificate(s string) (string, error) {
	if name, ok := strings.CutPrefix(s, "cn:"); ok && name != "" {
		return s, nil
	}
	digits, ok := strings.CutPrefix(s, "sha256:")
	digits = strings.ToLower(strings.ReplaceAll(digits, ":", ""))
	if b, err := hex.DecodeString(digits); !ok || err != nil || len(b) != 32 {
		return "", errors.New("neither sha256: with a fingerprint nor cn: with a name")
	}
	return "sha256:" + digits, nil
}

// leaf is the certificate the client has shown and proved to hold the key of.
func (s *Session) leaf() *x509.Certificate {
	if s.c.TLS == nil || len(s.c.TLS.PeerCertificates) == 0 {
		return nil
	}
	return s.c.TLS.PeerCertificates[0]
}

func (s *Session) vouched() bool {
	return s.leaf() != nil && s.o.VerifyClient != nil && s.o.VerifyClient(s.c.TLS) == nil
}

// hasCertificate tells whether EXTERNAL can work: some account is named by the certificate.
func (s *Session) hasCertificate() bool {
	if s.leaf() == nil {
		return false
	}
	names, err := s.certificateNames()
	if err != nil {
		s.o.Log.Error("EXTERNAL is not offered", "peer", s.c.Peer, "err", err)
	}
	return err == nil && len(names) > 0
}

// certificateNames are the names of accounts that the client's certificate is good for: those
// for which the table has its fingerprint, and, where an authority vouches for it, those for
// which the table has its common name, else the mail addresses in it (RFC 5280 §4.2.1.6).
func (s *Session) certificateNames() ([]string, error) {
	cert, vouched := s.leaf(), s.vouched()
	now := time.Now()
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return nil, nil
	}
	sum := sha256.Sum256(cert.Raw)
	print := "sha256:" + hex.EncodeToString(sum[:])
	names, err := s.o.Certificates.Having(func(item string) bool {
		return item == print || vouched && item == "cn:"+cert.Subject.CommonName
	})
	if err == nil && len(names) == 0 && vouched {
		names = cert.EmailAddresses
	}
	return names, err
}

// certificateUser is a sasl.ActFunc: the account that the certificate is good for. A certificate
// that is good for several needs a name.
func (s *Session) certificateUser(ctx context.Context, authz string) (string, error) {
	names, err := s.certificateNames()
	if err != nil {
		return "", err
	}
	var users []string
	for _, n := range names {
		u, err := s.Account(ctx, n)
		switch {
		case err == nil && !slices.Contains(users, u):
			users = append(users, u)
		case err != nil && !errors.Is(err, sasl.ErrRefused):
			return "", err
		}
	}
	want := ""
	if authz != "" {
		if want, err = s.Account(ctx, authz); err != nil {
			return "", err
		}
	} else if len(users) == 1 {
		want = users[0]
	}
	if !slices.Contains(users, want) {
		return "", sasl.ErrRefused
	}
	return want, nil
}
