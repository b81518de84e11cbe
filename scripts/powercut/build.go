package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const tags = "urfave_cli_no_docs"

// mutation takes one sync out of internal/durable.
type mutation struct{ name, from, to string }

var (
	noFileSync = mutation{"nofile", "func syncFile(f File) error { return f.Sync() }", "func syncFile(File) error { return nil }"}
	noWriteOut = mutation{"nowriteout", "\treturn writeOutFile(f)\n", "\treturn nil\n"}
	noDirSync  = mutation{"nodir", "func syncDirFile(f File) error { return f.Sync() }", "func syncDirFile(File) error { return nil }"}
)

// tools are the real programs tried, those that exist.
var tools = []string{"msend", "mdeliver", "msmtpd"}

// programs says where everything is that is run.
type programs struct {
	writer  string
	bin     string              // directory of the tools
	mutants map[mutation]string // directory of powercut and the tools, crippled
	have    map[string]bool     // which tools exist
}

// build puts our writer, the tools and their crippled twins below dir, where every uid can
// execute them.
func build(ctx context.Context, dir string) (*programs, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOMOD: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(out)))
	p := &programs{bin: filepath.Join(dir, "bin"), mutants: map[mutation]string{}, have: map[string]bool{}}
	p.writer = filepath.Join(p.bin, "powercut")
	pkgs := []string{"./scripts/powercut"}
	for _, t := range tools {
		if _, err := os.Stat(filepath.Join(root, "cmd", t)); err == nil {
			p.have[t] = true
			pkgs = append(pkgs, "./cmd/"+t)
		}
	}
	if err := gobuild(ctx, root, p.bin, "", pkgs); err != nil {
		return nil, err
	}
	for _, m := range []mutation{noFileSync, noDirSync, noWriteOut} {
		p.mutants[m] = filepath.Join(dir, m.name)
		overlay, err := m.overlay(root, dir)
		if err != nil {
			return nil, err
		}
		if err := gobuild(ctx, root, p.mutants[m], overlay, pkgs); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func gobuild(ctx context.Context, root, bin, overlay string, pkgs []string) error {
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	args := []string{"build", "-tags", tags, "-o", bin + "/"}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, pkgs...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// overlay writes the crippled source and the file that tells the compiler to take it.
func (m mutation) overlay(root, dir string) (string, error) {
	path := filepath.Join(root, "internal", "durable", "sync.go")
	src, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if strings.Count(string(src), m.from) != 1 {
		return "", fmt.Errorf("%s: the line %q is not there: the mutation %s has to follow it", path, m.from, m.name)
	}
	cut := filepath.Join(dir, m.name+".go")
	b, err := json.Marshal(map[string]map[string]string{"Replace": {path: cut}})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, m.name+".json")
	return file, errors.Join(
		os.WriteFile(cut, []byte(strings.Replace(string(src), m.from, m.to, 1)), 0o600),
		os.WriteFile(file, b, 0o600))
}
