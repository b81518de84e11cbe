package smtpd

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/auth/service"
	"pennypost/internal/login"
	"pennypost/internal/sasl"
	"pennypost/internal/smtp"
)

// fakePasswords: the password of everybody is "secret", of broken nothing is known, slow has
// been guessed at too often. There are no SCRAM records.
type fakePasswords struct{ auth.Checker }

func (fakePasswords) Password(_ context.Context, login, password string, _ netip.Addr) (string, error) {
	switch {
	case login == "broken":
		return "", fmt.Errorf("%w: no answer", sasl.ErrTemporary)
	case login == "slow":
		return "", fmt.Errorf("%w: %w", sasl.ErrTemporary, auth.ErrSlow)
	case password != "secret":
		return "", sasl.ErrRefused
	}
	return login + "@home.test", nil
}

func (fakePasswords) Mechanisms(context.Context) ([]string, error) { return nil, nil }

// step is one command, or answer to a challenge, and the start of the reply's last line.
type step struct{ say, want string }

// empty is an answer without any octet: client.ask says nothing at all for "".
const empty = "\r\n"

func (c *client) play(steps ...step) {
	c.t.Helper()
	for _, s := range steps {
		if got := c.ask(s.say); !strings.HasPrefix(got, s.want) {
			c.t.Fatalf("%q: %q, want %s", s.say, got, s.want)
		}
	}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// announced are the mechanisms of the reply to EHLO.
func (c *client) announced() string {
	c.t.Helper()
	if _, err := c.Write([]byte("EHLO c.test\r\n")); err != nil {
		c.t.Fatal(err)
	}
	found := ""
	for {
		s, err := c.br.ReadString('\n')
		if err != nil {
			c.t.Fatal(err)
		}
		if m, ok := strings.CutPrefix(s[4:], "AUTH "); ok {
			found = strings.TrimSpace(m)
		}
		if s[3] == ' ' {
			return found
		}
	}
}

// submissions connects under TLS and reads the greeting.
func (f *fixture) submissions(t *testing.T, config *tls.Config) *client {
	t.Helper()
	f.o.Role = Submissions
	c := f.connect(t)
	if config == nil {
		config = &tls.Config{}
	}
	config.InsecureSkipVerify = true
	c.Conn = tls.Client(c.Conn, config)
	c.br.Reset(c.Conn)
	c.ask("")
	return c
}

func TestLoginDialogue(t *testing.T) {
	f := newFixture(Submissions)
	f.submissions(t, nil).play(
		step{"EHLO c.test", "250"},
		step{"AUTH LOGIN", "334 VXNlcm5hbWU6"},
		step{b64("ann"), "334 UGFzc3dvcmQ6"},
		step{b64("Secret"), "535 5.7.8"},
		step{"AUTH LOGIN", "334"},
		step{"*", "501 5.7.0"},
		step{"AUTH LOGIN", "334"},
		step{"not base64!", "501 5.5.2"},
		step{"AUTH LOGIN", "334"},
		step{empty, "501 5.5.2"}, // an empty name
	)
	f.submissions(t, nil).play(
		step{"EHLO c.test", "250"},
		step{"AUTH LOGIN " + b64("slow"), "334"},
		step{b64("secret"), "454 4.7.0 too many failed logins"},
		step{"AUTH LOGIN " + b64("broken"), "334"},
		step{b64("secret"), "454 4.7.0 cannot check"},
		step{"AUTH LOGIN " + b64("ann"), "334"},
		step{b64("secret"), "235"},
		step{"AUTH LOGIN", "503"},
		step{"MAIL FROM:<ann@home.test>", "250"},
	)
	log := f.log.String()
	for _, want := range []string{
		`msg="login refused" peer=192.0.2.7:4711 user=ann role=submissions mechanism=LOGIN`,
		`msg="login put off" peer=192.0.2.7:4711 user=slow`,
		`msg="password check failed" peer=192.0.2.7:4711 user=broken`,
	} {
		if strings.Count(log, want) != 1 {
			t.Errorf("log lacks %s:\n%s", want, log)
		}
	}
	if strings.Contains(log, "ecret") {
		t.Errorf("a password is in the log:\n%s", log)
	}
}

func TestNoSecretsWithoutTLS(t *testing.T) {
	f := newFixture(Submission)
	f.o.Auth.Token = func(context.Context, string, string) (string, error) { return "ann", nil }
	c := f.connect(t)
	c.ask("")
	if got := c.announced(); got != "" {
		t.Errorf("announced %s", got)
	}
	for _, m := range []string{"PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2", "SCRAM-SHA-256", "EXTERNAL"} {
		c.play(step{"AUTH " + m, "538 5.7.11"})
	}
}

func TestAnnounced(t *testing.T) {
	withToken := func(f *fixture) {
		f.o.Auth.Token = func(context.Context, string, string) (string, error) { return "ann", nil }
	}
	tls12 := &tls.Config{MaxVersion: tls.VersionTLS12}
	for _, c := range []struct {
		name   string
		set    func(*fixture)
		config *tls.Config
		want   string
	}{
		{"passwords", func(*fixture) {}, nil, "PLAIN LOGIN"},
		{"nobody checks passwords", func(f *fixture) { f.o.Auth.Passwords = nil }, nil, ""},
		{"tokens", withToken, nil, "PLAIN LOGIN OAUTHBEARER XOAUTH2"},
		{"records", withRecords, nil, "SCRAM-SHA-256-PLUS SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN"},
		{"records, TLS 1.2", withRecords, tls12, "SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN"},
		{"configured", func(f *fixture) { withRecords(f); f.o.Auth.Mechanisms = []string{"PLAIN", "SCRAM-SHA-256", "EXTERNAL"} }, nil, "SCRAM-SHA-256 PLAIN"},
	} {
		f := newFixture(Submissions)
		f.realAccounts = newRecords(t)
		c.set(f)
		if got := f.submissions(t, c.config).announced(); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// withRecords lets a real service answer, from a file with a plain password.
func withRecords(f *fixture) {
	f.o.Auth.Passwords = service.New(service.Options{Accounts: f.realAccounts})
}

func newRecords(t *testing.T) *accounts.Accounts {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secrets")
	if err := os.WriteFile(path, []byte("ann@home.test:{PLAIN}secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := accounts.Open(accounts.Options{Domains: []string{"home.test"}, Secrets: path})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// scramLogin plays the client's side and returns the last reply.
func (c *client) scramLogin(mechanism, user, password string, binding *scram.ChannelBinding) string {
	c.t.Helper()
	h := scram.SHA256
	if strings.HasPrefix(mechanism, "SCRAM-SHA-1") {
		h = scram.SHA1
	}
	sc, err := h.NewClient(user, password, "")
	if err != nil {
		c.t.Fatal(err)
	}
	conv := sc.NewConversation()
	if binding != nil {
		conv = sc.NewConversationWithChannelBinding(*binding)
	}
	first, err := conv.Step("")
	if err != nil {
		c.t.Fatal(err)
	}
	reply := c.ask("AUTH " + mechanism + " " + b64(first))
	for !conv.Done() {
		text, ok := strings.CutPrefix(reply, "334 ")
		if !ok {
			return reply
		}
		challenge, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			c.t.Fatal(err)
		}
		answer, err := conv.Step(string(challenge))
		if err != nil {
			c.t.Fatal(err)
		}
		if reply = c.ask(cmp.Or(b64(answer), empty)); answer == "" {
			return reply
		}
	}
	if strings.HasPrefix(reply, "334 ") {
		reply = c.ask(empty)
	}
	return reply
}

func (c *client) exporter() *scram.ChannelBinding {
	c.t.Helper()
	cs := c.Conn.(*tls.Conn).ConnectionState()
	data, err := cs.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		c.t.Fatal(err)
	}
	return &scram.ChannelBinding{Type: "tls-exporter", Data: data}
}

func TestSCRAMDialogues(t *testing.T) {
	f := newFixture(Submissions)
	f.realAccounts = newRecords(t)
	withRecords(f)
	login := func(config *tls.Config, mechanism, user, password string, bind func(*client) *scram.ChannelBinding, want string) {
		t.Helper()
		c := f.submissions(t, config)
		c.announced()
		var b *scram.ChannelBinding
		if bind != nil {
			b = bind(c)
		}
		got := c.scramLogin(mechanism, user, password, b)
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s %s: %q, want %s", mechanism, password, got, want)
		}
		if want == "235" {
			c.play(step{"MAIL FROM:<ann@home.test>", "250"})
		}
	}
	other := func(*client) *scram.ChannelBinding {
		return &scram.ChannelBinding{Type: "tls-exporter", Data: make([]byte, 32)}
	}
	tls12 := func() *tls.Config { return &tls.Config{MaxVersion: tls.VersionTLS12} }
	login(nil, "SCRAM-SHA-256", "ann", "secret", nil, "235")
	login(nil, "SCRAM-SHA-1", "ann@home.test", "secret", nil, "235")
	login(tls12(), "SCRAM-SHA-256", "ann", "secret", nil, "235")
	login(nil, "SCRAM-SHA-256-PLUS", "ann", "secret", (*client).exporter, "235")
	login(nil, "SCRAM-SHA-256", "ann", "Secret", nil, "535")
	login(nil, "SCRAM-SHA-256", "nobody", "secret", nil, "535")
	login(nil, "SCRAM-SHA-256-PLUS", "ann", "Secret", (*client).exporter, "535")
	login(nil, "SCRAM-SHA-256-PLUS", "ann", "secret", other, "535") // a man in the middle
	login(tls12(), "SCRAM-SHA-256-PLUS", "ann", "secret", other, "504")

	c := f.submissions(t, nil)
	c.play(
		step{"EHLO c.test", "250"},
		step{"AUTH SCRAM-SHA-256", "334 "},
		step{"*", "501 5.7.0"},
		step{"AUTH SCRAM-SHA-256 " + b64("n,,n=ann,r=abcdefgh"), "334 "},
		step{"*", "501 5.7.0"}, // given up between the two steps
		step{"AUTH SCRAM-SHA-256 " + b64("nonsense"), "501 5.5.2"},
		step{"AUTH SCRAM-SHA-256 n,,", "501 5.5.2"},
		// Somebody took the -PLUS form out of the list: RFC 5802 §6.
		step{"AUTH SCRAM-SHA-256 " + b64("y,,n=ann,r=abcdefgh"), "5"},
	)
	log := f.log.String()
	if !strings.Contains(log, `msg="login refused" peer=192.0.2.7:4711 user=ann role=submissions mechanism=SCRAM-SHA-256-PLUS`) ||
		!strings.Contains(log, "user=nobody role=submissions mechanism=SCRAM-SHA-256\n") {
		t.Errorf("log:\n%s", log)
	}
}

func TestTokenDialogues(t *testing.T) {
	f := newFixture(Submissions)
	f.o.Auth.Token = func(_ context.Context, claimed, token string) (string, error) {
		switch token {
		case "ann":
			return "Ann@home.test", nil
		case "stranger":
			return "x@far.test", nil
		case "team":
			return "team@home.test", nil
		case "down":
			return "", errors.New("no answer")
		}
		return "", sasl.ErrRefused
	}
	bearer := func(user, token string) string { return b64("n,a=" + user + ",\x01auth=Bearer " + token + "\x01\x01") }
	x := func(user, token string) string { return b64("user=" + user + "\x01auth=Bearer " + token + "\x01\x01") }
	c := f.submissions(t, nil)
	c.play(
		step{"EHLO c.test", "250"},
		step{"AUTH OAUTHBEARER " + bearer("ann@home.test", "s3cret"), "334 " + b64(`{"status":"invalid_token"}`)},
		step{"AQ==", "535 5.7.8"},
		step{"AUTH XOAUTH2 " + x("ann@home.test", "s3cret"), "334 " + b64(`{"status":"401","schemes":"bearer"}`)},
		step{empty, "535 5.7.8"},
		step{"AUTH XOAUTH2 " + x("bob@home.test", "ann"), "334"}, // another's token
		step{empty, "535 5.7.8"},
		step{"AUTH XOAUTH2 " + x("ann@home.test", "down"), "454 4.7.0"},
		step{"AUTH OAUTHBEARER", "334 "},
		step{"*", "501 5.7.0"},
		step{"AUTH OAUTHBEARER " + b64("nonsense"), "501 5.5.2"},
		step{"QUIT", "221"},
	)
	c = f.submissions(t, nil)
	c.play(
		step{"EHLO c.test", "250"},
		step{"AUTH OAUTHBEARER " + b64("n,,\x01auth=Bearer stranger\x01\x01"), "334"}, // has no mailbox here
		step{"AQ==", "535 5.7.8"},
		step{"AUTH OAUTHBEARER " + b64("n,,\x01auth=Bearer team\x01\x01"), "334"}, // an alias is nobody
		step{"AQ==", "535 5.7.8"},
		step{"AUTH XOAUTH2 " + x("ann@home.test", "s3cret"), "334"},
		step{"*", "535 5.7.8"}, // giving up hides no refusal
		step{"AUTH OAUTHBEARER", "334"},
		step{bearer("ann@home.test", "ann"), "235"},
		step{"MAIL FROM:<ann@home.test>", "250"},
	)
	if log := f.log.String(); strings.Contains(log, "s3cret") || strings.Count(log, `msg="login refused"`) != 6 {
		t.Errorf("log:\n%s", log)
	}
	// Tokens of large providers do not fit a command line of the usual length.
	long := f.submissions(t, nil)
	f.o.Auth.Token = nil
	long.play(step{"EHLO c.test", "250"}, step{"AUTH XOAUTH2 " + x("ann@home.test", strings.Repeat("x", 6000)), "334"})
}

// clientCertificate makes one of itself.
func clientCertificate(t *testing.T, name string, addresses ...string) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, EmailAddresses: addresses, NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, hex.EncodeToString(sum[:])
}

func TestCertificateDialogues(t *testing.T) {
	ann, annPrint := clientCertificate(t, "Ann A.", "ann@home.test")
	both, _ := clientCertificate(t, "two", "ann@home.test", "bob@home.test", "x@far.test")
	nobody, _ := clientCertificate(t, "Nobody", "x@far.test")
	table := func(text string) *login.Table {
		path := filepath.Join(t.TempDir(), "certificates")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return login.NewCertificates(path, "home.test")
	}
	yes := func(*tls.ConnectionState) error { return nil }
	no := func(*tls.ConnectionState) error { return errors.New("unknown authority") }
	for _, c := range []struct {
		name      string
		cert      *tls.Certificate
		verify    func(*tls.ConnectionState) error
		table     *login.Table
		authz     string
		announced bool
		want      string
	}{
		{"an address in it", &ann, yes, nil, "=", true, "235"},
		{"as oneself", &ann, yes, nil, b64("ann@home.test"), true, "235"},
		{"as oneself, bare", &ann, yes, nil, b64("ann"), true, "235"},
		{"as another", &ann, yes, nil, b64("bob@home.test"), true, "535"},
		{"nobody vouches", &ann, no, nil, "=", false, "504"},
		{"no authority", &ann, nil, nil, "=", false, "504"},
		{"no certificate", nil, yes, nil, "=", false, "504"},
		{"address of a stranger", &nobody, yes, nil, "=", true, "535"},
		{"two accounts, no name", &both, yes, nil, "=", true, "535"},
		{"two accounts, one named", &both, yes, nil, b64("bob@home.test"), true, "235"},
		{"fingerprint, nobody vouches", &ann, nil, table("bob: sha256:" + annPrint + "\n"), "=", true, "235"},
		{"another's fingerprint", &nobody, nil, table("bob: sha256:" + annPrint + "\n"), "=", false, "504"},
		{"common name", &ann, yes, table("# of our authority\nbob@home.test: cn:Ann A.\n"), b64("bob@home.test"), true, "235"},
		{"the table goes before the addresses", &ann, yes, table("bob: cn:Ann A.\n"), b64("ann@home.test"), true, "535"},
		{"common name, nobody vouches", &ann, no, table("bob@home.test: cn:Ann A.\n"), "=", false, "504"},
		{"broken table", &ann, yes, table("bob\n"), "=", false, "504"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(Submissions)
			f.askCertificate = true
			f.o.Auth.VerifyClient, f.o.Auth.Certificates = c.verify, c.table
			config := &tls.Config{}
			if c.cert != nil {
				config.Certificates = []tls.Certificate{*c.cert}
			}
			cl := f.submissions(t, config)
			if got := strings.Contains(cl.announced(), "EXTERNAL"); got != c.announced {
				t.Errorf("announced: %v", got)
			}
			cl.play(step{"AUTH EXTERNAL " + c.authz, c.want})
		})
	}
}

func TestLocalExternal(t *testing.T) {
	uid := 1000
	for _, c := range []struct{ authz, want string }{
		{"=", "235"}, {b64("carl"), "235"}, {b64("carl@home.test"), "235"}, {b64("carl@mx.home.test"), "235"},
		{b64("ann"), "535"}, {b64("carl@far.test"), "535"}, {b64("root"), "535"},
	} {
		f := newFixture(Local)
		f.peer = smtp.Peer{UID: &uid}
		f.o.Login = func(context.Context, int) (string, error) { return "carl", nil }
		got := f.say(t, "EHLO c.test", "AUTH EXTERNAL "+c.authz)
		if !strings.HasPrefix(got[1], c.want) {
			t.Errorf("%s: %q, want %s", c.authz, got[1], c.want)
		}
		if strings.Contains(f.log.String(), `msg="login refused" peer=uid:1000`) != (c.want == "535") {
			t.Errorf("%s: log %s", c.authz, f.log.String())
		}
	}
	f := newFixture(Local)
	f.peer = smtp.Peer{UID: &uid}
	if got := f.say(t, "EHLO c.test", "AUTH PLAIN AGFubgBzZWNyZXQ="); got[1][:3] != "504" {
		t.Errorf("a password on the local socket: %s", got[1])
	}
}
