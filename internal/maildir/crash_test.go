package maildir_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
	"pennypost/internal/mailtest"
)

// The machine stops after each operation of a delivery, and what was not synced is lost in
// many ways. A message that was answered for is then there once and whole; one that was not
// is there whole or not at all, and never in new/ cut short.
func TestCrash(t *testing.T) {
	for _, together := range []bool{false, true} {
		t.Run(fmt.Sprintf("names with files %t", together), func(t *testing.T) { crash(t, together) })
	}
}

func crash(t *testing.T, together bool) {
	const message = "Subject: x\n\nbody\n"
	for stop := 0; ; stop++ {
		finished := false
		for seed := range uint64(20) {
			fsys := mailtest.NewCrashFS()
			fsys.NamesWithFile = together
			if err := fsys.Mkdir("/mail", 0o700); err != nil {
				t.Fatal(err)
			}
			if err := durable.SyncDirOn(fsys, "/"); err != nil {
				t.Fatal(err)
			}
			fsys.StopAfter(stop)
			answered := deliver(fsys, message)
			finished = finished || answered
			found := check(t, fsys.Reboot(rand.New(rand.NewPCG(seed, uint64(stop)))), message)
			if answered && found != 1 || found > 1 {
				t.Fatalf("stopped after operation %d, cut %d: answered %v, found %d", stop, seed, answered, found)
			}
		}
		if finished {
			if stop < 10 {
				t.Fatalf("only %d operations: the file system is not used", stop)
			}
			return
		}
	}
}

func deliver(fsys durable.FS, message string) bool {
	m, err := maildir.NewSet(maildir.Options{Create: true, FS: fsys}).Open("/mail/ann")
	if err != nil {
		return false
	}
	_, err = m.Deliver(context.Background(), []byte("H: y\n"), strings.NewReader(message))
	return err == nil
}

// check counts the messages in new/; each must be whole.
func check(t *testing.T, fsys durable.FS, message string) int {
	t.Helper()
	d, err := fsys.OpenFile("/mail/ann/new", os.O_RDONLY, 0)
	if err != nil {
		return 0
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		f, err := fsys.OpenFile("/mail/ann/new/"+n, os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1000)
		k, err := f.Read(b)
		if got := string(b[:k]); got != "H: y\n"+message {
			t.Fatalf("%s holds %q (%v)", n, got, err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return len(names)
}
