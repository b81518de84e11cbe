package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pennypost/internal/mailtest"
)

// snapshot is every file below dir with its size and time.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			b.WriteString(path + " " + fi.ModTime().String() + " " + fi.Mode().String() + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// simSite is a configuration and accounts, with neither spool nor key: a simulation needs none.
func simSite(t *testing.T, extra string) *site {
	t.Helper()
	in, err := mailtest.NewInstance(mailtest.InstanceOptions{Extra: extra})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	for _, f := range []string{in.Spool, filepath.Join(in.Dir, "key.pem"), filepath.Join(in.Dir, "secrets")} {
		if err := os.RemoveAll(f); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{dir: in.Dir, bin: filepath.Join(in.Dir, "msmtpd"), config: in.Config, spool: in.Spool}
	if err := os.Symlink(self, s.bin); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSimulate plays sessions: each decision has its sentence, and nothing is written.
func TestSimulate(t *testing.T) {
	const toBob = "EHLO c.test\nMAIL FROM:<x@far.test>\nRCPT TO:<bob@example.test>\nDATA\nSubject: hi\n\n..dot\n.\nQUIT\n"
	for _, c := range []struct {
		name, extra, in string
		args            []string
		want            []string // in this order
		not             string
	}{
		{"mx", "", toBob, []string{"--client", "192.0.2.7:4711"}, []string{
			"# connect: role mx: anybody may send to existing addresses", "# connect: the client's address is 192.0.2.7",
			"S: 220 ", "C: EHLO c.test", "S: 250-", "# mail: anybody may use any reverse-path",
			"# rcpt: look-up: bob@example.test is a mailbox", "S: 250 2.1.5", "C: ..dot",
			"# store: nothing is written; it would be incoming/", `# store: envelope {"id":"`, `"peer":"192.0.2.7:4711"`,
			"# store: header Received: from c.test ([192.0.2.7])", "# log: level=INFO msg=accepted", "S: 250 2.0.0 queued as", "S: 221 "}, ""},
		{"relaying", "smtpd.relay_from = [\"10.0.0.0/8\"]\nsmtpd.relay_domains = [\"backup.test\", \".many.test\"]\n",
			"EHLO c\nMAIL FROM:<>\nRCPT TO:<y@far.test>\nRCPT TO:<y@backup.test>\nRCPT TO:<y@a.many.test>\n", []string{"--client", "192.0.2.7"}, []string{
				"# rcpt: far.test is not local, and neither", "# log: level=INFO msg=refused", "S: 550 5.7.1 relaying denied",
				"smtpd.relay_domains", "S: 250 2.1.5", "a.many.test is not local, but matches .many.test of smtpd.relay_domains", "S: 250 2.1.5"}, ""},
		{"a network that may relay", "smtpd.relay_from = [\"10.0.0.0/8\"]\n",
			"EHLO c\nMAIL FROM:<>\nRCPT TO:<y@far.test>\n", []string{"--client", "10.9.8.7"}, []string{
				"the client is in 10.0.0.0/8 of smtpd.relay_from", "S: 250 2.1.5"}, "550"},
		{"no client", "smtpd.relay_from = [\"0.0.0.0/0\"]\n", "EHLO c\nMAIL FROM:<>\nRCPT TO:<y@far.test>\n", nil, []string{
			"# connect: the client's address is not known", "S: 550 5.7.1"}, "S: 250 2.1.5"},
		{"a user's addresses", "", "EHLO c\nMAIL FROM:<bob@example.test>\nMAIL FROM:<alice+x@example.test>\nRCPT TO:<y@far.test>\n",
			[]string{"--role", "submission", "--user", "alice", "--client", "::1"}, []string{
				"# connect: a TLS handshake is taken to succeed", "# connect: TLS is on", "# auth: alice@example.test counts as authenticated",
				"# mail: look-up: bob@example.test is a mailbox of bob@example.test", "S: 550 5.7.1 alice@example.test may not send as",
				"S: 250 2.1.0", "# rcpt: far.test is not local: users may send anywhere", "S: 250 2.1.5"}, "S: 250-AUTH"},
		{"STARTTLS", "", "EHLO c\nMAIL FROM:<>\nSTARTTLS\nEHLO c\nMAIL FROM:<>\n", []string{"--role", "submission"}, []string{
			"S: 530 5.7.0 say STARTTLS first", "S: 220 2.0.0", "# connect: a TLS handshake is taken to succeed", "S: 530 5.7.0 authentication required"}, ""},
		{"passwords are not checked", "", "EHLO c\nSTARTTLS\nEHLO c\nAUTH PLAIN AGFsaWNlAHNlY3JldA==\n", []string{"--role", "submission"}, []string{
			"S: 250-AUTH PLAIN LOGIN", "# auth: no password or token is checked in a simulation", "S: 454 4.7.0"}, "235"},
		{"local", "", "EHLO c\nMAIL FROM:<bob@example.test>\n", []string{"--role", "local", "--client", "uid:4294967"}, []string{
			"# connect: the client is a process of user id 4294967", "S: 550 5.7.1 uid4294967 may not send as bob@example.test"}, ""},
		{"greylisting is read only", "policy.greylist = \"full\"\n", toBob, []string{"--client", "192.0.2.7"}, []string{
			"# policy: greylist: defer: ", "S: 45"}, "queued as"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := simSite(t, c.extra)
			before := snapshot(t, s.dir)
			cmd := s.command(append([]string{"--simulate"}, c.args...)...)
			cmd.Stdin = strings.NewReader(c.in)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			rest := string(out)
			for _, w := range c.want {
				_, after, ok := strings.Cut(rest, w)
				if !ok {
					t.Fatalf("%q is not there, or not in this order:\n%s", w, out)
				}
				rest = after
			}
			if c.not != "" && strings.Contains(string(out), c.not) {
				t.Errorf("%q is there:\n%s", c.not, out)
			}
			if after := snapshot(t, s.dir); after != before {
				t.Errorf("files changed, before\n%safter\n%s", before, after)
			}
		})
	}
}

// TestSimulateWithoutCertificate: what a role may do can be asked before there is a certificate.
func TestSimulateWithoutCertificate(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "pennypost.toml")
	users := filepath.Join(filepath.Dir(conf), "users")
	text := "hostname = \"mx.example.test\"\ndomains = [\"example.test\"]\nlog = \"stderr\"\n[accounts]\nusers = \"" + users + "\"\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(users, []byte("alice@example.test:::::/home/alice::\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := simSite(t, "")
	for role, want := range map[string][]string{
		"submission":  {"# connect: no certificate is configured", "250-STARTTLS", "S: 530 5.7.0"},
		"submissions": {"# connect: no certificate is configured", "# connect: TLS is on", "S: 530 5.7.0 authentication"},
		"mx":          {"S: 250 2.1.0"},
	} {
		cmd := exec.Command(s.bin, "--config", conf, "--simulate", "--role", role)
		cmd.Stdin = strings.NewReader("EHLO c\nMAIL FROM:<alice@example.test>\n")
		out, err := cmd.CombinedOutput()
		rest, ok := string(out), err == nil
		for _, w := range want {
			if ok {
				_, rest, ok = strings.Cut(rest, w)
			}
		}
		if !ok || strings.Contains(string(out), "STARTTLS") != (role == "submission") {
			t.Errorf("%s: %v\n%s", role, err, out)
		}
	}
}

