package token

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pennypost/internal/sasl"
)

// verdict is a short word for what an answer means.
func verdict(user string, err error) string {
	switch {
	case err == nil:
		return user
	case errors.Is(err, sasl.ErrRefused):
		return "refused"
	case errors.Is(err, sasl.ErrTemporary):
		return "temporary"
	}
	return "error of no kind: " + err.Error()
}

func program(body string) *Checker {
	return New(Options{Command: []string{"/bin/sh", "-c", body}, Timeout: 5 * time.Second})
}

func TestProgram(t *testing.T) {
	const script = `read token; read user
case $token in
good) echo "ann@example.org"; echo "a second line";;
echo) echo "$user";;
no) exit 77;;
empty) ;;
fails) exit 1;;
dies) kill -9 $$;;
long) i=0; while [ $i -lt 500 ]; do echo "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"; i=$((i+1)); done;;
env) env | cut -d= -f1 | sort | tr '\n' ' ';;
esac`
	c := program(script)
	for _, k := range []struct{ claimed, token, want string }{
		{"", "good", "ann@example.org"},
		{"bob@example.org", "echo", "bob@example.org"},
		{"$(id); `id`", "echo", "$(id); `id`"},
		{"", "no", "refused"},
		{"", "empty", "temporary"},
		{"", "fails", "temporary"},
		{"", "dies", "temporary"},
		{"", "", "refused"},
		{"a\ngood", "x", "refused"},
		{"", "long", strings.Repeat("x", 39)},
		{"", "env", "LC_ALL PATH PWD"},
	} {
		if got := verdict(c.Check(t.Context(), k.claimed, k.token)); got != k.want {
			t.Errorf("%q %q: %s, want %s", k.claimed, k.token, got, k.want)
		}
	}
	for name, c := range map[string]*Checker{
		"no such program":                New(Options{Command: []string{"/none"}}),
		"does not read":                  program(`echo ann@example.org`),
		"answers late":                   New(Options{Command: []string{"/bin/sh", "-c", "sleep 60 & wait"}, Timeout: 50 * time.Millisecond}),
		"no such socket":                 New(Options{Socket: "/none"}),
		"a secret on its standard error": program(`read t; echo "$t" >&2; exit 3`),
	} {
		start := time.Now()
		_, err := c.Check(t.Context(), "", "s3cret")
		if got, readless := verdict("yes", err), name == "does not read"; got != map[bool]string{true: "yes", false: "temporary"}[readless] {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the token is in the error: %v", name, err)
		}
		if d := time.Since(start); d > 4*time.Second {
			t.Errorf("%s: took %v", name, d)
		}
	}
}

// TestTurns: no more than Max programs at a time, and who gets no turn is told to come again.
func TestTurns(t *testing.T) {
	dir := t.TempDir()
	gate := filepath.Join(dir, "gate")
	body := fmt.Sprintf(`echo >>%s/started; while [ ! -e %s ]; do sleep 0.01; done; echo ann@example.org`, dir, gate)
	c := New(Options{Command: []string{"/bin/sh", "-c", body}, Timeout: 10 * time.Second, Max: 2})
	results := make(chan error, 5)
	for range 5 {
		go func() { _, err := c.Check(context.Background(), "", "x"); results <- err }()
	}
	started := func() int {
		b, err := os.ReadFile(filepath.Join(dir, "started"))
		if err != nil {
			return 0
		}
		return len(b)
	}
	for end := time.Now().Add(5 * time.Second); started() < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not two programs")
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if got := verdict(c.Check(short, "", "x")); got != "temporary" {
		t.Errorf("without a turn: %s", got)
	}
	if n := started(); n != 2 {
		t.Errorf("%d programs at once", n)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if n := started(); n != 5 {
		t.Errorf("%d programs in all", n)
	}
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Skipf("no UNIX sockets below %s: %v", path, err)
	}
	defer l.Close()
	var asked atomic.Value
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				line, err := bufio.NewReader(conn).ReadString('\n')
				if err != nil {
					return
				}
				asked.Store(line)
				switch {
				case strings.Contains(line, `"silent"`):
					conn.Read(make([]byte, 1))
				case strings.Contains(line, `"flood"`):
					for err == nil {
						_, err = conn.Write(make([]byte, 4096))
					}
				default:
					var q request
					if json.Unmarshal([]byte(line), &q) == nil {
						fmt.Fprintln(conn, q.User)
					}
				}
			}()
		}
	}()
	c := New(Options{Socket: path, Timeout: 200 * time.Millisecond})
	// The server answers with what stands in the name.
	for _, k := range []struct{ reply, token, want string }{
		{`{"ok":true,"user":"ann@example.org"}`, "x", "ann@example.org"},
		{`{"ok":true,"user":"ann@example.org","more":1}`, "x", "ann@example.org"},
		{`{"ok":true}`, "x", "temporary"},
		{`{"ok":false}`, "x", "refused"},
		{`{"error":"database is down","ok":true}`, "x", "temporary"},
		{`yes`, "x", "temporary"},
		{``, "x", "temporary"},
		{`{}`, "silent", "temporary"},
		{`{}`, "flood", "temporary"},
	} {
		if got := verdict(c.Check(t.Context(), k.reply, k.token)); got != k.want {
			t.Errorf("%s %s: %s, want %s", k.token, k.reply, got, k.want)
		}
	}
	c.Check(t.Context(), "ann", "t0ken")
	if got := asked.Load(); got != `{"op":"token","token":"t0ken","user":"ann"}`+"\n" {
		t.Errorf("asked %s", got)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"ok":true,"user":"ann@example.org"}`))
	f.Add([]byte(`{"ok":false}`))
	f.Add([]byte(`{"error":"why"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if user, err := parseAnswer(b); (user == "") == (err == nil) {
			t.Fatalf("%q: user %q, error %v", b, user, err)
		}
	})
}
