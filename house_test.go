// Package house_test holds the rules of the house that the compiler does not know: which
// package may import which, who may touch the disk, what a file may refer to.
package house_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "pennypost"

// levels says how high a package of internal/ stands; imports go to strictly lower levels.
var levels = map[string]int{
	"envelope": 0, "durable": 0, "imapwire": 0, "password": 0,
	"sasl": 1, "config": 1, "message": 1, "spool": 1, "maildir": 1, "smtp": 1, "resolve": 1,
	"accounts": 1, "worker": 1, "certs": 1,
	"auth": 2, "token": 2, "handover": 2, "mailbox": 2, "imapclient": 2, "dsn": 2, "policy": 2, "hook": 2, "milter": 2, "submit": 2, "relay": 2, "deliver": 2,
	"sched": 3, "transfer": 3, "login": 3,
	"pop3": 4, "imap": 4, "smtpd": 4,
	"cli": edge, "serve": edge, "mailtest": edge,
	"daemon": edge + 1,
}

const edge = 9

// sideways lists the imports within one level: a protocol stands on its mechanisms.
var sideways = map[string]string{"smtp": "sasl"}

// hides lists packages of level 0 that exist to hide one third-party module.
var hides = map[string]string{"password": "github.com/go-crypt/"}

type pkg struct {
	ImportPath string
	Dir        string
	Name       string
	GoFiles    []string
	Imports    []string
	Module     *struct{ Path string }
	Standard   bool
	Export     string // file with the compiled types
}

// noun is the first element below internal/, "" elsewhere.
func noun(importPath string) string {
	rest, ok := strings.CutPrefix(importPath, module+"/internal/")
	if !ok {
		return ""
	}
	n, _, _ := strings.Cut(rest, "/")
	return n
}

// list asks the go command for our packages and everything they import.
func list(t *testing.T) (ours []pkg, all map[string]pkg) {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-export", "-deps", "-tags", "urfave_cli_no_docs",
		"-json=ImportPath,Dir,Name,GoFiles,Imports,Module,Standard,Export", "./...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all = make(map[string]pkg)
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return ours, all
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
		if p.Module != nil && p.Module.Path == module {
			ours = append(ours, p)
		}
	}
}

// arrow tells what is wrong with p importing imp, both of this module; "" is nothing.
func arrow(p, imp string) string {
	from, to := noun(p), noun(imp)
	shipped := !strings.HasPrefix(p, module+"/scripts/")
	switch {
	case to == "" && strings.HasPrefix(imp, module+"/"):
		return "a program is not a library"
	case to == "":
		return ""
	case from == to:
		return "" // parts of one noun
	}
	high, known := levels[to]
	if !known {
		return "internal/" + to + " has no level: add it to the table of this test"
	}
	if to == "mailtest" && shipped {
		return "mailtest is for tests and scripts alone"
	}
	if from == "" {
		return "" // cmd and scripts stand above all
	}
	low, known := levels[from]
	switch {
	case !known:
		return "internal/" + from + " has no level: add it to the table of this test"
	case to == "config" && from != "cli" && from != "daemon" && from != "mailtest":
		return "only cmd reads the configuration; take an Options struct"
	case high >= low && sideways[from] != to:
		return fmt.Sprintf("level %d imports level %d", low, high)
	}
	return ""
}

func TestImportsGoDown(t *testing.T) {
	ours, all := list(t)
	if len(ours) < 3 {
		t.Fatalf("go list shows %d packages of ours", len(ours))
	}
	for _, p := range ours {
		for _, imp := range p.Imports {
			q := all[imp]
			switch {
			case q.Module != nil && q.Module.Path == module:
				if why := arrow(p.ImportPath, imp); why != "" {
					t.Errorf("%s imports %s: %s", p.ImportPath, imp, why)
				}
			case !q.Standard && isLevel0(p.ImportPath) && !strings.HasPrefix(imp, "golang.org/x/") && !hidden(p.ImportPath, imp):
				t.Errorf("%s imports %s: level 0 uses the standard library and golang.org/x only", p.ImportPath, imp)
			}
		}
	}
}

func isLevel0(importPath string) bool {
	n := noun(importPath)
	return n != "" && levels[n] == 0
}

func hidden(importPath, imp string) bool {
	mod, ok := hides[noun(importPath)]
	return ok && strings.HasPrefix(imp, mod)
}

