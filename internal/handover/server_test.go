package handover

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
	"pennypost/internal/sasl"
)

// TestMain lets the test binary be a session.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 || os.Args[1] != "--session" {
		os.Exit(m.Run())
	}
	f, err := ReadFacts(os.NewFile(3, "facts"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	session(f)
}

// session does what the state says.
func session(f *Facts) {
	var what string
	if err := json.Unmarshal(f.State, &what); err != nil {
		os.Exit(2)
	}
	switch what {
	case "who":
		wd, _ := os.Getwd()
		flags, err := unix.FcntlInt(0, unix.F_GETFL, 0)
		fmt.Printf("%s %s %q %s %v %s env=%d args=%q wd=%s blocks=%v\n", f.Address, f.Name, f.Pending, f.Peer, f.TLS, f.Maildir, len(os.Environ()), os.Args[1:], wd, err == nil && flags&unix.O_NONBLOCK == 0)
	case "echo":
		fmt.Println("ready")
		_, _ = io.Copy(os.Stdout, os.Stdin)
	case "speak":
		fmt.Fprint(os.Stderr, "first\nlevel=WARN msg=\"login refused\" peer=192.0.2.1:1 user=x\n"+strings.Repeat("x", 2*maxText))
		os.Exit(7)
	case "wait":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("ready")
		<-c
		fmt.Println("told to end")
	case "deaf":
		os.Stderr.Close()
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
	os.Exit(0)
}

// tickets are those of users called like them; each is good once.
type tickets struct {
	mu   sync.Mutex
	good []string
}

func (t *tickets) Redeem(_ context.Context, ticket string) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ticket == "broken" {
		return "", fmt.Errorf("%w: the service is gone", sasl.ErrTemporary)
	}
	i := slices.Index(t.good, ticket)
	if i < 0 {
		return "", sasl.ErrRefused
	}
	t.good = slices.Delete(t.good, i, i+1)
	return ticket + "@x.test", nil
}

func (t *tickets) add(ticket ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.good = append(t.good, ticket...)
}

// users of the tests; ann and bob are those that may have sessions.
type users struct{ uid int }

func (u users) Groups(_ context.Context, name string, gid int) ([]int, error) {
	return []int{gid}, nil
}

func (u users) LookupUser(_ context.Context, a envelope.Address) (accounts.Result, error) {
	m := &accounts.Mailbox{Address: a.String(), User: a.Local, Home: "/home/" + a.Local, Maildir: "/home/" + a.Local + "/Maildir", UID: u.uid, GID: u.uid, System: true}
	switch a.Local {
	case "ann", "bob", "vmail", "pp-queue":
	case "root":
		m.UID, m.GID = 0, 0
	case "toor":
		m.GID = 0
	case "daemon":
		m.UID = 1
	case "virtual":
		m.System = false // though the account names a uid
	case "other":
		m.UID++
	case "moved":
		m.Address = "elsewhere@x.test"
	case "failing":
		return accounts.Result{}, errors.New("LDAP is gone")
	default:
		return accounts.Result{Kind: accounts.NoSuchUser}, nil
	}
	return accounts.Result{Kind: accounts.IsMailbox, Mailbox: m}, nil
}

// place is a Server on a socket.
type place struct {
	t       *testing.T
	path    string
	tickets *tickets
	server  *Server
	stop    func()
	log     *logged

	wait sync.WaitGroup
}

type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newPlace(t *testing.T, change func(*Options)) *place {
	t.Helper()
	// Nobody but root can become somebody else; as root, the server is told that it is not.
	uid := os.Geteuid()
	if uid == 0 {
		uid = 4242
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "ho")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &place{t: t, path: filepath.Join(dir, "s"), tickets: &tickets{}, log: &logged{}}
	o := Options{
		Tickets: p.tickets, Users: users{uid}, Programs: map[string][]string{POP3: {self, "--session"}},
		FirstUID: 1000, Max: 20, PerUser: 3, UID: uid, Log: slog.New(slog.NewTextHandler(p.log, nil)),
	}
	if uid < 1000 {
		o.FirstUID = 1
	}
	if change != nil {
		change(&o)
	}
	p.server = NewServer(o)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	p.wait.Add(1)
	go func() {
		defer p.wait.Done()
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			p.wait.Add(1)
			go func() {
				defer p.wait.Done()
				defer c.Close()
				p.server.Serve(ctx, c, "test")
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		cancel()
		p.wait.Wait()
	})
	return p
}

// connect makes a client's connection: what the client holds, and what the login process does.
func connect(t *testing.T) (client, login *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func (p *place) ask(conn net.Conn, ticket, state string) error {
	return NewClient(p.path).Do(p.t.Context(), conn, Request{Protocol: POP3, Ticket: ticket, State: state})
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in 10 s", what)
		}
	}
}

