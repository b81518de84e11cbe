package main

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"pennypost/internal/submit"
)

// watchAfter is how much of a message goes by before signals are caught. Nothing of a shorter one
// is in the spool while it is read, so an interrupt may end the process as it ends any filter; and
// the short ones are those for which the threads of a handler would be felt.
const watchAfter = 64 << 10

var errInterrupted = errors.New("interrupted")

// interrupt makes a long message fail when the user, or the system, wants the tool to end, so that
// its unfinished file is removed. It is used by one goroutine.
type interrupt struct {
	seen   int64
	caught chan os.Signal // nil: not watching
	sig    os.Signal      // that made the message fail
}

// count notes octets that have gone by.
func (i *interrupt) count(n int) {
	if i.seen += int64(n); i.seen < watchAfter || i.caught != nil {
		return
	}
	i.caught = make(chan os.Signal, 1)
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // by nohup, or a shell in the background
			signal.Notify(i.caught, s)
		}
	}
}

// stop leaves signals to the system again.
func (i *interrupt) stop() {
	if i.caught != nil {
		signal.Stop(i.caught)
	}
}

// die ends the process by the signal that was caught, as it would have ended without us: whoever
// waits for it is told the truth. Where it returns, there was none.
func (i *interrupt) die() {
	if s, ok := i.sig.(syscall.Signal); ok && syscall.Kill(os.Getpid(), s) == nil {
		time.Sleep(time.Second) // the runtime dies in its own time
	}
}

// reader is r, whose Read ends when a signal comes: a pipe may be silent for hours.
func (i *interrupt) reader(r io.Reader) io.Reader { return &watchedReader{i, r} }

type watchedReader struct {
	i *interrupt
	r io.Reader
}

type readResult struct {
	n   int
	err error
}

func (w *watchedReader) Read(p []byte) (int, error) {
	if w.i.caught == nil {
		n, err := w.r.Read(p)
		w.i.count(n)
		return n, err
	}
	done := make(chan readResult, 1)
	go func() {
		n, err := w.r.Read(p)
		done <- readResult{n, err}
	}()
	select {
	case r := <-done:
		return r.n, r.err
	case w.i.sig = <-w.i.caught:
		// The goroutine may write to p when something comes; nobody reads that any more.
		return 0, errInterrupted
	}
}

// writer is m, whose Write fails when a signal has come: a composed message may be long without
// anything being read from standard input.
func (i *interrupt) writer(m *submit.Message) io.Writer { return &watchedWriter{i, m} }

type watchedWriter struct {
	i *interrupt
	m *submit.Message
}

func (w *watchedWriter) Write(p []byte) (int, error) {
	select {
	case w.i.sig = <-w.i.caught: // of a nil channel nothing comes
		return 0, errInterrupted
	default:
	}
	n, err := w.m.Write(p)
	w.i.count(n)
	return n, err
}
