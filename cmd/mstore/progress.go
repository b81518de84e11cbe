package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"pennypost/internal/cli"
)

// progress shows on a terminal how far the work is; elsewhere it is silent.
type progress struct {
	w    io.Writer // nil: no terminal
	last time.Time
	long int
}

func newProgress(w io.Writer) *progress {
	p := &progress{}
	if f, ok := w.(*os.File); ok {
		if fi, err := f.Stat(); err == nil && fi.Mode()&os.ModeCharDevice != 0 {
			p.w = w
		}
	}
	return p
}

// show writes over what it wrote before, ten times a second at most.
func (p *progress) show(what string, done, of int) {
	now := time.Now()
	if p.w == nil || now.Sub(p.last) < 100*time.Millisecond {
		return
	}
	p.last = now
	text := fmt.Sprintf("%s %d/%d", cli.Escape(what, 0), done, of) // servers name mailboxes
	fmt.Fprintf(p.w, "\r%-*s", p.long, text)
	p.long = len(text)
}

// clear takes the line back before a result is printed.
func (p *progress) clear() {
	if p.w != nil && p.long > 0 {
		fmt.Fprintf(p.w, "\r%*s\r", p.long, "")
		p.long = 0
	}
}
