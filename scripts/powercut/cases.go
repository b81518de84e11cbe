package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// places are the file systems every right program is tried on. data=writeback takes away the
// order between a file's bytes and its name that plain ext4 adds on its own. ext4's fast_commit
// is not among them: with ten writers some of its crash images cannot be mounted at all,
// whatever the program does, and a file that is synced may lose its name. Therefore a
// submitter who cannot sync the directory refuses it (spool.Open).
var places = []testcase{{fs: "ext4"}, {fs: "ext4", mount: "data=writeback"}, {fs: "xfs"}}

// cases lists what is tried.
func cases(p *programs) []*testcase {
	var out []*testcase
	add := func(c testcase) {
		if _, err := exec.LookPath("mkfs." + c.fs); err != nil {
			fmt.Printf("skipped: mkfs.%s is not installed\n", c.fs)
			return
		}
		c.time, c.cuts = 250*time.Millisecond, 4
		if c.loss { // one cut may miss the newest message; so many do not
			c.cuts = 10
		}
		out = append(out, &c)
	}
	inSpool := func(c testcase) {
		c.prepare, c.scan = prepareSpool, scanSpool
		add(c)
	}
	inMaildir := func(c testcase) {
		c.prepare, c.scan = prepareMaildir, scanMaildir
		add(c)
	}
	for _, at := range places {
		inSpool(testcase{name: "spool, 10 writers", fs: at.fs, mount: at.mount, run: p.self("spool", 10)})
		inSpool(testcase{name: "spool, other uid", fs: at.fs, mount: at.mount, blind: true, run: p.self("spool", 1)})
		if at.mount == "" {
			inMaildir(testcase{name: "tmp, link, new", fs: at.fs, run: p.self("publish", 1)})
		}
		inMaildir(testcase{name: "tmp, rename, new, 10 writers", fs: at.fs, mount: at.mount, run: p.self("rename", 10)})
		inMaildir(testcase{name: "Maildir, 10 writers", fs: at.fs, mount: at.mount, run: p.self("maildir", 10)})
		inMaildir(testcase{name: "10 Maildirs, a writer each", fs: at.fs, mount: at.mount, run: p.self("maildirs", 10)})
		// What durable.NamesWithFile says of these file systems: the directory's sync is not needed.
		inSpool(testcase{name: "spool without dir sync", fs: at.fs, mount: at.mount, run: p.mutant(noDirSync, "spool", 10)})
		inMaildir(testcase{name: "10 Maildirs without dir sync", fs: at.fs, mount: at.mount, run: p.mutant(noDirSync, "maildirs", 10)})
	}
	for _, fs := range []string{"ext4", "xfs"} {
		inMaildir(testcase{name: "wrong: no file sync", fs: fs, run: p.self("nofile", 1), loss: true})
		inMaildir(testcase{name: "wrong: no directory sync", fs: fs, run: p.self("nodir", 1), loss: true})
	}
	inSpool(testcase{name: "durable without file sync", fs: "ext4", run: p.mutant(noFileSync, "spool", 1), loss: true})
	inSpool(testcase{name: "durable without file sync", fs: "xfs", blind: true, run: p.mutant(noFileSync, "spool", 1), loss: true})
	inMaildir(testcase{name: "durable without file sync", fs: "ext4", run: p.mutant(noFileSync, "publish", 1), loss: true})
	inMaildir(testcase{name: "durable without dir sync", fs: "ext4", run: p.mutant(noDirSync, "publish", 1), loss: true})
	inMaildir(testcase{name: "durable without dir sync", fs: "xfs", run: p.mutant(noDirSync, "rename", 1), loss: true})
	inMaildir(testcase{name: "10 Maildirs without file sync", fs: "ext4", run: p.mutant(noFileSync, "maildirs", 10), loss: true})
	inMaildir(testcase{name: "10 Maildirs without file sync", fs: "xfs", run: p.mutant(noFileSync, "maildirs", 10), loss: true})
	// On xfs too few cuts hit the moment between a name and its bytes.
	inMaildir(testcase{name: "10 Maildirs without write-out", fs: "ext4", run: p.mutant(noWriteOut, "maildirs", 10), loss: true})
	toolCases(p, inSpool, inMaildir)
	return out
}

// self runs our own writer.
func (p *programs) self(mode string, writers int) runner { return writerOf(p.writer, mode, writers) }

// mutant runs our own writer, built with a crippled internal/durable.
func (p *programs) mutant(m mutation, mode string, writers int) runner {
	return writerOf(p.mutants[m]+"/powercut", mode, writers)
}

type runner = func(ctx context.Context, c *testcase, dir string, ack func(token string)) error

func writerOf(path, mode string, writers int) runner {
	return func(ctx context.Context, c *testcase, dir string, ack func(token string)) error {
		cmd := exec.CommandContext(ctx, path, "writer", mode, dir, fmt.Sprint(c.time.Seconds()), strconv.Itoa(writers))
		cmd.Stderr = os.Stderr
		cmd.Dir = "/"
		if c.blind {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: otherID, Gid: otherID}}
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			// Stamped when read: perhaps late, never early, so there are no false alarms.
			if token, ok := strings.CutPrefix(sc.Text(), "ACK "); ok {
				ack(token)
			}
		}
		return errors.Join(sc.Err(), cmd.Wait())
	}
}
