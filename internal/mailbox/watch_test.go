package mailbox

import (
	"context"
	"testing"
	"time"
)

func TestWatch(t *testing.T) {
	for _, alone := range []bool{false, true} {
		b := newBed(t)
		if !alone {
			b.o.Watcher = NewWatcher()
			if b.o.Watcher.events == nil {
				t.Log("this system tells nothing about directories")
			}
		}
		s := b.store()
		v := b.view(s, "INBOX", false)
		ctx, cancel := context.WithCancel(t.Context())
		chans := []<-chan struct{}{v.m.Watch(ctx), v.m.Watch(t.Context())}
		for _, ch := range chans {
			<-ch // at once, for what happened before
		}
		b.deliver(b.root, "x")
		deadline := time.After(10 * time.Second)
		for _, ch := range chans {
			for b.sync(v); v.Len() == 0; b.sync(v) {
				select {
				case <-ch:
				case <-deadline:
					t.Fatal("nobody told of a delivery")
				}
			}
		}
		cancel()
		if !alone {
			if err := b.o.Watcher.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
