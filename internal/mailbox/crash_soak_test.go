//go:build soak

package mailbox

import "time"

const (
	crashFirst  = 0
	crashStride = 1
	crashSeeds  = uint64(12)
)

const (
	modelSeeds = 100
	modelSteps = 200

	damageStride = 1
)

const (
	renameMessages = 20_000
	renameTime     = time.Minute
	stormTime      = time.Minute
)
