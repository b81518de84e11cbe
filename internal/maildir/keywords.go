package maildir

import (
	"bytes"
	"strconv"
	"strings"
)

// KeywordsName is the file that says which keyword a letter in the file names stands for.
const KeywordsName = "dovecot-keywords"

// Keywords are the names of the letters a to z; "" is a letter that is free.
type Keywords [MaxKeywords]string

// ParseKeywords reads a dovecot-keywords file. Lines that cannot be read are reported and left
// out: a letter in a file name that stands for nothing stays in the name.
func ParseKeywords(data []byte) (k Keywords, damage []Damage) {
	offset := int64(0)
	for len(data) > 0 {
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		why := ""
		num, name, ok := strings.Cut(string(line), " ")
		n, okN := decimal(num)
		switch {
		case !ok || !okN || !isKey(name) || len(name) > maxKeyword:
			why = "line is not a number and a keyword"
		case n >= MaxKeywords:
			why = "number has no letter"
		case k[n] != "":
			why = "letter has a keyword already"
		case k.Index(name) >= 0:
			why, k[n] = "keyword has a letter already", name // its messages keep it
		default:
			k[n] = name
		}
		if why != "" && len(damage) < maxDamage {
			damage = append(damage, Damage{Offset: offset, Line: string(line[:min(len(line), 80)]), Why: why})
		}
		offset += int64(len(line)) + 1
		data = rest
	}
	return k, damage
}

// AppendTo appends the file.
func (k *Keywords) AppendTo(dst []byte) []byte {
	for i, name := range k {
		if name != "" {
			dst = strconv.AppendInt(dst, int64(i), 10)
			dst = append(append(append(dst, ' '), name...), '\n')
		}
	}
	return dst
}

// Index is the number of a keyword, the lowest if there are several, -1 when it has none.
// RFC 9051 §2.3.2: case makes no difference.
func (k *Keywords) Index(name string) int {
	for i, have := range k {
		if have != "" && len(have) == len(name) && strings.EqualFold(have, name) {
			return i
		}
	}
	return -1
}

// maxKeyword bounds the length of a keyword.
const maxKeyword = 255

// ValidKeyword tells whether name can be made a keyword: an atom (RFC 9051 §9). Other programs
// may have written others, which are kept.
func ValidKeyword(name string) bool {
	if name == "" || len(name) > maxKeyword {
		return false
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`(){%*"\]`, c) >= 0 {
			return false
		}
	}
	return true
}
