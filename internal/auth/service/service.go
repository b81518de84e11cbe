// Package service knows who a user is: it checks passwords and speaks the server's side of SCRAM,
// bounds the work, slows guessing down, and hands out tickets. It hides the stored records, the
// remembered passwords and the state of the limits. "mpasswd serve" answers the questions of
// package auth with it, and so does a daemon that checks passwords in its own process.
package service

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/sasl"
)

// Options say what a Service works with.
type Options struct {
	Accounts *accounts.Accounts
	// Program is asked about logins that Accounts has no secret for, by the checkpassword
	// interface; the first element is the program. Empty: nobody is asked.
	Program []string
	Hashes  int           // passwords in work at once; default the number of CPUs
	Queue   int           // passwords that wait for their turn; default 256
	Keep    time.Duration // how long a right password is remembered; default 5m, below 0 not at all
	// State is the file that the counts of wrong passwords are kept in, so that processes share
	// them and a restart forgets none. "", or one that cannot be used, is memory.
	State string
	Now   func() time.Time                                 // default time.Now
	Sleep func(ctx context.Context, d time.Duration) error // default a timer
	// Log gets the faults of the service itself and, by Serve, a line for each login that failed;
	// a daemon that asks in its own process has its own line for it.
	Log *slog.Logger
}

// Service checks passwords in this process. It may be used by many goroutines at once.
type Service struct {
	o       Options
	key     [32]byte // of all keyed hashes; the same in all processes that share State
	gate    *gate
	limits  *limits
	memo    *memo
	tickets *tickets
}

// New makes a Service.
func New(o Options) *Service {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Sleep == nil {
		o.Sleep = sleep
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Keep == 0 {
		o.Keep = 5 * time.Minute
	}
	t, err := openTable(o.State)
	if err != nil {
		o.Log.Warn("counts of wrong passwords are kept in memory only", "file", o.State, "err", err)
		t = newTable()
	}
	s := &Service{
		o: o, key: t.key, gate: newGate(o.Hashes, o.Queue), limits: &limits{table: t, now: o.Now},
		memo: newMemo(o.Keep, o.Now), tickets: newTickets(o.Now),
	}
	return s
}

// Serve answers the requests of one connection of mauth(7), until the peer has no more or ctx ends.
// redeem tells whether the peer may take tickets.
func (s *Service) Serve(ctx context.Context, c net.Conn, redeem bool) error {
	return auth.Serve(ctx, c, s, redeem, s.o.Log)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Password implements auth.Checker.
func (s *Service) Password(ctx context.Context, login, password string, from netip.Addr) (string, error) {
	id, err := s.Login(ctx, auth.Attempt{Login: login, Password: password, From: from})
	return id.Address, err
}

// Login implements auth.Checker.
func (s *Service) Login(ctx context.Context, a auth.Attempt) (auth.Identity, error) {
	if !a.Usable() {
		return auth.Identity{}, sasl.ErrRefused
	}
	sec, known, err := s.o.Accounts.Secret(a.Login)
	if err != nil {
		return auth.Identity{}, sasl.Temporary(err)
	}
	g := guess{account: sec.Address, from: network(a.From)}
	if sec.Address == "" {
		g.account = "?" + a.Login // no address: counted all the same
	}
	print := s.fingerprint("password", sec.Address, fullText(sec), a.Password)
	if known && s.memo.has(print) && sec.Refused == nil {
		return s.identity(sec, a.Ticket), nil
	}
	if s.limits.repeated(g, print) {
		if !s.asksProgram(&sec, known) {
			return auth.Identity{}, sasl.ErrRefused
		}
		g.free = true // wrong before, and right by now if it was set meanwhile: only the program knows
	}
	if err := s.slow(ctx, &g); err != nil {
		return auth.Identity{}, err
	}
	ok, err := s.verify(ctx, &sec, known, a.Password, a.From)
	switch {
	case err != nil:
		s.limits.undo(g)
		return auth.Identity{}, sasl.Temporary(err)
	case !ok:
		if !g.free {
			s.limits.failed(g, print)
		}
		return auth.Identity{}, sasl.ErrRefused
	}
	s.limits.succeeded(g)
	if known {
		s.memo.add(print)
	}
	return s.identity(sec, a.Ticket), nil
}

// slow counts the guess and waits as long as the limits ask for.
func (s *Service) slow(ctx context.Context, g *guess) error {
	if g.free {
		return nil
	}
	wait, err := s.limits.begin(g)
	if err != nil {
		return fmt.Errorf("%w: %w", sasl.ErrTemporary, err)
	}
	if wait > 0 {
		if err := s.o.Sleep(ctx, wait); err != nil {
			return sasl.Temporary(err)
		}
	}
	return nil
}

// identity is the answer to a right password.
func (s *Service) identity(sec accounts.Secret, ticket bool) auth.Identity {
	id := auth.Identity{Address: sec.Address}
	if ticket {
		id.Ticket = s.tickets.issue(sec.Address, s.fingerprint("ticket", sec.Address, fullText(sec), ""))
	}
	return id
}

// Redeem implements auth.Checker. A ticket whose account has changed since is worth nothing.
func (s *Service) Redeem(_ context.Context, ticket string) (string, error) {
	address, print, ok := s.tickets.take(ticket)
	if !ok {
		return "", sasl.ErrRefused
	}
	sec, known, err := s.o.Accounts.Secret(address)
	if err != nil {
		return "", sasl.Temporary(err)
	}
	if (!known && len(s.o.Program) == 0) || s.fingerprint("ticket", sec.Address, fullText(sec), "") != print {
		return "", sasl.ErrRefused
	}
	return address, nil
}

// Mechanisms implements auth.Checker.
func (s *Service) Mechanisms(context.Context) ([]string, error) {
	have, plain, err := s.o.Accounts.SCRAM()
	if err != nil {
		return nil, sasl.Temporary(err)
	}
	var out []string
	for _, m := range []string{auth.SCRAMSHA256, auth.SCRAMSHA1} {
		for _, h := range have {
			if h == m && !plain {
				out = append(out, m)
			}
		}
		if plain {
			out = append(out, m)
		}
	}
	return out, nil
}
