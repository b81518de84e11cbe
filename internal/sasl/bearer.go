package sasl

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"unicode/utf8"
)

// TokenFunc asks whose an access token is. claimed is whom the client says to be, "" where it
// does not say. ErrRefused (wrapped or not) says that it is nobody's, or not that one's; every
// other error is temporary.
type TokenFunc func(ctx context.Context, claimed, token string) (user string, err error)

// maxToken bounds a token; those of large providers have two or three thousand octets.
const maxToken = 8192

// bearerServer carries a token in one response. A refusal is told in a challenge, which the
// client answers with anything, before the exchange fails.
type bearerServer struct {
	check         TokenFunc
	parse         func([]byte) (claimed, token string, err error)
	failure       string
	claimed, user string
	asked         bool
	refused       error
}

// NewOAuthBearerServer is the server's side of OAUTHBEARER, RFC 7628.
func NewOAuthBearerServer(check TokenFunc) Server {
	// RFC 7628 §3.2.2: status is the one that must be there.
	return &bearerServer{check: check, parse: parseBearer, failure: `{"status":"invalid_token"}`}
}

// NewXOAuth2Server is the server's side of XOAUTH2, which Google and Microsoft describe: the
// forerunner of OAUTHBEARER, and for many clients all they know.
func NewXOAuth2Server(check TokenFunc) Server {
	return &bearerServer{check: check, parse: parseXOAuth2, failure: `{"status":"401","schemes":"bearer"}`}
}

func (b *bearerServer) User() string { return b.user }

// Claimed implements Claimer.
func (b *bearerServer) Claimed() string { return b.claimed }

// Quit implements Quitter.
func (b *bearerServer) Quit(context.Context) error { return b.refused }

func (b *bearerServer) Next(ctx context.Context, response []byte) ([]byte, bool, error) {
	if b.refused != nil {
		return nil, false, b.refused // RFC 7628 §3.2.3: whatever the client answered
	}
	if response == nil && !b.asked {
		b.asked = true
		return []byte{}, false, nil
	}
	claimed, token, err := b.parse(response)
	if err != nil {
		return nil, false, err
	}
	b.claimed = claimed
	user, err := b.check(ctx, claimed, token)
	switch {
	case errors.Is(err, ErrRefused):
		b.refused = err
		return []byte(b.failure), false, nil
	case err != nil:
		return nil, false, err
	}
	b.user = user
	return nil, true, nil
}

// parseBearer reads gs2-header kvsep *kvpair kvsep, RFC 7628 §3.1.
func parseBearer(b []byte) (claimed, token string, err error) {
	header, rest, ok := bytes.Cut(b, []byte{1})
	if !ok {
		return "", "", ErrSyntax
	}
	if claimed, err = parseGS2(string(header)); err != nil {
		return "", "", err
	}
	for {
		var pair []byte
		if pair, rest, ok = bytes.Cut(rest, []byte{1}); !ok {
			return "", "", ErrSyntax
		}
		if len(pair) == 0 {
			break
		}
		key, value, ok := strings.Cut(string(pair), "=")
		if !ok || key == "" {
			return "", "", ErrSyntax
		}
		// RFC 7628 §3.1: unknown keys are ignored. So are host and port: a bearer token is not
		// bound to them, and this host has names that it does not know.
		if key == "auth" {
			if token != "" {
				return "", "", ErrSyntax
			}
			if token, err = parseCredentials(value); err != nil {
				return "", "", err
			}
		}
	}
	if len(rest) > 0 || token == "" {
		return "", "", ErrSyntax
	}
	return claimed, token, nil
}

// parseGS2 reads gs2-cb-flag "," [authzid] ",", RFC 5802 §7. A bearer token binds no channel.
func parseGS2(s string) (authz string, err error) {
	f := strings.Split(s, ",")
	if len(f) != 3 || f[0] != "n" && f[0] != "y" || f[2] != "" {
		return "", ErrSyntax
	}
	if f[1] == "" {
		return "", nil
	}
	name, ok := strings.CutPrefix(f[1], "a=")
	if !ok {
		return "", ErrSyntax
	}
	return parseSaslname(name)
}

// parseSaslname undoes =2C and =3D, RFC 5802 §5.1; no other "=" may stand in a name.
func parseSaslname(s string) (string, error) {
	if !plainName(s) {
		return "", ErrSyntax
	}
	if strings.Count(s, "=") != strings.Count(s, "=2C")+strings.Count(s, "=3D") {
		return "", ErrSyntax
	}
	return strings.NewReplacer("=2C", ",", "=3D", "=").Replace(s), nil
}

// plainName tells whether a name can be handed to a helper as one line.
func plainName(s string) bool {
	return s != "" && len(s) <= 3*maxField && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// parseXOAuth2 reads "user=" name ^A "auth=Bearer " token ^A ^A.
func parseXOAuth2(b []byte) (claimed, token string, err error) {
	f := strings.Split(string(b), "\x01")
	if len(f) != 4 || f[2] != "" || f[3] != "" {
		return "", "", ErrSyntax
	}
	claimed, hasUser := strings.CutPrefix(f[0], "user=")
	auth, hasAuth := strings.CutPrefix(f[1], "auth=")
	if !hasUser || !hasAuth || !plainName(claimed) {
		return "", "", ErrSyntax
	}
	token, err = parseCredentials(auth)
	return claimed, token, err
}

// parseCredentials reads the value of an HTTP Authorization header: a scheme and a token.
func parseCredentials(s string) (token string, err error) {
	scheme, token, ok := strings.Cut(s, " ")
	token = strings.TrimLeft(token, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxToken {
		return "", ErrSyntax
	}
	for i := range len(token) {
		if c := token[i]; c <= ' ' || c >= 0x7f {
			return "", ErrSyntax
		}
	}
	return token, nil
}
