package envelope

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"
)

// Limits of RFC 5321 §4.5.3.1. MaxAddress is the path limit less its angle brackets.
const (
	MaxLocal   = 64
	MaxDomain  = 255
	MaxAddress = 254
)

// ErrAddress is wrapped by every error about an address that cannot be used in an envelope.
var ErrAddress = errors.New("bad address")

// Address is one mailbox of an envelope, RFC 5321 §4.1.2 with RFC 6531 §3.3's UTF-8.
// Local is unquoted: the local-part "a b" (quoted on the wire) has Local `a b`.
// Domain is as given, without a trailing dot; an address literal keeps its brackets.
// The zero Address is the null reverse-path.
type Address struct {
	Local  string
	Domain string
}

// IsNull tells whether a is the null reverse-path <>.
func (a Address) IsNull() bool { return a.Local == "" && a.Domain == "" }

// String returns the address as it is written between angle brackets, its local-part quoted
// where RFC 5321 asks for it; the null reverse-path is "".
func (a Address) String() string {
	if a.IsNull() {
		return ""
	}
	l := a.Local
	if !isDotString(l) {
		l = quoteLocal(l)
	}
	if a.Domain == "" {
		return l
	}
	return l + "@" + a.Domain
}

// Key returns the address in the form used for comparison: the domain in lower case.
// The local-part is left alone; only the domain's owner may fold it (RFC 5321 §2.4).
func (a Address) Key() string {
	a.Domain = FoldDomain(a.Domain)
	return a.String()
}

// IsASCII tells whether the address can be sent to a peer without SMTPUTF8.
func (a Address) IsASCII() bool { return isASCII(a.Local) && isASCII(a.Domain) }

// Literal returns the IP address of an address literal domain such as [192.0.2.1] or
// [IPv6:2001:db8::1], RFC 5321 §4.1.3.
func (a Address) Literal() (netip.Addr, bool) { return ParseLiteral(a.Domain) }

// ParseLiteral reads an address literal including its brackets.
func ParseLiteral(s string) (netip.Addr, bool) {
	if len(s) < 3 || s[0] != '[' || s[len(s)-1] != ']' {
		return netip.Addr{}, false
	}
	s = s[1 : len(s)-1]
	if len(s) > 5 && strings.EqualFold(s[:5], "ipv6:") {
		ip, err := netip.ParseAddr(s[5:])
		return ip, err == nil && ip.Is6() && ip.Zone() == ""
	}
	ip, err := netip.ParseAddr(s)
	return ip, err == nil && ip.Is4()
}

