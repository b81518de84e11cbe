package maildir

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pennypost/internal/durable"
)

func TestCourierPOP3(t *testing.T) {
	list, damage := ParseCourierPOP3(golden(t, "courier/sizelist"))
	if len(list) != 4 || damage != nil {
		t.Fatalf("%+v %v", list, damage)
	}
	if want := (CourierMail{Base: "1000000001.M1P1.host", Size: 23, Number: 1, Validity: 1795324923}); list[0] != want {
		t.Errorf("%+v", list[0])
	}
	// As courierpop3d told it: 1 UID1-1795324923.
	if got := list[0].UIDL(); got != "UID1-1795324923" {
		t.Errorf("%q", got)
	}
	for _, c := range []struct {
		name, text string
		want       []string
		damage     int
	}{
		{"version 2", "/2 3 7\na 5 1:7\n", []string{"a UID1-7"}, 0},
		{"no validity", "/3 3 0\na 5 1:0:0\n", []string{"a UID1"}, 0},
		{"no number", "/3 3 7\na+'b\x80:2,S 5 0:7:0\n", []string{"a+'b\x80 a+2B+27b+80"}, 0},
		{"names with blanks", "/3 3 7\na b:2,S 5 1:7:1\n", []string{"a b UID1-7"}, 0},
		{"bad lines", "/3 3 7\na\nb 5\nc x 1:7:0\n../d 5 1:7:0\ne 5 -1:7:0\nf 5 2:7:0\n", []string{"f UID2-7"}, 5},
		{"a torn end", "/3 3 7\na 5 1:7:0\nb 5 1", []string{"a UID1-7"}, 0},
		{"another header", "hello\na 5 1:7:0\n", nil, 1},
		{"empty", "", nil, 0},
	} {
		list, damage := ParseCourierPOP3(c.text)
		var got []string
		for _, m := range list {
			got = append(got, m.Base+" "+m.UIDL())
		}
		if !reflect.DeepEqual(got, c.want) || len(damage) != c.damage {
			t.Errorf("%s: %q %v", c.name, got, damage)
		}
	}
}

func FuzzCourier(f *testing.F) {
	f.Add("/3 5 1795324923\n1000000001.M1P1.host:2,S 23 1:1795324923:0\n")
	f.Add("a\nb\n\nmsg:0 1\n")
	f.Add("INBOX.Gr\u00f6\u00dfe\nINBOX\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, _ := ParseCourierPOP3(text)
		for _, m := range list {
			if !ValidName(m.Base) || !isKey("P"+m.UIDL()) {
				t.Errorf("%q: %+v %q", text, m, m.UIDL())
			}
		}
		for base, words := range ParseCourierKeywords(text) {
			if base == "" || slices.ContainsFunc(words, func(k string) bool { return !isKey(k) }) {
				t.Errorf("%q: %q %q", text, base, words)
			}
		}
		for _, name := range ParseCourierSubscribed([]byte(text)).Names {
			if name == "" || strings.ContainsAny(name, "\n\x00") {
				t.Errorf("%q: %q", text, name)
			}
		}
	})
}

