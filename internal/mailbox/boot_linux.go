package mailbox

import (
	"hash/crc64"
	"os"
)

// bootID tells one run of the machine from the next: what was written without a sync in an
// earlier one may be lost.
func bootID() uint64 {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return 1 // the same for ever: the index is then trusted after a power cut
	}
	return crc64.Checksum(b, crc64.MakeTable(crc64.ECMA)) | 1
}
