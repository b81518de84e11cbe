package mailbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"pennypost/internal/durable"
)

// The file pennypost-cache holds what parsing a message gave, so that it is done once. It is a
// header and then blocks of messages, each with its columns apart, so that a search reads the
// header fields of all messages and nothing else. mmailbox(5) has the format.
const (
	cacheName    = "pennypost-cache"
	cacheTmp     = "pennypost-cache.tmp"
	cacheMagic   = "PNYCACHE"
	cacheVersion = 1
	cacheHead    = 24
	blockHead    = 8 + 4*columns*2 + 8
	blockMark    = 0x4b434c42 // "BLCK"

	columns  = 5
	maxBlock = 512     // messages
	maxBytes = 8 << 20 // of one block, about
	// smallBlocks is how many blocks of few messages make it worth writing the file anew.
	smallBlocks = 256
)

// block is where the data of some messages are.
type block struct {
	uids  []uint32
	start [columns]int64 // of the offsets of a column, which its data follow
	size  [columns]int64
	sum   [columns]uint32
}

// place is where a message is.
type place struct {
	uid   uint32
	block int32
	pos   int32
}

// cache is the open file.
type cache struct {
	m  *Mailbox
	mu sync.Mutex

	f      durable.File
	at     stamp
	end    int64 // of the whole blocks
	blocks []*block
	places []place // by UID; of several the last counts
	newer  bool    // a later release keeps the file
}

func (c *cache) path() string { return filepath.Join(c.m.indexAt, cacheName) }

