package maildir

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// SubscriptionsName is Dovecot's list of the mailboxes that the user has subscribed to, in the
// control root of the tree.
const SubscriptionsName = "subscriptions"

// subscriptionsHeader starts the format of Dovecot 2.2 and later.
const subscriptionsHeader = "V\t2\n\n"

// Subscriptions are names of mailboxes, each once, in the order of the file. A mailbox need not
// exist.
type Subscriptions struct {
	Names []string
	Kept  []string // lines that no name can be made of, kept
}

// ParseSubscriptions reads the file in either format: of Dovecot 2.2, levels separated by a TAB,
// or the older one with the separator of the layout.
func (t *Tree) ParseSubscriptions(data []byte) Subscriptions {
	rest, tabs := bytes.CutPrefix(data, []byte(subscriptionsHeader))
	sep := "/"
	switch {
	case tabs:
		sep = "\t"
	case t.Layout == LayoutPlus:
		sep = "."
	}
	var s Subscriptions
	seen := make(map[string]bool)
	for line := range strings.SplitSeq(string(rest), "\n") {
		if line == "" {
			continue
		}
		name, ok := t.subscribed(line, sep)
		switch {
		case !ok:
			if _, other := t.subscribed(line, "\t"); !other { // or it would become a name when written
				s.Kept = append(s.Kept, line)
			}
		case !seen[name]:
			seen[name] = true
			s.Names = append(s.Names, name)
		}
	}
	return s
}

// subscribed is the mailbox name that a line stands for.
func (t *Tree) subscribed(line, sep string) (string, bool) {
	if strings.EqualFold(line, Inbox) {
		return Inbox, true
	}
	levels := strings.Split(line, sep)
	for i, l := range levels {
		ok := true
		if sep == "\t" {
			l, ok = tabUnescape(l)
		}
		// Dovecot writes names as they are on disk, and UTF-8 since 2.4.
		if ok && !t.UTF8 {
			if name, mutf7 := DecodeMUTF7(l); mutf7 {
				l = name
			} else if !utf8.ValidString(l) || isASCII(l) {
				ok = false
			}
		}
		if ok {
			l, ok = t.unescape(l)
		}
		if !ok || l == "" || !utf8.ValidString(l) || strings.ContainsFunc(l, func(r rune) bool { return r < ' ' || r == '/' }) {
			return "", false
		}
		levels[i] = l
	}
	return strings.Join(levels, "/"), true
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// AppendSubscriptions appends the file in the format of Dovecot 2.2 and later.
func (t *Tree) AppendSubscriptions(dst []byte, s Subscriptions) []byte {
	dst = append(dst, subscriptionsHeader...)
	for _, name := range s.Names {
		if name == "" || strings.ContainsAny(name, "\n\r\x00") {
			continue // no mailbox
		}
		for i, l := range strings.Split(name, "/") {
			if i > 0 {
				dst = append(dst, '\t')
			}
			l = t.escape(l)
			if !t.UTF8 {
				l = EncodeMUTF7(l)
			}
			dst = append(dst, tabEscape(l)...)
		}
		dst = append(dst, '\n')
	}
	for _, line := range s.Kept {
		dst = append(append(dst, line...), '\n')
	}
	return dst
}

// tabEscape hides what would break a line into other fields, as Dovecot does it.
func tabEscape(s string) string {
	return strings.NewReplacer("\x01", "\x011", "\t", "\x01t", "\r", "\x01r", "\n", "\x01n", "\x00", "\x010").Replace(s)
}

func tabUnescape(s string) (string, bool) {
	if strings.IndexByte(s, 1) < 0 {
		return s, true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != 1 {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) {
			return "", false
		}
		k := strings.IndexByte("1trn0", s[i])
		if k < 0 {
			return "", false
		}
		b.WriteByte("\x01\t\r\n\x00"[k])
	}
	return b.String(), true
}
