package smtp

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// tooLate tells whether the message must not go on: its time is over, and it was to be returned
// then (RFC 2852 §4.1.3).
func (t *Transaction) tooLate() bool {
	return t.By != nil && t.By.Mode == "R" && t.Left < time.Second
}

// timely writes the deadline and the priority down for a peer that knows them.
func (s *clientSend) timely(b []byte) []byte {
	if by := s.t.By; by != nil && s.ext.DeliverBy && (by.Mode == "N" || by.Mode == "R") {
		// RFC 2852 §4: nine digits at most.
		left := max(-999999999, min(int64(s.t.Left/time.Second), 999999999))
		b = strconv.AppendInt(append(b, " BY="...), left, 10)
		b = append(append(b, ';'), by.Mode...)
		if by.Trace {
			b = append(b, 'T')
		}
	}
	if s.ext.Priority { // RFC 6710 §4.2: always, where the peer knows it
		b = strconv.AppendInt(append(b, " MT-PRIORITY="...), int64(max(-9, min(s.t.Priority, 9))), 10)
	}
	return b
}

// notify adds DELAY where a deadline goes to a peer that does not know it (RFC 2852 §4.1.4.2):
// that is all such a peer can do about it.
func (s *clientSend) notify(asked []string) []string {
	if s.t.By == nil || s.t.By.Mode != "N" || s.ext.DeliverBy || s.t.Left <= 0 {
		return asked
	}
	is := func(word string) func(string) bool {
		return func(n string) bool { return strings.EqualFold(n, word) }
	}
	switch {
	case len(asked) == 0:
		return []string{"FAILURE", "DELAY"}
	case slices.ContainsFunc(asked, is("NEVER")), slices.ContainsFunc(asked, is("DELAY")):
		return asked
	}
	return append(slices.Clone(asked), "DELAY")
}
