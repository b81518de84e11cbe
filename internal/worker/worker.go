// Package worker is the contract between mqueue and those who deliver, mworker(7): JSON lines
// over a UNIX stream socket, the message as a read-only file descriptor (SCM_RIGHTS), never as
// a path. It holds the types and the codec for both sides; it knows no queue and no mailbox.
package worker

import (
	"time"

	"pennypost/internal/envelope"
)

// Version is the newest protocol version spoken here.
const Version = 1

// Abilities a worker may announce.
const (
	AbleDeliver = "deliver" // final delivery of local recipients
	AbleRelay   = "relay"   // hands on to a next hop
)

// Hello is the first line each side sends. The worker speaks first.
type Hello struct {
	Versions  []int    `json:"versions"`
	Name      string   `json:"name"`                // "mdeliver", "mrelay", "mqueue"
	Abilities []string `json:"abilities,omitempty"` // of the worker
}

// Request asks for one attempt at one message for some of its recipients. The line carries
// exactly one descriptor as ancillary data, sent with its first byte: the spool file, opened
// read-only, with the message at [Offset, Offset+Size).
type Request struct {
	Seq      uint64               `json:"seq"`     // echoed in the report; unique on this connection
	ID       string               `json:"id"`      // queue id
	Attempt  int                  `json:"attempt"` // 1 is the first
	From     string               `json:"from"`
	To       []envelope.Recipient `json:"to"`
	NextHop  string               `json:"next_hop"`           // mrelay: "example.org" (look up MX) or "host:port", "[addr]:port", "lmtp:..."; mdeliver: ""
	Auth     string               `json:"auth,omitempty"`     // name of the configured credentials for this next hop
	TLSMode  string               `json:"tls_mode,omitempty"` // of the route: may, encrypt, verify, none, tls; "": mrelay's own configuration
	Offset   int64                `json:"offset"`
	Size     int64                `json:"size"`
	EOL      string               `json:"eol"`
	Body     string               `json:"body,omitempty"`
	UTF8     bool                 `json:"smtputf8,omitempty"`
	TLS      bool                 `json:"requiretls,omitempty"`
	Ret      string               `json:"ret,omitempty"`
	EnvID    string               `json:"envid,omitempty"`
	By       *envelope.DeliverBy  `json:"deliver_by,omitempty"` // RFC 2852
	Priority int                  `json:"priority,omitempty"`   // RFC 6710
	Time     time.Time            `json:"time"`                 // acceptance of the message
	Origin   envelope.Origin      `json:"origin"`
}

// Result is the report for one recipient.
type Result struct {
	To string `json:"to"` // Recipient.Addr of the request
	envelope.Status
	TLS        string     `json:"tls,omitempty"`         // "TLSv1.3 TLS_AES_128_GCM_SHA256 verified"
	DelayMS    int64      `json:"delay_ms"`              // time this attempt took
	MX         []string   `json:"mx,omitempty"`          // what was tried, in order, with the reason each failed
	Transcript []string   `json:"transcript,omitempty"`  // of a failure: "C: ..." and "S: ..." lines, AUTH exchanges cut out
	Mailbox    string     `json:"mailbox,omitempty"`     // where it was delivered
	DSN        bool       `json:"dsn_relayed,omitempty"` // the next hop took over NOTIFY (it announced DSN), or the one address an alias stands for
	By         bool       `json:"by_relayed,omitempty"`  // the next hop took over the deadline (it announced DELIVERBY)
	Expand     *Expansion `json:"expand,omitempty"`      // with verdict expanded; with failed, what is served beside the target that failed
}

// Expansion names the recipients that replace an expanded one; mqueue submits them as a child.
type Expansion struct {
	From string               `json:"from"` // new reverse-path (RFC 5321 §3.9: alias keeps it, list replaces it)
	To   []envelope.Recipient `json:"to"`
	// Prepend holds header lines (LF, each complete) put before the message in the child,
	// such as Delivered-To for loop detection.
	Prepend string `json:"prepend,omitempty"`
}

// Report answers one Request: one Result per recipient of it, in any order.
type Report struct {
	Seq     uint64   `json:"seq"`
	ID      string   `json:"id"`
	Results []Result `json:"results"`
}
