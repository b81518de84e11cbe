package hook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"pennypost/internal/envelope"
)

// run starts the program for one question. It answers by JSON and exit status 0, or by its
// exit status alone, with a first line of text for the client.
func (h *Hook) run(ctx context.Context, line []byte) (*Answer, error) {
	cmd := exec.CommandContext(ctx, h.o.Command[0], h.o.Command[1:]...)
	// Nothing of ours: the starter's variables name its sockets and directories.
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(line)
	var out, said limited
	cmd.Stdout, cmd.Stderr = &out, &said
	// What it started itself ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: no answer in time: %w", h.o.Command[0], ctx.Err())
	case errors.As(err, &exit):
		return h.byStatus(exit.ExitCode(), &out, &said)
	// It need not read the question to its end.
	case err != nil && !errors.Is(err, syscall.EPIPE):
		return nil, err
	case out.over:
		return nil, fmt.Errorf("%w: longer than %d octets", errAnswer, maxAnswer)
	}
	b := bytes.TrimSpace(out.b)
	if len(b) == 0 {
		return &Answer{Verdict: Accept}, nil
	}
	return parse(b)
}

// byStatus turns an exit status of sysexits into a verdict. Statuses that tell of trouble with
// the program itself are no verdict.
func (h *Hook) byStatus(status int, out, said *limited) (*Answer, error) {
	st := envelope.FromExit(status)
	a := &Answer{Verdict: Reject, DSN: st.Code, Reply: out.firstLine()}
	switch {
	case st.Verdict == envelope.Failed:
	case status == envelope.ExTempFail:
		a.Verdict, a.DSN = Defer, "4.7.1"
	default:
		return nil, fmt.Errorf("%s: exit status %d: %q", h.o.Command[0], status, said.firstLine())
	}
	switch a.Verdict {
	case Reject:
		a.Code = 550
	case Defer:
		a.Code = 451
	}
	if a.Reply == "" {
		a.Reply = "refused by policy"
	}
	return a, nil
}

// limited keeps the beginning of what a program prints; the rest is taken and dropped, so that
// the program does not stand still.
type limited struct {
	b    []byte
	over bool
}

func (l *limited) Write(p []byte) (int, error) {
	room := maxAnswer - len(l.b)
	if len(p) > room {
		l.over = true
	}
	l.b = append(l.b, p[:min(len(p), room)]...)
	return len(p), nil
}

func (l *limited) firstLine() string {
	s, _, _ := strings.Cut(string(l.b), "\n")
	return strings.TrimSpace(s)
}
