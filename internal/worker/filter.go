package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"pennypost/internal/envelope"
)

// filterPath is the search path of filters: what mqueue was started with is not theirs to use.
const filterPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// filter runs the program once for all recipients of r; its exit status is the verdict for each.
func (s *Spec) filter(ctx context.Context, r *Request, f *os.File) (*Report, error) {
	begun := time.Now()
	st := s.run(ctx, r, f)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	rep := &Report{Seq: r.Seq, ID: r.ID, Results: make([]Result, len(r.To))}
	for i := range r.To {
		rep.Results[i] = Result{To: r.To[i].Addr, Status: st, DelayMS: time.Since(begun).Milliseconds()}
	}
	return rep, nil
}

func (s *Spec) run(ctx context.Context, r *Request, f *os.File) envelope.Status {
	if len(s.Command) == 0 {
		return envelope.Defer("4.3.5", "worker "+s.Name+" is a filter without a command")
	}
	args := append([]string(nil), s.Command[1:]...)
	for i := range r.To {
		if a := r.To[i].Addr; strings.HasPrefix(a, "-") && (len(s.Command) == 1 || s.Command[len(s.Command)-1] != "--") {
			return envelope.Defer("4.3.5", "worker "+s.Name+": address "+a+" looks like an option; let the command end in --")
		}
		args = append(args, r.To[i].Addr)
	}
	if s.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.Timeout)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, s.Command[0], args...)
	cmd.Env = filterEnv(r)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = kill
	cmd.WaitDelay = endGrace // for grandchildren that keep the pipes open
	var out firstLine
	cmd.Stdout, cmd.Stderr = &out, &out
	in := &wholeReader{r: io.NewSectionReader(f, r.Offset, r.Size), left: r.Size, kill: kill}
	cmd.Stdin = in
	return verdict(ctx, s.Name, cmd.Run(), in, out.String())
}

func verdict(ctx context.Context, name string, err error, in *wholeReader, said string) envelope.Status {
	var exit *exec.ExitError
	var st envelope.Status
	switch {
	case in.err.Load() != nil:
		return envelope.Defer("4.3.0", "message file cannot be read: "+(*in.err.Load()).Error())
	case ctx.Err() != nil:
		st = envelope.Defer("4.3.0", "worker "+name+" did not end in time and was killed")
	case err == nil:
		st = envelope.FromExit(envelope.ExOK)
	case errors.As(err, &exit):
		st = envelope.FromExit(exit.ExitCode()) // -1 when a signal ended it
	case errors.Is(err, exec.ErrWaitDelay):
		// It ended well; a process it left behind holds the output open.
		st = envelope.FromExit(envelope.ExOK)
	default:
		return envelope.Defer("4.3.5", "worker "+name+" cannot be run: "+err.Error())
	}
	if said != "" {
		st.Reply = said
	}
	return st
}

func filterEnv(r *Request) []string {
	to := make([]string, len(r.To))
	for i := range r.To {
		to[i] = r.To[i].Addr
	}
	env := []string{
		filterPath, "LANG=C.UTF-8",
		"SENDER=" + r.From, "RECIPIENTS=" + strings.Join(to, "\n"),
		"QUEUE_ID=" + r.ID, "ATTEMPT=" + strconv.Itoa(r.Attempt), "NEXT_HOP=" + r.NextHop,
		"SIZE=" + strconv.FormatInt(r.Size, 10), "BODY=" + r.Body, "ENVID=" + r.EnvID,
	}
	if len(r.To) == 1 {
		orig := r.To[0].Orig
		if orig == "" {
			orig = r.To[0].Addr
		}
		env = append(env, "RECIPIENT="+r.To[0].Addr, "ORIG_TO="+orig)
	}
	// Environment strings end at NUL; the envelope's alphabet has none, a broken one must not run.
	for i := range env {
		env[i] = strings.ReplaceAll(env[i], "\x00", "")
	}
	return env
}

// wholeReader gives a program the whole message or its death: an end of file after half of it
// would make half a message.
type wholeReader struct {
	r    io.Reader
	left int64
	kill func() error
	err  atomic.Pointer[error]
}

func (w *wholeReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.left -= int64(n)
	if err == io.EOF && w.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%d octets missing: %w", w.left, err)
		w.err.Store(&err)
		_ = w.kill() // it may have ended already; then the stored error still decides
	}
	return n, err
}

// firstLine keeps the first line that is not empty, up to a limit.
type firstLine struct{ buf []byte }

func (l *firstLine) Write(p []byte) (int, error) {
	if room := 4*maxReply - len(l.buf); room > 0 {
		l.buf = append(l.buf, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

func (l *firstLine) String() string {
	s := bytes.TrimSpace(l.buf)
	if i := bytes.IndexByte(s, '\n'); i >= 0 {
		s = s[:i]
	}
	return clean(string(s), maxReply)
}
