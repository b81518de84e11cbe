package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// Kinds of records in the state file of the rates.
const (
	kindClientRate byte = 'c'
	kindNetRate    byte = 'n'
	kindClientOpen byte = 'C'
	kindNetOpen    byte = 'N'
	kindUser       byte = 'u'
)

// sessionAge is after how long a count of sessions is not believed: the number of its process
// may be another's by then.
const sessionAge = 24 * time.Hour

type limit struct {
	check string
	kind  byte
	what  string
	most  int
}

// rate counts the connection by address and network, and the sessions at once.
func (v *Visit) rate() Verdict {
	o, ip := &v.p.o, v.client.Addr
	if o.ClientSessions <= 0 && o.NetworkSessions <= 0 && o.ClientRate <= 0 && o.NetworkRate <= 0 {
		return Verdict{Check: "rate", Why: "there is no limit"}
	}
	client, net := clientOf(ip), block(ip).String()
	for _, l := range []limit{
		{"client-sessions", kindClientOpen, client, o.ClientSessions},
		{"network-sessions", kindNetOpen, net, o.NetworkSessions},
		{"client-rate", kindClientRate, client, o.ClientRate},
		{"network-rate", kindNetRate, net, o.NetworkRate},
	} {
		if l.most <= 0 {
			continue
		}
		var r Verdict
		if l.kind == kindClientOpen || l.kind == kindNetOpen {
			r = v.enter(l)
		} else {
			r = v.p.count(l, time.Minute)
			if r.Refuses() {
				r.Code, r.DSN, r.Close = 421, "4.7.0", true
				r.Reply = "too many connections from " + l.what + " in a minute, try again later"
			}
		}
		if v.tell(r).Refuses() {
			return r
		}
	}
	return pass("rate", "no limit is reached")
}

// clientOf is what the limits take for one client: an address of IPv4, but the /64 of IPv6, in
// which every host may choose among more addresses than can be counted.
func clientOf(ip netip.Addr) string {
	if ip.Is4() {
		return ip.String()
	}
	return network(ip).String()
}

// block is what the limits take for one network: the /24 of IPv4, and the /48 of IPv6, the most that
// one customer is given as a rule.
func block(ip netip.Addr) netip.Prefix {
	n := network(ip)
	if ip.Is4() {
		return n
	}
	return netip.PrefixFrom(n.Addr(), 48).Masked()
}

// User counts one recipient of an authenticated user.
func (p *Policy) User(user string) Verdict {
	if p.o.UserRecipients <= 0 || user == "" {
		return pass("user-recipients", "there is no limit")
	}
	r := p.count(limit{"user-recipients", kindUser, user, p.o.UserRecipients}, time.Hour)
	if r.Refuses() {
		r.Code, r.DSN, r.Reply = 452, "4.7.1", "too many recipients in an hour, try again later"
	}
	return r
}

// count adds one event and compares the sliding sum over a window: what is left of the last
// fixed window, in proportion, and the current one. A refused event is not counted, so a client
// that never stops still gets what the limit grants.
func (p *Policy) count(l limit, window time.Duration) Verdict {
	var sum, most float64
	full := false
	err := p.rates.update(l.kind, []string{l.what}, func(key uint64, b *bucket) {
		now := p.unix()
		w := uint32(window / time.Second)
		start := now - now%w
		i, r, ok := b.find(key)
		if !ok {
			i, r = b.place(p.rateWorth), record{key: key, a: start}
		}
		switch {
		case r.a == start:
		case r.a+w == start:
			r.a, r.b, r.c = start, r.c, 0
		default: // long ago, or of a clock that was set back
			r.a, r.b, r.c = start, 0, 0
		}
		left := 1 - float64(now%w)/float64(w)
		sum, most = float64(r.b)*left+float64(r.c), float64(l.most)
		if full = sum+1 > most; !full {
			r.c++
		}
		r.last = now
		b.put(i, r)
	})
	switch {
	case err != nil:
		return p.stateFailed(l.check, err)
	case full:
		return Verdict{Check: l.check, Action: Defer, Why: fmt.Sprintf("%s has reached %d in %s", l.what, l.most, spell(window))}
	}
	return pass(l.check, "%s is at %.0f of %d in %s", l.what, sum+1, l.most, spell(window))
}

func spell(d time.Duration) string {
	if d == time.Hour {
		return "an hour"
	}
	return "a minute"
}

// enter counts one session. The file holds a count for each process, so that the kernel's list of
// processes tells which of them count no more: nobody cleans up after a kill -9.
func (v *Visit) enter(l limit) Verdict {
	p, pid := v.p, uint32(os.Getpid())
	var others, own uint32
	full := false
	err := p.rates.update(l.kind, []string{l.what}, func(key uint64, b *bucket) {
		now := p.unix()
		at := -1
		b.all(key, func(i int, r record) {
			switch {
			case r.pid == pid:
				at = i
			case since(now, r.last) > sessionAge || !alive(r.pid):
				b.clear(i)
			default:
				others += r.c
			}
		})
		p.mu.Lock()
		own = p.mine[key]
		if full = int(others+own) >= l.most; !full && !p.o.DryRun {
			p.mine[key]++
			v.held = append(v.held, key)
		}
		p.mu.Unlock()
		if full {
			return
		}
		if at < 0 {
			at = b.place(p.rateWorth)
		}
		b.put(at, record{key: key, c: own + 1, pid: pid, last: now})
	})
	switch {
	case err != nil:
		return p.stateFailed(l.check, err)
	case full:
		return Verdict{
			Check: l.check, Action: Defer, Why: fmt.Sprintf("%s has %d sessions open", l.what, others+own),
			Code: 421, DSN: "4.7.0", Reply: "too many sessions from " + l.what + ", try again later", Close: true,
		}
	}
	return pass(l.check, "%s has %d of %d sessions open", l.what, others+own+1, l.most)
}

// leave takes back what enter counted.
func (v *Visit) leave() {
	p, pid := v.p, uint32(os.Getpid())
	for _, key := range v.held {
		p.mu.Lock()
		if p.mine[key]--; p.mine[key] == 0 {
			delete(p.mine, key)
		}
		p.mu.Unlock()
		err := p.rates.updateKey(key, func(b *bucket) {
			p.mu.Lock()
			n := p.mine[key] // others of this process may have come and gone meanwhile
			p.mu.Unlock()
			b.all(key, func(i int, r record) {
				switch {
				case r.pid != pid:
				case n == 0:
					b.clear(i)
				default:
					r.c = n
					b.put(i, r)
				}
			})
		})
		if err != nil {
			p.stateFailed("sessions", err)
		}
	}
	v.held = nil
}

// rateWorth keeps sessions of living processes longest, then what was seen last.
func (p *Policy) rateWorth(r record) int64 {
	if r.pid != 0 && alive(r.pid) {
		return 1<<40 + int64(r.last)
	}
	return int64(r.last)
}

// alive asks whether a process exists; one that is not ours to signal does.
func alive(pid uint32) bool {
	return pid != 0 && !errors.Is(syscall.Kill(int(pid), 0), syscall.ESRCH)
}
