// Package envelope holds what travels beside a message: reverse-path, forward-paths with their
// DSN parameters, where it came from, and the status an attempt ends with. It knows no
// protocol and no file.
package envelope

import "time"

// Line-end conventions of stored message bytes (Envelope.EOL).
const (
	EOLLF   = "lf"   // lines end in LF; the form of nearly all messages
	EOLWire = "wire" // bytes exactly as received, for BINARYMIME
)

// Values of Envelope.Body, RFC 6152 and RFC 3030. Empty means 7BIT.
const (
	Body8Bit   = "8BITMIME"
	BodyBinary = "BINARYMIME"
)

// Kinds of Origin.
const (
	OriginPipe    = "pipe"    // msend writing the spool itself
	OriginSMTP    = "smtp"    // msmtpd, role mx
	OriginSubmit  = "submit"  // msmtpd, role submission or submissions
	OriginLocal   = "local"   // msmtpd, role local (SO_PEERCRED)
	OriginDSN     = "dsn"     // mqueue, a report it wrote
	OriginForward = "forward" // mqueue, children of an expanded recipient
)

// Envelope is line 2 of a spool file, mspool(5). Addresses are in the form Address.String gives.
type Envelope struct {
	ID         string      `json:"id"`
	Time       time.Time   `json:"time"` // acceptance, UTC
	From       string      `json:"from"` // reverse-path; "" is the null reverse-path
	To         []Recipient `json:"to"`
	Ret        string      `json:"ret,omitempty"`   // RFC 3461 §4.3: FULL or HDRS
	EnvID      string      `json:"envid,omitempty"` // RFC 3461 §4.4, decoded from xtext
	Body       string      `json:"body,omitempty"`
	SMTPUTF8   bool        `json:"smtputf8,omitempty"`
	RequireTLS bool        `json:"requiretls,omitempty"` // RFC 8689
	HoldUntil  *time.Time  `json:"hold_until,omitempty"` // RFC 4865
	Quarantine string      `json:"quarantine,omitempty"` // why a filter wants a person to look first; "" is no hold
	Hold       string      `json:"hold,omitempty"`       // how it was asked for: "for;3600", "until;2026-11-23T10:00:00Z"
	DeliverBy  *DeliverBy  `json:"deliver_by,omitempty"` // RFC 2852
	Priority   int         `json:"priority,omitempty"`   // RFC 6710, -9..9
	EOL        string      `json:"eol"`
	Origin     Origin      `json:"origin"`
}

// DeliverBy is the BY parameter of RFC 2852 §4 with its deadline made absolute.
type DeliverBy struct {
	Deadline time.Time `json:"deadline"`
	Mode     string    `json:"mode"` // "R" return, "N" notify
	Trace    bool      `json:"trace,omitempty"`
}

// Recipient is one forward-path with its RFC 3461 parameters.
type Recipient struct {
	Addr   string   `json:"addr"`
	Notify []string `json:"notify,omitempty"`  // NEVER, or any of SUCCESS FAILURE DELAY; empty: not given
	ORcpt  string   `json:"orcpt,omitempty"`   // RFC 3461 §4.2 as "rfc822;ann@example.org", xtext decoded
	Orig   string   `json:"orig_to,omitempty"` // address before our own rewriting, when it differs
}

// Origin says who handed the message in, from where, and how authenticated. The scheduler
// believes it only from submitters it trusts (mspool(5)).
type Origin struct {
	Kind   string `json:"kind"`
	UID    *int   `json:"uid,omitempty"`  // of the local submitter
	User   string `json:"user,omitempty"` // login name or authenticated account
	Peer   string `json:"peer,omitempty"` // addr:port of the client
	Helo   string `json:"helo,omitempty"`
	Proto  string `json:"proto,omitempty"`  // SMTP, ESMTP, ESMTPS, ESMTPSA ... RFC 3848
	TLS    string `json:"tls,omitempty"`    // "TLSv1.3 TLS_AES_128_GCM_SHA256"
	Parent string `json:"parent,omitempty"` // queue id of the message this one was made from
	Round  int    `json:"round,omitempty"`  // round of the parent
	MsgID  string `json:"msgid,omitempty"`  // author's Message-ID, for logs
}
