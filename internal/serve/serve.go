// Package serve decides how a daemon got its connections and hands them over one by one: sockets
// passed by systemd or inetd, own listeners, or standard input and output. It hides the start
// modes, readiness, the idle exit, session limits and who the peer is. Every daemon gets the same
// behaviour from it; protocols, with their deadlines, are the handler's business.
package serve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Listener is one socket to open, with the role its connections get.
type Listener struct {
	Addr string      // "127.0.0.1:25", "[::1]:25", ":25"; with a slash: path of a UNIX socket
	Role string      // "" takes Options.Role, then Options.Default
	Mode fs.FileMode // of a UNIX socket; 0 takes 0666: the peer's credentials decide, not the file's mode
}

// ParseListener reads "ADDR" or "ADDR=role".
func ParseListener(s string) (Listener, error) {
	l := Listener{Addr: s}
	if i := strings.LastIndexByte(s, '='); i >= 0 {
		l.Addr, l.Role = s[:i], s[i+1:]
		if l.Role == "" {
			return l, fmt.Errorf("listen %q: no role after '='", s)
		}
	}
	if l.Addr == "" {
		return l, fmt.Errorf("listen %q: no address", s)
	}
	if !l.unix() {
		if _, _, err := net.SplitHostPort(l.Addr); err != nil {
			return l, fmt.Errorf("listen %q: want HOST:PORT or the path of a UNIX socket", s)
		}
	}
	return l, nil
}

func (l Listener) unix() bool { return strings.Contains(l.Addr, "/") }

// Peer is what the kernel, or failing that the starter, says about the other end.
// The zero Peer is an unknown one and gets the least rights.
type Peer struct {
	Addr  netip.AddrPort // zero: no IP connection, or not known
	Local netip.AddrPort // our end of an IP connection
	Unix  bool           // a UNIX socket
	Cred  *Cred          // of the process that connected; nil where not known
	Stdio bool           // standard input and output: whoever started us
	// CredErr says why Cred is nil for a UNIX socket.
	CredErr error
}

// Cred is the identity of a process on this host at the time it connected.
type Cred struct {
	UID, GID int
	PID      int // 0 where the platform does not tell
}

// ErrNoPeerCred is wrapped in Peer.CredErr where the platform does not tell who is asking.
var ErrNoPeerCred = errors.New("this platform does not tell who connected to a UNIX socket")

// Handler serves one connection. It closes nothing: serve closes conn after it returns.
// When ctx ends it says goodbye and returns soon.
type Handler func(ctx context.Context, conn net.Conn, peer Peer, role string)

// Options say what to serve.
type Options struct {
	Listen  []Listener // own sockets; used only where nothing was passed by an activator
	Roles   []string   // roles that exist; a socket named otherwise is a configuration error
	Role    string     // role of everything without one of its own; stands before a socket's name
	Default string     // role when neither --role nor the socket's name says one
	// Check is asked about each role before anything is served; nil asks nothing.
	Check func(role string) error
	// Idle ends a process that was started for a listening socket (systemd Accept=no, inetd
	// wait) when it has had no connection for so long; 0 is never. Own listeners never idle out.
	Idle        time.Duration
	MaxSessions int    // 0 is no limit
	Busy        string // sent to a client over the limit, before its connection is closed
	// PerClient is how many sessions one client may have open, by its true address: an IPv4
	// address or an IPv6 /64; 0 is no limit. Peers without an address are not counted.
	PerClient     int
	PerClientBusy string         // sent to a client over that limit
	Exempt        []netip.Prefix // networks whose clients PerClient is not about
	// ProxyFrom are the networks of proxies that tell by the PROXY protocol whom they connect.
	ProxyFrom []netip.Prefix
	NotifyFd  int           // a newline is written to it when ready; below 1: none
	Grace     time.Duration // how long sessions may take to end after ctx; default 20s
	Log       *slog.Logger
}

// Run serves until ctx ends, the idle time passes, or the only connection is done.
// A nil error means that every accepted connection was served.
func Run(ctx context.Context, o Options, h Handler) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Grace <= 0 {
		o.Grace = 20 * time.Second
	}
	p, err := passed()
	if err != nil {
		return err
	}
	defer p.close()
	r := &runner{o: o, h: h}
	switch {
	case p.listening():
		return r.passedListeners(ctx, p)
	case p.connected():
		return r.one(ctx, p.files[0], p.name(0))
	case len(o.Listen) > 0:
		return r.ownListeners(ctx)
	case isSocket(0) && !isPairEnd(0):
		f := os.NewFile(0, "fd 0")
		defer f.Close() // not before: a forgotten os.File closes its descriptor some time later
		if acceptsConns(0) {
			return r.inherited(ctx, f)
		}
		return r.one(ctx, f, "")
	}
	return r.stdio(ctx)
}

