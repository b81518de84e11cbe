package main

import (
	"context"
	"slices"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// chunkSize is the unit in which images share memory.
const chunkSize = 64 << 10

// image is the content of a disk, in chunks that are copied when they are first written after
// a clone, so that a crash image costs only what it differs in.
type image struct {
	chunks []*[chunkSize]byte // nil: zeros
	own    []bool
}

func newImage(size int64) *image {
	n := int(size / chunkSize)
	return &image{chunks: make([]*[chunkSize]byte, n), own: make([]bool, n)}
}

// clone shares all chunks; both sides copy before they write.
func (im *image) clone() *image {
	clear(im.own)
	return &image{chunks: slices.Clone(im.chunks), own: make([]bool, len(im.chunks))}
}

func (im *image) size() int64 { return int64(len(im.chunks)) * chunkSize }

func (im *image) readAt(b []byte, off int64) int {
	n := 0
	for n < len(b) && off < im.size() {
		i, at := off/chunkSize, off%chunkSize
		part := b[n:min(len(b), n+int(chunkSize-at))]
		if c := im.chunks[i]; c != nil {
			copy(part, c[at:])
		} else {
			clear(part)
		}
		n += len(part)
		off += int64(len(part))
	}
	return n
}

func (im *image) writeAt(b []byte, off int64) {
	for len(b) > 0 && off < im.size() {
		i, at := off/chunkSize, off%chunkSize
		if !im.own[i] {
			c := new([chunkSize]byte)
			if im.chunks[i] != nil {
				*c = *im.chunks[i]
			}
			im.chunks[i], im.own[i] = c, true
		}
		n := copy(im.chunks[i][at:], b)
		b = b[n:]
		off += int64(n)
	}
}

// rec is one thing that reached the disk: a write, or with flush the order to keep all before.
type rec struct {
	flush bool
	off   int64
	data  []byte
}

// disk is a file served over FUSE that stands for a disk with a volatile cache. While
// recording, it keeps every write and flush in order.
type disk struct {
	fs.Inode
	mu  sync.Mutex
	img *image
	log []rec
	on  bool
}

var (
	_ fs.NodeGetattrer = (*disk)(nil)
	_ fs.NodeSetattrer = (*disk)(nil)
	_ fs.NodeOpener    = (*disk)(nil)
	_ fs.NodeReader    = (*disk)(nil)
	_ fs.NodeWriter    = (*disk)(nil)
	_ fs.NodeFsyncer   = (*disk)(nil)
	_ fs.NodeAllocater = (*disk)(nil)
)

// record starts recording and returns the content so far.
func (d *disk) record() *image {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.on = true
	return d.img.clone()
}

// stop ends recording and returns what was recorded.
func (d *disk) stop() []rec {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.on = false
	return d.log
}

// now is the number of records so far.
func (d *disk) now() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.log)
}

func (d *disk) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Size = uint64(d.img.size())
	out.Mode = 0o600 | syscall.S_IFREG
	return 0
}

func (d *disk) Setattr(ctx context.Context, f fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return d.Getattr(ctx, f, out)
}

func (d *disk) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (d *disk) Read(_ context.Context, _ fs.FileHandle, b []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fuse.ReadResultData(b[:d.img.readAt(b, off)]), 0
}

func (d *disk) Write(_ context.Context, _ fs.FileHandle, b []byte, off int64) (uint32, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.img.writeAt(b, off)
	if d.on {
		d.log = append(d.log, rec{off: off, data: slices.Clone(b)})
	}
	return uint32(len(b)), 0
}

func (d *disk) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.on {
		d.log = append(d.log, rec{flush: true})
	}
	return 0
}

// Allocate refuses: the loop device would punch holes for discards, which are not recorded.
func (d *disk) Allocate(context.Context, fs.FileHandle, uint64, uint64, uint32) syscall.Errno {
	return syscall.EOPNOTSUPP
}

// OnForget lets go of the content.
func (d *disk) OnForget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = nil
}

// flushes counts the flushes of a recording.
func flushes(log []rec) int {
	n := 0
	for i := range log {
		if log[i].flush {
			n++
		}
	}
	return n
}
