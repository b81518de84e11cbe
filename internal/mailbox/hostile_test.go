package mailbox

import (
	"context"
	"testing"
	"time"
)

// A folder that another process deletes and makes again has another lock file: one who had the
// old one open must not go on with that.
func TestLockOfFolderMadeAgain(t *testing.T) {
	b := newBed(t)
	s, other := b.store(), b.store()
	b.must(s.Create(t.Context(), "A"))
	m := b.mailbox(s, "A")
	b.append(m, "one", 0)
	b.must(other.Delete(t.Context(), "A"))
	b.must(other.Create(t.Context(), "A"))
	o := b.mailbox(other, "A")
	b.must(o.enter(t.Context()))
	defer o.leave()
	unlock, err := o.lock(t.Context())
	b.must(err)
	defer unlock()
	b.must(m.enter(t.Context()))
	defer m.leave()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.lock(ctx); err == nil {
		t.Error("two have the lock of one index")
	}
}

func (b *bed) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
