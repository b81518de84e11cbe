package sched

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/worker"
)

// Command is what a client of the control socket sends: one JSON line. An ids list that is
// empty means what the verb says.
type Command struct {
	V      int      `json:"v"`
	Verb   string   `json:"verb"`
	IDs    []string `json:"ids,omitempty"`
	Addrs  []string `json:"addrs,omitempty"`  // rm, bounce: only these recipients; route: whose route to show
	Target string   `json:"target,omitempty"` // route: the new next hop; flush: domain or next hop
	Why    string   `json:"why,omitempty"`    // bounce: what the report says
	JSON   bool     `json:"json,omitempty"`
	DryRun bool     `json:"dry_run,omitempty"`
}

// Reply is one line of the answer; End is in the last one.
type Reply struct {
	Out    string `json:"out,omitempty"` // for standard output, with its line ends
	Raw    []byte `json:"raw,omitempty"` // for standard output, message bytes
	Err    string `json:"err,omitempty"` // for standard error, one line
	End    bool   `json:"end,omitempty"`
	Status int    `json:"status,omitempty"` // exit status
}

const (
	controlVersion = 1
	maxCommand     = 16 << 20
	controlTimeout = time.Minute // a client's silence, either way
	maxControl     = 64          // clients at once
)

// Sink takes the answer of a verb.
type Sink interface {
	io.Writer             // result lines
	Raw(p []byte) error   // message bytes
	Fail(err error) error // a diagnostic that does not end the verb
}

// Who is asking, as the kernel says.
type Who struct {
	UID   int
	Admin bool // may see and change every message
}

// listenControl makes the control socket in place of one that a dead scheduler left. Everybody
// may connect; what they may do is decided by who they are.
func listenControl(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	short, done, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by then the name may be the next scheduler's
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// shortPath makes a long path fit a socket address, where the system has a way to.
func shortPath(path string) (short string, done func(), err error) {
	const maxPath = 100 // 104 octets on the BSDs, less the NUL and some air
	if len(path) <= maxPath {
		return path, func() {}, nil
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	short = fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), filepath.Base(path))
	if _, err := os.Lstat(filepath.Dir(short)); err != nil {
		short = path // the kernel refuses it with a sentence of its own
	}
	return short, func() { _ = d.Close() }, nil // opened for its name only
}

// serveControl answers clients until the listener is closed.
func (s *Scheduler) serveControl(ctx context.Context, l *net.UnixListener) {
	slots := make(chan struct{}, maxControl)
	var open sync.Map
	var wg sync.WaitGroup
	for {
		c, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil {
			s.o.Log.Error("control socket fails", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second): // descriptors may be short: let some go
			}
			continue
		}
		slots <- struct{}{}
		open.Store(c, nil)
		wg.Go(func() {
			s.client(ctx, c)
			open.Delete(c)
			<-slots
		})
	}
	// Clients get the rest of their answer, within a bound.
	open.Range(func(c, _ any) bool {
		_ = c.(*net.UnixConn).SetDeadline(time.Now().Add(5 * time.Second)) // fails only when closed
		return true
	})
	wg.Wait()
}

func (s *Scheduler) client(ctx context.Context, c *net.UnixConn) {
	defer c.Close()
	uid, err := worker.PeerUID(c)
	out := &replySink{enc: json.NewEncoder(&deadlineWriter{c})}
	out.enc.SetEscapeHTML(false)
	if err != nil {
		out.end(envelope.ExNoPerm, fmt.Errorf("the scheduler cannot tell who you are: %w", err))
		return
	}
	who := Who{UID: uid, Admin: uid == 0 || uid == os.Geteuid() || s.o.Admin(uid)}
	if err := c.SetReadDeadline(time.Now().Add(controlTimeout)); err != nil {
		return
	}
	cmd, err := readCommand(c)
	if err != nil {
		if !errors.Is(err, io.EOF) {
			out.end(envelope.ExProtocol, err)
		}
		return
	}
	status, err := s.Do(ctx, cmd, who, out)
	out.end(status, err)
}

