//go:build long

package mailbox

const (
	crashFirst  = 0
	crashStride = 1
	crashSeeds  = uint64(12)
)
