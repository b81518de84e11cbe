package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// mails reads all of an address's Maildir.
func (d *demo) mails(host, address string) ([]string, error) {
	user, domain, _ := strings.Cut(address, "@")
	names, err := filepath.Glob(filepath.Join(d.dir, host, "mail", domain, user, "new", "*"))
	if err != nil {
		return nil, err
	}
	var mails []string
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			return nil, err
		}
		mails = append(mails, string(b))
	}
	return mails, nil
}

// pids lists what runs for a host.
func (d *demo) pids(host string) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(d.dir, host, "pids"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for l := range strings.Lines(string(b)) {
		var pid int
		var name string
		if _, err := fmt.Sscan(l, &pid, &name); err != nil {
			return nil, fmt.Errorf("%s/pids: %q: %w", host, l, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func (d *demo) onlyMail(host, address string) ([]byte, error) {
	m, err := d.mails(host, address)
	if err != nil {
		return nil, err
	}
	if len(m) != 1 {
		return nil, fmt.Errorf("expected 1 mail of %s, got %d", address, len(m))
	}
	return []byte(m[0]), nil
}

// waiting checks that host's queue holds the message, and no other, after an attempt that was
// deferred.
func (d *demo) waiting(host, id string) error {
	out, err := d.shell(host, "mqueue list --json")
	if err != nil {
		return err
	}
	if strings.Count(out, "\n") != 1 {
		return fmt.Errorf("expected one message in the queue, got %q", out)
	}
	return want(out, `"id":"`+id+`"`, `"state":"waiting"`, `"attempts":1`)
}

func (d *demo) empty(host string) error {
	out, err := d.shell(host, "mqueue list")
	if err == nil && out != "" {
		err = fmt.Errorf("expected an empty queue, got %q", out)
	}
	return err
}
