package cli

import (
	"errors"
	"fmt"
	"strings"

	"pennypost/internal/envelope"
)

// statusError carries the exit status a tool ends with.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// ExitStatus is what Status looks for; error types of other packages may have it too.
func (e *statusError) ExitStatus() int { return e.status }

// Exit returns an error with which the tool prints err and ends with the exit status. A nil err
// prints nothing. Exit(0, nil) is nil.
func Exit(status int, err error) error {
	if status == envelope.ExOK && err == nil {
		return nil
	}
	return &statusError{status, err}
}

// Usage returns the error of wrong flags or operands, exit status 64.
func Usage(format string, args ...any) error {
	return &statusError{envelope.ExUsage, fmt.Errorf(format, args...)}
}

// Status is the exit status for err: that of the outermost error in its chain that knows one.
// An error that knows none is 75: what is not understood is tried again, never given up.
func Status(err error) int {
	if err == nil {
		return envelope.ExOK
	}
	var coder interface{ ExitStatus() int }
	if errors.As(err, &coder) {
		return coder.ExitStatus()
	}
	if errors.Is(err, envelope.ErrAddress) {
		return envelope.ExDataErr
	}
	return envelope.ExTempFail
}

// oneLine keeps a diagnostic on one line, whatever a library or the remote side put into it.
func oneLine(s string) string {
	s = strings.TrimRight(s, "\n")
	if strings.Contains(s, "\n") {
		s = strings.ReplaceAll(s, "\n", "; ")
	}
	return Escape(s, 0)
}
