//go:build !long && !soak

package mailbox

import "time"

const shareTime = 1500 * time.Millisecond
