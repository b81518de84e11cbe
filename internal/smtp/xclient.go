package smtp

import (
	"net/netip"
	"strconv"
	"strings"
)

// xclient is Postfix's XCLIENT: a proxy that we trust says who its client is. The session
// begins anew as that client's, with another greeting; the connection stays the proxy's, which
// may say XCLIENT again.
func (c *session) xclientCmd(arg string) error {
	switch {
	case !c.xclient:
		return c.fault(550, "5.7.0", "you are not trusted to speak for another")
	case c.tx.open:
		return c.fault(503, "5.5.1", "not between MAIL and the end of the message")
	case arg == "":
		return c.fault(501, "5.5.4", "want XCLIENT and attributes")
	}
	st := c.st
	st.Helo, st.ESMTP, st.User, st.Vouched, st.Peer.UID = "", false, "", false, nil
	for attr := range strings.FieldsSeq(arg) {
		if a := st.override(attr); a != nil {
			return c.fault(a.Code, a.Enhanced, a.Text)
		}
	}
	if st.Vouched && !c.extensions().XClientLogin {
		return c.fault(501, "5.5.4", "bad XCLIENT attribute: nobody logs in here")
	}
	c.dropMessage()
	c.be.Close()
	c.be = nil
	c.st = st
	if !c.begin() {
		c.closing = true
	}
	return nil
}

// override changes the state as one attribute says.
func (st *State) override(attr string) *Answer {
	name, value, ok := strings.Cut(attr, "=")
	bad := &Answer{Code: 501, Enhanced: "5.5.4", Text: "bad XCLIENT attribute"}
	if value, ok = decodeAttr(value, ok); !ok {
		return bad
	}
	switch strings.ToUpper(name) {
	case "NAME": // looked up here where it matters: nobody else's word for a name is needed
	case "ADDR":
		st.Peer.Addr, ok = overrideAddr(st.Peer.Addr, value)
	case "PORT":
		st.Peer.Addr, ok = overridePort(st.Peer.Addr, value)
	case "DESTADDR":
		st.Peer.Local, ok = overrideAddr(st.Peer.Local, value)
	case "DESTPORT":
		st.Peer.Local, ok = overridePort(st.Peer.Local, value)
	case "PROTO":
		p := strings.ToUpper(value)
		st.ESMTP, ok = p == "ESMTP", p == "ESMTP" || p == "SMTP" || p == ""
	case "HELO":
		st.Helo, ok = value, value == "" || plausibleHelo(value)
	case "LOGIN":
		st.User, st.Vouched, ok = value, value != "", isPrintable(value)
	default:
		ok = false
	}
	if !ok {
		return bad
	}
	return nil
}

// decodeAttr reads a value: xtext, or a word in brackets for what is not known, which is "".
func decodeAttr(s string, ok bool) (string, bool) {
	switch {
	case !ok || s == "" || len(s) > 255:
		return "", false
	case strings.EqualFold(s, "[UNAVAILABLE]"), strings.EqualFold(s, "[TEMPUNAVAIL]"):
		return "", true
	}
	s, ok = decodeXtext(s)
	return s, ok && isPrintable(s)
}

// overrideAddr takes the address of an attribute; with "" nothing is known of the end, which
// leaves it the least rights.
func overrideAddr(old netip.AddrPort, s string) (netip.AddrPort, bool) {
	if s == "" {
		return netip.AddrPort{}, true
	}
	if v6, ok := cutPrefixFold(s, "IPV6:"); ok {
		s = v6
	}
	ip, err := netip.ParseAddr(s)
	return netip.AddrPortFrom(ip.Unmap().WithZone(""), old.Port()), err == nil
}

func overridePort(old netip.AddrPort, s string) (netip.AddrPort, bool) {
	if s == "" {
		return netip.AddrPortFrom(old.Addr(), 0), true
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return netip.AddrPortFrom(old.Addr(), uint16(n)), err == nil
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}
