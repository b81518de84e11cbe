package smtpd

import (
	"bytes"
	"slices"
	"strings"

	"pennypost/internal/milter"
)

// changeHeader makes the changes of header fields in a header that is in LF form and ends with
// its empty line. Counting is libmilter's: the trace line this host adds, which filters never
// see, is the field before the first.
func changeHeader(header []byte, changes []milter.Change) []byte {
	fields := splitHeader(header)
	for _, c := range changes {
		text := fieldText(c.Name, c.Value)
		switch c.Kind {
		case milter.AddHeader:
			fields = append(fields, text)
		case milter.InsertHeader:
			fields = slices.Insert(fields, min(max(c.Index-1, 0), len(fields)), text)
		case milter.ChangeHeader:
			at := findField(fields, c.Name, max(c.Index, 1))
			switch {
			case at < 0 && c.Value != "":
				fields = append(fields, text)
			case at >= 0 && c.Value == "":
				fields = slices.Delete(fields, at, at+1)
			case at >= 0:
				fields[at] = text
			}
		}
	}
	return append(bytes.Join(fields, nil), '\n')
}

// splitHeader returns the fields with their continuation lines and line ends.
func splitHeader(b []byte) [][]byte {
	var fields [][]byte
	for len(b) > 0 && b[0] != '\n' {
		end := len(b)
		for i, c := range b {
			if c == '\n' && (i+1 == len(b) || b[i+1] != ' ' && b[i+1] != '\t') {
				end = i + 1
				break
			}
		}
		fields = append(fields, b[:end:end])
		b = b[end:]
	}
	return fields
}

// findField is the place of the n-th field of a name, -1 where there are fewer.
func findField(fields [][]byte, name string, n int) int {
	for i, f := range fields {
		have, _, ok := bytes.Cut(f, []byte{':'})
		if ok && strings.EqualFold(string(bytes.TrimRight(have, " \t")), name) {
			if n--; n == 0 {
				return i
			}
		}
	}
	return -1
}

// fieldText makes a field of what stands behind its colon. Whatever the value holds, it stays
// one field: a line that does not continue it is made to, and one that is empty would end the
// header.
func fieldText(name, value string) []byte {
	value = strings.ReplaceAll(value, "\r\n", "\n")
	value = strings.Map(func(r rune) rune {
		if r == '\r' || r == 0 {
			return ' '
		}
		return r
	}, value)
	var b strings.Builder
	b.WriteString(name + ":")
	first := true
	for l := range strings.SplitSeq(value, "\n") {
		switch {
		case first:
			b.WriteString(l)
		case strings.Trim(l, " \t") == "":
			continue
		case l[0] == ' ' || l[0] == '\t':
			b.WriteString("\n" + l)
		default:
			b.WriteString("\n\t" + l)
		}
		first = false
	}
	b.WriteByte('\n')
	return []byte(b.String())
}

// isFieldName is RFC 5322 §3.6.8's field-name.
func isFieldName(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] > '~' || s[i] == ':' {
			return false
		}
	}
	return s != "" && len(s) < 128
}
