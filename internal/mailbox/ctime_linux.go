package mailbox

import (
	"io/fs"
	"syscall"
)

// changed is when the file got its place, in seconds: its ctime.
func changed(i fs.FileInfo) int64 {
	if st, ok := i.Sys().(*syscall.Stat_t); ok && st.Ctim.Sec != 0 {
		return int64(st.Ctim.Sec)
	}
	return i.ModTime().Unix()
}
