package message

import (
	"bytes"
	"encoding/binary"
	"io"
)

const (
	maxParts    = 10_000
	maxDepth    = 100
	maxBoundary = 80 // RFC 2046 §5.1.1 allows 70; of a longer one the beginning counts

	keepField = 256 << 10 // octets kept of one field
	keepTotal = 4 << 20   // octets kept of all fields of a message and its parts
)

// Parser parses one message after the other in the same memory. It is not for concurrent
// use; the zero value is ready. What it returned is valid until its next use.
type Parser struct {
	src           source
	arena         []byte // values of kept fields
	kept          int    // octets kept so far
	parts         slab[Part]
	heads         slab[Header]
	lists         slab[*Part]
	param         slab[Param]
	langs         slab[[]byte]
	open          [][]byte         // boundaries of the multiparts whose end has not been seen
	heads8, masks [maxDepth]uint64 // the first octets of each, and which of the eight count
	kids          []*Part          // children of parts not yet complete
	count         int
	depth         int

	first [256]uint8 // how many of open begin with this octet
	deaf  int        // an index in open whose lines begin no part any more, -1 for none

	hit   int  // index in open of the boundary line at hand, -1 at the end of the message
	close bool // it ends its multipart
	at    mark // where the content before that line ends

	field []byte // the field being read, unfolded, in arena
	raw   []rawParam
}

// Parse is Parser.Parse for a single message.
func Parse(r io.ReaderAt, size int64) (*Part, error) { return new(Parser).Parse(r, size) }

// Parse reads the message of size octets in r. The error is r's; no content makes one.
func (p *Parser) Parse(r io.ReaderAt, size int64) (*Part, error) {
	p.reset()
	p.src.reset(r, size)
	root := p.part(false, true)
	return root, p.src.err
}

func (p *Parser) reset() {
	p.arena, p.kept = p.arena[:0], 0
	p.parts.reset()
	p.heads.reset()
	p.lists.reset()
	p.param.reset()
	p.langs.reset()
	if cap(p.kids) > 64 {
		p.kids = nil // so that one absurd message does not stay in memory
	}
	p.field = nil
	p.open, p.kids, p.count, p.depth, p.deaf = p.open[:0], p.kids[:0], 0, 0, -1
	p.first = [256]uint8{}
}

// part parses a part from its header on. mime says that it is one of a multipart, message
// that it is a whole message. digest parts come through partOf.
func (p *Parser) part(mime, message bool) *Part { return p.partOf(mime, message, false) }

func (p *Parser) partOf(mime, message, digest bool) *Part {
	p.count++
	p.depth++
	q := p.parts.one()
	start := p.src.mark()
	q.Header = start.off
	if message {
		q.Fields = p.heads.one()
	}
	bound, inside := p.header(q, mime, digest)
	body := p.src.mark()
	if !inside {
		body = p.at
	}
	q.Body = body.off
	q.HeaderWire, q.HeaderLines = body.octets-start.octets, body.lines-start.lines
	switch {
	case inside:
		p.content(q, bound)
	case q.Kind == Message:
		q.Parts = append(p.lists.take(1), p.empty())
	}
	q.End = p.at.off
	q.BodyWire, q.BodyLines = p.at.octets-body.octets, p.at.lines-body.lines
	p.depth--
	return q
}

// content parses the body of q, of which only the header has been read.
func (p *Parser) content(q *Part, bound []byte) {
	switch {
	case q.Kind == Multipart && p.depth >= maxDepth, q.Kind == Message && (p.depth >= maxDepth || p.count >= maxParts):
		q.Kind = Opaque
		p.body()
	case q.Kind == Message:
		q.Parts = append(p.lists.take(1), p.part(false, true))
	case q.Kind == Multipart && bound != nil:
		p.multipart(q, bound)
	default:
		p.body()
	}
}

// empty is the message in a part whose body never begins.
func (p *Parser) empty() *Part {
	q := p.parts.one()
	q.Header, q.Body, q.End = p.at.off, p.at.off, p.at.off
	q.Kind, q.Fields = Text, p.heads.one()
	return q
}

func (p *Parser) multipart(q *Part, bound []byte) {
	digest := bytes.EqualFold(q.Subtype, []byte("digest"))
	k := len(p.open)
	p.push(bound)
	first := len(p.kids)
	p.body() // preamble
	for p.hit == k && !p.close {
		p.src.skipLine()
		if p.count < maxParts {
			p.kids = append(p.kids, p.partOf(true, false, digest))
		} else {
			p.deaf = k
			p.body()
			p.deaf = -1
		}
	}
	p.pop()
	if p.hit == k {
		p.src.skipLine()
		p.body() // epilogue
	}
	q.Parts = append(p.lists.take(len(p.kids)-first), p.kids[first:]...)
	p.kids = p.kids[:first]
}

