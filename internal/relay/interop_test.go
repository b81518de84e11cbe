package relay_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/mailtest"
	"pennypost/internal/relay"
	"pennypost/internal/resolve"
)

// freePort is a port nobody listens on at this moment.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// program finds a program of Postfix, or skips the test.
func program(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if path := filepath.Join(dir, name); exec.Command("test", "-x", path).Run() == nil {
			return path
		}
	}
	t.Skipf("%s is not installed", name)
	return ""
}

func answers(addr string) func() bool {
	return func() bool {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		defer c.Close()
		b := make([]byte, 4)
		n, _ := c.Read(b)
		return string(b[:n]) == "220 "
	}
}

// Postfix's sink takes 500 messages from ten attempts at a time.
func TestSMTPSink(t *testing.T) {
	t.Parallel()
	sink := program(t, "smtp-sink")
	addr := "127.0.0.1:" + freePort(t)
	args := []string{addr, "100"}
	if os.Geteuid() == 0 {
		args = append([]string{"-u", "root"}, args...)
	}
	cmd := exec.Command(sink, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill() // it knows no other end
		_ = cmd.Wait()
	}()
	if !mailtest.Wait(5*time.Second, answers(addr)) {
		t.Fatal("smtp-sink does not answer")
	}
	r := relay.New(relay.Options{Resolver: resolve.New(resolve.Options{}), Idle: time.Minute, Helo: "me.test"})
	defer r.Close()
	text := "Subject: x\n\n" + strings.Repeat("a line of text as there are many\n", 120)
	f := file(t, text)
	start := time.Now()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 50 {
				if rep := r.Handle(t.Context(), request(addr, text, "b@y.test"), f); brief(rep.Results) != "relayed:2.0.0" {
					t.Errorf("%+v", rep.Results)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("500 messages of 4 KiB in %v", time.Since(start).Round(time.Millisecond))
}

const postfixMain = `compatibility_level = 3.6
queue_directory = %[1]s/spool
data_directory = %[1]s/data
mail_owner = postfix
setgid_group = postdrop
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
myhostname = mx.example.test
mydestination =
mynetworks =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
virtual_mailbox_domains = example.test
virtual_mailbox_base = %[1]s/mail
virtual_mailbox_maps = inline:{ b@example.test=b/, c@example.test=c/ }
virtual_uid_maps = static:%[2]d
virtual_gid_maps = static:%[3]d
virtual_minimum_uid = 1
smtpd_relay_restrictions = reject_unauth_destination
smtpd_tls_cert_file = %[1]s/cert.pem
smtpd_tls_key_file = %[1]s/key.pem
smtpd_tls_security_level = encrypt
maillog_file = %[1]s/log
maillog_file_prefixes = %[1]s
`

const postfixMaster = `127.0.0.1:%s inet n - n - - smtpd
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
tlsmgr    unix - - n 1000? 1 tlsmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
proxymap  unix - - n - - proxymap
error     unix - - n - - error
retry     unix - - n - - error
virtual   unix - n n - - virtual
anvil     unix - - n - 1 anvil
postlog   unix-dgram n - n - 1 postlogd
`

// startPostfix runs a whole Postfix of its own that takes mail for example.test over TLS only.
func startPostfix(t *testing.T) (dir, addr string) {
	t.Helper()
	program(t, "postfix")
	const master = "/usr/lib/postfix/sbin/master"
	if _, err := os.Stat(master); err != nil {
		t.Skipf("Postfix's master is elsewhere: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("Postfix's master needs root")
	}
	var uid, gid int
	out, err := exec.Command("id", "-u", "postfix").Output()
	if err == nil {
		_, err = fmt.Sscan(string(out), &uid)
	}
	if err == nil {
		out, err = exec.Command("id", "-g", "postfix").Output()
	}
	if err == nil {
		_, err = fmt.Sscan(string(out), &gid)
	}
	if err != nil {
		t.Skipf("no user postfix: %v", err)
	}
	dir = t.TempDir()
	port := freePort(t)
	cert, _ := certificate(t, "localhost")
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // the user postfix must get through
		t.Fatal(err)
	}
	for _, d := range []string{"etc", "spool", "spool/pid"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range strings.Fields("data mail spool/active spool/bounce spool/corrupt spool/defer spool/deferred spool/flush spool/hold spool/incoming spool/private spool/public spool/saved spool/trace spool/maildrop") {
		d = filepath.Join(dir, d)
		if err := errors.Join(os.Mkdir(d, 0o700), os.Chown(d, uid, gid)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"etc/main.cf":   fmt.Sprintf(postfixMain, dir, uid, gid),
		"etc/master.cf": fmt.Sprintf(postfixMaster, port),
		"cert.pem":      string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})),
		"key.pem":       string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// master alone, without the seconds that the scripts of "postfix start" take.
	cmd := exec.Command(master, "-c", filepath.Join(dir, "etc"), "-d")
	cmd.Env = append(os.Environ(), "MAIL_LOGTAG=postfix")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // an error means that it has ended
		_ = cmd.Wait()                          // it ends by the signal, which counts as an error
	})
	addr = "127.0.0.1:" + port
	if !mailtest.Wait(10*time.Second, answers(addr)) {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		t.Fatalf("Postfix does not answer: %s", log)
	}
	return dir, addr
}

// A real Postfix takes our mail over TLS, refuses whom it does not know, and stores every
// octet as it was.
func TestPostfix(t *testing.T) {
	t.Parallel()
	dir, addr := startPostfix(t)
	_, port, _ := net.SplitHostPort(addr)
	r := relay.New(relay.Options{Resolver: resolve.New(resolve.Options{}), Idle: time.Minute, Helo: "me.test", CAFile: dir + "/cert.pem",
		Hops: map[string]relay.Policy{"localhost:" + port: {TLS: relay.TLSVerify}}})
	defer r.Close()
	text := "From: s@x.test\nDate: Sun, 22 Nov 2026 10:00:00 +0000\nMessage-ID: <1@x.test>\nSubject: to Postfix\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n" +
		".\n..\ncafé\n.x\n" + strings.Repeat("0123456789", 90) + "\n\nlast\n"
	for n := range 3 {
		rep := r.Handle(t.Context(), request("localhost:"+port, text, "b@example.test", "nobody@example.test", "c@example.test", "d@elsewhere.test"), file(t, text))
		got := brief(rep.Results)
		if got != "relayed:2.0.0 failed:5.1.1 relayed:2.0.0 failed:5.7.1" || !strings.HasSuffix(rep.Results[0].TLS, " verified") {
			t.Fatalf("message %d: %s: %+v", n, got, rep.Results)
		}
	}
	var stored []string
	delivered := func() bool {
		stored, _ = filepath.Glob(filepath.Join(dir, "mail", "[bc]", "new", "*"))
		return len(stored) == 6
	}
	if !mailtest.Wait(10*time.Second, delivered) {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		t.Fatalf("%d of 6 messages are delivered: %s", len(stored), log)
	}
	for _, path := range stored {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(string(b), text) {
			t.Errorf("stored: %q", b)
		}
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), "]: connect from"); n != 2 { // the other was the wait for it
		t.Errorf("%d connections, want one for all messages", n-1)
	}
	// A certificate nobody vouches for.
	strict := relay.New(relay.Options{Resolver: resolve.New(resolve.Options{}), TLS: relay.TLSVerify})
	defer strict.Close()
	if rep := strict.Handle(t.Context(), request("localhost:"+port, text, "b@example.test"), file(t, text)); brief(rep.Results) != "deferred:4.7.5" {
		t.Errorf("%+v", rep.Results)
	}
}
