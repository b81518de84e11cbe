package house_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/auth"
	"pennypost/internal/handover"
	"pennypost/internal/mailtest"
)

const (
	uidLogin = 64022 // of mpop3d
	uidAnn   = 64101
	uidBob   = 64102
	gidClub  = 64201 // ann is a member
)

// TestSessionsOfUsers: mpop3d, which talks to the network, can read nobody's mail; who logs in by
// it gets a session as the user of the system that they are, by msession. The ticket for it comes
// from "mpasswd serve", and without one a login process becomes nobody.
func TestSessionsOfUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("switching users needs root")
	}
	if runtime.GOOS != "linux" {
		t.Skip("looks into /proc")
	}
	p := newSessionPlace(t)
	t.Run("hand-over", func(t *testing.T) { p.at(t).tour() })
	t.Run("password changed", func(t *testing.T) { p.at(t).staleTicket() })
	t.Run("stranger", func(t *testing.T) {
		q := p.at(t)
		ticket := q.helper(uidLogin, "ticket", "ann@example.test", "secret")
		if out := q.helper(uidNobody, "use", ticket, "ann@example.test"); !strings.HasPrefix(out, "refused: ") {
			t.Errorf("a stranger with a ticket: %s", out)
		}
	})
	t.Run("TLS", func(t *testing.T) { p.at(t).overTLS() })
	t.Run("rights", func(t *testing.T) {
		q := p.at(t)
		for _, what := range []string{"ls home/ann", "cat secrets", "touch session/x", "touch auth/x", "cat home/ann/Maildir/new/*"} {
			if out, err := q.as(exec.Command("/bin/sh", "-c", what), uidLogin, uidLogin).CombinedOutput(); err == nil {
				t.Errorf("the login process may: %s\n%s", what, out)
			}
		}
	})
}

// at is the same place for a part of the test.
func (p *place) at(t *testing.T) *place {
	q := *p
	q.t = t
	return &q
}

// newSessionPlace starts everything but the login process. The users are known to getent alone.
func newSessionPlace(t *testing.T) *place {
	t.Helper()
	p := newPlace(t)
	for _, name := range []string{"mpasswd", "msession", "mpop3d"} {
		p.copyTool(name)
	}
	p.copyFile(os.Args[0], "player")
	p.certificate(uidLogin)
	p.write("bin/getent", fmt.Sprintf(`#!/bin/sh
case "$1 $2" in
"passwd ann") echo "ann:x:%[1]d:%[1]d:Ann:%[3]s/home/ann:/bin/sh" ;;
"passwd bob") echo "bob:x:%[2]d:%[2]d:Bob:%[3]s/home/bob:/bin/sh" ;;
"initgroups ann") echo "ann                   %[4]d 0" ;;
initgroups*) echo "$2" ;;
*) exit 2 ;;
esac
`, uidAnn, uidBob, p.dir, gidClub), 0o755)
	p.write("pennypost.toml", fmt.Sprintf(`hostname = "mx.example.test"
domains = ["example.test"]
spool = "spool"
maildirs = "mail/%%d/%%u"
[tls]
cert = "cert.pem"
key = "key.pem"
[accounts]
system = true
auth_socket = "auth/socket"
auth_users = ["%d"]
guesses = "auth/guesses"
[session]
socket = "session/socket"
users = ["%[1]d"]
`, uidLogin), 0o644)
	p.write("users", "virt@example.test::::::\n", 0o644)
	p.dirFor("auth", uidAuth, 0o755)
	p.dirFor("session", 0, 0o755)
	p.write("secrets", "ann:{PLAIN}secret\nbob:{PLAIN}secret\nvirt:{PLAIN}secret\nroot:{PLAIN}secret\n", 0o600)
	home := filepath.Join(p.dir, "home")
	if err := errors.Join(os.Chown(filepath.Join(p.dir, "secrets"), uidAuth, uidAuth), os.Mkdir(home, 0o755),
		os.Mkdir(home+"/ann", 0o700), os.Chown(home+"/ann", uidAnn, uidAnn),
		os.Mkdir(home+"/bob", 0o700), os.Chown(home+"/bob", uidBob, uidBob)); err != nil {
		t.Fatal(err)
	}
	p.serve(uidAuth, "mpasswd", "serve", "--listen", "config")
	p.serve(0, "msession", "--listen", "config")
	p.waitFor("sockets", func() bool { return p.exists("auth/socket") && p.exists("session/socket") })
	// Root delivers, and the mailboxes are their users' all the same.
	for _, to := range []string{"ann", "ann", "bob"} {
		cmd := p.command(0, 0, "mdeliver", "-f", "x@far.test", to+"@example.test")
		cmd.Env[0] = "PATH=" + p.bin + ":/usr/bin:/bin"
		cmd.Stdin = strings.NewReader("Subject: for " + to + "\n\nbody\n")
		p.must(cmd)
	}
	return p
}

