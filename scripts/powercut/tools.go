package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// toolCases are the programs people run: exit 0 is their promise.
func toolCases(p *programs, inSpool, inMaildir func(testcase)) []*testcase {
	if p.have["msend"] {
		inSpool(testcase{name: "msend", fs: "ext4", run: p.tool(p.bin, "msend", "-f", "alice@example.test", "bob@example.test")})
		inSpool(testcase{name: "msend", fs: "xfs", run: p.tool(p.bin, "msend", "-f", "alice@example.test", "bob@example.test")})
		inSpool(testcase{name: "msend without file sync", fs: "ext4", loss: true,
			run: p.tool(p.mutants[noFileSync], "msend", "-f", "alice@example.test", "bob@example.test")})
	}
	return nil
}

// tool runs one of our programs again and again, with a message on its standard input.
func (p *programs) tool(bin, name string, args ...string) runner {
	return func(ctx context.Context, c *testcase, dir string, ack func(token string)) error {
		config := filepath.Join(filepath.Dir(p.bin), "pennypost.toml")
		text := fmt.Sprintf("hostname = %q\ndomains = [\"example.test\"]\nspool = %q\nmaildirs = %q\n[limits]\nfree_space = 1\n", "mx.example.test", dir, dir)
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			return err
		}
		end := time.Now().Add(c.time)
		for i := 0; time.Now().Before(end); i++ {
			token := fmt.Sprintf("%s-%d", name, i)
			cmd := exec.CommandContext(ctx, filepath.Join(bin, name), append([]string{"--config", config}, args...)...)
			cmd.Stdin = bytes.NewReader(message(token))
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", name, err, out)
			}
			ack(token)
		}
		return nil
	}
}