// readCommand reads one command, bounded.
func readCommand(r io.Reader) (*Command, error) {
	br := bufio.NewReader(io.LimitReader(r, maxCommand))
	line, err := br.ReadBytes('\n')
	if err != nil {
		if len(line) >= maxCommand {
			return nil, fmt.Errorf("command of over %d octets", maxCommand)
		}
		if err == io.EOF && len(line) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	var c Command
	if err := json.Unmarshal(line, &c); err != nil {
		return nil, fmt.Errorf("command is no JSON line: %v", err)
	}
	if c.V != controlVersion {
		return nil, fmt.Errorf("command of version %d; this scheduler speaks %d: restart it after an upgrade", c.V, controlVersion)
	}
	return &c, nil
}

type deadlineWriter struct{ c *net.UnixConn }

func (w *deadlineWriter) Write(p []byte) (int, error) {
	if err := w.c.SetWriteDeadline(time.Now().Add(controlTimeout)); err != nil {
		return 0, err
	}
	return w.c.Write(p)
}

// replySink sends an answer as reply lines, result lines many at once.
type replySink struct {
	enc *json.Encoder
	buf []byte
}

const replyBatch = 32 << 10

func (r *replySink) Write(p []byte) (int, error) {
	r.buf = append(r.buf, p...)
	if len(r.buf) >= replyBatch {
		if err := r.flush(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (r *replySink) flush() error {
	if len(r.buf) == 0 {
		return nil
	}
	err := r.enc.Encode(Reply{Out: string(r.buf)})
	r.buf = r.buf[:0]
	return err
}

func (r *replySink) Raw(p []byte) error {
	return errors.Join(r.flush(), r.enc.Encode(Reply{Raw: p}))
}

func (r *replySink) Fail(err error) error {
	return errors.Join(r.flush(), r.enc.Encode(Reply{Err: err.Error()}))
}

// end sends the last line. A client that is gone misses it, and that is all.
func (r *replySink) end(status int, err error) {
	if r.flush() != nil {
		return
	}
	last := Reply{End: true, Status: status}
	if err != nil {
		last.Err = err.Error()
	}
	_ = r.enc.Encode(last)
}

// ErrNoScheduler says that no scheduler answers at the control socket.
var ErrNoScheduler = errors.New("no scheduler runs")

// Ask has the running scheduler do a command. It returns the exit status, and ErrNoScheduler
// when none runs.
func Ask(ctx context.Context, path string, c *Command, out Sink) (int, error) {
	short, done, err := shortPath(path)
	if err != nil {
		return 0, err
	}
	defer done()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", short)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNoScheduler, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // the reads below return then
	defer stop()
	c.V = controlVersion
	line, err := json.Marshal(c)
	if err != nil {
		return 0, err
	}
	if len(line) >= maxCommand {
		return 0, fmt.Errorf("too many operands for one command: %d octets", len(line))
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNoScheduler, err)
	}
	return readReplies(conn, out)
}

func readReplies(r io.Reader, out Sink) (int, error) {
	dec := json.NewDecoder(bufio.NewReaderSize(r, 64<<10))
	for first := true; ; first = false {
		var a Reply
		if err := dec.Decode(&a); err != nil {
			if first && errors.Is(err, io.EOF) { // it ended between our connect and its accept
				return 0, fmt.Errorf("%w: it closed the connection", ErrNoScheduler)
			}
			return 0, fmt.Errorf("the scheduler's answer ended early: %w", err)
		}
		var err error
		switch {
		case a.End && a.Err != "":
			return a.Status, errors.New(a.Err)
		case a.End:
			return a.Status, nil
		case a.Err != "":
			err = out.Fail(errors.New(a.Err))
		case a.Raw != nil:
			err = out.Raw(a.Raw)
		default:
			_, err = io.WriteString(out, a.Out)
		}
		if err != nil {
			return 0, err
		}
	}
}
