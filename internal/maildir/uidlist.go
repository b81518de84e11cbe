package maildir

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// UIDListName is the file with the UIDs of a folder. Dovecot's name and format, so that either
// server can take the folder over from the other.
const UIDListName = "dovecot-uidlist"

// ErrNewer is wrapped when a file has a later format than this program knows. It is left as it is.
var ErrNewer = errors.New("format is newer than this program")

// maxUIDLine bounds a line of the uidlist; file names end at 255 octets, and the keys are small.
const maxUIDLine = 8 << 10

// maxGap is how far a UID in a line that cannot be read may lie above the last good one and
// still be believed.
const maxGap = 1 << 20

// UIDList is a dovecot-uidlist. Parse may be called again with what was appended since.
type UIDList struct {
	Version  int // 3, or 1 of Dovecot 1.0 and Courier; written as 3
	Validity uint32
	// Next is the next UID to give: above the header's, which may be stale, above every line,
	// and above lines that cannot be read, whose UIDs somebody may know.
	Next    uint32
	GUID    string   // of the mailbox, 32 hex digits, or ""
	Ceiling uint64   // our key: no MODSEQ above it was ever told
	Extra   []string // other keys of the header, kept

	Last    uint32     // UID of the last line
	Entries []UIDEntry // unless Parse had a function for them

	Size   int64 // octets of whole lines; a writer appends here
	Tail   int64 // octets after them: a torn line or NULs. Its UIDs were never told; cut it off
	Damage []Damage
}

// UIDEntry is a line of a UIDList.
type UIDEntry struct {
	UID   uint32
	Base  string
	File  string // last known name: flags may be stale or absent
	Size  int64  // as stored; -1 unknown
	Wire  int64  // with CRLF line ends; -1 unknown
	POP3  string // UIDL given to the message by an earlier server
	Order uint32 // place in POP3 listings; 0 none
	GUID  string // of the message, where it is not the base name
	Extra []string
}

// Damage is a place in a file that cannot be read.
type Damage struct {
	Offset int64
	Line   string // cut to what a report can show
	Why    string
}

// maxDamage bounds the report of one file.
const maxDamage = 1000

// maxListSize bounds a uidlist: some ten million messages.
const maxListSize = 1 << 30

// ReadUIDList reads a whole list. The error is the reader's, or ErrNewer; damage is in the list:
// Validity 0 says that the header could not be read, and the entries are there all the same.
func ReadUIDList(r io.Reader) (*UIDList, error) {
	var b strings.Builder
	n, err := io.Copy(&b, io.LimitReader(r, maxListSize+1))
	if err != nil {
		return nil, err
	}
	if n > maxListSize {
		return nil, errors.New("uidlist is too long")
	}
	l := new(UIDList)
	if err := l.Parse(b.String(), nil); err != nil {
		return nil, err
	}
	return l, nil
}

// Parse reads data, the list from octet l.Size on: the whole list into a new UIDList, or what
// was appended since the last call. Entries go to each, or to l.Entries when that is nil. The
// strings of an entry are parts of data; the entry itself is used again for the next one.
func (l *UIDList) Parse(data string, each func(*UIDEntry)) error {
	if each == nil {
		each = func(e *UIDEntry) { l.Entries = append(l.Entries, *e) }
	}
	l.Tail = 0
	if l.Version == 0 && data != "" {
		line, rest, whole := strings.Cut(data, "\n")
		if !whole {
			l.Tail = int64(len(data))
			l.damage(line, "no header")
			return nil
		}
		used, err := l.header(line)
		if err != nil {
			return err
		}
		if used {
			l.Size += int64(len(line)) + 1
			data = rest
		}
		l.Next = max(l.Next, 1)
	}
	var e UIDEntry
	for data != "" {
		line, rest, whole := strings.Cut(data, "\n")
		if !whole {
			l.Tail = int64(len(data))
			return nil
		}
		if why := l.entry(line, &e); why != "" {
			l.damage(line, why)
			l.reserve(line)
		} else {
			l.Last = e.UID
			l.Next = max(l.Next, e.UID+1)
			each(&e)
		}
		l.Size += int64(len(line)) + 1
		data = rest
	}
	return nil
}