func TestSessionGetsNothingElse(t *testing.T) {
	t.Parallel()
	p := newPlace(t, nil)
	p.tickets.add("ann")
	client, login := connect(t)
	err := NewClient(p.path).Do(t.Context(), login, Request{
		Protocol: POP3, Ticket: "ann", Peer: netip.MustParseAddrPort("192.0.2.7:110"), Pending: []byte("STAT\r\n"), State: "who",
	})
	if err != nil {
		t.Fatal(err, p.log)
	}
	login.Close()
	b, err := io.ReadAll(client)
	want := `ann@x.test ann "STAT\r\n" 192.0.2.7:110 <nil> /home/ann/Maildir env=0 args=["--session"] wd=/ blocks=true`
	if err != nil || !strings.HasPrefix(string(b), want) {
		t.Errorf("%q, %v", b, err)
	}
	eventually(t, "end in the log", func() bool { return strings.Contains(p.log.String(), "session ends") })
	for _, want := range []string{"msg=\"session begins\"", "user=ann@x.test", "peer=192.0.2.7:110", "status=0", "pid="} {
		if !strings.Contains(p.log.String(), want) {
			t.Errorf("no %s in the log:\n%s", want, p.log)
		}
	}
}

func TestWhoGetsNoSession(t *testing.T) {
	t.Parallel()
	p := newPlace(t, nil)
	for _, c := range []struct {
		ticket string
		want   error // nil: any but those of a refusal
	}{
		{"forged", ErrRefused}, {"root", ErrRefused}, {"toor", ErrRefused}, {"virtual", ErrRefused},
		{"vmail", ErrRefused}, {"pp-queue", ErrRefused}, {"moved", ErrRefused}, {"nobody-of-that-name", ErrRefused},
		{"other", nil}, {"failing", nil}, {"broken", nil},
	} {
		if c.ticket != "forged" {
			p.tickets.add(c.ticket)
		}
		client, login := connect(t)
		err := p.ask(login, c.ticket, "who")
		if err == nil || c.want != nil && !errors.Is(err, c.want) || c.want == nil && errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", c.ticket, err)
		}
		login.Close()
		if b, _ := io.ReadAll(client); len(b) > 0 {
			t.Errorf("%s: a session says %q", c.ticket, b)
		}
	}
	q := newPlace(t, func(o *Options) { o.FirstUID = o.UID + 1 })
	q.tickets.add("ann")
	_, login := connect(t)
	if err := q.ask(login, "ann", "who"); !errors.Is(err, ErrRefused) {
		t.Errorf("below first_uid: %v", err)
	}
	// A ticket that was good once is not again.
	p.tickets.add("ann")
	client, login := connect(t)
	if err := p.ask(login, "ann", "who"); err != nil {
		t.Fatal(err)
	}
	login.Close()
	if b, err := io.ReadAll(client); err != nil || len(b) == 0 {
		t.Errorf("%q %v", b, err)
	}
	_, login = connect(t)
	if err := p.ask(login, "ann", "who"); !errors.Is(err, ErrRefused) {
		t.Errorf("replayed: %v", err)
	}
}

func TestProgramsOfOthersAreNotRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "writable")
	if err := errors.Join(os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755), os.Chmod(path, 0o777)); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{path, dir, filepath.Join(dir, "missing")} {
		p := newPlace(t, func(o *Options) { o.Programs = map[string][]string{POP3: {program}} })
		p.tickets.add("ann")
		_, login := connect(t)
		if err := p.ask(login, "ann", "who"); err == nil || errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", program, err)
		}
	}
}

