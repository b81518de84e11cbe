package sasl

import (
	"context"
	"strings"
	"unicode/utf8"
)

type loginServer struct {
	check       CheckFunc
	login, user string
	step        int
}

// NewLoginServer is the server's side of LOGIN, which no standard describes. Clients compare the
// two challenges octet by octet; some send the user name at once, as an initial response.
func NewLoginServer(check CheckFunc) Server { return &loginServer{check: check} }

func (l *loginServer) User() string { return l.user }

// Claimed implements Claimer.
func (l *loginServer) Claimed() string { return l.login }

func (l *loginServer) Next(ctx context.Context, response []byte) ([]byte, bool, error) {
	if response == nil && l.step == 0 {
		l.step = 1
		return []byte("Username:"), false, nil
	}
	text, most := string(response), maxField
	if l.login != "" {
		most = maxPassword
	}
	if text == "" || len(text) > most || !utf8.ValidString(text) || strings.Contains(text, "\x00") {
		return nil, false, ErrSyntax
	}
	if l.login == "" {
		l.login, l.step = text, 2
		return []byte("Password:"), false, nil
	}
	user, err := l.check(ctx, l.login, text)
	if err != nil {
		return nil, false, err
	}
	l.user = user
	return nil, true, nil
}
