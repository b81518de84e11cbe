package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Errors of a Client. All of them mean: nothing is known about the recipients, try again later.
var (
	ErrGone    = errors.New("worker is gone")
	ErrTimeout = errors.New("worker did not report in time")
)

// Client is mqueue's side of one connection. It may be used concurrently; a peer that dies,
// stalls or breaks the protocol yields an error for every request in flight.
type Client struct {
	conn    *net.UnixConn
	hello   Hello
	timeout time.Duration
	enc     encoders
	wmu     sync.Mutex // of writing
	seq     atomic.Uint64
	heard   atomic.Uint64 // lines that came in

	mu      sync.Mutex
	pending map[uint64]*call
	err     error
	done    chan struct{}
}

type call struct {
	req   *Request
	reply chan *Report
	late  bool // timed out: the report is awaited only to be dropped
}

// NewClient exchanges the hellos over conn, which it owns from now on. name is what this side
// calls itself; timeout bounds each request (0: none).
func NewClient(ctx context.Context, conn *net.UnixConn, name string, timeout time.Duration) (*Client, error) {
	c := &Client{conn: conn, timeout: timeout, pending: make(map[uint64]*call), done: make(chan struct{})}
	in := newLineReader(plainSource{conn})
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // the reads below return then
	defer stop()
	if err := c.greet(in, name); err != nil {
		_ = conn.Close() // nothing was asked yet
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	go c.read(in)
	return c, nil
}

func (c *Client) greet(in *lineReader, name string) error {
	if err := c.conn.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	line, err := in.line()
	if err != nil {
		return fmt.Errorf("no hello: %w", err)
	}
	if err := decode(line, &c.hello, "hello"); err != nil {
		return err
	}
	if err := common(c.hello); err != nil {
		return err
	}
	e := c.enc.get()
	defer c.enc.put(e)
	if err := e.enc.Encode(Hello{Versions: []int{Version}, Name: name}); err != nil {
		return err
	}
	if err := writeLine(c.conn, e.buf.Bytes(), nil); err != nil {
		return err
	}
	return c.conn.SetDeadline(time.Time{})
}

// Hello is what the worker said about itself.
func (c *Client) Hello() Hello { return c.hello }

// Done is closed when the connection is gone; Err tells why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is why the connection is gone, nil while it stands.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection; requests in flight return ErrGone.
func (c *Client) Close() { c.fail(ErrGone) }

// Do sends one request with its message file and waits for the report, which then has exactly
// one checked result for each recipient. r.Seq is set here; r must not change until Do returns.
// After an error the outcome is unknown.
func (c *Client) Do(ctx context.Context, r *Request, f *os.File) (*Report, error) {
	r.Seq = c.seq.Add(1)
	p := &call{req: r, reply: make(chan *Report, 1)}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, c.err
	}
	c.pending[r.Seq] = p
	c.mu.Unlock()
	heard := c.heard.Load()
	if err := c.send(r, f); err != nil {
		return nil, err
	}
	var expired <-chan time.Time
	if c.timeout > 0 {
		t := time.NewTimer(c.timeout)
		defer t.Stop()
		expired = t.C
	}
	select {
	case rep := <-p.reply:
		return rep, nil
	case <-c.done:
		select { // a report may have come with the last octets
		case rep := <-p.reply:
			return rep, nil
		default:
			return nil, c.Err()
		}
	case <-ctx.Done():
		c.abandon(p)
		return nil, ctx.Err()
	case <-expired:
		c.abandon(p)
		if c.heard.Load() == heard {
			// Not one word on anything since: it hangs. The restart frees the others.
			c.fail(fmt.Errorf("%w: nothing heard for %v", ErrGone, c.timeout))
		}
		return nil, ErrTimeout
	}
}

func (c *Client) send(r *Request, f *os.File) error {
	e := c.enc.get()
	defer c.enc.put(e)
	err := e.enc.Encode(r)
	if err == nil && e.buf.Len() > MaxLine {
		err = fmt.Errorf("request of %d octets", e.buf.Len())
	}
	if err != nil { // nothing was sent: the connection is as good as before
		c.mu.Lock()
		delete(c.pending, r.Seq)
		c.mu.Unlock()
		return err
	}
	c.wmu.Lock()
	if c.timeout > 0 {
		err = c.conn.SetWriteDeadline(time.Now().Add(c.timeout))
	}
	if err == nil {
		err = writeLine(c.conn, e.buf.Bytes(), f)
	}
	c.wmu.Unlock()
	if err != nil {
		err = fmt.Errorf("%w: %v", ErrGone, err)
		c.fail(err)
	}
	return err
}

func (c *Client) abandon(p *call) {
	c.mu.Lock()
	p.late = true
	c.mu.Unlock()
}

// fail ends the connection once; the first cause stays.
func (c *Client) fail(err error) {
	c.mu.Lock()
	first := c.err == nil
	if first {
		c.err = err
		c.pending = nil
	}
	c.mu.Unlock()
	if first {
		_ = c.conn.Close() // whatever was unsent is asked again
		close(c.done)
	}
}

func (c *Client) read(in *lineReader) {
	for {
		line, err := in.line()
		if err != nil {
			c.fail(fmt.Errorf("%w: %w", ErrGone, err))
			return
		}
		c.heard.Add(1)
		rep := new(Report)
		err = decode(line, rep, "report")
		if err == nil {
			err = c.deliver(rep)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

func (c *Client) deliver(rep *Report) error {
	c.mu.Lock()
	p := c.pending[rep.Seq]
	late := p != nil && p.late
	delete(c.pending, rep.Seq)
	dead := c.err != nil
	c.mu.Unlock()
	switch {
	case dead || late:
		return nil
	case p == nil:
		return fmt.Errorf("%w: report %d answers no request in flight", ErrProtocol, rep.Seq)
	}
	if err := check(p.req, rep); err != nil {
		return err
	}
	p.reply <- rep
	return nil
}
