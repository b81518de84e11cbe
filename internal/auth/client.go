package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"pennypost/internal/sasl"
)

// Client asks the service behind a UNIX socket. It may be used by many goroutines at once; each
// question has a connection of its own while it lasts.
type Client struct {
	path    string
	timeout time.Duration

	mu    sync.Mutex
	idle  []*line
	timer *time.Timer // closes idle connections, so that the service can end when nobody asks
}

// Limits of a Client.
const (
	askTime   = 90 * time.Second // a question: the longest wait of the limits, and a hash in a long line
	keepIdle  = 5 * time.Second
	maxIdle   = 16
	dialTries = 2
)

// NewClient makes a Client of the service at path. Nothing is connected before the first question.
func NewClient(path string) *Client { return &Client{path: path, timeout: askTime} }

// Close ends the idle connections.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for _, l := range c.idle {
		err = errors.Join(err, l.c.Close())
	}
	c.idle = nil
	if c.timer != nil {
		c.timer.Stop()
	}
	return err
}

// get returns an idle connection, or a new one.
func (c *Client) get(ctx context.Context, fresh bool) (l *line, used bool, err error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 && !fresh {
		l, c.idle = c.idle[n-1], c.idle[:n-1]
		c.mu.Unlock()
		return l, true, nil
	}
	c.mu.Unlock()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.path)
	if err != nil {
		return nil, false, fmt.Errorf("password service: %w", err)
	}
	return newLine(conn), false, nil
}

// put keeps a connection for the next question.
func (c *Client) put(l *line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.idle) >= maxIdle {
		l.c.Close()
		return
	}
	c.idle = append(c.idle, l)
	if c.timer == nil {
		c.timer = time.AfterFunc(keepIdle, func() { _ = c.Close() }) // they are idle: nothing is lost
		return
	}
	c.timer.Reset(keepIdle)
}

// ask puts one question on a connection.
func (c *Client) ask(ctx context.Context, l *line, r request) (a reply, err error) {
	end := time.Now().Add(c.timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	if err := l.c.SetReadDeadline(end); err != nil {
		return a, err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.c.SetReadDeadline(time.Unix(1, 0)) }) // fails only when closed
	defer stop()
	if err := l.write(r); err != nil {
		return a, err
	}
	b, err := l.read()
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err == nil && !a.OK && a.Error == "" && a.Challenge == nil {
		err = errors.New("an answer that says nothing")
	}
	if err != nil {
		return reply{}, fmt.Errorf("password service: %w", err)
	}
	return a, nil
}

// begin puts the first question of a connection. A connection that was idle may be one that the
// service has closed since; then a new one is tried.
func (c *Client) begin(ctx context.Context, r request) (*line, reply, error) {
	for try := 1; ; try++ {
		l, used, err := c.get(ctx, try > 1)
		if err != nil {
			return nil, reply{}, sasl.Temporary(err)
		}
		a, err := c.ask(ctx, l, r)
		if err == nil {
			return l, a, nil
		}
		l.c.Close()
		gone := errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
		if !used || !gone || try == dialTries {
			return nil, reply{}, sasl.Temporary(err)
		}
	}
}

// one asks a question that has one answer.
func (c *Client) one(ctx context.Context, r request) (reply, error) {
	l, a, err := c.begin(ctx, r)
	if err != nil {
		return a, err
	}
	if a.Error == errSyntax {
		l.c.Close() // the service closes its end after it
	} else {
		c.put(l)
	}
	return a, a.err()
}

// Password implements Checker.
func (c *Client) Password(ctx context.Context, login, password string, from netip.Addr) (string, error) {
	id, err := c.Login(ctx, Attempt{Login: login, Password: password, From: from})
	return id.Address, err
}

// Login implements Checker.
func (c *Client) Login(ctx context.Context, a Attempt) (Identity, error) {
	if !a.Usable() {
		return Identity{}, sasl.ErrRefused
	}
	r, err := c.one(ctx, request{Op: opPassword, Login: a.Login, Password: a.Password, From: addr(a.From), WantTick: a.Ticket})
	if err == nil && r.User == "" {
		err = sasl.Temporary(errors.New("password service: an answer without a user"))
	}
	if err != nil {
		return Identity{}, err
	}
	return Identity{Address: r.User, Ticket: r.Ticket}, nil
}

func addr(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.WithZone("").String()
}

// Mechanisms implements Checker.
func (c *Client) Mechanisms(ctx context.Context) ([]string, error) {
	r, err := c.one(ctx, request{Op: opMechanisms})
	return r.Mechanisms, err
}

// Redeem implements Checker.
func (c *Client) Redeem(ctx context.Context, ticket string) (string, error) {
	r, err := c.one(ctx, request{Op: opRedeem, Ticket: ticket})
	if err == nil && r.User == "" {
		err = sasl.Temporary(errors.New("password service: an answer without a user"))
	}
	if err != nil {
		return "", err
	}
	return r.User, nil
}

// SCRAM implements Checker.
func (c *Client) SCRAM(_ context.Context, x Exchange) (Server, error) {
	if err := x.check(); err != nil {
		return nil, err
	}
	return &remote{c: c, x: x}, nil
}

// remote is an exchange that the service holds.
type remote struct {
	c    *Client
	x    Exchange
	l    *line
	over bool
	id   Identity
}

func (r *remote) Next(ctx context.Context, response []byte) (challenge []byte, done bool, err error) {
	if len(response) > MaxSCRAM || r.over {
		return nil, false, sasl.ErrSyntax
	}
	if response == nil && r.l == nil {
		return []byte{}, false, nil
	}
	var a reply
	if r.l == nil {
		q := request{Op: opSCRAM, Mechanism: r.x.Mechanism, From: addr(r.x.From), Response: response, WantTick: r.x.Ticket}
		if len(r.x.Binding.Data) > 0 {
			b := wireBinding(r.x.Binding)
			q.Binding = &b
		}
		if r.l, a, err = r.c.begin(ctx, q); err != nil {
			return nil, false, err
		}
	} else if a, err = r.c.ask(ctx, r.l, request{Op: opResponse, Response: response}); err != nil {
		r.Close()
		return nil, false, sasl.Temporary(err)
	}
	if err := a.err(); err != nil {
		r.end()
		return nil, false, err
	}
	if !a.OK {
		return a.Challenge, false, nil
	}
	r.end()
	if a.User == "" {
		return nil, false, sasl.Temporary(errors.New("password service: an answer without a user"))
	}
	r.id = Identity{Address: a.User, Ticket: a.Ticket}
	return nil, true, nil
}

// end gives the connection back when the exchange is over on both sides.
func (r *remote) end() {
	r.over = true
	if r.l != nil {
		r.c.put(r.l)
		r.l = nil
	}
}

func (r *remote) Close() {
	r.over = true
	if r.l != nil {
		r.l.c.Close()
		r.l = nil
	}
}

func (r *remote) User() string   { return r.id.Address }
func (r *remote) Ticket() string { return r.id.Ticket }
