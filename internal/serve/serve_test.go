package serve

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The test binary is also the daemon under test, under another name.
const helperName = "serve-helper"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == helperName {
		os.Exit(helper(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// helper is a daemon that says who it is and who is there, waits for one line or the end, and
// says goodbye.
func helper(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	o := Options{Roles: []string{"one", "two"}, Default: "one", Grace: 5 * time.Second}
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		switch k {
		case "idle":
			o.Idle, _ = time.ParseDuration(v) // zero is never, and the test then fails
		case "listen":
			l, err := ParseListener(v)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 64
			}
			o.Listen = append(o.Listen, l)
		case "role":
			o.Role = v
		case "notify":
			o.NotifyFd = 3
		case "max":
			o.MaxSessions, o.Busy = 1, "busy\r\n"
		}
	}
	err := Run(ctx, o, func(ctx context.Context, c net.Conn, p Peer, role string) {
		uid := -1
		if p.Cred != nil {
			uid = p.Cred.UID
		}
		fmt.Fprintf(c, "pid=%d role=%s peer=%v uid=%d stdio=%v fd2=%v\r\n", os.Getpid(), role, p.Addr, uid, p.Stdio, Fd2IsClient())
		stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		line, err := bufio.NewReader(c).ReadString('\n')
		if ctx.Err() != nil {
			// The goodbye takes another line of the client: a session needs time to end.
			io.WriteString(c, "stopping?\r\n")
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if line, err = bufio.NewReader(c).ReadString('\n'); err != nil {
				return
			}
		} else if err != nil {
			return
		}
		if strings.HasPrefix(line, "panic") {
			panic("asked to")
		}
		io.WriteString(c, "bye "+line)
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 78
	}
	return 0
}

// helperPath is the test binary under the daemon's name.
func helperPath(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// A directory of the test is not open to others; inetd's user is us, so that is enough.
	p := filepath.Join(dir, helperName)
	if err := os.Symlink(self, p); err != nil {
		t.Fatal(err)
	}
	return p
}

// freePort is a port nobody listens on: inetd and systemd-socket-activate take no port 0.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs a program and ends it with the test.
func start(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	if testing.Verbose() {
		cmd.Stderr = os.Stderr // the starters report each connection there
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

func need(t *testing.T, program string) string {
	t.Helper()
	for _, p := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
	}
	t.Skipf("%s is not installed", program)
	return ""
}

// dialWait connects once somebody listens.
func dialWait(t *testing.T, network, addr string) net.Conn {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial(network, addr)
		if err == nil {
			c.SetDeadline(time.Now().Add(10 * time.Second))
			return c
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// greet connects and returns the daemon's line as a map.
func greet(t *testing.T, network, addr string) (net.Conn, map[string]string) {
	t.Helper()
	c := dialWait(t, network, addr)
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatalf("no greeting: %q %v", line, err)
	}
	m := make(map[string]string)
	for _, f := range strings.Fields(line) {
		k, v, _ := strings.Cut(f, "=")
		m[k] = v
	}
	return c, m
}

// finish sends a line and expects it back before the end of the connection.
func finish(t *testing.T, c net.Conn) {
	t.Helper()
	defer c.Close()
	if _, err := io.WriteString(c, "x\r\n"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil || string(b) != "bye x\r\n" {
		t.Fatalf("got %q, %v", b, err)
	}
}

func TestSystemdListening(t *testing.T) {
	activate := need(t, "systemd-socket-activate")
	a, b := freePort(t), freePort(t)
	cmd := start(t, exec.Command(activate, "-l", a, "-l", b, "--fdname=two:one", helperPath(t), "idle=300ms"))
	c1, g1 := greet(t, "tcp", a)
	c2, g2 := greet(t, "tcp", b)
	if g1["role"] != "two" || g2["role"] != "one" || g1["pid"] != g2["pid"] || g1["fd2"] != "false" {
		t.Errorf("greetings %v and %v", g1, g2)
	}
	if g1["peer"] != c1.LocalAddr().String() {
		t.Errorf("peer %s, want %s", g1["peer"], c1.LocalAddr())
	}
	finish(t, c1)
	finish(t, c2)
	// Activated and idle: it ends by itself, with exit status 0.
	if err := cmd.Wait(); err != nil {
		t.Errorf("idle exit: %v", err)
	}
}

func TestSystemdAccept(t *testing.T) {
	activate := need(t, "systemd-socket-activate")
	for _, c := range []struct {
		name string
		args []string
		role string
	}{
		{"descriptor 3", []string{"--fdname=two"}, "two"},
		{"standard input", []string{"--inetd"}, "one"},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := freePort(t)
			start(t, exec.Command(activate, append(append([]string{"--accept", "-l", addr}, c.args...), helperPath(t))...))
			c1, g1 := greet(t, "tcp", addr)
			c2, g2 := greet(t, "tcp", addr)
			if g1["role"] != c.role || g1["pid"] == g2["pid"] || g1["peer"] != c1.LocalAddr().String() || g1["stdio"] != "false" {
				t.Errorf("greetings %v and %v", g1, g2)
			}
			finish(t, c1)
			finish(t, c2)
		})
	}
}

// inetd runs openbsd-inetd with one line.
func inetd(t *testing.T, mode, addr string, args string) {
	t.Helper()
	prog := need(t, "inetd")
	if os.Getuid() != 0 {
		t.Skip("inetd changes to the user of its configuration: needs root")
	}
	conf := filepath.Join(t.TempDir(), "inetd.conf")
	line := fmt.Sprintf("%s stream tcp %s root %s %s %s\n", addr, mode, helperPath(t), helperName, args)
	if err := os.WriteFile(conf, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(prog, "-i", conf)
	// Its children are in its group; they end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	start(t, cmd)
	t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
}

func TestInetdNowait(t *testing.T) {
	addr := freePort(t)
	inetd(t, "nowait.10000", addr, "role=two")
	c1, g1 := greet(t, "tcp", addr)
	c2, g2 := greet(t, "tcp", addr)
	if g1["role"] != "two" || g1["pid"] == g2["pid"] || g1["peer"] != c1.LocalAddr().String() || g1["fd2"] != "true" {
		t.Errorf("greetings %v and %v", g1, g2)
	}
	finish(t, c1)
	finish(t, c2)
}

// TestInetdWait also shows that no connection is lost while processes end and start: each client
// that connects gets an answer.
func TestInetdWait(t *testing.T) {
	addr := freePort(t)
	inetd(t, "wait.10000", addr, "idle=20ms")
	c1, g1 := greet(t, "tcp", addr)
	c2, g2 := greet(t, "tcp", addr)
	if g1["pid"] != g2["pid"] {
		t.Errorf("two processes in wait mode: %v and %v", g1, g2)
	}
	finish(t, c1)
	finish(t, c2)
	pids := map[string]bool{g1["pid"]: true}
	pause := time.NewTimer(0)
	for i := range 60 {
		c, g := greet(t, "tcp", addr)
		pids[g["pid"]] = true
		finish(t, c)
		// Connect again just when the process is about to end.
		<-pause.C
		pause.Reset(19*time.Millisecond + time.Duration(i%5)*time.Millisecond/2)
	}
	if len(pids) < 2 {
		t.Error("the process did not end when idle")
	}
}

func TestOwnListeners(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, "s")
	addr := freePort(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(helperPath(t), "listen="+addr, "listen="+sock+"=two", "notify=3")
	cmd.ExtraFiles = []*os.File{w}
	start(t, cmd)
	w.Close()
	if b := make([]byte, 1); true {
		if _, err := io.ReadFull(r, b); err != nil || b[0] != '\n' {
			t.Fatalf("readiness: %q %v", b, err)
		}
	}
	// Ready means ready: no waiting here.
	c1, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c1.SetDeadline(time.Now().Add(10 * time.Second))
	br := bufio.NewReader(c1)
	if l, _ := br.ReadString('\n'); !strings.Contains(l, "role=one") {
		t.Errorf("greeting %q", l)
	}
	c2, g2 := greet(t, "unix", sock)
	if g2["role"] != "two" || g2["uid"] != fmt.Sprint(os.Getuid()) {
		t.Errorf("greeting %v", g2)
	}
	c3, _ := greet(t, "unix", sock)
	io.WriteString(c3, "panic\r\n") // takes only its own connection with it
	io.ReadAll(c3)
	finish(t, c2)
	// SIGHUP, by which others are told to read their files again, ends nobody's session.
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	c4, _ := greet(t, "tcp", addr)
	finish(t, c4)
	// SIGTERM: the open session is told, then the process ends with status 0.
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if l, _ := br.ReadString('\n'); l != "stopping?\r\n" {
		t.Errorf("told %q", l)
	}
	for end := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			break
		}
		c.Close()
		if time.Now().After(end) {
			t.Fatal("still accepting after SIGTERM")
		}
	}
	io.WriteString(c1, "yes\r\n")
	if l, _ := br.ReadString('\n'); l != "bye yes\r\n" {
		t.Errorf("goodbye %q", l)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if _, err := os.Lstat(sock); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket file left behind: %v", err)
	}
}

func TestStaleSocketFile(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if _, err := listen(t.Context(), Listener{Addr: sock}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a served socket was taken over: %v", err)
	}
	l.Close()
	n, err := listen(t.Context(), Listener{Addr: sock, Mode: 0o600})
	if err != nil {
		t.Fatalf("the file of a dead process is in the way: %v", err)
	}
	defer n.Close()
	if fi, err := os.Stat(sock); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v %v", fi, err)
	}
}

func TestStdio(t *testing.T) {
	cmd := exec.Command(helperPath(t))
	cmd.Env = append(os.Environ(), "TCPREMOTEIP=192.0.2.9", "TCPREMOTEPORT=17")
	cmd.Stdin = strings.NewReader("x\r\n")
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "peer=192.0.2.9:17") || !strings.Contains(string(out), "stdio=true") || !strings.HasSuffix(string(out), "bye x\r\n") {
		t.Errorf("got %q, %v", out, err)
	}
}

