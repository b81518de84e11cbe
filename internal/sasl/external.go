package sasl

import (
	"context"
	"strings"
	"unicode/utf8"
)

// ActFunc says who a client is whose identity was proved outside of SASL, by a certificate or by
// the kernel. authz is whom it wants to be, "" for whoever the proof is for. ErrRefused (wrapped
// or not) says no; every other error is temporary.
type ActFunc func(ctx context.Context, authz string) (user string, err error)

type externalServer struct {
	act          ActFunc
	authz, user  string
	asked, tried bool
}

// NewExternalServer is the server's side of EXTERNAL, RFC 4422 §A.1.
func NewExternalServer(act ActFunc) Server { return &externalServer{act: act} }

func (e *externalServer) User() string { return e.user }

// Claimed implements Claimer.
func (e *externalServer) Claimed() string { return e.authz }

func (e *externalServer) Next(ctx context.Context, response []byte) ([]byte, bool, error) {
	if response == nil && !e.asked {
		e.asked = true
		return []byte{}, false, nil
	}
	text := string(response)
	if e.tried || len(text) > maxField || !utf8.ValidString(text) || strings.Contains(text, "\x00") {
		return nil, false, ErrSyntax
	}
	e.tried, e.authz = true, text
	user, err := e.act(ctx, text)
	if err != nil {
		return nil, false, err
	}
	e.user = user
	return nil, true, nil
}

type externalClient struct{ authz string }

// NewExternalClient is the client's side of EXTERNAL. authz is usually empty.
func NewExternalClient(authz string) Client { return externalClient{authz} }

func (e externalClient) Mechanism() string     { return External }
func (e externalClient) Start() ([]byte, bool) { return []byte(e.authz), true }

func (e externalClient) Next(challenge []byte) ([]byte, error) {
	if len(challenge) > 0 {
		return nil, ErrSyntax
	}
	return []byte(e.authz), nil
}
