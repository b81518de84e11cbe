package deliver

import (
	"context"
	"errors"
	"syscall"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
	"pennypost/internal/maildir"
)

// Error is a delivery that did not happen. Status is what is reported; Err, which may hold
// local paths, is for the log.
type Error struct {
	Status envelope.Status
	Err    error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Status.Reply
	}
	return e.Status.Reply + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

func deferral(code, reply string) error { return &Error{Status: envelope.Defer(code, reply)} }

func failure(code, reply string) error { return &Error{Status: envelope.Fail(code, reply)} }

func isFailure(err error) bool { return statusOf(err).Verdict == envelope.Failed }

// StatusOf is the status to report for an error of this package or of those below it.
func StatusOf(err error) envelope.Status { return statusOf(err) }

// statusOf turns an error into what is reported. Whatever the file system says is a deferral:
// no fault of ours bounces mail. The replies travel to senders and name no local path.
func statusOf(err error) envelope.Status {
	var de *Error
	var ae *accounts.Error
	switch {
	case errors.As(err, &de):
		return de.Status
	case errors.As(err, &ae):
		return ae.Status
	case errors.Is(err, syscall.EDQUOT):
		return envelope.Defer("4.2.2", "mailbox is over its disk quota")
	case errors.Is(err, syscall.ENOSPC):
		return envelope.Defer("4.3.1", "no space left on the mail store")
	case errors.Is(err, maildir.ErrNotMaildir):
		return envelope.Defer("4.2.1", "the mailbox is not there (mdeliver --create, or create = true, makes it)")
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EROFS):
		return envelope.Defer("4.2.0", "no right to write to the mailbox")
	case errors.Is(err, syscall.EFBIG):
		return envelope.Defer("4.3.1", "the file would become too large")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return envelope.Defer("4.3.0", "delivery was interrupted")
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return envelope.Defer("4.3.0", "delivery failed for now: "+errno.Error())
	}
	return envelope.Defer("4.3.0", "delivery failed for now")
}
