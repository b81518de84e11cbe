package house_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/mailtest"
)

// Users of the rights test: numbers without accounts.
const (
	uidSMTP = 64001 + iota
	uidQueue
	uidRelay
	uidMail
	uidNobody
	gidSubmit = 64010
)

// place is a mail system whose parts run as different users.
type place struct {
	t   *testing.T
	dir string
	bin string
}

// TestFourUsers runs msmtpd, mqueue, mrelay and mdeliver each as its own user, none of them root,
// with the rights of pennypost(7): mail passes, and nobody reads what is not theirs.
func TestFourUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("switching users needs root")
	}
	if runtime.GOOS != "linux" {
		t.Skip("looks into /proc")
	}
	p := newPlace(t)
	peer := mailtest.StartPeer(t, mailtest.PeerOptions{})
	p.write("pennypost.toml", fmt.Sprintf(`hostname = "mx.example.test"
domains = ["example.test"]
spool = "spool"
maildirs = "mail/%%d/%%u"
relay.port = 1
[limits]
free_space = 0
free_inodes = 0
[[worker]]
name = "local"
socket = "deliver/socket"
user = "%d"
[[worker]]
name = "relay"
socket = "relay/socket"
user = "%d"
[[route]]
match = "far.test"
to = "%s"
tls = "none"
`, uidMail, uidRelay, peer.Addr()), 0o644)
	p.write("users", "bob@example.test::::::\n", 0o644)
	p.write("secrets", "", 0o600)
	p.dirFor("deliver", uidMail, 0o755)
	p.dirFor("relay", uidRelay, 0o755)
	p.dirFor("mail", uidMail, 0o750)
	p.must(p.command(0, 0, "mqueue", "init", "--group", strconv.Itoa(gidSubmit), "--owner", strconv.Itoa(uidQueue)))

	// The workers' sockets belong to the group of mqueue.
	p.start(uidMail, uidQueue, "mdeliver", "--listen", filepath.Join(p.dir, "deliver/socket"))
	p.start(uidRelay, uidQueue, "mrelay", "--listen", filepath.Join(p.dir, "relay/socket"))
	p.waitFor("sockets of the workers", func() bool { return p.exists("deliver/socket") && p.exists("relay/socket") })
	p.start(uidQueue, uidQueue, "mqueue", "run")
	p.waitFor("control socket", func() bool { return p.exists("spool/control") })
	addr := p.smtpd("mx")

	p.smtp(addr, "bob@example.test")
	p.waitFor("mail for bob", func() bool { return len(p.glob("mail/example.test/bob/new/*")) == 1 })
	relayed := p.command(uidQueue, uidQueue, "msend", "-f", "bob@example.test", "ann@far.test")
	relayed.Stdin = strings.NewReader("Subject: far\n\nbody\n")
	p.must(relayed)
	p.waitFor("mail at the peer", func() bool { return len(peer.Messages()) == 1 })

	p.rights()
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir, err := os.MkdirTemp("", "pp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &place{t: t, dir: dir, bin: filepath.Join(dir, "bin")}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(p.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	// The built programs lie where only we may go.
	for _, name := range []string{"msend", "msmtpd", "mqueue", "mrelay", "mdeliver"} {
		data, err := os.ReadFile(filepath.Join(tools.Dir(t), name))
		if err == nil {
			err = os.WriteFile(filepath.Join(p.bin, name), data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *place) write(name, text string, mode os.FileMode) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), mode); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) dirFor(name string, uid int, mode os.FileMode) {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := errors.Join(os.Mkdir(path, mode), os.Chmod(path, mode), os.Chown(path, uid, uidQueue)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) exists(name string) bool {
	_, err := os.Stat(filepath.Join(p.dir, name))
	return err == nil
}

func (p *place) glob(pattern string) []string {
	files, err := filepath.Glob(filepath.Join(p.dir, pattern))
	if err != nil {
		p.t.Fatal(err)
	}
	return files
}

func (p *place) waitFor(what string, ok func() bool) {
	p.t.Helper()
	if !mailtest.Wait(20*time.Second, ok) {
		log, _ := os.ReadFile(filepath.Join(p.dir, "log"))
		p.t.Fatalf("%s: not there\n%s", what, log)
	}
}

// command makes a process of one of our programs for a user.
func (p *place) command(uid, gid int, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(p.bin, name), append([]string{"--config", filepath.Join(p.dir, "pennypost.toml")}, args...)...)
	return p.as(cmd, uid, gid)
}

