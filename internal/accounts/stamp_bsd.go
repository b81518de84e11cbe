//go:build freebsd || darwin || netbsd

package accounts

import "syscall"

func stampOf(st *syscall.Stat_t) stamp {
	return stamp{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtim: st.Mtimespec, ctim: st.Ctimespec, mode: uint32(st.Mode), uid: st.Uid}
}
