//go:build long && !soak

package mailbox

import "time"

const shareTime = 10 * time.Second
