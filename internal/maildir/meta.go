package maildir

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"pennypost/internal/durable"
)

// MetaName is our file for what Dovecot's and Courier's files have no place for. Each folder has
// one beside its uidlist where it is needed; that of the control root also holds what belongs to
// the account.
const MetaName = "pennypost-meta"

const (
	metaHeader  = "pennypost-meta "
	metaVersion = 1
	maxMeta     = 256 << 20
)

// Meta is a pennypost-meta file: a line with the version, then one fact a line. Strings are in
// Go's quotes, so that a line is a line. Where two lines tell of one thing the later one holds,
// so that a writer may append. Lines with unknown words are kept.
type Meta struct {
	SpecialUse []string          // special-use "\\Sent": attributes of RFC 6154
	ACL        map[string]string // acl "identifier" "rights"
	Metadata   map[string]string // metadata "entry" "value"
	Keywords   map[int]string    // keyword 26 "name": those that have no letter
	Tagged     map[string][]int  // tagged "base name" 26,31: messages that bear such keywords
	Keys       map[string]string // key "name" "value": of the account
	Kept       []string
}

// NewMeta returns an empty one.
func NewMeta() *Meta {
	return &Meta{
		ACL: map[string]string{}, Metadata: map[string]string{}, Keywords: map[int]string{},
		Tagged: map[string][]int{}, Keys: map[string]string{},
	}
}

// ParseMeta reads the file. A line that cannot be read is reported, a last line without end
// was never finished and is not; ErrNewer says that a later program wrote the file.
func ParseMeta(data []byte) (*Meta, []Damage, error) {
	m := NewMeta()
	first, rest, _ := bytes.Cut(data, []byte("\n"))
	if len(data) == 0 {
		return m, nil, nil
	}
	version, ok := strings.CutPrefix(string(first), metaHeader)
	n, okN := decimal(version)
	if !ok || !okN || n == 0 {
		return nil, nil, fmt.Errorf("%s cannot be read: it begins with %.40q", MetaName, first)
	}
	if n > metaVersion {
		return nil, nil, fmt.Errorf("%s version %d: %w", MetaName, n, ErrNewer)
	}
	var damage []Damage
	offset := len(first) + 1
	for len(rest) > 0 {
		line, more, whole := bytes.Cut(rest, []byte("\n"))
		if !whole {
			break
		}
		if len(line) > 0 && !m.line(string(line)) && len(damage) < maxDamage {
			damage = append(damage, Damage{Offset: int64(offset), Line: string(line[:min(len(line), 80)]), Why: "line cannot be read"})
		}
		offset += len(line) + 1
		rest = more
	}
	return m, damage, nil
}

// line takes one line and tells whether it made sense.
func (m *Meta) line(line string) bool {
	word, args, _ := strings.Cut(line, " ")
	switch word {
	case "special-use":
		use, ok := metaStrings(args, 1)
		if ok && !slices.Contains(m.SpecialUse, use[0]) {
			m.SpecialUse = append(m.SpecialUse, use[0])
		}
		return ok
	case "acl":
		return metaPair(m.ACL, args)
	case "metadata":
		return metaPair(m.Metadata, args)
	case "key":
		return metaPair(m.Keys, args)
	case "keyword":
		num, name, _ := strings.Cut(args, " ")
		n, okN := keywordNumber(num)
		s, ok := metaStrings(name, 1)
		if ok = ok && okN && isKey(s[0]); ok {
			m.Keywords[n] = s[0]
		}
		return ok
	case "tagged":
		return m.tagged(args)
	}
	m.Kept = append(m.Kept, line)
	return true
}

func (m *Meta) tagged(args string) bool {
	quoted, err := strconv.QuotedPrefix(args)
	if err != nil {
		return false
	}
	base, err := strconv.Unquote(quoted)
	rest, ok := strings.CutPrefix(args[len(quoted):], " ")
	if err != nil || !ok {
		return false
	}
	if rest == "-" {
		delete(m.Tagged, base)
		return true
	}
	var list []int
	for num := range strings.SplitSeq(rest, ",") {
		n, ok := keywordNumber(num)
		if !ok {
			return false
		}
		list = append(list, n)
	}
	slices.Sort(list)
	m.Tagged[base] = slices.Compact(list)
	return true
}

