package mailbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"pennypost/internal/durable"
)

// eachName calls fn for the names of files in an open directory, in the order of the system.
// The octets are fn's during the call only: of 100,000 names few are worth a string.
func eachName(f durable.File, buf []byte, fn func(name []byte)) error {
	o, ok := f.(*os.File)
	if !ok {
		return eachNameSlow(f, fn)
	}
	fd := int(o.Fd())
	for {
		n, err := unix.ReadDirent(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "readdir", Path: f.Name(), Err: err}
		}
		if n <= 0 {
			return nil
		}
		// struct linux_dirent64: ino and offset of 8 octets, length of 2, type of 1, name, NUL.
		for b := buf[:n]; len(b) >= 19; {
			size := int(binary.NativeEndian.Uint16(b[16:]))
			if size < 19 || size > len(b) {
				return &os.PathError{Op: "readdir", Path: f.Name(), Err: unix.EIO}
			}
			name := b[19:size]
			if i := bytes.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			switch b[18] {
			case unix.DT_REG, unix.DT_LNK, unix.DT_UNKNOWN: // others are no message
				fn(name)
			}
			b = b[size:]
		}
	}
}
