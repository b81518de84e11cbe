package maildir

import (
	"crypto/rand"
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Flags are the flags that maildir(5) has letters for.
type Flags uint8

// The flags, in the order of their letters D F P R S T. Passed has no counterpart in IMAP and
// is kept for those who set it.
const (
	Draft Flags = 1 << iota
	Flagged
	Passed
	Replied
	Seen
	Trashed
)

const flagLetters = "DFPRST"

// MaxKeywords is how many keywords have a letter in file names, a to z.
const MaxKeywords = 26

// Name is the file name of a message taken apart. Base tells messages apart and never changes;
// the rest does whenever a flag changes.
type Name struct {
	Base     string
	Flags    Flags
	Keywords uint32 // bit 0 is the letter a
	// Rest holds what this package does not know: with Info, other letters and what follows a
	// comma after the letters; without, all from the colon on (the experimental ":1,").
	Rest string
	Info bool // the name has ":2,"
}

// ParseName takes a file name apart. Every name parses.
func ParseName(file string) Name {
	i := strings.IndexByte(file, ':')
	if i < 0 {
		return Name{Base: file}
	}
	n := Name{Base: file[:i]}
	letters, ok := strings.CutPrefix(file[i:], ":2,")
	if !ok {
		n.Rest = file[i:]
		return n
	}
	n.Info = true
	first := -1 // where Rest began; it is a substring while it is in one piece
	for i := 0; i < len(letters); i++ {
		c := letters[i]
		if c == ',' {
			if first >= 0 {
				n.Rest += letters[i:]
			} else {
				n.Rest = letters[i:]
			}
			return n
		}
		if c >= 'a' && c <= 'z' {
			n.Keywords |= 1 << (c - 'a')
			continue
		}
		if k := strings.IndexByte(flagLetters, c); k >= 0 {
			n.Flags |= 1 << k
			continue
		}
		if first < 0 {
			first = i
		}
		n.Rest += letters[i : i+1]
	}
	return n
}

// String is the file name, letters in ASCII order as far as the unknown ones are.
func (n Name) String() string {
	if !n.Info {
		return n.Base + n.Rest
	}
	return string(n.Append(make([]byte, 0, len(n.Base)+len(n.Rest)+16)))
}

// Append is String without a copy.
func (n Name) Append(dst []byte) []byte {
	dst = append(dst, n.Base...)
	if !n.Info {
		return append(dst, n.Rest...)
	}
	dst = append(dst, ":2,"...)
	other, tail := n.Rest, ""
	if i := strings.IndexByte(other, ','); i >= 0 {
		other, tail = other[:i], other[i:]
	}
	letter := func(c byte) {
		for other != "" && other[0] < c {
			dst, other = append(dst, other[0]), other[1:]
		}
		dst = append(dst, c)
	}
	for f := n.Flags & (1<<len(flagLetters) - 1); f != 0; f &= f - 1 {
		letter(flagLetters[bits.TrailingZeros8(uint8(f))])
	}
	for k := n.Keywords & (1<<MaxKeywords - 1); k != 0; k &= k - 1 {
		letter('a' + byte(bits.TrailingZeros32(k)))
	}
	return append(append(dst, other...), tail...)
}

// With is the name with other flags and keywords. What is unknown in the name stays, except an
// info that is not of the kind ":2,", whose place the flags take.
func (n Name) With(f Flags, keywords uint32) Name {
	if !n.Info {
		n.Info, n.Rest = true, ""
	}
	n.Flags, n.Keywords = f, keywords
	return n
}

// Sizes are the sizes that the name tells: s as stored (,S=), w with CRLF line ends (,W=).
func (n Name) Sizes() (s, w int64, okS, okW bool) {
	rest := n.Base
	for {
		i := strings.IndexByte(rest, ',')
		if i < 0 {
			return s, w, okS, okW
		}
		rest = rest[i+1:]
		if len(rest) < 2 || rest[1] != '=' {
			continue
		}
		switch {
		case rest[0] == 'S' && !okS:
			s, okS = sizeValue(rest[2:])
		case rest[0] == 'W' && !okW:
			w, okW = sizeValue(rest[2:])
		}
	}
}

// sizeValue reads the digits up to the next comma or the end; anything else is no size.
func sizeValue(v string) (int64, bool) {
	if i := strings.IndexByte(v, ','); i >= 0 {
		v = v[:i]
	}
	return decimal(v)
}

// decimal reads digits and nothing but digits.
func decimal(v string) (int64, bool) {
	if v == "" || len(v) > 18 {
		return 0, false
	}
	n := int64(0)
	for i := 0; i < len(v); i++ {
		c := v[i] - '0'
		if c > 9 {
			return 0, false
		}
		n = n*10 + int64(c)
	}
	return n, true
}

// WithSizes is a base name that tells the sizes of its message.
func WithSizes(base string, s, w int64) string {
	return base + ",S=" + strconv.FormatInt(s, 10) + ",W=" + strconv.FormatInt(w, 10)
}

// ValidName tells whether a file in new/ or cur/ can be a message: a base name that a line of
// the uidlist holds, and no dot in front (maildir(5): such names are not messages).
func ValidName(file string) bool {
	return file != "" && file[0] != '.' && file[0] != ':' && len(file) <= 255 &&
		strings.IndexByte(file, '/') < 0 && strings.IndexByte(file, '\n') < 0 &&
		strings.IndexByte(file, '\r') < 0 && strings.IndexByte(file, 0) < 0
}

// Namer makes base names that no other process, host or Namer makes. It may be used by many
// goroutines.
type Namer struct {
	now    func() time.Time
	host   string
	pid    int
	random string
	count  atomic.Uint64
}

// NewNamer returns a Namer; host "" is "localhost", now nil is time.Now.
func NewNamer(host string, now func() time.Time) *Namer {
	if now == nil {
		now = time.Now
	}
	return &Namer{now: now, host: cleanHost(host), pid: os.Getpid(), random: strings.ToLower(rand.Text())[:8]}
}

// Base is a new base name: time, process, counter, random, host.
func (n *Namer) Base() string {
	now := n.now()
	return fmt.Sprintf("%d.M%06dP%dQ%dR%s.%s", now.Unix(), now.Nanosecond()/1000, n.pid, n.count.Add(1), n.random, n.host)
}

// emailIDLen is the length of an EMAILID that BaseFor puts into a name: hex digits.
const emailIDLen = 32

// BaseFor is a new base name that tells the EMAILID, when that is one of 32 hex digits: a file
// whose writer was killed before it could note the EMAILID elsewhere is still known.
func (n *Namer) BaseFor(emailID string) string {
	base := n.Base()
	if !isHex(emailID, emailIDLen) {
		return base
	}
	at := len(base) - len(n.host) - 1
	return base[:at] + "E" + emailID + base[at:]
}

// EmailIDIn is the EMAILID that BaseFor has put into a base name, or "".
func EmailIDIn(base string) string {
	_, rest, _ := strings.Cut(base, ".")
	unique, _, _ := strings.Cut(rest, ".")
	if i := strings.LastIndexByte(unique, 'E'); i >= 0 && isHex(unique[i+1:], emailIDLen) {
		return unique[i+1:]
	}
	return ""
}

// cleanHost makes a host name safe in a file name: maildir(5)'s escapes for slash and colon,
// and no comma, which starts a size.
func cleanHost(h string) string {
	if h == "" {
		return "localhost"
	}
	h = strings.NewReplacer("/", `\057`, ":", `\072`, ",", "_", "\x00", "_", "\n", "_").Replace(h)
	return h[:min(len(h), 100)]
}
