package mailbox

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// inotify is Linux's notifier.
type inotify struct {
	fd int
	f  *os.File
}

func newNotifier() (notifier, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	return &inotify{fd, os.NewFile(uintptr(fd), "inotify")}, nil
}

func (n *inotify) add(dir string) (int, error) {
	const what = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	id, err := unix.InotifyAddWatch(n.fd, dir, what)
	if err != nil {
		return 0, os.NewSyscallError("inotify_add_watch", err)
	}
	return id, nil
}

func (n *inotify) remove(id int) {
	_, _ = unix.InotifyRmWatch(n.fd, uint32(id)) // it may be gone with its directory
}

func (n *inotify) run(fn func(id int)) {
	buf := make([]byte, 16<<10)
	for {
		k, err := n.f.Read(buf)
		if err != nil {
			return // closed
		}
		last := 0
		for b := buf[:k]; len(b) >= unix.SizeofInotifyEvent; {
			id := int(int32(binary.NativeEndian.Uint32(b)))
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
			if binary.NativeEndian.Uint32(b[4:])&unix.IN_Q_OVERFLOW != 0 {
				id = -1
			}
			if id != last { // a thousand renames are one word
				fn(id)
				last = id
			}
			b = b[min(size, len(b)):]
		}
	}
}

func (n *inotify) Close() error { return n.f.Close() }
