package mailbox

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unsafe"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// The file pennypost-index is a snapshot with log records behind it; mmailbox(5) has the format.
const (
	indexMagic   = "PNYINDEX"
	indexVersion = 1
	indexFixed   = 8 + 2 + 2 + 4 + 8 + 4*4 + 8*5 + places*24 + 8 + 4*4
	dirEntry     = 16
	goneSize     = 16
	logFrame     = 8 // length and checksum in front of a record

	maxHeader = 64 << 10
	maxRecord = 1 << 30
	maxCount  = 1 << 27 // messages; 2^32 UIDs do not fit into memory anyway
)

// errNewer says that a later release wrote the index. It is left as it is.
var errNewer = errors.New("index has a newer format")

func appendHead(b []byte, h *head) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, h.validity)
	b = le.AppendUint32(b, h.next)
	b = le.AppendUint32(b, h.firstRecent)
	b = le.AppendUint32(b, h.lines)
	b = le.AppendUint64(b, h.modseq)
	b = le.AppendUint64(b, h.ceiling)
	b = le.AppendUint64(b, h.floor)
	b = le.AppendUint64(b, uint64(h.verify))
	b = le.AppendUint64(b, h.boot)
	for _, s := range h.stamps {
		b = le.AppendUint64(b, uint64(s.mtime))
		b = le.AppendUint64(b, s.ino)
		b = le.AppendUint64(b, uint64(s.size))
	}
	return le.AppendUint32(append(b, h.listBits, 0, 0, 0), h.listSum)
}

const headSize = 4*4 + 8*5 + places*24 + 8

func readHead(b []byte, h *head) {
	le := binary.LittleEndian
	h.validity, h.next, h.firstRecent, h.lines = le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:]), le.Uint32(b[12:])
	h.modseq, h.ceiling, h.floor = le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:])
	h.verify, h.boot = int64(le.Uint64(b[40:])), le.Uint64(b[48:])
	b = b[56:]
	for i := range h.stamps {
		h.stamps[i] = stamp{int64(le.Uint64(b)), le.Uint64(b[8:]), int64(le.Uint64(b[16:]))}
		b = b[24:]
	}
	h.listBits, h.listSum = b[0], le.Uint32(b[4:])
}

// pack is the chunk with names in the order of its records and nothing between them.
func (c *chunk) pack() (*chunk, error) {
	total, inOrder := 0, true
	for i := range c.recs {
		inOrder = inOrder && int(c.recs[i].name) == total
		total += c.recs[i].span()
		if c.recs[i].bits&bitGUID != 0 {
			g, err := c.guid(&c.recs[i])
			if err != nil {
				return nil, err
			}
			total += 1 + len(g)
		}
	}
	b, err := c.names.bytes()
	if err != nil || inOrder && total == len(b) {
		return c, err
	}
	out := &chunk{recs: make([]rec, 0, len(c.recs)), names: &blob{}}
	names := make([]byte, 0, total)
	for _, r := range c.recs {
		n := r.span()
		if r.bits&bitGUID != 0 {
			g, err := c.guid(&r)
			if err != nil {
				return nil, err
			}
			n += 1 + len(g)
		}
		if int(r.name)+n > len(b) {
			return nil, errDamaged
		}
		at := len(names)
		names = append(names, b[r.name:int(r.name)+n]...)
		r.name = uint32(at)
		out.recs = append(out.recs, r)
	}
	out.names = ready(names)
	out.count()
	return out, nil
}

func ready(names []byte) *blob {
	b := &blob{b: names}
	b.once.Do(func() {})
	return b
}

// regroup makes full chunks of what expunges have left.
func (s *state) regroup() (*state, error) {
	out := *s
	out.chunks = make([]*chunk, 0, s.n/chunkSize+1)
	var cur *chunk
	var names []byte
	for _, c := range s.chunks {
		p, err := c.pack()
		if err != nil {
			return nil, err
		}
		if len(p.recs) > chunkSize/2 && len(p.recs) <= 2*chunkSize {
			out.chunks, cur = append(out.chunks, p), nil
			continue
		}
		b, err := p.names.bytes()
		if err != nil {
			return nil, err
		}
		for i := range p.recs {
			if cur == nil || len(cur.recs) >= chunkSize {
				cur, names = &chunk{}, nil
				out.chunks = append(out.chunks, cur)
			}
			r := p.recs[i]
			end := len(b)
			if i+1 < len(p.recs) {
				end = int(p.recs[i+1].name)
			}
			at := len(names)
			names = append(names, b[r.name:end]...)
			r.name = uint32(at)
			cur.recs = append(cur.recs, r)
			cur.names = ready(names)
		}
	}
	for _, c := range out.chunks {
		c.count()
	}
	out.settle()
	return &out, nil
}

