package sasl

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// exchange plays the client's responses; nil as the first means that it sent no initial one.
func exchange(s Server, responses ...[]byte) (challenges []string, done bool, err error) {
	for _, r := range responses {
		var c []byte
		if c, done, err = s.Next(context.Background(), r); done || err != nil {
			return challenges, done, err
		}
		challenges = append(challenges, string(c))
	}
	return challenges, done, err
}

func TestLoginServer(t *testing.T) {
	b := func(s string) []byte { return []byte(s) }
	for _, c := range []struct {
		name       string
		say        [][]byte
		challenges string
		user       string
		err        error
	}{
		{"as most clients", [][]byte{nil, b("ann"), b("secret")}, "Username:|Password:", "ann@example.org", nil},
		{"name at once", [][]byte{b("ann"), b("secret")}, "Password:", "ann@example.org", nil},
		{"wrong password", [][]byte{nil, b("ann"), b("Secret")}, "Username:|Password:", "", ErrRefused},
		{"empty name", [][]byte{nil, b("")}, "Username:", "", ErrSyntax},
		{"empty name at once", [][]byte{b("")}, "", "", ErrSyntax},
		{"empty password", [][]byte{nil, b("ann"), b("")}, "Username:|Password:", "", ErrSyntax},
		{"NUL", [][]byte{nil, b("ann\x00bob")}, "Username:", "", ErrSyntax},
		{"not UTF-8", [][]byte{nil, b("ann"), b("\xff")}, "Username:|Password:", "", ErrSyntax},
		{"too long", [][]byte{nil, b(strings.Repeat("x", maxField+1))}, "Username:", "", ErrSyntax},
	} {
		s := NewLoginServer(check)
		got, done, err := exchange(s, c.say...)
		if strings.Join(got, "|") != c.challenges || s.User() != c.user || !errors.Is(err, c.err) || done != (c.err == nil) {
			t.Errorf("%s: %q user %q done %v err %v", c.name, got, s.User(), done, err)
		}
	}
}

func TestLongPasswords(t *testing.T) {
	long := strings.Repeat("p", maxPassword)
	want := ""
	check := func(_ context.Context, login, password string) (string, error) {
		if login != "ann" || password != want {
			return "", ErrRefused
		}
		return "ann@example.org", nil
	}
	for _, want = range []string{long, long[:maxField+1]} {
		if _, done, err := exchange(NewPlainServer(check), []byte("\x00ann\x00"+want)); !done || err != nil {
			t.Errorf("PLAIN, %d octets: %v", len(want), err)
		}
		if _, done, err := exchange(NewLoginServer(check), nil, []byte("ann"), []byte(want)); !done || err != nil {
			t.Errorf("LOGIN, %d octets: %v", len(want), err)
		}
	}
	if _, _, err := exchange(NewPlainServer(check), []byte("\x00ann\x00p"+long)); !errors.Is(err, ErrSyntax) {
		t.Errorf("PLAIN, too long: %v", err)
	}
	if _, _, err := exchange(NewLoginServer(check), nil, []byte("ann"), []byte("p"+long)); !errors.Is(err, ErrSyntax) {
		t.Errorf("LOGIN, too long: %v", err)
	}
}

// A client that is told by a challenge that its token is refused cannot make that undone.
func TestBearerQuit(t *testing.T) {
	for token, want := range map[string]error{"wrong": ErrRefused, "": nil} {
		s := NewOAuthBearerServer(checkToken)
		if token != "" {
			if _, _, err := s.Next(context.Background(), []byte("n,,\x01auth=Bearer "+token+"\x01\x01")); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.(Quitter).Quit(context.Background()); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("token %q: %v", token, err)
		}
	}
}

