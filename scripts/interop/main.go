// Command interop has other people's programs talk to an instance of ours made by
// scripts/sandbox. Mail programs hand in a message each, which must arrive as it was sent; nmap
// looks for an open relay; and a real Postfix exchanges mail with it, TLS required and verified
// on both sides: what one sends the other must receive, octet for octet, and a user that Postfix
// does not know must come back as a DSN. What is not installed is skipped and named; Postfix
// needs root.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"pennypost/internal/mailtest"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "interop: %v\n", err)
		os.Exit(1)
	}
}

type hosts struct {
	dir     string
	env     map[string]string // of our instance
	pf      *mailtest.Postfix // nil before its start
	pfPort  int
	checked int
	names   []string // of the clients that were tried
	// rewrites is set while a client sends that changes the form of a message.
	rewrites bool
}

func run() (err error) {
	h := &hosts{}
	// Postfix's users must be able to pass through.
	if h.dir, err = os.MkdirTemp("", "pennypost-interop-"); err != nil {
		return err
	}
	defer os.RemoveAll(h.dir)
	if err := os.Chmod(h.dir, 0o755); err != nil {
		return err
	}
	if h.pfPort, err = freePort(); err != nil {
		return err
	}
	ours := filepath.Join(h.dir, "ours")
	defer func() { err = errors.Join(err, command("scripts/sandbox", "down", ours)) }()
	if err := h.startOurs(ours); err != nil {
		return err
	}
	for _, step := range []func() error{h.clients, h.noRelay} {
		if err := step(); err != nil {
			return fmt.Errorf("%w\n%s", err, h.logs())
		}
	}
	if why := mailtest.PostfixMissing(); why != "" {
		fmt.Println("skipped: " + why)
		fmt.Printf("interop: %d checks ok: %s\n", h.checked, strings.Join(h.names, "; "))
		return nil
	}
	if err := h.startPostfix(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.pf.Stop()) }()
	for _, step := range []func() error{h.toPostfix, h.fromPostfix, h.unknownThere, h.many} {
		if err := step(); err != nil {
			return fmt.Errorf("%w\n%s", err, h.logs())
		}
	}
	fmt.Printf("interop: %d checks ok: %s; Postfix took and gave mail over verified TLS\n", h.checked, strings.Join(h.names, "; "))
	return nil
}

func (h *hosts) startOurs(dir string) error {
	err := command("scripts/sandbox", "up", dir, "--domain", "ours.test")
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil {
		return err
	}
	h.env = make(map[string]string)
	for l := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(l), "=")
		h.env[k] = strings.Trim(v, "'")
	}
	conf, err := os.OpenFile(h.env["PP_CONFIG"], os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	// The sandbox's certificate is good for localhost and Postfix gets it too. nmap makes more
	// errors in one session than a client may.
	_, err = fmt.Fprintf(conf, "\n[smtpd]\nerrors = 100\n\n[[route]]\nmatch = \"postfix.test\"\nto = \"localhost:%d\"\ntls = \"verify\"\n", h.pfPort)
	return errors.Join(err, conf.Close(), command("scripts/sandbox", "up", dir))
}

// mainCf has Postfix relay for nobody, and demand TLS and verify it both ways.
const mainCf = `mynetworks =
smtpd_relay_restrictions = reject_unauth_destination
smtpd_tls_security_level = encrypt
smtpd_tls_cert_file = %[2]s/cert.pem
smtpd_tls_key_file = %[2]s/key.pem
smtpd_tls_received_header = yes
smtp_tls_CAfile = %[2]s/ca.pem
smtp_tls_security_level = secure
smtp_tls_secure_cert_match = localhost
transport_maps = inline:{ ours.test=smtp:[127.0.0.1]:%[1]s }
`

func (h *hosts) startPostfix() (err error) {
	h.pf, err = mailtest.StartPostfix(mailtest.PostfixOptions{
		Dir: filepath.Join(h.dir, "postfix"), Name: "interop", Port: h.pfPort, Domain: "postfix.test", User: "carol",
		More: fmt.Sprintf(mainCf, h.env["PP_SMTP_PORT"], filepath.Dir(h.env["PP_CA"])),
	})
	return err
}

// hard is a body that breaks careless senders and receivers: dots, 8-bit, long and empty lines.
var hard = ".\n..\n.leading dot\nGrüße, привет\n\n" + strings.Repeat("a long line, ", 70) + "\n\n.\nthe end\n"

func letter(from, to, subject string) []byte {
	return fmt.Appendf(nil, "From: %s\nTo: %s\nSubject: %s\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n%s", from, to, subject, hard)
}

func (h *hosts) msend(from, to, subject string) error {
	cmd := exec.Command(filepath.Join(h.env["PP_BIN"], "msend"), "-f", from, to)
	cmd.Env = append(os.Environ(), "PENNYPOST_CONFIG="+h.env["PP_CONFIG"])
	cmd.Stdin = bytes.NewReader(letter(from, to, subject))
	return output(cmd)
}

