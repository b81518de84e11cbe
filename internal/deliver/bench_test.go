package deliver

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pennypost/internal/accounts"
	"pennypost/internal/envelope"
	"pennypost/internal/maildir"
	"pennypost/internal/worker"
)

// BenchmarkHandle is one durable delivery of 4 KiB after the other; with -cpu the same from
// several goroutines into one Maildir.
func BenchmarkHandle(b *testing.B) {
	dir := b.TempDir()
	write := func(name, data string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(data), 0o600); err != nil {
			b.Fatal(err)
		}
		return p
	}
	acc, err := accounts.Open(accounts.Options{
		Domains: []string{"a.test"}, Maildirs: dir + "/mail/%d/%u", Subaddress: "+",
		Users: write("users", "ann@a.test:\n"), Aliases: []string{write("aliases", "root: ann\n")},
	})
	if err != nil {
		b.Fatal(err)
	}
	d := New(Options{Accounts: acc, Maildirs: maildir.NewSet(maildir.Options{Create: true}), UID: os.Geteuid()})
	body := "Subject: x\n\n" + strings.Repeat("a line of text that is not very long\n", 110)
	f, err := os.Open(write("spooled", body))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.ReportAllocs()
	b.SetParallelism(5)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			rep := d.Handle(context.Background(), &worker.Request{From: "s@s.test", To: []envelope.Recipient{{Addr: "ann@a.test"}}, Size: int64(len(body))}, f)
			if rep.Results[0].Verdict != envelope.Delivered {
				b.Fatal(rep.Results[0])
			}
		}
	})
}
