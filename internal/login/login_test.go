package login

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/auth/service"
	"pennypost/internal/sasl"
)

var home = netip.MustParseAddrPort("192.0.2.7:1234")

// rig is a site: alice has a password, bob keys for SCRAM.
type rig struct {
	Options
	service *service.Service
	log     bytes.Buffer
}

func newRig(t *testing.T) *rig {
	t.Helper()
	record, err := service.NewRecord(auth.SCRAMSHA256, "secret")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	acc, err := accounts.Open(accounts.Options{
		Domains: []string{"home.test"}, Maildirs: dir + "/%u",
		Users:   file("users", "alice::::::\nbob::::::\n"),
		Secrets: file("secrets", "alice:{PLAIN}secret\nbob:"+record+"\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{}
	log := slog.New(slog.NewTextHandler(&r.log, nil))
	r.service = service.New(service.Options{Accounts: acc, Log: slog.New(slog.DiscardHandler), Sleep: func(context.Context, time.Duration) error { return nil }})
	r.Options = Options{
		Passwords: r.service, Accounts: acc, Domains: []string{"home.test"}, Role: "pop3", Log: log,
		Token: func(_ context.Context, _, token string) (string, error) {
			name, ok := strings.CutPrefix(token, "of-")
			if !ok {
				return "", sasl.ErrRefused
			}
			return name, nil
		},
	}
	return r
}

// handshake returns the server's view of a connection, with a certificate of the client or none.
func handshake(t *testing.T, version uint16, client *tls.Certificate) *tls.ConnectionState {
	t.Helper()
	server := newCertificate(t, "server")
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	c := &tls.Config{InsecureSkipVerify: true, MaxVersion: version}
	if client != nil {
		c.Certificates = []tls.Certificate{*client}
	}
	s := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert})
	done := make(chan error, 1)
	go func() {
		conn := tls.Client(b, c)
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Read(make([]byte, 1)) // session tickets
		}
		done <- err
	}()
	if err := s.Handshake(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	cs := s.ConnectionState()
	return &cs
}

func newCertificate(t *testing.T, name string, mail ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, EmailAddresses: mail,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestMechanisms(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	alice := newCertificate(t, "Alice", "alice@home.test")
	path := filepath.Join(t.TempDir(), "certificates")
	sum := sha256.Sum256(alice.Certificate[0])
	if err := os.WriteFile(path, fmt.Appendf(nil, "# whose\nbob: sha256:%X\n", sum), 0o600); err != nil {
		t.Fatal(err)
	}
	tls13, tls12 := handshake(t, tls.VersionTLS13, nil), handshake(t, tls.VersionTLS12, nil)
	shown := handshake(t, tls.VersionTLS13, &alice)
	for _, c := range []struct {
		name   string
		client Client
		change func(*Options)
		want   string
	}{
		{"clear text", Client{}, nil, ""},
		{"nobody can listen", Client{Clear: true}, nil, "SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN OAUTHBEARER XOAUTH2"},
		{"TLS", Client{TLS: tls13}, nil, "SCRAM-SHA-256-PLUS SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN OAUTHBEARER XOAUTH2"},
		{"TLS 1.2 binds nothing", Client{TLS: tls12}, nil, "SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN OAUTHBEARER XOAUTH2"},
		{"no passwords", Client{TLS: tls13}, func(o *Options) { o.Passwords = nil }, "OAUTHBEARER XOAUTH2"},
		{"no tokens", Client{TLS: tls12}, func(o *Options) { o.Token = nil }, "SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN"},
		{"some", Client{TLS: tls13}, func(o *Options) { o.Mechanisms = []string{"LOGIN", "SCRAM-SHA-256"} }, "SCRAM-SHA-256 LOGIN"},
		{"a certificate nobody vouches for", Client{TLS: shown}, func(o *Options) { o.Mechanisms = []string{"EXTERNAL"} }, ""},
		{"a certificate of the table", Client{TLS: shown}, func(o *Options) {
			o.Mechanisms, o.Certificates = []string{"EXTERNAL"}, NewCertificates(path, "home.test")
		}, "EXTERNAL"},
		{"an authority", Client{TLS: shown}, func(o *Options) {
			o.Mechanisms, o.VerifyClient = []string{"EXTERNAL"}, func(*tls.ConnectionState) error { return nil }
		}, "EXTERNAL"},
		{"only what brings a ticket", Client{TLS: shown}, func(o *Options) {
			o.Tickets, o.Certificates = true, NewCertificates(path, "home.test")
		}, "SCRAM-SHA-256-PLUS SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN"},
	} {
		o := r.Options
		if c.change != nil {
			c.change(&o)
		}
		s := o.Session(c.client)
		got := strings.Join(s.Mechanisms(), " ")
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if s.MayPassword() != slices.Contains(strings.Fields(got), sasl.Plain) {
			t.Errorf("%s: a plain password: %v", c.name, s.MayPassword())
		}
		for _, m := range []string{"SCRAM-SHA-256-PLUS", "PLAIN", "EXTERNAL", "OAUTHBEARER", "CRAM-MD5"} {
			x, err := s.Begin(t.Context(), m)
			want := ErrUnknown
			switch {
			case !s.Secure():
				want = sasl.ErrNeedTLS
			case slices.Contains(strings.Fields(got), m):
				want = nil
			}
			if !errors.Is(err, want) || (x == nil) != (want != nil) {
				t.Errorf("%s: begin %s: %v, want %v", c.name, m, err, want)
			}
			if x != nil {
				if err := x.Quit(t.Context()); err != nil {
					t.Errorf("%s: quit %s: %v", c.name, m, err)
				}
			}
		}
	}
}

const none = "no initial response"

// TestWhoIsLetIn: each way in names the same account, brings a ticket when one is wanted, and
// leaves one line in the log.
func TestWhoIsLetIn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.Mechanisms = nil
	bob := newCertificate(t, "bob", "bob@home.test")
	cs := handshake(t, tls.VersionTLS13, &bob)
	r.VerifyClient = func(*tls.ConnectionState) error { return nil }
	for _, c := range []struct {
		mechanism string
		responses []string
		user      string
		class     Class
		claimed   string
	}{
		{"PLAIN", []string{"\x00alice\x00secret"}, "alice@home.test", 0, ""},
		{"PLAIN", []string{"\x00alice\x00wrong"}, "", Refused, "alice"},
		{"PLAIN", []string{"alice"}, "", Syntax, ""},
		{"LOGIN", []string{none, "alice@home.test", "secret"}, "alice@home.test", 0, ""},
		{"LOGIN", []string{none, "nobody", "secret"}, "", Refused, "nobody"},
		{"OAUTHBEARER", []string{"n,a=bob,\x01auth=Bearer of-bob\x01\x01"}, "bob@home.test", 0, ""},
		{"OAUTHBEARER", []string{"n,a=alice,\x01auth=Bearer of-bob\x01\x01", "\x01"}, "", Refused, "alice"},
		{"XOAUTH2", []string{"user=bob\x01auth=Bearer bad\x01\x01", ""}, "", Refused, "bob"},
		{"XOAUTH2", []string{"user=ghost\x01auth=Bearer of-ghost\x01\x01", ""}, "", Refused, "ghost"},
		{"EXTERNAL", []string{"bob"}, "bob@home.test", 0, ""},
		{"EXTERNAL", []string{"alice"}, "", Refused, ""},
		{"SCRAM-SHA-256", []string{"n,,n=bob,r=short", "c=biws"}, "", Syntax, "bob"},
	} {
		r.log.Reset()
		s := r.Session(Client{Peer: home.String(), From: home.Addr(), TLS: cs})
		x, err := s.Begin(t.Context(), c.mechanism)
		if err != nil {
			t.Errorf("%s: %v", c.mechanism, err)
			continue
		}
		done := false
		for _, line := range c.responses {
			b := []byte(line)
			if line == none {
				b = nil
			}
			if _, done, err = x.Next(t.Context(), b); done || err != nil {
				break
			}
		}
		log := r.log.String()
		if c.user != "" {
			if !done || x.Identity().Address != c.user || !strings.Contains(log, "level=INFO msg=login peer=192.0.2.7:1234 user="+c.user+" role=pop3 mechanism="+c.mechanism+" tls=true") {
				t.Errorf("%s %q: %v %v %+v\n%s", c.mechanism, c.responses, done, err, x.Identity(), log)
			}
			continue
		}
		if err == nil || ClassOf(err) != c.class {
			t.Errorf("%s %q: %v, want class %d", c.mechanism, c.responses, err, c.class)
		}
		want := ""
		if c.class == Refused {
			want = `msg="login refused" peer=192.0.2.7:1234 user=` + c.claimed
		}
		if c.class == Syntax && log != "" || !strings.Contains(log, want) || strings.Contains(log, "wrong") {
			t.Errorf("%s %q: log %s", c.mechanism, c.responses, log)
		}
	}
}

func TestTickets(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.Tickets = true
	s := r.Session(Client{Peer: home.String(), From: home.Addr(), TLS: handshake(t, tls.VersionTLS13, nil)})
	var got []auth.Identity
	id, err := s.Password(t.Context(), "PASS", "alice", "secret")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, id)
	x, err := s.Begin(t.Context(), sasl.Plain)
	if err != nil {
		t.Fatal(err)
	}
	if _, done, err := x.Next(t.Context(), []byte("\x00alice\x00secret")); !done || err != nil {
		t.Fatal(done, err)
	}
	got = append(got, x.Identity())
	if x, err = s.Begin(t.Context(), auth.SCRAMSHA256Plus); err != nil {
		t.Fatal(err)
	}
	client, err := scram.SHA256.NewClient("bob", "secret", "")
	if err != nil {
		t.Fatal(err)
	}
	conv := client.NewConversationWithChannelBinding(scram.ChannelBinding{Type: "tls-exporter", Data: s.channel().Data})
	var challenge []byte
	for done := false; !done; {
		line, err := conv.Step(string(challenge))
		if err != nil {
			t.Fatal(err)
		}
		if challenge, done, err = x.Next(t.Context(), []byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	got = append(got, x.Identity())
	for i, want := range []string{"alice@home.test", "alice@home.test", "bob@home.test"} {
		who, err := r.service.Redeem(t.Context(), got[i].Ticket)
		if err != nil || who != want || got[i].Address != want {
			t.Errorf("%d: %+v is for %q, %v", i, got[i], who, err)
		}
	}
}

// TestPassword: what fail2ban reads is the same for a password without SASL, and a name from
// outside cannot forge a line.
func TestPassword(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.Session(Client{Peer: "[2001:db8::1]:5", From: netip.MustParseAddr("2001:db8::1"), Clear: true})
	names := []string{"alice", "x\nlevel=WARN msg=\"login refused\" peer=192.0.2.99:1 user=", strings.Repeat("x", 1000)}
	for _, name := range names {
		if _, err := s.Password(t.Context(), "PASS", name, "wrong"); ClassOf(err) != Refused {
			t.Errorf("%.20q: %v", name, err)
		}
	}
	filter := regexp.MustCompile(`(?m)^.* msg="login refused" peer=\[?([0-9a-f:.]+?)\]?:\d+ user=.* role=pop3 mechanism=PASS$`)
	found := filter.FindAllStringSubmatch(r.log.String(), -1)
	if len(found) != len(names) || strings.Count(r.log.String(), "\n") != len(names) {
		t.Fatalf("%q\n%s", found, &r.log)
	}
	for _, m := range found {
		if m[1] != "2001:db8::1" {
			t.Errorf("address %s", m[1])
		}
	}
	if strings.Contains(r.log.String(), strings.Repeat("x", 400)) {
		t.Error("a long name is not cut")
	}
	clear := r.Session(Client{})
	if _, err := clear.Password(t.Context(), "PASS", "alice", "secret"); ClassOf(err) != NeedTLS {
		t.Errorf("in clear: %v", err)
	}
	r.Options.Mechanisms = []string{"SCRAM-SHA-256"}
	if _, err := s.Password(t.Context(), "PASS", "alice", "secret"); ClassOf(err) != Unknown {
		t.Errorf("not among the mechanisms: %v", err)
	}
}

// TestQuit: a refusal that the client did not wait for is one all the same.
func TestQuit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.Session(Client{Peer: home.String(), Clear: true})
	x, err := s.Begin(t.Context(), sasl.OAuthBearer)
	if err != nil {
		t.Fatal(err)
	}
	if _, done, err := x.Next(t.Context(), []byte("n,,\x01auth=Bearer bad\x01\x01")); done || err != nil {
		t.Fatal(done, err)
	}
	if err := x.Quit(t.Context()); ClassOf(err) != Refused || strings.Count(r.log.String(), "login refused") != 1 {
		t.Errorf("%v\n%s", err, &r.log)
	}
	if err := x.Quit(t.Context()); err != nil {
		t.Errorf("twice: %v", err)
	}
}

func TestClassOf(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]Class{
		fmt.Errorf("%w: %w", auth.ErrSlow, sasl.ErrTemporary): Slow,
		fmt.Errorf("%w: %w", auth.ErrBusy, sasl.ErrTemporary): Busy,
		sasl.ErrTemporary:               Temporary,
		errors.New("disk is broken"):    Temporary,
		fmt.Errorf("x: %w", ErrUnknown): Unknown,
	} {
		if got := ClassOf(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.Delay = 30 * time.Millisecond
	begin := time.Now()
	if _, err := r.Session(Client{Clear: true}).Password(t.Context(), "PASS", "alice", "wrong"); ClassOf(err) != Refused {
		t.Fatal(err)
	}
	if d := time.Since(begin); d < r.Delay {
		t.Errorf("answered after %v", d)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	r.Delay = time.Hour
	r.Session(Client{}).pause(ctx)
}
