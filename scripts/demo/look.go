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

// queued checks that host's queue holds one message in the given state.
func (d *demo) queued(host, status string) error {
	out, err := d.shell(host, "mqueue list --json")
	if err != nil {
		return err
	}
	if strings.Count(out, "\n") != 1 {
		return fmt.Errorf("expected one message in the queue, got %q", out)
	}
	return want(out, status)
}

func (d *demo) empty(host string) error {
	out, err := d.shell(host, "mqueue list")
	if err == nil && out != "" {
		err = fmt.Errorf("expected an empty queue, got %q", out)
	}
	return err
}
