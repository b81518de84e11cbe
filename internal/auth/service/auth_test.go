package service

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/sasl"
)

// clock is a time that the test moves; sleeping moves it too.
type clock struct {
	mu    sync.Mutex
	t     time.Time
	total time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func (c *clock) sleep(_ context.Context, d time.Duration) error {
	c.add(d)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total += d
	return nil
}

// slept returns how long was slept since it was last asked.
func (c *clock) slept() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.total
	c.total = 0
	return d
}

var home = netip.MustParseAddr("192.0.2.7")

const files = `alice@example.test:{PLAIN}secret
# a hash and keys
bob@example.test:{SHA256}K7gNU3sdo+OL0wNhqoVWhr3g6s1xYv72ol/pe/Unols=
bob@example.test:{SCRAM-SHA-256}4096,W22ZaJ0SNY7soEsUEjb6gQ==,WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=
carol@example.test:{SCRAM-SHA-256}4096,W22ZaJ0SNY7soEsUEjb6gQ==,WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=
locked@example.test:{PLAIN}secret::::::nologin
broken@example.test:{NOSUCH}x
`

// rig is a service over secrets, asked directly or over a socket.
type rig struct {
	*Service
	clock   *clock
	dir     string
	secrets string
}

func newRig(t testing.TB, secrets string, change func(*Options)) *rig {
	t.Helper()
	r := &rig{clock: &clock{t: time.Unix(1_800_000_000, 0)}, dir: t.TempDir()}
	r.secrets = filepath.Join(r.dir, "secrets")
	r.write(t, secrets)
	acc, err := accounts.Open(accounts.Options{Domains: []string{"example.test"}, Secrets: r.secrets})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Accounts: acc, Now: r.clock.now, Sleep: r.clock.sleep}
	if change != nil {
		change(&o)
	}
	r.Service = New(o)
	return r
}

// write replaces secrets as mpasswd does.
func (r *rig) write(t testing.TB, secrets string) {
	t.Helper()
	if err := os.WriteFile(r.secrets+".new", []byte(secrets), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(r.secrets+".new", r.secrets); err != nil {
		t.Fatal(err)
	}
}

// socket serves r on a UNIX socket and returns a client of it.
func (r *rig) socket(t testing.TB, redeem bool) *auth.Client {
	t.Helper()
	path := filepath.Join(r.dir, "auth")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if err := r.Serve(ctx, c, redeem); err != nil {
					t.Log(err)
				}
			}()
		}
	}()
	c := auth.NewClient(path)
	t.Cleanup(func() {
		c.Close()
		cancel()
		l.Close()
		<-done
	})
	return c
}

// both runs a test on the service itself and through the socket.
func both(t *testing.T, secrets string, f func(t *testing.T, r *rig, c auth.Checker)) {
	t.Run("direct", func(t *testing.T) {
		r := newRig(t, secrets, nil)
		f(t, r, r.Service)
	})
	t.Run("socket", func(t *testing.T) {
		r := newRig(t, secrets, nil)
		f(t, r, r.socket(t, true))
	})
}

func TestPassword(t *testing.T) {
	both(t, files, func(t *testing.T, _ *rig, c auth.Checker) {
		for _, q := range []struct {
			name, login, password, address string
			err                            error
		}{
			{"right", "alice@example.test", "secret", "alice@example.test", nil},
			{"right again, remembered", "alice@example.test", "secret", "alice@example.test", nil},
			{"bare name, upper case", "ALICE", "secret", "alice@example.test", nil},
			{"wrong", "alice@example.test", "Secret", "", sasl.ErrRefused},
			{"hash beside keys", "bob", "secret", "bob@example.test", nil},
			{"the keys' password is not the hash's", "bob", "pencil", "", sasl.ErrRefused},
			{"keys alone", "carol", "pencil", "carol@example.test", nil},
			{"keys alone, wrong", "carol", "secret", "", sasl.ErrRefused},
			{"nobody", "dora", "secret", "", sasl.ErrRefused},
			{"no address", "a b c", "secret", "", sasl.ErrRefused},
			{"nologin", "locked", "secret", "", sasl.ErrRefused},
			{"empty", "alice", "", "", sasl.ErrRefused},
			{"NUL", "alice", "secret\x00", "", sasl.ErrRefused},
			{"line end", "alice", "secret\n", "", sasl.ErrRefused},
			{"not UTF-8", "alice", "secr\xe9t", "", sasl.ErrRefused},
			{"too long", "alice", strings.Repeat("x", 2000), "", sasl.ErrRefused},
			{"unusable record", "broken", "secret", "", sasl.ErrTemporary},
		} {
			address, err := c.Password(context.Background(), q.login, q.password, home)
			if address != q.address || !errors.Is(err, q.err) {
				t.Errorf("%s: %q %v, want %q %v", q.name, address, err, q.address, q.err)
			}
		}
	})
}

