package hook

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func script(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestExec(t *testing.T) {
	for _, c := range []struct {
		name, script string
		want         Answer
		bad          string // in the error
	}{
		{name: "silent", script: "exit 0", want: Answer{Verdict: Accept}},
		{name: "reads nothing, says nothing", script: "exec <&-", want: Answer{Verdict: Accept}},
		{name: "JSON", script: `echo '{"verdict":"reject","code":554,"dsn":"5.7.9","reply":"no","add_header":["X: 1"],"why":"because","new":1}'`,
			want: Answer{Verdict: Reject, Code: 554, DSN: "5.7.9", Reply: "no", AddHeader: []string{"X: 1"}, Why: "because"}},
		{name: "defaults of reject", script: `echo '{"verdict":"reject"}'`, want: Answer{Verdict: Reject, Code: 550, DSN: "5.7.1", Reply: "refused by policy"}},
		{name: "defaults of defer", script: `echo '{"verdict":"defer"}'`, want: Answer{Verdict: Defer, Code: 451, DSN: "4.7.1", Reply: "refused by policy"}},
		{name: "codes of the other class", script: `echo '{"verdict":"defer","code":550,"dsn":"5.7.1"}'`, want: Answer{Verdict: Defer, Code: 451, DSN: "4.7.1", Reply: "refused by policy"}},
		{name: "discard", script: `echo '{"verdict":"discard","code":550}'`, want: Answer{Verdict: Discard}},
		{name: "hold", script: `echo '{"verdict":"hold","why":"odd"}'`, want: Answer{Verdict: Hold, Why: "odd"}},
		{name: "status 77", script: "echo not today; exit 77", want: Answer{Verdict: Reject, Code: 550, DSN: "5.7.1", Reply: "not today"}},
		{name: "status 67", script: "exit 67", want: Answer{Verdict: Reject, Code: 550, DSN: "5.1.1", Reply: "refused by policy"}},
		{name: "status 75", script: "exit 75", want: Answer{Verdict: Defer, Code: 451, DSN: "4.7.1", Reply: "refused by policy"}},
		{name: "reads its question", script: `case $(cat) in *'"stage":"rcpt"'*'"ip":"192.0.2.7"'*) exit 77;; esac`,
			want: Answer{Verdict: Reject, Code: 550, DSN: "5.7.1", Reply: "refused by policy"}},
		{name: "no shell in between", script: `[ "$1" = '$(x);a b' ] && exit 77`, want: Answer{Verdict: Reject, Code: 550, DSN: "5.7.1", Reply: "refused by policy"}},
		{name: "no environment of ours", script: `[ -z "$HOME" ] && exit 77`, want: Answer{Verdict: Reject, Code: 550, DSN: "5.7.1", Reply: "refused by policy"}},
		{name: "status 1", script: "echo no such table >&2; exit 1", bad: `exit status 1: "no such table"`},
		{name: "usage", script: "exit 64", bad: "exit status 64"},
		{name: "killed", script: "kill -9 $$", bad: "exit status -1"},
		{name: "unknown verdict", script: `echo '{"verdict":"maybe"}'`, bad: `verdict "maybe"`},
		{name: "no verdict", script: `echo '{}'`, bad: `verdict ""`},
		{name: "no JSON", script: `echo yes`, bad: "cannot be used"},
		{name: "two answers", script: `echo '{"verdict":"accept"}'; echo '{"verdict":"reject"}'`, bad: "cannot be used"},
		{name: "endless", script: "yes", bad: "no answer in time"},
		{name: "sleeps", script: "sleep 60", bad: "no answer in time"},
		{name: "a child keeps the pipe", script: "sleep 60 & sleep 60", bad: "no answer in time"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			timeout := 20 * time.Second
			if strings.Contains(c.bad, "in time") {
				timeout = 200 * time.Millisecond
			}
			h, err := New(Options{Name: "x", Command: []string{"/bin/sh", script(t, c.script), "$(x);a b"}, Timeout: timeout, Max: 1})
			if err != nil {
				t.Fatal(err)
			}
			a, err := h.Ask(context.Background(), &Request{Stage: Rcpt, IP: "192.0.2.7"})
			if c.bad != "" {
				if err == nil || !strings.Contains(err.Error(), c.bad) {
					t.Errorf("%+v, %v; want %s", a, err, c.bad)
				}
				return
			}
			if err != nil || fmt.Sprintf("%+v", *a) != fmt.Sprintf("%+v", c.want) {
				t.Errorf("%+v, %v; want %+v", a, err, c.want)
			}
		})
	}
}

