package submit

import (
	"io"
	"runtime"
	"strings"
	"testing"

	"pennypost/internal/envelope"
)

// A header of the shortest fields there are takes little more than its own size, unfinished and
// finished: strangers send as many at once as they have connections.
func TestShortFieldsCostNoMemory(t *testing.T) {
	block := []byte(strings.Repeat("X:\n", 32<<10/3))
	for _, end := range []string{"", "\nbody\n"} {
		m, err := New(Options{Store: discard{}, Hostname: "host.test"}).Begin(&envelope.Envelope{To: []envelope.Recipient{{Addr: "b@x.test"}}}, Fixup{})
		if err != nil {
			t.Fatal(err)
		}
		var before, after, kept runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for n := 0; n+len(block) < maxHeader; n += len(block) {
			if _, err := m.Write(block); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.WriteString(m, end); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		runtime.GC()
		runtime.ReadMemStats(&kept)
		retained := int64(kept.HeapAlloc) - int64(before.HeapAlloc)
		if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 || end == "" && got > 4<<20 { // the race detector makes pools forget at random
			t.Errorf("%d octets allocated for a header of 1 MiB and %q", got, end)
		}
		if end == "" && retained > maxHeader+holdSize+64<<10 || end != "" && retained > 128<<10 {
			t.Errorf("%d octets kept of a header of 1 MiB and %q", retained, end)
		}
		if err := m.Abort(); err != nil {
			t.Fatal(err)
		}
	}
}
