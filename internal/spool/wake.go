package spool

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pennypost/internal/durable"
	"pennypost/internal/envelope"
)

// maxSunPath is what fits a UNIX socket address everywhere, with its NUL.
const maxSunPath = 103

// waker sends datagrams to the scheduler's socket. It avoids package net, whose start-up cost
// every run of msend would pay.
type waker struct {
	dir  string
	mu   sync.Mutex
	fd   int
	open bool
}

// Poke tells the scheduler that a message is there. It never blocks, and errors are ignored: a
// full or missing socket only means that the scheduler finds the message at its next scan.
func (s *Spool) Poke(id string) { _ = s.wake.send(id) }

// PokeDomain asks the scheduler to make the mail for a domain due now, with below also that for
// the domains below it. An error says that nobody was told.
func (s *Spool) PokeDomain(domain string, below bool) error {
	if err := envelope.CheckDomain(domain); err != nil {
		return err
	}
	word := "@"
	if below {
		word = "@."
	}
	return s.wake.send(word + domain)
}

func (w *waker) send(text string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.open {
		fd, err := datagramSocket()
		if err != nil {
			return err
		}
		w.fd, w.open = fd, true
	}
	return withSocketPath(w.dir, fileWake, func(path string) error {
		return unix.Sendto(w.fd, []byte(text), unix.MSG_DONTWAIT, &unix.SockaddrUnix{Name: path})
	})
}

// PokedDomain reads what PokeDomain sent.
func PokedDomain(word string) (domain string, below, ok bool) {
	domain, ok = strings.CutPrefix(word, "@")
	domain, below = strings.CutPrefix(domain, ".")
	return domain, below, ok && envelope.CheckDomain(domain) == nil
}

func (w *waker) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.open {
		return nil
	}
	w.open = false
	return unix.Close(w.fd)
}

func datagramSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return 0, err
	}
	unix.CloseOnExec(fd)
	return fd, unix.SetNonblock(fd, true)
}

// withSocketPath calls fn with a path of dir/name that fits a socket address. Where a long one
// has no short form (outside Linux) fn gets the long one and the kernel refuses it.
func withSocketPath(dir, name string, fn func(path string) error) error {
	path := filepath.Join(dir, name)
	if len(path) <= maxSunPath {
		return fn(path)
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	short := "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/" + name
	if _, err := os.Lstat(filepath.Dir(short)); err != nil {
		short = path
	}
	return fn(short)
}

// Wake is the scheduler's end of the poke socket.
type Wake struct{ f *os.File }

// ListenWake makes the socket, in place of one that a dead scheduler left.
func (q *Queue) ListenWake() (*Wake, error) {
	fd, err := datagramSocket()
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), fileWake)
	err = withSocketPath(q.s.dir, fileWake, func(path string) error {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			return &fs.PathError{Op: "bind", Path: path, Err: err}
		}
		// Sending needs write permission; the group is that of the spool directory.
		return os.Chmod(path, 0o620)
	})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Wake{f: f}, nil
}

// AdoptWake takes a poke socket that a socket unit holds, as descriptor fd.
func AdoptWake(fd uintptr) (*Wake, error) {
	typ, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	if typ != unix.SOCK_DGRAM {
		return nil, errors.New("the wake-up socket passed in is not a datagram socket")
	}
	if err := unix.SetNonblock(int(fd), true); err != nil {
		return nil, err
	}
	return &Wake{f: os.NewFile(fd, fileWake)}, nil
}

// Next waits for a poke and returns its queue id, a word that PokedDomain reads, or "" for a
// poke without a usable one (look into incoming/ then). After Close it returns os.ErrClosed.
func (w *Wake) Next() (string, error) {
	var b [300]byte
	n, err := w.f.Read(b[:])
	if n > 0 && ValidID(string(b[:n])) {
		return string(b[:n]), nil
	}
	if _, _, ok := PokedDomain(string(b[:n])); ok {
		return string(b[:n]), nil
	}
	if err == io.EOF { // an empty datagram
		err = nil
	}
	return "", err
}

// SetDeadline bounds Next; then it returns os.ErrDeadlineExceeded.
func (w *Wake) SetDeadline(t time.Time) error { return w.f.SetReadDeadline(t) }

// Close stops listening. The socket's name stays; a poke to it is refused and ignored.
func (w *Wake) Close() error { return w.f.Close() }

// ControlPath is the scheduler's control socket.
func (s *Spool) ControlPath() string { return filepath.Join(s.dir, fileControl) }

// WriteDue leaves the earliest due time for a timer that starts the scheduler; the zero time
// means that nothing waits. It is not synced: a lost one makes the timer start in vain. A file that
// says so already stays: ext4 writes a file out that replaces another, which costs a command that
// only looks at the queue more than all else it does.
func (q *Queue) WriteDue(t time.Time) error {
	line := "none\n"
	if !t.IsZero() {
		line = t.UTC().Format(time.RFC3339) + "\n"
	}
	if q.s.readDue() == line {
		return nil
	}
	return q.s.replace(fileDue, func(f durable.File) error {
		_, err := f.Write([]byte(line))
		return err
	})
}

// ReadDue tells whether anything is due at now, and when the next thing is. A missing or
// unreadable file counts as due.
func (s *Spool) ReadDue(now time.Time) (due bool, at time.Time) {
	line := strings.TrimSuffix(s.readDue(), "\n")
	if line == "none" {
		return false, time.Time{}
	}
	at, err := time.Parse(time.RFC3339, line)
	return err != nil || !at.After(now), at
}

// readDue returns what the file says, "" when it cannot be read.
func (s *Spool) readDue() string {
	f, err := s.fsys.OpenFile(filepath.Join(s.dir, fileDue), os.O_RDONLY, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	var b [64]byte
	n, _ := f.ReadAt(b[:], 0) // a short read is not a time, and so is due
	return string(b[:n])
}

// replace writes a file of the spool directory anew and renames it into place, without a sync.
func (s *Spool) replace(name string, write func(durable.File) error) error {
	path := filepath.Join(s.dir, name)
	f, err := s.fsys.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return errors.Join(err, s.fsys.Remove(path+".new"))
	}
	return s.fsys.Rename(path+".new", path)
}
