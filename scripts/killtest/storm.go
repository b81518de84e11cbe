package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pennypost/internal/mailtest"
)

type options struct {
	Bin      string
	Messages int
	Kills    int
	Seed     uint64
	Lose     bool
	Keep     bool
	Limit    time.Duration
}

// storm is one run.
type storm struct {
	o    *options
	in   *mailtest.Instance
	next atomic.Int64 // numbers of messages

	mu       sync.Mutex
	accepted map[int]string // number of the message: queue id, "" over msend
	pids     map[int]bool   // msend processes under way
	kills    map[string]int
	faults   []error
}

// Submitters of each kind. More would only make them wait for each other.
const (
	pipes = 4
	lines = 4
)

const to = "bob@example.test"

func run(o *options) (*result, error) {
	in, err := mailtest.NewInstance(mailtest.InstanceOptions{Bin: o.Bin, Extra: "queue.retry = [\"1s\"]\nqueue.scan = \"1s\"\n"})
	if err != nil {
		return nil, err
	}
	s := &storm{o: o, in: in, accepted: map[int]string{}, pids: map[int]bool{}, kills: map[string]int{}}
	if err := in.Up(); err != nil {
		return nil, errors.Join(err, in.Close())
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.Limit)
	defer cancel()
	began := time.Now()
	err = s.blow(ctx)
	if err == nil {
		err = s.settle(ctx)
	}
	var r *result
	if err == nil {
		r, err = s.compare()
		if r != nil {
			r.Took = time.Since(began).Round(100 * time.Millisecond)
		}
	}
	if err != nil && !o.Lose {
		err = fmt.Errorf("%w (seed %d)\n%s", err, o.Seed, tail(in.Log(), 4000))
	}
	if o.Keep {
		fmt.Fprintln(os.Stderr, "killtest: files are in", in.Dir)
		return r, errors.Join(err, in.Down())
	}
	return r, errors.Join(err, in.Close())
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// blow submits and kills until both figures are reached.
func (s *storm) blow(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	for range pipes {
		wg.Go(func() { s.loop(ctx, s.pipe) })
	}
	for range lines {
		wg.Go(func() { s.loop(ctx, s.session) })
	}
	err := s.killer(ctx)
	stop()
	wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(append(s.faults, err)...)
}

func (s *storm) loop(ctx context.Context, fn func(context.Context) error) {
	for ctx.Err() == nil {
		if err := fn(ctx); err != nil {
			s.mu.Lock()
			s.faults = append(s.faults, err)
			s.mu.Unlock()
			return
		}
	}
}

func (s *storm) accept(n int, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepted[n] = id
}

func (s *storm) count() (accepted, kills int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.kills {
		kills += k
	}
	return len(s.accepted), kills
}

// text is message n: its number at both ends, and every tenth larger than any buffer on the
// way, so that a torn one is seen.
func text(n int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "From: alice@example.test\nTo: %s\nSubject: kill %d\nX-Kill: %d\n\n", to, n, n)
	size := 1 + n%7
	if n%10 == 0 {
		size = 2000
	}
	for i := range size {
		fmt.Fprintf(&b, "line %d of message %d, which is here to be counted again\n", i, n)
	}
	fmt.Fprintf(&b, "end %d %d\n", n, size)
	return b.String()
}

// pipe submits one message with msend.
func (s *storm) pipe(context.Context) error {
	n := int(s.next.Add(1))
	cmd := exec.Command(filepath.Join(s.o.Bin, "msend"), "--config", s.in.Config, "-f", "alice@example.test", to)
	cmd.Stdin = strings.NewReader(text(n))
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		return err
	}
	s.mu.Lock()
	s.pids[cmd.Process.Pid] = true
	s.mu.Unlock()
	err := cmd.Wait()
	s.mu.Lock()
	delete(s.pids, cmd.Process.Pid)
	s.mu.Unlock()
	var exit *exec.ExitError
	switch {
	case err == nil:
		s.accept(n, "")
	case errors.As(err, &exit) && exit.ExitCode() == -1: // killed: nothing was promised
	default:
		return fmt.Errorf("msend: %w: %s", err, errs.String())
	}
	return nil
}

