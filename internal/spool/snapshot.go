package spool

import (
	"time"
)

// Entry is what the scheduler keeps in memory about a message, and what listing the queue
// needs without opening it. It is a hint: the message file and its attempt log are the truth,
// read again before any work.
type Entry struct {
	ID       string
	From     string // reverse-path
	To       string // the first recipient left
	Hop      string // the scheduler's word for the next hop
	Due      time.Time
	Size     int64
	Left     int32 // recipients left
	Attempts int32
	Hold     bool
}