func TestExternalServer(t *testing.T) {
	act := func(_ context.Context, authz string) (string, error) {
		switch authz {
		case "", "ann@example.org":
			return "ann@example.org", nil
		case "broken":
			return "", errors.New("no answer")
		}
		return "", ErrRefused
	}
	for _, c := range []struct {
		name string
		say  [][]byte
		user string
		err  error
	}{
		{"empty", [][]byte{{}}, "ann@example.org", nil},
		{"empty, no initial response", [][]byte{nil, {}}, "ann@example.org", nil},
		{"oneself", [][]byte{[]byte("ann@example.org")}, "ann@example.org", nil},
		{"another", [][]byte{[]byte("bob@example.org")}, "", ErrRefused},
		{"NUL", [][]byte{[]byte("ann@example.org\x00")}, "", ErrSyntax},
		{"not UTF-8", [][]byte{{0xff}}, "", ErrSyntax},
	} {
		s := NewExternalServer(act)
		_, done, err := exchange(s, c.say...)
		if s.User() != c.user || !errors.Is(err, c.err) || done != (c.err == nil) {
			t.Errorf("%s: user %q done %v err %v", c.name, s.User(), done, err)
		}
	}
	if _, _, err := exchange(NewExternalServer(act), []byte("broken")); err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("a failed look-up is no refusal: %v", err)
	}
	c := NewExternalClient("")
	first, ok := c.Start()
	if _, done, err := exchange(NewExternalServer(act), first); !ok || !done || err != nil {
		t.Errorf("client against server: %v %v", done, err)
	}
}

func checkToken(_ context.Context, claimed, token string) (string, error) {
	switch {
	case token == "broken":
		return "", errors.New("no answer")
	case token == "t0ken" && (claimed == "" || claimed == "ann@example.org" || claimed == "a,b=c"):
		return "ann@example.org", nil
	}
	return "", ErrRefused
}

func TestBearerServers(t *testing.T) {
	const invalid = `{"status":"invalid_token"}`
	for _, c := range []struct {
		name       string
		mechanism  string
		say        []string
		challenges string
		claimed    string
		err        error
	}{
		{"as in the RFC", OAuthBearer, []string{"n,a=ann@example.org,\x01host=mx.example.org\x01port=587\x01auth=Bearer t0ken\x01\x01"}, "", "ann@example.org", nil},
		{"no name", OAuthBearer, []string{"n,,\x01auth=Bearer t0ken\x01\x01"}, "", "", nil},
		{"binding not offered", OAuthBearer, []string{"y,,\x01auth=bearer t0ken\x01\x01"}, "", "", nil},
		{"escaped name", OAuthBearer, []string{"n,a=a=2Cb=3Dc,\x01auth=Bearer t0ken\x01\x01"}, "", "a,b=c", nil},
		{"unknown keys", OAuthBearer, []string{"n,,\x01x=y\x01auth=Bearer t0ken\x01z=\x01\x01"}, "", "", nil},
		{"refused", OAuthBearer, []string{"n,a=bob@example.org,\x01auth=Bearer t0ken\x01\x01", "\x01"}, invalid, "bob@example.org", ErrRefused},
		{"refused, answered with the right one", OAuthBearer, []string{"n,,\x01auth=Bearer no\x01\x01", "n,,\x01auth=Bearer t0ken\x01\x01"}, invalid, "", ErrRefused},
		{"dummy first", OAuthBearer, []string{"\x01"}, "", "", ErrSyntax},
		{"empty", OAuthBearer, []string{""}, "", "", ErrSyntax},
		{"a binding", OAuthBearer, []string{"p=tls-exporter,,\x01auth=Bearer t0ken\x01\x01"}, "", "", ErrSyntax},
		{"bad escape", OAuthBearer, []string{"n,a=a=b,\x01auth=Bearer t0ken\x01\x01"}, "", "", ErrSyntax},
		{"line end in a name", OAuthBearer, []string{"n,a=ann\nbob,\x01auth=Bearer t0ken\x01\x01"}, "", "", ErrSyntax},
		{"no token", OAuthBearer, []string{"n,,\x01host=x\x01\x01"}, "", "", ErrSyntax},
		{"two tokens", OAuthBearer, []string{"n,,\x01auth=Bearer t0ken\x01auth=Bearer t0ken\x01\x01"}, "", "", ErrSyntax},
		{"another scheme", OAuthBearer, []string{"n,,\x01auth=Basic t0ken\x01\x01"}, "", "", ErrSyntax},
		{"line end in a token", OAuthBearer, []string{"n,,\x01auth=Bearer t0\nken\x01\x01"}, "", "", ErrSyntax},
		{"one separator", OAuthBearer, []string{"n,,\x01auth=Bearer t0ken\x01"}, "", "", ErrSyntax},
		{"text behind", OAuthBearer, []string{"n,,\x01auth=Bearer t0ken\x01\x01x"}, "", "", ErrSyntax},
		{"long token", OAuthBearer, []string{"n,,\x01auth=Bearer " + strings.Repeat("x", maxToken+1) + "\x01\x01"}, "", "", ErrSyntax},
		{"as Google says", XOAuth2, []string{"user=ann@example.org\x01auth=Bearer t0ken\x01\x01"}, "", "ann@example.org", nil},
		{"refused", XOAuth2, []string{"user=bob@example.org\x01auth=Bearer t0ken\x01\x01", ""}, `{"status":"401","schemes":"bearer"}`, "bob@example.org", ErrRefused},
		{"no name", XOAuth2, []string{"user=\x01auth=Bearer t0ken\x01\x01"}, "", "", ErrSyntax},
		{"no token", XOAuth2, []string{"user=ann@example.org\x01auth=Bearer \x01\x01"}, "", "", ErrSyntax},
		{"the other form", XOAuth2, []string{"n,,\x01auth=Bearer t0ken\x01\x01"}, "", "", ErrSyntax},
	} {
		t.Run(c.mechanism+" "+c.name, func(t *testing.T) {
			for _, initial := range []bool{true, false} {
				s := NewOAuthBearerServer(checkToken)
				if c.mechanism == XOAuth2 {
					s = NewXOAuth2Server(checkToken)
				}
				var say [][]byte
				want := c.challenges
				if !initial {
					say, want = append(say, nil), strings.TrimSuffix("|"+want, "|")
				}
				for _, r := range c.say {
					say = append(say, []byte(r))
				}
				got, done, err := exchange(s, say...)
				if strings.Join(got, "|") != want || !errors.Is(err, c.err) || done != (c.err == nil) {
					t.Errorf("initial response %v: %q done %v err %v", initial, got, done, err)
				}
				if s.(Claimer).Claimed() != c.claimed || (s.User() != "") != done {
					t.Errorf("claimed %q, user %q", s.(Claimer).Claimed(), s.User())
				}
			}
		})
	}
	_, _, err := exchange(NewOAuthBearerServer(checkToken), []byte("n,,\x01auth=Bearer broken\x01\x01"))
	if err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("a failed check is no refusal: %v", err)
	}
}

