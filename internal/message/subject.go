package message

import "strings"

// baseSubject returns the part of a decoded subject that replies and forwards share (RFC
// 5256 §2.1), a substring of s, and whether anything said that it is one of them. s has no
// white space but single spaces.
func baseSubject(s string) (base string, reply bool) {
	for {
		var r bool
		if s, r = trimTrailer(s); r {
			reply = true
		}
		if s, r = trimLeader(s); r {
			reply = true
		}
		// "[fwd: ... ]" around everything
		if len(s) < 6 || !strings.EqualFold(s[:5], "[fwd:") || s[len(s)-1] != ']' {
			return s, reply
		}
		s, reply = s[5:len(s)-1], true
	}
}

// trimTrailer removes subj-trailer: "(fwd)" and white space.
func trimTrailer(s string) (string, bool) {
	reply := false
	for {
		s = strings.TrimRight(s, " \t")
		if len(s) < 5 || !strings.EqualFold(s[len(s)-5:], "(fwd)") {
			return s, reply
		}
		s, reply = s[:len(s)-5], true
	}
}

// trimLeader removes subj-leader and subj-blob as often as they are there. Blobs that no
// "re:" follows go too, unless nothing would be left.
func trimLeader(s string) (string, bool) {
	reply := false
	for {
		s = strings.TrimLeft(s, " \t")
		rest, last := s, s // last: from the last blob on
		for {
			r, ok := blob(rest)
			if !ok {
				break
			}
			last, rest = rest, r
		}
		if r, ok := refwd(rest); ok {
			s, reply = r, true
			continue
		}
		if rest == "" {
			return last, reply
		}
		return rest, reply
	}
}

// blob removes "[...]" and the white space after it.
func blob(s string) (string, bool) {
	if s == "" || s[0] != '[' {
		return s, false
	}
	i := strings.IndexAny(s[1:], "[]")
	if i < 0 || s[1+i] != ']' {
		return s, false
	}
	return strings.TrimLeft(s[i+2:], " \t"), true
}

// refwd removes "re", "fw" or "fwd", a blob that may follow, and the colon.
func refwd(s string) (string, bool) {
	switch {
	case len(s) >= 3 && strings.EqualFold(s[:3], "fwd"):
		s = s[3:]
	case len(s) >= 2 && (strings.EqualFold(s[:2], "re") || strings.EqualFold(s[:2], "fw")):
		s = s[2:]
	default:
		return s, false
	}
	s = strings.TrimLeft(s, " \t")
	s, _ = blob(s)
	if s == "" || s[0] != ':' {
		return s, false
	}
	return s[1:], true
}
