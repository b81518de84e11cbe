package imapwire

import (
	"encoding/base64"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// mutf7Alphabet is base64 with a comma for the slash (RFC 3501 §5.1.3).
const mutf7Alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,"

func mutf7Base64() *base64.Encoding {
	return base64.NewEncoding(mutf7Alphabet).WithPadding(base64.NoPadding).Strict()
}

// EncodeMUTF7 writes a UTF-8 name in modified UTF-7 (RFC 3501 §5.1.3).
func EncodeMUTF7(name string) string {
	plain := true
	for i := 0; i < len(name) && plain; i++ {
		plain = name[i] >= ' ' && name[i] < 0x7f && name[i] != '&'
	}
	if plain {
		return name
	}
	var b strings.Builder
	var raw []byte
	flush := func() {
		if len(raw) > 0 {
			b.WriteByte('&')
			b.WriteString(mutf7Base64().EncodeToString(raw))
			b.WriteByte('-')
			raw = raw[:0]
		}
	}
	for _, r := range name {
		switch {
		case r == '&':
			flush()
			b.WriteString("&-")
		case r >= ' ' && r < 0x7f:
			flush()
			b.WriteByte(byte(r))
		default:
			for _, u := range utf16.AppendRune(nil, r) {
				raw = append(raw, byte(u>>8), byte(u))
			}
		}
	}
	flush()
	return b.String()
}

// DecodeMUTF7 reads a name in modified UTF-7. Only what EncodeMUTF7 writes is accepted, so that
// no two names on disk are one name to clients.
func DecodeMUTF7(s string) (string, bool) {
	if strings.IndexByte(s, '&') < 0 {
		for i := 0; i < len(s); i++ {
			if s[i] < ' ' || s[i] >= 0x7f {
				return "", false
			}
		}
		return s, true
	}
	var b strings.Builder
	for rest := s; rest != ""; {
		direct, more, shift := strings.Cut(rest, "&")
		b.WriteString(direct)
		if !shift {
			break
		}
		code, after, ok := strings.Cut(more, "-")
		if !ok {
			return "", false
		}
		rest = after
		if code == "" {
			b.WriteByte('&')
			continue
		}
		raw, err := mutf7Base64().DecodeString(code)
		if err != nil || len(raw)%2 != 0 {
			return "", false
		}
		units := make([]uint16, len(raw)/2)
		for i := range units {
			units[i] = uint16(raw[2*i])<<8 | uint16(raw[2*i+1])
		}
		for _, r := range utf16.Decode(units) {
			if r == utf8.RuneError { // a lone surrogate, or nobody's name
				return "", false
			}
			b.WriteRune(r)
		}
	}
	name := b.String()
	return name, EncodeMUTF7(name) == s
}
