package mailbox

import (
	"errors"
	"io"
	"log/slog"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// The errors that protocols answer in words of their own.
var (
	ErrNotFound   = errors.New("no such mailbox")
	ErrExists     = errors.New("mailbox exists already")
	ErrName       = errors.New("not a possible mailbox name")
	ErrInUse      = errors.New("maildrop is locked by another session")
	ErrReadOnly   = errors.New("mailbox is open read-only")
	ErrExpunged   = errors.New("message was expunged")
	ErrQuota      = errors.New("over quota")
	ErrKeywords   = errors.New("mailbox has no room for another keyword")
	ErrUnknownCTE = errors.New("message holds octets that cannot be stored")
)

// Limits are what an account may hold; 0 is no limit.
type Limits struct {
	Octets   int64
	Messages int64
}

// Options says how the Maildirs of one account are kept. The zero value works.
type Options struct {
	FSLayout    bool             // folders are plain directories (LAYOUT=fs), not Maildir++
	UTF8        bool             // folder names are UTF-8 on disk, not modified UTF-7
	Escape      byte             // starts two hex digits for what cannot stand in a directory name; 0: none
	Control     string           // where dovecot-uidlist and -keywords are; "" beside the messages
	Index       string           // where the index and the cache are; "" beside the messages
	Host        string           // in the names of new messages; default "localhost"
	Create      bool             // make the account's Maildir when it is missing
	Courier     bool             // take over Courier's files where Dovecot's are missing
	Limits      Limits           // quota; accounted in maildirsize
	Now         func() time.Time // default time.Now
	Log         *slog.Logger     // default: silence
	FS          durable.FS       // default the operating system's
	Parallelism int              // parsing goroutines; default the number of processors
	Watcher     *Watcher         // shared by the Stores of a process; nil: Watch polls
	Boot        uint64           // tells one run of the machine from another; 0: the system is asked
}

// Folder is one line of a listing.
type Folder struct {
	Name       string // UTF-8, levels apart by "/"; "INBOX"
	Exists     bool   // false: only a parent of others, or only subscribed
	Subscribed bool
	Children   bool
	Marked     bool // there may be new mail: new/ is not empty
}

// Status is what STATUS asks for.
type Status struct {
	Messages, Recent, Unseen, Deleted int
	UIDValidity, UIDNext              uint32
	HighestModSeq                     uint64
	Size                              int64 // octets as sent; -1 where it is not known without reading
	DeletedSize                       int64
	ID                                string // MAILBOXID
}

// Message is what the index knows of a message.
type Message struct {
	UID      uint32
	Flags    maildir.Flags
	Keywords uint32 // bit n is the keyword n of View.Keywords
	Recent   bool
	ModSeq   uint64
	Size     int64 // octets as sent (RFC822.SIZE); -1: not known yet, see View.Size
	Internal int64 // INTERNALDATE, seconds since 1970; see View.Dates when Dated is false
	Saved    int64 // SAVEDATE
	Dated    bool
}

// Gone is an expunged message, by the number that it had.
type Gone struct {
	Seq int // 1-based, in the view before the change
	UID uint32
}

// Changes is what a Sync found.
type Changes struct {
	Expunged []Gone // highest number first, so that they can be told one after the other
	First    int    // number of the first new message, 0 when there is none
	Changed  []int  // numbers after the change of old messages whose flags or keywords changed
	Keywords bool   // the mailbox has keywords that the view did not know
	Reset    bool   // UIDVALIDITY changed: the session must end
}

// Op says what Store does with the flags that it is given.
type Op int

// The operations of STORE.
const (
	Set Op = iota
	Add
	Remove
)

// FlagChange is one STORE.
type FlagChange struct {
	Op             Op
	Flags          maildir.Flags
	Keywords       []string
	UnchangedSince uint64 // 0: no condition is zero's meaning only when Conditional is false
	Conditional    bool
}

// Stored is the result of a Store.
type Stored struct {
	ModSeq   uint64   // of the changed messages; 0 when nothing changed
	Changed  []uint32 // UIDs whose flags are others now
	Failed   []uint32 // UIDs that UnchangedSince excludes
	Expunged []uint32 // UIDs that are no more

	NoRoom     []uint32 // UIDs whose file names are too long for the flags: nothing changed
	NoKeywords []uint32 // UIDs whose file names are too long for the keywords alone
}

// Copied pairs UIDs of a COPY, MOVE or APPEND.
type Copied struct {
	UIDValidity uint32   // of the destination
	From, To    []uint32 // of the same length; From is nil for an append
}

// Item is one message to append.
type Item struct {
	Message  io.Reader
	Size     int64 // octets as sent, for the quota and the free space; -1 unknown
	Flags    maildir.Flags
	Keywords []string
	Internal time.Time // zero: now
	EmailID  string    // "": a new one
	POP3     string    // "": none

	// Left is told of each keyword that the mailbox has no room for, and the message comes
	// without it. Where it is nil, such a message is refused with ErrKeywords.
	Left func(keyword string)
}

// POP3Entry is one message of a maildrop.
type POP3Entry struct {
	UID   uint32
	Size  int64  // octets as sent
	Key   string // UIDL kept from another server, "" where the form of the configuration serves
	Order uint32 // 0: by UID
	GUID  string // EMAILID
	Base  string // base name, for the form %f
}

// Range is an inclusive range of UIDs.
type Range struct{ First, Last uint32 }
