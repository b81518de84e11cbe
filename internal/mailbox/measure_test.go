//go:build long

package mailbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pennypost/internal/maildir"
)

// TestMeasure prints what a mailbox of realistic messages costs a process. The variable names a
// Maildir to measure; its index and cache are removed first.
func TestMeasure(t *testing.T) {
	root := os.Getenv("PENNYPOST_MEASURE")
	if root == "" {
		t.Skip("PENNYPOST_MEASURE names no Maildir")
	}
	for _, n := range []string{indexName, indexLock, cacheName, "dovecot-uidlist"} {
		if err := os.Remove(filepath.Join(root, n)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	b := &bed{T: t, root: root}
	step := func(what string, fn func()) {
		begin := time.Now()
		fn()
		fmt.Printf("%-32s %8.1f ms   %s\n", what, float64(time.Since(begin).Microseconds())/1000, pss())
	}
	var v *View
	step("open, nothing there", func() { v = b.view(b.store(), "INBOX", false) })
	time.Sleep(settleTime + settleTime/10)
	step("sync, verifying", func() { b.sync(v) })
	step("open, a new process", func() { v = b.view(b.store(), "INBOX", false) })
	step("select again", func() { b.view(v.m.store, "INBOX", false).Close() })
	step("envelopes, first", func() { b.cached(v, Envelope) })
	step("envelopes, again", func() { b.cached(v, Envelope) })
	step("body structures", func() { b.cached(v, BodyStructure) })
	step("fields", func() { b.cached(v, Fields) })
	step("envelopes, a new process", func() { b.cached(b.view(b.store(), "INBOX", false), Envelope) })
}

// A million messages work, if slowly.
func TestMillion(t *testing.T) {
	b := newBed(t)
	fill(t, b.root, 1_000_000)
	step := func(what string, fn func()) {
		begin := time.Now()
		fn()
		t.Logf("%-32s %8.1f ms   %s", what, float64(time.Since(begin).Microseconds())/1000, pss())
	}
	var v *View
	step("open, nothing there", func() { v = b.view(b.store(), "INBOX", false) })
	if v.Len() != 1_000_000 || v.At(1_000_000).UID != 1_000_000 {
		t.Fatalf("%d messages", v.Len())
	}
	step("open, a new process", func() { v = b.view(b.store(), "INBOX", false) })
	step("a flag", func() {
		if _, err := v.Store(t.Context(), []uint32{500_000}, FlagChange{Op: Add, Flags: maildir.Flagged}); err != nil {
			t.Fatal(err)
		}
	})
	step("a delivery", func() {
		b.deliver(b.root, "x")
		b.sync(v)
	})
	if v.Len() != 1_000_001 {
		t.Fatalf("%d messages after a delivery", v.Len())
	}
	step("an expunge", func() {
		if _, err := v.Expunge(t.Context(), []uint32{7}); err != nil {
			t.Fatal(err)
		}
		b.sync(v)
	})
	if v.Len() != 1_000_000 {
		t.Fatalf("%d messages after an expunge", v.Len())
	}
}

func (b *bed) cached(v *View, what Columns) {
	b.Helper()
	n := 0
	for _, err := range v.Cached(b.Context(), []Range{{1, 1<<32 - 1}}, what) {
		if err != nil {
			b.Fatal(err)
		}
		n++
	}
	if n != v.Len() {
		b.Errorf("%d rows of %d", n, v.Len())
	}
}

// pss is the memory of this process.
func pss() string {
	b, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "Pss:") {
			return strings.Join(strings.Fields(line), " ")
		}
	}
	return ""
}