// TestSimulateOptions: what makes no sense is refused, and --json gives one object a line.
func TestSimulateOptions(t *testing.T) {
	s := simSite(t, "")
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"--client", "example.org"}, 64, "want an address"},
		{[]string{"--role", "local", "--client", "10.0.0.1"}, 64, "uid:NUMBER"},
		{[]string{"--role", "local", "--tls"}, 64, "role local has no TLS"},
		{[]string{"--user", "alice"}, 64, "--user is for"},
		{[]string{"--role", "submission", "--user", "nobody"}, 67, "no such user"},
		{[]string{"--role", "smtp"}, 78, `unknown role "smtp"`},
	} {
		cmd := s.command(append([]string{"--simulate"}, c.args...)...)
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != c.status || !strings.Contains(string(out), c.want) {
			t.Errorf("%q: status %d, want %d: %s", c.args, cmd.ProcessState.ExitCode(), c.status, out)
		}
	}
	cmd := s.command("--simulate", "--json")
	cmd.Stdin = strings.NewReader("EHLO c\x1b\nQUIT\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for l := range strings.Lines(string(out)) {
		var p playLine
		if err := json.Unmarshal([]byte(l), &p); err != nil {
			t.Fatalf("%v: %s", err, l)
		}
		seen[p.Who] = true
	}
	if !seen["client"] || !seen["server"] || !seen["explain"] || !seen["log"] {
		t.Errorf("kinds %v in %s", seen, out)
	}
}
