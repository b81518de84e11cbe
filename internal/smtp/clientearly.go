package smtp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// errEarly says that a peer answers what it has not been asked. Its replies cannot be told
// apart from those to commands, so nothing it says can be believed: least of all that it has
// taken a message.
var errEarly = errors.New("a reply came before its command")

// pending tells whether the peer has sent something that nobody has read. Under TLS what the
// socket holds may be no reply; there only what is decrypted counts.
func (c *Client) pending() bool {
	if c.br.Buffered() > 0 {
		return true
	}
	sc, ok := c.conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false // closed: the next write says so
	}
	var one [1]byte
	n := 0
	// Ignored, as are those of the call in it: with an error there is nothing to read.
	_ = raw.Control(func(fd uintptr) {
		n, _, _ = syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	return n > 0
}

// mayAsk tells whether a command may be sent: every reply to earlier ones has been read. A 421
// may come at any time (RFC 5321 §3.8); it then answers the command, which is not sent. The
// deadline is set.
func (c *Client) mayAsk(stage Stage) (bool, error) {
	if !c.pending() {
		return true, nil
	}
	b, err := c.br.Peek(3)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return false, c.broken(stage, err)
	}
	if string(b) == "421" {
		return false, nil
	}
	// Cannot fail: so much is in the buffer.
	b, _ = c.br.Peek(c.br.Buffered())
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return false, c.broken(stage, fmt.Errorf("%w: %.60q", errEarly, bytes.TrimSuffix(line, []byte("\r"))))
}
