package dsn

import (
	"encoding/base64"
	"fmt"
	"mime"
	"strings"
	"unicode/utf8"

	"pennypost/internal/envelope"
)

// subject is the verdict and whom it is about.
func (p *printer) subject() string {
	verdict := "Not delivered"
	switch p.r.Kind {
	case Delay:
		verdict = "Delayed, still trying"
	case Success:
		verdict = "Delivered"
		for _, rc := range p.r.Recipients {
			if rc.Verdict != envelope.Delivered {
				verdict = "Passed on"
			}
		}
	}
	if len(p.r.Recipients) == 1 {
		return verdict + ": " + p.r.Recipients[0].Addr
	}
	return fmt.Sprintf("%s: %d recipients", verdict, len(p.r.Recipients))
}

// encodeWord is RFC 2047's encoded-word where text is not ASCII.
func encodeWord(s string) string {
	if isASCII(s) {
		return s
	}
	var words []string
	for s != "" {
		n := min(len(s), 42) // RFC 2047 §2: an encoded-word has at most 75 octets
		for n < len(s) && !utf8.RuneStart(s[n]) {
			n--
		}
		words = append(words, "=?utf-8?B?"+base64.StdEncoding.EncodeToString([]byte(s[:n]))+"?=")
		s = s[n:]
	}
	return strings.Join(words, " ")
}

// explain is the part for people: what happened to whom, what the other side said, what it
// means, and what to do.
func explain(r *Report, l layout) string {
	var b strings.Builder
	fmt.Fprintf(&b, "This is the mail system at %s.\n\n", r.Hostname)
	b.WriteString(wrap("", opening(r)))
	b.WriteString("\n")
	if s, err := new(mime.WordDecoder).DecodeHeader(l.subject); err == nil && s != "" && utf8.ValidString(s) {
		b.WriteString(wrap("", "Subject of your message: "+cut(cleanLine(s, true), 200)) + "\n")
	}
	for _, rc := range r.Recipients {
		recipientText(&b, r, rc)
	}
	switch {
	case r.Kind == Success:
	case r.Postmaster != "":
		b.WriteString(wrap("", fmt.Sprintf("If you need help, write to <%s> and quote this report.", r.Postmaster)))
	}
	return b.String()
}

func opening(r *Report) string {
	when := ""
	if !r.Env.Time.IsZero() {
		when = " of " + rfc5322Date(r.Env.Time)
	}
	whom := "the recipient below"
	if len(r.Recipients) > 1 {
		whom = fmt.Sprintf("the %d recipients below", len(r.Recipients))
	}
	switch r.Kind {
	case Delay:
		return fmt.Sprintf("Your message%s has not reached %s yet. You need not send it again: delivery is still being tried.", when, whom)
	case Success:
		return fmt.Sprintf("Your message%s was handled for %s, as you asked to be told.", when, whom)
	}
	return fmt.Sprintf("Your message%s could not be delivered to %s. It will not be tried again.", when, whom)
}

func recipientText(b *strings.Builder, r *Report, rc Recipient) {
	fmt.Fprintf(b, "<%s>\n", cleanLine(rc.Addr, true))
	if _, orig, ok := strings.Cut(rc.ORcpt, ";"); ok && orig != rc.Addr {
		b.WriteString(wrap("    ", "You wrote to: "+cleanLine(orig, true)))
	} else if rc.Orig != "" && rc.Orig != rc.Addr {
		b.WriteString(wrap("    ", "You wrote to: "+cleanLine(rc.Orig, true)))
	}
	if r.Kind == Success {
		b.WriteString(wrap("    ", successText(rc.Verdict)) + "\n")
		return
	}
	what, todo := meaning(statusCode(r.Kind, rc))
	b.WriteString(wrap("    ", what))
	if reply := cut(cleanLine(rc.Reply, true), 1000); reply != "" {
		who := "Reason"
		if rc.Remote && rc.Relay != "" {
			who = "The host " + cleanLine(rc.Relay, true) + " said"
		}
		b.WriteString(wrap("    ", who+": "+reply))
	}
	if r.Kind == Delay {
		if !rc.RetryUntil.IsZero() {
			b.WriteString(wrap("    ", "It will be tried until "+rfc5322Date(rc.RetryUntil)+"."))
		}
	} else {
		b.WriteString(wrap("    ", "What to do: "+todo))
	}
	b.WriteString("\n")
}

