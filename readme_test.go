package house_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReadme runs the blocks of shell commands in README.md as the examples of the manuals are
// run: in a running instance, the output compared.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	page := asManual(string(text))
	if strings.Count(page, "\n$ ") < 5 {
		t.Fatalf("README.md has hardly a command to run:\n%s", page)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "readme.7"), []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
	tools.RunExamples(t, dir)
}

// asManual turns blocks of ```sh into the EXAMPLES section of a page.
func asManual(text string) string {
	var b strings.Builder
	b.WriteString(".Sh EXAMPLES\n")
	inside := false
	for l := range strings.Lines(text) {
		switch {
		case l == "```sh\n":
			inside = true
			b.WriteString(".Bd -literal\n")
		case inside && l == "```\n":
			inside = false
			b.WriteString(".Ed\n")
		case inside:
			if strings.HasPrefix(l, ".") { // roff would take it for a request
				b.WriteString(`\&`)
			}
			b.WriteString(strings.ReplaceAll(l, `\`, `\e`))
		}
	}
	return b.String()
}

func TestAsManual(t *testing.T) {
	got := asManual("# x\n    $ not run\n```sh\n$ printf 'a\\n'\na\n...\n```\n```\npicture\n```\n")
	want := ".Sh EXAMPLES\n.Bd -literal\n$ printf 'a\\en'\na\n\\&...\n.Ed\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
