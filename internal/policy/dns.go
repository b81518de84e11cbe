package policy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"pennypost/internal/envelope"
	"pennypost/internal/resolve"
)

// lists are the look-ups of one client in all zones.
type lists struct {
	done    chan struct{}
	answers []listAnswer // by zone; read after done
}

type listAnswer struct {
	addrs []netip.Addr
	err   error
}

// askLists asks all zones at once. It ends by itself: ctx has a time limit.
func (p *Policy) askLists(ctx context.Context, ip netip.Addr) *lists {
	l := &lists{done: make(chan struct{}), answers: make([]listAnswer, len(p.o.Zones))}
	each := make(chan struct{}, len(p.o.Zones))
	for i, z := range p.o.Zones {
		go func() {
			a := &l.answers[i]
			a.addrs, a.err = p.o.DNS.A(ctx, resolve.ReverseName(ip, z.Name))
			each <- struct{}{}
		}()
	}
	go func() {
		defer close(l.done)
		for range p.o.Zones {
			<-each
		}
	}()
	return l
}

// wait tells whether done came before the end of ctx, which is that of the server.
func wait(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

func broken(check string) Verdict {
	return Verdict{
		Check: check, Action: Defer, Why: "the server is stopping", Code: 421, DSN: "4.3.2", Reply: "closing down", Close: true,
	}
}

// dnsbl adds up what the lists say. A list that does not answer counts nothing: mail does not
// stop because a list has.
func (v *Visit) dnsbl(ctx context.Context, _ Mail) Verdict {
	const name = "dnsbl"
	if !wait(ctx, v.lists.done) {
		return broken(name)
	}
	score, on, silent := 0, []string(nil), []string(nil)
	for i, z := range v.p.o.Zones {
		a := v.lists.answers[i]
		listed, why := z.listed(a)
		switch {
		case why != "":
			silent = append(silent, z.Name+" "+why)
		case listed:
			score += z.Weight
			on = append(on, z.Name)
		}
	}
	why := v.client.Addr.String() + " is on no list"
	if len(on) > 0 {
		why = fmt.Sprintf("%s is on %s, score %d of %d", v.client.Addr, strings.Join(on, ", "), score, v.p.o.Score)
	}
	if len(silent) > 0 {
		why += "; " + strings.Join(silent, "; ")
	}
	if score < v.p.o.Score {
		if len(silent) > 0 {
			return Verdict{Check: name, Action: Note, Why: why}
		}
		return pass(name, "%s", why)
	}
	return Verdict{
		Check: name, Action: Reject, Why: why, Code: 554, DSN: "5.7.1",
		Reply: "your address " + v.client.Addr.String() + " is listed by " + strings.Join(on, ", "),
	}
}

// listed reads the answer of one zone. RFC 5782 §2.1: lists answer within 127.0.0.0/8; anything
// else is a parked domain or a resolver that invents answers. why is set where the answer says
// nothing.
func (z Zone) listed(a listAnswer) (listed bool, why string) {
	if a.err != nil {
		return false, "gives no answer"
	}
	for _, ip := range a.addrs {
		o := ip.As4()
		switch {
		case o[0] != 127:
			return false, "answers " + ip.String() + ", which no list does"
		case o[1] == 255 && o[2] == 255:
			// The large lists say so that the asker, or his resolver, may not ask.
			return false, "refuses to answer us (" + ip.String() + ")"
		case len(z.Answers) == 0, slices.ContainsFunc(z.Answers, func(n netip.Prefix) bool { return n.Contains(ip) }):
			listed = true
		}
	}
	return listed, ""
}

// reverse is the look-up of one client's names.
type reverse struct {
	done  chan struct{}
	names []string
	good  string // the name that has the client's address
	err   error
}

// askReverse looks for names of the address, and for one of them that leads back to it.
func (p *Policy) askReverse(ctx context.Context, ip netip.Addr) *reverse {
	r := &reverse{done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.names, r.err = p.o.DNS.Reverse(ctx, ip)
		if p.o.ReverseDNS == "exists" {
			return
		}
		for _, n := range r.names {
			addrs, err := p.o.DNS.Addrs(ctx, n)
			if slices.Contains(addrs, ip) {
				r.good = n
				return
			}
			if err != nil && temporary(err) {
				r.err = err
			}
		}
	}()
	return r
}

// reverseDNS judges the names of the client's address. What cannot be looked up is no verdict.
func (v *Visit) reverseDNS(ctx context.Context, _ Mail) Verdict {
	const name = "reverse-dns"
	if !wait(ctx, v.reverse.done) {
		return broken(name)
	}
	r, ip := v.reverse, v.client.Addr
	switch {
	case r.good != "":
		return pass(name, "%s is %s", ip, r.good)
	case r.err != nil:
		return Verdict{Check: name, Action: Note, Why: fmt.Sprintf("the names of %s cannot be looked up: %v", ip, r.err)}
	case len(r.names) == 0:
		// RFC 7372 §3.3.
		return Verdict{
			Check: name, Action: Reject, Why: ip.String() + " has no name in DNS", Code: 550, DSN: "5.7.25",
			Reply: "your address " + ip.String() + " has no name in DNS",
		}
	case v.p.o.ReverseDNS == "exists":
		return pass(name, "%s is called %s", ip, r.names[0])
	}
	return Verdict{
		Check: name, Action: Reject, Why: fmt.Sprintf("%s has the name %s, which does not have that address", ip, r.names[0]),
		Code: 550, DSN: "5.7.25",
		Reply: "the name " + r.names[0] + " of your address " + ip.String() + " does not lead back to it",
	}
}

// helo judges the name in HELO or EHLO. A name that does not fit the address is no ground:
// RFC 5321 §4.1.4 forbids refusing mail for it.
func (v *Visit) helo(_ context.Context, m Mail) Verdict {
	const name = "helo"
	o := &v.p.o
	refuse := func(why, reply string) Verdict {
		return Verdict{Check: name, Action: Reject, Why: why, Code: 550, DSN: "5.7.1", Reply: reply}
	}
	literal, isLiteral := envelope.ParseLiteral(m.Helo)
	bare, err := netip.ParseAddr(m.Helo)
	isBare := err == nil
	host := envelope.FoldDomain(m.Helo)
	own := o.Hostname != "" && host == envelope.FoldDomain(o.Hostname) ||
		isLiteral && literal == v.client.Local || isBare && bare == v.client.Local
	switch {
	case own && (v.client.Addr.IsLoopback() || v.client.Addr == v.client.Local):
		return pass(name, "%s is this host", m.Helo)
	case own && o.HeloOwn:
		return refuse("the client says it is "+m.Helo+", which is this host", "you are not "+m.Helo+", that is this host")
	case isBare && o.HeloAddress:
		return refuse("the client says it is "+m.Helo+", an address without brackets", "an address in HELO stands in brackets")
	case o.HeloUnqualified && !isLiteral && !isBare && !strings.Contains(strings.TrimSuffix(m.Helo, "."), "."):
		return refuse("the client says it is "+m.Helo+", no full host name", "the name in HELO is not a full host name")
	}
	return pass(name, "%s is no name that is refused", m.Helo)
}
