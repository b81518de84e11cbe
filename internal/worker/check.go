package worker

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"pennypost/internal/envelope"
)

// maxReply bounds a reply kept for logs and reports; RFC 5321 allows 512 octets a line.
const maxReply = 2000

// check makes rep an answer to req that can be believed: one result for each recipient, in the
// order of the request. Results for strangers mean that the peer cannot be believed at all; a
// missing or impossible result is a deferral of its recipient, since unknown is never a bounce.
func check(req *Request, rep *Report) error {
	if rep.ID != req.ID {
		return fmt.Errorf("%w: report %d is for message %.32q, asked was %s", ErrProtocol, rep.Seq, rep.ID, req.ID)
	}
	if len(rep.Results) > len(req.To) {
		return fmt.Errorf("%w: report %d has %d results for %d recipients", ErrProtocol, rep.Seq, len(rep.Results), len(req.To))
	}
	if len(req.To) == 1 && len(rep.Results) == 1 {
		if rep.Results[0].To != req.To[0].Addr {
			return stranger(rep, 0)
		}
		tidy(&rep.Results[0])
		return nil
	}
	place := make(map[string]int, len(req.To))
	for i := range req.To {
		place[req.To[i].Addr] = i
	}
	out := make([]Result, len(req.To))
	for i := range rep.Results {
		p, ok := place[rep.Results[i].To]
		if !ok || out[p].To != "" {
			return stranger(rep, i)
		}
		out[p] = rep.Results[i]
		tidy(&out[p])
	}
	for i := range out {
		if out[i].To == "" {
			out[i] = Result{To: req.To[i].Addr, Status: envelope.Defer("4.3.0", "the worker reported nothing for this recipient")}
		}
	}
	rep.Results = out
	return nil
}

func stranger(rep *Report, i int) error {
	return fmt.Errorf("%w: report %d names %.256q, which was not asked or is named twice", ErrProtocol, rep.Seq, rep.Results[i].To)
}

// tidy defers a result that cannot be, and makes its texts safe for line-oriented readers.
func tidy(r *Result) {
	r.Reply = clean(r.Reply, maxReply)
	r.Relay = clean(r.Relay, 300)
	r.TLS = clean(r.TLS, 300)
	r.Mailbox = clean(r.Mailbox, maxReply)
	for i := range r.MX {
		r.MX[i] = clean(r.MX[i], maxReply)
	}
	for i := range r.Transcript {
		r.Transcript[i] = clean(r.Transcript[i], maxReply)
	}
	if why := impossible(r); why != "" {
		r.Status = envelope.Status{Verdict: envelope.Deferred, Code: "4.3.0", Reply: "the worker's report makes no sense: " + why, Relay: r.Relay}
		r.Expand = nil
	}
}

func impossible(r *Result) string {
	class := byte('2')
	switch r.Verdict {
	case envelope.Delivered, envelope.Relayed:
	case envelope.Expanded:
		return badExpansion(r.Expand)
	case envelope.Deferred:
		class = '4'
	case envelope.Failed:
		class = '5'
	default:
		return "no such status: " + clean(string(r.Verdict), 40)
	}
	if r.Expand != nil {
		if r.Verdict != envelope.Failed {
			return string(r.Verdict) + " with an expansion"
		}
		if why := badExpansion(r.Expand); why != "" {
			return why
		}
	}
	if !envelope.ValidCode(r.Code) || r.Code[0] != class {
		return string(r.Verdict) + " with the enhanced code " + clean(r.Code, 40)
	}
	return ""
}

func badExpansion(x *Expansion) string {
	if x == nil || len(x.To) == 0 {
		return "expanded to nobody"
	}
	if x.From != "" {
		if _, err := envelope.ParseAddress(x.From); err != nil {
			return "expanded with the reverse-path " + clean(x.From, 300)
		}
	}
	for i := range x.To {
		if _, err := envelope.ParseAddress(x.To[i].Addr); err != nil {
			return "expanded to " + clean(x.To[i].Addr, 300)
		}
	}
	return badPrepend(x.Prepend)
}

// badPrepend wants complete header lines: what is put before a message must not end its header.
func badPrepend(s string) string {
	if s == "" {
		return ""
	}
	if !strings.HasSuffix(s, "\n") || strings.ContainsAny(s, "\r\x00") {
		return "header lines to prepend are not LF lines"
	}
	for i, l := range strings.Split(s[:len(s)-1], "\n") {
		if i > 0 && (strings.HasPrefix(l, " ") || strings.HasPrefix(l, "\t")) {
			continue
		}
		name, _, ok := strings.Cut(l, ":")
		if !ok || name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return "header lines to prepend hold a line that is none"
		}
	}
	return ""
}

// clean makes one line of printable UTF-8 out of s, cut to max octets.
func clean(s string, max int) string {
	if len(s) <= max && utf8.ValidString(s) && !strings.ContainsFunc(s, control) {
		return s
	}
	s = strings.Map(func(r rune) rune {
		if control(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) > max {
		for max > 0 && !utf8.RuneStart(s[max]) {
			max--
		}
		s = s[:max]
	}
	return s
}

func control(r rune) bool {
	return r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029
}