// server answers each line with what f makes of it; "" closes the connection.
func server(t *testing.T, f func(n int, line string) string) (path string, conns *atomic.Int64) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conns = new(atomic.Int64)
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			wg.Go(func() {
				defer c.Close()
				br := bufio.NewReader(c)
				for n := 0; ; n++ {
					line, err := br.ReadString('\n')
					if err != nil {
						return
					}
					a := f(n, line)
					if a == "" {
						return
					}
					io.WriteString(c, a)
				}
			})
		}
	})
	return path, conns
}

func TestSocket(t *testing.T) {
	path, conns := server(t, func(n int, line string) string {
		var q Request
		if err := json.Unmarshal([]byte(line), &q); err != nil || q.Version != 1 {
			t.Errorf("question %q: %v", line, err)
		}
		switch {
		case n == 2:
			return "" // closes what we keep: the question is put again
		case q.To == "x@y.test":
			return `{"verdict":"reject","reply":"no ` + q.To + `"}` + "\n"
		}
		return `{"verdict":"accept"}` + "\n"
	})
	h, err := New(Options{Name: "x", Socket: path, Timeout: 20 * time.Second, Max: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for i, to := range []string{"a@y.test", "x@y.test", "x@y.test", "a@y.test"} {
		a, err := h.Ask(context.Background(), &Request{Stage: Rcpt, To: to})
		if err != nil || (a.Verdict == Reject) != (to == "x@y.test") {
			t.Errorf("%d: %+v %v", i, a, err)
		}
	}
	if n := conns.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	from := ""
	if b, _ := json.Marshal(Request{From: &from}); !bytes.Contains(b, []byte(`"from":""`)) {
		t.Errorf("the null reverse-path is not told: %s", b)
	}
}

func TestSocketFails(t *testing.T) {
	for name, c := range map[string]struct{ answer, want string }{
		"closed":        {"", "without an answer"},
		"cut off":       {`{"verdict":"acc`, "time"},
		"not an answer": {"hello\n", "cannot be used"},
		"two lines":     {`{"verdict":"accept"}` + "\n" + `{"verdict":"reject"}` + "\n", "behind the answer"},
		"too long":      {strings.Repeat("x", maxAnswer+5000), "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, _ := server(t, func(int, string) string { return c.answer })
			h, err := New(Options{Name: "x", Socket: path, Timeout: 300 * time.Millisecond, Max: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			if a, err := h.Ask(context.Background(), &Request{}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v %v, want %s", a, err, c.want)
			}
		})
	}
	h, err := New(Options{Name: "x", Socket: filepath.Join(t.TempDir(), "none"), Timeout: time.Second, Max: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Ask(context.Background(), &Request{}); err == nil {
		t.Error("nobody there, and no error")
	}
}

// No more questions than Max are open at once; the rest wait, and not for ever.
func TestTurns(t *testing.T) {
	var open, most atomic.Int64
	enter, leave := make(chan struct{}, 10), make(chan struct{})
	path, _ := server(t, func(int, string) string {
		if n := open.Add(1); n > most.Load() {
			most.Store(n)
		}
		enter <- struct{}{}
		<-leave
		open.Add(-1)
		return `{"verdict":"accept"}` + "\n"
	})
	h, err := New(Options{Name: "x", Socket: path, Timeout: 20 * time.Second, Max: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	errs := make(chan error, 6)
	for range 6 {
		go func() {
			_, err := h.Ask(context.Background(), &Request{})
			errs <- err
		}()
	}
	<-enter
	<-enter
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.Ask(ctx, &Request{}); err == nil || !strings.Contains(err.Error(), "no turn in time") {
		t.Errorf("a seventh question: %v", err)
	}
	close(leave)
	for range 6 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if most.Load() > 2 {
		t.Errorf("%d questions at once", most.Load())
	}
}

func TestNew(t *testing.T) {
	for want, o := range map[string]Options{
		"either":        {Timeout: 1, Max: 1},
		"absolute":      {Socket: "x", Timeout: 1, Max: 1},
		"time-out":      {Socket: "/x", Max: 1},
		"unknown stage": {Socket: "/x", Timeout: 1, Max: 1, Stages: []string{"rcpt", "eom"}},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", o, err, want)
		}
	}
}

// Property: an answer that is taken has a known verdict, and a refusal codes of its class.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"verdict":"reject","code":554,"dsn":"5.7.9","reply":"no"}`))
	f.Add([]byte(`{"verdict":"defer","code":-451}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parse(b)
		if err != nil {
			return
		}
		switch {
		case a.Verdict == Accept || a.Verdict == Discard || a.Verdict == Hold:
		case a.Verdict == Reject && a.Code/100 == 5 && a.DSN[0] == '5' && a.Reply != "":
		case a.Verdict == Defer && a.Code/100 == 4 && a.DSN[0] == '4' && a.Reply != "":
		default:
			t.Fatalf("%q: %+v", b, a)
		}
	})
}