func (l *UIDList) damage(line, why string) {
	if len(l.Damage) < maxDamage {
		l.Damage = append(l.Damage, Damage{Offset: l.Size, Line: strings.Clone(line[:min(len(line), 80)]), Why: why})
	}
}

// reserve takes the UID of a line that cannot be read out of use. Where its number cannot be
// believed either, one UID is skipped.
func (l *UIDList) reserve(line string) {
	digits := 0
	for digits < len(line) && line[digits] >= '0' && line[digits] <= '9' {
		digits++
	}
	next := max(l.Next, l.Last+1)
	if n, ok := decimal(line[:digits]); ok && n >= int64(next) && n < int64(next)+maxGap && n < math.MaxUint32 {
		next = uint32(n)
	}
	if next < math.MaxUint32 {
		next++
	}
	l.Next = next
}

// header reads the first line. used is false when it is no header but an entry, the header
// being lost.
func (l *UIDList) header(line string) (used bool, err error) {
	l.Version = 3
	f := strings.Fields(line)
	switch {
	case len(f) == 0:
		l.damage(line, "header is empty")
		return true, nil
	case f[0] == "1" && len(f) == 3:
		v, ok1 := uid(f[1])
		n, ok2 := uid(f[2])
		if ok1 {
			l.Version, l.Validity = 1, v
		}
		if ok2 {
			l.Next = n
		}
		if !ok1 || !ok2 {
			l.damage(line, "header cannot be read")
		}
		return true, nil
	case strings.Contains(line, " :"):
		l.damage(line, "header is missing")
		return false, nil
	case f[0] == "3":
		l.header3(line, f[1:])
		return true, nil
	}
	// Later versions come with a header of their own, a word and then keys; a torn one is damage.
	if n, ok := decimal(f[0]); ok && n > 3 && n < 100 && len(f) > 1 && f[1][0] >= 'A' {
		return false, fmt.Errorf("uidlist version %d: %w", n, ErrNewer)
	}
	l.damage(line, "header cannot be read")
	return true, nil
}

const ceilingKey = "Xmodseq="

func (l *UIDList) header3(line string, keys []string) {
	for _, k := range keys {
		ok := true
		switch {
		case k[0] == 'V':
			l.Validity, ok = uid(k[1:])
		case k[0] == 'N':
			var n uint32
			if n, ok = uid(k[1:]); ok {
				l.Next = max(l.Next, n)
			}
		case k[0] == 'G':
			if ok = isHex(k[1:], 32); ok {
				l.GUID = k[1:]
			}
		case strings.HasPrefix(k, ceilingKey):
			n, err := strconv.ParseUint(k[len(ceilingKey):], 10, 63)
			if ok = err == nil; ok {
				l.Ceiling = max(l.Ceiling, n)
			}
		case isKey(k):
			l.Extra = append(l.Extra, strings.Clone(k))
		default:
			ok = false
		}
		if !ok {
			l.damage(line, "key "+strconv.Quote(k[:1])+" of the header cannot be read")
		}
	}
	l.GUID = strings.Clone(l.GUID)
	if l.Validity == 0 && len(l.Damage) == 0 {
		l.damage(line, "header has no UIDVALIDITY")
	}
}

// entry reads one line into e and tells what is wrong with it.
func (l *UIDList) entry(line string, e *UIDEntry) string {
	if len(line) > maxUIDLine {
		return "line is too long"
	}
	num, rest, ok := strings.Cut(line, " ")
	n, okN := uid(num)
	if !ok || !okN {
		return "line has no UID"
	}
	if n <= l.Last {
		return "UID does not ascend"
	}
	*e = UIDEntry{UID: n, Size: -1, Wire: -1}
	if l.Version == 1 {
		e.File = rest
	} else {
		for !strings.HasPrefix(rest, ":") {
			key, more, ok := strings.Cut(rest, " ")
			if !ok {
				return "line has no file name"
			}
			if isKey(key) { // others are damage that a rewrite leaves out
				e.key(key)
			}
			rest = more
		}
		e.File = rest[1:]
	}
	if !ValidName(e.File) {
		return "file name is not valid"
	}
	e.Base = e.File
	if i := strings.IndexByte(e.File, ':'); i >= 0 {
		e.Base = e.File[:i]
	}
	if e.POP3 == sameAsBase {
		e.POP3 = e.Base
	}
	return ""
}

