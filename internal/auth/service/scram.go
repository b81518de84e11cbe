package service

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/password"
	"pennypost/internal/sasl"
)

// Rounds of PBKDF2. A record in the file can be guessed at by whoever steals it, so it gets many;
// RFC 7677 §4 asks for 4096 at least. A password that lies there as it is gains nothing by them.
const (
	newIterations   = 65_536
	plainIterations = 4096
	maxIterations   = 1_000_000
)

// hashOf returns the hash of a mechanism, and whether it is a -PLUS form.
func hashOf(mechanism string) (h scram.HashGeneratorFcn, base string, plus, ok bool) {
	base, plus = strings.CutSuffix(mechanism, "-PLUS")
	switch base {
	case auth.SCRAMSHA1:
		return scram.SHA1, base, plus, true
	case auth.SCRAMSHA256:
		return scram.SHA256, base, plus, true
	}
	return nil, "", false, false
}

// NewRecord makes the line of secrets by which SCRAM checks a password, in the notation of
// Dovecot: {SCRAM-SHA-256}iterations,salt,StoredKey,ServerKey.
func NewRecord(mechanism, plain string) (string, error) {
	h, base, plus, ok := hashOf(mechanism)
	if !ok || plus {
		return "", fmt.Errorf("%s is not one of %s %s", mechanism, auth.SCRAMSHA256, auth.SCRAMSHA1)
	}
	salt := make([]byte, 16)
	rand.Read(salt)
	c, err := derive(h, plain, string(salt), newIterations)
	if err != nil {
		return "", err
	}
	return "{" + base + "}" + printRecord(c), nil
}

// derive computes the keys of a password, RFC 5802 §3, after SASLprep.
func derive(h scram.HashGeneratorFcn, plain, salt string, iterations int) (scram.StoredCredentials, error) {
	// The name does not go into the keys.
	c, err := h.NewClient("", plain, "")
	if err != nil {
		return scram.StoredCredentials{}, errors.New("the password holds characters that SASLprep forbids")
	}
	return c.GetStoredCredentialsWithError(scram.KeyFactors{Salt: salt, Iters: iterations})
}

func printRecord(c scram.StoredCredentials) string {
	e := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("%d,%s,%s,%s", c.Iters, e([]byte(c.Salt)), e(c.StoredKey), e(c.ServerKey))
}

// parseRecord reads what stands after {SCRAM-...}.
func parseRecord(h scram.HashGeneratorFcn, s string) (c scram.StoredCredentials, err error) {
	f := strings.Split(s, ",")
	if len(f) != 4 || strings.ContainsAny(s, "\r\n") { // the decoder of base64 skips line ends
		return c, fmt.Errorf("%w: SCRAM: not of the form iterations,salt,key,key", password.ErrScheme)
	}
	if c.Iters, err = strconv.Atoi(f[0]); err != nil || c.Iters < 1 || c.Iters > maxIterations || f[0] != strconv.Itoa(c.Iters) {
		return c, fmt.Errorf("%w: SCRAM: iterations broken or over %d", password.ErrScheme, maxIterations)
	}
	var b [3][]byte
	for i := range b {
		if b[i], err = base64.StdEncoding.Strict().DecodeString(f[i+1]); err != nil {
			return c, fmt.Errorf("%w: SCRAM: broken base64", password.ErrScheme)
		}
	}
	size := h().Size()
	if len(b[0]) == 0 || len(b[0]) > 128 || len(b[1]) != size || len(b[2]) != size {
		return c, fmt.Errorf("%w: SCRAM: salt or key of a wrong size", password.ErrScheme)
	}
	c.Salt, c.StoredKey, c.ServerKey = string(b[0]), b[1], b[2]
	return c, nil
}

// checkRecord tells whether plain is the password of a SCRAM record.
func checkRecord(mechanism, record, plain string) (bool, error) {
	h, _, _, ok := hashOf(mechanism)
	if !ok {
		return false, fmt.Errorf("%w: scheme {%s} is unknown", password.ErrScheme, mechanism)
	}
	want, err := parseRecord(h, record)
	if err != nil {
		return false, err
	}
	if plain == "" || len(plain) > password.MaxLength {
		return false, nil
	}
	got, err := derive(h, plain, want.Salt, want.Iters)
	if err != nil {
		return false, nil //nolint:nilerr // such a password was never stored
	}
	return subtle.ConstantTimeCompare(got.StoredKey, want.StoredKey) == 1, nil
}

// credentials returns what SCRAM needs for an account. For one without, or nobody, they look the
// same at every try and fit no password.
func (s *Service) credentials(ctx context.Context, mechanism string, sec accounts.Secret, known bool) (c scram.StoredCredentials, err error) {
	h, base, _, _ := hashOf(mechanism)
	if r, ok := sec.SCRAM[base]; ok && known {
		return parseRecord(h, r)
	}
	salt := s.fingerprint("salt", base, sec.Address)
	c = scram.StoredCredentials{KeyFactors: scram.KeyFactors{Salt: string(salt[:]), Iters: newIterations}}
	if plain, ok := password.Plain(sec.Hash); ok {
		err = s.gate.do(ctx, func() (err error) {
			c, err = derive(h, plain, c.Salt, plainIterations)
			return err
		})
		if known || err != nil {
			return c, err
		}
	} else if other, _, err := s.o.Accounts.Secret(""); err == nil {
		if d, err := parseRecord(h, other.SCRAM[base]); err == nil {
			c.Iters = d.Iters
		}
	}
	c.StoredKey, c.ServerKey = make([]byte, h().Size()), make([]byte, h().Size())
	rand.Read(c.StoredKey)
	rand.Read(c.ServerKey)
	return c, nil
}

