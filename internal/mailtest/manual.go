package mailtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// Example is one command of a manual's EXAMPLES with the output shown below it.
type Example struct {
	Line    int // of the page
	Command string
	Want    []string
}

// Examples reads the EXAMPLES of an mdoc page: blocks of ".Bd -literal", in which a line that
// starts with "$ " is a command, a trailing backslash or a here-document continues it, and the
// lines below are its output. A block below the comment `.\" not run: why` is left out.
func Examples(page string) ([]Example, error) {
	var out []Example
	section, here := "", ""
	block, skip, more := false, false, false
	lines := strings.Split(page, "\n")
	for i, l := range lines {
		switch {
		case strings.HasPrefix(l, ".Sh "):
			section = strings.Trim(l[4:], `"`)
		case section != "EXAMPLES":
		case strings.HasPrefix(l, ".Bd "):
			block = true
			skip = i > 0 && strings.HasPrefix(lines[i-1], `.\" not run: `)
		case strings.HasPrefix(l, ".Ed"):
			if more || here != "" {
				return nil, fmt.Errorf("line %d: the block ends inside a command", i+1)
			}
			block, skip = false, false
		case !block || skip || strings.HasPrefix(l, ".") || strings.HasPrefix(l, `'\"`):
		default:
			text := unroff(l)
			n := len(out) - 1
			switch {
			case more || here != "":
				out[n].Command += "\n" + text
				if text == here {
					here = ""
					continue
				}
			case strings.HasPrefix(text, "$ "):
				out = append(out, Example{Line: i + 1, Command: text[2:]})
			case n < 0:
				return nil, fmt.Errorf("line %d: output above the first command: %q", i+1, text)
			default:
				out[n].Want = append(out[n].Want, text)
			}
			if here != "" {
				continue
			}
			command := more || strings.HasPrefix(text, "$ ")
			more = command && strings.HasSuffix(text, `\`)
			if m := hereDoc.FindStringSubmatch(text); m != nil && command {
				here = m[1]
			}
		}
	}
	return out, nil
}

var hereDoc = regexp.MustCompile(`<<'?([A-Z]+)'?`)

// unroff undoes the escapes of roff that literal text needs.
func unroff(s string) string {
	return strings.NewReplacer(`\e`, `\`, `\(rs`, `\`, `\-`, `-`, `\&`, ``, `\(aq`, `'`, `\(dq`, `"`, `\(ha`, `^`,
		`\(ti`, `~`, `\(ga`, "`", `\(oq`, "‘", `\(cq`, "’", `\ `, ` `).Replace(s)
}

// RunExamples runs the examples of all pages, each page against an instance of its own, in an
// empty directory with a message in the file msg.
func (b *Tools) RunExamples(t *testing.T, manDir string) {
	pages, err := filepath.Glob(filepath.Join(manDir, "*.[1-8]"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages in %s: %v", manDir, err)
	}
	for _, page := range pages {
		t.Run(filepath.Base(page), func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			examples, err := Examples(string(data))
			if err != nil {
				t.Fatalf("%s: %v", page, err)
			}
			if len(examples) > 0 {
				b.runPage(t, page, examples)
			}
		})
	}
}

const exampleMessage = `From: Alice <alice@example.test>
To: bob@example.test
Subject: lunch
Date: Sun, 22 Nov 2026 10:00:00 +0000
Message-ID: <m1@example.test>

At noon?
`

func (b *Tools) runPage(t *testing.T, page string, examples []Example) {
	bin := b.Dir(t)
	in, err := NewInstance(InstanceOptions{Bin: bin})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(in.Log())
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := in.Up(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "msg"), []byte(exampleMessage), 0o644); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), in.Environ()...)
	env = append(env, "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+dir, "LC_ALL=C", "XDG_CONFIG_HOME=", "XDG_STATE_HOME=")
	for _, ex := range examples {
		runExample(t, page, dir, env, ex)
	}
}

func runExample(t *testing.T, page, dir string, env []string, ex Example) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", ex.Command)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, &out, &out
	cmd.WaitDelay = time.Second // a child left behind may hold the pipe
	err := cmd.Run()
	var got []string
	if text := strings.TrimSuffix(out.String(), "\n"); text != "" {
		got = strings.Split(text, "\n")
	}
	switch {
	case !MatchLines(ex.Want, got):
		t.Errorf("%s:%d: $ %s\n-- want --\n%s\n-- got --\n%s", page, ex.Line, ex.Command,
			strings.Join(ex.Want, "\n"), strings.Join(got, "\n"))
	case err != nil && len(ex.Want) == 0:
		t.Errorf("%s:%d: $ %s: %v", page, ex.Line, ex.Command, err)
	}
}

// MatchLines tells whether got is what want says; a line "..." of want stands for any number of
// lines, and "..." within a line for any text.
func MatchLines(want, got []string) bool {
	for i, w := range want {
		if w == "..." {
			for skip := 0; skip <= len(got)-i; skip++ {
				if MatchLines(want[i+1:], got[i+skip:]) {
					return true
				}
			}
			return false
		}
		if i >= len(got) || !matchLine(strings.TrimRight(w, " "), strings.TrimRight(got[i], " ")) {
			return false
		}
	}
	return len(want) == len(got)
}

func matchLine(want, got string) bool {
	parts := strings.Split(want, "...")
	if len(parts) == 1 {
		return want == got
	}
	got, ok := strings.CutPrefix(got, parts[0])
	if !ok {
		return false
	}
	last := len(parts) - 1
	for _, p := range parts[1:last] {
		i := strings.Index(got, p)
		if i < 0 {
			return false
		}
		got = got[i+len(p):]
	}
	return strings.HasSuffix(got, parts[last])
}

// Flags asks a tool, and each of its sub-commands, for its flags, by its --help. The flags that
// every tool has are left out.
func Flags(tool string, command ...string) ([]string, error) {
	out, err := exec.Command(tool, append(slices.Clone(command), "--help")...).Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s --help: %w", filepath.Base(tool), strings.Join(command, " "), err)
	}
	var flags []string
	part := ""
	for l := range strings.Lines(string(out)) {
		l = strings.TrimRight(l, "\n")
		switch {
		case l != "" && l[0] != ' ':
			part = l
		case part == "commands:" && len(strings.Fields(l)) > 0:
			sub, err := Flags(tool, append(slices.Clone(command), strings.Fields(l)[0])...)
			if err != nil {
				return nil, err
			}
			flags = append(flags, sub...)
		case part == "options:":
			for _, f := range flagName.FindAllStringSubmatch(optionPart(l), -1) {
				if !slices.Contains([]string{"help", "h", "version"}, f[1]) {
					flags = append(flags, f[1])
				}
			}
		}
	}
	return flags, nil
}

var flagName = regexp.MustCompile(`(?:^|[ ,])--?([A-Za-z0-9][-A-Za-z0-9]*)`)

// optionPart is what stands left of the description.
func optionPart(l string) string {
	left, _, _ := strings.Cut(strings.TrimSpace(l), "  ")
	if strings.Count(left, " ") > 3 { // the left part was too long for its column
		f := strings.Fields(left)
		left = f[0]
		if strings.HasSuffix(f[0], ",") {
			left += " " + f[1]
		}
	}
	return left
}

// Documents tells whether an mdoc page has a flag.
func Documents(page, flag string) bool {
	dash := ""
	if len(flag) > 1 {
		dash = `(?:-|\\-)`
	}
	name := strings.ReplaceAll(regexp.QuoteMeta(flag), "-", `\\?-`)
	return regexp.MustCompile(`\bFl ` + dash + name + `(?:[\s=,]|$)`).MatchString(page)
}