// FoldDomain returns a domain in lower case (ASCII only) without a trailing dot.
func FoldDomain(d string) string {
	d = strings.TrimSuffix(d, ".")
	for i := 0; i < len(d); i++ {
		if c := d[i]; c >= 'A' && c <= 'Z' {
			b := []byte(d)
			for ; i < len(b); i++ {
				if b[i] >= 'A' && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return d
}

// ParseAddress reads a whole mailbox, local-part "@" domain, without angle brackets.
// The domain is required; the last @ outside quotes separates it. Control characters, CR, LF
// and NUL are refused everywhere, quoted or not: they would break every line protocol behind us.
func ParseAddress(s string) (Address, error) {
	a, rest, err := scanMailbox(s)
	if err != nil {
		return Address{}, err
	}
	if rest != "" {
		return Address{}, fmt.Errorf("%w: %q: text after the domain", ErrAddress, s)
	}
	if a.Domain == "" {
		return Address{}, fmt.Errorf("%w: %q: no domain", ErrAddress, s)
	}
	return a, nil
}

// ParseLocal reads a mailbox whose domain may be missing, as people type it at a prompt;
// domain stands in for a missing one.
func ParseLocal(s, domain string) (Address, error) {
	a, rest, err := scanMailbox(s)
	if err == nil && rest != "" {
		err = fmt.Errorf("%w: %q: text after the address", ErrAddress, s)
	}
	if err != nil {
		return Address{}, err
	}
	if a.Domain == "" {
		a.Domain = domain
	}
	return a, nil
}

// ParsePath reads an SMTP path "<...>" at the start of s and returns what follows it.
// A source route (RFC 5321 appendix C) is accepted and dropped. "<>" is the null address.
// "<postmaster>" without a domain is accepted with an empty Domain (RFC 5321 §4.5.1).
func ParsePath(s string) (a Address, rest string, err error) {
	if !strings.HasPrefix(s, "<") {
		return Address{}, s, fmt.Errorf("%w: no '<'", ErrAddress)
	}
	in := s[1:]
	if strings.HasPrefix(in, ">") {
		return Address{}, in[1:], nil
	}
	if strings.HasPrefix(in, "@") {
		i := strings.IndexByte(in, ':')
		if i < 0 || strings.ContainsAny(in[:i], "<> \"") {
			return Address{}, s, fmt.Errorf("%w: broken source route", ErrAddress)
		}
		in = in[i+1:]
	}
	a, in, err = scanMailbox(in)
	if err != nil {
		return Address{}, s, err
	}
	if !strings.HasPrefix(in, ">") {
		return Address{}, s, fmt.Errorf("%w: no '>' after the address", ErrAddress)
	}
	if a.Domain == "" && !strings.EqualFold(a.Local, "postmaster") {
		return Address{}, s, fmt.Errorf("%w: no domain", ErrAddress)
	}
	return a, in[1:], nil
}

// scanMailbox reads local-part ["@" domain] from the start of s.
func scanMailbox(s string) (Address, string, error) {
	local, rest, err := scanLocal(s)
	if err != nil {
		return Address{}, s, err
	}
	if len(local) > MaxLocal {
		return Address{}, s, fmt.Errorf("%w: local-part over %d octets", ErrAddress, MaxLocal)
	}
	a := Address{Local: local}
	if !strings.HasPrefix(rest, "@") {
		return a, rest, nil
	}
	d, rest, err := scanDomain(rest[1:])
	if err != nil {
		return Address{}, s, err
	}
	a.Domain = d
	if len(a.String()) > MaxAddress {
		return Address{}, s, fmt.Errorf("%w: address over %d octets", ErrAddress, MaxAddress)
	}
	return a, rest, nil
}

func scanLocal(s string) (local, rest string, err error) {
	if strings.HasPrefix(s, `"`) {
		return scanQuoted(s)
	}
	i := 0
	for i < len(s) {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if !usableRune(r, n) {
				return "", s, fmt.Errorf("%w: local-part is not UTF-8 text", ErrAddress)
			}
			i += n
			continue
		}
		if c != '.' && !isAtext(c) {
			break
		}
		i++
	}
	local = s[:i]
	if local == "" {
		return "", s, fmt.Errorf("%w: empty local-part", ErrAddress)
	}
	// Dots at the ends or doubled break RFC 5321's Dot-string, but some real mailboxes
	// (of Japanese carriers) have them; they travel quoted.
	return local, s[i:], nil
}

func scanQuoted(s string) (local, rest string, err error) {
	var b strings.Builder
	for i := 1; i < len(s); {
		c := s[i]
		switch {
		case c == '"':
			if b.Len() == 0 {
				return "", s, fmt.Errorf("%w: empty local-part", ErrAddress)
			}
			return b.String(), s[i+1:], nil
		case c == '\\':
			i++
			if i >= len(s) || s[i] < 0x20 || s[i] > 0x7e {
				return "", s, fmt.Errorf("%w: bad quoted pair", ErrAddress)
			}
			b.WriteByte(s[i])
			i++
		case c < 0x20 || c == 0x7f:
			return "", s, fmt.Errorf("%w: control character in the local-part", ErrAddress)
		case c < utf8.RuneSelf:
			b.WriteByte(c)
			i++
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			if !usableRune(r, n) {
				return "", s, fmt.Errorf("%w: local-part is not UTF-8 text", ErrAddress)
			}
			b.WriteString(s[i : i+n])
			i += n
		}
	}
	return "", s, fmt.Errorf("%w: quote not closed", ErrAddress)
}

func scanDomain(s string) (domain, rest string, err error) {
	if strings.HasPrefix(s, "[") {
		i := strings.IndexByte(s, ']')
		if i < 0 {
			return "", s, fmt.Errorf("%w: ']' missing", ErrAddress)
		}
		d := s[:i+1]
		if _, ok := ParseLiteral(d); !ok {
			return "", s, fmt.Errorf("%w: %q is no address literal", ErrAddress, d)
		}
		return d, s[i+1:], nil
	}
	i := 0
	for i < len(s) {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if !usableRune(r, n) {
				return "", s, fmt.Errorf("%w: domain is not UTF-8 text", ErrAddress)
			}
			i += n
			continue
		}
		// Underscores are no host name characters, yet real domains have them.
		if !isAlnum(c) && c != '-' && c != '.' && c != '_' {
			break
		}
		i++
	}
	domain, rest = strings.TrimSuffix(s[:i], "."), s[i:]
	if err := CheckDomain(domain); err != nil {
		return "", s, err
	}
	return domain, rest, nil
}

// CheckDomain tells what keeps d from being a domain name (RFC 5321 §2.3.5, RFC 1035 §2.3.4):
// labels of 1 to 63 octets, 255 together. Internationalised labels may be longer in UTF-8;
// resolve checks their A-label form.
func CheckDomain(d string) error {
	if d == "" || len(d) > MaxDomain {
		return fmt.Errorf("%w: domain of %d octets", ErrAddress, len(d))
	}
	for rest := d; ; {
		l, r, more := strings.Cut(rest, ".")
		if l == "" || isASCII(l) && len(l) > 63 {
			return fmt.Errorf("%w: domain %q has an empty or over-long label", ErrAddress, d)
		}
		for i := 0; i < len(l); i++ {
			if c := l[i]; c < utf8.RuneSelf && !isAlnum(c) && c != '-' && c != '_' {
				return fmt.Errorf("%w: domain %q has the character %q", ErrAddress, d, c)
			}
		}
		if !more {
			return nil
		}
		rest = r
	}
}

func usableRune(r rune, n int) bool {
	if r == utf8.RuneError && n <= 1 {
		return false
	}
	// C1 controls and the line separators would be line ends to somebody.
	return r >= 0xa0 && r != 0x2028 && r != 0x2029
}

func isDotString(s string) bool {
	if s == "" || s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, "..") {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < utf8.RuneSelf && c != '.' && !isAtext(c) {
			return false
		}
	}
	return true
}

func quoteLocal(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(s); i++ {
		if s[i] == '"' || s[i] == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	b.WriteByte('"')
	return b.String()
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// isAtext is RFC 5322 §3.2.3's atext, ASCII only.
func isAtext(c byte) bool {
	return isAlnum(c) || strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
