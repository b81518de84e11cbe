package smtp

import (
	"bufio"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"pennypost/internal/envelope"
)

// Bounds of a reply from a peer. RFC 5321 §4.5.3.1.5 allows 512 octets a line; some servers
// write long policy texts, so more is read, but never without end.
const (
	replyMaxLine  = 4096
	replyMaxLines = 200
)

// ErrReply is wrapped by errors about octets that are no SMTP reply.
var ErrReply = errors.New("not an SMTP reply")

// Reply is one reply of a server. Its text has no control characters and is valid UTF-8.
type Reply struct {
	Code     int
	Enhanced string   // RFC 2034; "" when none was given, it is malformed or of another class
	Lines    []string // text of each line without the codes; at least one
}

// Class is the first digit: 2 done, 3 go on, 4 not now, 5 never.
func (r *Reply) Class() int { return r.Code / 100 }

// String returns the reply as one line with its codes.
func (r *Reply) String() string {
	text := strings.TrimSpace(strings.Join(r.Lines, " "))
	s := fmt.Sprintf("%03d", r.Code)
	if r.Enhanced != "" {
		s += " " + r.Enhanced
	}
	if text != "" {
		s += " " + text
	}
	return s
}

// ParseReply reads one reply, of one line or several. Errors other than those of br wrap
// ErrReply; after one the stream is out of step and good for nothing.
func ParseReply(br *bufio.Reader) (*Reply, error) {
	r := new(Reply)
	for {
		line, err := replyLine(br)
		if err != nil {
			return nil, err
		}
		code, more, text, err := replySplit(line)
		if err != nil {
			return nil, err
		}
		switch {
		case r.Code == 0:
			r.Code = code
		case code != r.Code: // RFC 5321 §4.2.1: the same code on each line
			return nil, fmt.Errorf("%w: code %d after %d in one reply", ErrReply, code, r.Code)
		}
		r.add(text)
		if !more {
			return r, nil
		}
		if len(r.Lines) >= replyMaxLines {
			return nil, fmt.Errorf("%w: over %d lines", ErrReply, replyMaxLines)
		}
	}
}

// replyLine returns the next line without its end. A lone LF ends a line too: refusing it
// would only keep mail from reaching a sloppy server.
func replyLine(br *bufio.Reader) (string, error) {
	var long []byte
	for {
		part, err := br.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return "", err
		}
		if len(long)+len(part) > replyMaxLine {
			return "", fmt.Errorf("%w: line over %d octets", ErrReply, replyMaxLine)
		}
		if err == nil && long == nil {
			return replyTrim(part), nil
		}
		long = append(long, part...)
		if err == nil {
			return replyTrim(long), nil
		}
	}
}

func replyTrim(b []byte) string {
	b = b[:len(b)-1]
	if n := len(b); n > 0 && b[n-1] == '\r' {
		b = b[:n-1]
	}
	return string(b)
}

// replySplit takes a line apart. RFC 5321 §4.2: three digits, then a space or a hyphen;
// nothing at all behind the code is common enough to be accepted.
func replySplit(line string) (code int, more bool, text string, err error) {
	if len(line) < 3 || line[0] < '2' || line[0] > '5' || !replyDigit(line[1]) || !replyDigit(line[2]) {
		return 0, false, "", fmt.Errorf("%w: %.60q", ErrReply, line)
	}
	code = int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
	if len(line) == 3 {
		return code, false, "", nil
	}
	switch line[3] {
	case ' ':
		return code, false, line[4:], nil
	case '-':
		return code, true, line[4:], nil
	}
	return 0, false, "", fmt.Errorf("%w: %.60q", ErrReply, line)
}

func replyDigit(c byte) bool { return c >= '0' && c <= '9' }

// add takes one line's text, cutting off the enhanced code that RFC 2034 §4 puts on each line.
func (r *Reply) add(text string) {
	if word, rest, _ := strings.Cut(text, " "); envelope.ValidCode(word) && int(word[0]-'0') == r.Class() {
		if r.Enhanced == "" && len(r.Lines) == 0 {
			r.Enhanced = strings.Clone(word)
		}
		if word == r.Enhanced {
			text = rest
		}
	}
	r.Lines = append(r.Lines, replyClean(text))
}

// replyClean makes text safe to print: it goes into logs, terminals and bounces.
func replyClean(s string) string {
	ok := true
	for i := 0; i < len(s) && ok; i++ {
		ok = s[i] >= ' ' && s[i] < 0x7f
	}
	if ok {
		return s
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError || r == 0x2028 || r == 0x2029 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// Stage is the step of a session that a reply answers or an error breaks.
type Stage uint8

// Stages in their order.
const (
	StageConnect Stage = iota // greeting
	StageHello                // EHLO, STARTTLS
	StageAuth
	StageMail
	StageRcpt
	StageData // the DATA command
	StageBody // between 354 and the final dot
	StageDone // the reply to the final dot
)

func (s Stage) String() string {
	return [...]string{"greeting", "EHLO", "AUTH", "MAIL", "RCPT", "DATA", "message text", "end of message"}[s]
}

// replyStatus turns a reply of class 4 or 5 into a status. The peer's enhanced code is taken
// as it is; without one the basic code and the stage give the nearest.
func replyStatus(stage Stage, r *Reply) envelope.Status {
	s := envelope.Status{Verdict: envelope.Deferred, Code: r.Enhanced, Reply: r.String(), Remote: true}
	if r.Class() == 5 {
		s.Verdict = envelope.Failed
	}
	if s.Code == "" {
		s.Code = replyCode(stage, r.Code)
	}
	return s
}

// replyCode is the table for replies without an enhanced code: RFC 5248 §2.4's pairs of basic and
// enhanced codes, told apart by stage where a basic code has several meanings.
func replyCode(stage Stage, code int) string {
	type key struct {
		stage Stage
		code  int
	}
	switch (key{stage, code}) {
	case key{StageRcpt, 452}: // RFC 5321 §4.5.3.1.10: too many recipients
		return "4.5.3"
	case key{StageMail, 550}: // the sender is refused: its domain, its reputation
		return "5.7.1"
	case key{StageMail, 553}:
		return "5.1.7"
	case key{StageRcpt, 552}:
		return "5.2.2"
	case key{StageRcpt, 553}:
		return "5.1.3"
	case key{StageRcpt, 550}: // unknown user, or policy: nobody can tell
		return "5.1.0"
	case key{StageAuth, 535}, key{StageAuth, 534}:
		return "5.7.8"
	}
	switch code {
	case 421:
		return "4.3.2"
	case 432, 454:
		return "4.7.0"
	case 450:
		return "4.2.0"
	case 451:
		return "4.3.0"
	case 452:
		return "4.3.1"
	case 455:
		return "4.5.4"
	case 500, 502:
		return "5.5.1"
	case 501, 504, 555:
		return "5.5.4"
	case 503:
		return "5.5.1"
	case 521:
		return "5.3.2"
	case 523, 552:
		return "5.3.4"
	case 530:
		return "5.7.0"
	case 534, 535, 538:
		return "5.7.8"
	case 550:
		return "5.7.1" // of the message text: content refused
	case 551:
		return "5.1.6"
	case 553:
		return "5.1.0"
	case 556: // RFC 7504 §4
		return "5.1.10"
	}
	if code/100 == 5 {
		return "5.0.0"
	}
	return "4.0.0"
}
