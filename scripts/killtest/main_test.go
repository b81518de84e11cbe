package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"pennypost/internal/mailtest"
)

var tools mailtest.Tools

func TestMain(m *testing.M) { os.Exit(tools.Main(m)) }

// TestStorm is the short form of the kill test.
func TestStorm(t *testing.T) {
	r, err := run(&options{Bin: tools.Dir(t), Messages: 200, Kills: 10, Seed: 1, Limit: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r)
}

// TestLossIsSeen is the test of the test: an accepted message that is gone must be noticed.
func TestLossIsSeen(t *testing.T) {
	_, err := run(&options{Bin: tools.Dir(t), Messages: 20, Kills: 1, Seed: 1, Limit: time.Minute, Lose: true})
	if err == nil || !strings.Contains(err.Error(), "is not in the Maildir") {
		t.Fatalf("a lost message was not noticed: %v", err)
	}
}
