//go:build !linux

package mailbox

import "io/fs"

// changed is when the file got its place, in seconds. The field of its ctime has another name
// on each system; its mtime comes near.
func changed(i fs.FileInfo) int64 { return i.ModTime().Unix() }
