package service

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"pennypost/internal/auth"
	"pennypost/internal/sasl"
)

var (
	far     = netip.MustParseAddr("198.51.100.9")
	home2   = netip.MustParseAddr("192.0.2.200") // shares its network with home
	ctxTODO = context.Background()
)

func (r *rig) try(login, password string, from netip.Addr) error {
	_, err := r.Password(ctxTODO, login, password, from)
	return err
}

// wrong gives n different wrong passwords and returns how long they were held up in all.
func (r *rig) wrong(t *testing.T, n int, login string, from netip.Addr) time.Duration {
	t.Helper()
	r.clock.slept()
	for i := range n {
		if err := r.try(login, fmt.Sprintf("wrong-%d-%d", i, r.clock.now().UnixNano()), from); !errors.Is(err, sasl.ErrRefused) {
			t.Fatalf("wrong password %d: %v", i+1, err)
		}
	}
	return r.clock.slept()
}

func TestGuessesAreSlowed(t *testing.T) {
	r := newRig(t, files, nil)
	if d := r.wrong(t, freeAccount, "alice", far); d != 0 {
		t.Errorf("the first %d were held up %v", freeAccount, d)
	}
	// 1 + 2 + 4 + 8 seconds, and the next would be 16: put off.
	if d := r.wrong(t, 4, "alice", far); d != 15*time.Second {
		t.Errorf("the next 4 were held up %v", d)
	}
	if err := r.try("alice", "secret", far); !errors.Is(err, auth.ErrSlow) || !errors.Is(err, sasl.ErrTemporary) || errors.Is(err, sasl.ErrRefused) {
		t.Errorf("then: %v, want a temporary refusal", err)
	}
	// Being put off is not counted: after the waiting time the right password is let in.
	for range 100 {
		_ = r.try("alice", "secret", far)
	}
	r.clock.add(halfLife)
	if err := r.try("alice", "secret", far); err != nil {
		t.Errorf("a quarter of an hour later: %v", err)
	}
}

func TestGuessesOverManyAccountsAreSlowed(t *testing.T) {
	r := newRig(t, files, nil)
	for i := range freeNetwork {
		if d := r.wrong(t, 1, fmt.Sprintf("user%d", i), far); d != 0 {
			t.Errorf("guess %d was held up %v", i+1, d)
		}
	}
	neighbour := netip.MustParseAddr("198.51.100.200")
	if d := r.wrong(t, 1, "another", neighbour); d != time.Second {
		t.Errorf("the next from that network was held up %v, want 1s", d)
	}
	if d := r.wrong(t, 1, "another", home); d != 0 {
		t.Errorf("another network was held up %v", d)
	}
}

// Nobody elsewhere, and no neighbour, keeps a user out who has logged in before.
func TestUsersAreNotKeptOut(t *testing.T) {
	r := newRig(t, files, func(o *Options) { o.Keep = -1 })
	if err := r.try("alice", "secret", home); err != nil {
		t.Fatal(err)
	}
	r.wrong(t, freeAccount+4, "alice", far)
	for i := range freeNetwork + 4 {
		r.wrong(t, 1, fmt.Sprintf("user%d", i), home2)
	}
	r.clock.slept()
	if err := r.try("alice", "secret", home); err != nil {
		t.Errorf("from her own network: %v", err)
	}
	if d := r.clock.slept(); d != 0 {
		t.Errorf("from her own network: held up %v", d)
	}
	if err := r.try("alice", "secret", far); !errors.Is(err, auth.ErrSlow) {
		t.Errorf("from where it was guessed: %v, want put off", err)
	}
	// Guesses from her own network count too, for this account alone.
	r.wrong(t, freePair+4, "alice", home2)
	if err := r.try("alice", "secret", home); !errors.Is(err, auth.ErrSlow) {
		t.Errorf("after guesses from her own network: %v, want put off", err)
	}
}