// fragmented tells whether the chunks have become too small.
func (s *state) fragmented() bool { return len(s.chunks) > 8 && len(s.chunks) > 3*(s.n/chunkSize) }

// writeSnapshot writes the state into an empty file and returns where the log begins.
func writeSnapshot(f durable.File, s *state) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	strs := appendStr(nil, s.guid)
	strs = binary.AppendUvarint(strs, uint64(len(s.keywords)))
	for _, k := range s.keywords {
		strs = appendStr(strs, k)
	}
	headLen := indexFixed + len(strs) + 4
	if headLen > maxHeader {
		return 0, errors.New("index header is too long")
	}
	dirLen := len(s.chunks)*dirEntry + 4
	w := &offsetWriter{f: f, off: int64(headLen + dirLen)}
	bw := bufio.NewWriterSize(w, 256<<10)
	dir := make([]byte, 0, dirLen)
	le := binary.LittleEndian
	var packed []*chunk
	buf := make([]byte, 0, chunkSize*recSize)
	namesLen := 0
	for _, c := range s.chunks {
		p, err := c.pack()
		if err != nil {
			return 0, err
		}
		packed = append(packed, p)
		buf = buf[:0]
		for i := range p.recs {
			buf = append(buf, make([]byte, recSize)...)
			p.recs[i].put(buf[i*recSize:])
		}
		names, err := p.names.bytes()
		if err != nil {
			return 0, err
		}
		namesLen += len(names)
		dir = le.AppendUint32(dir, uint32(len(p.recs)))
		dir = le.AppendUint32(dir, uint32(len(names)))
		dir = le.AppendUint32(dir, crc32.Checksum(buf, castagnoli()))
		dir = le.AppendUint32(dir, crc32.Checksum(names, castagnoli()))
		if _, err := bw.Write(buf); err != nil {
			return 0, err
		}
	}
	if err := writeGone(bw, s.gone); err != nil {
		return 0, err
	}
	for _, p := range packed {
		names, err := p.names.bytes()
		if err != nil {
			return 0, err
		}
		if _, err := bw.Write(names); err != nil {
			return 0, err
		}
	}
	if err := bw.Flush(); err != nil {
		return 0, err
	}
	h := append(make([]byte, 0, headLen+dirLen), indexMagic...)
	h = le.AppendUint16(h, indexVersion)
	h = le.AppendUint16(h, recSize)
	h = le.AppendUint32(h, uint32(headLen))
	h = le.AppendUint64(h, inode(info))
	h = appendHead(h, &s.head)
	for _, n := range []int{len(s.chunks), s.n, s.unseen, len(s.gone)} {
		h = le.AppendUint32(h, uint32(n))
	}
	h = append(h, strs...)
	h = le.AppendUint32(h, crc32.Checksum(h, castagnoli()))
	h = append(h, dir...)
	h = le.AppendUint32(h, crc32.Checksum(dir, castagnoli()))
	_, err = f.WriteAt(h, 0)
	return w.off, err
}

// writeGone writes the ranges of expunged UIDs and their checksum.
func writeGone(w io.Writer, gone []goneRange) error {
	le := binary.LittleEndian
	b := make([]byte, 0, len(gone)*goneSize+4)
	for _, g := range gone {
		b = le.AppendUint32(b, g.first)
		b = le.AppendUint32(b, g.last)
		b = le.AppendUint64(b, g.modseq)
	}
	_, err := w.Write(le.AppendUint32(b, crc32.Checksum(b, castagnoli())))
	return err
}

type offsetWriter struct {
	f   durable.File
	off int64
}

func (w *offsetWriter) Write(b []byte) (int, error) {
	n, err := w.f.WriteAt(b, w.off)
	w.off += int64(n)
	return n, err
}

