package cli

import (
	"os"
	"sync"
)

// logFile is a log that may be renamed at any time, as logrotate(8) does: the next line goes to a
// new file of the old name. Looking for that costs one system call a line, and spares everybody a
// signal that half the processes would not hear. It may be used concurrently.
type logFile struct {
	path string

	mu   sync.Mutex
	f    *os.File
	info os.FileInfo // of f
}

// open opens the file by its name, and closes the one before it.
func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	if l.f != nil {
		l.f.Close() // each line was handed to the kernel as a whole: there is nothing to lose
	}
	l.f, l.info = f, info
	return nil
}

// Write appends one line. Where no new file can be opened, the old one goes on: a line there is
// better than none.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if info, err := os.Stat(l.path); err != nil || !os.SameFile(info, l.info) {
		_ = l.open()
	}
	return l.f.Write(b)
}
