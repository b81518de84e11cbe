package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime/quotedprintable"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// client is somebody else's program that hands in one message from alice to bob. In its words,
// {S} and {T} stand for the submission ports (STARTTLS and TLS), {M} for the MX port, {F} for a
// file with the message.
type client struct {
	name    string
	program string
	args    []string
	stdin   bool // the message comes on standard input
	env     []string
}

const python = `
import smtplib, ssl, sys
c = ssl.create_default_context(); c.check_hostname = False; c.verify_mode = ssl.CERT_NONE
s = smtplib.SMTP("127.0.0.1", int(sys.argv[1])); s.starttls(context=c); s.login("alice@ours.test", "secret")
s.sendmail("alice@ours.test", ["bob@ours.test"], open(sys.argv[2], "rb").read().replace(b"\n", b"\r\n"), mail_options=["BODY=8BITMIME"])
s.quit()
`

const nodejs = `
const t = require("nodemailer").createTransport({host: "127.0.0.1", port: +process.argv[1], secure: false, requireTLS: true,
  tls: {rejectUnauthorized: false}, auth: {user: "alice@ours.test", pass: "secret"}});
t.sendMail({envelope: {from: "alice@ours.test", to: ["bob@ours.test"]}, raw: require("fs").readFileSync(process.argv[2])},
  e => { if (e) { console.error(e); process.exit(1); } });
`

func (h *hosts) clientList() []client {
	msmtp := []string{"--host=127.0.0.1", "--tls-certcheck=off", "--auth=plain", "--user=alice@ours.test", "--passwordeval=echo secret", "--from=alice@ours.test", "--tls=on"}
	return []client{
		{"swaks, STARTTLS", "swaks", []string{"--server", "127.0.0.1:{S}", "--tls", "--auth", "PLAIN", "--auth-user", "alice@ours.test", "--auth-password", "secret", "-f", "alice@ours.test", "-t", "bob@ours.test", "--data", "@{F}", "--pipeline"}, false, nil},
		{"swaks, TLS", "swaks", []string{"--server", "127.0.0.1:{T}", "--tlsc", "--auth", "PLAIN", "--auth-user", "alice", "--auth-password", "secret", "-f", "alice@ours.test", "-t", "bob@ours.test", "--data", "@{F}"}, false, nil},
		{"swaks, MX", "swaks", []string{"--server", "127.0.0.1:{M}", "-f", "x@far.test", "-t", "bob@ours.test", "--data", "@{F}"}, false, nil},
		{"curl, STARTTLS", "curl", []string{"-sS", "-k", "--ssl-reqd", "smtp://127.0.0.1:{S}", "-u", "alice@ours.test:secret", "--mail-from", "alice@ours.test", "--mail-rcpt", "bob@ours.test", "--crlf", "-T", "{F}"}, false, nil},
		{"curl, TLS", "curl", []string{"-sS", "-k", "smtps://127.0.0.1:{T}", "-u", "alice@ours.test:secret", "--mail-from", "alice@ours.test", "--mail-rcpt", "bob@ours.test", "--crlf", "-T", "{F}"}, false, nil},
		{"msmtp, STARTTLS", "msmtp", append(msmtp[:len(msmtp):len(msmtp)], "--port={S}", "bob@ours.test"), true, nil},
		{"msmtp, TLS", "msmtp", append(msmtp[:len(msmtp):len(msmtp)], "--tls-starttls=off", "--port={T}", "bob@ours.test"), true, nil},
		{"s-nail, STARTTLS", "s-nail", []string{"-:/", "-Sv15-compat", "-Ssmtp-use-starttls", "-Stls-verify=ignore", "-Ssmtp-auth=plain", "-Smta=smtp://alice%40ours.test:secret@127.0.0.1:{S}", "-Sfrom=alice@ours.test", "-Sttycharset=utf-8", "-t"}, true, []string{"MAILRC=/dev/null"}},
		{"Python smtplib", "python3", []string{"-c", python, "{S}", "{F}"}, false, nil},
		{"nodemailer", "node", []string{"-e", nodejs, "{S}", "{F}"}, false, []string{"NODE_PATH=" + filepath.Join(h.dir, "npm", "node_modules")}},
	}
}

