package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Back-off between starts of a worker that does not come to life.
const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 30 * time.Second
	endGrace     = 5 * time.Second // a child told to end is killed after this
)

// Spec says how to reach one worker: by Socket, or as a child started with Command.
type Spec struct {
	Name    string
	Socket  string        // the worker's own UNIX socket; else
	Command []string      // a child with its connection on descriptor 3, or with Filter any program
	Filter  bool          // message on standard input, addresses as arguments, exit status as verdict
	UID     int           // who must answer on Socket; negative: whoever may own it
	Timeout time.Duration // of one request
	Stderr  io.Writer     // what children say there; nil discards it
	Log     *slog.Logger
}

// DownError says that the worker cannot be asked at the moment. No attempt was made.
type DownError struct {
	Name  string
	Until time.Time // when the next try is due
	Err   error
}

func (e *DownError) Error() string { return fmt.Sprintf("worker %s: %v", e.Name, e.Err) }

func (e *DownError) Unwrap() error { return e.Err }

// Agent keeps one worker at hand: it starts or dials it when there is something to do, and
// again, with growing pauses, when it is gone. It may be used concurrently.
type Agent struct {
	spec Spec
	wait sync.WaitGroup // of children

	mu     sync.Mutex
	client *Client
	dial   chan struct{} // closed when the try under way is over; nil when none is
	fails  int
	until  time.Time // no new try before
	why    error
	closed bool
}

// NewAgent makes an Agent; nothing is started before the first Do.
func NewAgent(s Spec) *Agent {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	return &Agent{spec: s}
}

// Do makes one attempt as Client.Do does. A *DownError means that it was not made.
func (a *Agent) Do(ctx context.Context, r *Request, f *os.File) (*Report, error) {
	if a.spec.Filter {
		return a.spec.filter(ctx, r, f)
	}
	c, err := a.get(ctx)
	if err != nil {
		return nil, err
	}
	return c.Do(ctx, r, f)
}

// get returns the living client, making one if the back-off allows it.
func (a *Agent) get(ctx context.Context) (*Client, error) {
	for {
		a.mu.Lock()
		switch {
		case a.closed:
			a.mu.Unlock()
			return nil, &DownError{a.spec.Name, time.Now().Add(lastBackoff), ErrGone}
		case a.client != nil:
			c := a.client
			a.mu.Unlock()
			return c, nil
		case a.dial != nil:
			wait := a.dial
			a.mu.Unlock()
			select {
			case <-wait:
			case <-ctx.Done():
				return nil, &DownError{a.spec.Name, time.Now(), ctx.Err()}
			}
		case time.Now().Before(a.until):
			err := &DownError{a.spec.Name, a.until, a.why}
			a.mu.Unlock()
			return nil, err
		default:
			a.dial = make(chan struct{})
			a.mu.Unlock()
			a.connect(ctx)
		}
	}
}

// connect makes one try and publishes its outcome.
func (a *Agent) connect(ctx context.Context) {
	c, err := a.open(ctx)
	a.mu.Lock()
	close(a.dial)
	a.dial = nil
	switch {
	case err != nil:
		a.failed(err)
		until := a.until
		a.mu.Unlock()
		a.spec.Log.Error("worker cannot be reached", "worker", a.spec.Name, "err", err, "retry", time.Until(until).Round(time.Millisecond).String())
		return
	case a.closed:
		c.Close()
	default:
		a.client = c
		go a.watch(c)
	}
	a.mu.Unlock()
}

// failed notes a try or a life that came to nothing. a.mu is held.
func (a *Agent) failed(err error) {
	d := min(firstBackoff<<min(a.fails, 16), lastBackoff)
	a.fails++
	a.until, a.why = time.Now().Add(d), err
}

// watch drops a client that is gone. One that has answered anything is replaced at once: what
// killed it is more likely an admin than itself.
func (a *Agent) watch(c *Client) {
	<-c.Done()
	a.mu.Lock()
	a.client = nil
	if c.heard.Load() > 0 {
		a.fails, a.until = 0, time.Time{}
	} else {
		a.failed(c.Err())
	}
	closed := a.closed
	a.mu.Unlock()
	if !closed {
		a.spec.Log.Warn("worker is gone", "worker", a.spec.Name, "err", c.Err())
	}
}

func (a *Agent) open(ctx context.Context) (*Client, error) {
	if a.spec.Socket != "" {
		return a.dialSocket(ctx)
	}
	return a.startChild(ctx)
}

func (a *Agent) dialSocket(ctx context.Context) (*Client, error) {
	var d net.Dialer
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	conn, err := d.DialContext(ctx, "unix", a.spec.Socket)
	if err != nil {
		return nil, err
	}
	u := conn.(*net.UnixConn)
	if err := CheckPeer(u, a.spec.UID); err != nil {
		_ = u.Close() // nothing was said
		return nil, err
	}
	return NewClient(ctx, u, "mqueue", a.spec.Timeout)
}

func (a *Agent) startChild(ctx context.Context) (*Client, error) {
	if len(a.spec.Command) == 0 {
		return nil, errors.New("neither socket nor command is configured")
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(a.spec.Command[0], a.spec.Command[1:]...)
	cmd.ExtraFiles = []*os.File{theirs} // becomes descriptor 3
	cmd.Stderr = a.spec.Stderr
	cmd.Stdout = a.spec.Stderr
	cmd.WaitDelay = endGrace
	// Its own group: a Ctrl-C at the terminal ends mqueue, which lets its workers finish.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	_ = theirs.Close() // the child has its copy
	if err != nil {
		_ = ours.Close() // never used
		return nil, err
	}
	exited := make(chan struct{})
	a.wait.Go(func() {
		// The exit status tells nothing the closed socket does not.
		_ = cmd.Wait()
		close(exited)
	})
	c, err := a.greetChild(ctx, ours)
	if err != nil {
		_ = cmd.Process.Kill() // may have ended by itself
		return nil, err
	}
	a.wait.Go(func() {
		<-c.Done()
		reap(cmd.Process, exited)
	})
	return c, nil
}

func (a *Agent) greetChild(ctx context.Context, f *os.File) (*Client, error) {
	conn, err := unixConn(f)
	if err != nil {
		return nil, err
	}
	return NewClient(ctx, conn, "mqueue", a.spec.Timeout)
}

// reap ends a child whose socket is closed: it should go by itself.
func reap(p *os.Process, exited <-chan struct{}) {
	t := time.NewTimer(endGrace)
	defer t.Stop()
	select {
	case <-exited:
	case <-t.C:
		_ = p.Kill() // may have ended just now
		<-exited
	}
}

func socketPair() (ours, theirs *os.File, err error) {
	syscall.ForkLock.RLock() // no fork between making and marking: others must not inherit these
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "worker"), os.NewFile(uintptr(fds[1]), "worker"), nil
}

// Close ends the worker's connection, and the child when it is one, and waits for it. Requests
// in flight return ErrGone.
func (a *Agent) Close() {
	a.mu.Lock()
	a.closed = true
	c := a.client
	a.mu.Unlock()
	if c != nil {
		c.Close()
	}
	a.wait.Wait()
}
