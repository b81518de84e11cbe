package service

import (
	"net/netip"
	"time"

	"pennypost/internal/auth"
)

// What slows guessing. The first wrong passwords cost nothing but the protocol's own delay; each
// further one doubles the time until the next is looked at. Counts halve every quarter of an hour.
const (
	freeAccount = 5  // wrong passwords for one account, from networks it never logged in from
	freeNetwork = 20 // wrong passwords from one network, for whatever accounts
	freePair    = 10 // wrong passwords for an account from a network it logged in from
	firstDelay  = time.Second
	maxDelay    = time.Minute
	maxWait     = 15 * time.Second    // a login is held up for so long; beyond it is put off
	halfLife    = 15 * time.Minute    // of a count
	knownFor    = 30 * 24 * time.Hour // a network stays known to an account after a right password
)

// guess is one attempt as the limits see it.
type guess struct {
	account string
	from    netip.Prefix
	// hidden: by SCRAM, which does not show whether the same wrong password comes again. One
	// program with an old one must not slow a whole network, so the network counts such guesses
	// once for each account.
	hidden bool
	// free: a password that was wrong before, and is asked about once more without being counted.
	free bool
	// spared is set by begin when the network has not counted the guess.
	spared bool
}

// network is what shares one count: the /24 of IPv4, the /64 of IPv6.
func network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	if !a.IsValid() {
		return netip.Prefix{}
	}
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// limits counts wrong passwords per account, per network, and per account and network. A network
// an account has logged in from is known to it: its guesses count for the pair alone. So nobody
// elsewhere, and no other user behind the same address, can keep a user out.
type limits struct {
	table *table
	now   func() time.Time
}

func (s *slot) decayed(now time.Time) uint32 {
	n := (now.UnixMilli() - s.last) / halfLife.Milliseconds()
	switch {
	case n <= 0:
		return s.count
	case n > 31:
		return 0
	}
	return s.count >> n
}

// more counts a guess and returns how long it has to wait.
func (s *slot) more(now time.Time, free uint32) time.Duration {
	s.count = s.decayed(now) + 1
	s.last = now.UnixMilli()
	if s.count <= free {
		return 0
	}
	d := min(firstDelay<<min(s.count-free-1, 10), maxDelay)
	// One after another: a thousand guesses at once do not wait side by side.
	s.next = max(now.UnixMilli(), s.next) + d.Milliseconds()
	return time.Duration(s.next-now.UnixMilli()) * time.Millisecond
}

func (s *slot) less() {
	if s.count > 0 {
		s.count--
	}
}

func (s *slot) known(now time.Time) bool {
	return s.good != 0 && now.UnixMilli()-s.good < knownFor.Milliseconds()
}

// with runs fn on the pair, the account and the network of g. A table that fails takes no mail
// user's login away: then nothing is limited but the work.
func (l *limits) with(g guess, fn func(now time.Time, pair, account, network *slot)) {
	now := l.now()
	tags := [][16]byte{
		l.table.tag("pair", g.account+"\x00"+g.from.String()), l.table.tag("account", g.account), l.table.tag("network", g.from.String()),
	}
	done := false
	err := l.table.update(now, tags, func(slots []*slot) {
		done = true
		for _, s := range slots {
			// A time stored before the clock was set back must not keep anybody out.
			s.next = min(s.next, now.Add(maxWait+maxDelay).UnixMilli())
			s.last = min(s.last, now.UnixMilli())
		}
		fn(now, slots[0], slots[1], slots[2])
	})
	if err != nil && !done {
		fn(now, &slot{}, &slot{}, &slot{})
	}
}

// begin counts a guess before it is known to be wrong, so that many at once do not slip through,
// and says how long it has to wait. ErrSlow: too long; then it is not counted.
func (l *limits) begin(g *guess) (wait time.Duration, err error) {
	l.with(*g, func(now time.Time, pair, account, network *slot) {
		p, a, n := *pair, *account, *network
		if pair.known(now) {
			wait = pair.more(now, freePair)
		} else {
			wait = account.more(now, freeAccount)
			if g.spared = g.hidden && pair.decayed(now) > 0; !g.spared {
				wait = max(wait, network.more(now, freeNetwork))
			}
			if g.hidden {
				pair.count, pair.last = pair.decayed(now)+1, now.UnixMilli()
			}
		}
		if wait > maxWait {
			err = auth.ErrSlow
			*pair, *account, *network = p, a, n
		}
	})
	return wait, err
}

// undo takes a guess back that was never decided.
func (l *limits) undo(g guess) {
	l.with(g, func(now time.Time, pair, account, network *slot) { g.back(now, pair, account, network) })
}

func (g guess) back(now time.Time, pair, account, network *slot) {
	if g.free {
		return
	}
	if pair.known(now) {
		pair.less()
		return
	}
	account.less()
	if !g.spared {
		network.less()
	}
	if g.hidden {
		pair.less()
	}
}

// succeeded takes the guess back and makes the network known to the account.
func (l *limits) succeeded(g guess) {
	l.with(g, func(now time.Time, pair, account, network *slot) {
		g.back(now, pair, account, network)
		pair.count, pair.next, pair.good = 0, 0, now.UnixMilli()
	})
}

// failed remembers the fingerprint of a wrong password.
func (l *limits) failed(g guess, print [16]byte) {
	l.with(g, func(now time.Time, pair, _, _ *slot) {
		if pair.last == 0 {
			pair.last = now.UnixMilli()
		}
		pair.print[pair.ring%prints] = print
		pair.ring = (pair.ring + 1) % prints
	})
}

// repeated tells whether the same wrong password came lately, for the account from that network:
// a program somebody forgot to tell the new one. It is neither counted nor checked again.
func (l *limits) repeated(g guess, print [16]byte) (again bool) {
	l.with(g, func(_ time.Time, pair, _, _ *slot) {
		for _, p := range pair.print {
			again = again || p == print
		}
	})
	return again
}