// TestStdioSocketPairs: some languages give a child one socket pair for input, one for output.
func TestStdioSocketPairs(t *testing.T) {
	var far, near [2]*os.File
	for i := range 2 {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		syscall.CloseOnExec(fds[0])
		near[i], far[i] = os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
		defer near[i].Close()
	}
	cmd := exec.Command(helperPath(t))
	cmd.Stdin, cmd.Stdout = far[0], far[1]
	start(t, cmd)
	far[0].Close()
	far[1].Close()
	io.WriteString(near[0], "x\r\n")
	b, _ := io.ReadAll(near[1])
	if !strings.HasSuffix(string(b), "bye x\r\n") {
		t.Errorf("got %q", b)
	}
}

func TestUnknownRole(t *testing.T) {
	cmd := exec.Command(helperPath(t), "role=three")
	cmd.Stdin = strings.NewReader("")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 78 || !strings.Contains(stderr.String(), `unknown role "three" (roles are one, two`) {
		t.Errorf("%v: %s", err, stderr.String())
	}
}

func TestMaxSessions(t *testing.T) {
	addr := freePort(t)
	start(t, exec.Command(helperPath(t), "listen="+addr, "max=1"))
	c1, _ := greet(t, "tcp", addr)
	c2 := dialWait(t, "tcp", addr)
	defer c2.Close()
	if b, _ := io.ReadAll(c2); string(b) != "busy\r\n" {
		t.Errorf("the second client is told %q", b)
	}
	finish(t, c1)
	// The place is free again once the first session has ended.
	for end := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		l, _ := bufio.NewReader(c).ReadString('\n')
		c.Close()
		if strings.HasPrefix(l, "pid=") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("still told %q", l)
		}
	}
}

