// Package mailtest is what tests share: the tools built as real programs, private mail systems
// to run them against, script and manual runners, a DNS server, a scripted SMTP peer and a file
// system that stops. Only tests and programs below scripts/ import it.
package mailtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// Tools are the programs of this module, built when first asked for. The zero value is ready;
// a test binary has one, and its TestMain calls Main.
type Tools struct {
	once sync.Once
	dir  string
	err  error
}

// Main runs the tests of m and takes the programs away again. It returns the exit status.
func (b *Tools) Main(m *testing.M) int {
	status := m.Run()
	if b.dir != "" {
		// Ignored: what stays behind is in the temporary directory.
		_ = os.RemoveAll(b.dir)
	}
	return status
}

// Dir returns the directory that holds the programs.
func (b *Tools) Dir(t testing.TB) string {
	t.Helper()
	b.once.Do(b.build)
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.dir
}

func (b *Tools) build() {
	root, err := Root()
	if err != nil {
		b.err = err
		return
	}
	if b.dir, b.err = os.MkdirTemp("", "pp-tools"); b.err != nil {
		return
	}
	cmd := exec.Command("go", "build", "-tags", "urfave_cli_no_docs", "-buildvcs=false", "-ldflags=-s -w", "-o", b.dir+"/", "./cmd/...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.err = fmt.Errorf("go build ./cmd/...: %w\n%s", err, out)
		return
	}
	// The names by which the sendmail personality is called.
	for _, n := range []string{"sendmail", "mailq", "newaliases"} {
		if b.err = os.Symlink("msend", filepath.Join(b.dir, n)); b.err != nil {
			return
		}
	}
}

// Root is the directory of go.mod, above the directory a test runs in.
func Root() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("no go.mod above %s", dir)
		}
		dir = up
	}
	return "", err
}
