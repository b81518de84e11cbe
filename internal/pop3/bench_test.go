package pop3

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pennypost/internal/durable"
)

// BenchmarkRetrieve fetches a maildrop of 2,000 messages of 8 KiB in one go.
func BenchmarkRetrieve(b *testing.B) {
	const n = 2000
	dir := filepath.Join(b.TempDir(), "md")
	a := newAccount(b, dir, durable.OS{})
	m := "Subject: x\n\n" + strings.Repeat(strings.Repeat("y", 60)+"\n", 130)
	for i := range n - 3 {
		name := fmt.Sprintf("17%08d.M1P1.host,S=%d,W=%d:2,S", i, len(m), len(m)+strings.Count(m, "\n"))
		if err := os.WriteFile(filepath.Join(dir, "cur", name), []byte(m), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	s := a.server(b)
	var all bytes.Buffer
	all.WriteString(tokenLogin)
	for i := range n {
		fmt.Fprintf(&all, "RETR %d\r\n", i+1)
	}
	all.WriteString("QUIT\r\n")
	b.SetBytes(int64(n * len(m)))
	b.ReportAllocs()
	for b.Loop() {
		c, done := connect(b, b.Context(), s, stdio)
		go func() { _, _ = c.Write(all.Bytes()) }() // what comes back tells
		r := bufio.NewReaderSize(c, 256<<10)
		ends := 0
		for {
			l, err := r.ReadSlice('\n')
			if err != nil {
				break
			}
			if string(l) == ".\r\n" {
				ends++
			}
		}
		if ends != n {
			b.Fatalf("%d messages", ends)
		}
		<-done
	}
}
