package spool

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"time"
)

// idLen is 9 digits of time and 9 of chance: 45 bits of milliseconds last until the year 3084,
// 45 random bits keep ids apart over hosts and from being guessed.
const (
	idLen    = 18
	idHalf   = 9
	idDigits = "0123456789abcdefghijklmnopqrstuv" // base32hex: sorts as the numbers do
)

// NewID makes a queue id that sorts by now.
func NewID(now time.Time) string {
	var r [8]byte
	// Cannot fail: crypto/rand ends the program when the kernel has no randomness.
	_, _ = rand.Read(r[:])
	return makeID(now.UnixMilli(), binary.LittleEndian.Uint64(r[:]))
}

func makeID(ms int64, chance uint64) string {
	var b [idLen]byte
	putDigits(b[:idHalf], uint64(max(ms, 0)))
	putDigits(b[idHalf:], chance)
	return string(b[:])
}

func putDigits(b []byte, v uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = idDigits[v&31]
		v >>= 5
	}
}

// ChildID is the id of the n-th message of a kind (dsn, forward ...) that a round of work on
// parent gives rise to. It is the same each time, so that repeating the round after a crash
// finds the child there. It sorts where the parent does.
func ChildID(parent string, round int, kind string, n int) string {
	sum := sha256.Sum256([]byte(parent + " " + strconv.Itoa(round) + " " + kind + " " + strconv.Itoa(n)))
	var b [idLen]byte
	copy(b[:idHalf], parent)
	putDigits(b[idHalf:], binary.LittleEndian.Uint64(sum[:8]))
	return string(b[:])
}

// ValidID tells whether s has the shape of a queue id, and so is safe as a file name.
func ValidID(s string) bool {
	if len(s) != idLen {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'v') {
			return false
		}
	}
	return true
}

// IDTime is the time a queue id was made at.
func IDTime(id string) time.Time {
	var ms int64
	for i := 0; i < idHalf && i < len(id); i++ {
		c := int64(id[i])
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'v':
			c -= 'a' - 10
		default:
			return time.Time{}
		}
		ms = ms<<5 | c
	}
	return time.UnixMilli(ms).UTC()
}
