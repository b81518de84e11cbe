package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

// line is a call as one string, for tables.
func (c *call) line() string {
	from := "-"
	if c.from != nil {
		from = *c.from
	}
	s := []string{[]string{"message", "queue", "smtp", "aliases", "flush"}[c.mode], "from=" + from}
	for _, f := range []struct {
		word string
		on   bool
	}{{"t", c.extract}, {"i", c.dots}, {"F=" + c.name, c.name != ""}, {"R=" + c.ret, c.ret != ""}, {"V=" + c.envid, c.envid != ""},
		{"N=" + strings.Join(c.notify, "+"), len(c.notify) > 0}, {"q=" + c.flush, c.flush != ""}} {
		if f.on {
			s = append(s, f.word)
		}
	}
	return strings.Join(append(s, c.to...), " ")
}

func TestParseCall(t *testing.T) {
	for _, c := range []struct{ name, args, want string }{
		{"sendmail", "bob", "message from=- bob"},
		{"sendmail", "-t -i", "message from=- t i"},                                                // PHP
		{"sendmail", "-ti", "message from=- t i"},                                                  //
		{"sendmail", "-FCronDaemon -i -B8BITMIME -oem root", "message from=- i F=CronDaemon root"}, // Debian's cron
		{"sendmail", "-oem -oi -f ann@x.test -- bob@y.test -z", "message from=ann@x.test i bob@y.test -z"},
		{"sendmail", "-fann@x.test -i a@b c@d", "message from=ann@x.test i a@b c@d"},
		{"sendmail", "-i -f <> -odb bob", "message from=<> i bob"},
		{"sendmail", "-r ann bob", "message from=ann bob"},
		{"sendmail", "-t -N success,delay -R hdrs -V id1", "message from=- t R=hdrs V=id1 N=success,delay"},
		{"sendmail", "-itv -O IgnoreDots=True -odi -X /dev/null -G -U -h 5 -p smtp:x -L tag -C /x.cf -d9.1 -Am bob", "message from=- t i bob"},
		{"sendmail", "-bp", "queue from=-"},
		{"sendmail", "-bs", "smtp from=-"},
		{"sendmail", "-b m bob", "message from=- bob"},
		{"sendmail", "-bi", "aliases from=-"},
		{"sendmail", "-I", "aliases from=-"},
		{"sendmail", "-q", "flush from=-"},
		{"sendmail", "-qI1k80hj2m1p8qhgj5ri", "flush from=- q=I1k80hj2m1p8qhgj5ri"},
		{"mailq", "", "queue from=-"},
		{"mailq", "-v", "queue from=-"},
		{"newaliases", "", "aliases from=-"},
		{"sendmail", "- bob", "message from=- - bob"},
		{"sendmail", "bob -t", "error"},
		{"sendmail", "-bd", "error"},
		{"sendmail", "-by", "error"},
		{"sendmail", "-Z", "error"},
		{"sendmail", "-ifbob", "message from=bob i"},
		{"sendmail", "-t -f", "error"},
		{"sendmail", "--help", "error"},
	} {
		got := "error"
		call, err := parseCall(c.name, strings.Fields(c.args))
		if err == nil {
			got = call.line()
		}
		if got != c.want {
			t.Errorf("%s %s: %s (%v), want %s", c.name, c.args, got, err, c.want)
		}
	}
}

// Property: no command line makes it panic, and what stands behind -- is never an option.
func FuzzParseCall(f *testing.F) {
	for _, s := range []string{"-t -i", "-fann bob", "-bs", "-oem -oi -f x -- -y", "-d -q30m", "-", "-f", "--"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		args := strings.Split(s, " ")
		c, err := parseCall("sendmail", args)
		if err != nil {
			return
		}
		for i, a := range c.to {
			if a != args[len(args)-len(c.to)+i] {
				t.Fatalf("%q: recipients %q are not the end of it", s, c.to)
			}
		}
	})
}

func TestDotted(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"a\n.\nb\n", "a\n"}, {".\nb", ""}, {"a\n.\r\nb", "a\n"}, {"a\n..\n.b\n. \n", "a\n..\n.b\n. \n"}, {"a.\n.", "a.\n"}, {"a", "a"}, {"", ""},
		{strings.Repeat("x", 70000) + ".\n.\nz", strings.Repeat("x", 70000) + ".\n"},
	} {
		for _, r := range []io.Reader{strings.NewReader(c.in), iotest.OneByteReader(strings.NewReader(c.in))} {
			d := &dotted{r: bufio.NewReaderSize(r, 4096), bol: true}
			got, err := io.ReadAll(d)
			if err != nil || string(got) != c.want {
				t.Errorf("%.40q: %.40q, %v", c.in, got, err)
			}
		}
	}
	d := &dotted{r: bufio.NewReader(iotest.TimeoutReader(strings.NewReader("a\nb\n"))), bol: true}
	if _, err := io.ReadAll(d); err != iotest.ErrTimeout {
		t.Errorf("a read error became %v", err)
	}
}

