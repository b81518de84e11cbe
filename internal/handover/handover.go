// Package handover gives a client who has logged in to a process of its own, run as the client's
// system user. The login process, which talks to the network and has no rights, sends the
// connection with a ticket; the small root process redeems the ticket, becomes the user and starts
// the session. The package hides both ends of mhandover(7), and the proxy by which TLS stays in the
// login process.
package handover

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// Protocols that sessions exist for.
const (
	POP3 = "pop3"
	IMAP = "imap"
)

// Errors of a Client, and why a Server refuses. Everything else is temporary.
var (
	ErrRefused = errors.New("hand-over refused")
	ErrBusy    = errors.New("too many sessions, try again later")
	ErrLost    = errors.New("no answer in time: the session may have begun")
	errSyntax  = errors.New("not a request of mhandover(7)")
)

// Limits of what a login process may send.
const (
	// MaxPending is how much input may wait that came behind the login.
	MaxPending = 16 << 10
	// maxLine holds that in base64, and as much again.
	maxLine = 48 << 10
)

// Request is a client that wants its session.
type Request struct {
	Protocol string
	Ticket   string
	Peer     netip.AddrPort       // of the client
	TLS      *tls.ConnectionState // nil: clear text
	Pending  []byte               // input that was read too far
	State    any                  // what the session is to know, as JSON
}

// TLS says how the client's connection is protected.
type TLS struct {
	Version string `json:"version"`
	Cipher  string `json:"cipher"`
}

// Facts are what a session knows when it begins: who the user is, from the root process; the rest
// from the login process.
type Facts struct {
	Protocol string          `json:"protocol"`
	Address  string          `json:"user"`
	Name     string          `json:"name"` // of the system user
	Home     string          `json:"home"`
	Maildir  string          `json:"maildir"`
	Peer     netip.AddrPort  `json:"peer"`
	TLS      *TLS            `json:"tls,omitempty"`
	Pending  []byte          `json:"pending,omitempty"`
	State    json.RawMessage `json:"state,omitempty"`
}

// ReadFacts reads what a session finds at descriptor 3.
func ReadFacts(r io.Reader) (*Facts, error) {
	b, err := io.ReadAll(io.LimitReader(r, 4*maxLine))
	if err != nil {
		return nil, fmt.Errorf("facts of the session: %w", err)
	}
	f := &Facts{}
	if err := json.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("facts of the session: %w", err)
	}
	return f, nil
}
