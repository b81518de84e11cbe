package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"pennypost/internal/cli"
	"pennypost/internal/config"
)

// finding is one line of the output.
type finding struct {
	Level string `json:"level"` // ok, warn or fail
	Thing string `json:"thing"`
	What  string `json:"what"`
	Todo  string `json:"todo,omitempty"`
}

// checker prints findings as they come and remembers the worst.
type checker struct {
	w           io.Writer
	json, quiet bool
	failed      bool
	err         error // of the output
}

func (k *checker) print(f finding) {
	if k.quiet && f.Level == "ok" || k.err != nil {
		return
	}
	if k.json {
		k.err = cli.PrintJSON(k.w, f)
		return
	}
	line := fmt.Sprintf("%-4s  %s: %s", f.Level, f.Thing, f.What)
	if f.Todo != "" {
		line += ": " + f.Todo
	}
	_, k.err = fmt.Fprintln(k.w, cli.Escape(line, 0))
}

func (k *checker) ok(thing, what string)         { k.print(finding{"ok", thing, what, ""}) }
func (k *checker) warn(thing, what, todo string) { k.print(finding{"warn", thing, what, todo}) }
func (k *checker) fail(thing, what, todo string) {
	k.failed = true
	k.print(finding{"fail", thing, what, todo})
}

// all looks at everything, in the order of the file.
func (k *checker) all(ctx context.Context, cfg *config.Config, dns bool) {
	k.file(cfg)
	k.names(cfg)
	k.spool(cfg)
	k.maildirs(cfg)
	k.log(cfg)
	k.accounts(ctx, cfg)
	k.tls(cfg)
	k.passwords(ctx, cfg)
	k.logins(cfg)
	k.sessions(ctx, cfg)
	k.pop3(cfg)
	k.relay(cfg)
	k.policy(cfg)
	k.workers(cfg)
	k.sockets(ctx, cfg)
	k.filters(ctx, cfg)
	if dns {
		k.dns(ctx, cfg)
	}
}

func (k *checker) file(cfg *config.Config) {
	if cfg.Path == "" {
		k.warn("configuration", "no file found, everything has its default", "write "+config.SystemFile+", see mconf(5)")
		return
	}
	info, err := os.Stat(cfg.Path)
	switch {
	case err != nil:
		k.fail("configuration", err.Error(), "make it readable")
	case info.Mode().Perm()&0o022 != 0:
		k.fail("configuration "+cfg.Path, "can be written by others", "chmod go-w "+cfg.Path)
	case cfg.Mode == config.System && info.Mode().Perm()&0o004 == 0:
		k.warn("configuration "+cfg.Path, "cannot be read by everybody, so msend of other users does not find the spool or socket",
			"chmod a+r it: it holds no secrets")
	default:
		k.ok("configuration "+cfg.Path, cfg.Mode+" mode")
	}
	if cfg.Clock != "" {
		k.warn("clock", "set to "+cfg.Clock+", for tests", "remove the key")
	}
}

func (k *checker) names(cfg *config.Config) {
	switch {
	case !strings.Contains(cfg.Hostname, "."):
		k.warn("hostname "+cfg.Hostname, "is not fully qualified: other hosts may refuse it", "set hostname to a name such as mail.example.org")
	default:
		k.ok("hostname", cfg.Hostname)
	}
	k.ok("domains", strings.Join(cfg.Domains, " "))
	for _, tool := range []string{"mqueue", "mdeliver", "mrelay", "msmtpd"} {
		if _, err := findTool(tool); err != nil {
			k.fail("program "+tool, "not found beside mcheck nor in PATH", "install it")
		}
	}
}

// findTool looks where mqueue looks for its workers: beside the own binary, then in PATH.
func findTool(name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		p := filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return p, nil
		}
	}
	return exec.LookPath(name)
}

func (k *checker) log(cfg *config.Config) {
	path, ok := strings.CutPrefix(cfg.Log, "file:")
	if !ok {
		return
	}
	dir := filepath.Dir(path)
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		k.fail("log "+path, err.Error(), "mkdir "+dir)
	case info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0:
		k.fail("log "+path, "its directory can be written by everybody", "chmod o-w "+dir)
	default:
		k.ok("log", path)
	}
}

// secret looks at a file that holds a password or a key.
func (k *checker) secret(thing, path string) bool {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		k.unseen(thing+" "+path, err)
	case err != nil:
		k.fail(thing+" "+path, cause(err), "make the file, or correct the name")
	case info.Mode().Perm()&0o007 != 0:
		k.fail(thing+" "+path, "can be read by everybody", "chmod o-rwx "+path)
	default:
		return true
	}
	return false
}

// unseen is a finding about the one who looks.
func (k *checker) unseen(thing string, err error) {
	k.warn(thing, "cannot be seen by this user ("+cause(err)+")", "run mcheck as the user who needs it, or as root")
}

// cause is an error without the path, which stands before it already.
func cause(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}
