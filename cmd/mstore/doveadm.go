package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// modseqs is what Dovecot on this host says of an account.
type modseqs struct {
	highest map[string]uint64 // by mailbox
	uidl    string            // pop3_uidl_format
	notes   []string
}

// of is the HIGHESTMODSEQ of a mailbox, 0 when nothing is known. Dovecot writes names with the
// separator of its namespace, and with its prefix.
func (m modseqs) of(name string) uint64 {
	n := m.highest[name]
	for _, other := range []string{strings.ReplaceAll(name, "/", "."), "INBOX." + strings.ReplaceAll(name, "/", "."), "INBOX/" + name} {
		n = max(n, m.highest[other])
	}
	return n
}

const doveadmTime = 2 * time.Minute

// askDoveadm asks for the MODSEQs that clients have seen. Where nobody answers, they start at 1
// here, and clients with CONDSTORE notice that themselves: the note says so.
func askDoveadm(j *job) (m modseqs) {
	program := j.c.String("doveadm")
	if program == "" || j.c.Bool("back") || !j.servedByDovecot() {
		return m
	}
	path, err := exec.LookPath(program)
	if err != nil {
		m.notes = append(m.notes, "doveadm is not here: give the highest MODSEQ with --above where Dovecot has served clients with CONDSTORE")
		return m
	}
	ctx, cancel := context.WithTimeout(j.c.Context, doveadmTime)
	defer cancel()
	args := []string{"-f", "tab"}
	if j.user.Address == "" {
		args = append(args, "-o", "mail_location="+j.location(), "mailbox", "status", "highestmodseq", "*")
	} else {
		args = append(args, "mailbox", "status", "-u", j.name, "highestmodseq", "*")
	}
	out, err := j.asOwner(ctx, path, args...)
	if err != nil {
		m.notes = append(m.notes, fmt.Sprintf("doveadm does not know the MODSEQs (%v): give the highest with --above where clients use CONDSTORE", err))
		return m
	}
	m.highest = parseStatus(out)
	if out, err := exec.CommandContext(ctx, "doveconf", "-h", "pop3_uidl_format").Output(); err == nil {
		m.uidl = strings.TrimSpace(string(out))
	}
	return m
}

// servedByDovecot tells whether Dovecot has an index of the account: only then has it told
// anybody a MODSEQ, and asking it makes no new files.
func (j *job) servedByDovecot() bool {
	at := cmp.Or(j.o.Index, j.user.Maildir)
	for _, dir := range []string{at, filepath.Join(at, ".INBOX"), filepath.Join(at, "INBOX")} {
		if _, err := os.Stat(filepath.Join(dir, "dovecot.index.log")); err == nil {
			return true
		}
	}
	return false
}

// location is the Maildir in Dovecot's words.
func (j *job) location() string {
	l := "maildir:" + j.user.Maildir
	if j.o.FSLayout {
		l += ":LAYOUT=fs"
	}
	if j.o.UTF8 {
		l += ":UTF-8"
	}
	if j.o.Control != "" {
		l += ":CONTROL=" + j.o.Control
	}
	if j.o.Index != "" {
		l += ":INDEX=" + j.o.Index
	}
	return l
}

// asOwner runs doveadm. For a bare Maildir it runs as its owner, since it writes there.
func (j *job) asOwner(ctx context.Context, path string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	if j.user.Address == "" {
		cmd.Env = append(os.Environ(), "HOME="+j.user.Maildir, "USER=mstore")
		if os.Geteuid() == 0 {
			uid, gid, err := owner(j.user.Maildir)
			if err != nil {
				return nil, err
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		}
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		return nil, fmt.Errorf("%w: %.200s", err, line)
	}
	return out, nil
}

// parseStatus reads the table of "doveadm -f tab mailbox status".
func parseStatus(out []byte) map[string]uint64 {
	m := make(map[string]uint64)
	for i, line := range strings.Split(string(out), "\n") {
		name, num, ok := strings.Cut(line, "\t")
		n, err := strconv.ParseUint(strings.TrimSpace(num), 10, 64)
		if i > 0 && ok && err == nil {
			m[name] = n
		}
	}
	return m
}