func (h *hosts) sendmail(from, to, subject string) error {
	cmd := exec.Command("/usr/sbin/sendmail", "-C", h.pf.Conf, "-i", "-f", from, to)
	cmd.Stdin = bytes.NewReader(letter(from, to, subject))
	return output(cmd)
}

func (h *hosts) carol() string { return h.pf.Mail }
func (h *hosts) alice() string { return h.env["PP_MAILDIRS"] + "/ours.test/alice/new" }

func (h *hosts) toPostfix() error {
	if err := h.msend("alice@ours.test", "carol@postfix.test", "to Postfix"); err != nil {
		return err
	}
	// Postfix names the protocol it received by: ESMTPS, and with which cipher.
	return h.arrived(h.carol(), "Subject: to Postfix", "with ESMTPS", "using TLSv1.3 with cipher", "Return-Path: <alice@ours.test>")
}

func (h *hosts) fromPostfix() error {
	if err := h.sendmail("carol@postfix.test", "alice@ours.test", "from Postfix"); err != nil {
		return err
	}
	return h.arrived(h.alice(), "Subject: from Postfix", "with ESMTPS", "Return-Path: <carol@postfix.test>", "Delivered-To: alice@ours.test")
}

// arrived waits for one message in dir that has all words and the hard body, and removes it.
func (h *hosts) arrived(dir string, words ...string) error {
	return within(func() error {
		names, err := filepath.Glob(dir + "/*")
		if err != nil || len(names) != 1 {
			return fmt.Errorf("%s: %d messages, want 1: %w", dir, len(names), err)
		}
		b, err := os.ReadFile(names[0])
		if err != nil {
			return err
		}
		for _, w := range words {
			if !bytes.Contains(b, []byte(w)) {
				return fmt.Errorf("%q is not in\n%s", w, b)
			}
		}
		if h.rewrites {
			b = plain(b)
		}
		if !bytes.HasSuffix(b, []byte("\n\n"+hard)) {
			return fmt.Errorf("the body is not what was sent:\n%s", b)
		}
		h.checked += len(words) + 1
		return os.Remove(names[0])
	})
}

func (h *hosts) unknownThere() error {
	if err := h.msend("alice@ours.test", "nobody@postfix.test", "to nobody"); err != nil {
		return err
	}
	return within(func() error {
		names, err := filepath.Glob(h.alice() + "/*")
		if err != nil || len(names) != 1 {
			return fmt.Errorf("%d DSNs, want 1: %w", len(names), err)
		}
		b, err := os.ReadFile(names[0])
		if err != nil {
			return err
		}
		for _, w := range []string{"Return-Path: <>", "Status: 5.1.1", "Final-Recipient: rfc822; nobody@postfix.test", "Remote-MTA: dns;"} {
			if !strings.Contains(string(b), w) {
				return fmt.Errorf("%q is not in the DSN\n%s", w, b)
			}
		}
		h.checked += 4
		return os.Remove(names[0])
	})
}

// many sends a hundred each way at the same time and counts.
func (h *hosts) many() error {
	const n = 100
	errs := make(chan error, 2)
	go func() {
		errs <- repeat(n, func(i int) error { return h.msend("alice@ours.test", "carol@postfix.test", subject(i)) })
	}()
	go func() {
		errs <- repeat(n, func(i int) error { return h.sendmail("carol@postfix.test", "alice@ours.test", subject(i)) })
	}()
	if err := errors.Join(<-errs, <-errs); err != nil {
		return err
	}
	for _, dir := range []string{h.carol(), h.alice()} {
		err := within(func() error { return eachOnce(dir, n) })
		if err != nil {
			return err
		}
		h.checked += n
	}
	return nil
}

func subject(i int) string { return fmt.Sprintf("number %d of many", i) }

func repeat(n int, f func(int) error) error {
	for i := range n {
		if err := f(i); err != nil {
			return err
		}
	}
	return nil
}

// eachOnce checks that each of n subjects is in dir, and no second time.
func eachOnce(dir string, n int) error {
	names, err := filepath.Glob(dir + "/*")
	if err != nil || len(names) < n {
		return fmt.Errorf("%s: %d messages, want %d: %w", dir, len(names), n, err)
	}
	seen := make(map[string]int)
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		_, s, _ := strings.Cut(string(b), "\nSubject: ")
		s, _, _ = strings.Cut(s, "\n")
		seen[s]++
	}
	for i := range n {
		if seen[subject(i)] != 1 {
			return fmt.Errorf("%s: %q is there %d times", dir, subject(i), seen[subject(i)])
		}
	}
	return nil
}

func (h *hosts) logs() string {
	var b strings.Builder
	for _, l := range []string{filepath.Join(h.dir, "postfix/log"), filepath.Join(h.dir, "ours/log/pennypost.log")} {
		text, err := os.ReadFile(l)
		if err == nil {
			fmt.Fprintf(&b, "--- end of %s\n%s", l, text[max(0, len(text)-3000):])
		}
	}
	return b.String()
}

func within(f func() error) error {
	var err error
	for begin := time.Now(); time.Since(begin) < 20*time.Second; time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return nil
		}
	}
	return err
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func command(name string, args ...string) error { return output(exec.Command(name, args...)) }

func output(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
