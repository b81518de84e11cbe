package mailtest

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"pennypost/internal/durable"
)

// ErrCrashed is what every operation returns after a CrashFS has stopped.
var ErrCrashed = errors.New("the machine is off")

// CrashFS is a file system in memory that knows which bytes and which names are on stable
// storage. It can stop after any operation; Reboot then gives the file system that a machine
// would find after it. It may be used concurrently.
//
// The model is harsher than ext4 or xfs: of the changes to directories that were not synced,
// any subset may survive, in one directory and across them; a rename alone is one change for
// both of its directories. Bytes that were not synced survive in any subset of their 512-octet
// blocks, and a file's new size may survive without them.
type CrashFS struct {
	// NamesWithFile makes the first sync of a file durable for its newest name, too, as
	// ext4, xfs, btrfs and f2fs do.
	NamesWithFile bool
	// Fault is asked before each operation; a non-nil error is its result. op is one of
	// create open write writeout sync close truncate chmod chtimes link rename remove mkdir readdir free.
	Fault func(op, name string) error
	// Space is what Free reports.
	Space durable.Space

	mu    sync.Mutex
	root  *crashNode
	log   []*crashOp // all changes of names, in order
	ops   int
	stop  int // ops after which everything fails; -1: never
	nodes int

	latest time.Time // of the changes of names
}

type crashNode struct {
	num     int
	dir     bool
	mode    fs.FileMode
	uid     uint32
	mtime   time.Time
	links   int
	entries map[string]*crashNode
	data    []byte
	stable  []byte // data at the last sync
	written []byte // data at the last WriteOut; nil: none
}

// crashOp is one change of names: node leaves from and gets the name to.
type crashOp struct {
	node     *crashNode
	from, to crashName // a zero name: none
	stable   bool
	written  []byte // the node's when the change was made: if the change survives, so do they
	time     time.Time
}

type crashName struct {
	dir  *crashNode
	name string
}

// NewCrashFS makes an empty file system with the directory "/".
func NewCrashFS() *CrashFS {
	c := &CrashFS{stop: -1, Space: durable.Space{Bytes: 1 << 40, Inodes: 1 << 30, Type: "crashfs"}}
	c.root = c.node(true, 0o755)
	return c
}

func (c *CrashFS) node(dir bool, mode fs.FileMode) *crashNode {
	c.nodes++
	n := &crashNode{num: c.nodes, dir: dir, mode: mode.Perm(), uid: uint32(os.Geteuid()), mtime: time.Now()}
	if dir {
		n.entries = map[string]*crashNode{}
		n.mode |= fs.ModeDir
	}
	return n
}

// StopAfter lets n more operations succeed. Of a write that is the one too many, a part gets
// into the file.
func (c *CrashFS) StopAfter(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop = c.ops + n
}

// Ops is the number of operations so far that change something.
func (c *CrashFS) Ops() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ops
}

// begin counts an operation and tells whether it fails.
func (c *CrashFS) begin(op, name string) error {
	if c.stop >= 0 && c.ops >= c.stop {
		return ErrCrashed
	}
	if c.Fault != nil {
		if err := c.Fault(op, name); err != nil {
			return &fs.PathError{Op: op, Path: name, Err: err}
		}
	}
	switch op {
	case "open", "close", "readdir", "free":
	default:
		c.ops++
	}
	return nil
}

// Reboot gives what is found after the process died (cut nil: everything that was done is
// there) or the power failed (what was not synced survives as cut decides).
func (c *CrashFS) Reboot(cut *rand.Rand) *CrashFS {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := NewCrashFS()
	n.NamesWithFile, n.Space = c.NamesWithFile, c.Space
	made := map[*crashNode]*crashNode{c.root: n.root}
	n.root.mode = c.root.mode
	// A journal replays its changes up to one point; a file system without one does as it likes.
	upTo := -1
	if cut != nil && cut.IntN(2) == 0 {
		upTo = cut.IntN(len(c.log) + 1)
	}
	for i, op := range c.log {
		keep := op.stable || cut == nil
		if !keep {
			keep = upTo >= 0 && i < upTo || upTo < 0 && cut.IntN(2) == 0
		}
		if !keep {
			continue
		}
		m := made[op.node]
		if m == nil {
			m = n.survivor(op.node, cut)
			made[op.node] = m
		}
		if cut != nil && op.written != nil {
			m.data = tornData(op.written, op.node.data, cut)
			m.stable = slices.Clone(m.data)
		}
		if op.from.dir != nil {
			if d := made[op.from.dir]; d != nil && d.entries[op.from.name] == m {
				n.unset(crashName{d, op.from.name})
			}
		}
		if op.to.dir != nil {
			if d := made[op.to.dir]; d != nil {
				n.set(crashName{d, op.to.name}, m)
			}
		}
	}
	for _, op := range n.log {
		op.stable = true
	}
	n.latest = c.latest
	if cut == nil { // nothing is lost, no time either
		for o, m := range made {
			m.mtime, m.num = o.mtime, o.num
		}
		n.nodes = c.nodes
	}
	return n
}

