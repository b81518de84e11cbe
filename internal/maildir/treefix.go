package maildir

import (
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"pennypost/internal/durable"
)

// Repair proposes another name for a directory that List found but no mailbox name leads to.
// from is the directory to rename, rel itself or one above it, to its new name; nothing is there
// yet.
func (t *Tree) Repair(fsys durable.FS, rel string) (from, to string, ok bool) {
	from = rel
	if t.Layout == LayoutFS { // the first level that is wrong
		parts := strings.Split(rel, "/")
		for i := range parts {
			from = strings.Join(parts[:i+1], "/")
			if _, good := t.Name(from); !good {
				break
			}
		}
	}
	name := t.lenient(from)
	const tries = 100
	for n := 1; n <= tries; n++ {
		candidate := name
		if n > 1 {
			candidate += "-" + strconv.Itoa(n)
		}
		to, err := t.relative(candidate)
		if err != nil {
			continue // "inbox" is none, "inbox-2" is one
		}
		if _, err := fsys.Lstat(filepath.Join(t.Root, to)); err != nil {
			return from, to, true
		}
	}
	return "", "", false
}

// lenient is the mailbox name that a directory was probably meant to have.
func (t *Tree) lenient(rel string) string {
	sep, path := "/", rel
	if t.Layout == LayoutPlus {
		sep, path = ".", strings.TrimPrefix(rel, ".")
	}
	levels := strings.Split(path, sep)
	for i, l := range levels {
		if !t.UTF8 {
			if name, ok := DecodeMUTF7(l); ok {
				l = name
			}
		}
		if name, ok := t.unescape(l); ok {
			l = name
		}
		l = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f || r == '/' || r == utf8.RuneError || r == '.' && t.Layout == LayoutPlus {
				return '_'
			}
			return r
		}, l)
		if l == "" || t.Layout == LayoutFS && reserved(l) {
			l = "_" + l
		}
		levels[i] = l
	}
	return strings.Join(levels, "/")
}
