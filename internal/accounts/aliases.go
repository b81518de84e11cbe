package accounts

import (
	"errors"
	"fmt"
	"strings"

	"pennypost/internal/envelope"
)

// maxTargets bounds the targets of one alias, include file or forward file.
const maxTargets = 100_000

// TargetKind says what a target of an alias or forward is.
type TargetKind int

// The kinds of a Target.
const (
	ToAddress TargetKind = iota // Addr; an empty Domain is the first local one; an empty Local keeps the one asked for
	ToUser                      // Addr, without looking at aliases or forwards: \user
	ToProgram                   // Text is the command
	ToFile                      // Text is the path, of a Maildir if it ends in a slash
	ToInclude                   // Text is the path of a list of targets
	ToError                     // Text says what is wrong with it
)

// Target is one destination in an alias or forward file.
type Target struct {
	Kind TargetKind
	Addr envelope.Address
	Text string
}

// String returns the target as it is written in aliases(5).
func (t Target) String() string {
	switch t.Kind {
	case ToUser:
		return `\` + t.Addr.String()
	case ToProgram:
		return quoteItem("|" + t.Text)
	case ToFile:
		return quoteItem(t.Text)
	case ToInclude:
		return quoteItem(":include:" + t.Text)
	case ToError:
		return quoteItem(t.Text)
	}
	if t.Addr.Local == "" {
		return "@" + t.Addr.Domain
	}
	s := t.Addr.String()
	if s != "" && strings.IndexByte(`/|\@:"<`, s[0]) >= 0 {
		return "<" + s + ">" // it would be taken for a file, a program, a quoted item ...
	}
	return s
}

func quoteItem(s string) string {
	if !strings.ContainsAny(s, " \t,\"\\#:") {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// Alias is one entry of an aliases file.
type Alias struct {
	Name    string
	Targets []Target
	File    string // "" when configuration made it
	UID     uint32 // owner of File: decides as whom its programs run
}

type aliasTable struct {
	byKey  map[string]*Alias
	broken error
}

// parseAliasFile reads aliases(5). A line that begins with white space continues the one
// before; blank lines and comments do not end an entry.
func parseAliasFile(path, data string, owner uint32) (*aliasTable, error) {
	t := &aliasTable{byKey: map[string]*Alias{}}
	entry, start := "", 0
	flush := func() {
		if entry == "" {
			return
		}
		al, err := parseEntry(entry)
		if err != nil {
			if t.broken == nil {
				t.broken = fmt.Errorf("%s:%d: %w", path, start, err)
			}
		} else if t.byKey[al.Name] == nil {
			al.File, al.UID = path, owner
			t.byKey[al.Name] = al
		}
		entry = ""
	}
	var parts []string
	join := func() {
		if len(parts) > 0 {
			entry = strings.Join(parts, " ")
			parts = parts[:0]
		}
		flush()
	}
	eachLine(data, func(n int, line string) {
		if line[0] == ' ' || line[0] == '\t' {
			if len(parts) > 0 {
				parts = append(parts, trim(line))
				return
			}
		}
		join()
		parts, start = append(parts, trim(line)), n
	})
	join()
	return t, nil
}

// parseEntry reads one logical line, name: targets.
func parseEntry(s string) (*Alias, error) {
	i := unquotedIndex(s, ':')
	if i < 0 {
		return nil, errors.New("no colon after the name")
	}
	name := trim(s[:i])
	if q, ok := unquoteItem(name); ok {
		name = q
	}
	key, err := aliasKey(name)
	if err != nil {
		return nil, err
	}
	al := &Alias{Name: key, Targets: parseTargets(s[i+1:])}
	if len(al.Targets) == 0 {
		al.Targets = []Target{{Kind: ToError, Text: "alias " + key + " has no target"}}
	}
	return al, nil
}

// aliasKey puts a name into the form looked up: lower case, name, name@domain or @domain.
func aliasKey(name string) (string, error) {
	if d, ok := strings.CutPrefix(name, "@"); ok {
		d = foldDomain(d)
		return "@" + d, envelope.CheckDomain(d)
	}
	if a, err := envelope.ParseLocal(name, ""); err == nil {
		if a.Domain == "" {
			return strings.ToLower(a.Local), nil
		}
		return envelope.Address{Local: strings.ToLower(a.Local), Domain: foldDomain(a.Domain)}.String(), nil
	}
	// An unquoted name with spaces, from a quoted key.
	a := envelope.Address{Local: name}
	if _, err := envelope.ParseLocal(a.String(), ""); err != nil {
		return "", err
	}
	return strings.ToLower(name), nil
}

// ParseForward reads a forward or include file: targets separated by commas and line ends.
func ParseForward(data string) []Target {
	var all []Target
	eachLine(data, func(_ int, line string) {
		if len(all) < maxTargets {
			all = append(all, parseTargets(line)...)
		}
	})
	if len(all) > maxTargets {
		return []Target{{Kind: ToError, Text: "too many targets"}}
	}
	return all
}

// parseTargets reads the part after the colon.
func parseTargets(s string) []Target {
	var all []Target
	for more := true; more; {
		item := s
		if i := unquotedIndex(s, ','); i >= 0 {
			item, s = s[:i], s[i+1:]
		} else {
			more = false
		}
		if item = trim(item); item != "" {
			all = append(all, parseTarget(item))
		}
		if len(all) > maxTargets {
			return []Target{{Kind: ToError, Text: "too many targets"}}
		}
	}
	return all
}

// unquotedIndex finds c outside double quotes.
func unquotedIndex(s string, c byte) int {
	in := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && in:
			i++
		case s[i] == '"':
			in = !in
		case s[i] == c && !in:
			return i
		}
	}
	return -1
}

