// Package sasl holds the authentication mechanisms of RFC 4422 as state machines without a
// wire: SMTP, POP3 and IMAP carry their challenges and responses, each in its own framing.
package sasl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Mechanism names as they stand in AUTH and AUTHENTICATE.
const (
	Plain       = "PLAIN"
	Login       = "LOGIN"
	External    = "EXTERNAL"
	OAuthBearer = "OAUTHBEARER"
	XOAuth2     = "XOAUTH2"
)

// Errors a Server may wrap. A protocol answers each with its own code.
var (
	ErrRefused   = errors.New("wrong user name or password")             // 535 5.7.8
	ErrTemporary = errors.New("authentication does not work right now")  // 454 4.7.0
	ErrSyntax    = errors.New("response does not fit the mechanism")     // 501 5.5.2
	ErrNeedTLS   = errors.New("mechanism needs an encrypted connection") // 538 5.7.11
)

// Temporary makes err one that says nothing about the password.
func Temporary(err error) error {
	if errors.Is(err, ErrTemporary) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrTemporary, err)
}

// Server is the server's side of one exchange; it is used once, by one goroutine.
type Server interface {
	// Next takes the client's response, nil where it sent none yet (no initial response), and
	// gives the next challenge. With done the exchange has succeeded and User tells who it is.
	Next(ctx context.Context, response []byte) (challenge []byte, done bool, err error)
	// User is the authorized identity after success.
	User() string
}

// Claimer is implemented by a Server that can tell, for the log, whom the client says to be:
// "" until it has said so.
type Claimer interface{ Claimed() string }

// Quitter is implemented by a Server whose refusal goes through a challenge: it has been decided
// before the exchange is over. Quit is called when the client gives up instead of answering, and
// returns the refusal that it would have got, nil where nothing was decided.
type Quitter interface {
	Quit(ctx context.Context) error
}

// Client is the client's side of one exchange; it is used once, by one goroutine.
type Client interface {
	// Mechanism is the name to say in AUTH.
	Mechanism() string
	// Start gives the initial response; ok is false for a mechanism that waits for a challenge.
	Start() (initial []byte, ok bool)
	// Next answers a challenge.
	Next(challenge []byte) (response []byte, err error)
}

// CheckFunc checks a password. user is the account's name after success. ErrRefused (wrapped or
// not) says no; every other error is temporary.
type CheckFunc func(ctx context.Context, login, password string) (user string, err error)

// maxField bounds a name and maxPassword a password. RFC 4616 §2 has servers take 255 octets of
// each; accounts may have passwords of up to 1024.
const (
	maxField    = 255
	maxPassword = 1024
)

type plainServer struct {
	check       CheckFunc
	login, user string
	asked       bool
}

// NewPlainServer is the server's side of PLAIN, RFC 4616. An authorization identity other than
// the login itself is refused: nobody may act as somebody else.
func NewPlainServer(check CheckFunc) Server { return &plainServer{check: check} }

func (p *plainServer) User() string { return p.user }

// Claimed implements Claimer.
func (p *plainServer) Claimed() string { return p.login }

func (p *plainServer) Next(ctx context.Context, response []byte) ([]byte, bool, error) {
	if response == nil && !p.asked {
		p.asked = true
		return []byte{}, false, nil
	}
	authz, login, password, err := parsePlain(response)
	if err != nil {
		return nil, false, err
	}
	p.login = login
	user, err := p.check(ctx, login, password)
	if err != nil {
		return nil, false, err
	}
	if authz != "" && authz != login && authz != user {
		return nil, false, fmt.Errorf("%w: %q may not act as %q", ErrRefused, login, authz)
	}
	p.user = user
	return nil, true, nil
}

// parsePlain splits [authzid] NUL authcid NUL passwd, RFC 4616 §2.
func parsePlain(b []byte) (authz, login, password string, err error) {
	f := bytes.Split(b, []byte{0})
	if len(f) != 3 || !utf8.Valid(b) {
		return "", "", "", ErrSyntax
	}
	if len(f[1]) == 0 || len(f[2]) == 0 {
		return "", "", "", ErrSyntax
	}
	if len(f[0]) > maxField || len(f[1]) > maxField || len(f[2]) > maxPassword {
		return "", "", "", ErrSyntax
	}
	return string(f[0]), string(f[1]), string(f[2]), nil
}

type plainClient struct{ authz, login, password string }

// NewPlainClient is the client's side of PLAIN. authz is usually empty.
func NewPlainClient(authz, login, password string) Client {
	return plainClient{authz, login, password}
}

func (p plainClient) Mechanism() string { return Plain }

func (p plainClient) Start() ([]byte, bool) {
	return []byte(p.authz + "\x00" + p.login + "\x00" + p.password), true
}

func (p plainClient) Next(challenge []byte) ([]byte, error) {
	// A server that has not understood the initial response asks once more with an empty challenge.
	if len(challenge) > 0 {
		return nil, fmt.Errorf("sasl PLAIN: unexpected challenge: %w", ErrSyntax)
	}
	b, _ := p.Start()
	return b, nil
}

type loginClient struct {
	login, password string
	step            int
}

// NewLoginClient is the client's side of LOGIN, which no standard describes but many relays
// still ask for: the user name answers the first challenge, the password the second.
func NewLoginClient(login, password string) Client {
	return &loginClient{login: login, password: password}
}

func (l *loginClient) Mechanism() string     { return Login }
func (l *loginClient) Start() ([]byte, bool) { return nil, false }

// Next ignores the words of the challenge: servers differ in them, and agree on the order.
func (l *loginClient) Next([]byte) ([]byte, error) {
	l.step++
	switch l.step {
	case 1:
		return []byte(l.login), nil
	case 2:
		return []byte(l.password), nil
	}
	return nil, fmt.Errorf("sasl LOGIN: third challenge: %w", ErrSyntax)
}