func appendStr(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// snapshot is what readSnapshot found.
type snapshot struct {
	st    *state
	log   int64  // where the log begins
	inode uint64 // of the file when it was written: another one is a copy
}

// readSnapshot reads the state without its names, which come when they are needed.
func readSnapshot(f durable.File, size int64) (*snapshot, error) {
	first := make([]byte, min(size, 4096))
	if _, err := readAtFull(f, first, 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if len(first) < indexFixed+4 || string(first[:8]) != indexMagic {
		return nil, errDamaged
	}
	if v := le.Uint16(first[8:]); v > indexVersion {
		return nil, fmt.Errorf("%w: %d", errNewer, v)
	}
	headLen := int64(le.Uint32(first[12:]))
	if le.Uint16(first[10:]) != recSize || headLen < indexFixed+4 || headLen > maxHeader || headLen > size {
		return nil, errDamaged
	}
	h := first
	if headLen > int64(len(h)) {
		h = make([]byte, headLen)
		if _, err := readAtFull(f, h, 0); err != nil {
			return nil, err
		}
	}
	h = h[:headLen]
	if crc32.Checksum(h[:headLen-4], castagnoli()) != le.Uint32(h[headLen-4:]) {
		return nil, errDamaged
	}
	sn := &snapshot{st: &state{}, inode: le.Uint64(h[16:])}
	s := sn.st
	readHead(h[24:], &s.head)
	counts := h[24+headSize:]
	nchunks, n, ngone := int64(le.Uint32(counts)), int64(le.Uint32(counts[4:])), int64(le.Uint32(counts[12:]))
	if n > maxCount || nchunks > n || ngone > maxCount {
		return nil, errDamaged
	}
	d := decoder{b: h[indexFixed : headLen-4]}
	s.guid = d.str()
	s.keywords = d.strs(maildir.MaxKeywords)
	if d.bad || len(d.b) != 0 {
		return nil, errDamaged
	}
	fixed := nchunks*dirEntry + 4 + n*recSize + ngone*goneSize + 4
	if headLen+fixed > size {
		return nil, errDamaged
	}
	dir := make([]byte, nchunks*dirEntry+4)
	recs := make([]rec, n)
	gone := make([]byte, ngone*goneSize+4)
	at := headLen
	for _, b := range [][]byte{dir, recBytes(recs), gone} {
		if _, err := readAtFull(f, b, at); err != nil {
			return nil, err
		}
		at += int64(len(b))
	}
	var err error
	if sn.log, err = s.setBody(f, dir, recs, at, size); err != nil {
		return nil, err
	}
	g, sum := gone[:len(gone)-4], le.Uint32(gone[len(gone)-4:])
	if crc32.Checksum(g, castagnoli()) != sum {
		return nil, errDamaged
	}
	s.gone = make([]goneRange, ngone)
	for i := range s.gone {
		s.gone[i] = goneRange{le.Uint32(g), le.Uint32(g[4:]), le.Uint64(g[8:])}
		g = g[goneSize:]
	}
	s.settle()
	return sn, nil
}

// recBytes are the octets of records, which lie in memory as in the file except for the order
// of octets on some machines: reading 100,000 of them one by one takes as long as all else that
// a session does at its beginning.
func recBytes(recs []rec) []byte {
	if len(recs) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&recs[0])), len(recs)*recSize)
}

var _ [recSize]byte = [unsafe.Sizeof(rec{})]byte{}

// setBody makes chunks of directory and records, and returns where the names end.
func (s *state) setBody(f durable.File, dir []byte, recs []rec, namesAt, size int64) (int64, error) {
	le := binary.LittleEndian
	dir, sum := dir[:len(dir)-4], le.Uint32(dir[len(dir)-4:])
	if crc32.Checksum(dir, castagnoli()) != sum {
		return 0, errDamaged
	}
	last := uint32(0)
	s.chunks = make([]*chunk, 0, len(dir)/dirEntry+1)
	for ; len(dir) > 0; dir = dir[dirEntry:] {
		k, nl := int(le.Uint32(dir)), int64(le.Uint32(dir[4:]))
		if k == 0 || k > len(recs) || namesAt+nl > size {
			return 0, errDamaged
		}
		c := &chunk{recs: recs[:k:k], names: &blob{src: f, off: namesAt, n: int(nl), sum: le.Uint32(dir[12:])}}
		b := recBytes(c.recs)
		if crc32.Checksum(b, castagnoli()) != le.Uint32(dir[8:]) {
			return 0, errDamaged
		}
		if bigEndian() {
			for i := range c.recs {
				c.recs[i].get(b[i*recSize:])
			}
		}
		for i := range c.recs {
			if c.recs[i].uid <= last || c.recs[i].baseLen == 0 {
				return 0, errDamaged
			}
			last = c.recs[i].uid
		}
		c.count()
		s.chunks = append(s.chunks, c)
		recs, namesAt = recs[k:], namesAt+nl
	}
	if len(recs) != 0 || last >= s.next && last != 0 {
		return 0, errDamaged
	}
	return namesAt, nil
}

