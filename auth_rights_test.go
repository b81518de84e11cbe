package house_test

import (
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/xdg-go/scram"

	"pennypost/internal/auth"
	"pennypost/internal/mailtest"
)

const uidAuth = 64021 // of "mpasswd serve"

// TestPasswordsAreCheckedElsewhere: msmtpd, which talks to the Internet, cannot read a password
// hash; users log in to it all the same, by "mpasswd serve", which is yet another user.
func TestPasswordsAreCheckedElsewhere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("switching users needs root")
	}
	if runtime.GOOS != "linux" {
		t.Skip("looks into /proc")
	}
	p := newPlace(t)
	p.copyTool("mpasswd")
	p.certificate(uidSMTP)
	p.write("pennypost.toml", fmt.Sprintf(`hostname = "mx.example.test"
domains = ["example.test"]
spool = "spool"
maildirs = "mail/%%d/%%u"
[limits]
free_space = 0
free_inodes = 0
[tls]
cert = "cert.pem"
key = "key.pem"
[accounts]
auth_socket = "auth/socket"
auth_users = ["%d"]
guesses = "auth/guesses"
[policy]
state = "policy"
`, uidSMTP), 0o644)
	p.write("users", "", 0o644)
	p.dirFor("auth", uidAuth, 0o755)
	p.dirFor("policy", uidSMTP, 0o700)
	p.must(p.command(0, 0, "mqueue", "init", "--group", strconv.Itoa(gidSubmit), "--owner", strconv.Itoa(uidQueue)))
	add := p.command(0, 0, "mpasswd", "add", "bob")
	add.Stdin = strings.NewReader("correct horse\n")
	p.must(add)
	if err := os.Chown(filepath.Join(p.dir, "secrets"), uidAuth, uidAuth); err != nil {
		t.Fatal(err)
	}
	p.start(uidAuth, uidAuth, "mpasswd", "serve", "--listen", "config")
	p.waitFor("socket of mpasswd", func() bool { return p.exists("auth/socket") })
	addr := p.smtpd("submissions")

	for _, c := range []struct {
		uid  int
		ok   bool
		what string
	}{
		{uidSMTP, false, "cat secrets"},
		{uidSMTP, false, "cat auth/guesses"},
		{uidSMTP, false, "touch auth/x"},
		{uidMail, false, "cat secrets"},
		{uidAuth, true, "cat secrets"},
		{uidAuth, false, "ls spool/incoming"},
	} {
		out, err := p.as(exec.Command("/bin/sh", "-c", c.what), c.uid, c.uid).CombinedOutput()
		if (err == nil) != c.ok {
			t.Errorf("uid %d: %s: %v\n%s", c.uid, c.what, err, out)
		}
	}
	for _, c := range []struct{ mechanism, password, want string }{
		{"PLAIN", "correct horse", "235"},
		{"PLAIN", "wrong", "535"},
		{auth.SCRAMSHA256, "correct horse", "235"},
		{auth.SCRAMSHA256Plus, "correct horse", "235"},
		{auth.SCRAMSHA256, "wrong", "535"},
	} {
		if got := login(t, addr, c.mechanism, "bob@example.test", c.password); !strings.HasPrefix(got, c.want) {
			log, _ := os.ReadFile(filepath.Join(p.dir, "log"))
			t.Errorf("%s %q: %q, want %s\n%s", c.mechanism, c.password, got, c.want, log)
		}
	}
	// Anybody may connect, and strangers are not answered.
	c := auth.NewClient(filepath.Join(p.dir, "auth/socket"))
	defer c.Close()
	if _, err := c.Mechanisms(t.Context()); err != nil {
		t.Errorf("root is not answered: %v", err)
	}
	ask := p.as(exec.Command(filepath.Join(p.bin, "asker"), "-test.run=^TestAskForMechanisms$", "-test.v"), uidNobody, uidNobody)
	ask.Env = append(ask.Env, "PENNYPOST_TEST_ASK="+filepath.Join(p.dir, "auth/socket"))
	p.copyFile(os.Args[0], "asker")
	if out, err := ask.CombinedOutput(); err != nil || !strings.Contains(string(out), "not answered") {
		t.Errorf("a stranger: %v\n%s", err, out)
	}
}

// TestAskForMechanisms is the stranger of TestPasswordsAreCheckedElsewhere.
func TestAskForMechanisms(t *testing.T) {
	path := os.Getenv("PENNYPOST_TEST_ASK")
	if path == "" {
		t.Skip("runs as another user for TestPasswordsAreCheckedElsewhere")
	}
	if m, err := auth.NewClient(path).Mechanisms(t.Context()); err == nil {
		t.Fatalf("answered: %q", m)
	}
	t.Log("not answered")
}

func (p *place) copyTool(name string) {
	p.t.Helper()
	p.copyFile(filepath.Join(tools.Dir(p.t), name), name)
}

func (p *place) copyFile(from, name string) {
	p.t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(filepath.Join(p.bin, name), data, 0o755)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// certificate borrows key and certificate of a test instance, for a daemon's user.
func (p *place) certificate(uid int) {
	p.t.Helper()
	in, err := mailtest.NewInstance(mailtest.InstanceOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	defer in.Close()
	for _, name := range []string{"cert.pem", "key.pem"} {
		data, err := os.ReadFile(filepath.Join(in.Dir, name))
		if err != nil {
			p.t.Fatal(err)
		}
		p.write(name, string(data), 0o600)
		if err := os.Chown(filepath.Join(p.dir, name), uid, uid); err != nil {
			p.t.Fatal(err)
		}
	}
}

// login tries to log in and returns the last reply.
func login(t *testing.T, addr, mechanism, user, password string) string {
	t.Helper()
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
	defer c.Close()
	tp := textproto.NewConn(c)
	say := func(want int, line string) string {
		if err := tp.PrintfLine("%s", line); err != nil {
			t.Fatal(err)
		}
		code, text, err := tp.ReadResponse(want)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return fmt.Sprintf("%d %s", code, text)
	}
	if _, _, err := tp.ReadResponse(220); err != nil {
		t.Fatal(err)
	}
	say(250, "EHLO client.test")
	b64 := base64.StdEncoding.EncodeToString
	if mechanism == "PLAIN" {
		return say(0, "AUTH PLAIN "+b64([]byte("\x00"+user+"\x00"+password)))
	}
	client, err := scram.SHA256.NewClient(user, password, "")
	if err != nil {
		t.Fatal(err)
	}
	conv := client.NewConversation()
	if strings.HasSuffix(mechanism, "-PLUS") {
		cs := c.ConnectionState()
		cb, err := scram.NewTLSExporterBinding(&cs)
		if err != nil {
			t.Fatal(err)
		}
		conv = client.NewConversationWithChannelBinding(cb)
	}
	first, err := conv.Step("")
	if err != nil {
		t.Fatal(err)
	}
	reply := say(0, "AUTH "+mechanism+" "+b64([]byte(first)))
	for strings.HasPrefix(reply, "334 ") {
		challenge, err := base64.StdEncoding.DecodeString(reply[4:])
		if err != nil {
			t.Fatal(err)
		}
		msg, err := conv.Step(string(challenge))
		if err != nil {
			t.Fatal(err)
		}
		reply = say(0, b64([]byte(msg)))
	}
	return reply
}
