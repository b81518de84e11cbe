package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// micro runs the benchmarks of the packages: nanoseconds and allocations an operation.
func (b *bench) micro() error {
	cmd := exec.Command("go", "test", "-tags", "urfave_cli_no_docs", "-run", "^$", "-bench", ".", "-benchmem", "-benchtime", "50ms", "./internal/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	for l := range strings.Lines(string(out)) {
		if strings.HasPrefix(l, "Benchmark") || strings.HasPrefix(l, "pkg:") || strings.HasPrefix(l, "FAIL") {
			fmt.Print(l)
		}
	}
	return err
}
