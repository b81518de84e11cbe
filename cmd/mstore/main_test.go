package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pennypost/internal/cli"
	"pennypost/internal/envelope"
)

// mstore runs the tool in this process, which gives no rights up: its Maildirs are its own.
func mstore(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	a := app()
	var out, errs bytes.Buffer
	a.Writer, a.ErrWriter = &out, &errs
	status = cli.Run(context.Background(), a, append([]string{"mstore"}, args...))
	return status, out.String(), errs.String()
}

// served is a Maildir that Dovecot has served, as far as mstore looks.
func served(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "md")
	for name, text := range map[string]string{
		"cur/1000000000.M1P1.h:2,S": "Subject: x\n\n", "new/.x": "", "tmp/.x": "", "dovecot.index.log": "x",
		"dovecot-uidlist": "3 V1000000000 N2\n1 :1000000000.M1P1.h\n", ".Sent/cur/.x": "", ".Sent/new/.x": "", ".Sent/maildirfolder": "",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// program writes an executable shell script.
func program(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// What Dovecot has told clients comes from doveadm, and ours start above it.
func TestConvertAsksDoveadm(t *testing.T) {
	for _, c := range []struct {
		name, script string
		note, inbox  string
	}{
		{"it answers", `printf 'mailbox\thighestmodseq\nINBOX\t4711\nINBOX.Sent\t12\n'`, "", " 0 4711 - INBOX\n"},
		{"it fails", "echo no such user >&2; exit 67", "doveadm does not know the MODSEQs (exit status 67: no such user)", " 0 0 - INBOX\n"},
		{"it answers nonsense", "echo hello", "", " 0 0 - INBOX\n"},
	} {
		dir := served(t)
		status, out, errs := mstore(t, "convert", "-n", "--maildir", dir, "--doveadm", program(t, c.script))
		if status != 0 || !strings.Contains(out, c.inbox) || c.note != "" && !strings.Contains(out, c.note) || c.note == "" && strings.Contains(out, "doveadm") {
			t.Errorf("%s: %d %s%s", c.name, status, out, errs)
		}
		if _, err := os.Stat(filepath.Join(dir, "pennypost-index")); err == nil {
			t.Errorf("%s: -n has written something", c.name)
		}
	}
	dir := served(t)
	doveadm := program(t, `printf 'mailbox\thighestmodseq\nINBOX\t4711\nSent\t5000000000\n'`)
	if status, out, errs := mstore(t, "convert", "--maildir", dir, "--doveadm", doveadm); status != 0 {
		t.Fatalf("%d %s%s", status, out, errs)
	}
	status, out, errs := mstore(t, "list", "--json", "--maildir", dir)
	if status != 0 || !strings.Contains(out, `"mailbox":"Sent","messages":0,"unseen":0,"size":0`) || !strings.Contains(out, `"highestmodseq":500`) {
		t.Errorf("%d %s%s", status, out, errs)
	}
	status, out, _ = mstore(t, "convert", "-n", "--maildir", dir, "--doveadm", "/nowhere/doveadm")
	if status != 0 || !strings.Contains(out, "note "+dir+" doveadm is not here") {
		t.Errorf("%d %s", status, out)
	}
}

func TestParseStatus(t *testing.T) {
	m := modseqs{highest: parseStatus([]byte("mailbox\thighestmodseq\nINBOX\t5\nWork.Größe\t7\nINBOX/Sent\t9\nbroken\nx\ty\n"))}
	for name, want := range map[string]uint64{"INBOX": 5, "Work/Größe": 7, "Sent": 9, "x": 0, "mailbox": 0} {
		if got := m.of(name); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}

func TestQuote(t *testing.T) {
	for s, want := range map[string]string{
		"INBOX": "INBOX", "a@b.c": "a@b.c", "Tom & Jerry": "'Tom & Jerry'", "it's": `'it'\''s'`, "": "''", "Größe": "'Größe'", "$x": "'$x'",
	} {
		if got := quote(s); got != want {
			t.Errorf("%q: %s", s, got)
		}
	}
}

// Progress is for terminals, and never more often than a person reads.
func TestProgress(t *testing.T) {
	var b bytes.Buffer
	if p := newProgress(&b); p.w != nil {
		t.Error("a buffer is no terminal")
	}
	p := &progress{w: &b}
	p.show("INBOX", 1, 10)
	p.show("INBOX", 2, 10)
	if b.String() != "\rINBOX 1/10" {
		t.Errorf("%q", b.String())
	}
	p.last = time.Time{}
	p.show("A", 3, 10)
	p.clear()
	p.clear()
	if want := "\rINBOX 1/10\rA 3/10    \r      \r"; b.String() != want {
		t.Errorf("%q", b.String())
	}
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"list"}, envelope.ExUsage},
		{[]string{"nothing"}, envelope.ExUsage},
		{[]string{"quota", "--recount", "-n", "--maildir", "DIR"}, envelope.ExUsage},
		{[]string{"create", "-n", "--maildir", "DIR", "--folder", "=sent"}, envelope.ExUsage},
		{[]string{"list", "--maildir", "DIR/nowhere"}, envelope.ExNoInput},
		{[]string{"check", "--maildir", "DIR", "--mailbox", "Nowhere"}, envelope.ExNoInput},
	} {
		dir := served(t)
		for i := range c.args {
			c.args[i] = strings.Replace(c.args[i], "DIR", dir, 1)
		}
		if status, out, errs := mstore(t, c.args...); status != c.want || errs == "" {
			t.Errorf("%q: %d, want %d: %s%s", c.args, status, c.want, out, errs)
		}
	}
}

// The owner of a Maildir that is not there yet is that of the directory it will be in.
func TestOwner(t *testing.T) {
	dir := t.TempDir()
	uid, gid, err := owner(filepath.Join(dir, "a", "b"))
	if err != nil || uid != os.Getuid() || gid != os.Getgid() {
		t.Errorf("%d %d %v", uid, gid, err)
	}
	if os.Getuid() != 0 {
		return
	}
	if err := os.Chown(dir, 65534, 65533); err != nil {
		t.Fatal(err)
	}
	if uid, gid, err = owner(filepath.Join(dir, "a")); err != nil || uid != 65534 || gid != 65533 {
		t.Errorf("%s", fmt.Sprint(uid, gid, err))
	}
}