// The command lines of real callers, as their documentation or their source has them.
func TestCallers(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		name, in string
		args     []string
		from, to string
	}{
		{"cron", "Subject: Cron\n\nout\n", []string{"-FCronDaemon", "-i", "-B8BITMIME", "-oem", "root"}, "ann@example.test", "root@example.test"},
		{"PHP mail()", "To: a@b.test\r\nSubject: x\r\nFrom: w@x.test\r\n\r\nhello\r\n", []string{"-t", "-i"}, "ann@example.test", "a@b.test"},
		{"PHP mail() with -f", "To: a@b.test\r\n\r\nhello\r\n", []string{"-t", "-i", "-fwww@x.test"}, "www@x.test", "a@b.test"},
		{"logwatch", "To: root\nFrom: root@h.test\n\nreport\n", []string{"-t"}, "ann@example.test", "root@example.test"},
		{"Rails", "To: a@b.test\n\nx\n", []string{"-i", "-f", "app@x.test", "--", "a@b.test"}, "app@x.test", "a@b.test"},
		{"smartd", "To: a@b.test\n\nx\n", []string{"-oi", "-t"}, "ann@example.test", "a@b.test"},
		{"mdadm", "To: root\n\nx\n", []string{"-t"}, "ann@example.test", "root@example.test"},
		{"lone dot", "To: a@b.test\n\nx\n.\nnot sent\n", []string{"-t"}, "ann@example.test", "a@b.test"},
		{"list in one operand", "x\n", []string{"-i", "a@b.test, c@d.test"}, "ann@example.test", "a@b.test c@d.test"},
	} {
		w.ok(c.in, "sendmail", c.args...)
		m := w.one()
		if m.env.From != c.from || m.to() != c.to || strings.Contains(m.body, "not sent") {
			t.Errorf("%s: from %q to %q body %q", c.name, m.env.From, m.to(), m.body)
		}
	}
	w.ok("", "newaliases")
	w.ok("", "sendmail", "-bi")
	if got := w.run(nil, "mailq"); got != 72 && got != 0 {
		t.Errorf("mailq: exit %d, %s", got, w.stderr)
	}
}

// need skips a test whose caller is not installed.
func need(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

func TestGitSendEmail(t *testing.T) {
	git := need(t, "git")
	w := newWorld(t)
	w.env = append(w.env, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=Ann", "GIT_AUTHOR_EMAIL=ann@example.test", "GIT_COMMITTER_NAME=Ann", "GIT_COMMITTER_EMAIL=ann@example.test")
	path, err := exec.Command(git, "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(strings.TrimSpace(string(path)), "git-send-email")); err != nil {
		t.Skip("git send-email is not installed")
	}
	patch := "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\nFrom: Ann <ann@example.test>\nDate: Sun, 22 Nov 2026 10:00:00 +0000\nSubject: [PATCH] ü\n\nGrüße\n---\n-- \n2.39\n"
	if err := os.WriteFile(filepath.Join(w.dir, "0001.patch"), []byte(patch), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(git, "send-email", "--quiet", "--confirm=never", "--8bit-encoding=UTF-8", "--from=ann@example.test", "--envelope-sender=ann@example.test",
		"--to=Bob <bob@b.test>", "--cc=c@d.test", "--bcc=e@f.test", "--sendmail-cmd="+filepath.Join(w.bin, "sendmail"), "0001.patch")
	cmd.Env, cmd.Dir = w.env, w.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m := w.one()
	if m.env.From != "ann@example.test" || !strings.Contains(m.to(), "bob@b.test") || !strings.Contains(m.to(), "e@f.test") || strings.Contains(m.head, "e@f.test") || !strings.Contains(m.body, "Grüße") {
		t.Errorf("from %q to %q\n%s\n%s", m.env.From, m.to(), m.head, m.body)
	}
}

func TestMutt(t *testing.T) {
	mutt := need(t, "mutt")
	w := newWorld(t)
	rc := filepath.Join(w.dir, "muttrc")
	text := "set sendmail=\"" + filepath.Join(w.bin, "sendmail") + " -oem -oi\"\nset from=\"ann@example.test\"\nset use_from=yes\nset use_envelope_from=yes\nset copy=no\nset charset=utf-8\n"
	if err := os.WriteFile(rc, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(mutt, "-F", rc, "-s", "Grüße", "-b", "carol@c.test", "-a", rc, "--", "bob@b.test")
	cmd.Env, cmd.Dir, cmd.Stdin = append(w.env, "LC_ALL=C.UTF-8"), w.dir, strings.NewReader("Grüße\n.\nend\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m := w.one()
	if m.env.From != "ann@example.test" || m.to() != "bob@b.test carol@c.test" || strings.Contains(m.head, "carol") || !strings.Contains(m.body, "end\n") {
		t.Errorf("from %q to %q\n%s\n%s", m.env.From, m.to(), m.head, m.body)
	}
}

func TestSNail(t *testing.T) {
	nail := need(t, "s-nail")
	w := newWorld(t)
	cmd := exec.Command(nail, "-:/", "-S", "mta="+filepath.Join(w.bin, "sendmail"), "-S", "sendwait", "-S", "nosave", "-r", "ann@example.test", "-s", "hello", "-c", "c@d.test", "bob@b.test")
	cmd.Env, cmd.Dir, cmd.Stdin = w.env, w.dir, strings.NewReader("text\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m := w.one()
	if m.env.From != "ann@example.test" || m.to() != "bob@b.test c@d.test" || m.body != "text\n" {
		t.Errorf("from %q to %q body %q\n%s", m.env.From, m.to(), m.body, m.head)
	}
}
