package worker

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary be its own child worker.
func TestMain(m *testing.M) {
	switch os.Getenv("WORKER_TEST_CHILD") {
	case "":
		os.Exit(m.Run())
	case "serve":
		c, err := Inherited(3)
		if err == nil {
			err = Serve(context.Background(), c, Hello{Name: "child", Abilities: []string{AbleDeliver}}, deliverOrDie, 0)
		}
		if err != nil {
			os.Exit(1)
		}
	}
	os.Exit(0)
}

func deliverOrDie(ctx context.Context, r *Request, f *os.File) *Report {
	if r.To[0].Addr == "die@y.test" {
		os.Exit(3)
	}
	return deliverAll(ctx, r, f)
}

func self(t *testing.T) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{exe}
}

func TestChildIsRestarted(t *testing.T) {
	t.Setenv("WORKER_TEST_CHILD", "serve")
	a := NewAgent(Spec{Name: "child", Command: self(t), Timeout: time.Minute})
	defer a.Close()
	f := message(t, "x")
	for range 3 {
		if _, err := a.Do(t.Context(), request("b@y.test"), f); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Do(t.Context(), request("die@y.test"), f); !errors.Is(err, ErrGone) {
			t.Fatalf("the worker died, and Do says %v", err)
		}
		waitFor(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.client == nil })
	}
}

func TestChildThatDoesNotSpeak(t *testing.T) {
	t.Setenv("WORKER_TEST_CHILD", "silent")
	a := NewAgent(Spec{Name: "child", Command: self(t), Timeout: time.Minute})
	defer a.Close()
	var down *DownError
	if _, err := a.Do(t.Context(), request("b@y.test"), message(t, "x")); !errors.As(err, &down) {
		t.Fatalf("a child without a hello: %v", err)
	}
	if !down.Until.After(time.Now()) {
		t.Error("no back-off after a child without a hello")
	}
}

func TestSocketWorker(t *testing.T) {
	name := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			go Serve(context.Background(), c, Hello{Name: "fake"}, deliverAll, 0)
		}
	}()
	a := NewAgent(Spec{Name: "s", Socket: name, UID: os.Getuid(), Timeout: time.Minute})
	if _, err := a.Do(t.Context(), request("b@y.test"), message(t, "x")); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if os.Getuid() == 0 {
		return // a socket of root's may be served by anybody it chooses, TestMayServe
	}
	stranger := NewAgent(Spec{Name: "s", Socket: name, UID: os.Getuid() + 1, Timeout: time.Minute})
	defer stranger.Close()
	var down *DownError
	if _, err := stranger.Do(t.Context(), request("b@y.test"), message(t, "x")); !errors.As(err, &down) {
		t.Fatalf("a worker of the wrong uid was used: %v", err)
	}
}

func TestFilter(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
			t.Fatal(err)
		}
		return p
	}
	out := filepath.Join(dir, "out")
	keep := script("keep", "cat >\""+out+"\"; echo \"$# $1 $SENDER $RECIPIENT $QUEUE_ID\" >>\""+out+"\"\n")
	for _, c := range []struct {
		name    string
		command []string
		to      string
		offset  int64
		size    int64
		want    string // verdict, code and part of the reply
	}{
		{"kept", []string{keep}, "b@y.test", 4, 5, "delivered 2.0.0 "},
		{"refused", []string{script("refuse", "echo no such user >&2; exit 67\n")}, "b@y.test", 0, 9, "failed 5.1.1 no such user"},
		{"later", []string{script("later", "exit 75\n")}, "b@y.test", 0, 9, "deferred 4.3.0 delivery program"},
		{"odd status", []string{script("odd", "exit 1\n")}, "b@y.test", 0, 9, "deferred 4.3.0 "},
		{"signal", []string{script("signal", "kill -9 $$\n")}, "b@y.test", 0, 9, "deferred 4.3.0 delivery program died by a signal"},
		{"missing", []string{filepath.Join(dir, "none")}, "b@y.test", 0, 9, "deferred 4.3.5 worker f cannot be run"},
		{"hangs", []string{script("hang", "sleep 600 & wait\n")}, "b@y.test", 0, 9, "deferred 4.3.0 worker f did not end in time"},
		{"option", []string{keep}, "-oQ@y.test", 0, 9, "deferred 4.3.5 worker f: address -oQ"},
		{"torn file", []string{keep}, "b@y.test", 4, 50, "deferred 4.3.0 message file cannot be read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			timeout := time.Minute
			if c.name == "hangs" {
				timeout = 100 * time.Millisecond
			}
			a := NewAgent(Spec{Name: "f", Command: c.command, Filter: true, Timeout: timeout})
			defer a.Close()
			r := request(c.to)
			r.Offset, r.Size = c.offset, c.size
			rep, err := a.Do(t.Context(), r, message(t, "headbody\n"))
			if err != nil {
				t.Fatal(err)
			}
			st := rep.Results[0]
			if got := string(st.Verdict) + " " + st.Code + " " + st.Reply; !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	a := NewAgent(Spec{Name: "f", Command: []string{keep}, Filter: true, Timeout: time.Minute})
	r := request("b@y.test")
	r.Offset, r.Size = 4, 5
	if _, err := a.Do(t.Context(), r, message(t, "headbody\n")); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if want := "body\n1 b@y.test a@x.test b@y.test 0123456789abcdefgh\n"; string(got) != want {
		t.Errorf("the filter saw %q, want %q", got, want)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatal("condition not reached in 10 s")
		}
		time.Sleep(time.Millisecond) // bounded poll
	}
}