// A phone with last year's password, behind the address of a whole office.
func TestOneRepeatedWrongPasswordLocksNobodyOut(t *testing.T) {
	both(t, files, func(t *testing.T, r *rig, c auth.Checker) {
		for range 200 {
			if _, err := c.Password(ctxTODO, "alice", "last year", home); !errors.Is(err, sasl.ErrRefused) {
				t.Fatal(err)
			}
		}
		for _, login := range []string{"alice", "carol"} {
			password := map[string]string{"alice": "secret", "carol": "pencil"}[login]
			if _, err := c.Password(ctxTODO, login, password, home2); err != nil {
				t.Errorf("%s beside it: %v", login, err)
			}
		}
		if d := r.clock.slept(); d != 0 {
			t.Errorf("held up %v", d)
		}
		// SCRAM does not show which password was wrong: it slows bob, and nobody beside him.
		for range 200 {
			_, err := converse(t, c, auth.Exchange{Mechanism: auth.SCRAMSHA256, From: home}, scram.SHA256, "bob", "last year", nil)
			if !errors.Is(err, sasl.ErrRefused) && !errors.Is(err, auth.ErrSlow) {
				t.Fatal(err)
			}
		}
		if r.clock.slept() == 0 {
			t.Error("200 wrong passwords for bob were not slowed")
		}
		for _, login := range []string{"alice", "carol", "dora"} {
			if _, err := c.Password(ctxTODO, login, "x", home2); !errors.Is(err, sasl.ErrRefused) {
				t.Errorf("%s beside him: %v", login, err)
			}
			if d := r.clock.slept(); d != 0 {
				t.Errorf("%s beside him: held up %v", login, d)
			}
		}
	})
}

// The wrong password of yesterday may be the right one of today.
func TestARepeatedPasswordThatBecomesRight(t *testing.T) {
	r := newRig(t, "alice@example.test:{PLAIN}old\n", nil)
	if err := r.try("alice", "new", home); !errors.Is(err, sasl.ErrRefused) {
		t.Fatal(err)
	}
	r.write(t, "alice@example.test:{PLAIN}new\n")
	if err := r.try("alice", "new", home); err != nil {
		t.Error(err)
	}
}

// A remembered password is dropped at once when the account changes or goes.
func TestRemembered(t *testing.T) {
	const argon = "alice@example.test:{ARGON2ID}$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$"
	r := newRig(t, files, nil)
	if err := r.try("alice", "secret", home); err != nil {
		t.Fatal(err)
	}
	if n := len(r.memo.m); n != 1 {
		t.Fatalf("%d remembered", n)
	}
	// While all hands are busy only a remembered one is let in.
	r.gate.line = make(chan struct{})
	if err := r.try("alice", "secret", home); err != nil {
		t.Errorf("remembered: %v", err)
	}
	if err := r.try("carol", "pencil", home); !errors.Is(err, auth.ErrBusy) || !errors.Is(err, sasl.ErrTemporary) {
		t.Errorf("not remembered: %v, want busy", err)
	}
	r.clock.add(6 * time.Minute)
	if err := r.try("alice", "secret", home); !errors.Is(err, auth.ErrBusy) {
		t.Errorf("after its time: %v, want busy", err)
	}
	r.gate = newGate(1, 1)
	r.write(t, strings.Replace(files, "{PLAIN}secret", "{PLAIN}other", 1))
	if err := r.try("alice", "secret", home); !errors.Is(err, sasl.ErrRefused) {
		t.Errorf("after a change: %v", err)
	}
	if err := r.try("alice", "other", home); err != nil {
		t.Error(err)
	}
	r.write(t, argon+"\n")
	if err := r.try("alice", "other", home); err == nil {
		t.Error("a broken hash let somebody in")
	}
	r.write(t, "# nobody\n")
	if err := r.try("alice", "other", home); !errors.Is(err, sasl.ErrRefused) {
		t.Errorf("after the account went: %v", err)
	}
}

