package sasl

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func check(_ context.Context, login, password string) (string, error) {
	switch {
	case login == "broken":
		return "", errors.New("disk on fire")
	case login == "ann" && password == "secret":
		return "ann@example.org", nil
	}
	return "", ErrRefused
}

func TestPlainServer(t *testing.T) {
	long := strings.Repeat("x", maxField+1)
	for _, c := range []struct {
		name, response, user string
		err                  error
	}{
		{"login and password", "\x00ann\x00secret", "ann@example.org", nil},
		{"acting as oneself", "ann\x00ann\x00secret", "ann@example.org", nil},
		{"acting as the full name", "ann@example.org\x00ann\x00secret", "ann@example.org", nil},
		{"acting as another", "bob\x00ann\x00secret", "", ErrRefused},
		{"wrong password", "\x00ann\x00Secret", "", ErrRefused},
		{"no password", "\x00ann\x00", "", ErrSyntax},
		{"no login", "\x00\x00secret", "", ErrSyntax},
		{"two fields", "ann\x00secret", "", ErrSyntax},
		{"four fields", "\x00ann\x00secret\x00", "", ErrSyntax},
		{"empty", "", "", ErrSyntax},
		{"not UTF-8", "\x00ann\x00secr\xe9t", "", ErrSyntax},
		{"name too long", "\x00" + long + "\x00secret", "", ErrSyntax},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := NewPlainServer(check)
			_, done, err := s.Next(context.Background(), []byte(c.response))
			if !errors.Is(err, c.err) || done != (c.err == nil) || s.User() != c.user {
				t.Fatalf("done %v, user %q, error %v; want user %q, error %v", done, s.User(), err, c.user, c.err)
			}
		})
	}
}

func TestPlainWithoutInitialResponse(t *testing.T) {
	s := NewPlainServer(check)
	ch, done, err := s.Next(context.Background(), nil)
	if err != nil || done || ch == nil || len(ch) != 0 {
		t.Fatalf("first step: challenge %q done %v err %v, want an empty challenge", ch, done, err)
	}
	if _, done, err = s.Next(context.Background(), []byte("\x00ann\x00secret")); err != nil || !done {
		t.Fatalf("second step: done %v err %v", done, err)
	}
}

func TestTemporaryIsNotARefusal(t *testing.T) {
	_, _, err := NewPlainServer(check).Next(context.Background(), []byte("\x00broken\x00x"))
	if err == nil || errors.Is(err, ErrRefused) {
		t.Fatalf("error %v: a failed look-up must not say that the password is wrong", err)
	}
}

func TestClients(t *testing.T) {
	s := NewPlainServer(check)
	c := NewPlainClient("", "ann", "secret")
	b, ok := c.Start()
	if _, done, err := s.Next(context.Background(), b); !ok || !done || err != nil {
		t.Fatalf("PLAIN client against PLAIN server: done %v err %v", done, err)
	}
	if _, err := c.Next([]byte("what?")); err == nil {
		t.Fatal("PLAIN client answered a challenge that PLAIN does not have")
	}
	l := NewLoginClient("ann", "secret")
	if _, ok := l.Start(); ok {
		t.Fatal("LOGIN has no initial response")
	}
	var got []string
	for range 2 {
		r, err := l.Next([]byte("Username:"))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(r))
	}
	if got[0] != "ann" || got[1] != "secret" {
		t.Fatalf("LOGIN said %q", got)
	}
	if _, err := l.Next(nil); err == nil {
		t.Fatal("LOGIN answered a third challenge")
	}
}

func FuzzPlain(f *testing.F) {
	f.Add([]byte("\x00ann\x00secret"))
	f.Add([]byte("a\x00b\x00c\x00d"))
	f.Fuzz(func(t *testing.T, b []byte) {
		authz, login, password, err := parsePlain(b)
		if err == nil && authz+"\x00"+login+"\x00"+password != string(b) {
			t.Fatalf("%q is not what was parsed from %q", authz+"|"+login+"|"+password, b)
		}
	})
}
