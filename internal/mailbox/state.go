package mailbox

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"sort"
	"sync"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// A message is a fixed-size record in an immutable chunk. A state is a list of chunks; an edit
// copies the chunks that it touches and shares the others, so that a thousand views of one
// mailbox hold it once and a Sync looks only at what differs.

const chunkSize = 1024 // records of a full chunk

// unknown stands for a size or a time that nobody has looked up yet.
const unknown = -1 << 63

const (
	bitNew     = 1 << iota // the file is in new/
	bitLiteral             // what follows the base name is stored, not derived from the flags
	bitGUID                // a GUID is stored behind the name
)

// rec is one message.
type rec struct {
	modseq   uint64
	size     int64 // octets as sent
	internal int64 // seconds
	saved    int64 // seconds
	uid      uint32
	kw       uint32
	name     uint32 // offset in the chunk's names
	baseLen  uint8
	sufLen   uint8 // with bitLiteral
	flags    maildir.Flags
	bits     uint8
}

const recSize = 48

func (r *rec) put(b []byte) {
	le := binary.LittleEndian
	le.PutUint64(b, r.modseq)
	le.PutUint64(b[8:], uint64(r.size))
	le.PutUint64(b[16:], uint64(r.internal))
	le.PutUint64(b[24:], uint64(r.saved))
	le.PutUint32(b[32:], r.uid)
	le.PutUint32(b[36:], r.kw)
	le.PutUint32(b[40:], r.name)
	b[44], b[45], b[46], b[47] = r.baseLen, r.sufLen, byte(r.flags), r.bits
}

func (r *rec) get(b []byte) {
	_ = b[47]
	le := binary.LittleEndian
	r.modseq = le.Uint64(b)
	r.size = int64(le.Uint64(b[8:]))
	r.internal = int64(le.Uint64(b[16:]))
	r.saved = int64(le.Uint64(b[24:]))
	r.uid = le.Uint32(b[32:])
	r.kw = le.Uint32(b[36:])
	r.name = le.Uint32(b[40:])
	r.baseLen, r.sufLen, r.flags, r.bits = b[44], b[45], maildir.Flags(b[46]), b[47]
}

// span is how many octets of the names belong to the record, without the GUID.
func (r *rec) span() int {
	n := int(r.baseLen)
	if r.bits&bitLiteral != 0 {
		n += int(r.sufLen)
	}
	return n
}

var errDamaged = errors.New("index is damaged")

