// Package auth decides who a user is: it checks passwords and speaks the server's side of SCRAM,
// bounds the work, slows guessing down, and hands out tickets. It hides the stored records, the
// remembered passwords, the state of the limits and the socket of mauth(7). A Service does all
// that in its own process; a Client asks the Service of "mpasswd serve". Both give the same
// answers to the same questions.
package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/sasl"
)

// SCRAM mechanisms, RFC 5802 and RFC 7677. The -PLUS forms are the same with a channel binding.
const (
	SCRAMSHA1       = "SCRAM-SHA-1"
	SCRAMSHA1Plus   = "SCRAM-SHA-1-PLUS"
	SCRAMSHA256     = "SCRAM-SHA-256"
	SCRAMSHA256Plus = "SCRAM-SHA-256-PLUS"
)

// ErrSlow says that too many wrong passwords were given for the account, or from the network,
// for this one to be looked at now. It comes wrapped together with sasl.ErrTemporary.
var ErrSlow = errors.New("too many failed logins, try again later")

// ErrBusy says that more passwords wait to be checked than may. It comes wrapped together with
// sasl.ErrTemporary.
var ErrBusy = errors.New("too many logins at once, try again later")

// Checker is what a daemon needs; *Service and *Client are ones. An error wraps sasl.ErrRefused
// when the answer is no, sasl.ErrSyntax when the client's words do not fit, and is temporary
// otherwise: then it wraps sasl.ErrTemporary. It may be used by many goroutines at once.
type Checker interface {
	// Password checks one password. from is the client's true address, the zero Addr when there
	// is none; the limits count by it. The answer may take seconds where guessing is slowed.
	Password(ctx context.Context, login, password string, from netip.Addr) (address string, err error)
	// Login is Password that also hands out a ticket, when asked.
	Login(ctx context.Context, a Attempt) (Identity, error)
	// SCRAM begins an exchange. Its last challenge wants an empty response. Whoever gives an
	// exchange up before it is done or failed calls Close.
	SCRAM(ctx context.Context, x Exchange) (Server, error)
	// Mechanisms lists the SCRAM mechanisms, without their -PLUS forms, that some account can
	// use; the others are not worth announcing.
	Mechanisms(ctx context.Context) ([]string, error)
	// Redeem takes a ticket, once, and tells whose it was.
	Redeem(ctx context.Context, ticket string) (address string, err error)
}

// Attempt is a password to check.
type Attempt struct {
	Login    string
	Password string
	From     netip.Addr
	Ticket   bool // a ticket is wanted
}

// Exchange says how SCRAM is to be spoken.
type Exchange struct {
	Mechanism string // one of the four above
	Binding   Binding
	From      netip.Addr
	Ticket    bool // a ticket is wanted
}

// Server is the server's side of one SCRAM exchange.
type Server interface {
	sasl.Server
	Ticket() string // after success, when one was wanted
	Close()         // gives the exchange up; after its end it does nothing
}

// Identity is who an Attempt was right for.
type Identity struct {
	Address string
	Ticket  string
}

// Binding is the TLS channel that SCRAM can be bound to. A server that announces a -PLUS
// mechanism gives it for the plain forms as well: RFC 5802 §6 has the client tell in either
// whether somebody took the -PLUS out of the list. The zero Binding is no TLS, or a TLS without.
type Binding struct {
	Type string // "tls-exporter", RFC 9266
	Data []byte
}

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

// temporary makes err one that says nothing about the password.
func temporary(err error) error {
	if errors.Is(err, sasl.ErrTemporary) {
		return err
	}
	return fmt.Errorf("%w: %w", sasl.ErrTemporary, err)
}

// Password implements Checker.
func (s *Service) Password(ctx context.Context, login, password string, from netip.Addr) (string, error) {
	id, err := s.Login(ctx, Attempt{Login: login, Password: password, From: from})
	return id.Address, err
}

// Login implements Checker.
func (s *Service) Login(ctx context.Context, a Attempt) (Identity, error) {
	if !usable(a) {
		return Identity{}, sasl.ErrRefused
	}
	sec, known, err := s.o.Accounts.Secret(a.Login)
	if err != nil {
		return Identity{}, temporary(err)
	}
	g := guess{account: sec.Address, from: network(a.From)}
	if sec.Address == "" {
		g.account = "?" + a.Login // no address: counted all the same
	}
	print := s.fingerprint("password", sec.Address, fullText(sec), a.Password)
	if known && s.memo.has(print) && sec.Refused == nil {
		return s.identity(sec, a.Ticket)
	}
	if s.limits.repeated(g, print) {
		if !s.asksProgram(&sec, known) {
			return Identity{}, sasl.ErrRefused
		}
		g.free = true // wrong before, and right by now if it was set meanwhile: only the program knows
	}
	if err := s.slow(ctx, &g); err != nil {
		return Identity{}, err
	}
	ok, err := s.verify(ctx, &sec, known, a.Password, a.From)
	switch {
	case err != nil:
		s.limits.undo(g)
		return Identity{}, temporary(err)
	case !ok:
		if !g.free {
			s.limits.failed(g, print)
		}
		return Identity{}, sasl.ErrRefused
	}
	s.limits.succeeded(g)
	if known {
		s.memo.add(print)
	}
	return s.identity(sec, a.Ticket)
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
			return temporary(err)
		}
	}
	return nil
}

// identity is the answer to a right password.
func (s *Service) identity(sec accounts.Secret, ticket bool) (Identity, error) {
	id := Identity{Address: sec.Address}
	if !ticket {
		return id, nil
	}
	var err error
	if id.Ticket, err = s.tickets.issue(sec.Address, s.fingerprint("ticket", sec.Address, fullText(sec), "")); err != nil {
		return Identity{}, temporary(err)
	}
	return id, nil
}

// Redeem implements Checker. A ticket whose account has changed since is worth nothing.
func (s *Service) Redeem(_ context.Context, ticket string) (string, error) {
	address, print, ok := s.tickets.take(ticket)
	if !ok {
		return "", sasl.ErrRefused
	}
	sec, known, err := s.o.Accounts.Secret(address)
	if err != nil {
		return "", temporary(err)
	}
	if (!known && len(s.o.Program) == 0) || s.fingerprint("ticket", sec.Address, fullText(sec), "") != print {
		return "", sasl.ErrRefused
	}
	return address, nil
}

// Mechanisms implements Checker.
func (s *Service) Mechanisms(context.Context) ([]string, error) {
	have, plain, err := s.o.Accounts.SCRAM()
	if err != nil {
		return nil, temporary(err)
	}
	var out []string
	for _, m := range []string{SCRAMSHA256, SCRAMSHA1} {
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
