package maildir_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pennypost/internal/maildir"
)

// mutt finds what was delivered, reads its header, and can delete it.
func TestMutt(t *testing.T) {
	for _, tool := range []string{"mutt", "script"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "Maildir")
	m, err := maildir.NewSet(maildir.Options{Host: "mx.a.test", Create: true}).Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"one to keep", "one to go", "another to go"} {
		msg := "From: ann@a.test\nSubject: " + subject + "\n\nbody\n"
		if _, err := m.Deliver(context.Background(), []byte("Delivered-To: bob@a.test\n"), strings.NewReader(msg)); err != nil {
			t.Fatal(err)
		}
	}
	rc := filepath.Join(dir, "muttrc")
	// Sorted by subject, the first two are those to go.
	commands := "set folder=" + dir + " delete=yes quit=yes move=no sort=subject\n" +
		`push "<first-entry><delete-message><delete-message><sync-mailbox><quit>"` + "\n"
	if err := os.WriteFile(rc, []byte(commands), 0o600); err != nil {
		t.Fatal(err)
	}
	// script gives mutt the terminal it insists on.
	cmd := exec.Command("timeout", "20", "script", "-qec", "mutt -n -F "+rc+" -f "+path, "/dev/null")
	cmd.Env = append(os.Environ(), "TERM=xterm", "HOME="+dir)
	keys, err := cmd.StdinPipe() // an end of input would be taken for a key
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mutt: %v\n%q", err, out)
	}
	left, err := filepath.Glob(path + "/[cn]*/*")
	if err != nil || len(left) != 1 {
		t.Fatalf("%v %v", left, err)
	}
	if b, err := os.ReadFile(left[0]); err != nil || !strings.Contains(string(b), "one to keep") {
		t.Errorf("%q %v", b, err)
	}
}
