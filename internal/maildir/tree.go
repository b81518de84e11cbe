package maildir

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"pennypost/internal/durable"
)

// ErrBadMailbox is wrapped when a mailbox can have no directory because of its name.
var ErrBadMailbox = errors.New("not a name for a mailbox")

// Inbox is the mailbox that the root of a tree is, in this case only. RFC 9051 §5.1: clients may
// write it in any.
const Inbox = "INBOX"

// Layout is how the directories of a tree lie.
type Layout int

// LayoutPlus is Maildir++, "A/B" in .A.B beside the inbox; LayoutFS is Dovecot's LAYOUT=fs, A/B.
const (
	LayoutPlus Layout = iota
	LayoutFS
)

// FolderFile is the empty file that tells a delivery agent that a directory is a folder of
// Maildir++ and the quota is counted one level higher.
const FolderFile = "maildirfolder"

// maxDepth bounds the levels of a mailbox name.
const maxDepth = 64

// Tree maps the mailboxes of an account to directories. Mailbox names are UTF-8 with "/" between
// levels. It may be used concurrently.
type Tree struct {
	Root   string
	Layout Layout
	UTF8   bool // directory names are UTF-8 and not modified UTF-7
	// Control and Index are roots of trees of their own for uidlists and for indexes, as
	// Dovecot's CONTROL and INDEX have them; "" is in the folders.
	Control, Index string
	// Escape, when not 0, starts the two hex digits of an octet that cannot stand in a directory
	// name, as Dovecot's plugin listescape has it with a backslash.
	Escape byte
}

// Folder is a directory of a tree that holds mail or folders that do.
type Folder struct {
	Name string // of the mailbox
	Path string
	// Selectable: there is a Maildir; otherwise only mailboxes below it.
	Selectable bool
}

// Dir is the Maildir of a mailbox, which need not exist.
func (t *Tree) Dir(mailbox string) (string, error) {
	if mailbox == Inbox {
		return t.Root, nil
	}
	rel, err := t.relative(mailbox)
	if err != nil {
		return "", err
	}
	return filepath.Join(t.Root, rel), nil
}

// ControlDir is where the uidlist and the keywords of a mailbox are.
func (t *Tree) ControlDir(mailbox string) (string, error) { return t.beside(t.Control, mailbox) }

// IndexDir is where the index of a mailbox is.
func (t *Tree) IndexDir(mailbox string) (string, error) { return t.beside(t.Index, mailbox) }

// ControlRoot is where subscriptions and dovecot-uidvalidity are.
func (t *Tree) ControlRoot() string { return cmp.Or(t.Control, t.Root) }

func (t *Tree) beside(root, mailbox string) (string, error) {
	if root == "" {
		return t.Dir(mailbox)
	}
	if mailbox == Inbox { // it has a place of its own there, in Dovecot's trees too
		if t.Layout == LayoutFS {
			return filepath.Join(root, Inbox), nil
		}
		return filepath.Join(root, "."+Inbox), nil
	}
	rel, err := t.relative(mailbox)
	if err != nil {
		return "", err
	}
	return filepath.Join(root, rel), nil
}

// relative is the directory of a mailbox below the root; it never leads out of it.
func (t *Tree) relative(mailbox string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("%q: %w: %s", mailbox, ErrBadMailbox, why)
	}
	levels := strings.Split(mailbox, "/")
	switch {
	case !utf8.ValidString(mailbox):
		return bad("not UTF-8")
	case len(levels) > maxDepth:
		return bad("too many levels")
	case len(levels) == 1 && strings.EqualFold(mailbox, Inbox):
		return bad("the inbox is spelled " + Inbox)
	}
	for i, l := range levels {
		if l == "" {
			return bad("a level is empty")
		}
		for _, r := range l {
			if r < ' ' || r == 0x7f {
				return bad("it holds a control character")
			}
		}
		l = t.escape(l)
		if !t.UTF8 {
			l = EncodeMUTF7(l)
		}
		switch {
		case t.Layout == LayoutPlus && strings.IndexByte(l, '.') >= 0:
			return bad("a dot separates levels on disk")
		case t.Layout == LayoutFS && (len(l) > 255 || reserved(l)):
			return bad("a level is the name of something else on disk, or too long")
		}
		levels[i] = l
	}
	if t.Layout == LayoutFS {
		return strings.Join(levels, "/"), nil
	}
	dir := "." + strings.Join(levels, ".")
	if len(dir) > 255 {
		return bad("it is too long")
	}
	return dir, nil
}

// reserved tells whether a directory of the fs layout would stand in the way of a Maildir's own
// names.
func reserved(level string) bool {
	switch level {
	case ".", "..", "cur", "new", "tmp", "subscriptions", "maildirsize", FolderFile:
		return true
	}
	for _, p := range []string{"dovecot-", "dovecot.", "courierimap", "courierpop3", "pennypost-"} {
		if strings.HasPrefix(level, p) {
			return true
		}
	}
	return false
}

const hexDigits = "0123456789abcdef"

