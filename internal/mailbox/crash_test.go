package mailbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
	"pennypost/internal/mailtest"
)

const crashRoot = "/m"

// promise is what clients were told of a folder.
type promise struct {
	validity uint32
	next     uint32
	modseq   uint64
	uids     map[uint32]string // UID to text, of messages that nobody has expunged
	flags    map[uint32]maildir.Flags
	everSeen map[uint32]uint64 // HIGHESTMODSEQ when it was last told, of all UIDs
}

// life is an account on a file system that may stop at any time, and what was promised.
type life struct {
	fs    *mailtest.CrashFS
	boot  uint64
	told  map[string]*promise
	maybe map[string]bool // texts whose fate was being decided when the machine stopped
	flux  map[string]bool // texts whose flags were
	twice map[string]bool // texts that were being copied
}

func newLife(fs *mailtest.CrashFS) *life {
	return &life{fs: fs, boot: 1, told: map[string]*promise{}, maybe: map[string]bool{}, flux: map[string]bool{}, twice: map[string]bool{}}
}

func (l *life) open() (*Store, error) {
	return Open(crashRoot, Options{FS: l.fs, Create: true, Host: "h", Boot: l.boot})
}

// hear notes what a view tells.
func (l *life) hear(v *View) error {
	p := l.told[v.m.name]
	if p == nil {
		p = &promise{validity: v.UIDValidity(), everSeen: map[uint32]uint64{}}
		l.told[v.m.name] = p
	}
	if p.validity != v.UIDValidity() {
		return fmt.Errorf("%s: UIDVALIDITY %d became %d", v.m.name, p.validity, v.UIDValidity())
	}
	uids, flags := map[uint32]string{}, map[uint32]maildir.Flags{}
	for _, m := range v.All(1, v.Len()) {
		text, err := readAll(v, m.UID)
		if err != nil {
			return err
		}
		uids[m.UID], flags[m.UID] = text, m.Flags
	}
	p.next, p.modseq, p.uids, p.flags = v.UIDNext(), v.HighestModSeq(), uids, flags
	for uid := range uids {
		p.everSeen[uid] = p.modseq
	}
	return nil
}

func readAll(v *View, uid uint32) (string, error) {
	b, err := v.Open(context.Background(), uid)
	if err != nil {
		return "", err
	}
	t, err := io.ReadAll(b)
	return string(t), errors.Join(err, b.Close())
}

// script is a life; it ends with an error when the machine stops.
func (l *life) script() error {
	ctx := context.Background()
	s, err := l.open()
	if err != nil {
		return err
	}
	if err := s.Create(ctx, "B"); err != nil {
		return err
	}
	a, err := s.Mailbox(ctx, "INBOX")
	if err != nil {
		return err
	}
	b, err := s.Mailbox(ctx, "B")
	if err != nil {
		return err
	}
	for i := range 3 {
		text := fmt.Sprint("m", i)
		l.maybe[text] = true
		c, err := a.Append(ctx, Item{Message: strings.NewReader(text)})
		if err != nil {
			return err
		}
		delete(l.maybe, text)
		if p := l.told["INBOX"]; p != nil {
			p.uids[c.To[0]] = text
		}
		if i == 0 {
			v, err := a.Select(ctx, false)
			if err != nil {
				return err
			}
			if err := l.hear(v); err != nil {
				return err
			}
		}
	}
	l.maybe["d"] = true
	if err := deliverOn(l.fs, "d"); err != nil {
		return err
	}
	delete(l.maybe, "d")
	v, err := a.Select(ctx, false)
	if err != nil {
		return err
	}
	if err := l.hear(v); err != nil {
		return err
	}
	if err := l.changes(ctx, v, b); err != nil {
		return err
	}
	w, err := b.Select(ctx, false)
	if err != nil {
		return err
	}
	if err := l.hear(w); err != nil {
		return err
	}
	return l.compact(ctx, v)
}

