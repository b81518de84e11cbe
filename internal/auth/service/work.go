package service

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
)

// gate bounds the hashes in progress; the others wait in line, and the line has an end.
type gate struct {
	run  chan struct{}
	line chan struct{}
}

func newGate(run, wait int) *gate {
	if run <= 0 {
		run = runtime.GOMAXPROCS(0)
	}
	if wait <= 0 {
		wait = 256
	}
	return &gate{run: make(chan struct{}, run), line: make(chan struct{}, run+wait)}
}

// do runs fn when it is its turn.
func (g *gate) do(ctx context.Context, fn func() error) error {
	select {
	case g.line <- struct{}{}:
		defer func() { <-g.line }()
	default:
		return auth.ErrBusy
	}
	select {
	case g.run <- struct{}{}:
		defer func() { <-g.run }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return fn()
}

// fullText is all that is stored for an account: it changes whenever the account does.
func fullText(s accounts.Secret) string {
	t := s.Hash
	for _, m := range slices.Sorted(maps.Keys(s.SCRAM)) {
		t += "\x00" + m + "\x00" + s.SCRAM[m]
	}
	return t
}

// fingerprint is a keyed hash: without the key, which never leaves the table, it tells nothing
// about what went into it. Each part goes in with its length, so that no two lists are one.
func (s *Service) fingerprint(parts ...string) (print [16]byte) {
	m := hmac.New(sha256.New, s.key[:])
	for _, p := range parts {
		m.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(p))))
		m.Write([]byte(p))
	}
	copy(print[:], m.Sum(nil))
	return print
}

// maxMemo bounds the passwords and tickets remembered.
const maxMemo = 10_000

// memo remembers the fingerprints of right passwords for some minutes.
type memo struct {
	keep time.Duration
	now  func() time.Time

	mu sync.Mutex
	m  map[[16]byte]time.Time // when it is forgotten
}

func newMemo(keep time.Duration, now func() time.Time) *memo {
	return &memo{keep: keep, now: now, m: map[[16]byte]time.Time{}}
}

func (m *memo) has(print [16]byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	end, ok := m.m[print]
	return ok && m.now().Before(end)
}

func (m *memo) add(print [16]byte) {
	if m.keep <= 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if len(m.m) >= maxMemo {
		maps.DeleteFunc(m.m, func(_ [16]byte, end time.Time) bool { return !now.Before(end) })
	}
	if len(m.m) >= maxMemo {
		clear(m.m) // forgetting costs a hash each, and no more
	}
	m.m[print] = now.Add(m.keep)
}

// ticketLife is how long a ticket can be redeemed.
const ticketLife = time.Minute

// tickets are proofs of a login that one other process may take, once.
type tickets struct {
	now func() time.Time

	mu sync.Mutex
	m  map[string]issued
}

type issued struct {
	address string
	print   [16]byte
	end     time.Time
}

func newTickets(now func() time.Time) *tickets { return &tickets{now: now, m: map[string]issued{}} }

func (t *tickets) issue(address string, print [16]byte) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if len(t.m) >= maxMemo {
		maps.DeleteFunc(t.m, func(_ string, i issued) bool { return !now.Before(i.end) })
	}
	if len(t.m) >= maxMemo {
		t.makeRoom()
	}
	text := rand.Text()
	t.m[text] = issued{address, print, now.Add(ticketLife)}
	return text
}

// makeRoom takes the tickets from who has the most. Users whose sessions no other process runs get
// some too, which nobody takes: one who logs in all the time must keep out nobody else.
func (t *tickets) makeRoom() {
	of := map[string]int{}
	most := ""
	for _, i := range t.m {
		if of[i.address]++; of[i.address] > of[most] {
			most = i.address
		}
	}
	maps.DeleteFunc(t.m, func(_ string, i issued) bool { return i.address == most })
}

func (t *tickets) take(text string) (address string, print [16]byte, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, ok := t.m[text]
	delete(t.m, text)
	return i.address, i.print, ok && t.now().Before(i.end)
}
