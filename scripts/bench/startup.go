package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// startUp measures exec to exit. Two foreign programs say what the machine can do: true(1),
// in C, and a Go program that prints one line.
func (b *bench) startUp() error {
	if err := b.up(); err != nil {
		return err
	}
	hello := filepath.Join(b.dir, "hello")
	if err := buildHello(hello); err != nil {
		return err
	}
	type probe struct {
		name   string
		args   []string
		budget bool
	}
	probes := []probe{{"true (C)", []string{"/bin/true"}, false}, {"fmt.Println (Go)", []string{hello}, false}}
	tools, err := filepath.Glob(filepath.Join(b.bin, "m*"))
	if err != nil {
		return err
	}
	for _, t := range tools {
		probes = append(probes, probe{filepath.Base(t) + " --version", []string{t, "--version"}, true})
	}
	probes = append(probes, probe{"mqueue list, empty queue", []string{filepath.Join(b.bin, "mqueue"), "list"}, true})
	all := make([][]float64, len(probes))
	// One of each in turn, so that a slow moment of the machine hits all alike.
	for range b.n(210) {
		for i, p := range probes {
			ms, err := b.execOnce(p.args)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			all[i] = append(all[i], ms)
		}
	}
	for i, p := range probes {
		slices.Sort(all[i])
		l := b.out.line("start-up, "+p.name, "ms", nil)
		if p.budget {
			l.budget = &budget{less: true, abs: 2.6}
		}
		l.samples["ours"] = all[i]
		l.extra = fmt.Sprintf("p95 %.2f ms of %d runs", all[i][len(all[i])*95/100], len(all[i]))
	}
	return nil
}

// execOnce starts a program without anything between it and the kernel.
func (b *bench) execOnce(args []string) (float64, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	attr := &os.ProcAttr{Env: b.peers[0].env, Files: []*os.File{null, null, os.Stderr}}
	begin := time.Now()
	p, err := os.StartProcess(args[0], args, attr)
	if err != nil {
		return 0, err
	}
	st, err := p.Wait()
	ms := float64(time.Since(begin).Microseconds()) / 1000
	if err == nil && !st.Success() {
		err = fmt.Errorf("%v", st)
	}
	return ms, err
}

func buildHello(out string) error {
	src := out + ".go"
	text := "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(\"hello\") }\n"
	if err := os.WriteFile(src, []byte(text), 0o644); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", out, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, msg)
	}
	return nil
}