// changes stores flags, copies, moves and expunges.
func (l *life) changes(ctx context.Context, v *View, b *Mailbox) error {
	store := func(uid uint32, f maildir.Flags) error {
		text := l.told["INBOX"].uids[uid]
		l.flux[text] = true
		if _, err := v.Store(ctx, []uint32{uid}, FlagChange{Op: Add, Flags: f, Keywords: []string{"k"}}); err != nil {
			return err
		}
		if _, err := v.Sync(ctx); err != nil {
			return err
		}
		delete(l.flux, text)
		return l.hear(v)
	}
	if err := store(1, maildir.Seen); err != nil {
		return err
	}
	l.twice["m1"], l.flux["m1"] = true, true
	if _, err := v.Copy(ctx, []uint32{2}, b); err != nil {
		return err
	}
	delete(l.flux, "m1") // what it is twice stays so
	l.maybe["m2"] = false
	if _, err := v.Move(ctx, []uint32{3}, b); err != nil {
		return err
	}
	if err := store(2, maildir.Flagged); err != nil {
		return err
	}
	if _, err := v.Sync(ctx); err != nil {
		return err
	}
	l.maybe["d"] = true
	if _, err := v.Expunge(ctx, []uint32{4}); err != nil {
		return err
	}
	if _, err := v.Sync(ctx); err != nil {
		return err
	}
	delete(l.maybe, "d")
	return l.hear(v)
}

// compact has the uidlist and the index written anew.
func (l *life) compact(ctx context.Context, v *View) error {
	err := v.m.write(ctx, func(w *writer) error {
		lock, err := w.m.lockList(ctx)
		if err != nil {
			return err
		}
		defer w.m.unlockList(lock)
		w.m.suspect = true // reserves MODSEQs
		return w.scanHeld(ctx, lock, nil, false)
	})
	if err != nil {
		return err
	}
	if err := v.m.write(ctx, func(w *writer) error { return w.snapshot(w.st) }); err != nil {
		return err
	}
	if _, err := v.Sync(ctx); err != nil {
		return err
	}
	return l.hear(v)
}

func deliverOn(fs durable.FS, text string) error {
	m, err := maildir.NewSet(maildir.Options{FS: fs}).Open(crashRoot)
	if err != nil {
		return err
	}
	_, err = m.Deliver(context.Background(), nil, strings.NewReader(text))
	return err
}

