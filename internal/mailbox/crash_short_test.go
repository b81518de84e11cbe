//go:build !long && !soak

package mailbox

import "time"

const (
	crashFirst  = 1
	crashStride = 3
	crashSeeds  = uint64(3)
)

const (
	modelSeeds = 6
	modelSteps = 25

	damageStride = 53
)

const (
	renameMessages = 1000
	renameTime     = 500 * time.Millisecond
	stormTime      = time.Second
)