// exchange is a SCRAM conversation with a client.
type exchange struct {
	s      *Service
	x      auth.Exchange
	conv   *scram.ServerConversation
	sec    accounts.Secret
	known  bool
	cred   scram.StoredCredentials
	guess  guess
	login  string
	step   int
	id     auth.Identity
	failed error // of the look-up
}

// SCRAM implements auth.Checker.
func (s *Service) SCRAM(_ context.Context, x auth.Exchange) (auth.Server, error) {
	_, _, plus, ok := hashOf(x.Mechanism)
	if !ok {
		return nil, fmt.Errorf("%w: unknown mechanism %q", sasl.ErrSyntax, x.Mechanism)
	}
	if plus && len(x.Binding.Data) == 0 {
		return nil, fmt.Errorf("%w: %s without a channel to bind to", sasl.ErrSyntax, x.Mechanism)
	}
	return &exchange{s: s, x: x}, nil
}

// Next implements sasl.Server.
func (e *exchange) Next(ctx context.Context, response []byte) (challenge []byte, done bool, err error) {
	if len(response) > auth.MaxSCRAM {
		return nil, false, sasl.ErrSyntax
	}
	if response == nil && e.step == 0 {
		return []byte{}, false, nil
	}
	e.step++
	defer func() {
		if err != nil {
			e.Close() // an exchange that failed does not go on
		}
	}()
	switch e.step {
	case 1:
		challenge, err = e.begin(ctx, string(response))
	case 2:
		challenge, err = e.finish(string(response))
	case 3:
		if len(response) == 0 {
			return nil, true, nil
		}
		e.step, err = 4, sasl.ErrSyntax
	default:
		err = sasl.ErrSyntax
	}
	return challenge, false, err
}

// User implements sasl.Server.
func (e *exchange) User() string {
	if e.step != 3 {
		return ""
	}
	return e.id.Address
}

// Claimed implements sasl.Claimer.
func (e *exchange) Claimed() string { return e.login }

// Ticket implements auth.Server.
func (e *exchange) Ticket() string {
	if e.step != 3 {
		return ""
	}
	return e.id.Ticket
}

// Close implements auth.Server. A proof that never came has been counted like a wrong one.
func (e *exchange) Close() {
	if e.step != 3 {
		e.step = 4
	}
}

func (e *exchange) begin(ctx context.Context, msg string) ([]byte, error) {
	h, _, plus, _ := hashOf(e.x.Mechanism)
	server, err := h.NewServer(func(login string) (scram.StoredCredentials, error) {
		e.login = login
		e.failed = e.lookUp(ctx, login)
		return e.cred, e.failed
	})
	if err != nil {
		return nil, sasl.Temporary(err)
	}
	b := scram.ChannelBinding{Type: scram.ChannelBindingType(e.x.Binding.Type), Data: e.x.Binding.Data}
	e.conv = server.NewConversationWithChannelBinding(b)
	if plus {
		e.conv = server.NewConversationWithChannelBindingRequired(b)
	}
	first, err := e.conv.Step(msg)
	if e.failed != nil {
		return nil, e.failed
	}
	if err != nil {
		if first != "" { // a flaw of the channel, not of the message
			return nil, fmt.Errorf("%w: %s", sasl.ErrRefused, strings.TrimPrefix(first, "e="))
		}
		return nil, sasl.ErrSyntax
	}
	if a := e.conv.AuthzID(); a != "" && a != e.login && a != e.sec.Address {
		return nil, fmt.Errorf("%w: %q may not act as %q", sasl.ErrRefused, e.login, a)
	}
	return []byte(first), nil
}

// lookUp finds the keys of the account, counts the guess and waits where guessing is slowed.
func (e *exchange) lookUp(ctx context.Context, login string) (err error) {
	if e.sec, e.known, err = e.s.o.Accounts.Secret(login); err != nil {
		return sasl.Temporary(err)
	}
	e.guess = guess{account: e.sec.Address, from: network(e.x.From), hidden: true}
	if e.sec.Address == "" {
		e.guess.account = "?" + login
	}
	if e.cred, err = e.s.credentials(ctx, e.x.Mechanism, e.sec, e.known); err == nil && e.known {
		err = e.sec.Refused
	}
	if err != nil {
		return sasl.Temporary(err)
	}
	return e.s.slow(ctx, &e.guess)
}

func (e *exchange) finish(msg string) ([]byte, error) {
	final, err := e.conv.Step(msg)
	if err == nil && e.known && e.conv.Valid() {
		e.s.limits.succeeded(e.guess)
		e.id = e.s.identity(e.sec, e.x.Ticket)
		return []byte(final), nil
	}
	if final == "" {
		return nil, sasl.ErrSyntax
	}
	return nil, sasl.ErrRefused
}
