package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"pennypost/internal/resolve"
)

// CheckState looks at the state files in dir and changes nothing. A file that is not there yet is
// no fault.
func CheckState(dir string) error {
	for _, name := range []string{"rates", "greylist"} {
		t := &table{path: filepath.Join(dir, name), dry: true}
		if err := t.update(kindUser, nil, func(uint64, *bucket) {}); err != nil {
			return err
		}
		if t.f == nil {
			continue
		}
		if err := t.f.Close(); err != nil {
			return err
		}
	}
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !fi.IsDir():
		return fmt.Errorf("%s is not a directory", dir)
	case fi.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s can be written by others", dir)
	}
	return nil
}

// CheckRecipients reads a list of relay recipients and counts them.
func CheckRecipients(path string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	known, err := readRecipients(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return len(known), nil
}

// Check asks a list for the two addresses that tell whether it is alive: RFC 5782 §5 has every
// list name 127.0.0.2 and none 127.0.0.1.
func (z Zone) Check(ctx context.Context, dns DNS) error {
	for _, c := range []struct {
		ip   string
		want bool
	}{{"127.0.0.2", true}, {"127.0.0.1", false}} {
		addrs, err := dns.A(ctx, resolve.ReverseName(netip.MustParseAddr(c.ip), z.Name))
		listed, why := Zone{}.listed(listAnswer{addrs, err})
		switch {
		case err != nil:
			return err
		case why != "":
			return errors.New(why)
		case c.want && !listed:
			return errors.New("does not list 127.0.0.2, as every list does")
		case !c.want && listed:
			return errors.New("lists everything")
		}
	}
	return nil
}
