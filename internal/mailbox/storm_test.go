package mailbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// The storms run this test binary again as other processes; the variable says as what.
const stormRole = "PENNYPOST_STORM_ROLE"

func TestStormWorker(t *testing.T) {
	role, dir, _ := strings.Cut(os.Getenv(stormRole), " ")
	switch role {
	case "":
		t.Skip("not a process of a storm")
	case "renamer":
		if err := renamer(dir); err != nil {
			t.Fatal(err)
		}
	default:
		w := &stormer{name: role, dir: dir, rng: rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(time.Now().UnixNano())))}
		if err := w.run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func startStorm(t *testing.T, role, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestStormWorker$", "-test.count=1")
	cmd.Env = append(os.Environ(), stormRole+"="+role+" "+dir)
	out, err := os.OpenFile(filepath.Join(filepath.Dir(dir), "out"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func stopStorm(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if cmd.ProcessState != nil {
		t.Fatal("a process of the storm has ended by itself")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("a process of the storm has ended by itself")
	} else if s := cmd.ProcessState.String(); !strings.Contains(s, "killed") {
		t.Errorf("a process of the storm: %s", s)
	}
}

// renamer toggles flags as fast as it can, like several programs that know nothing of us.
func renamer(dir string) error {
	d, err := durable.OpenNames(durable.OS{}, filepath.Join(dir, "cur"))
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(uint64(os.Getpid()), 1))
	for {
		names, err := os.ReadDir(filepath.Join(dir, "cur"))
		if err != nil {
			return err
		}
		for range names {
			n := maildir.ParseName(names[rng.IntN(len(names))].Name())
			to := n.With(n.Flags^maildir.Flags(1<<rng.IntN(6)), n.Keywords)
			if err := d.RenameNew(n.String(), d, to.String()); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
}

// A message that others rename all the time is never taken for expunged.
func TestNoFalseExpunge(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	s := b.store()
	in := b.mailbox(s, "INBOX")
	n := 0
	if _, err := in.AppendAll(t.Context(), func() (Item, error) {
		if n++; n > renameMessages {
			return Item{}, io.EOF
		}
		return Item{Message: strings.NewReader(fmt.Sprint(n))}, nil
	}); err != nil {
		t.Fatal(err)
	}
	v := b.view(s, "INBOX", false)
	for range 3 {
		cmd := startStorm(t, "renamer", b.root)
		defer stopStorm(t, cmd)
	}
	changed, scans := 0, 0
	for end := time.Now().Add(renameTime); time.Now().Before(end); scans++ {
		ch := b.sync(v)
		if len(ch.Expunged) > 0 || v.Len() != renameMessages {
			t.Fatalf("scan %d: %d expunged, %d left", scans, len(ch.Expunged), v.Len())
		}
		changed += len(ch.Changed)
		if _, err := v.Open(t.Context(), uint32(1+scans%renameMessages)); err != nil {
			t.Fatalf("scan %d: %v", scans, err)
		}
	}
	if changed < renameMessages/10 || scans < 3 {
		t.Errorf("%d changes in %d scans: that was no storm", changed, scans)
	}
}

// stormer is one process of four that use one account. It writes down what it does.
type stormer struct {
	name, dir string
	rng       *rand.Rand
	log       *os.File
	seen      map[string]bool
	count     int
}

func (w *stormer) say(format string, args ...any) error {
	_, err := fmt.Fprintf(w.log, format+"\n", args...)
	return err
}

func (w *stormer) run(ctx context.Context) (err error) {
	w.log, err = os.OpenFile(filepath.Join(filepath.Dir(w.dir), "log."+w.name), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	w.seen = map[string]bool{}
	s, err := Open(w.dir, Options{Host: w.name})
	if err != nil {
		return err
	}
	boxes, views := map[string]*Mailbox{}, map[string]*View{}
	for _, n := range []string{"INBOX", "B"} {
		if boxes[n], err = s.Mailbox(ctx, n); err != nil {
			return err
		}
		if views[n], err = boxes[n].Select(ctx, false); err != nil {
			return err
		}
	}
	for {
		n, other := "INBOX", "B"
		if w.rng.IntN(3) == 0 {
			n, other = other, n
		}
		if err := w.step(ctx, views[n], boxes[other]); err != nil && !errors.Is(err, ErrExpunged) {
			return err
		}
		if err := w.look(ctx, views[n]); err != nil {
			return err
		}
	}
}

// look syncs a view and writes down what it tells.
func (w *stormer) look(ctx context.Context, v *View) error {
	if _, err := v.Sync(ctx); err != nil {
		return err
	}
	for _, m := range v.All(1, v.Len()) {
		key := fmt.Sprint(v.m.name, " ", m.UID)
		if w.seen[key] {
			continue
		}
		text, err := readAll(v, m.UID)
		if errors.Is(err, ErrExpunged) {
			continue
		}
		if err != nil {
			return err
		}
		w.seen[key] = true
		if err := w.say("U %s %d %s", key, v.UIDValidity(), text); err != nil {
			return err
		}
	}
	return w.say("H %s %d %d", v.m.name, v.HighestModSeq(), v.UIDNext())
}

func (w *stormer) step(ctx context.Context, v *View, other *Mailbox) error {
	if v.Len() < 3 || w.rng.IntN(3) == 0 {
		w.count++
		text := fmt.Sprintf("%s-%d-%d", w.name, os.Getpid(), w.count)
		if w.rng.IntN(2) == 0 {
			d, err := maildir.NewSet(maildir.Options{Host: w.name}).Open(w.dir)
			if err != nil {
				return err
			}
			if _, err := d.Deliver(ctx, nil, strings.NewReader(text)); err != nil {
				return err
			}
		} else if _, err := v.m.Append(ctx, Item{Message: strings.NewReader(text)}); err != nil {
			return err
		}
		return w.say("A %s", text)
	}
	uid := v.At(1 + w.rng.IntN(v.Len())).UID
	switch w.rng.IntN(5) {
	case 0:
		_, err := v.Move(ctx, []uint32{uid}, other)
		return err
	case 1:
		text, err := readAll(v, uid)
		if err == nil {
			err = w.say("E %s", text)
		}
		if err == nil {
			_, err = v.Expunge(ctx, []uint32{uid})
		}
		return err
	}
	_, err := v.Store(ctx, []uint32{uid}, FlagChange{Op: Op(w.rng.IntN(3)), Flags: maildir.Flags(1 << w.rng.IntN(6)), Keywords: []string{"k"}})
	return err
}

// Four processes deliver, flag, move and expunge in one account and are killed again and again:
// nothing is lost or doubled, and no UID stands for two messages.
func TestKillStorm(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	s := b.store()
	if err := s.Create(t.Context(), "B"); err != nil {
		t.Fatal(err)
	}
	b.view(s, "INBOX", true)
	procs := make([]*exec.Cmd, 4)
	for i := range procs {
		procs[i] = startStorm(t, fmt.Sprint("w", i), b.root)
	}
	kills := 0
	for end := time.Now().Add(stormTime); time.Now().Before(end); kills++ {
		time.Sleep(time.Duration(20+rand.IntN(200)) * time.Millisecond) // until the next blow
		i := rand.IntN(len(procs))
		stopStorm(t, procs[i])
		procs[i] = startStorm(t, fmt.Sprint("w", i), b.root)
	}
	for _, p := range procs {
		stopStorm(t, p)
	}
	b.settleStorm()
	// What the killed have left behind are locks, never damage.
	if err := s.Check(t.Context(), CheckOptions{Repair: true, Read: true, Report: func(f Finding) {
		if f.Serious || !f.Repaired {
			t.Errorf("check: %+v", f)
		}
	}}); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		out, _ := os.ReadFile(filepath.Join(filepath.Dir(b.root), "out"))
		t.Logf("%s", out)
	}
	t.Logf("%d kills", kills)
}

// settleStorm compares what is there with what the processes wrote down.
func (b *bed) settleStorm() {
	b.Helper()
	added, expunged, uids := map[string]bool{}, map[string]bool{}, map[string]string{}
	for i := range 4 {
		f, err := os.Open(filepath.Join(filepath.Dir(b.root), fmt.Sprint("log.w", i)))
		if err != nil {
			b.Fatal(err)
		}
		high := map[string][2]uint64{}
		for sc := bufio.NewScanner(f); sc.Scan(); {
			w := strings.Fields(sc.Text())
			switch {
			case len(w) == 2 && w[0] == "A":
				added[w[1]] = true
			case len(w) == 2 && w[0] == "E":
				expunged[w[1]] = true
			case len(w) == 5 && w[0] == "U":
				key := strings.Join(w[1:4], " ")
				if was, ok := uids[key]; ok && was != w[4] {
					b.Errorf("UID %s was %s and is %s", key, was, w[4])
				}
				uids[key] = w[4]
			case len(w) == 4 && w[0] == "H":
				var mod, next uint64
				n, _ := fmt.Sscan(w[2]+" "+w[3], &mod, &next) // a killed process leaves half a line
				if n == 2 && (mod < high[w[1]][0] || next < high[w[1]][1]) {
					b.Errorf("%s: HIGHESTMODSEQ %d after %d, UIDNEXT %d after %d", w[1], mod, high[w[1]][0], next, high[w[1]][1])
				}
				high[w[1]] = [2]uint64{mod, next}
			}
		}
		f.Close()
	}
	count := map[string]int{}
	views := []*View{}
	s := b.store()
	for _, n := range []string{"INBOX", "B"} {
		views = append(views, b.view(s, n, false))
	}
	// The last delivery may hide for a second: it came in one tick with the last scan.
	for end := time.Now().Add(3 * settleTime); time.Now().Before(end); time.Sleep(settleTime / 20) {
		clear(count)
		for _, v := range views {
			b.sync(v)
			for _, m := range v.All(1, v.Len()) {
				text := b.text(v, m.UID)
				count[text]++
				if was, ok := uids[fmt.Sprintf("%s %d %d", v.m.name, m.UID, v.UIDValidity())]; ok && was != text {
					b.Errorf("UID %d of %s was %s and is %s", m.UID, v.m.name, was, text)
				}
			}
		}
		missing := 0
		for text := range added {
			if count[text] == 0 && !expunged[text] {
				missing++
			}
		}
		if missing == 0 {
			break
		}
	}
	for text, n := range count {
		if n > 1 {
			b.Errorf("%s is there %d times", text, n)
		}
	}
	for text := range added {
		if count[text] == 0 && !expunged[text] {
			b.Errorf("%s is lost; on disk: %v", text, b.onDisk(text))
		}
	}
	if len(added) < 20 || len(uids) < 20 {
		b.Errorf("%d messages, %d UIDs: that was no storm", len(added), len(uids))
	}
	b.Logf("%d messages, %d expunged, %d UIDs told, %d left", len(added), len(expunged), len(uids), len(count))
}

// onDisk lists the files with a text, for the report of a loss.
func (b *bed) onDisk(text string) (paths []string) {
	_ = filepath.WalkDir(b.root, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if t, err := os.ReadFile(p); err == nil && string(t) == text {
				paths = append(paths, strings.TrimPrefix(p, b.root))
			}
		}
		return nil
	})
	return paths
}
