package message

import (
	"bytes"
	"time"
)

// date reads a date-time (RFC 5322 §3.3 and §4.3): seconds since 1970 and minutes east of
// UTC.
func date(v []byte) (unix int64, zone int, ok bool) {
	l := lexer{b: v}
	l.space()
	if w := l.run(classAtext); len(w) > 0 && !digit(w[0]) { // day of the week
		l.space()
		if l.at(',') {
			l.i++
		}
		l.space()
		v = l.b[l.i:]
	}
	l = lexer{b: v}
	l.space()
	day, ok1 := l.number(2)
	l.dash()
	month, ok2 := l.month()
	l.dash()
	year, ok3 := l.year()
	l.space()
	hour, ok4 := l.number(2)
	if !ok1 || !ok2 || !ok3 || !ok4 || day < 1 || day > 31 || hour > 23 {
		return 0, 0, false
	}
	minute, ok5 := l.after(':')
	second, _ := l.after(':')
	if !ok5 || minute > 59 || second > 60 {
		return 0, 0, false
	}
	l.space()
	zone = l.zone()
	t := time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC)
	return t.Unix() - int64(zone)*60, zone, true
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// number reads at most limit digits.
func (l *lexer) number(limit int) (n int, ok bool) {
	start := l.i
	for l.i < len(l.b) && l.i-start < limit && digit(l.b[l.i]) {
		n = 10*n + int(l.b[l.i]-'0')
		l.i++
	}
	return n, l.i > start
}

// dash skips what separates day, month and year; some write dashes.
func (l *lexer) dash() {
	l.space()
	if l.at('-') {
		l.i++
	}
	l.space()
}

func (l *lexer) month() (int, bool) {
	const names = "janfebmaraprmayjunjulaugsepoctnovdec"
	if len(l.b)-l.i < 3 {
		return 0, false
	}
	var w [3]byte
	copy(w[:], l.b[l.i:])
	i := bytes.Index([]byte(names), lower(w[:]))
	if i < 0 || i%3 != 0 {
		return 0, false
	}
	for l.i += 3; l.i < len(l.b) && class(l.b[l.i]) == classAtext|classToken && !digit(l.b[l.i]) && l.b[l.i] != '-'; l.i++ {
		// "June", "Sept"
	}
	return i/3 + 1, true
}

// year reads a year of two, three or four digits (RFC 5322 §4.3).
func (l *lexer) year() (int, bool) {
	start := l.i
	n, ok := l.number(4)
	switch l.i - start {
	case 2:
		if n < 50 {
			return n + 2000, ok
		}
		return n + 1900, ok
	case 3:
		return n + 1900, ok
	}
	return n, ok
}

// after reads a number that a separator precedes.
func (l *lexer) after(sep byte) (int, bool) {
	l.space()
	if !l.at(sep) && !l.at('.') {
		return 0, false
	}
	l.i++
	l.space()
	return l.number(2)
}

// zone reads a zone, in minutes; what is unknown is UTC (RFC 5322 §4.3, "-0000").
func (l *lexer) zone() int {
	if l.at('+') || l.at('-') {
		west := l.at('-')
		l.i++
		start := l.i
		n, _ := l.number(4)
		if l.i-start != 4 || n%100 > 59 {
			return 0
		}
		if n = n/100*60 + n%100; west {
			return -n
		}
		return n
	}
	var w [3]byte
	name := l.run(classAtext)
	if len(name) != 3 {
		return 0
	}
	copy(w[:], name)
	switch string(lower(w[:])) {
	case "edt":
		return -4 * 60
	case "est", "cdt":
		return -5 * 60
	case "cst", "mdt":
		return -6 * 60
	case "mst", "pdt":
		return -7 * 60
	case "pst":
		return -8 * 60
	}
	return 0
}
