package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"pennypost/internal/accounts"
)

// TestUserOf: a process is the user whom the system names, by whichever of its lists.
func TestUserOf(t *testing.T) {
	dir := t.TempDir()
	passwd, getent := filepath.Join(dir, "passwd"), filepath.Join(dir, "getent")
	if err := os.WriteFile(passwd, []byte("ann:x:4001:4001::/home/ann:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\ncase $2 in 4002) echo bob:x:4002:4002::/home/bob:/bin/sh;; 4009) exit 3;; *) exit 2;; esac\n"
	if err := os.WriteFile(getent, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	acc, err := accounts.Open(accounts.Options{Domains: []string{"example.test"}, Passwd: passwd, Getent: getent})
	if err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[int]string{4001: "ann", 4002: "bob", 4003: ""} {
		if name, err := userOf(acc)(context.Background(), uid); err != nil || name != want {
			t.Errorf("%d: %q %v, want %q", uid, name, err, want)
		}
	}
	if name, err := userOf(acc)(context.Background(), 4009); err == nil {
		t.Errorf("a list that does not answer: %q", name)
	}
}
