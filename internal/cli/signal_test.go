package cli

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"
)

func TestSignalEndsContext(t *testing.T) {
	c := newSignalContext()
	derived, cancel := context.WithTimeout(c, time.Minute) // starts the watching
	defer cancel()
	if derived.Err() != nil {
		t.Fatal(derived.Err())
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-derived.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("SIGTERM did not end the context")
	}
	if !errors.Is(c.Err(), context.Canceled) {
		t.Errorf("got %v", c.Err())
	}
}
