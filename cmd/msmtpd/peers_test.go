package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pennypost/internal/spool"
)

// unpacked finds a file of a program that need not be installed: below PEERS_ROOT, where its
// package may have been unpacked (dpkg -x), or in its place.
func unpacked(t *testing.T, path string) string {
	t.Helper()
	for _, p := range []string{filepath.Join(os.Getenv("PEERS_ROOT"), path), path} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	t.Skipf("%s is not here (packages may be unpacked below $PEERS_ROOT)", path)
	return ""
}

// TestETRNOfFetchmail: the scheduler hears of the domain that fetchmail starts, and of no other.
func TestETRNOfFetchmail(t *testing.T) {
	fetchmail := unpacked(t, "/usr/bin/fetchmail")
	s := newSite(t)
	s.configure(t, "[smtpd]\nrelay_domains = [\"held.test\"]\netrn_from = [\"127.0.0.1\"]\n")
	_, port, _ := net.SplitHostPort(s.serve(t)["mx"])
	sp, err := spool.Open(s.spool, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	q, err := sp.Lock(false)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	w, err := q.ListenWake()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	rc := filepath.Join(s.dir, "fetchmailrc")
	poll := func(domains string) (string, error) {
		text := fmt.Sprintf("poll 127.0.0.1 protocol ETRN service %s fetchdomains %s\n", port, domains)
		if err := os.WriteFile(rc, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(fetchmail, "-f", rc, "-v", "--nosyslog", "--pidfile", filepath.Join(s.dir, "fetchmail.pid"))
		cmd.Env = append(os.Environ(), "FETCHMAILHOME="+s.dir, "HOME="+s.dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	// Its status is that of the last domain: 3 after a refusal.
	if out, err := poll("other.test"); err == nil || !strings.Contains(out, "459 4.7.1 node other.test not allowed") {
		t.Errorf("other.test: %v\n%s", err, out)
	}
	if out, _ := poll("held.test"); !strings.Contains(out, "Queuing for held.test started") {
		t.Errorf("held.test: %s", out)
	}
	word, err := w.Next()
	if domain, below, ok := spool.PokedDomain(word); err != nil || !ok || below || domain != "held.test" {
		t.Errorf("the scheduler heard %q, %v", word, err)
	}
}

// sendmailConfig makes sendmail hand all its mail to port of this host.
const sendmailConfig = "divert(-1)\ndefine(`_CF_DIR_', `%[1]s/')\ninclude(`%[1]s/m4/cf.m4')\nOSTYPE(`linux')\n" +
	"define(`confDOMAIN_NAME', `client.test')\ndefine(`SMART_HOST', `relay:[127.0.0.1]')\ndefine(`RELAY_MAILER_ARGS', `TCP $h %[2]s')\n" +
	"define(`confDELIVER_BY_MIN', `1')\ndefine(`ALIAS_FILE', `')\ndefine(`STATUS_FILE', `')\ndefine(`QUEUE_DIR', `%[3]s')\n" +
	"define(`confDONT_BLAME_SENDMAIL', `groupwritabledirpathsafe')\ndefine(`confRUN_AS_USER', `0:0')\n" +
	"FEATURE(`nocanonify')\nFEATURE(`accept_unresolvable_domains')\nFEATURE(`promiscuous_relay')\nMAILER(`smtp')\nMAILER(`local')\n"

// TestDeliverByOfSendmail: Sendmail passes on the time by which a message is wanted, and what is
// to be reported about it.
func TestDeliverByOfSendmail(t *testing.T) {
	sendmail, m4 := unpacked(t, "/usr/libexec/sendmail/sendmail"), unpacked(t, "/usr/bin/m4")
	cf := filepath.Dir(unpacked(t, "/usr/share/sendmail/cf/cf"))
	if os.Getuid() != 0 {
		t.Skip("needs root: Sendmail waits a minute on a host without a full name, and here it gets one")
	}
	s := newSite(t)
	s.configure(t, "[smtpd]\nrelay_from = [\"127.0.0.1\"]\n")
	_, port, _ := net.SplitHostPort(s.serve(t)["mx"])
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "queue"), 0o700); err != nil {
		t.Fatal(err)
	}
	macros := exec.Command(m4)
	macros.Stdin = strings.NewReader(fmt.Sprintf(sendmailConfig, cf, port, filepath.Join(dir, "queue")))
	text, err := macros.Output()
	if err != nil {
		t.Skipf("m4: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sendmail.cf"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-u", "sh", "-c", `hostname client.test && exec "$@"`, "sh",
		sendmail, "-C", filepath.Join(dir, "sendmail.cf"), "-bs", "-O", "DeliveryMode=i", "-O", "LogLevel=0", "-X", filepath.Join(dir, "talk"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, cmd)
	br := bufio.NewReader(out)
	for _, step := range [][2]string{
		{"", "220"}, {"EHLO c.test", "250"}, {"MAIL FROM:<a@client.test> BY=600;RT RET=HDRS ENVID=q1", "250"},
		{"RCPT TO:<bob@example.test> NOTIFY=SUCCESS ORCPT=rfc822;bob@example.test", "250"},
		{"DATA", "354"}, {"Subject: by\r\n\r\ntext\r\n.", "250"}, {"QUIT", "221"},
	} {
		if step[0] != "" {
			if _, err := io.WriteString(in, step[0]+"\r\n"); err != nil {
				t.Fatal(err)
			}
		}
		for {
			line, err := br.ReadString('\n')
			if err != nil || !strings.HasPrefix(line, step[1]) {
				talk, _ := os.ReadFile(filepath.Join(dir, "talk"))
				t.Fatalf("%q: %q %v\n%s", step[0], line, err, talk)
			}
			if len(line) > 3 && line[3] == ' ' {
				break
			}
		}
	}
	q := s.queued(t)
	if len(q) != 1 {
		talk, _ := os.ReadFile(filepath.Join(dir, "talk"))
		t.Fatalf("%d messages\n%s", len(q), talk)
	}
	for _, want := range []string{`"deliver_by":{`, `"mode":"R"`, `"trace":true`, `"ret":"HDRS"`, `"envid":"q1"`, `"notify":["SUCCESS"]`, `"proto":"ESMTPS"`} {
		if !strings.Contains(q[0], want) {
			t.Errorf("no %s in %s", want, q[0])
		}
	}
}

// eximConfig makes Exim hand all its mail to port of this host, under TLS and in chunks.
const eximConfig = `exim_path = %s
primary_hostname = exim.test
spool_directory = %s
log_file_path = %s/log-%%s
exim_user = Debian-exim
exim_group = Debian-exim
keep_environment =
begin routers
all:
  driver = manualroute
  route_list = * 127.0.0.1::%s
  self = send
  transport = smtp
begin transports
smtp:
  driver = smtp
  hosts_require_tls = *
  tls_verify_certificates =
`

// asDebianExim runs a command where its user exists, whether or not the package is installed.
const asDebianExim = `cat /etc/passwd >"$0/passwd" && echo Debian-exim:x:40050:40050::/:/bin/false >>"$0/passwd" &&
cat /etc/group >"$0/group" && echo Debian-exim:x:40050: >>"$0/group" &&
mount --bind "$0/passwd" /etc/passwd && mount --bind "$0/group" /etc/group && exec "$@"`

// TestChunksOfExim: Exim sends BDAT behind RCPT without waiting, and a second chunk by the last.
func TestChunksOfExim(t *testing.T) {
	exim := unpacked(t, "/usr/sbin/exim4")
	if os.Getuid() != 0 {
		t.Skip("needs root: Exim changes its user")
	}
	s := newSite(t)
	_, port, _ := net.SplitHostPort(s.serve(t)["mx"])
	dir, err := os.MkdirTemp("/tmp", "exim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := errors.Join(os.Chown(dir, 40050, 40050), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "exim.conf")
	if err := os.WriteFile(conf, []byte(fmt.Sprintf(eximConfig, exim, dir, dir, port)), 0o644); err != nil {
		t.Fatal(err)
	}
	body := ".dot\n..two\ncaf\u00e9\n" + strings.Repeat(strings.Repeat("x", 70)+"\n", 1000) + "end\n"
	cmd := exec.Command("unshare", "-m", "sh", "-c", asDebianExim, dir, exim, "-C", conf, "-v", "-odf", "-f", "x@far.test", "bob@example.test")
	cmd.Stdin = strings.NewReader("Subject: chunks\n\n" + body)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "BDAT ") {
		t.Fatalf("%v\n%s", err, out)
	}
	q := s.queued(t)
	if len(q) != 1 || !strings.HasSuffix(q[0], "\n\n"+body) || !strings.Contains(q[0], `"proto":"ESMTPS"`) {
		t.Errorf("%d messages %.300q\n%s", len(q), q, out)
	}
}
