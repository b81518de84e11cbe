package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"unicode/utf8"
)

// Escape makes a field that came from outside safe for line output: control characters, the
// column separator sep (0 for none), backslashes and bytes that are no UTF-8 become \xNN or
// \uNNNN; the rest stays as it is.
func Escape(s string, sep byte) string {
	i := 0
	for i < len(s) && plain(s[i], sep) {
		i++
	}
	if i == len(s) {
		return s
	}
	var b strings.Builder
	b.WriteString(s[:i])
	for i < len(s) {
		c := s[i]
		if c < utf8.RuneSelf {
			if plain(c, sep) {
				b.WriteByte(c)
			} else {
				hex(&b, `\x`, rune(c), 2)
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n <= 1:
			hex(&b, `\x`, rune(c), 2)
		case r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069:
			// C1 controls, line separators, and marks that turn the writing direction.
			hex(&b, `\u`, r, 4)
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// plain tells whether an ASCII octet needs no escape. A backslash is escaped only where fields
// are separated: there the output is for programs, which must be able to undo it.
func plain(c, sep byte) bool {
	return c >= 0x20 && c < 0x7f && (sep == 0 || c != sep && c != '\\')
}

func hex(b *strings.Builder, prefix string, r rune, digits int) {
	b.WriteString(prefix)
	for shift := 4 * (digits - 1); shift >= 0; shift -= 4 {
		b.WriteByte("0123456789abcdef"[r>>shift&15])
	}
}

// PrintJSON writes v as one line. Angle brackets of addresses stay readable.
func PrintJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}
