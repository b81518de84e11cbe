package smtpd

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"time"

	"pennypost/internal/sasl"
)

// leaf is the certificate the client has shown and proved to hold the key of.
func (s *session) leaf() *x509.Certificate {
	if s.st.TLS == nil || len(s.st.TLS.PeerCertificates) == 0 {
		return nil
	}
	return s.st.TLS.PeerCertificates[0]
}

func (s *session) vouched() bool {
	return s.leaf() != nil && s.o.Auth.VerifyClient != nil && s.o.Auth.VerifyClient(s.st.TLS) == nil
}

// hasCertificate tells whether EXTERNAL can work: some account is named by the certificate.
func (s *session) hasCertificate() bool {
	if s.leaf() == nil {
		return false
	}
	names, err := s.certificateNames()
	if err != nil {
		s.o.Log.Error("EXTERNAL is not offered", "peer", s.peer(), "err", err)
	}
	return err == nil && len(names) > 0
}

// certificateNames are the names of accounts that the client's certificate is good for: those
// for which the table has its fingerprint, and, where an authority vouches for it, those for
// which the table has its common name, else the mail addresses in it (RFC 5280 §4.2.1.6).
func (s *session) certificateNames() ([]string, error) {
	cert, vouched := s.leaf(), s.vouched()
	now := time.Now()
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return nil, nil
	}
	sum := sha256.Sum256(cert.Raw)
	print := "sha256:" + hex.EncodeToString(sum[:])
	names, err := s.o.Auth.Certificates.having(func(item string) bool {
		return item == print || vouched && item == "cn:"+cert.Subject.CommonName
	})
	if err == nil && len(names) == 0 && vouched {
		names = cert.EmailAddresses
	}
	return names, err
}

// certificateUser is a sasl.ActFunc: the account that the certificate is good for. A certificate
// that is good for several needs a name.
func (s *session) certificateUser(ctx context.Context, authz string) (string, error) {
	names, err := s.certificateNames()
	if err != nil {
		return "", err
	}
	var users []string
	for _, n := range names {
		u, err := s.account(ctx, n)
		switch {
		case err == nil && !slices.Contains(users, u):
			users = append(users, u)
		case err != nil && !isRefused(err):
			return "", err
		}
	}
	want := ""
	if authz != "" {
		if want, err = s.account(ctx, authz); err != nil {
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
