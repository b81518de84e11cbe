package accounts

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkLoad reads a users file of a hundred thousand, as every process does once.
func BenchmarkLoad(b *testing.B) {
	var s strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&s, "user%d@example.test::5000:5000::/var/vmail/user%d::userdb_quota_rule=*:storage=1G\n", i, i)
	}
	a := &Accounts{o: Options{Domains: []string{"example.test"}}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.parseUsers("users", s.String(), 0); err != nil {
			b.Fatal(err)
		}
	}
}
