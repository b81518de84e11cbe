package resolve

import (
	"context"
	"net/netip"
	"strconv"
	"strings"

	"pennypost/internal/envelope"
)

// maxNames bounds what a hostile reverse zone may make us ask for.
const maxNames = 10

// ReverseName is the name whose records are about ip in zone: its octets (RFC 1035 §3.5) or, for
// IPv6, its nibbles (RFC 3596 §2.5), the last one first.
func ReverseName(ip netip.Addr, zone string) string {
	ip = ip.Unmap()
	var b strings.Builder
	octets := ip.AsSlice()
	for i := len(octets) - 1; i >= 0; i-- {
		if ip.Is4() {
			b.WriteString(strconv.Itoa(int(octets[i])))
			b.WriteByte('.')
			continue
		}
		const hex = "0123456789abcdef"
		b.Write([]byte{hex[octets[i]&15], '.', hex[octets[i]>>4], '.'})
	}
	return b.String() + zone
}

// Reverse returns the names that DNS has for an address; none is no error. The error is an *Error.
func (r *Resolver) Reverse(ctx context.Context, ip netip.Addr) ([]string, error) {
	zone := "in-addr.arpa"
	if !ip.Unmap().Is4() {
		zone = "ip6.arpa"
	}
	name := ReverseName(ip, zone)
	a, err := r.ask(ctx, name, typePTR)
	if err != nil {
		return nil, deferred(name, "4.4.3", "no answer from DNS about names", err)
	}
	var out []string
	for _, n := range a.names[:min(len(a.names), maxNames)] {
		if envelope.CheckDomain(n) == nil { // what is no host name has no address either
			out = append(out, n)
		}
	}
	return out, nil
}

// A returns the IPv4 addresses at a name, exactly as DNS has them: neither the hosts file nor the
// order of families counts. None is no error. It is for lists kept in DNS.
func (r *Resolver) A(ctx context.Context, name string) ([]netip.Addr, error) {
	a, err := r.ask(ctx, strings.ToLower(name), typeA)
	if err != nil {
		return nil, deferred(name, "4.4.3", "no answer from DNS about addresses", err)
	}
	return a.addrs, nil
}
