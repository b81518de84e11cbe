package mailbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
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

// Body is an open message. Offsets are as stored; message.NewWire gives what clients see.
type Body struct {
	durable.File
	Size int64 // octets as stored
}

// Columns says what Cached is to deliver.
type Columns uint8

// The columns of the cache.
const (
	Envelope Columns = 1 << iota
	BodyStructure
	Bodies // BODY, without extensions
	Parts  // offsets of the parts
	Fields // header fields decoded for SEARCH, SORT and THREAD
)

// Row is one message's cached data. Slices are valid until the next row.
type Row struct {
	UID           uint32
	Envelope      []byte
	Body          []byte
	BodyStructure []byte
}

// Finding is something that Check found.
type Finding struct {
	Mailbox  string
	Path     string
	What     string
	Repaired bool
	Serious  bool // a client may see something wrong
}

var errSkeleton = fmt.Errorf("mailbox: %w", errors.ErrUnsupported)

// Store is one account's mail. It may be used by any number of goroutines.
type Store struct{}

// Open prepares an account. Nothing is read beyond a look whether it is there.
func Open(root string, o Options) (*Store, error) { return nil, errSkeleton }

// Close gives up what the Store keeps open. No Mailbox or View may be in use.
func (s *Store) Close() error { return errSkeleton }

// List names all folders.
func (s *Store) List(ctx context.Context) ([]Folder, error) { return nil, errSkeleton }

// Create makes a folder and its missing parents.
func (s *Store) Create(ctx context.Context, name string) error { return errSkeleton }

// Delete removes a folder; its children stay.
func (s *Store) Delete(ctx context.Context, name string) error { return errSkeleton }

// Rename renames a folder with its children. Renaming INBOX moves its messages into a new one.
func (s *Store) Rename(ctx context.Context, from, to string) error { return errSkeleton }

// Subscribe puts a name on the list of subscriptions, or takes it off.
func (s *Store) Subscribe(ctx context.Context, name string, on bool) error { return errSkeleton }

// Status answers without claiming \Recent.
func (s *Store) Status(ctx context.Context, name string) (Status, error) {
	return Status{}, errSkeleton
}

// Usage is what the account holds, and its limits.
func (s *Store) Usage(ctx context.Context) (used, limit Limits, err error) {
	return Limits{}, Limits{}, errSkeleton
}

// Recount counts the account anew and replaces maildirsize.
func (s *Store) Recount(ctx context.Context) (used Limits, err error) { return Limits{}, errSkeleton }

// Mailbox opens a folder; Close it after use. All openings in one process share its state.
func (s *Store) Mailbox(ctx context.Context, name string) (*Mailbox, error) {
	return nil, errSkeleton
}

// Check looks for damage in all folders and repairs it when asked to. It never deletes mail.
func (s *Store) Check(ctx context.Context, repair bool, report func(Finding)) error {
	return errSkeleton
}

// Reindex builds index and cache of a folder anew; MODSEQ goes on above the ceiling.
func (s *Store) Reindex(ctx context.Context, name string) error { return errSkeleton }

// Mailbox is one folder. It may be used by any number of goroutines.
type Mailbox struct{}

// Close gives the folder back.
func (m *Mailbox) Close() error { return errSkeleton }

// Name is the folder's name.
func (m *Mailbox) Name() string { return "" }

// Select brings the folder up to date and returns a view of it. Unless readOnly, files in new/
// go to cur/ and the view claims them as \Recent.
func (m *Mailbox) Select(ctx context.Context, readOnly bool) (*View, error) {
	return nil, errSkeleton
}

// Append stores one message.
func (m *Mailbox) Append(ctx context.Context, it Item) (Copied, error) { return Copied{}, errSkeleton }

// AppendAll stores what next gives until io.EOF: all of it or, after an error, nothing.
func (m *Mailbox) AppendAll(ctx context.Context, next func() (Item, error)) (Copied, error) {
	return Copied{}, errSkeleton
}

// LockMaildrop keeps other POP3 sessions out, those of other processes too. It returns ErrInUse
// when one is there.
func (m *Mailbox) LockMaildrop(ctx context.Context) (unlock func() error, err error) {
	return nil, errSkeleton
}

