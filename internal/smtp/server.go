// Package smtp is the wire side of RFC 5321, both ends: the strict line and dot codec, the
// server's session machine, and the client. It hides framing, pipelining, replies and limits;
// what a message means, who may send it and where it goes is the business of the Backend.
package smtp

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/sasl"
)

// Server holds what all connections of one role have in common. Its fields do not change after
// the first ServeConn; it may be used by many goroutines at once.
type Server struct {
	Hostname string      // our name in the greeting and in replies
	Backend  Backend     // decides
	TLS      *tls.Config // nil: no STARTTLS
	Implicit bool        // the connection starts with a TLS handshake
	// Handshake stands for crypto/tls where a connection is only played; nil: the real one.
	Handshake func(net.Conn) (net.Conn, tls.ConnectionState, error)

	MaxSize       int64 // octets of one message on the wire, without dot stuffing; 0 is no limit
	MaxRecipients int   // of one message; default 1000
	MaxLine       int   // octets of one line of a message; default 128 KiB
	MaxErrors     int   // bad commands before 421; default 10

	Timeout     time.Duration // a client's silence; default 5m (RFC 5321 §4.5.3.2.7)
	SessionTime time.Duration // after it a session ends between two messages; default 2h
	MinRate     int64         // octets a second, over the whole of a message; default 100; below 0: none

	Now func() time.Time // default time.Now

	pools pools
}

// Peer is what is known about the client before it says anything.
type Peer struct {
	Addr  netip.AddrPort // zero: not an IP connection, or not known
	Local netip.AddrPort // our end
	UID   *int           // of the process at the other end of a UNIX socket
	Stdio bool           // whoever started the program
	User  string         // who counts as authenticated from the start; "" is nobody
}

// String is the client as it stands in logs and envelopes.
func (p Peer) String() string {
	switch {
	case p.Addr.IsValid():
		return p.Addr.String()
	case p.UID != nil:
		return "uid:" + strconv.Itoa(*p.UID)
	case p.Stdio:
		return "stdio"
	}
	return "unknown"
}

// State is what the engine knows about a connection. The Backend's session may read it during
// any call; only the engine writes it.
type State struct {
	Peer  Peer
	Helo  string               // argument of HELO or EHLO; "" before it
	ESMTP bool                 // EHLO was used
	TLS   *tls.ConnectionState // nil: clear text
	User  string               // who authenticated; "" is nobody
	// Vouched says that User is the word of a proxy (XCLIENT LOGIN), as it was given.
	Vouched bool
}

// Proto is the protocol name for Received, RFC 3848; utf8 says that the message uses SMTPUTF8
// (RFC 6531 §4.3).
func (s *State) Proto(utf8 bool) string {
	if !s.ESMTP && !utf8 {
		return "SMTP"
	}
	p := "ESMTP"
	if utf8 {
		p = "UTF8SMTP"
	}
	if s.TLS != nil {
		p += "S"
	}
	if s.User != "" {
		p += "A"
	}
	return p
}

// Backend makes one Session a connection. An error that is an *Answer is the greeting (554 or
// 421), after which the connection is closed; any other error is 421 4.3.0.
type Backend interface {
	NewSession(ctx context.Context, st *State) (Session, error)
}

// Session is the meaning behind one connection; calls come one at a time. An error that is an
// *Answer is sent as it is; any other becomes 451 4.3.0 and tells the client nothing.
type Session interface {
	// Mail opens a transaction. from is the null Address for <>.
	Mail(ctx context.Context, from envelope.Address, o *MailOptions) error
	// Rcpt adds a recipient to it.
	Rcpt(ctx context.Context, to envelope.Address, o *RcptOptions) error
	// Data is called when the client is about to send the message, after at least one
	// recipient was accepted. Exactly one of Commit and Abort follows.
	Data(ctx context.Context) (Message, error)
	// Reset drops the transaction: RSET, a new EHLO, STARTTLS, and after each message.
	Reset()
	// Close ends the session; no call follows.
	Close()
}

// Message takes the octets of one message: lines ended by LF, or with BINARYMIME the octets as
// they come. After a Write error the engine reads on to the end of the message, then Aborts.
type Message interface {
	io.Writer
	// Commit makes the message ours. When it returns nil, the message is on stable storage;
	// text is what follows "250 2.0.0".
	Commit() (text string, err error)
	Abort()
}

// Authenticator is implemented by a Session that knows AUTH.
type Authenticator interface {
	// Mechanisms are those usable now; none: AUTH is not announced.
	Mechanisms() []string
	// Auth starts one exchange. ErrNeedTLS refuses a mechanism that needs TLS first.
	Auth(ctx context.Context, mechanism string) (sasl.Server, error)
}

// Observer is implemented by a Session that wants to know about refusals, for the log: each
// 4yz and 5yz answer to verb (upper case; "" where the connection itself is the cause), with
// the command's argument. AUTH exchanges are shown without their content.
type Observer interface {
	Refused(verb, arg string, a *Answer)
}

// MailOptions are the parameters of MAIL.
type MailOptions struct {
	Size     int64  // RFC 1870; 0 where not given
	Body     string // "", envelope.Body8Bit or envelope.BodyBinary; 7BIT is ""
	SMTPUTF8 bool
	Ret      string // FULL, HDRS or ""
	EnvID    string // xtext decoded
	Auth     string // RFC 4954 §5, xtext decoded; "<>" or an address; "" where not given

	// Of the extensions that the session offers:
	RequireTLS  bool                // RFC 8689
	HoldUntil   *time.Time          // RFC 4865
	Hold        string              // how it was asked for, "for;3600" or "until;2026-11-23T10:00:00Z"
	By          *envelope.DeliverBy // RFC 2852
	Priority    int                 // RFC 6710; Mail may change it, which the client is told
	HasPriority bool                // it was given
}

// RcptOptions are the parameters of RCPT, RFC 3461 §4.
type RcptOptions struct {
	Notify []string // NEVER, or any of SUCCESS FAILURE DELAY
	ORcpt  string   // "rfc822;ann@example.org", xtext decoded
}

// Answer is one reply of a server. As an error it refuses what was asked.
type Answer struct {
	Code     int    // 250
	Enhanced string // "2.1.0", RFC 3463; "" where none belongs (greeting, EHLO, 334, 354)
	Text     string // one line, or several separated by LF
	Close    bool   // the connection is closed after it
}

// Error makes an Answer usable as the error of a Session.
func (a *Answer) Error() string { return string(a.append(nil)) }

// Refuse returns the Answer for a status made elsewhere: 5yz for failed, 4yz for deferred, with
// the given basic code where its class fits the verdict.
func Refuse(code int, st envelope.Status) *Answer {
	if st.Verdict == envelope.Failed && code/100 != 5 {
		code = 550
	}
	if st.Verdict != envelope.Failed && code/100 != 4 {
		code = 451
	}
	return &Answer{Code: code, Enhanced: st.Code, Text: st.Reply}
}
