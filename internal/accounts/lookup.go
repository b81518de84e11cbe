package accounts

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"pennypost/internal/envelope"
)

// Limits of the look-up socket. Answers are kept for a short time: a flood of RCPTs must not
// become a flood of questions.
const (
	lookupKeep    = 10 * time.Second
	lookupMax     = 4096
	lookupTimeout = 10 * time.Second
	lookupAtOnce  = 16
	lookupLine    = 16 << 10
)

// lookups asks a program about users, by one line of JSON each way over a UNIX socket.
type lookups struct {
	path string
	now  func() time.Time
	slot chan struct{}

	mu   sync.Mutex
	kept map[string]lookupAnswer
}

type lookupAnswer struct {
	a  *lookupReply // nil: no such user
	at time.Time
}

// lookupReply is the line a program answers with.
type lookupReply struct {
	Found *bool             `json:"found"`
	Error string            `json:"error"`
	Home  string            `json:"home"`
	UID   *int              `json:"uid"`
	GID   *int              `json:"gid"`
	Extra map[string]string `json:"extra"`
}

func newLookups(path string) *lookups {
	return &lookups{path: path, now: time.Now, slot: make(chan struct{}, lookupAtOnce), kept: map[string]lookupAnswer{}}
}

// find returns the mailbox of addr, nil when the program does not know it.
func (l *lookups) find(ctx context.Context, addr envelope.Address, template string) (*Mailbox, error) {
	if l.path == "" {
		return nil, nil
	}
	key := addr.String()
	l.mu.Lock()
	k, ok := l.kept[key]
	l.mu.Unlock()
	if !ok || l.now().Sub(k.at) >= lookupKeep {
		a, err := l.ask(ctx, key)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.path, err)
		}
		k = lookupAnswer{a, l.now()}
		l.mu.Lock()
		if len(l.kept) >= lookupMax {
			clear(l.kept)
		}
		l.kept[key] = k
		l.mu.Unlock()
	}
	if k.a == nil {
		return nil, nil
	}
	m, err := k.a.mailbox(addr, template)
	if err != nil {
		return nil, tempError("4.3.5", fmt.Errorf("%s: %s: %w", l.path, addr, err))
	}
	return m, nil
}

// ask puts one question; nil says that there is no such user.
func (l *lookups) ask(ctx context.Context, address string) (*lookupReply, error) {
	select {
	case l.slot <- struct{}{}:
		defer func() { <-l.slot }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", l.path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // fails only when closed
	defer stop()
	q, err := json.Marshal(struct {
		Op      string `json:"op"`
		Address string `json:"address"`
	}{"lookup", address})
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(append(q, '\n')); err != nil {
		return nil, err
	}
	line, err := bufio.NewReaderSize(c, lookupLine).ReadSlice('\n')
	if err != nil {
		return nil, fmt.Errorf("no line for an answer: %w", err)
	}
	return parseLookup(line)
}

// parseLookup reads an answer. Only one that says so means that there is no such user.
func parseLookup(line []byte) (*lookupReply, error) {
	var a lookupReply
	if err := json.Unmarshal(line, &a); err != nil {
		return nil, errors.New("cannot read its answer")
	}
	switch {
	case a.Error != "":
		return nil, fmt.Errorf("it says %.200q", a.Error)
	case a.Found == nil:
		return nil, errors.New("its answer does not say whether the user was found")
	case !*a.Found:
		return nil, nil
	}
	return &a, nil
}

// mailbox makes the answer what a line of users would be.
func (a *lookupReply) mailbox(addr envelope.Address, template string) (*Mailbox, error) {
	m := &Mailbox{Address: addr.String(), User: addr.Local, Home: a.Home, UID: -1, GID: -1, Extra: a.Extra}
	for _, n := range []struct{ from, to *int }{{a.UID, &m.UID}, {a.GID, &m.GID}} {
		if n.from == nil {
			continue
		}
		if *n.from < 0 || *n.from > 1<<31-1 {
			return nil, fmt.Errorf("%d is no uid or gid number", *n.from)
		}
		*n.to = *n.from
	}
	if m.Home != "" && m.Home[0] != '/' || strings.IndexByte(m.Home, 0) >= 0 {
		return nil, fmt.Errorf("home %q is not an absolute path", m.Home)
	}
	err := m.place(addr)
	if err == nil && m.Maildir == "" {
		m.Maildir, err = expandMaildir(template, addr, m.Home)
	}
	if err == nil && strings.IndexByte(m.Maildir, 0) >= 0 {
		err = errors.New("a path with a NUL")
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}
