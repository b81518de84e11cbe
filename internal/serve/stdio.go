package serve

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// stdio makes one connection of standard input and output.
type stdio struct {
	in, out  *os.File
	terminal bool
	wasBlock []int // descriptors to set back to blocking
	lastCR   bool
}

func newStdio() (*stdio, error) {
	s := &stdio{}
	s.terminal = isTerminal(0)
	s.in, s.out = s.file(0, "stdin"), s.file(1, "stdout")
	if s.in == nil || s.out == nil {
		return nil, errors.New("standard input or output is closed")
	}
	return s, nil
}

// file opens fd for deadlines where the kernel can do that: pipes and sockets are made
// non-blocking (and set back at the end, for others share them). Terminals and files are left
// alone: they have no deadlines, and need none.
func (s *stdio) file(fd int, name string) *os.File {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return nil
	}
	if m := st.Mode & unix.S_IFMT; m == unix.S_IFIFO || m == unix.S_IFSOCK {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err == nil && flags&unix.O_NONBLOCK == 0 && unix.SetNonblock(fd, true) == nil {
			s.wasBlock = append(s.wasBlock, fd)
		}
	}
	return os.NewFile(uintptr(fd), name)
}

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	return err == nil
}

// Read gives what a person types with the line ends of the protocols: a terminal sends LF.
func (s *stdio) Read(p []byte) (int, error) {
	if !s.terminal {
		return s.in.Read(p)
	}
	if len(p) < 2 {
		return 0, io.ErrShortBuffer
	}
	n, err := s.in.Read(p[:len(p)/2])
	line := bytes.Clone(p[:n])
	n = 0
	for _, c := range line {
		if c == '\n' && !s.lastCR {
			p[n] = '\r'
			n++
		}
		p[n] = c
		n++
		s.lastCR = c == '\r'
	}
	return n, err
}

func (s *stdio) Write(p []byte) (int, error) { return s.out.Write(p) }

// Close gives the descriptors back as they were.
func (s *stdio) Close() error {
	for _, fd := range s.wasBlock {
		_ = unix.SetNonblock(fd, false) // the process ends next; nothing could be done about it
	}
	s.wasBlock = nil
	return errors.Join(s.in.Close(), s.out.Close())
}

type stdioAddr struct{}

func (stdioAddr) Network() string { return "stdio" }
func (stdioAddr) String() string  { return "stdio" }

func (s *stdio) LocalAddr() net.Addr  { return stdioAddr{} }
func (s *stdio) RemoteAddr() net.Addr { return stdioAddr{} }

func (s *stdio) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

func (s *stdio) SetReadDeadline(t time.Time) error { return noDeadlineIsFine(s.in.SetReadDeadline(t)) }
func (s *stdio) SetWriteDeadline(t time.Time) error {
	return noDeadlineIsFine(s.out.SetWriteDeadline(t))
}

func noDeadlineIsFine(err error) error {
	if errors.Is(err, os.ErrNoDeadline) {
		return nil
	}
	return err
}