// The rule itself is tested, or a slip in the table's reading would let everything pass.
func TestArrow(t *testing.T) {
	for _, c := range []struct {
		from, to string
		ok       bool
	}{
		{"internal/spool", "internal/durable", true},
		{"internal/durable", "internal/spool", false},
		{"internal/spool", "internal/maildir", false},
		{"internal/smtp", "internal/sasl", true},
		{"internal/sasl", "internal/smtp", false},
		{"internal/submit", "internal/sched", false},
		{"internal/submit", "internal/config", false},
		{"internal/cli", "internal/config", true},
		{"internal/smtpd", "internal/serve", false},
		{"internal/daemon", "internal/serve", true},
		{"internal/daemon/login", "internal/config", true},
		{"internal/serve", "internal/daemon", false},
		{"internal/smtp", "internal/mailtest", false},
		{"internal/mailtest/peer", "internal/mailtest", true},
		{"internal/nowhere", "internal/spool", false},
		{"cmd/msend", "internal/submit", true},
		{"cmd/msend", "internal/mailtest", false},
		{"cmd/msend", "cmd/mqueue", false},
		{"scripts/dnsd", "internal/mailtest", true},
	} {
		if why := arrow(module+"/"+c.from, module+"/"+c.to); (why == "") != c.ok {
			t.Errorf("%s -> %s: %q, want ok %v", c.from, c.to, why, c.ok)
		}
	}
}

// Each third-party module has one importing package among the shipped ones, so that replacing
// it is one package's work. The flag library is cli's and cmd's.
func TestOneImporterPerModule(t *testing.T) {
	ours, all := list(t)
	users := make(map[string][]string)
	for _, p := range ours {
		n := noun(p.ImportPath)
		if strings.HasPrefix(p.ImportPath, module+"/scripts/") || n == "mailtest" {
			continue
		}
		for _, imp := range p.Imports {
			q := all[imp]
			if q.Standard || q.Module == nil || q.Module.Path == module {
				continue
			}
			mod := q.Module.Path
			switch {
			case mod == "golang.org/x/net" && n != "resolve" && imp == "golang.org/x/net/idna":
				t.Errorf("%s imports %s: its tables cost each start 1 ms; only resolve may", p.ImportPath, imp)
			case strings.HasPrefix(mod, "golang.org/x/"):
			case mod == "github.com/urfave/cli/v2":
				if n != "cli" && !strings.HasPrefix(p.ImportPath, module+"/cmd/") {
					t.Errorf("%s imports the flag library", p.ImportPath)
				}
			case !slices.Contains(users[mod], p.ImportPath):
				users[mod] = append(users[mod], p.ImportPath)
			}
		}
	}
	for mod, who := range users {
		if len(who) > 1 {
			t.Errorf("%s is imported by %s: one of them owns it", mod, strings.Join(who, ", "))
		}
	}
}

// calls lists the functions that only some packages may use, with those packages (nouns of
// internal/; "cmd" is all programs).
var calls = map[string][]string{
	"(*os.File).Sync":                 {"durable"},
	"os.Link":                         {"durable"},
	"os.Rename":                       {"durable"},
	"golang.org/x/sys/unix.Fsync":     {"durable"},
	"golang.org/x/sys/unix.Fdatasync": {"durable"},
	"golang.org/x/sys/unix.Linkat":    {"durable"},
	"golang.org/x/sys/unix.Renameat":  {"durable"},
	"golang.org/x/sys/unix.Renameat2": {"durable"},
	"syscall.Fsync":                   {"durable"},
	"os.Exit":                         {"cli", "cmd"},
	"log.Fatal":                       {},
	"log.Fatalf":                      {},
	"os.Getenv":                       {"cli", "config", "serve", "cmd"},
	"os.LookupEnv":                    {"cli", "config", "serve", "cmd"},
	"panic":                           {},
}

const (
	maxFunc = 80
	maxFile = 800
	maxMain = 150
)

// TestSizes keeps functions and files to what one can read at a time.
func TestSizes(t *testing.T) {
	fset := token.NewFileSet()
	for _, name := range files(t) {
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		limit := maxFile
		if strings.HasPrefix(name, "cmd/") && filepath.Base(name) == "main.go" {
			limit = maxMain
		}
		if lines := fset.Position(f.FileEnd).Line; lines > limit {
			t.Errorf("%s has %d lines, more than %d: split it by topic", name, lines, limit)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if l := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line; l > maxFunc {
				t.Errorf("%s: %s has %d lines, more than %d: split it by its stages", fset.Position(fn.Pos()), fn.Name.Name, l, maxFunc)
			}
		}
	}
}

