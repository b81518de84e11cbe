package transfer

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"pennypost/internal/durable"
)

// MemoryName is the file, in the account's Maildir, that remembers what was imported: a line
// with format and version, then 32 hex digits for each message, made of its EMAILID and of
// the mailbox it came into. It says that a message that was
// imported and then removed is not to come again. Removing the file forgets that.
const MemoryName = "pennypost-import"

// UploadName is the same for what was exported to IMAP servers.
const UploadName = "pennypost-export"

const memoryHead = "pennypost-import 1\n"

// memory is the file, open for a run. A crash before a line is written costs nothing: the
// message itself has the EMAILID.
type memory struct {
	fs   durable.FS
	f    durable.File
	dry  bool
	seen map[[16]byte]bool
}

func openMemory(fsys durable.FS, path string, dry bool) (*memory, error) {
	m := &memory{fs: fsys, dry: dry, seen: make(map[[16]byte]bool)}
	flag := os.O_RDWR | os.O_CREATE | os.O_APPEND
	if dry {
		flag = os.O_RDONLY
	}
	f, err := fsys.OpenFile(path, flag, 0o600)
	if dry && errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	m.f = f
	if err := m.read(path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return m, nil
}

func (m *memory) read(path string) error {
	r := bufio.NewReader(m.f)
	head, err := r.ReadString('\n')
	if errors.Is(err, io.EOF) { // new, or torn in its first line
		if m.dry {
			return nil
		}
		if err := m.f.Truncate(0); err != nil {
			return err
		}
		if _, err := m.f.Write([]byte(memoryHead)); err != nil {
			return err
		}
		return errors.Join(durable.Sync(m.f), durable.SyncDirOn(m.fs, filepath.Dir(path)))
	}
	if err != nil {
		return err
	}
	if head != memoryHead {
		return refused(ErrFormat, "%s: not of this release: %q", path, head)
	}
	size := int64(len(head))
	for {
		line, err := r.ReadBytes('\n')
		var id [16]byte
		if err == nil {
			size += int64(len(line))
			if unhex(bytes.TrimSuffix(line, []byte("\n")), &id) {
				m.seen[id] = true
			}
			continue
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		if len(line) > 0 && !m.dry { // torn
			return m.f.Truncate(size)
		}
		return nil
	}
}

func unhex(b []byte, id *[16]byte) bool {
	var hi byte
	if len(b) != 2*len(id) {
		return false
	}
	for i, c := range b {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		default:
			return false
		}
		if i%2 == 0 {
			hi = c << 4
		} else {
			id[i/2] = hi | c
		}
	}
	return true
}

func (m *memory) has(id string) bool {
	var k [16]byte
	return unhex([]byte(id), &k) && m.seen[k]
}

func (m *memory) add(ids []string) error {
	if m.dry || len(ids) == 0 {
		return nil
	}
	var b bytes.Buffer
	for _, id := range ids {
		var k [16]byte
		if unhex([]byte(id), &k) {
			m.seen[k] = true
		}
		b.WriteString(id)
		b.WriteByte('\n')
	}
	if _, err := m.f.Write(b.Bytes()); err != nil {
		return err
	}
	return durable.Sync(m.f)
}

func (m *memory) close() error {
	if m.f == nil {
		return nil
	}
	return m.f.Close()
}