// converse runs a whole exchange with the library's client.
func converse(t *testing.T, c auth.Checker, x auth.Exchange, h scram.HashGeneratorFcn, login, password string, cb *scram.ChannelBinding) (auth.Server, error) {
	t.Helper()
	client, err := h.NewClient(login, password, "")
	if err != nil {
		t.Fatal(err)
	}
	conv := client.NewConversation()
	if cb != nil {
		conv = client.NewConversationWithChannelBinding(*cb)
	}
	s, err := c.SCRAM(context.Background(), x)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if ch, done, err := s.Next(context.Background(), nil); err != nil || done || len(ch) != 0 {
		t.Fatalf("without an initial response: %q %v %v", ch, done, err)
	}
	challenge := ""
	for range 3 {
		msg, err := conv.Step(challenge)
		if err != nil {
			t.Fatalf("the client does not trust %q: %v", challenge, err)
		}
		b, done, err := s.Next(context.Background(), []byte(msg))
		if err != nil {
			return s, err
		}
		if done {
			if !conv.Valid() {
				t.Fatal("accepted, and the client has not seen the server's proof")
			}
			return s, nil
		}
		challenge = string(b)
	}
	t.Fatal("no end of it")
	return nil, nil
}

func TestSCRAM(t *testing.T) {
	channel := auth.Binding{Type: "tls-exporter", Data: []byte("0123456789abcdef0123456789abcdef")}
	bind := func(data string) *scram.ChannelBinding {
		return &scram.ChannelBinding{Type: scram.ChannelBindingTLSExporter, Data: []byte(data)}
	}
	both(t, files, func(t *testing.T, _ *rig, c auth.Checker) {
		for _, q := range []struct {
			name, mech      string
			login, password string
			channel         auth.Binding
			client          *scram.ChannelBinding
			user            string
			err             error
		}{
			{"stored keys", auth.SCRAMSHA256, "carol@example.test", "pencil", auth.Binding{}, nil, "carol@example.test", nil},
			{"keys beside a hash", auth.SCRAMSHA256, "bob", "pencil", channel, nil, "bob@example.test", nil},
			{"password as it is", auth.SCRAMSHA256, "alice", "secret", auth.Binding{}, nil, "alice@example.test", nil},
			{"SHA-1", auth.SCRAMSHA1, "alice", "secret", auth.Binding{}, nil, "alice@example.test", nil},
			{"no keys for SHA-1", auth.SCRAMSHA1, "carol", "pencil", auth.Binding{}, nil, "", sasl.ErrRefused},
			{"wrong", auth.SCRAMSHA256, "carol", "pencil2", auth.Binding{}, nil, "", sasl.ErrRefused},
			{"nobody", auth.SCRAMSHA256, "dora", "pencil", auth.Binding{}, nil, "", sasl.ErrRefused},
			{"nologin", auth.SCRAMSHA256, "locked", "secret", auth.Binding{}, nil, "", sasl.ErrRefused},
			{"bound", auth.SCRAMSHA256Plus, "carol", "pencil", channel, bind(string(channel.Data)), "carol@example.test", nil},
			{"bound, SHA-1", auth.SCRAMSHA1Plus, "alice", "secret", channel, bind(string(channel.Data)), "alice@example.test", nil},
			{"bound to another channel", auth.SCRAMSHA256Plus, "carol", "pencil", channel, bind("man in the middle"), "", sasl.ErrRefused},
			{"PLUS without a binding", auth.SCRAMSHA256Plus, "carol", "pencil", channel, nil, "", sasl.ErrRefused},
			{"unknown mechanism", "SCRAM-MD5", "carol", "pencil", channel, nil, "", sasl.ErrSyntax},
		} {
			h := scram.SHA256
			if strings.HasPrefix(q.mech, auth.SCRAMSHA1) {
				h = scram.SHA1
			}
			s, err := converse(t, c, auth.Exchange{Mechanism: q.mech, Binding: q.channel, From: home}, h, q.login, q.password, q.client)
			if !errors.Is(err, q.err) {
				t.Errorf("%s: %v, want %v", q.name, err, q.err)
			} else if err == nil && s.User() != q.user {
				t.Errorf("%s: %q, want %q", q.name, s.User(), q.user)
			}
		}
	})
}