// session submits some messages over one SMTP connection. A connection that breaks was killed.
func (s *storm) session(ctx context.Context) error {
	c, err := net.DialTimeout("tcp", s.in.MX, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second)) // a hang shows as a missing message or the time limit
	br := bufio.NewReader(c)
	if reply(br, "220") != nil || say(c, br, "EHLO killtest.test\r\n", "250") != nil {
		return nil
	}
	for range 10 {
		if ctx.Err() != nil {
			break
		}
		n := int(s.next.Add(1))
		if say(c, br, "MAIL FROM:<alice@elsewhere.test>\r\n", "250") != nil || say(c, br, "RCPT TO:<"+to+">\r\n", "250") != nil ||
			say(c, br, "DATA\r\n", "354") != nil {
			return nil
		}
		if say(c, br, strings.ReplaceAll(text(n), "\n", "\r\n")+".\r\n", "250") != nil {
			return nil
		}
		s.accept(n, "smtp")
	}
	_ = say(c, br, "QUIT\r\n", "221") // nothing depends on it
	return nil
}

func say(c net.Conn, br *bufio.Reader, line, want string) error {
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	return reply(br, want)
}

func reply(br *bufio.Reader, want string) error {
	for {
		l, err := br.ReadString('\n')
		if err != nil {
			return err
		}
		if len(l) < 4 || l[:3] != want {
			return fmt.Errorf("reply %q", l)
		}
		if l[3] == ' ' {
			return nil
		}
	}
}

// killer kills at random until both figures are reached. The pauses follow the messages: the
// kills are spread over them.
func (s *storm) killer(ctx context.Context) error {
	rnd := rand.New(rand.NewPCG(s.o.Seed, 1))
	for {
		accepted, kills := s.count()
		if accepted >= s.o.Messages && kills >= s.o.Kills {
			return nil
		}
		s.mu.Lock()
		failed := len(s.faults) > 0
		s.mu.Unlock()
		if failed {
			return nil
		}
		if kills < s.o.Kills && accepted >= kills*s.o.Messages/s.o.Kills {
			if err := s.kill(rnd); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %v: %d messages accepted, %d kills", s.o.Limit, accepted, kills)
		case <-time.After(time.Duration(rnd.IntN(20)) * time.Millisecond):
		}
	}
}

func (s *storm) kill(rnd *rand.Rand) error {
	switch rnd.IntN(8) {
	case 0, 1:
		return s.restart("mqueue")
	case 2, 3:
		return s.restart("msmtpd")
	case 4, 5:
		s.killPid("mdeliver", s.worker())
	default:
		s.killPid("msend", s.sender())
	}
	return nil
}

func (s *storm) killed(name string) {
	s.mu.Lock()
	s.kills[name]++
	s.mu.Unlock()
}

func (s *storm) restart(name string) error {
	if err := s.in.Stop(name, syscall.SIGKILL); err != nil {
		return err
	}
	s.killed(name)
	return s.in.Start(name)
}

func (s *storm) killPid(name string, pid int) {
	if pid > 0 && syscall.Kill(pid, syscall.SIGKILL) == nil {
		s.killed(name)
	}
}

func (s *storm) sender() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for pid := range s.pids {
		return pid
	}
	return 0
}

// worker finds mqueue's child mdeliver; 0 where there is no /proc, or none at the moment.
func (s *storm) worker() int {
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0
	}
	want := filepath.Join(s.o.Bin, "mdeliver") + "\x00--worker\x00--config\x00" + s.in.Config + "\x00"
	for _, name := range names {
		line, err := os.ReadFile(name)
		if err != nil || string(line) != want {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(name, "/")[2])
		if err == nil {
			return pid
		}
	}
	return 0
}
