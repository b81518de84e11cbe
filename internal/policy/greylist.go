package policy

import (
	"context"
	"fmt"
	"strings"
	"time"

	"pennypost/internal/envelope"
)

// GreyTimes are the times of greylisting; what is 0 takes the default of RFC 6647 §5.
type GreyTimes struct {
	Delay  time.Duration // a retry counts after it; default 1m
	Window time.Duration // and before that; default 1d
	Expiry time.Duration // what was not seen for so long is forgotten; default 5w
	Known  int           // successful retries that make a network known; default 1
}

func (g GreyTimes) complete() GreyTimes {
	if g.Delay <= 0 {
		g.Delay = time.Minute
	}
	if g.Window <= 0 {
		g.Window = 24 * time.Hour
	}
	if g.Expiry <= 0 {
		g.Expiry = 5 * 7 * 24 * time.Hour
	}
	g.Known = max(g.Known, 1)
	return g
}

// Kinds of records in the greylist. Of a network, a is when it was first seen and c the number
// of its successful retries; of a message, a is its first attempt and b the time it passed.
const (
	kindNetwork byte = 'n'
	kindMessage byte = 'm'
)

// greylist asks a stranger to come back. RFC 6647 §5: by network, sender and the first recipient,
// whose verdict holds for the others of the transaction; clients do not reorder them.
func (v *Visit) greylist(_ context.Context, m Mail) Verdict {
	if v.grey != nil {
		return *v.grey
	}
	r := v.p.greyVerdict(network(v.client.Addr).String(), m)
	v.grey = &r
	return r
}

func (p *Policy) greyVerdict(net string, m Mail) Verdict {
	const name = "greylist"
	g := p.o.Grey
	known, err := p.greyKnown(net)
	if err != nil {
		return p.stateFailed(name, err)
	}
	if known {
		return pass(name, "%s has come back before", net)
	}
	to := envelope.FoldDomain(m.To.Domain)
	if p.o.Greylist == "full" {
		to = strings.ToLower(m.To.Local) + "@" + to
	}
	var r Verdict
	again := false
	err = p.grey.update(kindMessage, []string{net, greySender(m.From), to}, func(key uint64, b *bucket) {
		now := p.unix()
		i, old, ok := b.find(key)
		age := since(now, old.a)
		switch {
		case ok && old.b != 0 && since(now, old.last) <= g.Expiry:
			r = pass(name, "this sender, recipient and network have passed before")
			old.last = now
			b.put(i, old)
		case !ok || old.b != 0 || age > g.Window || old.a > now:
			if !ok {
				i = b.place(p.greyWorth)
			}
			b.put(i, record{key: key, a: now, last: now})
			r = p.comeBack("the first attempt of this sender and recipient from "+net, g.Delay)
		case age < g.Delay:
			r = p.comeBack(fmt.Sprintf("the retry comes after %s, too early", age), g.Delay-age)
		default:
			old.b, old.last = now, now
			b.put(i, old)
			again = true
			r = pass(name, "the retry came after %s", age)
		}
	})
	if err == nil && again {
		err = p.greyWelcome(net)
	}
	if err != nil {
		return p.stateFailed(name, err)
	}
	return r
}

// comeBack is the deferral; RFC 6647 §5 asks for 450.
func (p *Policy) comeBack(why string, in time.Duration) Verdict {
	return Verdict{
		Check: "greylist", Action: Defer, Why: why, Code: 450, DSN: "4.7.1",
		Reply: fmt.Sprintf("greylisted: try again in %s", in.Round(time.Second)),
	}
}

// greyKnown tells whether a network has shown often enough that it comes back.
func (p *Policy) greyKnown(net string) (known bool, err error) {
	err = p.grey.update(kindNetwork, []string{net}, func(key uint64, b *bucket) {
		now := p.unix()
		i, r, ok := b.find(key)
		if !ok {
			return
		}
		if since(now, r.last) > p.o.Grey.Expiry {
			b.clear(i)
			return
		}
		if known = int(r.c) >= p.o.Grey.Known; known && since(now, r.last) > time.Hour {
			r.last = now // an hour more or less is not worth a write each time
			b.put(i, r)
		}
	})
	return known, err
}

// greyWelcome counts a successful retry of a network.
func (p *Policy) greyWelcome(net string) error {
	return p.grey.update(kindNetwork, []string{net}, func(key uint64, b *bucket) {
		now := p.unix()
		i, r, ok := b.find(key)
		if !ok {
			i, r = b.place(p.greyWorth), record{key: key, a: now}
		}
		r.c, r.last = r.c+1, now
		b.put(i, r)
	})
}

// greyWorth lets first attempts, which anybody can make in any number, go before what was
// earned by coming back.
func (p *Policy) greyWorth(r record) int64 {
	if r.b != 0 || r.c != 0 {
		return 1<<40 + int64(r.last)
	}
	return int64(r.last)
}

// greySender makes the reverse-paths of one sender alike: mailing lists and many others put
// numbers into each message's, which would make every retry a first attempt (RFC 6647 §4.2).
func greySender(from envelope.Address) string {
	var b strings.Builder
	digits := false
	for _, c := range strings.ToLower(from.Local) {
		d := c >= '0' && c <= '9'
		if !d {
			b.WriteRune(c)
		} else if !digits {
			b.WriteByte('#')
		}
		digits = d
	}
	return b.String() + "@" + envelope.FoldDomain(from.Domain)
}
