package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"pennypost/internal/envelope"
	"pennypost/internal/resolve"
)

// hop is a next hop as requests name it.
type hop struct {
	domain string // its MX hosts; else
	host   string // this host, a name or an address; else
	socket string // this UNIX socket
	port   int
	lmtp   bool
}

// lmtpPort is the port RFC 2033 §5 leaves to sites; 24 is what IANA gives to private mail systems.
const lmtpPort = 24

// parseHop reads "example.org" and "mx:example.org" (look up MX), "host:port" and "[host]:port"
// and "[host]" (that host), "lmtp:host:port" and "lmtp:/path".
func parseHop(s string, port int) (hop, error) {
	if d, ok := strings.CutPrefix(s, "mx:"); ok {
		return hop{domain: d, port: port}, envelope.CheckDomain(d)
	}
	if rest, ok := strings.CutPrefix(s, "lmtp:"); ok {
		if strings.HasPrefix(rest, "/") {
			return hop{socket: rest, lmtp: true}, nil
		}
		h, err := parseHostPort(rest, lmtpPort)
		h.lmtp = true
		if h.domain != "" {
			h.host, h.domain = h.domain, ""
		}
		return h, err
	}
	return parseHostPort(s, port)
}

func parseHostPort(s string, port int) (hop, error) {
	if ip, err := netip.ParseAddr(s); err == nil {
		return hop{host: ip.String(), port: port}, nil
	}
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		return checkHop(hop{host: s[1 : len(s)-1], port: port}, s)
	}
	if !strings.Contains(s, ":") {
		return checkHop(hop{domain: s, port: port}, s)
	}
	h, p, err := net.SplitHostPort(s)
	if err != nil {
		return hop{}, fmt.Errorf("next hop %q: %w", s, err)
	}
	n, err := strconv.Atoi(p)
	if err != nil || n < 1 || n > 65535 {
		return hop{}, fmt.Errorf("next hop %q: bad port", s)
	}
	return checkHop(hop{host: h, port: n}, s)
}

func checkHop(h hop, s string) (hop, error) {
	h.host = strings.TrimPrefix(h.host, "IPv6:")
	if _, err := netip.ParseAddr(h.host); err == nil {
		return h, nil
	}
	name, err := resolve.ToASCII(h.host + h.domain) // one of them is empty
	if err != nil {
		return h, fmt.Errorf("next hop %q: %w", s, err)
	}
	if h.host != "" {
		h.host = name
	}
	return h, nil
}

// hosts finds the hosts of the attempt's next hop.
func (a *attempt) hosts(ctx context.Context) ([]resolve.Host, error) {
	switch {
	case a.hop.socket != "":
		return []resolve.Host{{Name: a.hop.socket, Implicit: true}}, nil
	case a.hop.domain != "":
		hosts, err := a.o.Resolver.NextHops(ctx, a.hop.domain)
		if err == nil && a.req.TLS && a.req.From != "" {
			err = authentic(a.hop.domain, hosts)
		}
		return hosts, err
	}
	addrs, err := a.o.Resolver.Addrs(ctx, a.hop.host)
	if err != nil {
		return nil, err
	}
	return []resolve.Host{{Name: a.hop.host, Implicit: true, Addrs: addrs}}, nil
}

// authentic refuses MX records that nobody has signed to a message with REQUIRETLS
// (RFC 8689 §4.2.1): a forged answer would lead it to a host with a valid certificate.
func authentic(domain string, hosts []resolve.Host) error {
	for _, h := range hosts {
		if !h.AD && !h.Implicit {
			return &resolve.Error{Domain: domain, Status: envelope.Fail("5.7.10", domain+": the message asks for REQUIRETLS, and the domain's MX records are not signed")}
		}
	}
	return nil
}

// statusOf is the status an error of the resolver stands for.
func statusOf(err error) envelope.Status {
	var e *resolve.Error
	if errors.As(err, &e) {
		return e.Status
	}
	return envelope.Defer("4.4.3", err.Error())
}
