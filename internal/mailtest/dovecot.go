package mailtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// Dovecot returns a session of Dovecot, logged in, on the Maildir dir/md, which it makes.
// A Dovecot does not serve root; for root it runs as nobody, who is given dir. The test is
// skipped where there is none.
func Dovecot(t testing.TB, dir string) net.Conn {
	t.Helper()
	cmd := exec.Command(DovecotCommand(t, dir)[0], DovecotCommand(t, dir)[1:]...)
	cmd.Env = append(os.Environ(), "HOME="+dir, "USER=nobody")
	syscall.ForkLock.RLock() // not every system has SOCK_CLOEXEC
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "dovecot"), os.NewFile(uintptr(fds[1]), "test")
	defer theirs.Close()
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout = theirs, theirs
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		if err := cmd.Wait(); err != nil {
			t.Logf("doveadm exec imap: %v", err)
		}
	})
	return conn
}

// DovecotCommand returns the command of such a session on its standard input and output.
func DovecotCommand(t testing.TB, dir string) []string {
	t.Helper()
	doveadm, err := exec.LookPath("doveadm")
	if err != nil {
		t.Skip("no doveadm: no Dovecot to talk to")
	}
	conf := filepath.Join(dir, "dovecot.conf")
	text := fmt.Sprintf("base_dir = %s/run\nstate_dir = %s/run\nlog_path = /dev/stderr\nssl = no\nmail_location = maildir:%s/md\nfirst_valid_uid = 1\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\n", dir, dir, dir)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err == nil {
				err = os.Lchown(path, 65534, 65534)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for d := dir; len(d) > 1 && d != os.TempDir(); d = filepath.Dir(d) { // t.TempDir is for its owner alone
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return []string{doveadm, "-c", conf, "exec", "imap"}
}