// clients hands in one message by each program that is there; each must be in bob's Maildir
// with its body as it was sent.
func (h *hosts) clients() error {
	file := filepath.Join(h.dir, "letter")
	for _, c := range h.clientList() {
		if why := h.lacks(c); why != "" {
			fmt.Printf("skipped: %s: %s\n", c.name, why)
			continue
		}
		message := letter("alice@ours.test", "bob@ours.test", "by "+c.name)
		if err := os.WriteFile(file, message, 0o600); err != nil {
			return err
		}
		words := strings.NewReplacer("{S}", h.env["PP_SUBMISSION_PORT"], "{T}", h.env["PP_SUBMISSIONS_PORT"], "{M}", h.env["PP_SMTP_PORT"], "{F}", file)
		args := make([]string, len(c.args))
		for i, a := range c.args {
			args[i] = words.Replace(a)
		}
		cmd := exec.Command(c.program, args...)
		cmd.Env = append(os.Environ(), c.env...)
		if c.stdin {
			cmd.Stdin = strings.NewReader(string(message))
		}
		if err := output(cmd); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		h.rewrites = c.program == "swaks" || c.program == "s-nail"
		if err := h.arrived(h.bob(), "Subject: by "+c.name, "Delivered-To: bob@ours.test"); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		h.names = append(h.names, c.name)
	}
	h.rewrites = false
	return nil
}

// plain undoes what a client may do to a message without harm: s-nail encodes the body, swaks
// puts empty lines behind it.
func plain(b []byte) []byte {
	head, body, _ := bytes.Cut(b, []byte("\n\n"))
	if bytes.Contains(head, []byte("quoted-printable")) {
		if text, err := io.ReadAll(quotedprintable.NewReader(bytes.NewReader(body))); err == nil {
			body = text
		}
	}
	return slices.Concat(head, []byte("\n\n"), bytes.TrimRight(body, "\n"), []byte("\n"))
}

func (h *hosts) bob() string { return h.env["PP_MAILDIRS"] + "/ours.test/bob/new" }

// lacks says why a client cannot be tried; "" where it can.
func (h *hosts) lacks(c client) string {
	if _, err := exec.LookPath(c.program); err != nil {
		return c.program + " is not installed"
	}
	if c.name != "nodemailer" {
		return ""
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "npm is not installed"
	}
	dir := filepath.Join(h.dir, "npm")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err.Error()
	}
	cmd := exec.Command(npm, "install", "--prefix", dir, "--no-audit", "--no-fund", "--silent", "nodemailer@6")
	cmd.WaitDelay = time.Second
	stop := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() }) // it may have ended
	defer stop.Stop()
	if err := output(cmd); err != nil {
		return "npm has no nodemailer for us"
	}
	return ""
}

// noRelay has nmap try its tricks to send mail through the MX and submission ports.
func (h *hosts) noRelay() error {
	if _, err := exec.LookPath("nmap"); err != nil {
		fmt.Println("skipped: nmap is not installed")
		return nil
	}
	for _, port := range []string{h.env["PP_SMTP_PORT"], h.env["PP_SUBMISSION_PORT"]} {
		// The script runs on ports it takes for SMTP; "+" makes it run on any.
		out, err := exec.Command("nmap", "-Pn", "-n", "-p", port, "--script", "+smtp-open-relay",
			"--script-args", "smtp-open-relay.domain=other.test,smtp-open-relay.from=x@far.test,smtp-open-relay.to=victim@other.test", "127.0.0.1").CombinedOutput()
		if err != nil {
			return fmt.Errorf("nmap: %w: %s", err, out)
		}
		text := string(out)
		if !strings.Contains(text, "doesn't seem to be an open relay, all tests failed") && !strings.Contains(text, "isn't an open relay, authentication needed") {
			return fmt.Errorf("nmap on port %s: %s", port, text)
		}
		_, verdict, _ := strings.Cut(text, "smtp-open-relay:")
		verdict, _, _ = strings.Cut(verdict, "\n")
		fmt.Printf("nmap smtp-open-relay, port %s:%s\n", port, verdict)
		h.checked++
	}
	log, err := os.ReadFile(filepath.Join(h.dir, "ours/log/pennypost.log"))
	for l := range strings.Lines(string(log)) {
		if strings.Contains(l, "msg=accepted") && strings.Contains(l, "other.test") {
			return errors.New("a message for a stranger was taken: " + l)
		}
	}
	return err
}
