package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/cli"
	"pennypost/internal/config"
	"pennypost/internal/envelope"
	"pennypost/internal/serve"
	"pennypost/internal/worker"
)

func frame() Frame {
	return Frame{
		Tool: "mtest", Roles: []string{"one", "two"}, Default: "one", ListenKey: "test.listen",
		Listen: []config.Listener{{Addr: "127.0.0.1:25", Role: "one"}, {Addr: "/run/x", Role: "two"}},
		Idle:   time.Minute, MaxSessions: 7, ProxyFrom: []string{"10.0.0.0/8", "192.0.2.1"}, ProxyKey: "test.proxy_from",
	}
}

func TestListeners(t *testing.T) {
	paths, empty := frame(), frame()
	paths.Paths, empty.Listen = true, nil
	for _, c := range []struct {
		name   string
		frame  Frame
		args   []string
		want   []string
		status int
	}{
		{"none", frame(), nil, nil, 0},
		{"address and role", frame(), []string{"127.0.0.1:2525=two"}, []string{"127.0.0.1:2525 two"}, 0},
		{"the configuration's, and one more", frame(), []string{"config", "[::1]:26"}, []string{"127.0.0.1:25 one", "/run/x two", "[::1]:26 "}, 0},
		{"the configuration has none", empty, []string{"config"}, nil, envelope.ExConfig},
		{"no port", frame(), []string{"127.0.0.1"}, nil, envelope.ExUsage},
		{"a bare name is a path", paths, []string{"sock", "/run/s=t"}, []string{"./sock ", "/run/s=t "}, 0},
	} {
		got, err := c.frame.listeners(c.args)
		if s := cli.Status(err); s != c.status {
			t.Errorf("%s: status %d (%v), want %d", c.name, s, err, c.status)
		}
		var text []string
		for _, l := range got {
			text = append(text, l.Addr+" "+l.Role)
		}
		if !slices.Equal(text, c.want) {
			t.Errorf("%s: %q, want %q", c.name, text, c.want)
		}
	}
}

func TestNew(t *testing.T) {
	hour := time.Hour
	cfg := &config.Config{Log: "stderr", LogFormat: "text"}
	d, err := New(cli.Serving{Role: "two", Listen: []string{"config"}, Idle: &hour, NotifyFd: 3, JSON: true}, cfg, frame())
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case d.o.Role != "two", d.o.Default != "one", d.o.Idle != hour, d.o.NotifyFd != 3, d.o.MaxSessions != 7:
		t.Errorf("options %+v", d.o)
	case len(d.o.Listen) != 2, len(d.o.ProxyFrom) != 2, d.Single:
		t.Errorf("options %+v, single %v", d.o, d.Single)
	case cfg.LogFormat != "text":
		t.Error("--json has changed the configuration")
	}
	if _, isJSON := d.Log.Handler().(*slog.JSONHandler); !isJSON {
		t.Errorf("--json makes a %T", d.Log.Handler())
	}
	if d, err = New(cli.Serving{}, cfg, frame()); err != nil || d.o.Idle != time.Minute {
		t.Errorf("without --idle: %+v, %v", d, err)
	}
	f := frame()
	f.ProxyFrom = []string{"ten"}
	if _, err = New(cli.Serving{}, cfg, f); cli.Status(err) != envelope.ExConfig || !strings.Contains(err.Error(), "test.proxy_from") {
		t.Errorf("a network that is none: %v", err)
	}
	if _, err = New(cli.Serving{}, &config.Config{Log: "file:/nowhere/at/all"}, frame()); cli.Status(err) != envelope.ExConfig {
		t.Errorf("a log that cannot be opened: %v", err)
	}
}

func TestStatus(t *testing.T) {
	for err, want := range map[error]int{
		nil:                                     envelope.ExOK,
		errors.New("unknown role"):              envelope.ExConfig,
		fmt.Errorf("x: %w", syscall.EADDRINUSE): envelope.ExOSErr,
	} {
		if got := cli.Status(status(err)); got != want {
			t.Errorf("%v: status %d, want %d", err, got, want)
		}
	}
}

