//go:build long && !soak

package mailbox

import "time"

const (
	crashFirst  = 0
	crashStride = 1
	crashSeeds  = uint64(2)
)

const (
	modelSeeds = 12
	modelSteps = 100

	damageStride = 11
)

const (
	renameMessages = 4000
	renameTime     = 10 * time.Second
	stormTime      = 10 * time.Second
)