func bigEndian() bool { return binary.NativeEndian.Uint16([]byte{0, 1}) == 1 }

// decoder reads what edit has logged. After the first fault it gives zeros and bad is set.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.bad = true
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) str() string {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *decoder) strs(limit int) []string {
	n := d.uvarint()
	if n > uint64(limit) {
		d.bad = true
		return nil
	}
	out := make([]string, n)
	for i := range out {
		out[i] = d.str()
	}
	return out
}

// appendRecord frames what an edit has logged.
func appendRecord(dst []byte, h *head, ops []byte) []byte {
	le := binary.LittleEndian
	at := len(dst)
	dst = append(dst, make([]byte, logFrame)...)
	dst = appendHead(dst, h)
	dst = append(dst, ops...)
	payload := dst[at+logFrame:]
	le.PutUint32(dst[at:], uint32(len(payload)))
	le.PutUint32(dst[at+4:], crc32.Checksum(payload, castagnoli()))
	return dst
}

var errTorn = errors.New("log of the index is torn")

// replay applies the whole records in b to e and returns how many octets they take. errTorn says
// that something follows them that is no record, errDamaged that e is of no use any more.
func (e *edit) replay(b []byte) (used int64, err error) {
	le := binary.LittleEndian
	for len(b) > 0 {
		if len(b) < logFrame {
			return used, errTorn
		}
		n := int64(le.Uint32(b))
		if n < headSize || n > maxRecord || logFrame+n > int64(len(b)) {
			return used, errTorn
		}
		payload := b[logFrame : logFrame+n]
		if crc32.Checksum(payload, castagnoli()) != le.Uint32(b[4:]) {
			return used, errTorn
		}
		if !e.apply(payload) {
			return used, errDamaged
		}
		used += logFrame + n
		b = b[logFrame+n:]
	}
	return used, nil
}

// apply repeats the operations of one record.
func (e *edit) apply(payload []byte) bool {
	floor := e.head.floor
	readHead(payload, &e.head)
	e.head.floor = max(e.head.floor, floor)
	e.touched = true // the record's MODSEQ is that of its changes
	e.log, e.last = e.log[:0], 0
	d := decoder{b: payload[headSize:]}
	uid := int64(0)
	var err error
	for len(d.b) > 0 && !d.bad && err == nil {
		kind := d.byte()
		uid += d.varint()
		if uid < 0 || uid > 1<<32-1 {
			return false
		}
		err = e.applyOp(kind, uint32(uid), &d)
	}
	return err == nil && !d.bad
}

func (e *edit) applyOp(kind byte, uid uint32, d *decoder) error {
	switch kind {
	case opAdd:
		var f fresh
		f.uid, f.flags, f.bits, f.kw = uid, maildir.Flags(d.byte()), d.byte()&(bitNew|bitLiteral|bitGUID), uint32(d.uvarint())
		f.size, f.internal, f.saved = d.varint(), d.varint(), d.varint()
		f.base = d.str()
		if f.bits&bitLiteral != 0 {
			f.suffix = d.str()
		}
		if f.bits&bitGUID != 0 {
			f.guid = d.str()
		}
		if d.bad {
			return errDamaged
		}
		return e.add(&f)
	case opChange:
		l := look{flags: maildir.Flags(d.byte()), bits: d.byte() & (bitNew | bitLiteral), kw: uint32(d.uvarint())}
		if l.bits&bitLiteral != 0 {
			l.suffix = d.str()
		}
		if d.bad || len(l.suffix) > 255 {
			return errDamaged
		}
		return e.change(uid, l)
	case opGone:
		return e.remove(uid)
	case opLearn:
		return e.learn(uid, d.varint(), d.varint(), d.varint())
	case opKeywords:
		e.setKeywords(d.strs(maildir.MaxKeywords))
	case opFloor:
		e.forget()
	case opGUID:
		e.setGUID(d.str())
	default:
		return errDamaged
	}
	return nil
}

var _ io.Writer = (*offsetWriter)(nil)
