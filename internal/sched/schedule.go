package sched

import "time"

// defaultRetry is used where neither route nor Options have a table.
var defaultRetry = [...]time.Duration{
	5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour,
}

// minAttempts is how often a message is tried before it may expire, however old it is: a host
// that was off for a week, or a clock set wrong, must not bounce what it finds.
const minAttempts = 3

// interval is the pause after the n-th attempt, n from 1, spread by a tenth to both sides so
// that messages deferred together do not come back together. rnd is in [0,1).
func interval(table []time.Duration, n int, rnd float64) time.Duration {
	if len(table) == 0 {
		table = defaultRetry[:]
	}
	d := table[min(max(n, 1), len(table))-1]
	return d + time.Duration((rnd-0.5)*0.2*float64(d))
}

// longest is the longest pause of a table, spread included.
func longest(table []time.Duration) time.Duration {
	if len(table) == 0 {
		table = defaultRetry[:]
	}
	var m time.Duration
	for _, d := range table {
		m = max(m, d)
	}
	return m + m/10
}

// troublePause is how long a message waits whose worker died or broke the protocol while it
// was in its hands. Most often the worker was only restarted; a message that kills it each time
// soon waits as long as any other.
func troublePause(n int, table []time.Duration, rnd float64) time.Duration {
	short := []time.Duration{time.Second, 10 * time.Second, time.Minute}
	if n <= len(short) {
		return min(short[max(n, 1)-1], interval(table, 1, rnd))
	}
	return interval(table, n-len(short), rnd)
}
