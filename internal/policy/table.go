package policy

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"pennypost/internal/durable"
)

// The layout of a state file, mpolicy(5): a header block and buckets of records, all of fixed
// size, numbers in little-endian order.
const (
	blockSize  = 4096
	recordSize = 32
	perBucket  = blockSize / recordSize
	maxBuckets = 1 << 16
	magic      = "pennypost-policy 1\n"
	seedAt     = 32
	bucketsAt  = 48
	headerSum  = 52
)

// lockWait bounds how long a client waits for another process that holds the lock, which it
// does for microseconds unless it was stopped.
const lockWait = 2 * time.Second

// lockPause is how long the file is left alone after such a wait: clients come by one at a time,
// and must not wait one after the other.
const lockPause = time.Second

var (
	errForeign = errors.New("not a state file of this version (move it away and it is made anew)")
	errBusy    = errors.New("locked for too long by another process")
)

// table is a hash table in a file, shared by any number of processes. A look-up reads one block
// and writes one record, whatever the table holds: a process for one connection must not read
// it all. Nothing is synced: after a power cut a record is old or missing, a torn one fails its
// checksum, and the worst that follows is that a client is asked once more. It may be used
// concurrently.
type table struct {
	path    string
	buckets uint32 // of a file that is made
	dry     bool   // look at the file, change nothing

	mu   sync.Mutex
	busy time.Time // when the lock was waited for in vain
	f    *os.File
	seed [16]byte
	n    uint32
	buf  [blockSize]byte
}

// record is one entry. What the numbers mean is the business of the caller; last orders records
// by age when a bucket is full.
type record struct {
	key  uint64 // never 0, which marks a free place
	a, b uint32
	c    uint32
	pid  uint32
	last uint32
}

// key hashes what a record is about. The seed is the file's own: nobody outside can aim at one
// bucket.
func (t *table) key(kind byte, parts ...string) uint64 {
	h := sha256.New()
	h.Write(t.seed[:])
	h.Write([]byte{kind})
	for _, p := range parts {
		h.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(p))))
		io.WriteString(h, p)
	}
	return max(binary.LittleEndian.Uint64(h.Sum(nil)), 1)
}

// update locks the table and gives fn the bucket for what kind and parts name. fn runs under the
// lock and must be short.
func (t *table) update(kind byte, parts []string, fn func(key uint64, b *bucket)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return fmt.Errorf("policy state %s: %w", t.path, err)
	}
	key := t.key(kind, parts...)
	return t.change(key, func(b *bucket) { fn(key, b) })
}

// updateKey is update for a key that update gave before.
func (t *table) updateKey(key uint64, fn func(b *bucket)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.open(); err != nil {
		return fmt.Errorf("policy state %s: %w", t.path, err)
	}
	return t.change(key, fn)
}

