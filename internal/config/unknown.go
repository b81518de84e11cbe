package config

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/BurntSushi/toml"
)

// unknownKey explains a key that no version of this program knows.
func unknownKey(path, text string, k toml.Key) error {
	e := &Error{Path: path, Line: lineOf(text, k.String(), 0), Key: k.String(), Cause: "unknown key"}
	section := ""
	if len(k) > 1 {
		section = strings.Join(k[:len(k)-1], ".") + "."
	}
	best, distance := "", len(k[len(k)-1])/2+1
	for _, known := range Keys() {
		if d := editDistance(k.String(), known); d < distance {
			best, distance = known, d
		}
		// The right key in the wrong section is a frequent mistake.
		if tail := known[strings.LastIndexByte(known, '.')+1:]; best == "" && tail == k[len(k)-1] && !strings.HasPrefix(known, section+tail) {
			best = known
		}
	}
	if best != "" {
		e.Cause = fmt.Sprintf("unknown key; did you mean %s?", best)
	}
	return e
}

// Keys lists every key of the file, sections joined with dots.
func Keys() []string { return keysOf("", reflect.TypeFor[Config]()) }

func keysOf(prefix string, t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("toml")
		if tag == "-" || tag == "" {
			continue
		}
		ft := f.Type
		if ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		if ft.Kind() == reflect.Struct {
			keys = append(keys, keysOf(prefix+tag+".", ft)...)
			continue
		}
		keys = append(keys, prefix+tag)
	}
	return keys
}

// editDistance is Levenshtein's, over bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], min(diag+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// lineOf finds the line that sets a key, in its nth section of that name; 0 when it is written in
// a way this simple reader does not follow.
func lineOf(text, key string, nth int) int {
	section, name := "", key
	if i := strings.LastIndexByte(key, '.'); i >= 0 {
		section, name = key[:i], key[i+1:]
	}
	at, seen := "", -1
	if section == "" {
		seen = 0
	}
	for i, l := range strings.Split(text, "\n") {
		l = strings.TrimSpace(l)
		if strings.HasPrefix(l, "[") && strings.Contains(l, "]") {
			at = strings.Trim(strings.SplitN(l, "]", 2)[0], "[ \t")
			if at == section {
				seen++
				if name == "" && seen == nth {
					return i + 1
				}
			}
			continue
		}
		k, _, ok := strings.Cut(l, "=")
		k = strings.Trim(strings.TrimSpace(k), `"'`)
		if ok && (at == section && k == name && seen == nth || at == "" && k == key) {
			return i + 1
		}
	}
	return 0
}