func TestCourierSubscribed(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"Courier-IMAP 5, UTF-8", golden(t, "courier/subscribed"), []string{"Sent", "Work/Größe", "INBOX", "Tom & Jerry", "日本"}},
		{"before, modified UTF-7", "INBOX.Sent\nINBOX.Tom &- Jerry\nINBOX.Gr&APYA3w-e\n", []string{"Sent", "Tom & Jerry", "Größe"}},
		{"shared folders", "INBOX\n#shared.x\nINBOX.a\nINBOX.a", []string{"INBOX", "a"}},
	} {
		if got := ParseCourierSubscribed([]byte(c.text)).Names; !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		mkdirs(t, filepath.Dir(path))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func takeOver(t *testing.T, dir string) *Takeover {
	t.Helper()
	ctx := context.Background()
	lock, err := LockUIDList(ctx, durable.OS{}, dir, LockOptions{})
	if err != nil {
		t.Fatal(err)
	}
	to, err := TakeOverCourier(ctx, durable.OS{}, dir, dir, dir, lock, time.Unix(1e9, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestTakeOverCourier(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{
		"tmp/x": "", "new/1000000005.M1P1.host": "", "cur/1000000001.M1P1.host:2,S": "", "cur/1000000002.M1P1.host:2,": "",
		"cur/1000000003.M1P1.host:2,": "", "cur/1000000004.M1P1.host:2,": "",
		CourierUIDs:                "1 795324898 4\n1 1000000001.M1P1.host\n2 1000000002.M1P1.host\n3 1000000003.M1P1.host\n",
		CourierPOP3:                golden(t, "courier/sizelist"),
		CourierKeywords + "/:list": golden(t, "courier/keywords-list"),
		CourierKeywords + "/.5984417.1000000001.M1P1.host": "old\n",
		CourierKeywords + "/.5984418.1000000001.M1P1.host": "$Label1\nfoo\n",
		CourierKeywords + "/.5984418.1000000002.M1P1.host": "not this\n",
		CourierKeywords + "/1000000002.M1P1.host":          "Bar\nfoo\n",
		CourierKeywords + "/1000000005.M1P1.host":          "foo\n",
	})
	if to := takeOver(t, dir); to == nil || to.Damage != nil {
		t.Fatalf("%+v", to)
	}
	list := readList(t, golden2(t, filepath.Join(dir, UIDListName)))
	if list.Validity != 795324898 || list.Next != 5 || len(list.Entries) != 4 {
		t.Errorf("%+v", list)
	}
	for i, e := range list.Entries {
		if want := fmt.Sprintf("UID%d-1795324923", i+1); e.UID != uint32(i+1) || e.POP3 != want || e.Order != 0 {
			t.Errorf("%+v, want POP3 key %q", e, want)
		}
	}
	if got := golden2(t, filepath.Join(dir, KeywordsName)); got != "0 foo\n1 $Label1\n2 Bar\n" {
		t.Errorf("%q", got)
	}
	got, err := filepath.Glob(dir + "/[cn][ue][rw]/*")
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		got[i] = strings.TrimPrefix(got[i], dir+"/")
	}
	if want := []string{
		"cur/1000000001.M1P1.host:2,Sab", "cur/1000000002.M1P1.host:2,ac", "cur/1000000003.M1P1.host:2,",
		"cur/1000000004.M1P1.host:2,", "new/1000000005.M1P1.host:2,a",
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	if to := takeOver(t, dir); to != nil {
		t.Errorf("taken over twice: %+v", to)
	}
}

func golden2(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReadCourier(t *testing.T) {
	many := ""
	for i := range 30 {
		many += fmt.Sprintf("k%02d\n", i)
	}
	for _, c := range []struct {
		name  string
		files map[string]string
		check func(*Takeover) bool
	}{
		{"nothing", nil, func(to *Takeover) bool { return to == nil }},
		{"POP3 alone: no UIDVALIDITY yet, UIDs in order", map[string]string{CourierPOP3: "/3 9 7\nb 5 8:7:0\na 5 3:7:0\n"}, func(to *Takeover) bool {
			e := to.List.Entries
			return to.List.Validity == 0 && len(e) == 2 && e[0].Base == "a" && e[0].UID == 1 && e[0].Order == 0 && e[1].UID == 2 && e[1].POP3 == "UID8-7"
		}},
		{"POP3 in another order than the UIDs", map[string]string{CourierUIDs: "1 5 3\n1 a\n2 b\n", CourierPOP3: "/3 9 7\nb 5 1:7:0\na 5 2:7:0\n"}, func(to *Takeover) bool {
			e := to.List.Entries
			return e[0].Order == 2 && e[1].Order == 1
		}},
		{"damaged UIDs", map[string]string{CourierUIDs: "1 5 9\n1 a\nx\n3 b\n"}, func(to *Takeover) bool {
			return to.List.Next == 10 && len(to.List.Entries) == 2 && len(to.Damage) == 1
		}},
		{"more keywords than letters", map[string]string{CourierKeywords + "/m": many, CourierKeywords + "/n": "k29\n"}, func(to *Takeover) bool {
			return to.Keywords.Index("k29") == 0 && to.Keywords.Index("k00") == 1 && len(to.Beyond["m"]) == 4 && len(to.Beyond["n"]) == 0
		}},
		{"all keywords taken off", map[string]string{CourierKeywords + "/:list": "k\n\nm:0\n", CourierKeywords + "/m": ""}, func(to *Takeover) bool {
			return to.Letters["m"] == 0
		}},
	} {
		dir := t.TempDir()
		put(t, dir, c.files)
		to, err := ReadCourier(durable.OS{}, dir, Keywords{})
		if err != nil || !c.check(to) {
			t.Errorf("%s: %+v %v", c.name, to, err)
		}
	}
}

// Keywords without a letter survive, and a take-over that was cut short is begun anew.
func TestTakeOverBeyond(t *testing.T) {
	dir := t.TempDir()
	text := ""
	for i := range 28 {
		text += fmt.Sprintf("k%02d\n", i)
	}
	put(t, dir, map[string]string{"new/x": "", "cur/m:2,": "", CourierUIDs: "1 5 2\n1 m\n", CourierKeywords + "/m": text})
	for range 2 {
		takeOver(t, dir)
		m, err := ReadMeta(durable.OS{}, dir)
		if err != nil || !reflect.DeepEqual(m.Tagged, map[string][]int{"m": {26, 27}}) || m.Keywords[26] != "k26" || m.Keywords[27] != "k27" {
			t.Errorf("%+v %v", m, err)
		}
		if err := os.Remove(filepath.Join(dir, UIDListName)); err != nil { // as if it had not come so far
			t.Fatal(err)
		}
	}
}

func TestCourierACL(t *testing.T) {
	got := ParseCourierACL("owner aceilrstwx\nadministrators aceilrstwx\nuser=bob@x lrs\nanyone lr\nbroken\n user=\n")
	if want := map[string]string{"bob@x": "lrs", "anyone": "lr"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}