// TestLimits: there is a number of sessions, and one for each user; what ends makes room. All
// users of this test have one uid.
func TestLimits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name         string
		perUser, max int
	}{{"of a user", 2, 9}, {"of all", 9, 2}} {
		p := newPlace(t, func(o *Options) { o.PerUser, o.Max = c.perUser, c.max })
		var first *net.TCPConn
		for i, want := range []error{nil, nil, ErrBusy, ErrBusy} {
			client, login := connect(t)
			p.tickets.add("ann")
			if err := p.ask(login, "ann", "echo"); !errors.Is(err, want) {
				t.Errorf("%s: %d: %v", c.name, i, err)
			}
			login.Close()
			if i == 0 {
				first = client
			}
		}
		if _, err := bufio.NewReader(first).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		first.Close()
		eventually(t, "room", func() bool {
			p.server.mu.Lock()
			defer p.server.mu.Unlock()
			return p.server.sessions == 1
		})
		_, login := connect(t)
		p.tickets.add("ann")
		if err := p.ask(login, "ann", "who"); err != nil {
			t.Errorf("%s: after an end: %v", c.name, err)
		}
	}
}

func TestWhatSessionsSayIsTheirs(t *testing.T) {
	t.Parallel()
	p := newPlace(t, nil)
	p.tickets.add("ann")
	_, login := connect(t)
	if err := p.ask(login, "ann", "speak"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "end", func() bool { return strings.Contains(p.log.String(), "session ends") })
	log := p.log.String()
	if !strings.Contains(log, "status=7") || !strings.Contains(log, "text=first") {
		t.Error(log)
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, "login refused") && !strings.Contains(line, `text="level=WARN msg=\"login refused\"`) || len(line) > 2*maxText {
			t.Errorf("a line of another: %q", line)
		}
	}
}

// TestEndOfTheServer: sessions are told, may say goodbye, and their end is taken note of.
func TestEndOfTheServer(t *testing.T) {
	t.Parallel()
	p := newPlace(t, nil)
	p.tickets.add("ann", "bob")
	client, login := connect(t)
	if err := p.ask(login, "ann", "wait"); err != nil {
		t.Fatal(err)
	}
	login.Close()
	deaf, login := connect(t)
	if err := p.ask(login, "bob", "deaf"); err != nil {
		t.Fatal(err)
	}
	login.Close()
	r := bufio.NewReader(client)
	if s, err := r.ReadString('\n'); s != "ready\n" {
		t.Fatal(s, err)
	}
	if s, err := bufio.NewReader(deaf).ReadString('\n'); s != "ready\n" {
		t.Fatal(s, err)
	}
	p.stop()
	if s, err := io.ReadAll(r); string(s) != "told to end\n" || err != nil {
		t.Errorf("%q %v", s, err)
	}
	deaf.Close()
	p.wait.Add(-1) // of the acceptor, which ends with the test
	p.wait.Wait()
	p.wait.Add(1)
	if n := strings.Count(p.log.String(), "session ends"); n != 2 {
		t.Errorf("%d ends\n%s", n, p.log)
	}
}

// TestNotStarted: a connection whose session does not start is the login process's again, with its
// time-outs: the descriptor that was passed shares its mode with the one that was kept.
func TestNotStarted(t *testing.T) {
	t.Parallel()
	broken := filepath.Join(t.TempDir(), "program") // of a format that does not run
	if err := os.WriteFile(broken, []byte("no program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := newPlace(t, func(o *Options) { o.Programs[POP3] = []string{broken} })
	p.tickets.add("ann")
	_, login := connect(t)
	if err := p.ask(login, "ann", "who"); err == nil || !strings.Contains(err.Error(), "start "+broken) {
		t.Fatal(err)
	}
	rc, err := login.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	blocks := true
	if err := rc.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		blocks = err != nil || flags&unix.O_NONBLOCK == 0
	}); err != nil || blocks {
		t.Errorf("reads of the login process wait for ever (%v)", err)
	}
}
