package smtp

import (
	"errors"
	"strconv"
	"strings"
)

// maxReplyText keeps a reply line within the 512 octets of RFC 5321 §4.5.3.1.5.
const maxReplyText = 490

// append writes the reply in wire form. The text is ours or a backend's and may quote the
// client: nothing in it may end the line or reach beyond US-ASCII (RFC 5321 §4.2).
func (a *Answer) append(b []byte) []byte {
	text := a.Text
	for {
		line, rest, more := strings.Cut(text, "\n")
		b = strconv.AppendInt(b, int64(a.Code), 10)
		if more {
			b = append(b, '-')
		} else {
			b = append(b, ' ')
		}
		if a.Enhanced != "" {
			b = append(b, a.Enhanced...)
			b = append(b, ' ')
		}
		if len(line) > maxReplyText {
			line = line[:maxReplyText]
		}
		for i := 0; i < len(line); i++ {
			c := line[i]
			if c < 0x20 || c > 0x7e {
				c = '?'
			}
			b = append(b, c)
		}
		b = append(b, '\r', '\n')
		if !more {
			return b
		}
		text = rest
	}
}

// answerFor is what the client sees of an error of the backend: its Answer, or that something
// went wrong here. The cause of the latter is for the log, not for strangers.
func answerFor(err error) *Answer {
	var a *Answer
	if errors.As(err, &a) {
		return a
	}
	return &Answer{Code: 451, Enhanced: "4.3.0", Text: "local error, try again later"}
}
