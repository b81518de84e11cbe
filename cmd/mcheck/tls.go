package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"pennypost/internal/config"
)

// expiresSoon is when a certificate's end is worth a word.
const expiresSoon = 14 * 24 * time.Hour

// tls looks at our key and certificate and at the file of those we trust.
func (k *checker) tls(cfg *config.Config) {
	k.trusted(cfg.TLS.CA)
	if cfg.TLS.Cert == "" {
		k.warn("tls", "no certificate: no STARTTLS and no logins over the network", "set tls.cert and tls.key")
		return
	}
	if !k.secret("tls.key", cfg.TLS.Key) {
		return
	}
	pair, err := tls.LoadX509KeyPair(cfg.TLS.Cert, cfg.TLS.Key)
	if errors.Is(err, fs.ErrPermission) {
		k.unseen("tls.cert "+cfg.TLS.Cert, err)
		return
	}
	if err != nil {
		k.fail("tls.cert "+cfg.TLS.Cert, err.Error(), "put the chain of PEM certificates there, and its key into tls.key")
		return
	}
	k.certificate(cfg, pair.Leaf)
}

func (k *checker) certificate(cfg *config.Config, leaf *x509.Certificate) {
	thing, now := "tls.cert "+cfg.TLS.Cert, cfg.Now()()
	day := leaf.NotAfter.Format(time.DateOnly)
	switch {
	case now.Before(leaf.NotBefore):
		k.fail(thing, "is not valid before "+leaf.NotBefore.Format(time.DateOnly), "check the clock")
	case now.After(leaf.NotAfter):
		k.fail(thing, "expired on "+day, "renew it")
	case leaf.NotAfter.Sub(now) < expiresSoon:
		k.warn(thing, "expires on "+day, "renew it")
	case leaf.VerifyHostname(cfg.Hostname) != nil:
		k.warn(thing, fmt.Sprintf("is for %s, not for %s", strings.Join(leaf.DNSNames, " "), cfg.Hostname), "get one that names the host")
	default:
		k.ok("tls.cert", "for "+cfg.Hostname+" until "+day)
	}
}

func (k *checker) trusted(path string) {
	if path == "" {
		return
	}
	data, err := os.ReadFile(path)
	switch {
	case err != nil:
		k.fail("tls.ca "+path, cause(err), "make the file, or remove the key")
	case !x509.NewCertPool().AppendCertsFromPEM(data):
		k.fail("tls.ca "+path, "holds no PEM certificate", "put certificates of authorities there")
	default:
		k.ok("tls.ca", path)
	}
}
