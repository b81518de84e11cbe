//go:build long

package mailbox

import "time"

const shareTime = time.Minute
