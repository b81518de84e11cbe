package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"pennypost/internal/durable"
	"pennypost/internal/envelope"
)

// firstRead is what one pread gets of a message file: nearly always the whole envelope, often
// the whole file.
const firstRead = 8 << 10

// openFlags: a symbolic link is refused, and a FIFO planted in incoming/ does not block us.
const openFlags = os.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK

// Message is a message of the spool, opened for reading.
type Message struct {
	ID     string
	Env    *envelope.Envelope
	File   *os.File // the spool file; nil on a simulated file system
	Offset int64    // where the message begins in it
	Size   int64    // octets of the message
	UID    uint32   // who put it there
	f      durable.File
	head   header
}

// Body reads the message bytes.
func (m *Message) Body() *io.SectionReader { return io.NewSectionReader(m.f, m.Offset, m.Size) }

// Close closes the file.
func (m *Message) Close() error { return m.f.Close() }

// read opens and checks the message file at path. With claim, for a file of incoming/, it also
// finds out whether a writer still holds it, and gives ErrBusy then, and reads the whole file
// for its checksum: a power cut before Commit's sync may leave line 1 without the rest. The
// bytes come from the page cache mostly; a file of queue/ has been through this.
func (s *Spool) read(path, id string, claim bool) (*Message, error) {
	f, err := s.fsys.OpenFile(path, openFlags, 0)
	if err != nil {
		if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EMLINK) { // FreeBSD says EMLINK
			return nil, fmt.Errorf("%w: a symbolic link", ErrCorrupt)
		}
		if errors.Is(err, unix.ENXIO) {
			return nil, fmt.Errorf("%w: a socket or device", ErrCorrupt)
		}
		return nil, err
	}
	m := &Message{ID: id, f: f}
	m.File, _ = f.(*os.File)
	if err := s.check(m, claim); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return m, nil
}

func (s *Spool) check(m *Message, claim bool) error {
	info, err := m.f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: not a regular file", ErrCorrupt)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("spool: the file system does not tell owners")
	}
	if st.Nlink != 1 {
		return fmt.Errorf("%w: the file has %d names", ErrCorrupt, st.Nlink)
	}
	m.UID = st.Uid
	if claim {
		if err := durable.TryLock(m.f, true); errors.Is(err, ErrLocked) {
			return ErrBusy
		} else if err != nil {
			return err
		}
		// The writer may have finished between our stat and our lock.
		if info, err = m.f.Stat(); err != nil {
			return err
		}
	}
	return s.parse(m, info.Size(), claim)
}

// parse reads line 1 and line 2 and compares sizes and, where it costs nothing more or is asked
// for, the checksum.
func (s *Spool) parse(m *Message, size int64, verify bool) error {
	b := make([]byte, min(size, firstRead))
	if err := readFull(m.f, b, 0); err != nil {
		return err
	}
	h, err := parseHeader(b)
	if err != nil {
		return err
	}
	if want := int64(headerLen) + h.envelope + h.message; want != size {
		return fmt.Errorf("%w: %d octets, line 1 says %d", ErrCorrupt, size, want)
	}
	m.head, m.Offset, m.Size = h, int64(headerLen)+h.envelope, h.message
	whole := int64(len(b)) == size
	if m.Offset > int64(len(b)) {
		b = append(b, make([]byte, m.Offset-int64(len(b)))...)
		if err := readFull(m.f, b[firstRead:], firstRead); err != nil {
			return err
		}
	}
	if whole {
		err = sumError(h.crc, checksum(0, b[headerLen:]))
	} else if verify {
		err = s.verifySum(m, b[headerLen:])
	}
	if err != nil {
		return err
	}
	m.Env, err = decodeEnvelope(m.ID, b[headerLen:m.Offset])
	if err == nil {
		s.distrust(m)
	}
	return err
}

// verifySum reads the rest of a large file for its checksum.
func (s *Spool) verifySum(m *Message, start []byte) error {
	crc := checksum(0, start)
	r := io.NewSectionReader(m.f, int64(headerLen+len(start)), m.Offset+m.Size-int64(headerLen+len(start)))
	b := make([]byte, bufferSize)
	for {
		n, err := r.Read(b)
		crc = checksum(crc, b[:n])
		if err == io.EOF {
			return sumError(m.head.crc, crc)
		}
		if err != nil {
			return err
		}
	}
}

func sumError(want, got uint32) error {
	if want != got {
		return fmt.Errorf("%w: checksum %08x, line 1 says %08x", ErrCorrupt, got, want)
	}
	return nil
}

// distrust replaces what an untrusted submitter says about himself by what the kernel says.
func (s *Spool) distrust(m *Message) {
	if m.UID == 0 || m.UID == s.euid || (s.o.Trusted != nil && s.o.Trusted(m.UID)) {
		return
	}
	uid := int(m.UID)
	m.Env.Origin = envelope.Origin{Kind: envelope.OriginPipe, UID: &uid}
}

// readFull is io.ReadFull at an offset; a file shorter than it was a moment ago is corrupt.
func readFull(f io.ReaderAt, b []byte, at int64) error {
	n, err := f.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		return fmt.Errorf("%w: the file shrinks", ErrCorrupt)
	}
	return err
}

// ignoreMissing takes the sting out of removing what is gone already.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