// serve starts a daemon that finds the test's getent.
func (p *place) serve(uid int, name string, args ...string) {
	p.t.Helper()
	cmd := p.command(uid, uid, name, args...)
	cmd.Env[0] = "PATH=" + p.bin + ":/usr/bin:/bin"
	p.run(cmd)
}

// helper runs this test binary as a login process under its own uid.
func (p *place) helper(uid int, args ...string) string {
	p.t.Helper()
	cmd := p.as(exec.Command(filepath.Join(p.bin, "player"), "-test.run=^TestPlayLogin$", "-test.v"), uid, uid)
	cmd.Env = append(cmd.Env, "PENNYPOST_TEST_PLAY="+strings.Join(append([]string{p.dir}, args...), "\n"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(p.dir, "log"))
		p.t.Fatalf("%q: %v\n%s\n%s", args, err, out, log)
	}
	_, said, _ := strings.Cut(string(out), "SAYS:")
	said, _, _ = strings.Cut(said, "\n")
	return said
}

// tour is what a login process can do in good faith and in bad.
func (p *place) tour() {
	p.helper(uidLogin, "tour")
	log, err := os.ReadFile(filepath.Join(p.dir, "log"))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, want := range []string{
		"user=ann@example.test uid=" + strconv.Itoa(uidAnn), "user=bob@example.test uid=" + strconv.Itoa(uidBob),
		`msg="session ends"`, "peer=192.0.2.7:1100", "login=\"uid " + strconv.Itoa(uidLogin),
	} {
		if !bytes.Contains(log, []byte(want)) {
			p.t.Errorf("no %s in the log\n%s", want, log)
		}
	}
	if bytes.Contains(log, []byte("uid=0")) {
		p.t.Errorf("a session of root\n%s", log)
	}
}

// staleTicket: a ticket from before the password was changed is worth nothing.
func (p *place) staleTicket() {
	ticket := p.helper(uidLogin, "ticket", "bob@example.test", "secret")
	cmd := p.command(0, 0, "mpasswd", "passwd", "bob")
	cmd.Stdin = strings.NewReader("another\n")
	p.must(cmd)
	if out := p.helper(uidLogin, "use", ticket, "bob@example.test"); !strings.HasPrefix(out, "refused: ") {
		p.t.Errorf("after the change: %s", out)
	}
	p.waitFor("the new password", func() bool {
		ticket := p.helper(uidLogin, "ticket", "bob@example.test", "another")
		return ticket != "" && strings.HasPrefix(p.helper(uidLogin, "use", ticket, "bob@example.test"), "+OK")
	})
}

