package relay

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// rootCAs are the system's trusted certificates and those of a file, loaded when first needed
// and again when the file has changed.
type rootCAs struct {
	path string

	mu     sync.Mutex
	pool   *x509.CertPool
	mtime  time.Time
	loaded bool
}

func (r *rootCAs) get() (*x509.CertPool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var mtime time.Time
	if r.path != "" {
		st, err := os.Stat(r.path)
		if err != nil {
			return nil, err
		}
		mtime = st.ModTime()
	}
	if r.loaded && mtime.Equal(r.mtime) {
		return r.pool, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a system without a store: only our own file counts
	}
	if r.path != "" {
		pem, err := os.ReadFile(r.path)
		if err != nil {
			return nil, err
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate in it", r.path)
		}
	}
	r.pool, r.mtime, r.loaded = pool, mtime, true
	return pool, nil
}

// verify tells why a peer is not, for all we can know, the host called name.
func (r *rootCAs) verify(cs tls.ConnectionState, name string) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the peer shows no certificate")
	}
	roots, err := r.get()
	if err != nil {
		return err
	}
	o := x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range cs.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err = cs.PeerCertificates[0].Verify(o)
	return err
}
