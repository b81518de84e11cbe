package worker

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestManualsPython runs the worker shown in mworker(7).
func TestManualsPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed")
	}
	page, err := os.ReadFile("../../man/mworker.7")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(page), "\nimport json")
	text, _, ok2 := strings.Cut("import json"+text, "\n.Ed")
	if !ok || !ok2 {
		t.Fatal("man/mworker.7 shows no Python worker")
	}
	script := filepath.Join(t.TempDir(), "hole.py")
	if err := os.WriteFile(script, []byte(strings.ReplaceAll(text, `\en`, `\n`)), 0o600); err != nil {
		t.Fatal(err)
	}
	a := NewAgent(Spec{Name: "hole", Command: []string{python, script}, Timeout: time.Minute, Stderr: os.Stderr})
	defer a.Close()
	for range 3 {
		r := request("b@y.test", "c@y.test")
		r.Offset, r.Size = 4, 5
		rep, err := a.Do(t.Context(), r, message(t, "headbody\n"))
		if err != nil {
			t.Fatal(err)
		}
		if got := rep.Results[1].Reply; got != "5 octets thrown away" {
			t.Errorf("reply %q", got)
		}
	}
}