func TestParseListener(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Listener
		ok   bool
	}{
		{"127.0.0.1:25", Listener{Addr: "127.0.0.1:25"}, true},
		{"[::1]:25=mx", Listener{Addr: "[::1]:25", Role: "mx"}, true},
		{":25", Listener{Addr: ":25"}, true},
		{"/run/x=local", Listener{Addr: "/run/x", Role: "local"}, true},
		{"./x", Listener{Addr: "./x"}, true},
		{"", Listener{}, false}, {"25", Listener{}, false}, {"=mx", Listener{}, false}, {"127.0.0.1:25=", Listener{}, false},
	} {
		got, err := ParseListener(c.in)
		if (err == nil) != c.ok || c.ok && got != c.want {
			t.Errorf("%q: %+v, %v", c.in, got, err)
		}
	}
}

func TestWorkerPairAndSocket(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "w")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		err := Worker(ctx, WorkerOptions{Listen: sock, Log: slog.New(slog.DiscardHandler)}, func(_ context.Context, c *net.UnixConn) error {
			_, err := io.WriteString(c, "hello\n")
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}()
	c := dialWait(t, "unix", sock)
	if b, _ := io.ReadAll(c); string(b) != "hello\n" {
		t.Errorf("got %q", b)
	}
	c.Close()
	cancel()
	wg.Wait()
	o := WorkerOptions{UIDs: []int{4711}}
	if o.allowed(Peer{Cred: &Cred{UID: 4712}}) == nil || o.allowed(Peer{}) == nil || o.allowed(Peer{Cred: &Cred{UID: 4711}}) != nil {
		t.Error("the wrong uid may use a worker")
	}
	if _, err := pair(0); err == nil {
		t.Error("standard input of a test is taken for a socket pair")
	}
}
