// Package auth asks who a user is. It has the questions (Checker), a Client that puts them to
// "mpasswd serve", and Serve, which answers for it: both ends of the socket of mauth(7), whose
// lines it hides. The one who knows the answers is auth/service; who only asks does not link it,
// nor the tables of Unicode that SCRAM needs and that take a quarter of a millisecond to set up.
package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"pennypost/internal/sasl"
)

// SCRAM mechanisms, RFC 5802 and RFC 7677. The -PLUS forms are the same with a channel binding.
const (
	SCRAMSHA1       = "SCRAM-SHA-1"
	SCRAMSHA1Plus   = "SCRAM-SHA-1-PLUS"
	SCRAMSHA256     = "SCRAM-SHA-256"
	SCRAMSHA256Plus = "SCRAM-SHA-256-PLUS"
)

// MaxSCRAM bounds a message of SCRAM: a name, a nonce and a proof need a few hundred octets.
const MaxSCRAM = 4096

// ErrSlow says that too many wrong passwords were given for the account, or from the network,
// for this one to be looked at now. It comes wrapped together with sasl.ErrTemporary.
var ErrSlow = errors.New("too many failed logins, try again later")

// ErrBusy says that more passwords wait to be checked than may. It comes wrapped together with
// sasl.ErrTemporary.
var ErrBusy = errors.New("too many logins at once, try again later")

// Checker is what a daemon needs; *Client and *service.Service are ones. An error wraps sasl.ErrRefused
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

// Usable keeps out what no account can have and what a line of JSON cannot hold.
func (a Attempt) Usable() bool {
	return a.Login != "" && a.Password != "" && len(a.Login) <= 1024 && len(a.Password) <= 1024 &&
		utf8.ValidString(a.Login) && utf8.ValidString(a.Password)
}

// Exchange says how SCRAM is to be spoken.
type Exchange struct {
	Mechanism string // one of the four above
	Binding   Binding
	From      netip.Addr
	Ticket    bool // a ticket is wanted
}

// check refuses a mechanism that is none of SCRAM.
func (x Exchange) check() error {
	switch strings.TrimSuffix(x.Mechanism, "-PLUS") {
	case SCRAMSHA1, SCRAMSHA256:
		return nil
	}
	return fmt.Errorf("%w: unknown mechanism %q", sasl.ErrSyntax, x.Mechanism)
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
