//go:build !long

package mailbox

import "time"

const shareTime = 1500 * time.Millisecond