// escape replaces what a level cannot hold on disk.
func (t *Tree) escape(level string) string {
	if t.Escape == 0 {
		return level
	}
	var b strings.Builder
	for i := 0; i < len(level); i++ {
		c := level[i]
		hide := c == t.Escape || c == '.' && t.Layout == LayoutPlus || c == '~' && i == 0
		if t.Layout == LayoutFS && i == 0 && reserved(level) {
			hide = true
		}
		if hide {
			b.Write([]byte{t.Escape, hexDigits[c>>4], hexDigits[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func (t *Tree) unescape(level string) (string, bool) {
	if t.Escape == 0 || strings.IndexByte(level, t.Escape) < 0 {
		return level, true
	}
	var b strings.Builder
	for i := 0; i < len(level); i++ {
		if level[i] != t.Escape {
			b.WriteByte(level[i])
			continue
		}
		if i+2 >= len(level) {
			return "", false
		}
		hi, lo := strings.IndexByte(hexDigits, level[i+1]), strings.IndexByte(hexDigits, level[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	return b.String(), true
}

// Name is the mailbox whose directory is rel below the root, "." for the inbox. ok is false for
// a directory that no mailbox name leads to.
func (t *Tree) Name(rel string) (mailbox string, ok bool) {
	if rel == "." {
		return Inbox, true
	}
	sep, path := "/", rel
	if t.Layout == LayoutPlus {
		if sep, path = ".", strings.TrimPrefix(rel, "."); path == rel {
			return "", false
		}
	}
	levels := strings.Split(path, sep)
	for i, l := range levels {
		if !t.UTF8 {
			if l, ok = DecodeMUTF7(l); !ok {
				return "", false
			}
		}
		if l, ok = t.unescape(l); !ok || strings.IndexByte(l, '/') >= 0 {
			return "", false
		}
		levels[i] = l
	}
	mailbox = strings.Join(levels, "/")
	back, err := t.relative(mailbox)
	return mailbox, err == nil && back == rel
}

// List finds the folders of the tree, in the order of their names, the inbox first. A folder is
// a directory with cur/. bad are the directories (below the root) that look like folders but
// have no mailbox name, with which no client can reach them.
func (t *Tree) List(fsys durable.FS) (found []Folder, bad []string, err error) {
	if _, err := fsys.Lstat(filepath.Join(t.Root, "cur")); err == nil {
		found = append(found, Folder{Name: Inbox, Path: t.Root, Selectable: true})
	}
	var rels []string
	if t.Layout == LayoutFS {
		rels, err = walk(fsys, t.Root, "", 0)
	} else {
		rels, err = plus(fsys, t.Root)
	}
	if err != nil {
		return nil, nil, err
	}
	first := len(found)
	parents := make(map[string]bool)
	for _, rel := range rels {
		name, ok := t.Name(rel)
		if !ok {
			bad = append(bad, rel)
			continue
		}
		parents[name] = true
		found = append(found, Folder{Name: name, Path: filepath.Join(t.Root, rel), Selectable: true})
	}
	for _, f := range found[first:] {
		for i := strings.LastIndexByte(f.Name, '/'); i > 0; i = strings.LastIndexByte(f.Name[:i], '/') {
			up := f.Name[:i]
			if up == Inbox || parents[up] {
				continue
			}
			parents[up] = true
			rel, err := t.relative(up)
			if err != nil {
				continue // "inbox/x" below no inbox
			}
			found = append(found, Folder{Name: up, Path: filepath.Join(t.Root, rel)})
		}
	}
	slices.SortFunc(found[first:], func(a, b Folder) int { return strings.Compare(a.Name, b.Name) })
	return found, bad, nil
}

// plus lists the folders of Maildir++.
func plus(fsys durable.FS, root string) ([]string, error) {
	names, err := readDir(fsys, root)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(names, func(n string) bool {
		return len(n) < 2 || n[0] != '.' || n == ".." || !isFolder(fsys, filepath.Join(root, n))
	}), nil
}

// walk lists the folders of the layout fs below dir. It does not follow symbolic links further
// down, which may lead back.
func walk(fsys durable.FS, root, dir string, depth int) (found []string, err error) {
	names, err := readDir(fsys, filepath.Join(root, dir))
	if err != nil || depth > maxDepth {
		return nil, err
	}
	for _, n := range names {
		rel := filepath.Join(dir, n)
		path := filepath.Join(root, rel)
		if n == "cur" || n == "new" || n == "tmp" {
			continue
		}
		info, err := fsys.Lstat(path)
		if err != nil || !info.IsDir() && info.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		if isFolder(fsys, path) {
			found = append(found, rel)
		}
		if !info.IsDir() {
			continue
		}
		below, err := walk(fsys, root, rel, depth+1)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		found = append(found, below...)
	}
	return found, nil
}

func isFolder(fsys durable.FS, dir string) bool {
	info, err := fsys.Lstat(filepath.Join(dir, "cur"))
	return err == nil && (info.IsDir() || info.Mode()&fs.ModeSymlink != 0)
}

func readDir(fsys durable.FS, dir string) ([]string, error) {
	f, err := fsys.OpenFile(dir, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	return names, errors.Join(err, f.Close())
}
