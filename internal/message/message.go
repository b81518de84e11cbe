// Package message reads mail as it lies in a file and tells where its parts are and what
// an IMAP or POP3 client is told about them.
//
// It hides RFC 5322 and MIME. The message is never rewritten: a [Part] holds offsets into
// the stored octets, and sizes and line counts as they are on the wire, where every line
// ends in CR LF. Nothing a message contains makes parsing fail; what cannot be understood
// is text. Time is linear in the size of the message, memory is bounded: windows of 64
// KiB, 10,000 parts, 100 levels, and so many octets of header fields as [keepTotal] says.
//
// What clients hear follows RFC 9051 §7.5.2; where a message is broken, so that the
// standard does not say, it is what Dovecot says, because clients that change over compare.
package message

// Kind says how a part is to be read.
type Kind uint8

// The kinds of parts.
const (
	Leaf      Kind = iota // neither text nor made of parts
	Text                  // text/*, and everything without a usable type
	Multipart             // holds Parts, none when no boundary was found
	Message               // message/rfc822 or message/global: Parts holds exactly one
	Opaque                // a multipart or message too deep to look into: application/octet-stream to clients
)

// Param is one parameter of Content-Type or Content-Disposition, RFC 2231 continuations
// joined.
type Param struct{ Name, Value []byte }

// Part is a message or a part of one. Its slices point into the memory of the [Parser]
// that made it; nil means that the field is absent.
type Part struct {
	// Octet offsets as stored: the header begins at Header and ends, with its empty line,
	// at Body; the body ends at End.
	Header, Body, End int64
	// Octets with every line end as CR LF.
	HeaderWire, BodyWire int64
	// Line ends in header (its empty line counts) and body.
	HeaderLines, BodyLines int64

	Kind              Kind
	Type, Subtype     []byte // as written
	Params            []Param
	ID, Description   []byte
	Encoding, MD5     []byte
	Disposition       []byte
	DispositionParams []Param
	Language          [][]byte
	Location          []byte
	Parts             []*Part
	// Fields is set in the message itself and in those enclosed as message/rfc822.
	Fields *Header
}

// Header holds those fields of a message that ENVELOPE, SORT, THREAD and SEARCH look at: raw
// values, unfolded, nil when absent.
type Header struct {
	Date, Subject                      []byte
	From, Sender, ReplyTo, To, Cc, Bcc []byte
	InReplyTo, MessageID, References   []byte
}

// Fields are header fields as SORT, THREAD and SEARCH compare them: decoded (RFC 2047) to
// UTF-8, unfolded.
type Fields struct {
	Subject string
	Base    string // RFC 5256 §2.1
	Reply   bool   // the subject was that of a reply or a forward

	// The whole fields, for SEARCH.
	From, Sender, ReplyTo, To, Cc, Bcc string
	// Local-part of the first address, for SORT (RFC 5256 §3).
	FromMailbox, ToMailbox, CcMailbox string
	// Display name of the first address, else its address (RFC 5957 §3), for SORT=DISPLAY.
	FromDisplay, ToDisplay string

	Sent    int64 // Date in seconds since 1970 in UTC
	Zone    int16 // minutes east of UTC
	HasSent bool

	MessageID  string   // normalised, without angle brackets; "" when there is none
	InReplyTo  string   // the first id of In-Reply-To
	References []string // RFC 5256 §3 THREAD=REFERENCES: ids of References, else that of In-Reply-To
}
