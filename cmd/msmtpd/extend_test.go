package main

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// TestXClientOfSwaks lets another's client speak as a proxy: the envelope shows who is behind it.
func TestXClientOfSwaks(t *testing.T) {
	swaks := need(t, "swaks")
	s := newSite(t)
	s.configure(t, "[smtpd]\nxclient_from = [\"127.0.0.1\"]\n")
	at := s.serve(t)
	out, err := exec.Command(swaks, "--server", at["mx"], "-f", "x@far.test", "-t", "bob@example.test", "--helo", "spike.test",
		"--xclient-addr", "192.0.2.9", "--xclient-port", "4711", "--xclient-name", "spike.test", "--xclient-helo", "spike.test").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	q := s.queued(t)
	if len(q) != 1 || !strings.Contains(q[0], `"peer":"192.0.2.9:4711"`) || !strings.Contains(q[0], "Received: from spike.test ([192.0.2.9])") {
		t.Errorf("%q\n%s", q, out)
	}
}

// TestXClientLoginOfSwaks hands in for a user whom the proxy knows, over a connection without TLS.
func TestXClientLoginOfSwaks(t *testing.T) {
	swaks := need(t, "swaks")
	s := newSite(t)
	s.configure(t, "[smtpd]\nxclient_from = [\"127.0.0.1\"]\n")
	at := s.serve(t)
	for from, want := range map[string]int{"alice@example.test": 0, "bob@example.test": 23} {
		out, err := exec.Command(swaks, "--server", at["submission"], "-f", from, "-t", "x@far.test",
			"--xclient-addr", "192.0.2.9", "--xclient-login", "alice").CombinedOutput()
		status := 0
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			status = exit.ExitCode()
		}
		if status != want {
			t.Errorf("from %s: status %d, want %d\n%s", from, status, want, out)
		}
	}
	if q := s.queued(t); len(q) != 1 || !strings.Contains(q[0], `"user":"alice@example.test"`) || !strings.Contains(q[0], `"peer":"192.0.2.9:`) {
		t.Errorf("%q", q)
	}
}

// TestParametersOfSmtplib lets another's client ask for the extensions of a user.
func TestParametersOfSmtplib(t *testing.T) {
	python := need(t, "python3")
	s := newSite(t)
	at := s.serve(t)
	host, port, _ := strings.Cut(at["submission"], ":")
	script := `
import smtplib, ssl, sys
c = ssl.create_default_context(); c.check_hostname = False; c.verify_mode = ssl.CERT_NONE
s = smtplib.SMTP(sys.argv[1], int(sys.argv[2])); s.starttls(context=c); s.login("alice@example.test", "secret")
s.ehlo()
for word in "limits requiretls futurerelease deliverby mt-priority".split():
    assert s.has_extn(word), word
assert int(s.esmtp_features["futurerelease"].split()[0]) == 7 * 86400
s.sendmail("alice@example.test", ["x@far.test"], b"Subject: hi\r\n\r\n",
    mail_options=["HOLDFOR=3600", "BY=7200;R", "MT-PRIORITY=3", "REQUIRETLS"])
for bad in "HOLDFOR=604801", "BY=30;R", "BY=0;R", "MT-PRIORITY=10", "REQUIRETLS=1":
    try:
        s.sendmail("alice@example.test", ["x@far.test"], b"Subject: hi\r\n\r\n", mail_options=[bad])
        sys.exit(bad + " was accepted")
    except smtplib.SMTPSenderRefused as e:
        assert e.smtp_code in (501, 555), e
s.quit()
`
	if out, err := exec.Command(python, "-c", script, host, port).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	q := s.queued(t)
	if len(q) != 1 {
		t.Fatalf("%d messages", len(q))
	}
	for _, want := range []string{`"requiretls":true`, `"hold":"for;3600"`, `"deliver_by":{`, `"mode":"R"`, `"priority":3`, "PRIORITY 3"} {
		if !strings.Contains(q[0], want) {
			t.Errorf("no %s in %s", want, q[0])
		}
	}
}