// survivor is a copy of a node as the disk has it.
func (c *CrashFS) survivor(o *crashNode, cut *rand.Rand) *crashNode {
	m := c.node(o.dir, o.mode)
	m.mode, m.uid, m.mtime = o.mode, o.uid, o.mtime
	if o.dir {
		return m
	}
	m.data = slices.Clone(o.data)
	if cut != nil {
		m.data = tornData(o.stable, o.data, cut)
	}
	m.stable = slices.Clone(m.data)
	return m
}

// tornData mixes two states of a file.
func tornData(old, now []byte, cut *rand.Rand) []byte {
	switch cut.IntN(4) {
	case 0:
		return slices.Clone(old)
	case 1:
		return slices.Clone(now)
	}
	size := len(old)
	if len(now) != len(old) {
		lo, hi := min(len(old), len(now)), max(len(old), len(now))
		size = []int{len(old), len(now), lo + cut.IntN(hi-lo+1)}[cut.IntN(3)]
	}
	out := make([]byte, size) // NULs where neither state has anything
	copy(out, old)
	for at := 0; at < size; at += 512 {
		if at < len(now) && cut.IntN(2) == 0 {
			copy(out[at:min(at+512, size)], now[at:min(at+512, len(now))])
		}
	}
	return out
}

func (c *CrashFS) set(n crashName, node *crashNode) {
	if old := n.dir.entries[n.name]; old != nil {
		old.links--
	}
	n.dir.entries[n.name] = node
	node.links++
	c.note(&crashOp{node: node, to: n})
}

// note writes a change of names down and gives its directories their new time. Two changes
// never have the same, so that a time tells the content of a directory.
func (c *CrashFS) note(op *crashOp) {
	op.time = time.Now()
	if !op.time.After(c.latest) {
		op.time = c.latest.Add(1)
	}
	c.latest = op.time
	op.written = op.node.written
	for _, d := range []*crashNode{op.from.dir, op.to.dir} {
		if d != nil {
			d.mtime = op.time
		}
	}
	c.log = append(c.log, op)
}

func (c *CrashFS) unset(n crashName) {
	node := n.dir.entries[n.name]
	delete(n.dir.entries, n.name)
	node.links--
	c.note(&crashOp{node: node, from: n})
}

// find walks a path. The node is nil when only its last element is missing.
func (c *CrashFS) find(op, path string) (crashName, *crashNode, error) {
	path = filepath.Clean(path)
	if path == "/" {
		return crashName{}, c.root, nil
	}
	dir, base := filepath.Split(path)
	_, d, err := c.find(op, dir)
	if err == nil && (d == nil || !d.dir) {
		err = &fs.PathError{Op: op, Path: path, Err: syscall.ENOENT}
	}
	if err != nil {
		return crashName{}, nil, err
	}
	return crashName{d, base}, d.entries[base], nil
}

// must is find for a path that has to exist.
func (c *CrashFS) must(op, path string) (crashName, *crashNode, error) {
	n, node, err := c.find(op, path)
	if err == nil && node == nil {
		err = &fs.PathError{Op: op, Path: path, Err: syscall.ENOENT}
	}
	return n, node, err
}

// OpenFile implements durable.FS.
func (c *CrashFS) OpenFile(path string, flag int, perm fs.FileMode) (durable.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, node, err := c.find("open", path)
	if err != nil {
		return nil, err
	}
	switch {
	case node == nil && flag&os.O_CREATE == 0:
		return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.ENOENT}
	case node != nil && flag&os.O_CREATE != 0 && flag&os.O_EXCL != 0:
		return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.EEXIST}
	case node == nil:
		if err := c.begin("create", path); err != nil {
			return nil, err
		}
		node = c.node(false, perm)
		c.set(at, node)
	case flag&os.O_TRUNC != 0:
		if err := c.begin("truncate", path); err != nil {
			return nil, err
		}
		node.data = nil
	default:
		if err := c.begin("open", path); err != nil {
			return nil, err
		}
	}
	return &crashFile{c: c, n: node, path: path, app: flag&os.O_APPEND != 0}, nil
}

