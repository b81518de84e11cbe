//go:build !long

package mailbox

const (
	crashFirst  = 1
	crashStride = 3
	crashSeeds  = uint64(3)
)

const (
	modelSeeds = 6
	modelSteps = 25
)
