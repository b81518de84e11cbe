package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
	"pennypost/internal/sasl"
)

const (
	// sendTime is what a login process gets to send its line; it does so at once.
	sendTime = 5 * time.Second
	// startTime bounds what follows: redeeming, looking up, starting.
	startTime = 40 * time.Second
	// maxReading bounds the connections whose line is not there yet. One more ends the oldest:
	// who sends at once is never kept out by who does not.
	maxReading = 256
	// maxStarting bounds those that wait for an answer about their ticket.
	maxStarting = 32
)

// Redeemer takes tickets; auth.Checker is one.
type Redeemer interface {
	Redeem(ctx context.Context, ticket string) (address string, err error)
}

// Users tells who an address is; *accounts.Accounts does.
type Users interface {
	LookupUser(ctx context.Context, addr envelope.Address) (accounts.Result, error)
	Groups(ctx context.Context, name string, gid int) ([]int, error)
}

// Options say what a Server works with.
type Options struct {
	Tickets  Redeemer
	Users    Users
	Programs map[string][]string // protocol → program and arguments; the program's path is absolute
	FirstUID int                 // lower ones get no session, nor does 0
	Max      int                 // sessions at once
	PerUser  int                 // of one user
	UID      int                 // as whom we run: root can become others, anybody else only itself
	Log      *slog.Logger
}

// Server is the root process's end. It may be used by many goroutines at once.
type Server struct {
	o        Options
	starting chan struct{}

	mu       sync.Mutex
	reading  []*net.UnixConn // oldest first
	sessions int
	of       map[int]int // sessions by uid
}

// NewServer makes a Server.
func NewServer(o Options) *Server {
	return &Server{o: o, starting: make(chan struct{}, maxStarting), of: map[int]int{}}
}

// Serve serves one connection of a login process, and returns when the session that came of it is
// over, or none did. from is the login process, for the log. When ctx ends the session is told to.
func (s *Server) Serve(ctx context.Context, c *net.UnixConn, from string) {
	r, fd, err := s.read(c)
	if err != nil {
		s.answer(c, replyTo(err))
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			s.o.Log.Warn("request refused", "peer", from, "err", err)
		}
		return
	}
	child, err := s.begin(ctx, r, fd)
	closeAll([]int{fd}) // the session has its own by now
	if err != nil {
		s.answer(c, replyTo(err))
		level := slog.LevelError
		if errors.Is(err, ErrRefused) || errors.Is(err, ErrBusy) || errors.Is(err, errSyntax) {
			level = slog.LevelWarn
		}
		s.o.Log.Log(ctx, level, "no session", "peer", r.Peer, "login", from, "protocol", r.Protocol, "err", err)
		return
	}
	defer s.leave(child.user.UID)
	s.answer(c, reply{OK: true, PID: child.pid})
	_ = c.Close() // the session lasts, and the login process has what it wanted
	child.run(ctx)
}

// read takes the request. It is what strangers could hold up, so there is a place for the next
// one always.
func (s *Server) read(c *net.UnixConn) (*request, int, error) {
	s.mu.Lock()
	if len(s.reading) >= maxReading {
		_ = s.reading[0].Close() // its own goroutine sees that
		s.reading = s.reading[1:]
	}
	s.reading = append(s.reading, c)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, x := range s.reading {
			if x == c {
				s.reading = append(s.reading[:i:i], s.reading[i+1:]...)
				return
			}
		}
	}()
	if err := c.SetDeadline(time.Now().Add(sendTime)); err != nil {
		return nil, -1, err
	}
	return readRequest(socket{c})
}

func (s *Server) answer(c *net.UnixConn, r reply) {
	b, err := json.Marshal(r)
	if err == nil {
		err = c.SetWriteDeadline(time.Now().Add(sendTime))
	}
	if err == nil {
		_, err = c.Write(append(b, '\n'))
	}
	if err != nil && r.OK {
		s.o.Log.Warn("login process is gone", "err", err)
	}
}

// begin does everything up to the start of the session. What is cheap to refuse is refused first.
func (s *Server) begin(ctx context.Context, r *request, fd int) (*child, error) {
	program := s.o.Programs[r.Protocol]
	if len(program) == 0 {
		return nil, fmt.Errorf("%w: no sessions of protocol %q", errSyntax, r.Protocol)
	}
	if err := usable(fd); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	select {
	case s.starting <- struct{}{}:
		defer func() { <-s.starting }()
	case <-ctx.Done():
		return nil, ErrBusy
	}
	u, err := s.who(ctx, r.Ticket)
	if err != nil {
		return nil, err
	}
	groups, err := s.o.Users.Groups(ctx, u.User, u.GID)
	if err != nil {
		return nil, err
	}
	if err := s.enter(u.UID); err != nil {
		return nil, fmt.Errorf("%s: %w", u.Address, err)
	}
	c, err := s.start(program, u, groups, r, fd)
	if err != nil {
		s.leave(u.UID)
	}
	return c, err
}

// who redeems a ticket: the user it is for must be one of the system's, and an ordinary one.
func (s *Server) who(ctx context.Context, ticket string) (*accounts.Mailbox, error) {
	address, err := s.o.Tickets.Redeem(ctx, ticket)
	switch {
	case errors.Is(err, sasl.ErrRefused):
		return nil, fmt.Errorf("%w: the ticket is not good", ErrRefused)
	case err != nil:
		return nil, err
	}
	addr, err := envelope.ParseAddress(address)
	if err != nil {
		return nil, fmt.Errorf("the ticket is for %q: %w", address, err)
	}
	r, err := s.o.Users.LookupUser(ctx, addr)
	if err != nil {
		return nil, err
	}
	u := r.Mailbox
	switch {
	case r.Kind != accounts.IsMailbox || u == nil || u.Address != address || !u.System:
		return nil, fmt.Errorf("%w: %s is no system user", ErrRefused, address)
	case u.UID <= 0 || u.UID < s.o.FirstUID || u.GID <= 0:
		return nil, fmt.Errorf("%w: %s is user %d of group %d, and the first with sessions is %d", ErrRefused, address, u.UID, u.GID, s.o.FirstUID)
	case u.User == "vmail", strings.HasPrefix(u.User, "pp-"):
		return nil, fmt.Errorf("%w: %s is a part of this system", ErrRefused, address)
	case s.o.UID != 0 && s.o.UID != u.UID:
		return nil, fmt.Errorf("only root can begin a session of %s", address)
	}
	return u, nil
}

func (s *Server) enter(uid int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions >= s.o.Max || s.of[uid] >= s.o.PerUser {
		return ErrBusy
	}
	s.sessions++
	s.of[uid]++
	return nil
}

func (s *Server) leave(uid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions--
	if s.of[uid]--; s.of[uid] == 0 {
		delete(s.of, uid)
	}
}

// safe refuses a program that somebody else could have written.
func (s *Server) safe(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || !fi.Mode().IsRegular() || fi.Mode()&0o022 != 0 || st.Uid != 0 && int(st.Uid) != s.o.UID {
		return fmt.Errorf("%s: others than root can write it", path)
	}
	return nil
}
