package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"pennypost/internal/durable"
)

// limit finds how many messages a second this disk can take when each is a durable file of its
// own, with nothing else to do, and when each goes on into a Maildir; and how close msmtpd comes
// to the first, alone, without anybody who delivers beside it.
//
// The rates fall while the row runs on an ext4 without a journal: it does not give the inode of
// a removed file away again for a minute or more, and looks at each of them whenever it needs one.
func (b *bench) limit() error {
	if !have("smtp-source") {
		b.skip("smtp-source is not installed (Debian: postfix)")
		return nil
	}
	p, incoming, err := b.startAlone()
	if err != nil {
		return err
	}
	b.extra = append(b.extra, p)
	for _, writers := range []int{1, 10, 50} {
		n := max(writers, b.n(300*min(writers, 5)))
		phys := b.out.line(fmt.Sprintf("limit, %d writers, the disk by itself", writers), "msg/s", nil)
		both := b.out.line(fmt.Sprintf("limit, %d writers, a file in the spool, one in a Maildir", writers), "msg/s", nil)
		ours := b.out.line(fmt.Sprintf("limit, %d sessions of msmtpd alone", writers), "msg/s", nil)
		for range b.rounds {
			v, err := b.physical(writers, n, false)
			if err != nil {
				return err
			}
			phys.add("ours", v)
			if v, err = b.physical(writers, n, true); err != nil {
				return err
			}
			both.add("ours", v)
			t, err := p.send(n, writers, 4096, true, "alice@example.test")
			if err == nil {
				err = sweep(incoming)
			}
			if err != nil {
				return err
			}
			ours.add("ours", float64(n)/t.Seconds())
		}
		ours.extra = fmt.Sprintf("%.0f %% of the disk by itself ", 100*median(ours.samples["ours"])/median(phys.samples["ours"]))
		b.out.flush()
	}
	return nil
}

// physical is messages a second when each is a file of 4.5 KiB that is made durable and removed
// again. With deliver a second file is made, in the way of a Maildir, before the first goes: the
// least that any mail system does between SMTP and Maildir that loses nothing.
func (b *bench) physical(writers, n int, deliver bool) (float64, error) {
	dir := filepath.Join(b.dir, "physical")
	defer os.RemoveAll(dir)
	for _, sub := range []string{"in", "tmp", "new"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return 0, err
		}
	}
	in, err := durable.OpenDir(filepath.Join(dir, "in"))
	if err != nil {
		return 0, err
	}
	defer in.Close()
	box, err := durable.OpenDir(filepath.Join(dir, "new"))
	if err != nil {
		return 0, err
	}
	defer box.Close()
	errs := make([]error, writers)
	var wg sync.WaitGroup
	begin := time.Now()
	for w := range writers {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += writers {
				name := strconv.Itoa(i)
				first, tmp, dst := filepath.Join(dir, "in", name), filepath.Join(dir, "tmp", name), filepath.Join(dir, "new", name)
				errs[w] = writeOne(first, in, nil)
				if deliver && errs[w] == nil {
					errs[w] = writeOne(tmp, box, func() error { return durable.Rename(tmp, dst) })
				}
				errs[w] = errors.Join(errs[w], os.Remove(first))
			}
		})
	}
	wg.Wait()
	return float64(n) / time.Since(begin).Seconds(), errors.Join(errs...)
}

func writeOne(path string, d *durable.Dir, name func() error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 4608))
	if err == nil {
		err = d.Commit(f, name)
	}
	return errors.Join(err, f.Close())
}

// startAlone runs one msmtpd whose spool nobody empties.
func (b *bench) startAlone() (*peer, string, error) {
	dir := filepath.Join(b.dir, "alone")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, "", err
	}
	conf := filepath.Join(dir, "pennypost.toml")
	text := fmt.Sprintf("hostname = \"mx.example.test\"\ndomains = [\"example.test\"]\nspool = %q\nlog = %q\naccounts.users = %q\naccounts.aliases = []\n",
		filepath.Join(dir, "spool"), "file:"+filepath.Join(dir, "log"), filepath.Join(dir, "users"))
	if err := errors.Join(os.WriteFile(conf, []byte(text), 0o644), os.WriteFile(filepath.Join(dir, "users"), []byte("alice@example.test::::::\n"), 0o644)); err != nil {
		return nil, "", err
	}
	if out, err := exec.Command(filepath.Join(b.bin, "mqueue"), "--config", conf, "init").CombinedOutput(); err != nil {
		return nil, "", fmt.Errorf("mqueue init: %w: %s", err, out)
	}
	port, err := freePort()
	if err != nil {
		return nil, "", err
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	cmd := exec.Command(filepath.Join(b.bin, "msmtpd"), "--config", conf, "--listen", addr+"=mx")
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	p := &peer{name: "alone", addr: addr, stop: func() error {
		err := cmd.Process.Signal(syscall.SIGTERM)
		return errors.Join(err, cmd.Wait())
	}}
	for begin := time.Now(); !listening(addr); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			return nil, "", errors.Join(fmt.Errorf("msmtpd does not serve: %s", said.String()), p.stop())
		}
	}
	return p, filepath.Join(dir, "spool", "incoming"), nil
}

// sweep removes what a run left.
func sweep(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	for _, n := range names {
		err = errors.Join(err, os.Remove(n))
	}
	return err
}
