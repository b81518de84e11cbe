package main

import (
	"fmt"
	"slices"
	"strings"
)

// line is one measured row: the samples of each peer and the budget they are held against.
type line struct {
	name    string
	unit    string
	against string               // the peer that the budget speaks of
	samples map[string][]float64 // by peer
	probe   []float64            // the disk's operations a second, before each round
	budget  *budget
	verdict string
	extra   string
}

// budget is a bound on our median: absolute, or as a multiple of the peer's, and perhaps as a
// part of the disk probe.
type budget struct {
	less  bool    // smaller is better
	ratio float64 // to the peer; 0: none
	abs   float64 // 0: none
	probe float64 // part of the disk probe that must be reached; 0: none
}

// report prints lines as they become complete and keeps them for the summary.
type report struct {
	open []*line
	done []*line
}

func (r *report) line(name, unit string, b *budget) *line {
	l := &line{name: name, unit: unit, against: "postfix", samples: make(map[string][]float64), budget: b}
	r.open = append(r.open, l)
	return l
}

func (l *line) add(peer string, v float64) { l.samples[peer] = append(l.samples[peer], v) }

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}

func (r *report) flush() {
	for _, l := range r.open {
		l.print()
	}
	r.done = append(r.done, r.open...)
	r.open = nil
}

func (l *line) print() {
	ours, theirs, probe := median(l.samples["ours"]), median(l.samples[l.against]), median(l.probe)
	fmt.Printf("%-46s ours %10s %-6s", l.name, number(ours), l.unit)
	if theirs > 0 {
		fmt.Printf("  %s %10s  ratio %.2f", l.against, number(theirs), ours/theirs)
	}
	if probe > 0 {
		fmt.Printf("  disk probe %s/s", number(probe))
	}
	if l.extra != "" {
		fmt.Printf("  %s", l.extra)
	}
	if l.budget != nil {
		var why string
		l.verdict, why = l.budget.judge(l.against, ours, theirs, probe)
		fmt.Printf("  budget %s: %s", why, l.verdict)
	}
	fmt.Println()
}

func (b *budget) judge(peer string, ours, theirs, probe float64) (verdict, text string) {
	ok, open := true, false
	var parts []string
	hold := func(bound float64, what string) {
		sign := "≥"
		if b.less {
			sign = "≤"
		}
		parts = append(parts, sign+" "+what)
		if bound <= 0 {
			open = true
			return
		}
		if b.less && ours > bound || !b.less && ours < bound {
			ok = false
		}
	}
	if b.ratio > 0 {
		hold(b.ratio*theirs, fmt.Sprintf("%g× %s", b.ratio, peer))
	}
	if b.abs > 0 {
		hold(b.abs, fmt.Sprintf("%g", b.abs))
	}
	if b.probe > 0 {
		hold(b.probe*probe, fmt.Sprintf("%g× the probe", b.probe))
	}
	text = strings.Join(parts, " and ")
	switch {
	case !ok:
		return "MISSED", text
	case open:
		return "not compared", text
	}
	return "met", text
}

func number(v float64) string {
	switch {
	case v == 0:
		return "-"
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
