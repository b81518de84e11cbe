package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// signalContext is done when SIGINT or SIGTERM arrives. The signals are caught from the first
// time that somebody looks: a tool that never does so dies of them as any filter does, and
// does not pay for the catching at each start (a fifth of a millisecond).
type signalContext struct {
	context.Context
	cancel context.CancelFunc
	once   sync.Once
}

func newSignalContext() *signalContext {
	ctx, cancel := context.WithCancel(context.Background())
	return &signalContext{Context: ctx, cancel: cancel}
}

func (c *signalContext) watch() {
	c.once.Do(func() {
		caught := make(chan os.Signal, 1)
		signal.Notify(caught, os.Interrupt, syscall.SIGTERM)
		go func() {
			<-caught
			c.cancel()
		}()
	})
}

// Done makes every context derived from c watch too: deriving asks for it.
func (c *signalContext) Done() <-chan struct{} {
	c.watch()
	return c.Context.Done()
}

func (c *signalContext) Err() error {
	c.watch()
	return c.Context.Err()
}