// unquoteItem returns the inside of s when s is one quoted string as a whole.
func unquoteItem(s string) (string, bool) {
	if len(s) < 2 || s[0] != '"' {
		return s, false
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case s[i] == '"':
			return b.String(), i == len(s)-1
		default:
			b.WriteByte(s[i])
		}
	}
	return s, false
}

// parseTarget reads one item; what cannot be used becomes a ToError, so that the mail waits
// for a repair instead of going to fewer people than meant.
func parseTarget(item string) Target {
	s := item
	if q, ok := unquoteItem(item); ok {
		s = trim(q)
	}
	bad := func(why string) Target { return Target{Kind: ToError, Text: fmt.Sprintf("%s: %s", why, s)} }
	if strings.IndexByte(s, 0) >= 0 {
		return Target{Kind: ToError, Text: "NUL in a target"}
	}
	switch {
	case strings.HasPrefix(s, "|"):
		cmd := trim(s[1:])
		if q, ok := unquoteItem(cmd); ok {
			cmd = trim(q) // |"command", sendmail's other way to write it
		}
		if cmd == "" {
			return bad("no command")
		}
		return Target{Kind: ToProgram, Text: cmd}
	case strings.HasPrefix(s, "/"):
		return Target{Kind: ToFile, Text: s}
	case len(s) >= 9 && strings.EqualFold(s[:9], ":include:"):
		p := trim(s[9:])
		if q, ok := unquoteItem(p); ok {
			p = trim(q)
		}
		if !strings.HasPrefix(p, "/") {
			return bad("include needs an absolute path")
		}
		return Target{Kind: ToInclude, Text: p}
	case strings.HasPrefix(s, `\`):
		a, err := envelope.ParseLocal(s[1:], "")
		if err != nil {
			return bad(err.Error())
		}
		return Target{Kind: ToUser, Addr: a}
	case strings.HasPrefix(s, "@"):
		d := s[1:]
		if err := envelope.CheckDomain(envelope.FoldDomain(d)); err != nil {
			return bad(err.Error())
		}
		return Target{Kind: ToAddress, Addr: envelope.Address{Domain: envelope.FoldDomain(d)}}
	}
	if i := unquotedIndex(item, '<'); i >= 0 && strings.HasSuffix(item, ">") {
		s = item[i+1 : len(item)-1] // Ann <ann@x.test>
		item = s
	}
	a, err := envelope.ParseLocal(s, "")
	if err != nil {
		a, err = envelope.ParseLocal(item, "") // "quoted name"
	}
	if err != nil {
		return bad(err.Error())
	}
	return Target{Kind: ToAddress, Addr: a}
}

// Include returns the targets in a file that an alias names with :include:. Files are kept and
// read again when they changed. Programs and files are not obeyed there: whoever may edit a
// list of addresses has not been given the right to run something.
func (a *Accounts) Include(path string) ([]Target, error) {
	a.mu.Lock()
	f := a.includes[path]
	if f == nil {
		f = newFile(path, func(_, data string, _ uint32) ([]Target, error) {
			ts := ParseForward(data)
			for i, t := range ts {
				if t.Kind == ToProgram || t.Kind == ToFile {
					ts[i] = Target{Kind: ToError, Text: "programs and files are not allowed in an include file: " + t.Text}
				}
			}
			return ts, nil
		})
		a.includes[path] = f
	}
	a.mu.Unlock()
	ts, err := f.get(false)
	return ts, tempOrNil(err)
}
