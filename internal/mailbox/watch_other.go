//go:build !linux

package mailbox

import "errors"

func newNotifier() (notifier, error) { return nil, errors.ErrUnsupported }