// blob holds the names of a chunk. One that came from a snapshot is read when it is needed.
type blob struct {
	once sync.Once
	b    []byte
	err  error
	src  durable.File // until it is read
	off  int64
	n    int
	sum  uint32
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // made once, inside crc32

func (b *blob) bytes() ([]byte, error) {
	b.once.Do(func() {
		if b.src == nil {
			return
		}
		buf := make([]byte, b.n)
		if _, err := readAtFull(b.src, buf, b.off); err != nil {
			b.err = errors.Join(errDamaged, err)
		} else if crc32.Checksum(buf, castagnoli()) != b.sum {
			b.err = errDamaged
		} else {
			b.b = buf
		}
		b.src = nil
	})
	return b.b, b.err
}

func readAtFull(f durable.File, b []byte, off int64) (int, error) {
	n := 0
	for n < len(b) {
		k, err := f.ReadAt(b[n:], off+int64(n))
		n += k
		if n < len(b) && err != nil {
			return n, err
		}
	}
	return n, nil
}

// chunk is a run of messages in UID order.
type chunk struct {
	recs   []rec
	names  *blob
	unseen int
	news   int // messages whose files are in new/

	deleted, sizeless int // messages with T; messages of unknown size
	size, deletedSize int64
}

// base is the name by which the message is known.
func (c *chunk) base(r *rec) (string, error) {
	b, err := c.names.bytes()
	if err != nil {
		return "", err
	}
	end := int(r.name) + int(r.baseLen)
	if end > len(b) {
		return "", errDamaged
	}
	return string(b[r.name:end]), nil
}

// file appends the file name.
func (c *chunk) file(dst []byte, r *rec) ([]byte, error) {
	b, err := c.names.bytes()
	if err != nil {
		return dst, err
	}
	end := int(r.name) + r.span()
	if end > len(b) {
		return dst, errDamaged
	}
	dst = append(dst, b[r.name:end]...)
	if r.bits&bitLiteral != 0 {
		return dst, nil
	}
	return appendSuffix(dst, r), nil
}

// appendSuffix appends what the flags make of a name when nothing unusual is in it.
func appendSuffix(dst []byte, r *rec) []byte {
	if r.bits&bitNew != 0 {
		return dst
	}
	return maildir.Name{Flags: r.flags, Keywords: r.kw, Info: true}.Append(dst)
}

// guid is the GUID of the uidlist line, "" where the base name serves.
func (c *chunk) guid(r *rec) (string, error) {
	if r.bits&bitGUID == 0 {
		return "", nil
	}
	b, err := c.names.bytes()
	if err != nil {
		return "", err
	}
	at := int(r.name) + r.span()
	if at >= len(b) || at+1+int(b[at]) > len(b) {
		return "", errDamaged
	}
	return string(b[at+1 : at+1+int(b[at])]), nil
}

func (c *chunk) count() {
	c.unseen, c.news, c.deleted, c.sizeless, c.size, c.deletedSize = 0, 0, 0, 0, 0, 0
	for i := range c.recs {
		r := &c.recs[i]
		n := max(r.size, 0)
		if r.size < 0 {
			c.sizeless++
		}
		c.size += n
		if r.flags&maildir.Trashed != 0 {
			c.deleted++
			c.deletedSize += n
		}
		if c.recs[i].bits&bitNew != 0 {
			c.news++
		}
		if c.recs[i].flags&maildir.Seen == 0 {
			c.unseen++
		}
	}
}

// goneRange is a run of UIDs that were expunged together.
type goneRange struct {
	first, last uint32
	modseq      uint64
}

// stamp is what stat tells of a file or directory: another stamp is another content. The same
// stamp is the same content unless it is younger than the file system's clock can tell.
type stamp struct {
	mtime int64 // nanoseconds
	ino   uint64
	size  int64
}

// The places whose stamps say whether the index is current.
const (
	atNew = iota
	atCur
	atList
	atKeywords
	places
)

// head is what a state knows besides its messages.
type head struct {
	validity    uint32
	next        uint32 // UIDNEXT
	firstRecent uint32 // messages from here on are \Recent for the next who asks
	lines       uint32 // lines of the uidlist, dead ones included
	modseq      uint64
	ceiling     uint64 // MODSEQs up to here are reserved in the uidlist
	floor       uint64 // expunges up to this MODSEQ are not all known
	verify      int64  // nanoseconds since 1970: a scan is due then; 0: never
	boot        uint64 // of the machine, at the last commit
	stamps      [places]stamp
	listBits    uint8  // which keys the uidlist has
	listSum     uint32 // of its first line: inode numbers come back when a file is replaced twice
}

const (
	listPOP3 = 1 << iota // P or O keys
)

// state is one version of a mailbox. It never changes.
type state struct {
	head
	chunks   []*chunk
	first    []int // number of messages before each chunk
	n        int
	unseen   int
	news     int
	gone     []goneRange // by MODSEQ
	keywords []string    // by letter
	guid     string      // of the uidlist
}

// at finds the message with an index from 0.
func (s *state) at(i int) (*chunk, *rec) {
	k := sort.Search(len(s.first), func(k int) bool { return s.first[k] > i }) - 1
	c := s.chunks[k]
	return c, &c.recs[i-s.first[k]]
}

// find returns the index of the first message whose UID is uid or more, and whether it is uid.
func (s *state) find(uid uint32) (int, bool) {
	k := sort.Search(len(s.chunks), func(k int) bool { return s.chunks[k].recs[0].uid > uid }) - 1
	if k < 0 {
		return 0, false
	}
	c := s.chunks[k]
	j := sort.Search(len(c.recs), func(j int) bool { return c.recs[j].uid >= uid })
	return s.first[k] + j, j < len(c.recs) && c.recs[j].uid == uid
}

// settle computes what is derived from the chunks.
func (s *state) settle() {
	s.first = make([]int, len(s.chunks))
	s.n, s.unseen, s.news = 0, 0, 0
	for k, c := range s.chunks {
		s.first[k] = s.n
		s.n += len(c.recs)
		s.unseen += c.unseen
		s.news += c.news
	}
}
