package house_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A user who may not enter the spool is not told that no scheduler runs.
func TestSpoolOutOfReach(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("switching users needs root")
	}
	p := newPlace(t)
	p.write("pennypost.toml", fmt.Sprintf("hostname = \"mx.example.test\"\ndomains = [\"example.test\"]\nspool = %q\n[limits]\nfree_space = 0\nfree_inodes = 0\n",
		filepath.Join(p.dir, "home/spool")), 0o644)
	p.dirFor("home", uidQueue, 0o700)
	p.must(p.command(uidQueue, uidQueue, "mqueue", "init"))
	p.start(uidQueue, uidQueue, "mqueue", "run")
	p.waitFor("control socket", func() bool { return p.exists("home/spool/control") })
	out, err := p.command(uidNobody, uidNobody, "mqueue", "list").CombinedOutput()
	var ee *exec.ExitError
	if !errors.As(err, &ee) || ee.ExitCode() != 77 {
		t.Errorf("status: %v", err)
	}
	if s := string(out); strings.Contains(s, "no scheduler runs") || !strings.Contains(s, "permission denied") || !strings.Contains(s, "as the spool's owner") {
		t.Errorf("%s", s)
	}
}