type runner struct {
	o         Options
	h         Handler
	activated bool // a listening socket was passed: idle exit applies
	active    atomic.Int64
	clients   clients
	refused   seldom // log lines of clients turned away
	wg        sync.WaitGroup
	mu        sync.Mutex
	conns     map[net.Conn]struct{}
	lastEnd   time.Time
}

// roleFor finds the role of a socket called name.
func (r *runner) roleFor(own, name string) (string, error) {
	role := own
	switch {
	case role != "":
	case r.o.Role != "":
		role = r.o.Role
	// What systemd and systemd-socket-activate pass where no name was configured.
	case name != "" && name != "unknown" && name != "connection":
		role = name
	default:
		role = r.o.Default
	}
	if len(r.o.Roles) > 0 && !slices.Contains(r.o.Roles, role) {
		return "", fmt.Errorf("unknown role %q (roles are %s; set FileDescriptorName= of the socket unit, or --role)",
			role, strings.Join(r.o.Roles, ", "))
	}
	if r.o.Check != nil {
		if err := r.o.Check(role); err != nil {
			return "", err
		}
	}
	return role, nil
}

type bound struct {
	net.Listener
	role string
}

func (r *runner) passedListeners(ctx context.Context, p *passedFds) error {
	r.activated = true
	var ls []bound
	for i, f := range p.files {
		role, err := r.roleFor("", p.name(i))
		if err != nil {
			return err
		}
		l, err := fileListener(f)
		if err != nil {
			return err
		}
		ls = append(ls, bound{l, role})
	}
	return r.serve(ctx, ls)
}

// inherited serves the listening socket inetd passes as fd 0 in its wait mode.
func (r *runner) inherited(ctx context.Context, f *os.File) error {
	r.activated = true
	role, err := r.roleFor("", "")
	if err != nil {
		return err
	}
	l, err := fileListener(f)
	if err != nil {
		return err
	}
	return r.serve(ctx, []bound{{l, role}})
}

func (r *runner) ownListeners(ctx context.Context) error {
	var ls []bound
	for _, want := range r.o.Listen {
		role, err := r.roleFor(want.Role, "")
		if err == nil {
			var l net.Listener
			if l, err = listen(ctx, want); err == nil {
				ls = append(ls, bound{l, role})
				continue
			}
		}
		for _, l := range ls {
			l.Close()
		}
		return fmt.Errorf("listen %s: %w", want.Addr, err)
	}
	return r.serve(ctx, ls)
}

// serve accepts on all of ls until told to stop, then waits for the sessions.
func (r *runner) serve(ctx context.Context, ls []bound) error {
	// Before a connection is accepted and before anybody is told that we are ready: a SIGHUP may
	// come as soon as either has happened.
	defer r.outliveHangUp()()
	r.conns = make(map[net.Conn]struct{})
	r.lastEnd = time.Now()
	stop := make(chan struct{})
	errc := make(chan error, len(ls))
	var acceptors sync.WaitGroup
	for _, l := range ls {
		r.o.Log.Info("serving", "addr", l.Addr().String(), "role", l.role)
		acceptors.Add(1)
		go func() {
			defer acceptors.Done()
			if err := r.accept(ctx, l, stop); err != nil {
				errc <- err
			}
		}()
	}
	if err := ready(r.o.NotifyFd); err != nil {
		r.o.Log.Warn("cannot tell the starter that we are ready", "err", err)
	}
	err := r.waitForEnd(ctx, errc)
	notify("STOPPING=1")
	// Stop accepting first. Closing our copy of a passed socket leaves the socket itself, and
	// the connections waiting in it, to the starter and the next process.
	close(stop)
	for _, l := range ls {
		l.Close()
	}
	acceptors.Wait()
	r.drain()
	return err
}

// outliveHangUp keeps SIGHUP from ending the sessions: administrators and renewers of certificates
// send it to have files read again, which happens by itself. A program that has its own use for
// the signal gets it too. The function returned ends it.
func (r *runner) outliveHangUp() func() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-c:
				r.o.Log.Info("SIGHUP: files that have changed are read again without it, the configuration at the next start")
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(c); close(done) }
}

// waitForEnd returns when ctx ends, an acceptor gives up, or the idle time has passed.
func (r *runner) waitForEnd(ctx context.Context, errc <-chan error) error {
	if !r.activated || r.o.Idle <= 0 {
		select {
		case <-ctx.Done():
			return nil
		case err := <-errc:
			return err
		}
	}
	t := time.NewTimer(r.o.Idle)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-errc:
			return err
		case <-t.C:
		}
		r.mu.Lock()
		left := r.o.Idle - time.Since(r.lastEnd)
		busy := len(r.conns) > 0
		r.mu.Unlock()
		switch {
		case busy:
			t.Reset(r.o.Idle)
		case left > 0:
			t.Reset(left)
		default:
			return nil
		}
	}
}