// Mkdir implements durable.FS.
func (c *CrashFS) Mkdir(path string, perm fs.FileMode) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, node, err := c.find("mkdir", path)
	if err != nil {
		return err
	}
	if node != nil {
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.EEXIST}
	}
	if err := c.begin("mkdir", path); err != nil {
		return err
	}
	c.set(at, c.node(true, perm))
	return nil
}

// Link implements durable.FS.
func (c *CrashFS) Link(oldname, newname string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, node, err := c.must("link", oldname)
	if err != nil {
		return err
	}
	at, there, err := c.find("link", newname)
	if err == nil && there != nil {
		err = &fs.PathError{Op: "link", Path: newname, Err: syscall.EEXIST}
	}
	if err == nil {
		err = c.begin("link", newname)
	}
	if err == nil {
		c.set(at, node)
	}
	return err
}

// Rename implements durable.FS.
func (c *CrashFS) Rename(oldname, newname string) error { return c.rename(oldname, newname, true) }

// RenameNew implements durable.FS.
func (c *CrashFS) RenameNew(oldname, newname string) error { return c.rename(oldname, newname, false) }

func (c *CrashFS) rename(oldname, newname string, replace bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	from, node, err := c.must("rename", oldname)
	if err != nil {
		return err
	}
	to, there, err := c.find("rename", newname)
	if err == nil && there != nil && !replace {
		err = &fs.PathError{Op: "rename", Path: newname, Err: syscall.EEXIST}
	}
	if err == nil {
		err = c.begin("rename", newname)
	}
	if err != nil {
		return err
	}
	if there != nil {
		there.links--
	}
	delete(from.dir.entries, from.name)
	to.dir.entries[to.name] = node
	c.note(&crashOp{node: node, from: from, to: to})
	return nil
}

// Remove implements durable.FS.
func (c *CrashFS) Remove(path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, _, err := c.must("remove", path)
	if err == nil {
		err = c.begin("remove", path)
	}
	if err == nil {
		c.unset(at)
	}
	return err
}

// Lstat implements durable.FS.
func (c *CrashFS) Lstat(path string) (fs.FileInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, node, err := c.must("lstat", path)
	if err == nil {
		err = c.begin("open", path)
	}
	if err != nil {
		return nil, err
	}
	return node.info(filepath.Base(path)), nil
}

// Free implements durable.FS.
func (c *CrashFS) Free(path string) (durable.Space, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.begin("free", path); err != nil {
		return durable.Space{}, err
	}
	s := c.Space
	s.NamesWithFile = c.NamesWithFile
	return s, nil
}

// Chtimes sets the time of a file.
func (c *CrashFS) Chtimes(path string, _, mtime time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, node, err := c.must("chtimes", path)
	if err == nil {
		err = c.begin("chtimes", path)
	}
	if err == nil {
		node.mtime = mtime
	}
	return err
}

// Age makes a file look older by d.
func (c *CrashFS) Age(path string, d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, node, err := c.must("age", path)
	if err == nil {
		node.mtime = node.mtime.Add(-d)
	}
	return err
}

// Names lists a directory.
func (c *CrashFS) Names(path string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, node, err := c.must("readdir", path)
	if err != nil {
		return nil
	}
	return slices.Sorted(maps.Keys(node.entries))
}

// crashFile is an open file of a CrashFS.
type crashFile struct {
	c      *CrashFS
	n      *crashNode
	path   string
	off    int64
	app    bool
	closed bool
	listed bool
}

func (f *crashFile) Name() string { return f.path }

// use is what every method begins with.
func (f *crashFile) use(op string) (unlock func(), err error) {
	f.c.mu.Lock()
	if f.closed {
		err = &fs.PathError{Op: op, Path: f.path, Err: fs.ErrClosed}
	} else {
		err = f.c.begin(op, f.path)
	}
	return f.c.mu.Unlock, err
}

func (f *crashFile) Close() error {
	unlock, err := f.use("close")
	defer unlock()
	f.closed = true
	return err
}

