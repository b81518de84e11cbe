package message

import (
	"encoding/binary"
	"errors"
)

// ErrMap says that what is to be read was not written by AppendMap.
var ErrMap = errors.New("not a map of message parts")

// AppendMap appends offsets, sizes, kinds, encodings and charsets of p and its parts in a
// form that ReadMap reads back: all that is needed to answer BODY[1.2] and BINARY[1.2] and
// to search in texts without parsing again.
//
// A part is a kind and numbers: the offset of its header from that of the part around it,
// the octets of header and body, by how much each is longer on the wire, their lines, the
// number of its parts; then encoding and charset, each with its length before it; then its
// parts. Numbers are unsigned varints.
func AppendMap(dst []byte, p *Part) []byte { return appendMap(dst, p, 0) }

func appendMap(dst []byte, p *Part, base int64) []byte {
	dst = append(dst, byte(p.Kind))
	for _, n := range [8]int64{
		p.Header - base, p.Body - p.Header, p.End - p.Body,
		p.HeaderWire - (p.Body - p.Header), p.BodyWire - (p.End - p.Body),
		p.HeaderLines, p.BodyLines, int64(len(p.Parts)),
	} {
		dst = binary.AppendUvarint(dst, uint64(n))
	}
	charset := p.Param("charset")
	if p.Kind != Text {
		charset = nil
	}
	for _, v := range [2][]byte{p.Encoding, charset} {
		v = v[:min(len(v), maxCharset)]
		dst = append(binary.AppendUvarint(dst, uint64(len(v))), v...)
	}
	for _, q := range p.Parts {
		dst = appendMap(dst, q, p.Header)
	}
	return dst
}

// ReadMap returns the parts that AppendMap wrote at the beginning of b, and the rest of b.
// The parts share b's memory.
func ReadMap(b []byte) (*Part, []byte, error) {
	r := mapReader{b: b}
	p := r.part(0, 1)
	if r.bad {
		return nil, b, ErrMap
	}
	return p, r.b, nil
}

type mapReader struct {
	b     []byte
	count int
	bad   bool
}

func (r *mapReader) number() int64 {
	n, k := binary.Uvarint(r.b)
	if k <= 0 || n > 1<<56 {
		r.bad = true
		return 0
	}
	r.b = r.b[k:]
	return int64(n)
}

func (r *mapReader) bytes() []byte {
	n := r.number()
	if n > int64(len(r.b)) {
		r.bad = true
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	if n == 0 {
		return nil
	}
	return v
}

func (r *mapReader) part(base int64, depth int) *Part {
	p := new(Part)
	r.count++
	if len(r.b) == 0 || r.b[0] > byte(Opaque) || depth > maxDepth+1 || r.count > maxParts+maxDepth {
		r.bad = true
		return p
	}
	p.Kind = Kind(r.b[0])
	r.b = r.b[1:]
	p.Header = base + r.number()
	p.Body = p.Header + r.number()
	p.End = p.Body + r.number()
	p.HeaderWire = p.Body - p.Header + r.number()
	p.BodyWire = p.End - p.Body + r.number()
	p.HeaderLines, p.BodyLines = r.number(), r.number()
	n := r.number()
	p.Encoding = r.bytes()
	if charset := r.bytes(); charset != nil {
		p.Params = []Param{{[]byte("charset"), charset}}
	}
	if n > int64(len(r.b)) {
		r.bad = true
	}
	for ; n > 0 && !r.bad; n-- {
		p.Parts = append(p.Parts, r.part(p.Header, depth+1))
	}
	return p
}
