package certs

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLate: nothing is read before the first handshake; files that are not there fail it, and
// are used once they are.
func TestLate(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	s, err := Open(Options{
		Pairs: []Pair{{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}}, Late: true,
		ClientCA: filepath.Join(dir, "ca.pem"), Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s.now = func() time.Time { return now }
	if log.Len() > 0 {
		t.Errorf("looked at once: %s", log.String())
	}
	if c, err := s.Config(false, false).GetCertificate(nil); err == nil || c != nil || !strings.Contains(log.String(), "certificate not read") {
		t.Errorf("%v %v, log %s", c, err, log.String())
	}
	write(t, dir, 7)
	now = now.Add(lookEvery)
	log.Reset()
	if n := serial(t, s); n != 7 || strings.Contains(log.String(), "read again") {
		t.Errorf("serial %d, log %s", n, log.String())
	}
}
