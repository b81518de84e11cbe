package mailbox

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Two openings of one folder in one process do not wait for each other's lock.
func TestMoveToItself(t *testing.T) {
	b := newBed(t)
	s, other := b.store(), b.store()
	for _, n := range []string{"A", "B"} {
		b.must(s.Create(t.Context(), n))
	}
	a := b.mailbox(s, "A")
	b.append(a, "one", 0, "k")
	b.append(a, "two", 0)
	v := b.view(s, "A", false)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := v.Move(ctx, []uint32{1}, b.mailbox(other, "A"))
	if err != nil || len(c.To) != 1 || c.To[0] != 3 {
		t.Fatalf("MOVE to the same folder of another Store: %v %v", c, err)
	}
	b.sync(v)
	want(t, "after MOVE", show(v), "2:* 3:+k*")
	if c, err := v.Copy(ctx, []uint32{2}, b.mailbox(other, "A")); err != nil || len(c.To) != 1 {
		t.Fatalf("COPY: %v %v", c, err)
	}
	for _, to := range []string{"0", "Z"} { // before and behind A: the locks are taken in this order
		b.must(s.Rename(t.Context(), "A", to))
		if _, err := v.Move(ctx, []uint32{2}, b.mailbox(s, to)); !errors.Is(err, ErrNotFound) {
			t.Errorf("MOVE to %s from where it was: %v", to, err)
		}
		b.must(s.Rename(t.Context(), to, "A"))
	}
}
