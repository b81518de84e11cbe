// Package maildir delivers into Maildirs so that a delivered message survives a power cut. It
// hides names, sizes in names, the order of syncs, and which directories are kept open to share
// directory syncs between deliveries.
package maildir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"pennypost/internal/durable"
)

// ErrNotMaildir is wrapped when a Maildir, or a part of it, is missing and may not be made.
var ErrNotMaildir = errors.New("not a maildir")

// tmpAge is how old a file in tmp must be to be taken for a leftover: maildir(5)'s 36 hours.
const tmpAge = 36 * time.Hour

// maxOpen bounds the Maildirs kept open between deliveries.
const maxOpen = 128

// Options says how Maildirs are written. The zero value works.
type Options struct {
	Host   string           // in file names; default "localhost"
	Now    func() time.Time // in file names; default time.Now
	Create bool             // make a Maildir that is missing
	Sweep  bool             // remove leftovers in tmp when a Maildir is opened
	FS     durable.FS       // default the operating system's
}

// Set opens Maildirs by path and keeps them open while they are in use, so that deliveries at
// the same time share directory syncs. It may be used by many goroutines.
type Set struct {
	o    Options
	name *Namer
	bufs sync.Pool

	mu   sync.Mutex
	open map[string]*Maildir
	tick uint64
}

// NewSet returns an empty Set.
func NewSet(o Options) *Set {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.FS == nil {
		o.FS = durable.OS{}
	}
	s := &Set{o: o, name: NewNamer(o.Host, o.Now), open: map[string]*Maildir{}}
	s.bufs.New = func() any { b := make([]byte, 64<<10); return &b }
	return s
}

// Maildir is one Maildir of a Set.
type Maildir struct {
	set  *Set
	path string
	dir  *durable.Dir // new/
	info fs.FileInfo  // of new/, to notice that another directory took its place
	// change is held while names are made in tmp/ and moved. The kernel lets one do that at a
	// time anyway; threads that wait for it there spin.
	change sync.Mutex

	// guarded by set.mu
	refs int
	used uint64
	dead bool
}

// Path is the Maildir's directory.
func (m *Maildir) Path() string { return m.path }

// Open returns the Maildir at path; Close it after use. With Options.Create a missing one is
// made; its parent directories too.
func (s *Set) Open(path string) (*Maildir, error) {
	s.mu.Lock()
	if m := s.open[path]; m != nil {
		m.refs++
		s.mu.Unlock()
		return m, nil
	}
	s.mu.Unlock()
	m, err := s.openNew(path)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.open[path]; other != nil { // somebody was faster
		other.refs++
		return other, m.dir.Close()
	}
	m.refs = 1
	s.open[path] = m
	return m, s.evict()
}

func (s *Set) openNew(path string) (*Maildir, error) {
	m := &Maildir{set: s, path: path}
	var err error
	m.dir, err = durable.OpenDirOn(s.o.FS, filepath.Join(path, "new"))
	if errors.Is(err, fs.ErrNotExist) && s.o.Create {
		if err = Create(s.o.FS, path); err == nil {
			m.dir, err = durable.OpenDirOn(s.o.FS, filepath.Join(path, "new"))
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w (--create makes one): %w", path, ErrNotMaildir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open maildir: %w", err)
	}
	if m.info, err = s.o.FS.Lstat(filepath.Join(path, "new")); err != nil {
		return nil, errors.Join(fmt.Errorf("open maildir: %w", err), m.dir.Close())
	}
	if s.o.Sweep {
		// Ignored: leftovers harm nobody, and the next opening tries again.
		_ = Sweep(path, time.Now())
	}
	return m, nil
}

// Create makes the Maildir at path, or what is missing of it, durably and for its owner alone.
func Create(fsys durable.FS, path string) error {
	for _, sub := range []string{"tmp", "cur", "new"} { // new last: Open looks for that one
		if err := durable.MkdirAllOn(fsys, filepath.Join(path, sub), 0o700); err != nil {
			return fmt.Errorf("make maildir: %w", err)
		}
	}
	return nil
}

// Close gives the Maildir back; the Set keeps it open for the next delivery.
func (m *Maildir) Close() error {
	s := m.set
	s.mu.Lock()
	defer s.mu.Unlock()
	m.refs--
	s.tick++
	m.used = s.tick
	if m.dead && m.refs == 0 {
		return m.dir.Close()
	}
	return nil
}

// evict closes the longest unused Maildir when too many are open. s.mu is held.
func (s *Set) evict() error {
	if len(s.open) <= maxOpen {
		return nil
	}
	var old *Maildir
	for _, m := range s.open {
		if m.refs == 0 && (old == nil || m.used < old.used) {
			old = m
		}
	}
	if old == nil {
		return nil
	}
	delete(s.open, old.path)
	return old.dir.Close()
}

// forget drops a Maildir whose directory was replaced.
func (m *Maildir) forget() {
	m.set.mu.Lock()
	defer m.set.mu.Unlock()
	if m.set.open[m.path] == m {
		delete(m.set.open, m.path)
	}
	m.dead = true
}

