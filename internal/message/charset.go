package message

import (
	"bytes"
	"unicode/utf8"

	"golang.org/x/text/encoding/htmlindex"
)

// toUTF8 appends b, which is in charset, as UTF-8. An unknown charset is read as header
// text is. Controls become spaces.
func toUTF8(dst, charset, b []byte) []byte {
	if len(b) == 0 {
		return dst
	}
	start := len(dst)
	var name [maxCharset]byte
	n := copy(name[:], charset)
	switch low := string(lower(name[:n])); low {
	case "utf-8", "utf8":
		dst = appendUTF8(dst, b)
	case "us-ascii", "ascii", "iso-8859-1", "iso8859-1", "latin1", "windows-1252", "cp1252":
		if low[0] != 'i' && utf8.Valid(b) {
			dst = append(dst, b...)
		} else {
			dst = appendWestern(dst, b)
		}
	default:
		dst = appendForeign(dst, low, b)
	}
	for i := start; i < len(dst); i++ {
		if dst[i] < ' ' || dst[i] == 0x7f {
			dst[i] = ' '
		}
	}
	return dst
}

func lower(b []byte) []byte {
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return b
}

// appendForeign uses the tables of golang.org/x/text.
func appendForeign(dst []byte, charset string, b []byte) []byte {
	e, err := htmlindex.Get(charset)
	if err != nil {
		return appendRaw(dst, b)
	}
	u, err := e.NewDecoder().Bytes(b)
	if err != nil {
		return appendRaw(dst, b)
	}
	return appendUTF8(dst, u)
}

// appendUTF8 appends b with U+FFFD for what is not UTF-8.
func appendUTF8(dst, b []byte) []byte {
	if utf8.Valid(b) {
		return append(dst, b...)
	}
	return append(dst, bytes.ToValidUTF8(b, []byte("\uFFFD"))...)
}

// appendWestern appends Windows-1252, of which ISO-8859-1 and US-ASCII are part.
func appendWestern(dst, b []byte) []byte {
	const high = "\u20AC\u0081\u201A\u0192\u201E\u2026\u2020\u2021\u02C6\u2030\u0160\u2039\u0152\u008D\u017D\u008F" +
		"\u0090\u2018\u2019\u201C\u201D\u2022\u2013\u2014\u02DC\u2122\u0161\u203A\u0153\u009D\u017E\u0178"
	for _, c := range b {
		switch {
		case c == '\r' || c == '\n':
		case c < ' ' || c == 0x7f:
			dst = append(dst, ' ')
		case c < 0x80:
			dst = append(dst, c)
		case c < 0xa0:
			n := c - 0x80
			for _, r := range high {
				if n == 0 {
					dst = utf8.AppendRune(dst, r)
					break
				}
				n--
			}
		default:
			dst = utf8.AppendRune(dst, rune(c))
		}
	}
	return dst
}
