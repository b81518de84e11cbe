// Package pop3 is the server's side of POP3, RFC 1939 with its extensions: the session from the
// greeting to the deletions at QUIT. It hides commands, replies and limits, the form of unique-ids
// and of what is sent; who a client is, is the business of login, what its mail is, of mailbox.
package pop3

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"pennypost/internal/handover"
	"pennypost/internal/login"
	"pennypost/internal/mailbox"
)

// The roles of a socket.
const (
	Clear = "pop3"  // TLS by STLS
	TLS   = "pop3s" // TLS from the first octet, RFC 8314 §3.3
)

// Roles lists them.
func Roles() []string { return []string{Clear, TLS} }

// Maildrop is one user's locked mail, as it was when the session began.
type Maildrop interface {
	// List gives the messages in the order of their numbers, and the UIDVALIDITY.
	List(ctx context.Context) ([]mailbox.POP3Entry, uint32, error)
	// Open opens a message; mailbox.ErrExpunged when somebody else has removed it.
	Open(ctx context.Context, uid uint32) (*mailbox.Body, error)
	// Remove removes messages. When it returns nil none of them comes back.
	Remove(ctx context.Context, uids []uint32) error
	// Fetched marks messages as read, and keeps the sizes of those that had another than List said.
	Fetched(ctx context.Context, seen []uint32, sizes map[uint32]int64) error
	// Close gives the lock back.
	Close() error
}

// Peer is what is known about the client before it says anything.
type Peer struct {
	Addr  netip.AddrPort // zero: not an IP connection, or not known
	Stdio bool           // whoever started the program
}

// String is the client as it stands in the log.
func (p Peer) String() string {
	switch {
	case p.Addr.IsValid():
		return p.Addr.String()
	case p.Stdio:
		return "stdio"
	}
	return "unknown"
}

// Server holds what all connections of one role have in common. Its fields do not change after
// the first connection; it may be used by many goroutines at once.
type Server struct {
	Hostname string // in the greeting
	Role     string
	TLS      *tls.Config // nil: no TLS
	Login    *login.Options
	// ClearFrom are networks whose clients may log in without TLS.
	ClearFrom []netip.Prefix
	// Open opens and locks the maildrop of a user, for instance by OpenBox.
	Open func(ctx context.Context, user string) (Maildrop, error)

	// HandOver gives the connection of a user to a process that may open the maildrop, with the
	// ticket that the login brought; false leaves the user to Open. nil: everybody is Open's.
	HandOver func(ctx context.Context, conn net.Conn, user string, r handover.Request) (taken bool, err error)

	UIDL       Format        // of unique-ids that no other server gave; zero: Dovecot's
	Expire     int           // days that mail is kept here; below 0: for good; 0: it goes once it was fetched
	LoginDelay time.Duration // announced; Open sees to it
	KeepUnseen bool          // fetching a message does not mark it as read

	Timeout   time.Duration // of a client's silence; default 10m
	MaxErrors int           // commands that make no sense, and refused logins; default 10
	Log       *slog.Logger

	pools pools
}

func or[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// ServeConn speaks POP3 on conn until the client quits or goes, a limit is reached, or ctx ends.
// It closes conn.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn, peer Peer) {
	c := s.newSession(ctx, conn, peer)
	stop := context.AfterFunc(ctx, c.wake)
	defer stop()
	if err := c.greet(); err != nil {
		c.close(err)
		c.hangUp()
		return
	}
	c.run()
}