func (t *table) change(key uint64, fn func(b *bucket)) error {
	if t.f == nil { // dry, and there is none
		t.buf = [blockSize]byte{}
		fn(&bucket{block: &t.buf})
		return nil
	}
	err := t.locked(func() error {
		at := int64(1+key%uint64(t.n)) * blockSize
		if _, err := t.f.ReadAt(t.buf[:], at); err != nil {
			return err
		}
		b := &bucket{block: &t.buf}
		fn(b)
		for i := range perBucket {
			if b.dirty[i] && !t.dry {
				if _, err := t.f.WriteAt(b.at(i), at+int64(i)*recordSize); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("policy state %s: %w", t.path, err)
	}
	return nil
}

// locked runs fn while no other process has the file. t.mu keeps out the rest of this one, to
// which the lock of one open file does not apply.
func (t *table) locked(fn func() error) error {
	if d := time.Since(t.busy); d >= 0 && d < lockPause {
		return errBusy
	}
	pause := 50 * time.Microsecond
	for end := time.Now().Add(lockWait); ; {
		err := durable.TryLock(t.f, t.dry)
		if err == nil {
			break
		}
		if !errors.Is(err, durable.ErrLocked) {
			return err
		}
		if time.Now().After(end) {
			t.busy = time.Now()
			return errBusy
		}
		time.Sleep(pause)
		pause = min(2*pause, 5*time.Millisecond)
	}
	return errors.Join(fn(), durable.Unlock(t.f))
}

// open opens the file once, and makes it where there is none.
func (t *table) open() error {
	if t.f != nil {
		return nil
	}
	how := os.O_RDWR | os.O_CREATE
	if t.dry {
		how = os.O_RDONLY
	} else if err := durable.MkdirAll(filepath.Dir(t.path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(t.path, how, 0o600)
	if t.dry && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	t.f = f
	err = t.locked(t.begin)
	if t.dry && errors.Is(err, io.EOF) { // made, and not yet filled
		err = errBusy
	}
	if err != nil {
		t.f = nil
		return errors.Join(err, f.Close())
	}
	return nil
}

// begin reads the header, or writes one into a file that has none: a new one, or one whose maker
// was killed before the header was written.
func (t *table) begin() error {
	fi, err := t.f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return errForeign
	}
	h := make([]byte, blockSize)
	n, err := t.f.ReadAt(h, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if len(bytes.TrimLeft(h[:n], "\x00")) == 0 && !t.dry {
		if h, err = t.make(); err != nil {
			return err
		}
	} else if n < blockSize {
		return errForeign
	}
	return t.readHeader(h, fi.Size())
}

func (t *table) readHeader(h []byte, size int64) error {
	if len(h) < blockSize || !bytes.HasPrefix(h, []byte(magic)) ||
		binary.LittleEndian.Uint32(h[headerSum:]) != crc32.Checksum(h[:headerSum], castagnoli()) {
		return errForeign
	}
	n := binary.LittleEndian.Uint32(h[bucketsAt:])
	if n == 0 || n > maxBuckets {
		return errForeign
	}
	if want := int64(1+n) * blockSize; size < want && !t.dry {
		// The maker was killed in between, or the file was cut: what is missing is empty.
		if err := t.f.Truncate(want); err != nil {
			return err
		}
	} else if size < want {
		return errForeign
	}
	t.n = n
	copy(t.seed[:], h[seedAt:bucketsAt])
	return nil
}

// make writes a new header. The file is sparse: it grows with what it holds.
func (t *table) make() ([]byte, error) {
	h := make([]byte, blockSize)
	copy(h, magic)
	rand.Read(h[seedAt:bucketsAt]) // never fails, says its documentation
	binary.LittleEndian.PutUint32(h[bucketsAt:], t.buckets)
	binary.LittleEndian.PutUint32(h[headerSum:], crc32.Checksum(h[:headerSum], castagnoli()))
	if err := t.f.Truncate(int64(1+t.buckets) * blockSize); err != nil {
		return nil, err
	}
	_, err := t.f.WriteAt(h, 0)
	return h, err
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // made once, inside crc32

// bucket is the block in which a key belongs.
type bucket struct {
	block *[blockSize]byte
	dirty [perBucket]bool
}

func (b *bucket) at(i int) []byte { return b.block[i*recordSize:][:recordSize] }

// get decodes place i; a torn record is none.
func (b *bucket) get(i int) (record, bool) {
	p := b.at(i)
	le := binary.LittleEndian
	r := record{
		key: le.Uint64(p), a: le.Uint32(p[8:]), b: le.Uint32(p[12:]), c: le.Uint32(p[16:]),
		pid: le.Uint32(p[20:]), last: le.Uint32(p[24:]),
	}
	if r.key == 0 || le.Uint32(p[28:]) != crc32.Checksum(p[:28], castagnoli()) {
		return record{}, false
	}
	return r, true
}

func (b *bucket) put(i int, r record) {
	p := b.at(i)
	le := binary.LittleEndian
	le.PutUint64(p, r.key)
	le.PutUint32(p[8:], r.a)
	le.PutUint32(p[12:], r.b)
	le.PutUint32(p[16:], r.c)
	le.PutUint32(p[20:], r.pid)
	le.PutUint32(p[24:], r.last)
	le.PutUint32(p[28:], crc32.Checksum(p[:28], castagnoli()))
	b.dirty[i] = true
}

func (b *bucket) clear(i int) {
	clear(b.at(i))
	b.dirty[i] = true
}

// all calls fn for each record of key with its place.
func (b *bucket) all(key uint64, fn func(i int, r record)) {
	for i := range perBucket {
		if binary.LittleEndian.Uint64(b.at(i)) != key {
			continue
		}
		if r, ok := b.get(i); ok {
			fn(i, r)
		}
	}
}

// find returns the record of key, and its place.
func (b *bucket) find(key uint64) (at int, found record, ok bool) {
	b.all(key, func(i int, r record) { at, found, ok = i, r, true })
	return at, found, ok
}

// place returns a place for a new record: a free one, else that of the record worth least.
func (b *bucket) place(worth func(record) int64) int {
	least, at := int64(0), -1
	for i := range perBucket {
		r, ok := b.get(i)
		if !ok {
			return i
		}
		if w := worth(r); at < 0 || w < least {
			least, at = w, i
		}
	}
	return at
}