func (p *place) as(cmd *exec.Cmd, uid, gid int) *exec.Cmd {
	var groups []uint32
	if uid == uidSMTP || uid == uidQueue {
		groups = []uint32{gidSubmit}
	}
	cmd.Dir = p.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: groups}}
	return cmd
}

func (p *place) must(cmd *exec.Cmd) {
	p.t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
}

// start runs a process until the test ends.
func (p *place) start(uid, gid int, name string, args ...string) {
	p.t.Helper()
	p.run(p.command(uid, gid, name, args...))
}

func (p *place) run(cmd *exec.Cmd) {
	p.t.Helper()
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	pid := cmd.Process.Pid
	p.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		if err := cmd.Wait(); err != nil {
			p.t.Errorf("%s: %v", filepath.Base(cmd.Path), err)
		}
	})
	p.waitFor(fmt.Sprintf("uid of %v", cmd.Args), func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		return err == nil && strings.Contains(string(status), fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d", cmd.SysProcAttr.Credential.Uid))
	})
}

// smtpd starts msmtpd with a socket that root has opened, as systemd does.
func (p *place) smtpd(role string) (addr string) {
	p.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	args := []string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh", filepath.Join(p.bin, "msmtpd"), "--config", filepath.Join(p.dir, "pennypost.toml"), "--role", role, "--idle", "1h"}
	cmd := p.as(exec.Command("/bin/sh", args...), uidSMTP, uidSMTP)
	cmd.Env = append(cmd.Env, "LISTEN_FDS=1")
	cmd.ExtraFiles = []*os.File{f}
	p.run(cmd)
	return l.Addr().String()
}

// smtp hands in one message.
func (p *place) smtp(addr, to string) {
	p.t.Helper()
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		p.t.Fatal(err)
	}
	br := bufio.NewReader(c)
	for _, line := range []string{"", "HELO far.test\r\n", "MAIL FROM:<ann@far.test>\r\n", "RCPT TO:<" + to + ">\r\n", "DATA\r\n", "Subject: near\r\n\r\nbody\r\n.\r\n"} {
		if _, err := io.WriteString(c, line); err != nil {
			p.t.Fatal(err)
		}
		reply, err := br.ReadString('\n')
		if err != nil || reply[0] != '2' && reply[0] != '3' {
			log, _ := os.ReadFile(filepath.Join(p.dir, "log"))
			p.t.Fatalf("after %q: %q, %v\n%s", line, reply, err, log)
		}
	}
}

// rights tries what each user must not be able to do, and a few things they must.
func (p *place) rights() {
	p.t.Helper()
	box := p.glob("mail/example.test/bob/new/*")[0]
	for _, c := range []struct {
		uid  int
		ok   bool
		what string // for the shell
	}{
		{uidSMTP, false, "ls spool/incoming"},
		{uidSMTP, false, "ls spool/queue"},
		{uidSMTP, false, "ls spool/log"},
		{uidSMTP, false, "cat " + box},
		{uidSMTP, true, "test -w spool/incoming"},
		{uidSMTP, true, "test -w spool/wake"},
		{uidQueue, false, "cat " + box},
		{uidQueue, false, "cat secrets"},
		{uidRelay, false, "ls spool/queue"},
		{uidRelay, false, "ls spool/history"},
		{uidRelay, false, "test -w spool/incoming"},
		{uidRelay, false, "cat " + box},
		{uidMail, false, "ls spool/queue"},
		{uidMail, false, "test -w spool/incoming"},
		{uidMail, false, "cat secrets"},
		{uidMail, true, "cat " + box},
		{uidNobody, false, "ls spool/incoming"},
		{uidNobody, false, "test -w spool/incoming"},
		{uidNobody, false, "test -w deliver/socket"},
		{uidNobody, false, "test -w relay/socket"},
		{uidNobody, true, p.bin + "/mqueue --config pennypost.toml list"},
		{uidNobody, false, p.bin + "/mqueue --config pennypost.toml flush"},
		{uidNobody, false, p.bin + "/mqueue --config pennypost.toml stats"},
		{uidQueue, true, p.bin + "/mqueue --config pennypost.toml stats"},
	} {
		cmd := p.as(exec.Command("/bin/sh", "-c", c.what), c.uid, c.uid)
		out, err := cmd.CombinedOutput()
		if (err == nil) != c.ok {
			p.t.Errorf("uid %d: %s: %v\n%s", c.uid, c.what, err, out)
		}
	}
}