// refresh reads which blocks there are. c.mu is held.
func (c *cache) refresh(validity uint32) error {
	if c.newer {
		return nil
	}
	at, err := c.m.lstat(c.path())
	if err != nil {
		return err
	}
	if c.f != nil && at == c.at {
		return nil
	}
	if c.f == nil || at.ino != c.at.ino || at.size < c.end {
		c.f, c.blocks, c.places, c.end = nil, nil, nil, 0
		if at == (stamp{}) {
			return nil
		}
		f, err := c.m.fs().OpenFile(c.path(), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		h := make([]byte, cacheHead)
		if _, err := readAtFull(f, h, 0); err != nil || !c.header(h, validity) {
			return f.Close() // of no use: the next writer replaces it
		}
		c.f, c.end = f, cacheHead
	}
	n := len(c.blocks)
	for {
		b, next := readBlock(c.f, c.end, at.size)
		if b == nil {
			break // what follows is not finished, or torn
		}
		c.blocks = append(c.blocks, b)
		c.end = next
	}
	c.at = at
	if len(c.blocks) > n {
		c.index(n)
	}
	return nil
}

func (c *cache) header(h []byte, validity uint32) bool {
	le := binary.LittleEndian
	if string(h[:8]) != cacheMagic || crc32.Checksum(h[:20], castagnoli()) != le.Uint32(h[20:]) {
		return false
	}
	if v := le.Uint32(h[8:]); v > cacheVersion {
		c.newer = true
		c.m.store.log.Warn("a later release keeps the cache of a mailbox; it is not used", "mailbox", c.m.name)
		return false
	}
	return le.Uint32(h[8:]) == cacheVersion && le.Uint32(h[12:]) == validity && le.Uint32(h[16:]) == columns
}

func appendCacheHead(validity uint32) []byte {
	le := binary.LittleEndian
	h := append(make([]byte, 0, cacheHead), cacheMagic...)
	h = le.AppendUint32(h, cacheVersion)
	h = le.AppendUint32(h, validity)
	h = le.AppendUint32(h, columns)
	return le.AppendUint32(h, crc32.Checksum(h, castagnoli()))
}

// readBlock reads the head of the block at off; nil where there is none.
func readBlock(f durable.File, off, size int64) (*block, int64) {
	if off+blockHead > size {
		return nil, 0
	}
	h := make([]byte, blockHead+4*maxBlock)
	h = h[:min(int64(len(h)), size-off)]
	if _, err := readAtFull(f, h, off); err != nil {
		return nil, 0
	}
	le := binary.LittleEndian
	n := int(le.Uint32(h[4:]))
	if le.Uint32(h) != blockMark || n == 0 || n > maxBlock || len(h) < blockHead+4*n {
		return nil, 0
	}
	b := &block{uids: make([]uint32, n)}
	at := off + blockHead + 4*int64(n)
	for i := range columns {
		b.start[i], b.size[i], b.sum[i] = at, int64(le.Uint32(h[8+8*i:])), le.Uint32(h[12+8*i:])
		if b.size[i] < 4*int64(n) {
			return nil, 0
		}
		at += b.size[i]
	}
	if at > size || le.Uint32(h[blockHead-4:]) != crc32.Update(crc32.Checksum(h[:blockHead-8], castagnoli()), castagnoli(), h[blockHead:blockHead+4*n]) {
		return nil, 0
	}
	for i := range b.uids {
		b.uids[i] = le.Uint32(h[blockHead+4*i:])
	}
	return b, at
}

// index adds the messages of blocks from n on to places.
func (c *cache) index(n int) {
	for k := n; k < len(c.blocks); k++ {
		for j, uid := range c.blocks[k].uids {
			c.places = append(c.places, place{uid, int32(k), int32(j)})
		}
	}
	slices.SortStableFunc(c.places, func(a, b place) int { return int(int64(a.uid) - int64(b.uid)) })
	out := c.places[:0]
	for _, p := range c.places {
		if k := len(out); k > 0 && out[k-1].uid == p.uid {
			out[k-1] = p
			continue
		}
		out = append(out, p)
	}
	c.places = out
}

func (c *cache) find(uid uint32) (place, bool) {
	i, ok := slices.BinarySearchFunc(c.places, uid, func(p place, u uint32) int { return int(int64(p.uid) - int64(u)) })
	if !ok {
		return place{}, false
	}
	return c.places[i], true
}

// column is the data of one column of a block.
type column struct {
	n int
	b []byte // offsets of the ends, then the data
}

func (c column) at(i int) []byte {
	le := binary.LittleEndian
	start := 0
	if i > 0 {
		start = int(le.Uint32(c.b[4*i-4:]))
	}
	return c.b[4*c.n+start : 4*c.n+int(le.Uint32(c.b[4*i:]))]
}

// read reads a column; errDamaged when it is not what was written.
func (b *block) read(f durable.File, i int, buf []byte) (column, []byte, error) {
	buf = slices.Grow(buf[:0], int(b.size[i]))[:b.size[i]]
	if _, err := readAtFull(f, buf, b.start[i]); err != nil {
		return column{}, buf, errors.Join(errDamaged, err)
	}
	if crc32.Checksum(buf, castagnoli()) != b.sum[i] {
		return column{}, buf, errDamaged
	}
	c := column{len(b.uids), buf}
	last, size := uint32(0), uint32(len(buf)-4*c.n)
	for j := range c.n {
		end := binary.LittleEndian.Uint32(buf[4*j:])
		if end < last || end > size {
			return column{}, buf, errDamaged
		}
		last = end
	}
	return c, buf, nil
}

// encodeBlock makes the octets of a block.
func encodeBlock(uids []uint32, cols *[columns][][]byte) []byte {
	le := binary.LittleEndian
	var data []byte
	h := le.AppendUint32(nil, blockMark)
	h = le.AppendUint32(h, uint32(len(uids)))
	for i := range columns {
		at := len(data)
		end := 0
		for _, v := range cols[i] {
			end += len(v)
			data = le.AppendUint32(data, uint32(end))
		}
		for _, v := range cols[i] {
			data = append(data, v...)
		}
		h = le.AppendUint32(h, uint32(len(data)-at))
		h = le.AppendUint32(h, crc32.Checksum(data[at:], castagnoli()))
	}
	var list []byte
	for _, u := range uids {
		list = le.AppendUint32(list, u)
	}
	sum := crc32.Update(crc32.Checksum(h, castagnoli()), castagnoli(), list)
	h = le.AppendUint32(h, 0) // room for a later use
	h = le.AppendUint32(h, sum)
	return append(append(h, list...), data...)
}

// add appends a block. Failing is no harm: the messages are parsed again. Another process that
// writes just now is not waited for.
func (c *cache) add(validity uint32, b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.newer {
		return nil
	}
	if err := c.refresh(validity); err != nil {
		return err
	}
	if c.f == nil {
		if err := c.create(validity); err != nil {
			return err
		}
	}
	if err := durable.TryLock(c.f, false); err != nil {
		if errors.Is(err, durable.ErrLocked) {
			return nil
		}
		return err
	}
	f := c.f
	defer func() { _ = durable.Unlock(f) }() // the descriptor goes with the mailbox
	if err := c.refresh(validity); err != nil || c.f != f {
		return err
	}
	// What a dead writer has left behind the last block is written over, and cut.
	err := f.Truncate(c.end)
	if err == nil {
		_, err = f.WriteAt(b, c.end)
	}
	if err != nil {
		return errors.Join(err, f.Truncate(c.end))
	}
	if err := c.refresh(validity); err != nil {
		return err
	}
	if c.small() > smallBlocks {
		return c.merge(validity)
	}
	return nil
}

func (c *cache) create(validity uint32) error {
	tmp := filepath.Join(c.m.indexAt, cacheTmp)
	if err := c.write(tmp, appendCacheHead(validity), func(durable.File) error { return nil }); err != nil {
		return err
	}
	return c.refresh(validity)
}

// write replaces the file.
func (c *cache) write(tmp string, head []byte, fill func(f durable.File) error) error {
	fsys := c.m.fs()
	if err := fsys.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := fsys.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(head)
	if err == nil {
		err = fill(f)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = fsys.Rename(tmp, c.path())
	}
	if err != nil {
		return fmt.Errorf("write cache: %w", errors.Join(err, fsys.Remove(tmp)))
	}
	return nil
}

func (c *cache) small() (n int) {
	for _, b := range c.blocks {
		if len(b.uids) < maxBlock/8 {
			n++
		}
	}
	return n
}

// merge writes the file anew, in full blocks and without messages that are gone. The lock of
// the old file is held.
func (c *cache) merge(validity uint32) error {
	st := c.m.st.Load()
	old, places := c.f, c.places
	err := c.write(filepath.Join(c.m.indexAt, cacheTmp), appendCacheHead(validity), func(f durable.File) error {
		var uids []uint32
		var cols [columns][][]byte
		size := 0
		flush := func() error {
			if len(uids) == 0 {
				return nil
			}
			_, err := f.Write(encodeBlock(uids, &cols))
			uids, cols, size = nil, [columns][][]byte{}, 0
			return err
		}
		var open *block
		var data [columns]column
		for _, p := range places {
			if st != nil && st.validity == validity {
				if _, ok := st.find(p.uid); !ok {
					continue
				}
			}
			if b := c.blocks[p.block]; b != open {
				open = b
				var err error
				for i := range columns {
					if data[i], _, err = b.read(old, i, nil); err != nil {
						open = nil
						break
					}
				}
			}
			if open == nil {
				continue
			}
			uids = append(uids, p.uid)
			for i := range columns {
				v := data[i].at(int(p.pos))
				cols[i] = append(cols[i], v)
				size += len(v)
			}
			if len(uids) == maxBlock || size > maxBytes {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		return flush()
	})
	if err != nil {
		return err
	}
	return c.refresh(validity)
}

// drop forgets a file in which something was not what it should be.
func (c *cache) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.f != nil && !c.newer {
		// Failing shows at the next reading.
		_ = c.m.fs().Remove(c.path())
		c.f = nil
	}
}