// sameAsBase stands for a P key without value while a line is read: Dovecot's short form of
// "the base name". No value holds a space.
const sameAsBase = " "

// key takes one key of a line. A value that cannot be understood is kept as it is.
func (e *UIDEntry) key(k string) {
	v := k[1:]
	switch k[0] {
	case 'S':
		if n, ok := decimal(v); ok {
			e.Size = n
			return
		}
	case 'W':
		if n, ok := decimal(v); ok {
			e.Wire = n
			return
		}
	case 'P':
		if e.POP3 = v; v == "" {
			e.POP3 = sameAsBase
		}
		return
	case 'O':
		if n, ok := uid(v); ok {
			e.Order = n
			return
		}
	case 'G':
		if v != "" {
			e.GUID = v
			return
		}
	}
	e.Extra = append(e.Extra, k)
}

// uid reads a number from 1 to the largest UID that leaves room for a next one.
func uid(s string) (uint32, bool) {
	n, ok := decimal(s)
	return uint32(n), ok && n > 0 && n < math.MaxUint32
}

func isHex(s string, length int) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == length
}

// AppendHeader appends the first line.
func (l *UIDList) AppendHeader(dst []byte) []byte {
	dst = append(dst, "3 V"...)
	dst = strconv.AppendUint(dst, uint64(l.Validity), 10)
	dst = append(dst, " N"...)
	dst = strconv.AppendUint(dst, uint64(max(l.Next, 1)), 10)
	if l.GUID != "" {
		dst = append(append(dst, " G"...), l.GUID...)
	}
	if l.Ceiling > 0 {
		dst = append(append(dst, ' '), ceilingKey...)
		dst = strconv.AppendUint(dst, l.Ceiling, 10)
	}
	for _, k := range l.Extra {
		if isKey(k) {
			dst = append(append(dst, ' '), k...)
		}
	}
	return append(dst, '\n')
}

// AppendTo appends the whole list, in version 3.
func (l *UIDList) AppendTo(dst []byte) []byte {
	dst = l.AppendHeader(dst)
	for i := range l.Entries {
		dst = AppendEntry(dst, &l.Entries[i])
	}
	return dst
}

// AppendEntry appends the line of one message. An entry that no line can hold (ValidName) is
// left out.
func AppendEntry(dst []byte, e *UIDEntry) []byte {
	file := e.File
	if file == "" {
		file = e.Base
	}
	if !ValidName(file) || e.UID == 0 || e.UID == math.MaxUint32 {
		return dst
	}
	dst = strconv.AppendUint(dst, uint64(e.UID), 10)
	number := func(key byte, n int64) {
		dst = strconv.AppendInt(append(dst, ' ', key), n, 10)
	}
	if e.Size >= 0 {
		number('S', e.Size)
	}
	if e.Wire >= 0 {
		number('W', e.Wire)
	}
	switch {
	case e.POP3 == "":
	case e.POP3 == e.Base:
		dst = append(dst, " P"...)
	case isKey("P" + e.POP3):
		dst = append(append(dst, " P"...), e.POP3...)
	}
	if e.Order > 0 {
		number('O', int64(e.Order))
	}
	if e.GUID != "" && isKey("G"+e.GUID) {
		dst = append(append(dst, " G"...), e.GUID...)
	}
	for _, k := range e.Extra {
		if isKey(k) {
			dst = append(append(dst, ' '), k...)
		}
	}
	dst = append(append(dst, " :"...), file...)
	return append(dst, '\n')
}

// isKey tells whether k can stand in a line: no separator, no control character, and no colon
// in front, which would start the file name.
func isKey(k string) bool {
	if k == "" || k[0] == ':' {
		return false
	}
	for i := 0; i < len(k); i++ {
		if k[i] <= ' ' || k[i] == 0x7f {
			return false
		}
	}
	return true
}