// keywordNumber reads the number of a keyword that has no letter.
func keywordNumber(s string) (int, bool) {
	n, ok := decimal(s)
	return int(n), ok && n >= MaxKeywords && n < 1<<20
}

// metaPair sets one entry of a map from two strings; an empty second one takes the entry out.
func metaPair(to map[string]string, args string) bool {
	s, ok := metaStrings(args, 2)
	switch {
	case !ok:
	case s[1] == "":
		delete(to, s[0])
	default:
		to[s[0]] = s[1]
	}
	return ok
}

// metaStrings reads n quoted strings.
func metaStrings(args string, n int) (list []string, ok bool) {
	for i := range n {
		if i > 0 {
			if args, ok = strings.CutPrefix(args, " "); !ok {
				return nil, false
			}
		}
		quoted, err := strconv.QuotedPrefix(args)
		if err != nil {
			return nil, false
		}
		s, err := strconv.Unquote(quoted)
		if err != nil {
			return nil, false
		}
		list, args = append(list, s), args[len(quoted):]
	}
	return list, args == ""
}

// AppendTo appends the file.
func (m *Meta) AppendTo(dst []byte) []byte {
	dst = fmt.Appendf(dst, "%s%d\n", metaHeader, metaVersion)
	for _, use := range m.SpecialUse {
		dst = fmt.Appendf(dst, "special-use %q\n", use)
	}
	dst = appendPairs(dst, "acl", m.ACL)
	dst = appendPairs(dst, "metadata", m.Metadata)
	dst = appendPairs(dst, "key", m.Keys)
	for _, n := range slices.Sorted(maps.Keys(m.Keywords)) {
		dst = fmt.Appendf(dst, "keyword %d %q\n", n, m.Keywords[n])
	}
	for _, base := range slices.Sorted(maps.Keys(m.Tagged)) {
		dst = AppendTagged(dst, base, m.Tagged[base])
	}
	for _, line := range m.Kept {
		dst = append(append(dst, line...), '\n')
	}
	return dst
}

func appendPairs(dst []byte, word string, pairs map[string]string) []byte {
	for _, name := range slices.Sorted(maps.Keys(pairs)) {
		if pairs[name] != "" {
			dst = fmt.Appendf(dst, "%s %q %q\n", word, name, pairs[name])
		}
	}
	return dst
}

// AppendTagged appends the line that says which keywords without a letter a message bears; none
// takes earlier ones back.
func AppendTagged(dst []byte, base string, keywords []int) []byte {
	dst = fmt.Appendf(dst, "tagged %q ", base)
	if len(keywords) == 0 {
		return append(dst, '-', '\n')
	}
	for i, n := range keywords {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = strconv.AppendInt(dst, int64(n), 10)
	}
	return append(dst, '\n')
}

// ReadMeta reads the file of a folder; where there is none, it is empty.
func ReadMeta(fsys durable.FS, dir string) (*Meta, error) {
	data, err := readSmall(fsys, filepath.Join(dir, MetaName), maxMeta)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	m, _, err := ParseMeta(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return m, nil
}

// WriteMeta replaces the file of a folder. Writers exclude each other by the uidlist lock of the
// folder.
func WriteMeta(fsys durable.FS, dir string, m *Meta) error {
	return durable.WriteFileOn(fsys, filepath.Join(dir, MetaName), m.AppendTo(nil), 0o600)
}

// readSmall reads a file of at most limit octets.
func readSmall(fsys durable.FS, path string, limit int64) ([]byte, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err := cmp.Or(err, f.Close()); err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is longer than %d octets", path, limit)
	}
	return b, nil
}
