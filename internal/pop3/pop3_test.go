package pop3

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/auth/service"
	"pennypost/internal/durable"
	"pennypost/internal/login"
	"pennypost/internal/mailbox"
	"pennypost/internal/mailtest"
	"pennypost/internal/sasl"
)

// fakeDrop is a maildrop that can fail in every way.
type fakeDrop struct {
	dir                              string
	list                             []mailbox.POP3Entry
	mu                               sync.Mutex
	locked                           bool
	removed, seen                    []uint32
	sizes                            map[uint32]int64
	gone                             map[uint32]bool // removed by somebody else
	openErr, listErr, rmErr, markErr error
}

// newDrop makes a maildrop of messages with LF line ends.
func newDrop(t testing.TB, msgs ...string) *fakeDrop {
	d := &fakeDrop{dir: t.TempDir(), gone: map[uint32]bool{}}
	for i, m := range msgs {
		uid := uint32(i + 1)
		if err := os.WriteFile(d.path(uid), []byte(m), 0o600); err != nil {
			t.Fatal(err)
		}
		wire := len(m) + strings.Count(m, "\n") - strings.Count(m, "\r\n")
		d.list = append(d.list, mailbox.POP3Entry{UID: uid, Size: int64(wire), Base: "b" + itoa(int64(uid)), GUID: "g" + itoa(int64(uid))})
	}
	return d
}

func (d *fakeDrop) path(uid uint32) string { return filepath.Join(d.dir, itoa(int64(uid))) }

func (d *fakeDrop) open(context.Context, string) (Maildrop, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locked {
		return nil, mailbox.ErrInUse
	}
	if d.openErr != nil {
		return nil, d.openErr
	}
	d.locked = true
	return d, nil
}

func (d *fakeDrop) List(context.Context) ([]mailbox.POP3Entry, uint32, error) {
	return d.list, 1700000000, d.listErr
}

func (d *fakeDrop) Open(_ context.Context, uid uint32) (*mailbox.Body, error) {
	if d.gone[uid] {
		return nil, mailbox.ErrExpunged
	}
	f, err := durable.OS{}.OpenFile(d.path(uid), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &mailbox.Body{File: f, Size: fi.Size()}, nil
}

func (d *fakeDrop) Remove(_ context.Context, uids []uint32) error {
	if d.rmErr == nil {
		d.removed = append(d.removed, uids...)
	}
	return d.rmErr
}

func (d *fakeDrop) Fetched(_ context.Context, seen []uint32, sizes map[uint32]int64) error {
	d.seen, d.sizes = append(d.seen, seen...), sizes
	return d.markErr
}

func (d *fakeDrop) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.locked = false
	return nil
}

// testServer lets alice and jürg in, with the password "se cret".
func testServer(t testing.TB, d *fakeDrop) (*Server, *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	users, secrets := filepath.Join(dir, "users"), filepath.Join(dir, "secrets")
	for f, text := range map[string]string{
		users:   "alice@example.test::::::\njürg@example.test::::::\n",
		secrets: "alice@example.test:{PLAIN}se cret\njürg@example.test:{PLAIN}grüße\n",
	} {
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	acc, err := accounts.Open(accounts.Options{Domains: []string{"example.test"}, Users: users, Secrets: secrets, Maildirs: dir + "/%u"})
	if err != nil {
		t.Fatal(err)
	}
	buf := new(syncBuffer)
	log := slog.New(slog.NewTextHandler(buf, nil))
	return &Server{
		Hostname: "mx.example.test", Role: Clear, Expire: -1, Log: log, TLS: testTLS(t),
		Login: &login.Options{
			Passwords: service.New(service.Options{Accounts: acc, Log: log}), Accounts: acc, Domains: []string{"example.test"}, Role: Clear, Log: log,
			Token: func(_ context.Context, _, token string) (string, error) {
				if token != "t0ken" {
					return "", sasl.ErrRefused
				}
				return "alice@example.test", nil
			},
		},
		Open: d.open,
	}, &buf.b
}

// syncBuffer is a log that sessions of one server write together.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func testTLS(t testing.TB) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// connect serves one connection and returns the client's end; done closes when it is over.
func connect(t testing.TB, ctx context.Context, s *Server, peer Peer) (client net.Conn, done chan struct{}) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done = make(chan struct{})
	go func() {
		defer close(done)
		s.ServeConn(ctx, conn, peer)
	}()
	t.Cleanup(func() {
		client.Close()
		<-done
	})
	if err := client.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return client, done
}

// stdio is a client that may say its password in clear.
var stdio = Peer{Stdio: true}

// network is one that may not.
var network = Peer{Addr: netip.MustParseAddrPort("192.0.2.7:4711")}

var messages = []string{
	"Subject: one\n\n.dots\n..two\nlast\n",
	"Subject: grüße\nFrom: Jürg <jürg@example.test>\n\nBody is 8bit: ü\n",
	"Subject: no end\r\n\r\nwith CR LF\r\nand no line end",
	"Subject: header only\n",
}

// TestDialogues plays every command and every refusal over a fake maildrop.
func TestDialogues(t *testing.T) {
	ctx := context.Background()
	for _, kind := range []struct {
		glob string
		peer Peer
		set  func(*Server, *fakeDrop)
	}{
		{"clear-*.txt", network, nil},
		{"notls-*.txt", network, func(s *Server, _ *fakeDrop) { s.TLS = nil }},
		{"session-*.txt", stdio, nil},
		{"session-sasl.txt", network, func(s *Server, _ *fakeDrop) { s.ClearFrom = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} }},
		{"policy-*.txt", stdio, func(s *Server, d *fakeDrop) {
			s.Expire, s.LoginDelay, s.MaxErrors = 0, 90*time.Second, 3
			d.gone[2] = true
			d.list[2].Key = "UID7-99 é"
			s.UIDL, _ = ParseFormat("%v.%u") // a constant that another test parses
		}},
		{"broken-*.txt", stdio, func(_ *Server, d *fakeDrop) {
			d.rmErr = errors.New("disk on fire")
			if err := os.Remove(d.path(1)); err != nil {
				t.Fatal(err)
			}
		}},
		{"locked-*.txt", stdio, func(_ *Server, d *fakeDrop) { d.locked = true }},
		{"soon-*.txt", stdio, func(_ *Server, d *fakeDrop) { d.openErr = ErrSoon }},
		{"unopened-*.txt", stdio, func(_ *Server, d *fakeDrop) { d.openErr = errors.New("no such directory") }},
		{"unlisted-*.txt", stdio, func(_ *Server, d *fakeDrop) { d.listErr = errors.New("bad index") }},
	} {
		mailtest.Dialogues(t, filepath.Join("testdata", kind.glob), func(t *testing.T) net.Conn {
			d := newDrop(t, messages...)
			s, _ := testServer(t, d)
			if kind.set != nil {
				kind.set(s, d)
			}
			c, _ := connect(t, ctx, s, kind.peer)
			return c
		})
	}
}
