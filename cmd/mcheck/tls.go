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

// tls looks at our keys and certificates and at the files of those we trust.
func (k *checker) tls(cfg *config.Config) {
	k.trusted("tls.ca", cfg.TLS.CA)
	k.trusted("tls.client_ca", cfg.TLS.ClientCA)
	if cfg.TLS.Cert == "" && len(cfg.TLS.Certificates) == 0 {
		k.warn("tls", "no certificate: no STARTTLS and no logins over the network", "set tls.cert and tls.key")
		return
	}
	// Who asks for no name gets the first: that one is for our own name.
	own := cfg.Hostname
	if cfg.TLS.Cert != "" {
		k.pair(cfg, "tls.cert", "tls.key", config.Certificate{Cert: cfg.TLS.Cert, Key: cfg.TLS.Key}, own)
		own = ""
	}
	for _, p := range cfg.TLS.Certificates {
		k.pair(cfg, "tls.certificate.cert", "tls.certificate.key", p, own)
		own = ""
	}
}

// pair looks at one certificate and its key; host is the name it should be for, "" for any.
func (k *checker) pair(cfg *config.Config, certKey, keyKey string, p config.Certificate, host string) {
	if !k.secret(keyKey, p.Key) {
		return
	}
	thing := certKey + " " + p.Cert
	pair, err := tls.LoadX509KeyPair(p.Cert, p.Key)
	switch {
	case errors.Is(err, fs.ErrPermission):
		k.unseen(thing, err)
	case err != nil:
		k.fail(thing, err.Error(), "put the chain of PEM certificates there, and its key into "+keyKey)
	default:
		k.certificate(thing, pair.Leaf, cfg.Now()(), host)
	}
}

func (k *checker) certificate(thing string, leaf *x509.Certificate, now time.Time, host string) {
	day := leaf.NotAfter.Format(time.DateOnly)
	names := strings.Join(leaf.DNSNames, " ")
	switch {
	case now.Before(leaf.NotBefore):
		k.fail(thing, "is not valid before "+leaf.NotBefore.Format(time.DateOnly), "check the clock")
	case now.After(leaf.NotAfter):
		k.fail(thing, "expired on "+day, "renew it")
	case leaf.NotAfter.Sub(now) < expiresSoon:
		k.warn(thing, "expires on "+day, "renew it")
	case host != "" && leaf.VerifyHostname(host) != nil:
		k.warn(thing, fmt.Sprintf("is for %s, not for %s", names, host), "get one that names the host")
	case host != "":
		k.ok("tls.cert", "for "+host+" until "+day)
	default:
		k.ok(thing, "for "+names+" until "+day)
	}
}

func (k *checker) trusted(key, path string) {
	if path == "" {
		return
	}
	data, err := os.ReadFile(path)
	switch {
	case err != nil:
		k.fail(key+" "+path, cause(err), "make the file, or remove the key")
	case !x509.NewCertPool().AppendCertsFromPEM(data):
		k.fail(key+" "+path, "holds no PEM certificate", "put certificates of authorities there")
	default:
		k.ok(key, path)
	}
}
