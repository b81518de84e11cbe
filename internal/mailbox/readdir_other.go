//go:build !linux

package mailbox

import "pennypost/internal/durable"

func eachName(f durable.File, _ []byte, fn func(name []byte)) error { return eachNameSlow(f, fn) }
