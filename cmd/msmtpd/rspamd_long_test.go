//go:build long

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRspamd has rspamd judge messages as a milter. rspamd takes its time to start.
func TestRspamd(t *testing.T) {
	prog := need(t, "rspamd")
	s := newSite(t)
	dir := filepath.Join(s.dir, "rs")
	addr, control := freePort(t), freePort(t)
	files := map[string]string{
		"worker-proxy.inc":      fmt.Sprintf("bind_socket = \"%s\";\nmilter = yes;\ntimeout = 60s;\nupstream \"local\" {\n default = yes;\n self_scan = yes;\n}\n", addr),
		"worker-controller.inc": fmt.Sprintf("bind_socket = \"%s\";\npassword = \"x\";\n", control),
		"worker-normal.inc":     "enabled = false;\n",
		"worker-fuzzy.inc":      "enabled = false;\n",
		"options.inc":           "dns { nameserver = [\"127.0.0.1:1\"]; timeout = 50ms; retransmits = 1; }\n",
		"milter_headers.conf":   "use = [\"x-spamd-result\"];\nextended_spam_headers = true;\nskip_local = false;\nskip_authenticated = false;\n",
	}
	for _, m := range []string{"rbl", "surbl", "fuzzy_check", "dmarc", "spf", "dkim", "asn", "mx_check", "phishing", "maillist", "arc", "dkim_signing", "neural", "greylist", "ratelimit", "history_redis", "reputation", "replies", "url_redirector"} {
		files[m+".conf"] = "enabled = false;\n"
	}
	for _, d := range []string{"local.d", "db", "run", "log"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, "local.d", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(prog, "-i", "-f", "-c", "/etc/rspamd/rspamd.conf", "--var=LOCAL_CONFDIR="+dir,
		"--var=DBDIR="+dir+"/db", "--var=RUNDIR="+dir+"/run", "--var=LOGDIR="+dir+"/log")
	start(t, cmd)
	await(t, addr, 90*time.Second)
	s.configure(t, "[[smtpd.milter]]\nsocket = \"inet:"+addr+"\"\ntimeout = \"60s\"\n")
	at := s.serve(t)
	envelope := "EHLO c.test\r\nMAIL FROM:<x@far.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n" +
		"From: x@far.test\r\nTo: bob@example.test\r\nSubject: hi\r\nDate: Sun, 22 Nov 2026 04:00:00 +0000\r\nMessage-ID: <1@far.test>\r\n\r\n"
	const gtube = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n"
	got := say(t, "tcp", at["mx"], envelope+gtube+".\r\nQUIT\r\n")
	if !strings.Contains(got, "554 5.7.1 Gtube pattern") || len(s.queued(t)) != 0 {
		t.Errorf("GTUBE: %q", got)
	}
	got = say(t, "tcp", at["mx"], envelope+"a word between friends\r\n.\r\nQUIT\r\n")
	if !strings.Contains(got, "queued as") {
		t.Fatalf("a message without fault: %q", got)
	}
	if m := s.taken(t, 1)[0]; !strings.Contains(m, "\nX-Spamd-Result: default: ") {
		t.Errorf("no field of rspamd's: %s", m)
	}
	// Dead, it defers by default.
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; {
		got = say(t, "tcp", at["mx"], "EHLO c.test\r\nMAIL FROM:<x@far.test>\r\nQUIT\r\n")
		if strings.Contains(got, "451 4.7.1 service unavailable") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("without rspamd: %q", got)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