// overTLS is the whole way of a mail client: mpop3d under its own uid keeps TLS, the session that
// deletes mail is the user's.
func (p *place) overTLS() {
	t := p.t
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := p.as(exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", filepath.Join(p.bin, "mpop3d"),
		"--config", filepath.Join(p.dir, "pennypost.toml"), "--role", "pop3s", "--idle", "1h"), uidLogin, uidLogin)
	cmd.Env = []string{"PATH=" + p.bin + ":/usr/bin:/bin", "LISTEN_FDS=1"}
	cmd.ExtraFiles = []*os.File{f}
	p.run(cmd)
	session := func(lines ...string) (last string) {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(c)
		for _, line := range append([]string{""}, lines...) {
			if _, err := io.WriteString(c, line); err != nil {
				t.Fatal(err)
			}
			if last, err = r.ReadString('\n'); err != nil {
				log, _ := os.ReadFile(filepath.Join(p.dir, "log"))
				t.Fatalf("after %q: %v\n%s", line, err, log)
			}
		}
		return last
	}
	const user = "USER ann\r\n"
	if got := session(user, "PASS wrong\r\n"); !strings.HasPrefix(got, "-ERR [AUTH]") {
		t.Errorf("wrong password: %q", got)
	}
	if got := session(user, "PASS secret\r\n", "STAT\r\n"); !strings.HasPrefix(got, "+OK 2 ") {
		t.Errorf("STAT: %q", got)
	}
	for name, want := range map[string]string{"root": "-ERR ", "virt": "-ERR "} {
		if got := session("USER "+name+"\r\n", "PASS secret\r\n"); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := session(user, "PASS secret\r\n", "DELE 1\r\n", "QUIT\r\n"); !strings.HasPrefix(got, "+OK") {
		t.Errorf("QUIT: %q", got)
	}
	left := append(p.glob("home/ann/Maildir/new/*"), p.glob("home/ann/Maildir/cur/*")...)
	if len(left) != 1 {
		t.Errorf("%d messages are left", len(left))
	}
	// Whatever the session has made is its user's.
	if err := filepath.Walk(filepath.Join(p.dir, "home/ann"), func(path string, fi os.FileInfo, err error) error {
		if err == nil && fi.Sys().(*syscall.Stat_t).Uid != uidAnn {
			t.Errorf("%s is not ann's", path)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// TestPlayLogin is the login process of TestSessionsOfUsers.
func TestPlayLogin(t *testing.T) {
	play := os.Getenv("PENNYPOST_TEST_PLAY")
	if play == "" {
		t.Skip("runs as another user for TestSessionsOfUsers")
	}
	args := strings.Split(play, "\n")
	a := &player{t: t, dir: args[0], auth: auth.NewClient(filepath.Join(args[0], "auth/socket"))}
	defer a.auth.Close()
	switch args[1] {
	case "ticket":
		ticket, err := a.ticket(args[2], args[3])
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			ticket = ""
		}
		fmt.Println("SAYS:" + ticket)
	case "use":
		fmt.Println("SAYS:" + a.use(args[2]))
	case "tour":
		a.goodFaith()
		a.badFaith()
	}
}

// player is a login process.
type player struct {
	t    *testing.T
	dir  string
	auth *auth.Client
}

func (a *player) ticket(name, password string) (string, error) {
	id, err := a.auth.Login(a.t.Context(), auth.Attempt{Login: name, Password: password, Ticket: true})
	return id.Ticket, err
}

func (a *player) mustTicket(name string) string {
	a.t.Helper()
	ticket, err := a.ticket(name+"@example.test", "secret")
	if err != nil || ticket == "" {
		a.t.Fatalf("ticket of %s: %v", name, err)
	}
	return ticket
}

// connection is both ends of a client's connection without TLS.
func (a *player) connection() (client net.Conn, login *net.TCPConn) {
	a.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		a.t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		a.t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { client.Close(); c.Close() })
	if err := client.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		a.t.Fatal(err)
	}
	return client, c.(*net.TCPConn)
}

func (a *player) socket() string { return filepath.Join(a.dir, "session/socket") }

// use asks for a session with a ticket and returns its first line.
func (a *player) use(ticket string) string {
	client, login := a.connection()
	err := handover.NewClient(a.socket()).Do(a.t.Context(), login, handover.Request{
		Protocol: handover.POP3, Ticket: ticket, Peer: netip.MustParseAddrPort("192.0.2.7:1100"), State: map[string]string{"role": "pop3"},
	})
	if err != nil {
		return "refused: " + err.Error()
	}
	login.Close()
	defer client.Close()
	r := bufio.NewReader(client)
	s, err := r.ReadString('\n')
	if err == nil {
		_, err = io.WriteString(client, "QUIT\r\n")
	}
	if err == nil {
		_, err = io.ReadAll(r) // the maildrop is free again
	}
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(s)
}

// raw sends a line with descriptors and returns the answer.
func (a *player) raw(line []byte, fds ...int) (answer struct {
	OK    bool
	PID   int
	Error string
}) {
	a.t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: a.socket(), Net: "unix"})
	if err != nil {
		a.t.Fatal(err)
	}
	defer c.Close()
	var oob []byte
	if len(fds) > 0 {
		oob = syscall.UnixRights(fds...)
	}
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		a.t.Fatal(err)
	}
	_, _, err = c.WriteMsgUnix(line, oob, nil)
	if err != nil && !errors.Is(err, syscall.EPIPE) {
		a.t.Fatal(err)
	}
	b, err := bufio.NewReader(c).ReadBytes('\n')
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		a.t.Fatalf("%.100q: %v", line, err)
	}
	if err == nil {
		if err := json.Unmarshal(b, &answer); err != nil {
			a.t.Fatalf("%q: %v", b, err)
		}
	}
	return answer
}