func successText(v envelope.Verdict) string {
	switch v {
	case envelope.Relayed:
		return "Passed on to a host that sends no reports of this kind; you will hear no more unless delivery fails there."
	case envelope.Expanded:
		return "Passed on to the members of this address; there will be no report about each of them."
	}
	return "Delivered to the mailbox. This does not mean that it was read."
}

// meaning puts an enhanced status code (RFC 3463) into plain words.
func meaning(code string) (what, todo string) {
	class, detail, _ := strings.Cut(code, ".")
	switch detail {
	case "1.1", "1.6":
		return "There is no such mailbox.", "check the address for typing errors, or ask the recipient for the current one."
	case "1.2":
		return "The domain of the address does not exist or receives no mail.", "check the part of the address after the @."
	case "1.3":
		return "The address is not written correctly.", "check the address for typing errors."
	case "1.10":
		return "The domain of the address says that it receives no mail.", "use another address of the recipient."
	case "1.8", "1.7":
		return "Your own address was not accepted as the sender.", "check the sender address your mail program uses, or ask your postmaster."
	case "2.1":
		return "The mailbox exists but accepts no mail.", "reach the recipient in another way."
	case "2.2":
		return "The mailbox is full.", "send it again later, or tell the recipient in another way."
	case "2.3", "3.4":
		return "The message is too large.", "make it smaller, or send a link to the file instead."
	case "3.1":
		return "The receiving system is out of space.", "send it again later."
	case "4.1", "4.2", "3.2":
		return "The receiving host could not be reached.", "send it again later; if it lasts, tell the recipient in another way."
	case "4.3", "4.4":
		return "The receiving host could not be found out.", "check the part of the address after the @, and send it again later."
	case "4.6":
		return "The message went round in a circle.", "tell the recipient's postmaster: mail is forwarded in a loop."
	case "4.7":
		return "The time for trying is over.", "send it again later; if it lasts, tell the recipient in another way."
	case "6.7":
		return "An address needs a form of mail (internationalised addresses) that the next host does not know.", "use an address in plain letters."
	}
	return meaningOfSubject(class, detail)
}

func meaningOfSubject(class, detail string) (what, todo string) {
	subject, _, _ := strings.Cut(detail, ".")
	switch subject {
	case "6":
		return "The content of the message was not accepted.", "change the content or format as the reason says, and send it again."
	case "7":
		return "The receiving system refuses the message by its rules.", "read the reason; if you think it is wrong, write to the postmaster of the recipient."
	case "5":
		return "The receiving system and ours did not understand each other.", "tell your postmaster."
	}
	if class == "4" {
		return "The receiving system had a temporary problem.", "send it again later."
	}
	return "The receiving system refused the message.", "read the reason; the recipient's postmaster can say more."
}

// wrap breaks text into lines of at most 76 characters, each behind indent.
func wrap(indent, text string) string {
	const width = 76
	var b strings.Builder
	col := 0
	for _, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case col == 0:
			b.WriteString(indent)
			col = len(indent)
		case col+1+n > width:
			b.WriteString("\n" + indent)
			col = len(indent)
		default:
			b.WriteByte(' ')
			col++
		}
		b.WriteString(word)
		col += n
	}
	if col > 0 {
		b.WriteByte('\n')
	}
	return b.String()
}

// cut shortens s to n octets, at a character, and says so.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + " [...]"
}
