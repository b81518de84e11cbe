// Package token asks somebody else whose an OAuth access token is: a program that is started for
// each token, or a server on a UNIX socket. It hides how they are asked, how long they may take
// and how many are asked at once. A token is never written to a log or a command line.
package token

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"pennypost/internal/sasl"
)

// Options say whom to ask. One of Command and Socket is set.
type Options struct {
	Command []string      // program and arguments
	Socket  string        // path
	Timeout time.Duration // for one token, waiting for its turn included; default 10s
	Max     int           // at once; default 8
}

// Checker asks. It may be used by many goroutines at once.
type Checker struct {
	o    Options
	turn chan struct{}
}

// New makes a Checker.
func New(o Options) *Checker {
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Max <= 0 {
		o.Max = 8
	}
	return &Checker{o: o, turn: make(chan struct{}, o.Max)}
}

// refusedStatus is the exit status by which a program says no: EX_NOPERM of sysexits.
const refusedStatus = 77

// maxAnswer bounds an answer.
const maxAnswer = 4096

// Check is a sasl.TokenFunc: it returns the address that the token was issued for.
func (c *Checker) Check(ctx context.Context, claimed, token string) (user string, err error) {
	if strings.ContainsAny(claimed+token, "\x00\r\n") || token == "" {
		return "", sasl.ErrRefused
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return "", temporary(errors.New("no turn for the token: too many are being checked"))
	}
	if c.o.Socket != "" {
		user, err = c.askSocket(ctx, claimed, token)
	} else {
		user, err = c.askProgram(ctx, claimed, token)
	}
	switch {
	case errors.Is(err, sasl.ErrRefused):
		return "", err
	case err != nil && ctx.Err() != nil:
		return "", temporary(fmt.Errorf("token check: %w", ctx.Err()))
	case err != nil:
		return "", temporary(fmt.Errorf("token check: %w", err))
	}
	return user, nil
}

func temporary(err error) error { return fmt.Errorf("%w: %w", sasl.ErrTemporary, err) }

// askProgram gives the token and the name as two lines and reads the address from the first
// line of the answer. What the program says on standard error is thrown away: it may quote the token.
func (c *Checker) askProgram(ctx context.Context, claimed, token string) (string, error) {
	cmd := exec.CommandContext(ctx, c.o.Command[0], c.o.Command[1:]...)
	cmd.Stdin = strings.NewReader(token + "\n" + claimed + "\n")
	out := &limited{max: maxAnswer}
	cmd.Stdout = out
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C"}
	// A group of its own, so that the time-out ends what a script has started as well.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == refusedStatus {
		return "", sasl.ErrRefused
	}
	// A program that has its answer need not read all of the question.
	if err != nil && !errors.Is(err, syscall.EPIPE) {
		return "", fmt.Errorf("%s: %w", c.o.Command[0], err)
	}
	line, _, _ := strings.Cut(out.String(), "\n")
	if line = strings.TrimRight(line, " \t\r"); line == "" {
		return "", fmt.Errorf("%s: exit status 0 and no address", c.o.Command[0])
	}
	return line, nil
}

// limited keeps the start of what is written.
type limited struct {
	bytes.Buffer
	max int
}

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), l.max-l.Len())])
	return len(p), nil
}

// request and answer are the two lines spoken on the socket, one pair a connection.
type request struct {
	Op    string `json:"op"` // "token"
	Token string `json:"token"`
	User  string `json:"user"`
}

type answer struct {
	OK    bool   `json:"ok"`
	User  string `json:"user"`
	Error string `json:"error"` // not decided
}

func (c *Checker) askSocket(ctx context.Context, claimed, token string) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.o.Socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := json.Marshal(request{Op: "token", Token: token, User: claimed})
	if err != nil {
		return "", err
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return "", err
	}
	line, err = bufio.NewReader(io.LimitReader(conn, maxAnswer)).ReadBytes('\n')
	if err != nil {
		return "", fmt.Errorf("%s: %w", c.o.Socket, err)
	}
	return parseAnswer(line)
}

// parseAnswer reads {"ok":true,"user":"ann@example.org"}, {"ok":false} or {"error":"why"}.
func parseAnswer(line []byte) (string, error) {
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return "", errors.New("the answer is no JSON object of the documented form")
	}
	switch {
	case a.Error != "":
		return "", fmt.Errorf("no decision: %q", a.Error)
	case !a.OK:
		return "", sasl.ErrRefused
	case a.User == "":
		return "", errors.New("the answer is yes and names no user")
	}
	return a.User, nil
}
