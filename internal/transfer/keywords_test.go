package transfer

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// A keyword that the mailbox has no letter for, or that can be none, is left behind and named: the
// mail comes all the same.
func TestTooManyKeywords(t *testing.T) {
	dir := t.TempDir()
	var b strings.Builder
	for i := range 30 {
		fmt.Fprintf(&b, "From a@b Sun Nov 22 05:00:00 2026\nX-Keywords: Key%02d key%02d %s\nSubject: %d\n\nx\n\n", i, i, strings.Repeat("k", 5000), i)
	}
	if err := os.WriteFile(dir+"/in", []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	s := store(t, dir+"/md", nil)
	src, err := OpenMbox(dir + "/in")
	if err != nil {
		t.Fatal(err)
	}
	var results []Result
	if err := Import(ctx, s, dir+"/memory", src, Options{Report: inbox(&results)}); err != nil {
		t.Fatal(err)
	}
	want := []string{"keyword " + strings.Repeat("k", 60), "keyword Key26", "keyword key26", "keyword Key27", "keyword key27", "keyword Key28", "keyword key28", "keyword Key29", "keyword key29"}
	if r := results[0]; r.New != 30 || !slices.Equal(r.Lost, want) {
		t.Errorf("%d new, left behind: %q", r.New, r.Lost)
	}
	list := subjects(t, s, "INBOX")
	for i, want := range map[int]string{0: " Key00 ", 25: " Key25 ", 26: "  "} {
		if len(list) != 30 || !strings.Contains(list[i], want) {
			t.Errorf("message %d: %.200q", i, list)
		}
	}
}
