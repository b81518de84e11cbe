package service

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"pennypost/internal/durable"
)

// The table of counts has a fixed size whatever is thrown at it: buckets of eight slots, the
// bucket chosen by a keyed hash of what is counted, the least telling slot given up when all
// eight are taken. In a file it follows a head of 64 octets: magic, then the key of the hashes.
const (
	slotSize   = 128
	bucketLen  = 8
	buckets    = 1024
	headSize   = 64
	tableSize  = headSize + buckets*bucketLen*slotSize
	tableMagic = "pennypost-guesses 1\n"
	prints     = 4 // wrong passwords remembered in a slot
)

// slot is what is known about one account, one network, or one account from one network.
type slot struct {
	tag   [16]byte
	count uint32 // wrong passwords, halved as time passes
	ring  uint32 // where the next print goes
	last  int64  // ms: when count was last changed
	next  int64  // ms: when the next guess may be looked at
	good  int64  // ms: the last right password
	print [prints][16]byte
}

func (s *slot) decode(b []byte) {
	copy(s.tag[:], b)
	e := binary.LittleEndian
	s.count, s.ring = e.Uint32(b[16:]), e.Uint32(b[20:])
	s.last, s.next, s.good = int64(e.Uint64(b[24:])), int64(e.Uint64(b[32:])), int64(e.Uint64(b[40:]))
	for i := range s.print {
		copy(s.print[i][:], b[48+16*i:])
	}
}

func (s *slot) encode(b []byte) {
	copy(b, s.tag[:])
	e := binary.LittleEndian
	e.PutUint32(b[16:], s.count)
	e.PutUint32(b[20:], s.ring)
	e.PutUint64(b[24:], uint64(s.last))
	e.PutUint64(b[32:], uint64(s.next))
	e.PutUint64(b[40:], uint64(s.good))
	for i := range s.print {
		copy(b[48+16*i:], s.print[i][:])
	}
}

// table is the store of slots: in memory, or in a file that several processes share.
type table struct {
	key  [32]byte
	path string

	mu  sync.Mutex
	mem []byte // when path is ""
}

// newTable makes one in memory, with a key of its own. Pages nobody writes to cost nothing.
func newTable() *table {
	t := &table{mem: make([]byte, tableSize)}
	rand.Read(t.key[:])
	return t
}

// openTable opens the table in a file, and makes it when it is not there. A file that is none is
// an error: it may be somebody's.
func openTable(path string) (*table, error) {
	if path == "" {
		return newTable(), nil
	}
	t := &table{path: path}
	l, err := durable.Lock(path, false)
	if err != nil {
		return nil, err
	}
	err = t.head(l.File())
	return t, errors.Join(err, l.Close())
}

func (t *table) head(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Mode().Perm()&0o077 != 0 {
		return errors.New("not a file of mode 0600, which it must be: it holds the key of its hashes")
	}
	b := make([]byte, headSize)
	if fi.Size() == 0 {
		copy(b, tableMagic)
		rand.Read(t.key[:])
		copy(b[32:], t.key[:])
		if err := f.Truncate(tableSize); err != nil {
			return err
		}
		// Not synced: what a power cut may take is counts of guesses.
		_, err := f.WriteAt(b, 0)
		return err
	}
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		return err
	}
	if fi.Size() != tableSize || !bytes.HasPrefix(b, []byte(tableMagic)) {
		return fmt.Errorf("not a table of this version (remove it to start a new one)")
	}
	copy(t.key[:], b[32:])
	return nil
}

// tag names what is counted without saying what it is.
func (t *table) tag(kind, name string) (tag [16]byte) {
	m := hmac.New(sha256.New, t.key[:])
	m.Write([]byte("slot\x00" + kind + "\x00" + name))
	copy(tag[:], m.Sum(nil))
	return tag
}

// update hands the slots of tags to fn, zero ones for tags not in the table, and stores those that
// fn changed. Nobody else sees or changes the table meanwhile. now serves to tell slots apart
// that may be given up.
func (t *table) update(now time.Time, tags [][16]byte, fn func([]*slot)) (err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var f interface {
		io.ReaderAt
		io.WriterAt
	} = memory(t.mem)
	if t.path != "" {
		l, err := durable.Lock(t.path, false)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, l.Close()) }()
		if err := t.same(l.File()); err != nil {
			return err
		}
		f = l.File()
	}
	bucket := make([]byte, bucketLen*slotSize)
	slots := make([]*slot, len(tags))
	at := make([]int64, len(tags))
	for i, tag := range tags {
		base := int64(headSize + int(binary.LittleEndian.Uint32(tag[:])%buckets)*bucketLen*slotSize)
		if _, err := f.ReadAt(bucket, base); err != nil {
			return err
		}
		n, s := choose(bucket, tag, now, func(n int) bool { return slices.Contains(at[:i], base+int64(n*slotSize)) })
		slots[i], at[i] = s, base+int64(n*slotSize)
	}
	old := make([]slot, len(tags))
	for i, s := range slots {
		old[i] = *s
	}
	fn(slots)
	b := make([]byte, slotSize)
	for i, s := range slots {
		if *s == old[i] {
			continue
		}
		s.encode(b)
		if _, err := f.WriteAt(b, at[i]); err != nil {
			return err
		}
	}
	return nil
}

// same makes sure that the file is still ours: one that was removed is begun again, with our key.
func (t *table) same(f *os.File) error {
	fi, err := f.Stat()
	if err != nil || fi.Size() == tableSize {
		return err
	}
	b := make([]byte, headSize)
	copy(b, tableMagic)
	copy(b[32:], t.key[:])
	if err := f.Truncate(0); err != nil {
		return err
	}
	if err := f.Truncate(tableSize); err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	return err
}

// choose finds the slot of tag in a bucket, or one to take for it that is not taken.
func choose(bucket []byte, tag [16]byte, now time.Time, taken func(int) bool) (int, *slot) {
	best, least := 0, int64(1<<62)
	var s slot
	for i := range bucketLen {
		s.decode(bucket[i*slotSize:])
		if s.tag == tag {
			found := s
			return i, &found
		}
		worth := max(s.last, s.good)
		if s.decayed(now) > freeAccount {
			worth += int64(time.Hour / time.Millisecond) // who is being slowed stays longer
		}
		if worth < least && !taken(i) {
			best, least = i, worth
		}
	}
	return best, &slot{tag: tag}
}

// memory is a table without a file.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m[off:]), nil }
func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }
