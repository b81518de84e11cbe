package handover

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"pennypost/internal/accounts"
)

const (
	factsTime = 30 * time.Second // for a session to read what it is told
	maxText   = 4 << 10          // octets of a line that a session logs
	maxLines  = 1000             // of one session; what it logs beyond that is not kept
)

// child is a session.
type child struct {
	log     *slog.Logger // with who it is
	user    *accounts.Mailbox
	pid     int
	started time.Time
	facts   *os.File // write end
	said    *os.File // read end of its standard error
	tell    []byte

	mu   sync.Mutex
	over bool // waited for: pid may be somebody else's
}

// start runs a program as the user, with nothing but the client's connection, a pipe for its log
// and one with what it is to know.
func (s *Server) start(program []string, u *accounts.Mailbox, groups []int, r *request, fd int) (*child, error) {
	if err := s.safe(program[0]); err != nil {
		return nil, fmt.Errorf("session program: %w", err)
	}
	tell, err := json.Marshal(Facts{
		Protocol: r.Protocol, Address: u.Address, Name: u.User, Home: u.Home, Maildir: u.Maildir,
		Peer: r.peer, TLS: r.TLS, Pending: r.Pending, State: r.State,
	})
	if err != nil {
		return nil, err
	}
	factsR, factsW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer factsR.Close()
	saidR, saidW, err := os.Pipe()
	if err != nil {
		factsW.Close()
		return nil, err
	}
	defer saidW.Close()
	// The login process has it in its poller; a session may be any program.
	err = syscall.SetNonblock(fd, false)
	attr := &syscall.ProcAttr{
		Dir: "/", Env: []string{},
		Files: []uintptr{uintptr(fd), uintptr(fd), saidW.Fd(), factsR.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Credential: s.credential(u, groups)},
	}
	c := &child{user: u, facts: factsW, said: saidR, tell: tell, started: time.Now()}
	if err == nil {
		c.pid, err = syscall.ForkExec(program[0], program, attr)
	}
	if err != nil {
		// The login process goes on with its own descriptor of the connection, which has the same mode:
		// its time-outs would be none. This fails on no socket.
		_ = syscall.SetNonblock(fd, true)
		return nil, errors.Join(fmt.Errorf("start %s: %w", program[0], err), factsW.Close(), saidR.Close())
	}
	c.log = s.o.Log.With("user", u.Address, "uid", u.UID, "pid", c.pid, "protocol", r.Protocol, "peer", r.Peer)
	return c, nil
}

// credential is whom the child becomes; only root has a choice.
func (s *Server) credential(u *accounts.Mailbox, groups []int) *syscall.Credential {
	if s.o.UID != 0 {
		return nil
	}
	c := &syscall.Credential{Uid: uint32(u.UID), Gid: uint32(u.GID)}
	for _, g := range groups {
		c.Groups = append(c.Groups, uint32(g))
	}
	return c
}

// run stays until the session is over.
func (c *child) run(ctx context.Context) {
	c.log.Info("session begins")
	stop := context.AfterFunc(ctx, c.end)
	defer stop()
	// A session that does not listen makes this fail by its time; it ends as it likes.
	_ = c.facts.SetWriteDeadline(time.Now().Add(factsTime))
	if _, err := c.facts.Write(c.tell); err != nil {
		c.log.Warn("session did not read what it is told", "err", err)
	}
	_ = c.facts.Close() // a pipe keeps nothing back
	c.relay()
	_ = c.said.Close() // read to its end
	why := c.wait()
	c.log.Info("session ends", "status", why, "seconds", int(time.Since(c.started).Seconds()))
}

// relay writes to our log what the session says, under its name: what a user's process writes can
// then look like nothing else.
func (c *child) relay() {
	r := bufio.NewReaderSize(c.said, maxText)
	for n := 1; ; {
		b, err := r.ReadSlice('\n')
		if len(b) > 0 {
			switch {
			case n < maxLines:
				c.log.Info("session says", "text", string(trimEOL(b)))
			case n == maxLines:
				c.log.Warn("session says too much; the rest is not kept")
			}
			n++
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if !errors.Is(err, io.EOF) {
				c.log.Warn("session's log cannot be read", "err", err)
			}
			return
		}
	}
}

func trimEOL(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
		b = b[:len(b)-1]
	}
	return b
}

// wait takes the child's status. The child has closed its standard error, so that this is short;
// one that goes on all the same is looked at now and then, and costs no thread.
func (c *child) wait() string {
	for pause := time.Millisecond; ; pause = min(2*pause, time.Second) {
		if why, ok := c.ended(); ok {
			return why
		}
		time.Sleep(pause)
	}
}

func (c *child) ended() (why string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var st syscall.WaitStatus
	pid, err := syscall.Wait4(c.pid, &st, syscall.WNOHANG, nil)
	switch {
	case errors.Is(err, syscall.EINTR), err == nil && pid == 0:
		return "", false
	case err != nil:
		why = err.Error()
	case st.Signaled():
		why = st.Signal().String()
	default:
		why = strconv.Itoa(st.ExitStatus())
	}
	c.over = true
	return why, true
}

// end asks the session to say goodbye.
func (c *child) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		_ = syscall.Kill(c.pid, syscall.SIGTERM) // it may have ended, and has its status still
	}
}