// TestCalls type-checks what ships and looks at every call it makes.
func TestCalls(t *testing.T) {
	ours, all := list(t)
	fset := token.NewFileSet()
	imp := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(all[path].Export) })
	seen := 0
	for _, p := range ours {
		who := noun(p.ImportPath)
		if strings.HasPrefix(p.ImportPath, module+"/cmd/") {
			who = "cmd"
		}
		if who == "" || who == "mailtest" {
			continue
		}
		var syntax []*ast.File
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			syntax = append(syntax, f)
		}
		info := &types.Info{Uses: make(map[*ast.Ident]types.Object)}
		if _, err := (&types.Config{Importer: imp}).Check(p.ImportPath, fset, syntax, info); err != nil {
			t.Errorf("%v", err)
			continue
		}
		for id, obj := range info.Uses {
			name := fullName(obj)
			allowed, listed := calls[name]
			if !listed {
				continue
			}
			seen++
			if !slices.Contains(allowed, who) {
				t.Errorf("%s: %s uses %s; only %v may", fset.Position(id.Pos()), who, name, allowed)
			}
		}
	}
	if seen == 0 {
		t.Error("not one of the listed calls was found, not even in durable: this test sees nothing")
	}
}

// fullName is "os.Link", "(*os.File).Sync" or the name of a built-in.
func fullName(obj types.Object) string {
	switch o := obj.(type) {
	case *types.Func:
		return o.FullName()
	case *types.Builtin:
		return o.Name()
	}
	return ""
}

// files lists what belongs to the repository, also where git is not at hand.
func files(t *testing.T) []string {
	t.Helper()
	if out, err := exec.Command("git", "ls-files", "-z").Output(); err == nil && len(out) > 0 {
		var names []string
		for _, n := range strings.Split(strings.TrimRight(string(out), "\x00"), "\x00") {
			if _, err := os.Lstat(n); err == nil {
				names = append(names, n)
			}
		}
		return names
	}
	var names []string
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (path == "bin" || path == ".git") {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() {
			names = append(names, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// The repository stands by itself: nothing in it points to the machine it was written on.
func TestNoOutsideReferences(t *testing.T) {
	outside := []string{"." + "./shared", "/work" + "/main", "/work" + "/shared", "/work" + "/plan", "." + "library/"}
	for _, name := range files(t) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, o := range outside {
			if i := strings.Index(string(b), o); i >= 0 {
				t.Errorf("%s:%d refers to %s", name, 1+strings.Count(string(b[:i]), "\n"), o)
			}
		}
	}
}

// Every program has a manual page, and every page a program or a format behind its name.
func TestManuals(t *testing.T) {
	mains, err := filepath.Glob("cmd/*/main.go")
	if err != nil || len(mains) == 0 {
		t.Skip("no programs yet")
	}
	for _, m := range mains {
		tool := filepath.Base(filepath.Dir(m))
		pages, err := filepath.Glob("man/" + tool + ".[1-8]")
		if err != nil || len(pages) != 1 {
			t.Errorf("%s has %d manual pages, want one (%v)", tool, len(pages), pages)
		}
	}
}

var (
	cited   = regexp.MustCompile(`RFC[ -]?(\d{3,5}),? §+([0-9A-Z][0-9A-Za-z.]*)((?:(?:,| and|, and| to|–|-) §?[0-9A-Z]+\.[0-9.]+)*)`)
	further = regexp.MustCompile(`[0-9A-Z]+\.[0-9.]+`)
)

// TestCitations checks that each cited section exists. RFC_DIR names a directory of
// rfcNNNN.txt files.
func TestCitations(t *testing.T) {
	dir := os.Getenv("RFC_DIR")
	if dir == "" {
		t.Skip("RFC_DIR is not set: no RFC texts to check citations against")
	}
	sections := make(map[string]map[string]bool)
	n := 0
	for _, name := range files(t) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, m := range cited.FindAllStringSubmatch(string(b), -1) {
			have, ok := sections[m[1]]
			if !ok {
				have = headings(filepath.Join(dir, "rfc"+m[1]+".txt"))
				sections[m[1]] = have
				if have == nil {
					t.Logf("no text of RFC %s: its citations are not checked", m[1])
				}
			}
			if have == nil {
				continue
			}
			for _, s := range append([]string{m[2]}, further.FindAllString(m[3], -1)...) {
				n++
				if s = strings.TrimRight(s, "."); !have[s] {
					t.Errorf("%s cites RFC %s §%s, which does not exist", name, m[1], s)
				}
			}
		}
	}
	if n == 0 {
		t.Error("not one citation was found: the pattern is broken, or RFC_DIR is wrong")
	}
	t.Logf("%d citations of %d RFCs", n, len(sections))
}

var heading = regexp.MustCompile(`^ {0,9}(?:Appendix |APPENDIX )?([0-9]+(?:\.[0-9]+)*|[A-Z](?:\.[0-9]+)*)[.:]?(?: |$)`)

// headings collects section numbers; nil when the text is not there.
func headings(file string) map[string]bool {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	have := make(map[string]bool)
	for s := bufio.NewScanner(f); s.Scan(); {
		if m := heading.FindStringSubmatch(s.Text()); m != nil {
			have[m[1]] = true
		}
	}
	return have
}