func TestTickets(t *testing.T) {
	both(t, files, func(t *testing.T, r *rig, c auth.Checker) {
		login := func() string {
			id, err := c.Login(ctxTODO, auth.Attempt{Login: "alice", Password: "secret", From: home, Ticket: true})
			if err != nil || id.Ticket == "" || id.Address != "alice@example.test" {
				t.Fatalf("%+v %v", id, err)
			}
			return id.Ticket
		}
		one, two := login(), login()
		if a, err := c.Redeem(ctxTODO, one); a != "alice@example.test" || err != nil {
			t.Errorf("%q %v", a, err)
		}
		for name, ticket := range map[string]string{"twice": one, "invented": "AAAA", "none": ""} {
			if a, err := c.Redeem(ctxTODO, ticket); a != "" || !errors.Is(err, sasl.ErrRefused) {
				t.Errorf("%s: %q %v", name, a, err)
			}
		}
		r.clock.add(2 * ticketLife)
		if _, err := c.Redeem(ctxTODO, two); !errors.Is(err, sasl.ErrRefused) {
			t.Errorf("too late: %v", err)
		}
		s, err := converse(t, c, auth.Exchange{Mechanism: auth.SCRAMSHA256, From: home, Ticket: true}, scram.SHA256, "carol", "pencil", nil)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := c.Redeem(ctxTODO, s.Ticket()); a != "carol@example.test" || err != nil {
			t.Errorf("after SCRAM: %q %v", a, err)
		}
		three := login()
		r.write(t, "# everybody is gone\n")
		if _, err := c.Redeem(ctxTODO, three); !errors.Is(err, sasl.ErrRefused) {
			t.Errorf("of an account that is gone: %v", err)
		}
	})
}

