//go:build soak

package mailbox

import "time"

const shareTime = time.Minute
