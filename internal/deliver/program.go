package deliver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"pennypost/internal/envelope"
)

// maxOutput is how much of what a program says is kept for the report.
const maxOutput = 512

// toProgram runs a command of an alias or forward through /bin/sh, as every aliases(5) does.
// Addresses are in its environment only: nothing from the message is part of the command line.
func (d *Deliverer) toProgram(ctx context.Context, j *job, p *plan, l leaf, header []byte) (string, error) {
	cmd := exec.Command("/bin/sh", "-c", l.text)
	home := l.as.home
	if home == "" {
		home = "/"
	}
	cmd.Dir = home
	if fi, err := os.Stat(home); err != nil || !fi.IsDir() {
		cmd.Dir = "/"
	}
	cmd.Env = []string{
		"PATH=/usr/local/bin:/usr/bin:/bin", "SHELL=/bin/sh", "HOME=" + home, "USER=" + l.as.name, "LOGNAME=" + l.as.name,
		"SENDER=" + j.req.From, "RECIPIENT=" + l.addr, "EXTENSION=" + l.detail, "DOMAIN=" + p.addr.Domain,
	}
	return d.run(ctx, cmd, l.as, io.MultiReader(bytes.NewReader(header), j.msg.reader()))
}

// asUser runs this program again as another user, to write what only that user may.
func (d *Deliverer) asUser(ctx context.Context, j *job, as *identity, header []byte, args []string) (string, error) {
	if d.o.Self == "" {
		return "", deferral("4.3.5", "delivery cannot start itself as another user")
	}
	cmd := exec.Command(d.o.Self, append([]string{"--raw", "-f", j.req.From}, args...)...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + as.home, "USER=" + as.name, "LOGNAME=" + as.name}
	return d.run(ctx, cmd, as, io.MultiReader(bytes.NewReader(header), j.msg.reader()))
}

// run runs cmd as as with the message on its standard input and turns its exit status into a
// result. It has a process group of its own, which dies with the time-out.
func (d *Deliverer) run(ctx context.Context, cmd *exec.Cmd, as *identity, message io.Reader) (string, error) {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if as.uid != d.o.UID {
		// No supplementary groups: neither ours nor those of the user.
		attr.Credential = &syscall.Credential{Uid: uint32(as.uid), Gid: uint32(as.gid)}
	}
	cmd.SysProcAttr = attr
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	out := &head{max: maxOutput}
	cmd.Stdout, cmd.Stderr = out, out
	// A grandchild that keeps the output open does not hold the delivery.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return "", &Error{envelope.Defer("4.3.5", "the delivery program cannot be started"), err}
	}
	ctx, cancel := context.WithTimeout(ctx, d.o.PipeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		// Ignored: a group that is gone needs no signal.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = in.Close()
	})
	fed := feed(in, message)
	err = cmd.Wait()
	stopped := stop()
	var exit *exec.ExitError
	switch {
	case !stopped:
		return "", deferral("4.3.0", "the delivery program was stopped after its time-out")
	case fed != nil:
		return "", fed // the program saw a short message; whatever it says does not count
	case err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay):
		return "", err
	}
	st := envelope.FromExit(cmd.ProcessState.ExitCode())
	if said := out.line(); said != "" {
		if st.Reply != "" {
			st.Reply += ": "
		}
		st.Reply += said
	}
	if st.Verdict != envelope.Delivered {
		return "", &Error{Status: st}
	}
	return st.Reply, nil
}

// feed writes the message to the program. A program that ends or closes its input before the
// end has decided without the rest; only a failure to read the message counts.
func feed(in io.WriteCloser, message io.Reader) error {
	defer in.Close()
	buf := make([]byte, 64<<10)
	for {
		n, rerr := message.Read(buf)
		if n > 0 {
			if _, err := in.Write(buf[:n]); err != nil {
				return nil
			}
		}
		if rerr == io.EOF {
			return nil
		}
		if rerr != nil {
			return rerr
		}
	}
}

// head keeps the first octets written to it.
type head struct {
	b   []byte
	max int
}

func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), h.max-len(h.b))]...)
	return len(p), nil
}

// line is what was written as one printable line.
func (h *head) line() string {
	s := strings.ToValidUTF8(string(h.b), "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}
