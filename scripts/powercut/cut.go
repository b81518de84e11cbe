package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"pennypost/internal/spool"
)

// ack is a message that the program under test called safe when the disk had seen at records.
type ack struct {
	at    int
	token string
}

// outcome is what the cuts of one case showed.
type outcome struct {
	acks, flushes int
	cuts, checked int
	lossy, worst  int
	torn          int // messages readers would take for whole ones, and that are not
	unmountable   int
	firstLost     string
}

func (o *outcome) loss() bool { return o.lossy+o.torn+o.unmountable > 0 }

// after builds what the disk holds when the power fails after n records. What was written
// before the last flush is there. Of the rest, mode 0 keeps nothing, mode 1 everything, mode 2
// each sector or not.
func after(base *image, log []rec, n, mode int, rng *rand.Rand) *image {
	img := base.clone()
	last := 0
	for i := range n {
		if log[i].flush {
			last = i
		}
	}
	for i, r := range log[:n] {
		switch {
		case r.flush:
		case i < last || mode == 1:
			img.writeAt(r.data, r.off)
		case mode == 2:
			for o := 0; o < len(r.data); o += 512 {
				if rng.IntN(2) == 0 {
					img.writeAt(r.data[o:min(o+512, len(r.data))], r.off+int64(o))
				}
			}
		}
	}
	return img
}

// where picks the moment of cut k: every other one right after an acknowledgement, when the
// newest message has had no help from what came later.
func where(log []rec, acks []ack, k int, rng *rand.Rand) int {
	if k%2 == 0 && len(acks) > 0 {
		return acks[rng.IntN(len(acks))].at
	}
	return rng.IntN(len(log) + 1)
}

// cut fails the power of a case several times and looks at what is left.
func (l *lab) cut(c *testcase, base *image, log []rec, acks []ack, rng *rand.Rand) (*outcome, error) {
	o := &outcome{acks: len(acks), flushes: flushes(log)}
	for k := range c.cuts {
		n := where(log, acks, k, rng)
		mark := len(l.undo)
		_, dev, err := l.attach(after(base, log, n, k%3, rng))
		if err != nil {
			return o, err
		}
		o.cuts++
		dir, err := l.mount(dev, c.mount)
		if err != nil {
			o.unmountable++
		} else {
			var whole map[string]bool
			if whole, err = c.scan(filepath.Join(dir, "d"), o); err != nil {
				return o, err
			}
			o.compare(whole, acks, n)
		}
		if err := l.back(mark); err != nil {
			return o, err
		}
	}
	return o, nil
}

func (o *outcome) compare(whole map[string]bool, acks []ack, n int) {
	lost := 0
	for _, a := range acks {
		if a.at > n {
			continue
		}
		o.checked++
		if !whole[a.token] {
			lost++
			if o.firstLost == "" {
				o.firstLost = a.token
			}
		}
	}
	if lost > 0 {
		o.lossy++
		o.worst = max(o.worst, lost)
	}
}

// scanSpool finds the whole messages of a spool, read by the spool's own reader.
func scanSpool(dir string, o *outcome) (map[string]bool, error) {
	s, err := spool.Open(dir, spool.Options{})
	if err != nil {
		return nil, nil // not even the spool survived: everything is lost
	}
	whole := map[string]bool{}
	v := s.View()
	for id, err := range v.Incoming() {
		if err != nil {
			return nil, err
		}
		m, err := v.OpenIncoming(id)
		if err != nil {
			continue // torn, and the reader says so
		}
		b, err := io.ReadAll(m.Body())
		if err != nil {
			return nil, err
		}
		if err := m.Close(); err != nil {
			return nil, err
		}
		o.take(whole, b)
	}
	return whole, s.Close()
}

// scanMaildir finds the whole messages of a Maildir, and of those below it. A torn file in new/ is a fault even
// when nobody was promised it: mail readers show it.
func scanMaildir(dir string, o *outcome) (map[string]bool, error) {
	whole := map[string]bool{}
	paths, err1 := filepath.Glob(filepath.Join(dir, "new", "*"))
	others, err2 := filepath.Glob(filepath.Join(dir, "*", "new", "*"))
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	for _, p := range append(paths, others...) {
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		o.take(whole, b)
	}
	return whole, nil
}

// take enters a message that a reader would show. Programs may put header lines before it.
func (o *outcome) take(whole map[string]bool, b []byte) {
	token := tokenOf(b)
	want := message(token)
	body := want[bytes.Index(want, []byte("\n\n")):]
	if token == "" || !bytes.HasSuffix(b, body) {
		o.torn++
		return
	}
	whole[token] = true
}

func (o *outcome) String() string {
	s := fmt.Sprintf("%4d acks %5.2f flushes/ack %3d cuts %6d checked", o.acks, float64(o.flushes)/float64(max(o.acks, 1)), o.cuts, o.checked)
	if o.loss() {
		s += fmt.Sprintf(", LOSS in %d cuts (worst %d, %d torn, %d unmountable)", o.lossy, o.worst, o.torn, o.unmountable)
	}
	return s
}