// check compares what is there after a reboot with what was promised.
func (l *life) check() error {
	ctx := context.Background()
	s, err := l.open()
	if err != nil {
		return err
	}
	count := map[string]int{}
	for _, name := range []string{"INBOX", "B"} {
		p := l.told[name]
		m, err := s.Mailbox(ctx, name)
		if errors.Is(err, ErrNotFound) && p == nil {
			continue
		}
		if err != nil {
			return err
		}
		v, err := m.Select(ctx, false)
		if err != nil {
			return err
		}
		for _, x := range v.All(1, v.Len()) {
			text, err := readAll(v, x.UID)
			if err != nil {
				return err
			}
			count[text]++
			if p == nil {
				continue
			}
			was, known := p.uids[x.UID]
			switch {
			case known && was != text:
				return fmt.Errorf("%s: UID %d was %q and is %q", name, x.UID, was, text)
			case !known && x.UID < p.next:
				return fmt.Errorf("%s: UID %d (%q) is below UIDNEXT %d that was told, and is new", name, x.UID, text, p.next)
			case known && x.Flags != p.flags[x.UID] && p.flags[x.UID] != 0 && !l.flux[text]:
				return fmt.Errorf("%s: flags of %q were %v and are %v", name, text, p.flags[x.UID], x.Flags)
			}
		}
		if p == nil {
			continue
		}
		if err := l.kept(v, p); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for text, n := range count {
		most := 1
		if l.twice[text] {
			most = 2
		}
		if n > most {
			return fmt.Errorf("%q is there %d times", text, n)
		}
	}
	for _, p := range l.told {
		for _, text := range p.uids {
			if count[text] == 0 && !l.maybe[text] {
				return fmt.Errorf("%q is lost", text)
			}
		}
	}
	return nil
}

// kept checks numbers that never go back, and that a client hears of what is gone.
func (l *life) kept(v *View, p *promise) error {
	if v.UIDValidity() != p.validity {
		return fmt.Errorf("UIDVALIDITY %d became %d", p.validity, v.UIDValidity())
	}
	if v.UIDNext() < p.next || v.HighestModSeq() < p.modseq {
		return fmt.Errorf("UIDNEXT %d became %d, HIGHESTMODSEQ %d became %d", p.next, v.UIDNext(), p.modseq, v.HighestModSeq())
	}
	for uid, mod := range p.everSeen {
		if v.Seq(uid) == 0 && len(v.VanishedSince(mod, []Range{{uid, uid}})) == 0 {
			return fmt.Errorf("UID %d is gone and a client that knew MODSEQ %d does not hear of it", uid, mod)
		}
	}
	if v.HighestModSeq() == p.modseq {
		for uid, text := range p.uids {
			if seq := v.Seq(uid); seq > 0 && v.At(seq).Flags != p.flags[uid] && p.flags[uid] != 0 && !l.flux[text] {
				return fmt.Errorf("flags of UID %d changed and HIGHESTMODSEQ did not", uid)
			}
		}
	}
	return nil
}

// reboot is the life after a stop: the process is dead, or the power was cut.
func (l *life) reboot(cut *rand.Rand) *life {
	n := newLife(l.fs.Reboot(cut))
	n.told, n.maybe, n.flux, n.twice = maps.Clone(l.told), l.maybe, l.flux, l.twice
	if cut != nil {
		n.boot = l.boot + 1
	}
	for _, dir := range []string{crashRoot, crashRoot + "/.B"} {
		// The holder of a lock lives on in this test; internal/maildir has the case of a dead one.
		if err := n.fs.Remove(dir + "/" + maildir.UIDListName + ".lock"); err != nil && !errors.Is(err, os.ErrNotExist) {
			panic(err)
		}
	}
	return n
}

func TestCrash(t *testing.T) {
	t.Parallel()
	whole := newLife(mailtest.NewCrashFS())
	if err := whole.script(); err != nil {
		t.Fatal(err)
	}
	if err := whole.reboot(nil).check(); err != nil {
		t.Fatalf("without a stop: %v", err)
	}
	total := whole.fs.Ops()
	if total < 100 {
		t.Fatalf("only %d operations", total)
	}
	for stop := crashFirst; stop < total; stop += crashStride {
		l := newLife(mailtest.NewCrashFS())
		l.fs.StopAfter(stop)
		if err := l.script(); !errors.Is(err, mailtest.ErrCrashed) && err != nil {
			t.Fatalf("stop %d: %v", stop, err)
		}
		for seed := range crashSeeds {
			var cut *rand.Rand
			if seed > 0 {
				cut = rand.New(rand.NewPCG(uint64(stop), seed))
			}
			n := l.reboot(cut)
			if err := n.check(); err != nil {
				t.Fatalf("stop %d of %d, seed %d: %v\n%s", stop, total, seed, err, n.files())
			}
			// A second stop, without a change between, finds the same.
			if err := n.reboot(nil).check(); err != nil {
				t.Fatalf("stop %d of %d, seed %d, again: %v", stop, total, seed, err)
			}
		}
	}
}

func (l *life) files() string {
	var b strings.Builder
	for _, d := range []string{"", "/new", "/cur", "/tmp", "/.B", "/.B/cur"} {
		names := l.fs.Names(crashRoot + d)
		slices.Sort(names)
		fmt.Fprintf(&b, "%s: %v\n", d, names)
	}
	return b.String()
}