// A peer that may ask may not take tickets for that.
func TestTicketsAreNotForEveryPeer(t *testing.T) {
	r := newRig(t, files, nil)
	c := r.socket(t, false)
	id, err := c.Login(ctxTODO, auth.Attempt{Login: "alice", Password: "secret", Ticket: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Redeem(ctxTODO, id.Ticket); !errors.Is(err, sasl.ErrRefused) {
		t.Errorf("taken: %v", err)
	}
	if a, err := r.Redeem(ctxTODO, id.Ticket); err != nil || a != "alice@example.test" {
		t.Errorf("and lost: %q %v", a, err)
	}
}

// Processes share the counts, a restart forgets none, and a lost or foreign file keeps nobody out.
func TestSharedCounts(t *testing.T) {
	state := filepath.Join(t.TempDir(), "guesses")
	shared := func(o *Options) { o.State = state }
	one := newRig(t, files, shared)
	one.wrong(t, freeAccount, "alice", far)
	if err := one.try("bob", "last year", home); !errors.Is(err, sasl.ErrRefused) {
		t.Fatal(err)
	}
	two := newRig(t, files, shared)
	if one.key != two.key {
		t.Fatal("two keys for one file")
	}
	if d := two.wrong(t, 1, "alice", far); d != time.Second {
		t.Errorf("another process held a guess up %v, want 1s", d)
	}
	fi, err := os.Stat(state)
	if err != nil || fi.Mode().Perm() != 0o600 || fi.Size() != tableSize {
		t.Fatalf("%v %v", fi, err)
	}
	if err := os.Remove(state); err != nil {
		t.Fatal(err)
	}
	if d := two.wrong(t, freeAccount+1, "alice", far); d != time.Second {
		t.Errorf("begun again: held up %v, want 1s", d)
	}
	if three := newRig(t, files, shared); three.key != one.key {
		t.Error("a file made again has another key than those who use it")
	}
	diary, open := filepath.Join(t.TempDir(), "diary"), filepath.Join(t.TempDir(), "open")
	if err := errors.Join(os.WriteFile(diary, []byte("diary\n"), 0o600), os.WriteFile(open, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{diary, open, filepath.Join(diary, "no", "guesses")} {
		if err := newRig(t, files, func(o *Options) { o.State = state }).try("alice", "secret", home); err != nil {
			t.Errorf("%s: %v", state, err)
		}
	}
	if b, _ := os.ReadFile(diary); string(b) != "diary\n" {
		t.Errorf("a foreign file was overwritten: %.20q", b)
	}
}

// A clock that was wrong for a day, in either direction, keeps nobody out for long.
func TestClockSetBack(t *testing.T) {
	r := newRig(t, files, nil)
	r.clock.add(24 * time.Hour)
	r.wrong(t, freeAccount+4, "alice", far)
	r.clock.add(-24 * time.Hour)
	_ = r.try("alice", "secret", far)
	r.clock.add(maxWait + maxDelay + halfLife)
	if err := r.try("alice", "secret", far); err != nil && !errors.Is(err, auth.ErrSlow) {
		t.Error(err)
	}
	r.clock.add(2 * halfLife)
	if err := r.try("alice", "secret", far); err != nil {
		t.Error(err)
	}
}

// Many guesses at the same moment get no more than one after another.
func TestGuessesAtOnce(t *testing.T) {
	r := newRig(t, files, func(o *Options) {
		o.Sleep = func(context.Context, time.Duration) error { return nil } // time stands still
	})
	var mu sync.Mutex
	looked := 0
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if err := r.try("alice", fmt.Sprint("wrong", i), far); errors.Is(err, sasl.ErrRefused) {
				mu.Lock()
				looked++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if looked > freeAccount+4 {
		t.Errorf("%d of 200 guesses were looked at in one moment, want %d", looked, freeAccount+4)
	}
}

func TestNetwork(t *testing.T) {
	for a, want := range map[string]string{
		"192.0.2.7": "192.0.2.0/24", "::ffff:192.0.2.9": "192.0.2.0/24", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := network(netip.MustParseAddr(a)).String(); got != want {
			t.Errorf("%s is in %s, want %s", a, got, want)
		}
	}
	if got := network(netip.Addr{}); got.IsValid() {
		t.Errorf("no address is in %s", got)
	}
}

// The table never grows, and a flood of names does not wash out who is being slowed.
func TestTableIsBounded(t *testing.T) {
	tb := newTable()
	now := time.Unix(1_800_000_000, 0)
	l := &limits{table: tb, now: func() time.Time { return now }}
	g := guess{account: "alice@example.test", from: network(far)}
	for range freeAccount + 3 {
		_, _ = l.begin(&g)
	}
	now = now.Add(time.Second)
	for i := range 20_000 {
		now = now.Add(time.Millisecond)
		_, _ = l.begin(&guess{account: fmt.Sprint(i), from: network(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}))})
	}
	if len(tb.mem) != tableSize {
		t.Errorf("%d octets", len(tb.mem))
	}
	if wait, err := l.begin(&g); wait == 0 && err == nil {
		t.Error("a flood of other names made the table forget who is being slowed")
	}
}

// What is logged names the user and the client, and never a password, wherever it stood.
func TestLog(t *testing.T) {
	var log bytes.Buffer
	var mu sync.Mutex
	r := newRig(t, files, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&lockedWriter{&mu, &log}, nil)) })
	c := r.socket(t, false)
	for i, q := range []string{"alice", "nobody", "broken", "alice@example.test"} {
		if _, err := c.Password(ctxTODO, q, "hunter2", home); err == nil {
			t.Error("let in")
		}
		_, _ = converse(t, c, auth.Exchange{Mechanism: auth.SCRAMSHA256, From: home}, scram.SHA256, "carol", fmt.Sprint("hunter2", i), nil)
	}
	for range 20 {
		_ = r.wrongOver(c, "alice")
	}
	mu.Lock()
	defer mu.Unlock()
	for _, want := range []string{"msg=\"login refused\" user=alice peer=192.0.2.7", "msg=\"password check failed\" user=broken", "msg=\"login put off\" user=alice", "user=carol peer=192.0.2.7 op=SCRAM-SHA-256"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %q in\n%s", want, log.String())
		}
	}
	if strings.Contains(log.String(), "hunter2") || strings.Contains(log.String(), "secret") {
		t.Errorf("a password in\n%s", log.String())
	}
}

func (r *rig) wrongOver(c auth.Checker, login string) error {
	_, err := c.Password(ctxTODO, login, "hunter2"+fmt.Sprint(r.clock.now().UnixNano())+rand.Text(), home)
	return err
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

// TestTicketsOfOneUser: a user who logs in all the time without a session, as one without a system
// account does, does not keep others out.
func TestTicketsOfOneUser(t *testing.T) {
	all := newTickets(time.Now)
	first := all.issue("bob@example.test", [16]byte{})
	for range 2*maxMemo + 10 {
		all.issue("alice@example.test", [16]byte{})
	}
	if len(all.m) > maxMemo {
		t.Errorf("%d tickets", len(all.m))
	}
	if a, _, ok := all.take(first); !ok || a != "bob@example.test" {
		t.Errorf("the ticket of another one is lost: %q", a)
	}
}
