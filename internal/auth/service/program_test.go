package service

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pennypost/internal/sasl"
)

// withProgram has logins checked by a program that reads the right password from a file.
func withProgram(t *testing.T, script string) (*rig, string) {
	t.Helper()
	right := filepath.Join(t.TempDir(), "right")
	if err := os.WriteFile(right, []byte("dan@example.test\nold\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return newRig(t, files, func(o *Options) {
		o.Program = []string{"/bin/sh", "-c", script, right}
	}), right
}

const compares = `tr '\0' '\n' <&3 | head -n 2 | cmp -s - "$0"; exit $?`

func TestCheckPassword(t *testing.T) {
	r, right := withProgram(t, compares)
	if err := r.try("dan", "old", far); err != nil {
		t.Errorf("right password: %v", err)
	}
	if err := r.try("dan", "new", far); !errors.Is(err, sasl.ErrRefused) {
		t.Errorf("wrong password: %v", err)
	}
	// Those who are in secrets are none of its business.
	if err := r.try("alice", "secret", far); err != nil {
		t.Errorf("alice: %v", err)
	}
	// What was wrong may be right by now: only the program knows.
	if err := os.WriteFile(right, []byte("dan@example.test\nnew\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.try("dan", "new", far); err != nil {
		t.Errorf("a password that was wrong before it was set: %v", err)
	}
	// The same wrong one, again and again, keeps nobody out.
	r.clock.slept()
	for range 3 * freePair {
		if err := r.try("dan", "old", home); !errors.Is(err, sasl.ErrRefused) {
			t.Fatalf("the old password: %v", err)
		}
	}
	if d := r.clock.slept(); d != 0 {
		t.Errorf("a program with the old password was held up %v", d)
	}
	if err := r.try("dan", "new", home); err != nil {
		t.Errorf("the right one beside it: %v", err)
	}
}

func TestCheckPasswordFails(t *testing.T) {
	for _, script := range []string{"exit 111", "exit 2", "kill -9 $$"} {
		r, _ := withProgram(t, script)
		if err := r.try("dan", "old", far); !errors.Is(err, sasl.ErrTemporary) || errors.Is(err, sasl.ErrRefused) {
			t.Errorf("%s: %v, want a temporary refusal", script, err)
		}
		if err := r.try("dan", "with\x00NUL", far); !errors.Is(err, sasl.ErrRefused) {
			t.Errorf("%s: NUL in a password: %v", script, err)
		}
	}
	// A program that does not come to an end is ended with whoever asked.
	r, _ := withProgram(t, "sleep 60")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := r.Password(ctx, "dan", "old", netip.Addr{}); !errors.Is(err, sasl.ErrTemporary) {
		t.Errorf("%v, want a temporary refusal", err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("waited %v", d)
	}
}
