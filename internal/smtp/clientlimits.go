package smtp

import (
	"strconv"
	"strings"

	"pennypost/internal/envelope"
)

// parseLimits reads the limits of RFC 9422 §4 that concern us; §3.7: what cannot be read was
// not said.
func parseLimits(params string) (mails, rcpts int) {
	for word := range strings.FieldsSeq(params) {
		name, value, _ := strings.Cut(word, "=")
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || n == 0 || len(value) > 6 {
			continue
		}
		switch strings.ToUpper(name) {
		case "MAILMAX":
			mails = int(n)
		case "RCPTMAX":
			rcpts = int(n)
		}
	}
	return mails, rcpts
}

// overLimit leaves a recipient for another transaction where the peer takes no more in one.
func (s *clientSend) overLimit(i int) bool {
	if m := s.ext.MaxRcpts; m == 0 || len(s.asked) < m {
		return false
	}
	s.out[i] = Outcome{Status: envelope.Defer("4.5.3", "the peer takes "+strconv.Itoa(s.ext.MaxRcpts)+" recipients at once"), Again: SameHost}
	return true
}