func FuzzBearer(f *testing.F) {
	f.Add([]byte("n,a=a=2Cb=3D@x.test,\x01host=h\x01auth=Bearer t0ken\x01\x01"))
	f.Add([]byte("user=ann@x.test\x01auth=Bearer t0ken\x01\x01"))
	f.Add([]byte("\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		claimed, token, err := parseBearer(b)
		if err == nil {
			checkParsed(t, claimed, token)
			name := ""
			if claimed != "" {
				name = "a=" + strings.NewReplacer("=", "=3D", ",", "=2C").Replace(claimed)
			}
			again, tok, err := parseBearer([]byte("n," + name + ",\x01auth=Bearer " + token + "\x01\x01"))
			if err != nil || again != claimed || tok != token {
				t.Fatalf("%q: printed and read again it is %q %q %v", b, again, tok, err)
			}
		}
		if claimed, token, err = parseXOAuth2(b); err == nil {
			checkParsed(t, claimed, token)
			again, tok, err := parseXOAuth2([]byte("user=" + claimed + "\x01auth=Bearer " + token + "\x01\x01"))
			if err != nil || again != claimed || tok != token {
				t.Fatalf("%q: printed and read again it is %q %q %v", b, again, tok, err)
			}
		}
	})
}

// checkParsed: a token goes to a helper as a line, so it holds neither spaces nor control characters.
func checkParsed(t *testing.T, claimed, token string) {
	t.Helper()
	if token == "" || len(token) > maxToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		t.Fatalf("token %q", token)
	}
	if strings.ContainsAny(claimed, "\x00\r\n") || len(claimed) > 3*maxField {
		t.Fatalf("name %q", claimed)
	}
}