func (f *crashFile) Read(b []byte) (int, error) {
	n, err := f.ReadAt(b, f.off)
	f.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (f *crashFile) ReadAt(b []byte, off int64) (int, error) {
	unlock, err := f.use("open")
	defer unlock()
	if err != nil {
		return 0, err
	}
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *crashFile) Write(b []byte) (int, error) {
	off := f.off
	if f.app {
		off = -1
	}
	n, err := f.writeAt(b, off)
	f.off += int64(n)
	return n, err
}

func (f *crashFile) WriteAt(b []byte, off int64) (int, error) { return f.writeAt(b, off) }

func (f *crashFile) writeAt(b []byte, off int64) (int, error) {
	unlock, err := f.use("write")
	defer unlock()
	if err != nil && !errors.Is(err, ErrCrashed) {
		return 0, err
	}
	if off < 0 {
		off = int64(len(f.n.data))
	}
	if err != nil {
		b = b[:len(b)/2]
		if f.c.stop != f.c.ops {
			return 0, err
		}
		f.c.ops++ // only the first write too many leaves a part
	}
	if need := int(off) + len(b); need > len(f.n.data) {
		f.n.data = append(f.n.data, make([]byte, need-len(f.n.data))...)
	}
	copy(f.n.data[off:], b)
	f.n.mtime = time.Now()
	return len(b), err
}

func (f *crashFile) Truncate(size int64) error {
	unlock, err := f.use("truncate")
	defer unlock()
	if err != nil {
		return err
	}
	if n := int(size); n <= len(f.n.data) {
		f.n.data = f.n.data[:n:n]
	} else {
		f.n.data = append(f.n.data, make([]byte, n-len(f.n.data))...)
	}
	return nil
}

func (f *crashFile) Chmod(mode fs.FileMode) error {
	unlock, err := f.use("chmod")
	defer unlock()
	if err == nil {
		f.n.mode = f.n.mode&fs.ModeDir | mode
	}
	return err
}

func (f *crashFile) Sync() error {
	unlock, err := f.use("sync")
	defer unlock()
	if err != nil {
		return err
	}
	if !f.n.dir {
		f.n.stable, f.n.written = slices.Clone(f.n.data), nil
		for _, op := range f.c.log {
			if op.node == f.n {
				op.written = nil
			}
		}
		if f.c.NamesWithFile {
			f.c.settle(func(op *crashOp) bool { return op.node == f.n })
		}
		return nil
	}
	f.c.settle(func(op *crashOp) bool { return op.from.dir == f.n || op.to.dir == f.n })
	return nil
}

// WriteOut gives the bytes to a disk that may keep them in its cache: they survive with any
// later change of the file's names, as a journal flushes the disk before it commits.
func (f *crashFile) WriteOut() error {
	unlock, err := f.use("writeout")
	defer unlock()
	if err == nil && !f.n.dir {
		f.n.written = slices.Clone(f.n.data)
	}
	return err
}

func (c *CrashFS) settle(which func(*crashOp) bool) {
	for _, op := range c.log {
		op.stable = op.stable || which(op)
	}
}

func (f *crashFile) Readdirnames(n int) ([]string, error) {
	unlock, err := f.use("readdir")
	defer unlock()
	if err != nil {
		return nil, err
	}
	if f.listed && n > 0 {
		return nil, io.EOF
	}
	f.listed = true
	return slices.Sorted(maps.Keys(f.n.entries)), nil
}

func (f *crashFile) Stat() (fs.FileInfo, error) {
	unlock, err := f.use("open")
	defer unlock()
	if err != nil {
		return nil, err
	}
	return f.n.info(filepath.Base(f.path)), nil
}

type crashInfo struct {
	name string
	size int64
	mode fs.FileMode
	time time.Time
	sys  *syscall.Stat_t
}

func (n *crashNode) info(name string) fs.FileInfo {
	st := &syscall.Stat_t{Uid: n.uid, Ino: uint64(n.num)}
	for range n.links { // the field's type differs between systems
		st.Nlink++
	}
	return crashInfo{name, int64(len(n.data)), n.mode, n.mtime, st}
}

func (i crashInfo) Name() string       { return i.name }
func (i crashInfo) Size() int64        { return i.size }
func (i crashInfo) Mode() fs.FileMode  { return i.mode }
func (i crashInfo) ModTime() time.Time { return i.time }
func (i crashInfo) IsDir() bool        { return i.mode.IsDir() }
func (i crashInfo) Sys() any           { return i.sys }
