package handover

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"unicode/utf8"
)

// request is the line that a login process sends.
type request struct {
	Protocol string          `json:"protocol"`
	Ticket   string          `json:"ticket"`
	Peer     string          `json:"peer,omitempty"`
	TLS      *TLS            `json:"tls,omitempty"`
	Pending  []byte          `json:"pending,omitempty"`
	State    json.RawMessage `json:"state,omitempty"`

	peer netip.AddrPort
}

// reply is the line that it gets.
type reply struct {
	OK    bool   `json:"ok,omitempty"`
	PID   int    `json:"pid,omitempty"`
	Error string `json:"error,omitempty"`
	Text  string `json:"text,omitempty"`
}

// The words of "error".
const (
	wordRefused   = "refused"
	wordBusy      = "busy"
	wordSyntax    = "syntax"
	wordTemporary = "temporary"
)

func replyTo(err error) reply {
	switch {
	case errors.Is(err, ErrRefused):
		return reply{Error: wordRefused}
	case errors.Is(err, ErrBusy):
		return reply{Error: wordBusy}
	case errors.Is(err, errSyntax):
		return reply{Error: wordSyntax, Text: err.Error()}
	}
	return reply{Error: wordTemporary, Text: err.Error()}
}

func (r reply) err() error {
	switch r.Error {
	case "":
		if r.OK {
			return nil
		}
		return errors.New("hand-over: an answer that says nothing")
	case wordRefused:
		return ErrRefused
	case wordBusy:
		return ErrBusy
	}
	return fmt.Errorf("hand-over: %s: %q", r.Error, r.Text)
}

// line makes the request's line.
func (r *Request) line() ([]byte, error) {
	w := request{Protocol: r.Protocol, Ticket: r.Ticket, Pending: r.Pending}
	if r.Peer.IsValid() {
		w.Peer = netip.AddrPortFrom(r.Peer.Addr().Unmap().WithZone(""), r.Peer.Port()).String()
	}
	if r.TLS != nil {
		w.TLS = &TLS{Version: tls.VersionName(r.TLS.Version), Cipher: tls.CipherSuiteName(r.TLS.CipherSuite)}
	}
	if r.State != nil {
		var err error
		if w.State, err = json.Marshal(r.State); err != nil {
			return nil, fmt.Errorf("hand-over: state: %w", err)
		}
	}
	b, err := json.Marshal(w)
	if err == nil && (len(b) >= maxLine || len(r.Pending) > MaxPending) {
		err = fmt.Errorf("hand-over: %d octets of input and state are too many", len(b))
	}
	return append(b, '\n'), err
}

// parseRequest reads a line, which anybody may have written who has taken the login process over.
func parseRequest(line []byte) (*request, error) {
	r := &request{}
	if !utf8.Valid(line) || json.Unmarshal(line, r) != nil {
		return nil, errSyntax
	}
	if len(r.Pending) > MaxPending {
		return nil, fmt.Errorf("%w: too much input", errSyntax)
	}
	if r.Peer != "" {
		var err error
		if r.peer, err = netip.ParseAddrPort(r.Peer); err != nil || r.peer.Addr().Zone() != "" {
			return nil, fmt.Errorf("%w: peer is no address with a port", errSyntax)
		}
	}
	if r.TLS != nil && (!word(r.TLS.Version) || !word(r.TLS.Cipher)) {
		return nil, fmt.Errorf("%w: tls", errSyntax)
	}
	if r.Ticket == "" || len(r.Ticket) > 256 || !word(r.Protocol) {
		return nil, fmt.Errorf("%w: ticket or protocol", errSyntax)
	}
	return r, nil
}

// word tells whether s can stand in a log as it is.
func word(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return len(s) <= 64
}

// source is where requests come from: a socket, or in tests whatever makes chunks.
type source interface {
	// read fills p; fds are descriptors that came with these octets.
	read(p []byte) (n int, fds []int, err error)
}

// socket is a source whose peer may send descriptors.
type socket struct{ c *net.UnixConn }

// maxFDs is how many descriptors one read makes room for; the kernel closes what has none.
const maxFDs = 4

func (s socket) read(p []byte) (int, []int, error) {
	oob := make([]byte, syscall.CmsgSpace(4*maxFDs))
	n, oobn, flags, _, err := s.c.ReadMsgUnix(p, oob)
	n = max(n, 0) // it is -1 with an error
	if oobn <= 0 {
		return n, nil, err
	}
	msgs, perr := syscall.ParseSocketControlMessage(oob[:oobn])
	var fds []int
	for i := range msgs {
		if msgs[i].Header.Level != syscall.SOL_SOCKET || msgs[i].Header.Type != syscall.SCM_RIGHTS {
			continue
		}
		got, ferr := syscall.ParseUnixRights(&msgs[i])
		fds = append(fds, got...)
		perr = errors.Join(perr, ferr)
	}
	if perr != nil || flags&syscall.MSG_CTRUNC != 0 {
		perr = errors.Join(errSyntax, perr)
	}
	return n, fds, errors.Join(err, perr)
}

// readRequest takes one line and the one descriptor that comes with it. The descriptor is the
// caller's to close; any other is closed here.
func readRequest(src source) (r *request, fd int, err error) {
	var fds []int
	defer func() {
		if err != nil {
			closeAll(fds)
		}
	}()
	buf := make([]byte, 2<<10)
	n := 0
	for {
		if n == len(buf) {
			if n >= maxLine {
				return nil, -1, fmt.Errorf("%w: longer than %d octets", errSyntax, maxLine)
			}
			buf = append(buf, make([]byte, min(3*n, maxLine-n))...)
		}
		got, more, err := src.read(buf[n:])
		fds = append(fds, more...)
		if len(fds) > 1 {
			return nil, -1, fmt.Errorf("%w: several descriptors", errSyntax)
		}
		if i := bytes.IndexByte(buf[n:n+got], '\n'); err == nil && i >= 0 {
			if n+i+1 != n+got {
				return nil, -1, fmt.Errorf("%w: more than a line", errSyntax)
			}
			n += i
			break
		}
		n += got
		if err == nil && got == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, -1, err
		}
	}
	if len(fds) == 0 {
		return nil, -1, fmt.Errorf("%w: no descriptor", errSyntax)
	}
	r, err = parseRequest(buf[:n])
	if err != nil {
		return nil, -1, err
	}
	return r, fds[0], nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = syscall.Close(fd) // somebody else's connection; nothing of ours is written there
	}
}

// usable tells whether a descriptor is a client's connection, or one end of a pair for it: a
// connected stream socket. It is only asked; nothing is read or written.
func usable(fd int) error {
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFSOCK {
		return fmt.Errorf("%w: the descriptor is no socket", errSyntax)
	}
	if v, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE); err != nil || v != syscall.SOCK_STREAM {
		return fmt.Errorf("%w: the descriptor is no stream socket", errSyntax)
	}
	sa, err := syscall.Getpeername(fd)
	if err != nil { // a listening one has no peer either
		return fmt.Errorf("%w: the socket is not connected", errSyntax)
	}
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4, *syscall.SockaddrInet6:
		return nil
	case *syscall.SockaddrUnix:
		// A pair, or a client of ours, has no name. What has one is a server, and it might take
		// what the session writes for the word of the user. (Linux shows no name as "@".)
		if sa.Name == "" || sa.Name == "@" {
			return nil
		}
		return fmt.Errorf("%w: the socket is connected to a server", errSyntax)
	}
	return fmt.Errorf("%w: the socket is of another family", errSyntax)
}
