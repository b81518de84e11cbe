//go:build long

package mailbox

const (
	crashFirst  = 0
	crashStride = 1
	crashSeeds  = uint64(12)
)

const (
	modelSeeds = 100
	modelSteps = 200
)
