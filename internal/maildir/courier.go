package maildir

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"pennypost/internal/durable"
)

// Courier's files. The first two are in each folder, the others in the root.
const (
	CourierUIDs       = "courierimapuiddb"
	CourierKeywords   = "courierimapkeywords"
	CourierSubscribed = "courierimapsubscribed"
	CourierPOP3       = "courierpop3dsizelist"
	CourierACL        = "courierimapacl"
)

// CourierMail is a line of courierpop3dsizelist: what Courier's POP3 server told of a message.
type CourierMail struct {
	Base     string
	Size     int64 // octets sent; -1 unknown
	Number   uint32
	Validity uint32
}

// UIDL is the identification that Courier's POP3 server gave the message.
func (c CourierMail) UIDL() string {
	switch {
	case c.Number == 0:
		return escapeUIDL(c.Base)
	case c.Validity == 0:
		return "UID" + strconv.FormatUint(uint64(c.Number), 10)
	}
	return "UID" + strconv.FormatUint(uint64(c.Number), 10) + "-" + strconv.FormatUint(uint64(c.Validity), 10)
}

// escapeUIDL writes a file name in the octets that RFC 1939 §7 allows, as Courier does.
func escapeUIDL(base string) string {
	var b strings.Builder
	for i := 0; i < len(base); i++ {
		c := base[i]
		if c < 0x21 || c > 0x7e || c == '\'' || c == '"' || c == '+' {
			const upper = "0123456789ABCDEF"
			b.Write([]byte{'+', upper[c>>4], upper[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// ParseCourierPOP3 reads a courierpop3dsizelist of version 2 or 3.
func ParseCourierPOP3(data string) (list []CourierMail, damage []Damage) {
	header, rest, _ := strings.Cut(data, "\n")
	if !strings.HasPrefix(header, "/2 ") && !strings.HasPrefix(header, "/3 ") {
		if data != "" {
			damage = append(damage, Damage{Line: header[:min(len(header), 80)], Why: "header cannot be read"})
		}
		return nil, damage
	}
	offset := int64(len(header)) + 1
	for rest != "" {
		line, more, whole := strings.Cut(rest, "\n")
		if !whole {
			break
		}
		c, ok := courierLine(line)
		switch {
		case ok:
			list = append(list, c)
		case line != "" && len(damage) < maxDamage:
			damage = append(damage, Damage{Offset: offset, Line: line[:min(len(line), 80)], Why: "line cannot be read"})
		}
		offset += int64(len(line)) + 1
		rest = more
	}
	return list, damage
}

// courierLine reads "name size n:validity:utf8", from its end, as a name may hold spaces.
func courierLine(line string) (c CourierMail, ok bool) {
	i := strings.LastIndexByte(line, ' ')
	if i < 0 {
		return c, false
	}
	j := strings.LastIndexByte(line[:i], ' ')
	if j < 0 || !ValidName(line[:j]) {
		return c, false
	}
	c.Base = ParseName(line[:j]).Base
	if c.Size, ok = decimal(line[j+1 : i]); !ok {
		return c, false
	}
	f := strings.Split(line[i+1:], ":")
	number, ok1 := decimal(f[0])
	validity, ok2 := int64(0), true
	if len(f) > 1 {
		validity, ok2 = decimal(f[1])
	}
	c.Number, c.Validity = uint32(number), uint32(validity)
	return c, ok1 && ok2 && number <= math.MaxUint32 && validity <= math.MaxUint32
}

// ParseCourierKeywords reads courierimapkeywords/:list into the keywords of each base name.
func ParseCourierKeywords(data string) map[string][]string {
	names, rest, _ := strings.Cut(data, "\n\n")
	if strings.HasPrefix(data, "\n") {
		names, rest = "", data[1:]
	}
	keywords := strings.Split(names, "\n")
	tagged := make(map[string][]string)
	for line := range strings.SplitSeq(rest, "\n") {
		i := strings.LastIndexByte(line, ':')
		if i <= 0 {
			continue
		}
		var list []string
		for num := range strings.FieldsSeq(line[i+1:]) {
			if n, ok := decimal(num); ok && n < int64(len(keywords)) && isKey(keywords[n]) {
				list = append(list, keywords[n])
			}
		}
		tagged[line[:i]] = list
	}
	return tagged
}

const (
	maxCourierList  = 256 << 20
	maxCourierLoose = 64 << 10
)

// readCourierKeywords reads the directory courierimapkeywords of a folder: the list, then the
// loose files, of which the one without a number holds, else the one with the highest.
func readCourierKeywords(fsys durable.FS, dir string) (map[string][]string, error) {
	dir = filepath.Join(dir, CourierKeywords)
	names, err := readDir(fsys, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := readSmall(fsys, filepath.Join(dir, ":list"), maxCourierList)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	tagged := ParseCourierKeywords(string(list))
	type loose struct {
		file  string
		order int64
	}
	best := make(map[string]loose)
	for _, n := range names {
		l, base := loose{n, math.MaxInt64}, n
		if n == ":list" {
			continue
		}
		if rest, ok := strings.CutPrefix(n, "."); ok {
			num, name, _ := strings.Cut(rest, ".")
			if l.order, ok = decimal(num); !ok {
				continue
			}
			base = name
		}
		if have, ok := best[base]; !ok || l.order > have.order {
			best[base] = l
		}
	}
	for base, l := range best {
		data, err := readSmall(fsys, filepath.Join(dir, l.file), maxCourierLoose)
		if err != nil {
			return nil, err
		}
		tagged[base] = slices.DeleteFunc(strings.Split(string(data), "\n"), func(k string) bool { return !isKey(k) })
	}
	return tagged, nil
}

// ParseCourierSubscribed reads courierimapsubscribed, which since Courier-IMAP 5 is in UTF-8. Names
// of shared folders are left out.
func ParseCourierSubscribed(data []byte) Subscriptions {
	t := &Tree{}
	for line := range strings.SplitSeq(string(data), "\n") {
		if _, ok := DecodeMUTF7(line); !ok {
			t.UTF8 = true
		}
	}
	var s Subscriptions
	for line := range strings.SplitSeq(string(data), "\n") {
		rest, ok := strings.CutPrefix(line, Inbox+".")
		if !ok && line != Inbox {
			continue
		}
		name := Inbox
		if ok {
			name, ok = t.subscribed(rest, ".")
		}
		if (ok || name == Inbox) && !slices.Contains(s.Names, name) {
			s.Names = append(s.Names, name)
		}
	}
	return s
}

// Takeover is what a folder of Courier's becomes.
type Takeover struct {
	List     *UIDList          // with POP3 keys; Validity 0 when Courier's IMAP server never saw the folder
	Keywords Keywords          // for dovecot-keywords
	Letters  map[string]uint32 // what the names of messages get, by base name
	Beyond   map[string][]string
	Damage   []Damage
}

// ReadCourier reads Courier's files in a folder, without looking at the messages: nil when there
// are none. have are the keywords that have letters in the folder already.
func ReadCourier(fsys durable.FS, dir string, have Keywords) (*Takeover, error) {
	t := &Takeover{List: &UIDList{Version: 3}, Keywords: have, Letters: map[string]uint32{}, Beyond: map[string][]string{}}
	found := false
	uids, err := readSmall(fsys, filepath.Join(dir, CourierUIDs), maxListSize)
	switch {
	case err == nil:
		found = true
		l := new(UIDList)
		if err := l.Parse(string(uids), nil); err != nil {
			return nil, err
		}
		t.List, t.Damage = l, l.Damage
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	tagged, err := readCourierKeywords(fsys, dir)
	if err != nil {
		return nil, err
	}
	t.letters(tagged)
	sizes, err := readSmall(fsys, filepath.Join(dir, CourierPOP3), maxCourierList)
	switch {
	case err == nil:
		found = true
		list, damage := ParseCourierPOP3(string(sizes))
		t.pop3(list)
		t.Damage = append(t.Damage, damage...)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if !found && len(tagged) == 0 {
		return nil, nil
	}
	t.List.Version, t.List.Size, t.List.Tail = 3, 0, 0
	return t, nil
}

// letters gives the keywords letters, the most used ones first when there are too many.
func (t *Takeover) letters(tagged map[string][]string) {
	uses := make(map[string]int)
	for _, list := range tagged {
		for _, k := range list {
			uses[k]++
		}
	}
	names := make([]string, 0, len(uses))
	for k := range uses {
		names = append(names, k)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(uses[b], uses[a]), strings.Compare(a, b))
	})
	for _, k := range names {
		if t.Keywords.Index(k) >= 0 {
			continue
		}
		if free := slices.Index(t.Keywords[:], ""); free >= 0 {
			t.Keywords[free] = k
		}
	}
	for base, list := range tagged {
		for _, k := range list {
			if i := t.Keywords.Index(k); i >= 0 {
				t.Letters[base] |= 1 << i
			} else {
				t.Beyond[base] = append(t.Beyond[base], k)
			}
		}
	}
}

// pop3 adds the POP3 keys. A message that only the POP3 server has seen gets a UID, as a key
// needs a line to stand in.
func (t *Takeover) pop3(list []CourierMail) {
	by := make(map[string]CourierMail, len(list))
	for _, c := range list {
		by[c.Base] = c
	}
	l := t.List
	sorted, last := true, uint32(0)
	for i := range l.Entries {
		e := &l.Entries[i]
		c, ok := by[e.Base]
		if !ok {
			continue
		}
		e.POP3, e.Order = c.UIDL(), c.Number
		sorted, last = sorted && c.Number > last, max(last, c.Number)
		delete(by, e.Base)
	}
	rest := make([]CourierMail, 0, len(by))
	for _, c := range by {
		rest = append(rest, c)
	}
	slices.SortFunc(rest, func(a, b CourierMail) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), CompareBase(a.Base, b.Base))
	})
	for _, c := range rest {
		n := max(l.Next, l.Last+1)
		if n >= math.MaxUint32-1 {
			break
		}
		l.Entries = append(l.Entries, UIDEntry{UID: n, Base: c.Base, File: c.Base, Size: -1, Wire: -1, POP3: c.UIDL(), Order: c.Number})
		sorted, last = sorted && c.Number > last, max(last, c.Number)
		l.Last, l.Next = n, n+1
	}
	if sorted { // the order of the UIDs says it all
		for i := range l.Entries {
			l.Entries[i].Order = 0
		}
	}
}

// CompareBase orders messages by the time in their names: seconds, then microseconds, then the
// name itself. New messages get their UIDs in this order.
func CompareBase(a, b string) int {
	as, au := nameTime(a)
	bs, bu := nameTime(b)
	return cmp.Or(cmp.Compare(as, bs), cmp.Compare(au, bu), strings.Compare(a, b))
}

// nameTime reads "<seconds>.M<microseconds>".
func nameTime(base string) (seconds, micro int64) {
	num, rest, _ := strings.Cut(base, ".")
	seconds, _ = decimal(num) // zero for names of another kind
	if i := strings.IndexByte(rest, 'M'); i >= 0 {
		end := i + 1
		for end < len(rest) && rest[end] >= '0' && rest[end] <= '9' {
			end++
		}
		micro, _ = decimal(rest[i+1 : end])
	}
	return seconds, micro
}

// TakeOverCourier makes Dovecot's files of Courier's in the folder dir, whose uidlist and
// keywords are in control, and gives the messages' names their letters. lock is the uidlist's.
// It does nothing where a uidlist is there; that comes last, so that a take-over that was cut
// short begins anew. Courier's files stay. Keywords beyond the letters go to pennypost-meta.
func TakeOverCourier(ctx context.Context, fsys durable.FS, dir, control, root string, lock *UIDLock, now time.Time) (*Takeover, error) {
	if _, err := fsys.Lstat(filepath.Join(control, UIDListName)); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	old, err := readSmall(fsys, filepath.Join(control, KeywordsName), 1<<20)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	have, _ := ParseKeywords(old)
	t, err := ReadCourier(fsys, dir, have)
	if t == nil || err != nil {
		return nil, err
	}
	if t.List.Validity == 0 {
		if t.List.Validity, err = NextUIDValidity(fsys, root, now); err != nil {
			return nil, err
		}
	}
	if t.Keywords != have {
		if err := durable.WriteFileOn(fsys, filepath.Join(control, KeywordsName), t.Keywords.AppendTo(nil), 0o600); err != nil {
			return nil, err
		}
	}
	if err := t.writeBeyond(fsys, control); err != nil {
		return nil, err
	}
	if err := t.rename(ctx, fsys, dir, lock); err != nil {
		return nil, err
	}
	if err := lock.Held(); err != nil {
		return nil, err
	}
	return t, durable.WriteFileOn(fsys, filepath.Join(control, UIDListName), t.List.AppendTo(nil), 0o600)
}

// writeBeyond puts keywords without a letter into pennypost-meta.
func (t *Takeover) writeBeyond(fsys durable.FS, control string) error {
	if len(t.Beyond) == 0 {
		return nil
	}
	m, err := ReadMeta(fsys, control)
	if err != nil {
		return err
	}
	number := make(map[string]int)
	next := MaxKeywords
	for n, k := range m.Keywords {
		number[strings.ToLower(k)] = n
		next = max(next, n+1)
	}
	for base, list := range t.Beyond {
		for _, k := range list {
			n, ok := number[strings.ToLower(k)]
			if !ok {
				n = next
				next++
				number[strings.ToLower(k)], m.Keywords[n] = n, k
			}
			if !slices.Contains(m.Tagged[base], n) {
				m.Tagged[base] = append(m.Tagged[base], n)
			}
		}
		slices.Sort(m.Tagged[base])
	}
	return WriteMeta(fsys, control, m)
}

// rename puts the letters into the names of the messages.
func (t *Takeover) rename(ctx context.Context, fsys durable.FS, dir string, lock *UIDLock) error {
	for _, sub := range []string{"new", "cur"} {
		names, err := readDir(fsys, filepath.Join(dir, sub))
		if err != nil {
			return fmt.Errorf("take over %s: %w", dir, err)
		}
		changed := false
		for _, file := range names {
			n := ParseName(file)
			bits := t.Letters[n.Base]
			if bits&^n.Keywords == 0 || !ValidName(file) {
				continue
			}
			if err := cmp.Or(ctx.Err(), lock.Touch()); err != nil {
				return err
			}
			to := n.With(n.Flags, n.Keywords|bits).String()
			err := fsys.Rename(filepath.Join(dir, sub, file), filepath.Join(dir, sub, to))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("take over %s: %w", dir, err)
			}
			changed = true
		}
		if changed {
			if err := durable.SyncDirOn(fsys, filepath.Join(dir, sub)); err != nil {
				return err
			}
		}
	}
	return nil
}

// ParseCourierACL reads courierimapacl, an identifier and its rights a line, as identifiers of
// RFC 4314 §2. Owner and administrators, whom Courier writes down everywhere, are left out: the
// owner has all rights, and the server has no administrators.
func ParseCourierACL(data string) map[string]string {
	acl := make(map[string]string)
	for line := range strings.SplitSeq(data, "\n") {
		i := strings.LastIndexByte(line, ' ')
		if i <= 0 || i+1 == len(line) {
			continue
		}
		switch who := strings.TrimPrefix(line[:i], "user="); who {
		case "owner", "administrators", "":
		default:
			acl[who] = line[i+1:]
		}
	}
	return acl
}
