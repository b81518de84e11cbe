package house_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pennypost/internal/config"
	"pennypost/internal/mailtest"
)

// TestExamples runs what the EXAMPLES of the manuals show.
func TestExamples(t *testing.T) { tools.RunExamples(t, "man") }

// TestManualsNameEveryFlag compares the pages with what the tools say of themselves.
func TestManualsNameEveryFlag(t *testing.T) {
	bin := tools.Dir(t)
	mains, err := filepath.Glob("cmd/*/main.go")
	if err != nil || len(mains) == 0 {
		t.Fatalf("no programs: %v", err)
	}
	for _, m := range mains {
		tool := filepath.Base(filepath.Dir(m))
		pages, err := filepath.Glob("man/" + tool + ".[1-8]")
		if err != nil || len(pages) == 0 {
			t.Errorf("%s has no page: %v", tool, err)
			continue
		}
		page, err := os.ReadFile(pages[0])
		if err != nil {
			t.Error(err)
			continue
		}
		flags, err := mailtest.Flags(filepath.Join(bin, tool))
		if err != nil || len(flags) == 0 {
			t.Errorf("%s: flags %v, %v", tool, flags, err)
		}
		for _, f := range flags {
			if !mailtest.Documents(string(page), f) {
				t.Errorf("%s does not document the flag %s", pages[0], f)
			}
		}
	}
}

// TestManualsLint wants pages that mandoc has nothing to say about.
func TestManualsLint(t *testing.T) {
	if _, err := exec.LookPath("mandoc"); err != nil {
		t.Skip("mandoc is not installed")
	}
	pages, err := filepath.Glob("man/*.[1-8]")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	for _, p := range pages {
		// Its status is 0 for mere warnings; what it prints counts.
		out, err := exec.Command("mandoc", "-Tlint", "-Wwarning", p).CombinedOutput()
		if len(out) > 0 || err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// TestEveryKeyIsDocumented wants each key of the configuration in mconf(5), and no others.
func TestEveryKeyIsDocumented(t *testing.T) {
	page, err := os.ReadFile("man/mconf.5")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for l := range strings.Lines(string(page)) {
		if rest, ok := strings.CutPrefix(l, ".It Ic "); ok {
			documented[strings.Fields(rest)[0]] = true
		}
	}
	keys := config.Keys()
	if len(keys) < 50 {
		t.Fatalf("only %d keys", len(keys))
	}
	for _, k := range keys {
		if !documented[k] {
			t.Errorf("mconf.5 does not document %s", k)
		}
		delete(documented, k)
	}
	if len(documented) > 0 {
		t.Errorf("mconf.5 documents keys that do not exist: %v", reflect.ValueOf(documented).MapKeys())
	}
}
