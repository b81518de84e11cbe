package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/password"
)

// asksProgram tells whether the password of a login is the program's business.
func (s *Service) asksProgram(sec *accounts.Secret, known bool) bool {
	return !known && len(s.o.Program) > 0 && sec.Address != ""
}

// verify does the work of checking one password, when it is its turn.
func (s *Service) verify(ctx context.Context, sec *accounts.Secret, known bool, plain string, from netip.Addr) (ok bool, err error) {
	if s.asksProgram(sec, known) {
		err = s.gate.do(ctx, func() (err error) {
			ok, err = ask(ctx, s.o.Program, sec.Address, plain, from)
			return err
		})
		return ok, err
	}
	err = s.gate.do(ctx, func() (err error) {
		ok, err = check(sec, plain)
		return err
	})
	switch {
	case errors.Is(err, auth.ErrBusy), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false, err
	case !known:
		return false, nil // the work was done all the same: nobody can tell by the time
	case err == nil:
		err = sec.Refused
	}
	return ok && err == nil, err
}

// check compares a password with what is stored: the hash, else the strongest SCRAM record.
func check(sec *accounts.Secret, plain string) (bool, error) {
	if sec.Hash != "" {
		return password.Verify(sec.Hash, plain)
	}
	for _, m := range []string{auth.SCRAMSHA256, auth.SCRAMSHA1} {
		if r, ok := sec.SCRAM[m]; ok {
			return checkRecord(m, r, plain)
		}
	}
	return false, fmt.Errorf("%w: no scheme of it is known", password.ErrScheme)
}

// Limits of a checkpassword program.
const (
	programTime = 30 * time.Second
	programMax  = 512 // octets of login, password and time together: what such programs read
)

// ask runs a checkpassword program: descriptor 3 gives it login, password and time, each ended by
// NUL; status 0 (of the program it then executes) says yes, 1 no, everything else not now.
func ask(ctx context.Context, program []string, login, plain string, from netip.Addr) (bool, error) {
	in := login + "\x00" + plain + "\x00" + strconv.FormatInt(time.Now().Unix(), 10) + "\x00"
	if plain == "" || len(in) > programMax || bytes.IndexByte([]byte(login+plain), 0) >= 0 {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		return false, err
	}
	defer r.Close()
	// A pipe holds more than programMax: the write does not wait for a reader.
	_, err = w.WriteString(in)
	if err = errors.Join(err, w.Close()); err != nil {
		return false, err
	}
	cmd := exec.CommandContext(ctx, program[0], program[1:]...)
	cmd.ExtraFiles = []*os.File{r}
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C"}
	if from.IsValid() {
		cmd.Env = append(cmd.Env, "TCPREMOTEIP="+from.String())
	}
	// A group of its own, so that the time-out ends what a script has started as well.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return true, nil
	case ctx.Err() != nil:
		return false, fmt.Errorf("%s: %w", program[0], ctx.Err())
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return false, nil
	}
	return false, fmt.Errorf("%s: %w", program[0], err)
}
