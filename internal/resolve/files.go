package resolve

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// watched is a file that is parsed when it is first needed and again when it has changed.
type watched[T any] struct {
	path  string
	parse func(text string) T

	mu    sync.Mutex
	mtime time.Time
	size  int64
	read  bool
	value T
}

// get returns the parsed file; a missing file is an empty one.
func (w *watched[T]) get() (T, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var none T
	if w.path == "" {
		return none, nil
	}
	st, err := os.Stat(w.path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	if w.read && st.ModTime().Equal(w.mtime) && st.Size() == w.size {
		return w.value, nil
	}
	text, err := os.ReadFile(w.path)
	if err != nil {
		return none, err
	}
	w.value, w.mtime, w.size, w.read = w.parse(string(text)), st.ModTime(), st.Size(), true
	return w.value, nil
}

// servers are those to ask, as host:port.
func (r *Resolver) servers() ([]string, error) {
	if len(r.o.Servers) > 0 {
		return r.o.Servers, nil
	}
	s, err := r.conf.get()
	if err != nil {
		return nil, err
	}
	if len(s) == 0 && r.o.ResolvConf != "" {
		s = parseResolvConf("") // the file is missing
	}
	if len(s) == 0 {
		return nil, errors.New("no DNS server is configured")
	}
	return s, nil
}

// parseResolvConf takes the servers of resolv.conf(5). Search lists do not count: names in
// addresses are complete.
func parseResolvConf(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if ip, err := netip.ParseAddr(f[1]); err == nil && len(out) < 3 {
			out = append(out, net.JoinHostPort(ip.String(), "53"))
		}
	}
	if len(out) == 0 { // resolv.conf(5): the server on the local machine
		out = []string{"127.0.0.1:53"}
	}
	return out
}

func (r *Resolver) inHosts(name string) ([]netip.Addr, error) {
	m, err := r.hosts.get()
	if err != nil {
		return nil, err
	}
	return m[name], nil
}

// parseHosts reads hosts(5) lines: an address and its names. Lines of another form are passed
// over, as the C library does.
func parseHosts(text string) map[string][]netip.Addr {
	m := map[string][]netip.Addr{}
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		ip, err := netip.ParseAddr(f[0])
		if err != nil {
			continue
		}
		for _, n := range f[1:] {
			n = lower(n)
			m[n] = append(m[n], ip.Unmap())
		}
	}
	return m
}