// push opens a boundary. A line that begins none of a hundred costs a hundred comparisons
// of one word.
func (p *Parser) push(name []byte) {
	i := len(p.open)
	name = name[:min(len(name), maxBoundary)]
	p.open = append(p.open, name)
	p.heads8[i], p.masks[i] = word(name), ^uint64(0)
	if n := len(name); n < 8 {
		p.masks[i] >>= 8 * (8 - n)
		p.heads8[i] &= p.masks[i]
	}
	p.first[name[0]]++
}

func (p *Parser) pop() {
	i := len(p.open) - 1
	p.first[p.open[i][0]]--
	p.open = p.open[:i]
}

// word is the first eight octets of b. Those after its end are whatever lies there.
func word(b []byte) uint64 {
	if cap(b) >= 8 {
		return binary.LittleEndian.Uint64(b[:8])
	}
	var w [8]byte
	copy(w[:], b)
	return binary.LittleEndian.Uint64(w[:])
}

// body reads on to the line of an open boundary, or to the end, and sets hit, close and at.
func (p *Parser) body() {
	s := &p.src
	if len(p.open) == 0 {
		p.toEnd()
		return
	}
	fresh := true // pos is where this body begins: the line end before it is not its own
	for {
		if !s.cont {
			if b := s.peek(); len(b) == 0 {
				break
			} else if b[0] == '-' && p.delimiter(b) {
				if p.at = s.mark(); !fresh {
					p.at = s.beforeLine()
				}
				return
			}
		}
		if s.pos == s.end && !s.more() {
			break
		}
		s.skip(p.plain(s.buf[s.pos:s.end]))
		fresh = false
	}
	p.hit, p.close, p.at = -1, false, s.mark()
}

// plain returns how many octets of b, which is the unread window and whose first line is no
// delimiter, can be passed over before a line that may be one: in steps as large as can be,
// for this is where the time of large messages goes.
func (p *Parser) plain(b []byte) int {
	for from := 0; ; {
		i := bytes.Index(b[from:], dashes)
		if i < 0 {
			break
		}
		from += i + 1 // the line
		if from+2 == len(b) {
			return from
		}
		if p.first[b[from+2]] == 0 {
			continue
		}
		end := bytes.IndexByte(b[from+2:], '\n')
		if end < 0 || p.delimiter(b[from:from+2+end+1]) {
			return from
		}
	}
	if n := len(b); n >= 2 && b[n-2] == '\n' && b[n-1] == '-' {
		return n - 1
	}
	return len(b)
}

var dashes = []byte("\n--")

// toEnd reads what is left.
func (p *Parser) toEnd() {
	s := &p.src
	for s.pos < s.end || s.more() {
		s.skip(s.end - s.pos)
	}
	p.hit, p.close, p.at = -1, false, s.mark()
}

// delimiter tells whether line is one of an open boundary, and sets hit and close. As in
// Dovecot a line only needs to begin with the boundary (RFC 2046 §5.1.1: padding, and
// whatever gateways add), so the longest that fits is meant, of equal ones the innermost.
func (p *Parser) delimiter(line []byte) bool {
	if len(p.open) == 0 || len(line) < 3 || line[0] != '-' || line[1] != '-' {
		return false
	}
	if p.first[line[2]] == 0 {
		return false
	}
	line = trimEOL(line[2:])
	w := word(line)
	heads, masks := p.heads8[:len(p.open)], p.masks[:len(p.open)]
	best := -1
	for i, h := range heads {
		if (w^h)&masks[i] != 0 {
			continue
		}
		if name := p.open[i]; (best < 0 || len(name) >= len(p.open[best])) && bytes.HasPrefix(line, name) {
			best = i
		}
	}
	if best < 0 {
		return false
	}
	p.hit, p.close = best, bytes.HasPrefix(line[len(p.open[best]):], []byte("--"))
	return best != p.deaf || p.close
}

func trimEOL(b []byte) []byte {
	if n := len(b); n > 0 && b[n-1] == '\n' {
		b = b[:n-1]
		if n > 1 && b[n-2] == '\r' {
			b = b[:n-2]
		}
	}
	return b
}
