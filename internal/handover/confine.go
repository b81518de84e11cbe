package handover

import (
	"errors"
	"syscall"
)

// files is what a session needs of open files, and what this process needs: a few for each
// request, and none for a session that has begun but the pipe of its log.
const files = 8192

// Confine takes from this process, and from all that it starts, what no session needs: rights
// gained by starting a program, dumps of memory, thousands of open files, descriptors that
// somebody else has left open, files that others can read.
func Confine() error {
	syscall.Umask(0o077)
	var l syscall.Rlimit
	err := syscall.Setrlimit(syscall.RLIMIT_CORE, &l)
	if e := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); e == nil && l.Max > files {
		l.Cur, l.Max = files, files
		err = errors.Join(err, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l))
	}
	return errors.Join(err, confine())
}