// accept serves one listener until stop closes. A connection that accept(2) handed over is
// always served, even when stop closed in between: nobody else will.
func (r *runner) accept(ctx context.Context, l bound, stop <-chan struct{}) error {
	pause := time.Duration(0)
	for {
		c, err := l.Accept()
		if err != nil {
			select {
			case <-stop:
				return nil
			default:
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept on %s: %w", l.Addr(), err)
			}
			// Out of descriptors or memory, or the client was gone already: go on, slower.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			r.o.Log.Warn("accept failed", "addr", l.Addr().String(), "err", err)
			select {
			case <-stop:
				return nil
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		r.start(ctx, c, l.role)
	}
}

func (r *runner) start(ctx context.Context, c net.Conn, role string) {
	if n := r.active.Add(1); r.o.MaxSessions > 0 && n > int64(r.o.MaxSessions) {
		r.active.Add(-1)
		r.refuse(c, "too many sessions", c.RemoteAddr().String(), r.o.MaxSessions, r.o.Busy)
		c.Close()
		return
	}
	r.mu.Lock()
	r.conns[c] = struct{}{}
	r.mu.Unlock()
	r.wg.Add(1)
	go func() {
		defer r.end(c)
		prepare(c)
		if peer, ok := r.introduced(c, peerOf(c), role); ok {
			r.limited(ctx, c, peer, role)
		}
	}()
}

// limited runs the handler unless the client has as many sessions as one may. Its place is free
// again before the connection is closed: a client who sees the end may come back at once.
func (r *runner) limited(ctx context.Context, c net.Conn, p Peer, role string) {
	if r.counted(p) {
		ip := p.Addr.Addr()
		if !r.clients.enter(ip, r.o.PerClient) {
			r.refuse(c, "too many sessions of one client", p.Addr.String(), r.o.PerClient, r.o.PerClientBusy)
			return
		}
		defer r.clients.leave(ip)
	}
	r.h(ctx, c, p, role)
}

// refuse tells a client that it is one too many.
func (r *runner) refuse(c net.Conn, why, peer string, most int, busy string) {
	if missed, ok := r.refused.say(time.Now()); ok {
		r.o.Log.Warn(why, "peer", peer, "max", most, "unlogged", missed)
	}
	if busy != "" {
		// A new connection's send buffer is empty, so this does not hold up accepting.
		_ = c.SetWriteDeadline(time.Now().Add(time.Second)) // without it the write still cannot block
		_, _ = c.Write([]byte(busy))                        // the client is turned away either way
	}
}

func (r *runner) end(c net.Conn) {
	// One bad session must not take thousands of others with it.
	if v := recover(); v != nil {
		r.o.Log.Error("session died of a bug", "err", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
	c.Close()
	r.mu.Lock()
	delete(r.conns, c)
	r.lastEnd = time.Now()
	r.mu.Unlock()
	r.active.Add(-1)
	r.wg.Done()
}

// drain waits for the sessions; those that take longer than the grace are cut off, but only
// after ctx ended: an idle exit has none to cut.
func (r *runner) drain() {
	done := make(chan struct{})
	go func() { r.wg.Wait(); close(done) }()
	t := time.NewTimer(r.o.Grace)
	defer t.Stop()
	select {
	case <-done:
		return
	case <-t.C:
	}
	r.mu.Lock()
	r.o.Log.Warn("sessions cut off", "count", len(r.conns))
	for c := range r.conns {
		c.Close()
	}
	r.mu.Unlock()
	<-done
}

// one serves a single connected socket.
func (r *runner) one(ctx context.Context, f *os.File, name string) error {
	role, err := r.roleFor("", name)
	if err != nil {
		return err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	defer c.Close()
	prepare(c)
	peer := peerOf(c)
	if !peer.Addr.IsValid() && !peer.Unix {
		peer.Addr = peerFromEnv()
	}
	if peer, ok := r.introduced(c, peer, role); ok {
		return r.single(ctx, c, peer, role)
	}
	return nil
}

func (r *runner) stdio(ctx context.Context) error {
	role, err := r.roleFor("", "")
	if err != nil {
		return err
	}
	c, err := newStdio()
	if err != nil {
		return err
	}
	defer c.Close()
	// A program such as tcpserver may have put pipes in between and say who is there.
	return r.single(ctx, c, Peer{Addr: peerFromEnv(), Stdio: true}, role)
}

// single runs the handler for the only connection. After ctx ends it has the grace to finish.
func (r *runner) single(ctx context.Context, c net.Conn, peer Peer, role string) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.h(ctx, c, peer, role)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-done:
	case <-time.After(r.o.Grace):
		r.o.Log.Warn("sessions cut off", "count", 1)
	}
	return nil
}
