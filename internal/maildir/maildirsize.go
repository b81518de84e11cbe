package maildir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// SizeName is the file of Maildir++ that adds up what an account holds.
const SizeName = "maildirsize"

const (
	// sizeFull is the length at which the file is to be counted anew, by the rules of Maildir++.
	sizeFull = 5120
	// sizeStale is the age at which a file that says "over quota" is not believed.
	sizeStale = 15 * time.Minute
	// maxMaildirSize bounds what is read; its keepers rewrite it at sizeFull.
	maxMaildirSize = 1 << 20
	// sizeLine is the length to which Courier pads lines, so that no line is torn by another.
	sizeLine = 14
)

// Quota is an amount of mail: a limit, where 0 is none, or what is used.
type Quota struct {
	Octets   int64
	Messages int64
}

// Exceeds tells whether used goes beyond the limit l.
func (l Quota) Exceeds(used Quota) bool {
	return l.Octets > 0 && used.Octets > l.Octets || l.Messages > 0 && used.Messages > l.Messages
}

// Size is what a maildirsize file says.
type Size struct {
	Limit  Quota
	Used   Quota
	Octets int64 // length of the file
	Lines  int   // changes in it
}

// ReadMaildirSize adds up a maildirsize file: limits in the first line, such as
// "1000000S,1000C", then one change a line, octets and messages. The last line may be torn.
func ReadMaildirSize(r io.Reader) (Size, error) {
	var s Size
	bad := errors.New("maildirsize is broken")
	b, err := io.ReadAll(io.LimitReader(r, maxMaildirSize+1))
	if err != nil {
		return s, err
	}
	if len(b) > maxMaildirSize {
		return s, errors.New("maildirsize is too long")
	}
	s.Octets = int64(len(b))
	first, rest, whole := bytes.Cut(b, []byte("\n"))
	if !whole {
		return s, bad
	}
	for part := range strings.SplitSeq(string(bytes.TrimSpace(first)), ",") {
		if part == "" {
			continue
		}
		n, err := strconv.ParseInt(part[:len(part)-1], 10, 64)
		if err != nil || n < 0 {
			return s, bad
		}
		switch part[len(part)-1] {
		case 'S':
			s.Limit.Octets = n
		case 'C':
			s.Limit.Messages = n
		default:
			return s, bad
		}
	}
	for len(rest) > 0 {
		var line []byte
		if line, rest, whole = bytes.Cut(rest, []byte("\n")); !whole {
			break
		}
		f := strings.Fields(string(line))
		if len(f) == 0 {
			continue // padding, as some writers leave
		}
		if len(f) != 2 {
			return s, bad
		}
		octets, err1 := strconv.ParseInt(f[0], 10, 64)
		messages, err2 := strconv.ParseInt(f[1], 10, 64)
		if err1 != nil || err2 != nil {
			return s, bad
		}
		s.Lines++
		s.Used.Octets, s.Used.Messages = add(s.Used.Octets, octets), add(s.Used.Messages, messages)
	}
	return s, nil
}

// add does not wrap.
func add(a, b int64) int64 {
	s := a + b
	switch {
	case a > 0 && b > 0 && s < 0:
		return math.MaxInt64
	case a < 0 && b < 0 && s >= 0:
		return math.MinInt64
	}
	return s
}

// Recount tells whether the account must be counted anew: the file is full, was made for
// another limit, counts below nothing, or says that the limit is exceeded and may be wrong about
// it. modified is the time of the file.
func (s Size) Recount(limit Quota, modified, now time.Time) bool {
	switch {
	case s.Octets >= sizeFull, s.Limit != limit, s.Used.Octets < 0, s.Used.Messages < 0:
		return true
	case limit.Exceeds(s.Used):
		return s.Lines > 1 || now.Sub(modified) > sizeStale
	}
	return false
}

// AppendMaildirSize appends a whole file with one line of contents.
func AppendMaildirSize(dst []byte, limit, used Quota) []byte {
	dst = strconv.AppendInt(dst, limit.Octets, 10)
	dst = append(dst, 'S')
	if limit.Messages > 0 {
		dst = append(dst, ',')
		dst = strconv.AppendInt(dst, limit.Messages, 10)
		dst = append(dst, 'C')
	}
	return AppendSizeLine(append(dst, '\n'), used)
}

// AppendSizeLine appends the line of a change, which is written in one piece with O_APPEND.
func AppendSizeLine(dst []byte, change Quota) []byte {
	return fmt.Appendf(dst, "%-*s\n", sizeLine-1, strconv.FormatInt(change.Octets, 10)+" "+strconv.FormatInt(change.Messages, 10))
}