func TestRunChecksRoles(t *testing.T) {
	d, err := New(cli.Serving{Listen: []string{filepath.Join(t.TempDir(), "s") + "=two"}}, &config.Config{}, frame())
	if err != nil {
		t.Fatal(err)
	}
	err = d.Run(context.Background(), func(role string) error { return errors.New("no " + role) }, nil)
	if err == nil || !strings.Contains(err.Error(), "no two") || cli.Status(err) != envelope.ExConfig {
		t.Errorf("%v", err)
	}
	var h serve.Handler
	ctx, stop := context.WithCancel(context.Background())
	stop()
	if err := d.Run(ctx, nil, h); err != nil {
		t.Errorf("a daemon told to stop: %v", err)
	}
}

// TestServeRoles: the server of a role that cannot be had is an error before anybody connects, and
// each connection goes to the server of its role.
func TestServeRoles(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	d, err := New(cli.Serving{Listen: []string{sock + "=two"}}, &config.Config{}, frame())
	if err != nil {
		t.Fatal(err)
	}
	err = ServeRoles(t.Context(), d, func(role string) (string, error) { return "", errors.New("no " + role) }, nil)
	if err == nil || !strings.Contains(err.Error(), "no two") || cli.Status(err) != envelope.ExConfig {
		t.Errorf("%v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		var c net.Conn
		err := errors.New("not yet")
		for err != nil && ctx.Err() == nil {
			c, err = net.Dial("unix", sock)
			runtime.Gosched()
		}
		if err == nil {
			io.Copy(io.Discard, c) // until it is served
			c.Close()
		}
		stop()
	}()
	served := ""
	err = ServeRoles(ctx, d, func(role string) (string, error) { return "server of " + role, nil },
		func(_ context.Context, s string, _ net.Conn, p serve.Peer, role string) { served = s + ", " + role })
	if err != nil || served != "server of two, two" {
		t.Errorf("served by %q (%v)", served, err)
	}
}

func TestWork(t *testing.T) {
	cfg := &config.Config{Spool: t.TempDir()}
	made := false
	handler := func(log *slog.Logger) worker.Handler { made = log != nil; return nil }
	err := Work(context.Background(), cli.Serving{Listen: []string{"a", "b"}}, cfg, "mtest", worker.AbleRelay, handler)
	if cli.Status(err) != envelope.ExUsage {
		t.Errorf("two sockets: %v", err)
	}
	err = Work(context.Background(), cli.Serving{}, cfg, "mtest", worker.AbleRelay, handler)
	if cli.Status(err) != envelope.ExOSErr || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("no socket: %v", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stop()
	sock := filepath.Join(t.TempDir(), "w")
	if err := Work(ctx, cli.Serving{Listen: []string{sock}}, cfg, "mtest", worker.AbleRelay, handler); err != nil || !made {
		t.Errorf("a worker told to stop: %v (made %v)", err, made)
	}
	if _, err := os.Stat(sock); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestPrefixes(t *testing.T) {
	got, err := Prefixes("k", []string{"10.1.2.3/8", "2001:db8::1", "127.0.0.1"})
	if s := fmt.Sprint(got); err != nil || s != "[10.0.0.0/8 2001:db8::1/128 127.0.0.1/32]" {
		t.Errorf("%s, %v", s, err)
	}
	if _, err := Prefixes("k", []string{"localhost"}); err == nil || !strings.HasPrefix(err.Error(), `k: "localhost"`) {
		t.Errorf("a name: %v", err)
	}
}

func TestUIDs(t *testing.T) {
	if got, err := UIDs([]string{"17", "root"}); err != nil || !slices.Equal(got, []int{17, 0}) {
		t.Errorf("%v %v", got, err)
	}
	if _, err := UIDs([]string{"no such user"}); err == nil {
		t.Error("a user that does not exist was looked up")
	}
}