// Watch sends on the channel when it is worth calling Sync. It never blocks, and says so again
// from time to time where the system cannot tell.
func (m *Mailbox) Watch(ctx context.Context) (<-chan struct{}, error) { return nil, errSkeleton }

// View is what one session sees of a folder: sequence numbers stay until Sync. It is used by
// one goroutine at a time.
type View struct{}

// Close ends the view.
func (v *View) Close() error { return errSkeleton }

// Len is the number of messages.
func (v *View) Len() int { return 0 }

// At is the message with a sequence number between 1 and Len.
func (v *View) At(seq int) Message { return Message{} }

// Seq is the sequence number of a UID, 0 when it is not there.
func (v *View) Seq(uid uint32) int { return 0 }

// All yields the messages first to last, by sequence number.
func (v *View) All(first, last int) iter.Seq2[int, Message] { return nil }

// UIDValidity, UIDNext, HighestModSeq, FirstUnseen (0: none) and Recent of the view.
func (v *View) UIDValidity() uint32   { return 0 }
func (v *View) UIDNext() uint32       { return 0 }
func (v *View) HighestModSeq() uint64 { return 0 }
func (v *View) FirstUnseen() int      { return 0 }
func (v *View) Recent() int           { return 0 }
func (v *View) ReadOnly() bool        { return false }

// ID is the MAILBOXID.
func (v *View) ID() string { return "" }

// Keywords names the bits of Message.Keywords; an unused bit is "".
func (v *View) Keywords() []string { return nil }

// Sync makes the view current.
func (v *View) Sync(ctx context.Context) (Changes, error) { return Changes{}, errSkeleton }

// SyncKeep is Sync for commands during which nothing may be expunged (RFC 9051 §7.5.1):
// messages that are gone stay in the view until the next Sync.
func (v *View) SyncKeep(ctx context.Context) (Changes, error) { return Changes{}, errSkeleton }

// Open opens a message.
func (v *View) Open(ctx context.Context, uid uint32) (*Body, error) { return nil, errSkeleton }

// Sizes makes the sizes of the given messages known: those that neither name nor index tell
// are read. Dates does so for Internal and Saved.
func (v *View) Sizes(ctx context.Context, uids []Range) error { return errSkeleton }

// Dates makes Internal and Saved of the given messages known.
func (v *View) Dates(ctx context.Context, uids []Range) error { return errSkeleton }

// EmailID is the EMAILID of a message.
func (v *View) EmailID(uid uint32) (string, error) { return "", errSkeleton }

// Store changes flags. The result is durable.
func (v *View) Store(ctx context.Context, uids []uint32, ch FlagChange) (Stored, error) {
	return Stored{}, errSkeleton
}

// Expunge removes messages; the caller chose them, with \Deleted or (POP3) without.
func (v *View) Expunge(ctx context.Context, uids []uint32) (gone []uint32, err error) {
	return nil, errSkeleton
}

// Copy copies messages into a folder of the same account: all or none.
func (v *View) Copy(ctx context.Context, uids []uint32, dst *Mailbox) (Copied, error) {
	return Copied{}, errSkeleton
}

// Move moves messages into a folder of the same account.
func (v *View) Move(ctx context.Context, uids []uint32, dst *Mailbox) (Copied, error) {
	return Copied{}, errSkeleton
}

// POP3 lists the maildrop in the order in which POP3 numbers it, with all sizes.
func (v *View) POP3(ctx context.Context) ([]POP3Entry, error) { return nil, errSkeleton }

// SetPOP3Keys keeps UIDLs for good.
func (v *View) SetPOP3Keys(ctx context.Context, keys map[uint32]string) error { return errSkeleton }

// ChangedSince yields the messages whose MODSEQ is above modseq.
func (v *View) ChangedSince(modseq uint64) iter.Seq2[int, Message] { return nil }

// VanishedSince returns which UIDs of the given ranges were expunged after modseq. Where that is
// not known any more, it returns all that are not there.
func (v *View) VanishedSince(modseq uint64, uids []Range) []Range { return nil }

// Cached yields rows for the given UIDs in ascending order, from the cache or by parsing.
func (v *View) Cached(ctx context.Context, uids []Range, what Columns) iter.Seq2[Row, error] {
	return nil
}
