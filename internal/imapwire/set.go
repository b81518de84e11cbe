package imapwire

import (
	"cmp"
	"slices"
	"strconv"
)

// Range is a part of a sequence set, ends included. 0 stands for "*".
type Range struct{ From, To uint32 }

// Set is a sequence set (RFC 9051 §9, sequence-set).
type Set []Range

// Set takes a sequence set. What a client repeats or gives out of order stays so: Resolve
// puts it in order.
func (r *Reader) Set() Set {
	var s Set
	for r.err == nil {
		g := Range{From: r.setNumber()}
		if g.To = g.From; r.Is(':') {
			g.To = r.setNumber()
		}
		s = append(s, g)
		if !r.Is(',') {
			break
		}
	}
	if r.err != nil {
		return nil
	}
	return s
}

func (r *Reader) setNumber() uint32 {
	if r.Is('*') {
		return 0
	}
	n := r.Number()
	if n == 0 && r.err == nil {
		r.Fail("0 is no message number")
	}
	return n
}

// Resolve returns s in ascending order without overlaps, "*" being last (RFC 9051 §9: of an
// empty mailbox 0, then what "*" names is nothing).
func (s Set) Resolve(last uint32) Set {
	out := make(Set, 0, len(s))
	for _, g := range s {
		star := g.From == 0 || g.To == 0
		if g.From == 0 {
			g.From = last
		}
		if g.To == 0 {
			g.To = last
		}
		if g.From > g.To { // the order of the two does not matter
			g.From, g.To = g.To, g.From
		}
		if star && last == 0 {
			continue
		}
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b Range) int { return cmp.Compare(a.From, b.From) })
	n := 0
	for _, g := range out {
		if n > 0 && uint64(g.From) <= uint64(out[n-1].To)+1 {
			out[n-1].To = max(out[n-1].To, g.To)
			continue
		}
		out[n] = g
		n++
	}
	return out[:n]
}

// Contains tells whether n is in s, which Resolve has made.
func (s Set) Contains(n uint32) bool {
	_, found := slices.BinarySearchFunc(s, n, func(g Range, n uint32) int {
		switch {
		case g.To < n:
			return -1
		case g.From > n:
			return 1
		}
		return 0
	})
	return found
}

// Add puts n behind s, joined to its last range where that is possible.
func (s Set) Add(n uint32) Set {
	if k := len(s); k > 0 && s[k-1].To+1 == n && n > 1 {
		s[k-1].To = n
		return s
	}
	return append(s, Range{n, n})
}

// AppendSet appends s as it is written.
func AppendSet(dst []byte, s Set) []byte {
	for i, g := range s {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendNumber(dst, g.From)
		if g.From != g.To {
			dst = appendNumber(append(dst, ':'), g.To)
		}
	}
	return dst
}

func appendNumber(dst []byte, n uint32) []byte {
	if n == 0 {
		return append(dst, '*')
	}
	return strconv.AppendUint(dst, uint64(n), 10)
}