// Deliver writes header and then r as one message with LF line ends and returns its name in
// new/. When it returns nil, message and name are on stable storage.
func (m *Maildir) Deliver(ctx context.Context, header []byte, r io.Reader) (string, error) {
	name, err := m.deliver(ctx, header, r)
	if err != nil {
		return "", fmt.Errorf("deliver to %s: %w", m.path, err)
	}
	return name, nil
}

func (m *Maildir) deliver(ctx context.Context, header []byte, r io.Reader) (string, error) {
	fsys := m.set.o.FS
	base := m.set.name.Base()
	tmp := filepath.Join(m.path, "tmp", base)
	f, err := m.openTmp(tmp)
	if err != nil {
		return "", err
	}
	size, wire, err := m.set.copy(ctx, f, header, r)
	if err != nil {
		return "", errors.Join(err, f.Close(), fsys.Remove(tmp))
	}
	name := WithSizes(base, size, wire)
	dst := filepath.Join(m.path, "new", name)
	named := false
	err = m.dir.Commit(f, func() error {
		m.change.Lock()
		err := fsys.RenameNew(tmp, dst)
		m.change.Unlock()
		if named = err == nil; named {
			err = m.syncReplaced()
		}
		return err
	})
	err = errors.Join(err, f.Close())
	switch {
	case err != nil && named:
		// The answer will be a deferral and the message come again: take this copy back, as
		// far as that is possible.
		return "", errors.Join(err, fsys.Remove(dst))
	case err != nil:
		return "", errors.Join(err, fsys.Remove(tmp))
	}
	m.addSize(size)
	return name, nil
}

// openTmp creates the file in tmp, and tmp itself when somebody cleaned it away.
func (m *Maildir) openTmp(tmp string) (durable.File, error) {
	fsys := m.set.o.FS
	m.change.Lock()
	defer m.change.Unlock()
	f, err := fsys.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if !m.set.o.Create {
		return nil, fmt.Errorf("%w: %w", ErrNotMaildir, err)
	}
	if err := Create(fsys, m.path); err != nil {
		return nil, err
	}
	return fsys.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// syncReplaced syncs new/ when another directory has taken the place of the one that was opened
// earlier: the name is in that one.
func (m *Maildir) syncReplaced() error {
	p := filepath.Join(m.path, "new")
	now, err := m.set.o.FS.Lstat(p)
	if err != nil || os.SameFile(m.info, now) {
		return err
	}
	m.forget()
	return durable.SyncDirOn(m.set.o.FS, p)
}

// copy writes header and r to f and counts octets as stored and as they are with CRLF.
func (s *Set) copy(ctx context.Context, f io.Writer, header []byte, r io.Reader) (size, wire int64, err error) {
	bp := s.bufs.Get().(*[]byte)
	defer s.bufs.Put(bp)
	buf := *bp
	last := byte(0)
	fill := copy(buf, header)
	header = header[fill:]
	for {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		for fill < len(buf) && len(header) > 0 { // a header larger than the buffer
			n := copy(buf[fill:], header)
			fill, header = fill+n, header[n:]
		}
		n, rerr := readFull(r, buf[fill:])
		b := buf[:fill+n]
		if len(b) > 0 {
			size += int64(len(b))
			bare := bytes.Count(b, []byte{'\n'}) - bytes.Count(b, []byte("\r\n"))
			if b[0] == '\n' && last == '\r' {
				bare--
			}
			wire += int64(len(b) + bare)
			last = b[len(b)-1]
			if _, err := f.Write(b); err != nil {
				return 0, 0, err
			}
		}
		if rerr == io.EOF {
			return size, wire, nil
		}
		if rerr != nil {
			return 0, 0, rerr
		}
		fill = 0
	}
}

// readFull fills b; io.EOF means that r ended properly. Unlike io.ReadFull it does not turn
// that into ErrUnexpectedEOF, which a reader uses to say that its message is cut short.
func readFull(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var k int
		k, err = r.Read(b[n:])
		n += k
	}
	return n, err
}

// addSize appends a delivery to maildirsize when the Maildir counts its quota there. Failing
// is ignored: the file is a cache that its readers recount, and the message is delivered.
func (m *Maildir) addSize(size int64) {
	f, err := m.set.o.FS.OpenFile(filepath.Join(m.path, "maildirsize"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return
	}
	_, _ = f.Write([]byte(strconv.FormatInt(size, 10) + " 1\n"))
	_ = f.Close()
}

// Sweep removes files in tmp that nobody has touched for 36 hours.
func Sweep(path string, now time.Time) error {
	dir := filepath.Join(path, "tmp")
	des, err := os.ReadDir(dir)
	var errs []error
	for _, de := range des {
		fi, err := de.Info()
		if err != nil || !fi.Mode().IsRegular() || now.Sub(fi.ModTime()) < tmpAge {
			continue
		}
		if err := os.Remove(filepath.Join(dir, de.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, err)...)
}