// goodFaith: the session is the user's, with the user's groups and nothing else.
func (a *player) goodFaith() {
	for _, c := range []struct {
		name, groups, messages string
		uid                    int
	}{{"ann", fmt.Sprintf("%d %d", uidAnn, gidClub), "2", uidAnn}, {"bob", strconv.Itoa(uidBob), "1", uidBob}} {
		client, login := a.connection()
		f, err := login.File()
		if err != nil {
			a.t.Fatal(err)
		}
		// Whatever else the request says of who the user is counts for nothing.
		line := fmt.Sprintf(`{"protocol":"pop3","ticket":%q,"peer":"192.0.2.7:1100","state":{"role":"pop3"},"user":"root","uid":0,"name":"root",`+
			`"maildir":"/root/Maildir","program":"/bin/sh","args":["-c","id"]}`+"\n", a.mustTicket(c.name))
		got := a.raw([]byte(line), int(f.Fd()))
		f.Close()
		login.Close()
		r := bufio.NewReader(client)
		welcome, err := r.ReadString('\n')
		if !got.OK || err != nil || !strings.Contains(welcome, " "+c.messages+" messages") {
			a.t.Fatalf("%s: %+v %q %v", c.name, got, welcome, err)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", got.PID))
		if err != nil {
			a.t.Fatal(err)
		}
		for _, want := range []string{
			fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", c.uid), fmt.Sprintf("Gid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", c.uid),
			"Groups:\t" + c.groups + " \n", "NoNewPrivs:\t1\n", "CapPrm:\t0000000000000000\n", "CapInh:\t0000000000000000\n",
		} {
			if !strings.Contains(string(status), want) {
				a.t.Errorf("%s: no %q in\n%s", c.name, want, status)
			}
		}
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", got.PID))
		if err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0 ") {
			a.t.Errorf("%s: %v\n%s", c.name, err, limits)
		}
		if _, err := io.WriteString(client, "QUIT\r\n"); err != nil {
			a.t.Fatal(err)
		}
		if s, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(s, "+OK") {
			a.t.Errorf("%s: QUIT: %q %v", c.name, s, err)
		}
	}
}

// badFaith: a login process that was taken over.
func (a *player) badFaith() {
	used := a.mustTicket("ann")
	if got := a.use(used); !strings.HasPrefix(got, "+OK") {
		a.t.Fatal(got)
	}
	for _, c := range []struct{ name, ticket string }{
		{"replayed", used}, {"forged", strings.Repeat("A", len(used))}, {"an address", "ann@example.test"},
		{"changed at the end", used[:len(used)-1] + "0"}, {"root's", a.mustTicket("root")}, {"a virtual user's", a.mustTicket("virt")},
	} {
		if got := a.use(c.ticket); got != "refused: "+handover.ErrRefused.Error() {
			a.t.Errorf("%s: %s", c.name, got)
		}
	}
	// It cannot find out whose a ticket is, nor use it up, but by a session.
	ticket := a.mustTicket("ann")
	if who, err := a.auth.Redeem(context.Background(), ticket); err == nil {
		a.t.Errorf("redeemed: %s", who)
	}
	client, login := a.connection()
	defer client.Close()
	f, err := login.File()
	if err != nil {
		a.t.Fatal(err)
	}
	defer f.Close()
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		a.t.Fatal(err)
	}
	defer exe.Close()
	line := func(protocol, more string) []byte {
		return []byte(fmt.Sprintf(`{"protocol":%q,"ticket":%q%s}`, protocol, ticket, more) + "\n")
	}
	sock := int(f.Fd())
	for _, c := range []struct {
		name string
		line []byte
		fds  []int
	}{
		{"no session program", line("imap", ""), []int{sock}},
		{"a shell", line("../../../bin/sh", ""), []int{sock}},
		{"garbage", []byte("\x00\x01{{{\n"), []int{sock}},
		{"huge", append(bytes.Repeat([]byte("x"), 1<<20), '\n'), []int{sock}},
		{"no descriptor", line("pop3", ""), nil},
		{"several", line("pop3", ""), []int{sock, sock, sock}},
		{"a file", line("pop3", ""), []int{int(exe.Fd())}},
	} {
		if got := a.raw(c.line, c.fds...); got.OK {
			a.t.Errorf("%s: a session begins", c.name)
		}
	}
	var slow []net.Conn
	for range 700 {
		c, err := net.Dial("unix", a.socket())
		if err != nil {
			a.t.Fatal(err)
		}
		slow = append(slow, c)
	}
	begin := time.Now()
	if got := a.use(a.mustTicket("ann")); !strings.HasPrefix(got, "+OK") {
		a.t.Errorf("beside slow senders: %s", got)
	}
	if d := time.Since(begin); d > 4*time.Second {
		a.t.Errorf("beside slow senders: after %v", d)
	}
	for _, c := range slow {
		c.Close()
	}
	if !mailtest.Wait(10*time.Second, func() bool { return strings.HasPrefix(a.use(a.mustTicket("ann")), "+OK") }) {
		a.t.Error("no session any more")
	}
}
