package message

import (
	"bytes"
	"encoding/base64"
	"unicode/utf8"
)

const maxCharset = 64

// decodeWords appends v with its encoded words (RFC 2047 §2) decoded to UTF-8. Neighbours of
// one charset are decoded as one: many senders cut characters between them.
func decodeWords(dst, v []byte) []byte {
	var (
		store   [256]byte
		run     = store[:0] // octets of encoded words not yet converted
		charset []byte
	)
	flush := func() {
		dst = toUTF8(dst, charset, run)
		run = run[:0]
	}
	for len(v) > 0 {
		i := bytes.Index(v, []byte("=?"))
		if i < 0 {
			break
		}
		w, rest, ok := encodedWord(v[i:])
		if !ok {
			flush()
			charset = nil // what stands before the next word is text
			dst = appendRaw(dst, v[:i+2])
			v = v[i+2:]
			continue
		}
		// White space between two encoded words is not theirs (RFC 2047 §6.2).
		if text := v[:i]; charset == nil || len(bytes.Trim(text, " \t\r\n")) > 0 {
			flush()
			dst = appendRaw(dst, text)
		} else if !bytes.EqualFold(charset, w.charset) {
			flush()
		}
		charset = w.charset
		run = w.decode(run)
		v = rest
		if j := bytes.Index(v, []byte("=?")); j < 0 || len(bytes.Trim(v[:j], " \t\r\n")) > 0 {
			flush()
			charset = nil
		}
	}
	flush()
	return appendRaw(dst, v)
}

type word2047 struct {
	charset, text []byte
	base64        bool
}

// encodedWord takes the encoded word at the beginning of v apart.
func encodedWord(v []byte) (w word2047, rest []byte, ok bool) {
	b := v[2:]
	i := bytes.IndexByte(b[:min(len(b), maxCharset)], '?')
	if i <= 0 || len(b) < i+3 || b[i+2] != '?' {
		return w, nil, false
	}
	w.charset = b[:i]
	if j := bytes.IndexByte(w.charset, '*'); j > 0 { // RFC 2231 §5: a language
		w.charset = w.charset[:j]
	}
	switch b[i+1] {
	case 'b', 'B':
		w.base64 = true
	case 'q', 'Q':
	default:
		return w, nil, false
	}
	b = b[i+3:]
	// RFC 2047 §2 allows 75 octets; senders that do not fold write whole lines. A bound
	// keeps a header of half-open words from being searched again and again.
	j := bytes.Index(b[:min(len(b), 8<<10)], []byte("?="))
	if j < 0 {
		return w, nil, false
	}
	// "=?utf-8?q??=" is empty, and "?=" may follow a "?" of the text.
	w.text = b[:j]
	return w, b[j+2:], true
}

func (w *word2047) decode(dst []byte) []byte {
	if w.base64 {
		return decodeBase64(dst, w.text)
	}
	for i := 0; i < len(w.text); i++ {
		switch c := w.text[i]; c {
		case '_':
			dst = append(dst, ' ')
		case '=':
			if i+2 < len(w.text) {
				h, l := unhex(w.text[i+1]), unhex(w.text[i+2])
				if h < 16 && l < 16 {
					dst = append(dst, h<<4|l)
					i += 2
					continue
				}
			}
			dst = append(dst, c)
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// decodeBase64 appends what v encodes up to the first octet that is not of the alphabet,
// white space apart.
func decodeBase64(dst, v []byte) []byte {
	var quad [4]byte
	n := 0
	out := func(k int) {
		var b [3]byte
		m, err := base64.RawStdEncoding.Decode(b[:], quad[:k])
		if err == nil {
			dst = append(dst, b[:m]...)
		}
	}
	for _, c := range v {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '+', c == '/':
			quad[n] = c
			if n++; n == 4 {
				out(4)
				n = 0
			}
		case isLWSP(c):
		case c == '=': // padding, perhaps of one of several strings put together
			if n > 1 {
				quad[n-1] = lastDigit(quad[n-1], n)
				out(n)
			}
			n = 0
		default:
			n = 0
		}
	}
	if n > 1 {
		quad[n-1] = lastDigit(quad[n-1], n)
		out(n)
	}
	return dst
}

// lastDigit clears the bits of the last digit of n that belong to no octet, which a strict
// decoder would refuse.
func lastDigit(c byte, n int) byte {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	v := bytes.IndexByte([]byte(digits), c)
	if n == 2 {
		return digits[v&^15]
	}
	return digits[v&^3]
}

// appendRaw appends header text: UTF-8 as it is (RFC 6532 §3), other octets above 127 as
// Windows-1252, which is what most of those who send them mean. Line ends go, controls
// become spaces.
func appendRaw(dst, v []byte) []byte {
	ascii := true
	for _, c := range v {
		if c < ' ' || c >= 0x7f {
			ascii = false
			break
		}
	}
	if ascii {
		return append(dst, v...)
	}
	if !utf8.Valid(v) {
		return appendWestern(dst, v)
	}
	for _, c := range v {
		switch {
		case c == '\r' || c == '\n':
		case c < ' ' || c == 0x7f:
			dst = append(dst, ' ')
		default:
			dst = append(dst, c)
		}
	}
	return dst
}
